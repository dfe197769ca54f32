//! One connection: its descriptor, its credit in both directions, and what it still has to say to the guest.
//!
//! Credit (virtio 1.3 §5.10.6.3) is counted modulo 2^32. A guest that sends more than it was given breaks its own
//! connection; one that lies about its room only loses its own data.

use std::collections::VecDeque;

use doorbell::{Interest, Waiter};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::packet::{Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::sys;

/// Bytes of the guest's that we keep for a slow reader on the host.
pub(super) const BUFFER: u32 = 256 << 10;
/// We tell the guest of freed room in steps of this size.
const CREDIT_STEP: u32 = BUFFER / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// We asked, the guest has not answered.
    Connecting,
    /// Data flows.
    Open,
    /// The guest is done with it; only what it sent before is still given to the host.
    Draining,
    /// The host is done with it; the guest has to confirm with a reset.
    Closing,
}

/// What a step on a connection means for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// Forget it without a word.
    Drop,
    /// Forget it and tell the guest.
    Reset,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) state: State,
    fd: Option<OwnedFd>,
    token: u64,
    /// How it stands in the waiter; `None`: not in it.
    waited: Option<Interest>,
    hung_up: bool,

    /// Sent by the guest, not yet taken by the host.
    backlog: VecDeque<u8>,
    /// Bytes from the guest in all, and bytes given to the host in all.
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    announced: u32,

    /// The guest's room and what it took, by its own word; and what we sent.
    peer_buffer: u32,
    peer_forwarded: u32,
    sent: u32,
    credit_requested: bool,

    /// SHUTDOWN flags that the guest sent.
    guest_shutdown: u32,
    /// The host sends no more.
    host_ended: bool,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd, token: u64, state: State) -> Self {
        Self {
            state,
            fd: Some(fd),
            token,
            waited: None,
            hung_up: false,
            backlog: VecDeque::new(),
            received: 0,
            forwarded: 0,
            announced: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            sent: 0,
            credit_requested: false,
            guest_shutdown: 0,
            host_ended: false,
        }
    }

    /// Takes the guest's word on its buffer from any of its packets.
    pub(super) fn update_credit(&mut self, header: &Header) {
        self.peer_buffer = header.buffer;
        self.peer_forwarded = header.forwarded;
        if self.credit() > 0 {
            self.credit_requested = false;
        }
    }

    /// Bytes that the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        self.peer_buffer.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// The buffer fields of a packet that is about to be sent.
    pub(super) fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (BUFFER, self.forwarded)
    }

    /// Whether the guest should hear of room that it does not know of.
    pub(super) fn owes_credit(&self) -> bool {
        matches!(self.state, State::Open) && self.forwarded.wrapping_sub(self.announced) >= CREDIT_STEP
    }

    /// Whether to ask the guest for room: once each time it runs out.
    pub(super) fn ask_for_credit(&mut self) -> bool {
        let ask =
            self.state == State::Open && self.credit() == 0 && !self.host_ended && !self.credit_requested;
        self.credit_requested |= ask;
        ask
    }

    /// Data from the guest.
    pub(super) fn receive(&mut self, data: &[u8]) -> Fate {
        let held = self.received.wrapping_sub(self.forwarded);
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let legal = self.state == State::Open
            && self.guest_shutdown & SHUTDOWN_SEND == 0
            && held.checked_add(len).is_some_and(|sum| sum <= BUFFER);
        if !legal {
            return Fate::Reset;
        }
        self.received = self.received.wrapping_add(len);
        let taken = if self.backlog.is_empty() { self.write(data) } else { Ok(0) };
        match taken {
            Ok(taken) => {
                self.backlog.extend(data.get(taken..).unwrap_or(&[]));
                Fate::Keep
            }
            Err(_) => Fate::Reset,
        }
    }

    /// Writes to the host; how much it took. Counts it as forwarded.
    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let Some(fd) = &self.fd else { return Err(Errno::NOTCONN) };
        let mut done: usize = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match sys::write(fd, rest) {
                Ok(count) => done = done.saturating_add(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(done).unwrap_or(u32::MAX));
        Ok(done)
    }

    /// Gives the host what waits for it, now that it can take more.
    pub(super) fn drain(&mut self) -> Fate {
        while !self.backlog.is_empty() {
            let front = std::mem::take(&mut self.backlog);
            let result = self.write(front.as_slices().0);
            self.backlog = front;
            match result {
                Ok(0) => return Fate::Keep,
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(_) if self.state == State::Draining => return Fate::Drop,
                Err(_) => return Fate::Reset,
            }
        }
        self.after_drain()
    }

    /// The host has everything: passes on what the guest ended.
    fn after_drain(&mut self) -> Fate {
        if self.state == State::Draining {
            return Fate::Drop;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0
            && let Some(fd) = &self.fd
        {
            // Fails only if the host is gone already.
            let _ = rustix::net::shutdown(fd, Shutdown::Write);
        }
        Fate::Keep
    }

    /// The guest ends one or both directions, or is gone altogether. `Reset` means: confirm to the guest.
    pub(super) fn guest_ends(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shutdown == SHUTDOWN_RECEIVE | SHUTDOWN_SEND {
            self.state = State::Draining;
        }
        if self.backlog.is_empty() { self.after_drain() } else { Fate::Keep }
    }

    /// Reads what the host sends, at most what the guest has room for. `None`: nothing now.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let room = (self.credit() as usize).min(buffer.len());
        let target = buffer.get_mut(..room).filter(|target| !target.is_empty())?;
        let count = loop {
            match sys::read(self.fd.as_ref()?, &mut *target) {
                Ok(count) => break count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                // A host that broke the connection has ended it in both directions.
                Err(_) => {
                    self.hung_up = true;
                    break 0;
                }
            }
        };
        self.sent = self.sent.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        Some(count)
    }

    /// The host sends no more; gives the SHUTDOWN flags for the guest.
    pub(super) fn host_ends(&mut self) -> u32 {
        self.host_ended = true;
        if self.hung_up {
            self.state = State::Closing;
            self.fd = None;
            self.backlog.clear();
            SHUTDOWN_RECEIVE | SHUTDOWN_SEND
        } else {
            SHUTDOWN_SEND
        }
    }

    /// The host's end is gone; whether that is news to be told now (the rest of its data comes first).
    pub(super) fn note_hang_up(&mut self) -> bool {
        self.hung_up = true;
        self.host_ended && self.state == State::Open
    }

    /// Whether the host may be read from now, but for the guest's receive buffers.
    pub(super) fn can_read(&self) -> bool {
        self.state == State::Open
            && !self.host_ended
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// Brings the waiter up to date. `starved`: the guest offers no buffers to read into.
    pub(super) fn wait(&mut self, waiter: &Waiter, starved: bool) -> Result<(), std::io::Error> {
        let Some(fd) = &self.fd else {
            // Closing the descriptor took it out of the set.
            self.waited = None;
            return Ok(());
        };
        let interest = Interest { readable: self.can_read() && !starved, writable: !self.backlog.is_empty() };
        // Without interest only the hang-up is waited for, and that only once: it would be reported for ever.
        let listed = interest != Interest::NONE || (self.state == State::Open && !self.hung_up);
        let wanted = listed.then_some(interest);
        match (self.waited, wanted) {
            (old, new) if old == new => {}
            (None, Some(interest)) => waiter.add(fd, self.token, interest)?,
            (Some(_), Some(interest)) => waiter.modify(fd, self.token, interest)?,
            (Some(_), None) => waiter.remove(fd)?,
            (None, None) => {}
        }
        self.waited = wanted;
        Ok(())
    }
}

/// Whether an operation may come for a connection in this state.
pub(super) fn is_expected(state: State, operation: Operation) -> bool {
    match operation {
        Operation::Response => state == State::Connecting,
        Operation::Reset => true,
        Operation::Request => false,
        Operation::Data | Operation::Shutdown | Operation::CreditUpdate | Operation::CreditRequest => {
            matches!(state, State::Open | State::Closing)
        }
    }
}
