//! virtio-vsock (virtio 1.3 §5.10): streams between ports of the guest and descriptors of the host.
//!
//! Each connection is one end of a socket pair that the host hands in. The device moves bytes between descriptor and
//! virtqueue under credit in both directions and keeps at most [`connection::BUFFER`] bytes for a slow host reader, who
//! thereby stops only the connection it reads. The guest reaches no host port that nobody listens on.

mod connection;
mod host;
mod packet;
mod sys;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use doorbell::{Doorbell, Event, Waiter};
use machine::GuestEvent;
use machine::pci::RestoreError;
use prost::Message;
use rustix::fd::OwnedFd;

use crate::device::{Active, Device, DeviceIdentity, FIRST_TOKEN};
use crate::queue::{Chain, QueueError};
use connection::{Connection, Fate, State, is_expected};
use host::Inbox;
pub use host::VsockHost;
use packet::{DATA_MAX, HEADER, HOST_CID, Header, Operation, STREAM};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
const QUEUE_SIZE: u16 = 256;
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 1024;
/// Control packets that wait for the guest's buffers; with more, nothing is taken from the guest.
const CONTROL_MAX: usize = 512;
/// Data packets given to one connection before the others have their turn.
const TURN: usize = 32;
/// The first port that the host's side of a dialled connection has.
const FIRST_PORT: u32 = 0x4000_0000;
/// The event that tells the guest that every connection is gone (§5.10.6.7).
const TRANSPORT_RESET: u32 = 0;

static BAD_PACKET: GuestEvent = GuestEvent::new("malformed vsock packet");
static REFUSED: GuestEvent = GuestEvent::new("vsock connection refused");

/// Names a connection: the guest's port and the host's.
type Key = (u32, u32);

/// The device's own state in a snapshot. Connections do not survive it: the guest is told to drop them.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(fixed64, tag = "1")]
    guest_cid: u64,
    #[prost(fixed32, tag = "2")]
    next_port: u32,
    #[prost(bool, tag = "3")]
    had_connections: bool,
}

/// A socket device.
pub struct Vsock {
    guest_cid: u64,
    inbox: Arc<Inbox>,
    waiter: Option<Arc<Waiter>>,
    connections: HashMap<Key, Connection>,
    tokens: HashMap<u64, Key>,
    next_token: u64,
    next_port: u32,
    /// Packets without data that wait for a buffer of the guest's. Buffer fields are filled in when they are sent.
    control: VecDeque<Header>,
    /// The guest had no receive buffer when one was needed.
    starved: bool,
    /// The guest is to be told that every connection is gone.
    tell_reset: bool,
    buffer: Vec<u8>,
}

impl Vsock {
    /// A device for a guest with this context id, and the host's handle to it. Fails only when the process is out of
    /// descriptors.
    pub fn new(guest_cid: u64) -> std::io::Result<(Self, VsockHost)> {
        let inbox = Arc::new(Inbox::new()?);
        let device = Self {
            guest_cid,
            inbox: inbox.clone(),
            waiter: None,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_PORT,
            control: VecDeque::new(),
            starved: false,
            tell_reset: false,
            buffer: vec![0; DATA_MAX],
        };
        Ok((device, VsockHost(inbox)))
    }

    fn header(&self, key: Key, operation: Operation, flags: u32) -> Header {
        Header {
            from_cid: HOST_CID,
            to_cid: self.guest_cid,
            from_port: key.1,
            to_port: key.0,
            len: 0,
            kind: STREAM,
            operation: Some(operation),
            flags,
            buffer: 0,
            forwarded: 0,
        }
    }

    fn say(&mut self, key: Key, operation: Operation, flags: u32) {
        self.control.push_back(self.header(key, operation, flags));
    }

    fn add(&mut self, key: Key, fd: OwnedFd, state: State) -> bool {
        if self.connections.len() >= CONNECTIONS_MAX || sys::set_nonblocking(&fd).is_err() {
            return false;
        }
        let token = self.next_token;
        self.next_token = self.next_token.saturating_add(1);
        self.tokens.insert(token, key);
        self.connections.insert(key, Connection::new(fd, token, state));
        true
    }

    /// Carries out what a step on a connection led to.
    fn settle(&mut self, key: Key, fate: Fate) {
        if fate != Fate::Keep {
            self.connections.remove(&key);
            self.tokens.retain(|_, other| *other != key);
        }
        if fate == Fate::Reset {
            self.say(key, Operation::Reset, 0);
        }
        let (waiter, starved) = (self.waiter.clone(), self.starved);
        let Some((connection, waiter)) = self.connections.get_mut(&key).zip(waiter) else { return };
        let (owes, asks) = (connection.owes_credit(), connection.ask_for_credit());
        if owes {
            connection.announce();
            self.say(key, Operation::CreditUpdate, 0);
        }
        if asks {
            self.say(key, Operation::CreditRequest, 0);
        }
        if let Some(connection) = self.connections.get_mut(&key)
            && let Err(error) = connection.wait(&waiter, starved)
        {
            tracing::error!(%error, "A connection cannot be waited for");
            self.connections.remove(&key);
            self.tokens.retain(|_, other| *other != key);
            self.say(key, Operation::Reset, 0);
        }
    }

    /// Asks the guest for the connections that the host wants.
    fn dial(&mut self) {
        while self.control.len() < CONTROL_MAX
            && let Some(dial) = self.inbox.next_dial()
        {
            let key = (dial.guest_port, self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&key) && self.add(key, dial.fd, State::Connecting) {
                self.say(key, Operation::Request, 0);
            }
        }
    }

    /// Takes packets from the guest.
    fn transmit(&mut self, active: &mut Active<'_>) -> Result<(), QueueError> {
        while self.control.len() < CONTROL_MAX
            && !active.should_yield()
            && let Some(chain) = active.pop(TRANSMIT)?
        {
            self.packet(&chain, active);
            active.complete(TRANSMIT, chain)?;
        }
        Ok(())
    }

    fn packet(&mut self, chain: &Chain, active: &Active<'_>) {
        let mut reader = chain.reader(active.ram());
        let Some(header) = reader.read_array::<HEADER>().map(|bytes| Header::parse(&bytes)) else {
            return BAD_PACKET.note(|| "no header".to_owned());
        };
        let len = header.len as usize;
        if header.from_cid != self.guest_cid || len > DATA_MAX || len > reader.remaining() {
            return BAD_PACKET.note(|| format!("{header:?}"));
        }
        let key = (header.from_port, header.to_port);
        let fine = header.to_cid == HOST_CID && header.kind == STREAM;
        let Some(operation) = header.operation.filter(|_| fine) else {
            BAD_PACKET.note(|| format!("{header:?}"));
            // A reset is never answered with one.
            if header.operation != Some(Operation::Reset) {
                self.say(key, Operation::Reset, 0);
            }
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let data = buffer.get_mut(..len).unwrap_or(&mut []);
        reader.read(data);
        self.operation(key, operation, &header, data);
        self.buffer = buffer;
    }

    fn operation(&mut self, key: Key, operation: Operation, header: &Header, data: &[u8]) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.stranger(key, operation, header);
        };
        connection.update_credit(header);
        if !is_expected(connection.state, operation) {
            // Late packets of a connection that the guest itself has ended are nothing.
            if connection.state != State::Draining {
                self.settle(key, Fate::Reset);
            }
            return;
        }
        let fate = match operation {
            Operation::Response => {
                connection.state = State::Open;
                Fate::Keep
            }
            Operation::Data if connection.state == State::Open => connection.receive(data),
            Operation::Reset => match connection.state {
                State::Open => connection.guest_ends(packet::SHUTDOWN_RECEIVE | packet::SHUTDOWN_SEND),
                _ => Fate::Drop,
            },
            Operation::Shutdown if connection.state == State::Open => {
                let fate = connection.guest_ends(header.flags);
                if connection.state == State::Draining {
                    // The guest may forget it now; what it sent still reaches the host.
                    self.say(key, Operation::Reset, 0);
                }
                fate
            }
            Operation::CreditRequest => {
                self.say(key, Operation::CreditUpdate, 0);
                Fate::Keep
            }
            _ => Fate::Keep,
        };
        self.settle(key, fate);
    }

    /// A packet for a connection that does not exist.
    fn stranger(&mut self, key: Key, operation: Operation, header: &Header) {
        match operation {
            Operation::Reset => {}
            Operation::Request => {
                let accepted = self.inbox.accept(key.1).is_some_and(|fd| self.add(key, fd, State::Open));
                if accepted {
                    if let Some(connection) = self.connections.get_mut(&key) {
                        connection.update_credit(header);
                    }
                    self.say(key, Operation::Response, 0);
                    self.settle(key, Fate::Keep);
                } else {
                    REFUSED.note(|| format!("guest port {}, host port {}", key.0, key.1));
                    self.say(key, Operation::Reset, 0);
                }
            }
            _ => self.say(key, Operation::Reset, 0),
        }
    }

    /// Sends the control packets that wait.
    fn send_control(&mut self, active: &mut Active<'_>) -> Result<(), QueueError> {
        while let Some(mut header) = self.control.front().copied() {
            let Some(chain) = self.receive_buffer(active)? else { return Ok(()) };
            self.control.pop_front();
            self.send(&mut header, &[], chain, active)?;
        }
        Ok(())
    }

    /// A buffer of the guest's to put a packet into.
    fn receive_buffer(&mut self, active: &mut Active<'_>) -> Result<Option<Chain>, QueueError> {
        let chain = active.pop(RECEIVE)?;
        self.starved = chain.is_none();
        Ok(chain)
    }

    fn send(
        &mut self,
        header: &mut Header,
        data: &[u8],
        mut chain: Chain,
        active: &mut Active<'_>,
    ) -> Result<(), QueueError> {
        if let Some(connection) = self.connections.get_mut(&(header.to_port, header.from_port)) {
            (header.buffer, header.forwarded) = connection.announce();
        } else {
            header.buffer = connection::BUFFER;
        }
        header.len = u32::try_from(data.len()).unwrap_or(0);
        let mut writer = chain.writer(active.ram());
        writer.write(&header.encode());
        writer.write(data);
        active.complete(RECEIVE, chain)
    }

    /// Moves what the host sent on one connection to the guest, as far as there is room, for one turn.
    fn forward(&mut self, key: Key, active: &mut Active<'_>) -> Result<(), QueueError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.forward_with(key, active, &mut buffer);
        self.buffer = buffer;
        self.settle(key, Fate::Keep);
        result
    }

    fn forward_with(
        &mut self,
        key: Key,
        active: &mut Active<'_>,
        buffer: &mut [u8],
    ) -> Result<(), QueueError> {
        for _ in 0..TURN {
            let can_read = self.connections.get(&key).is_some_and(Connection::can_read);
            if !can_read || active.should_yield() {
                break;
            }
            let Some(chain) = self.receive_buffer(active)? else { break };
            let room = (chain.writable_len() as usize).saturating_sub(HEADER);
            let target = buffer.get_mut(..room.min(DATA_MAX)).unwrap_or(&mut []);
            if target.is_empty() {
                // A buffer that holds no data is of no use; it goes back empty.
                active.complete(RECEIVE, chain)?;
                continue;
            }
            let read = self.connections.get_mut(&key).and_then(|connection| connection.read(target));
            match read {
                None => {
                    active.put_back(RECEIVE, chain);
                    break;
                }
                Some(0) => {
                    active.put_back(RECEIVE, chain);
                    let flags = self.connections.get_mut(&key).map_or(0, Connection::host_ends);
                    self.say(key, Operation::Shutdown, flags);
                    self.send_control(active)?;
                    break;
                }
                Some(count) => {
                    let mut header = self.header(key, Operation::Data, 0);
                    let data = target.get(..count).unwrap_or(&[]);
                    self.send(&mut header, data, chain, active)?;
                }
            }
        }
        Ok(())
    }

    /// The guest offers buffers again: waits for the hosts that could not be read from.
    fn refresh(&mut self) {
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        keys.into_iter().for_each(|key| self.settle(key, Fate::Keep));
    }

    fn tell_of_reset(&mut self, active: &mut Active<'_>) -> Result<(), QueueError> {
        if self.tell_reset
            && let Some(mut chain) = active.pop(EVENT)?
        {
            chain.writer(active.ram()).write(&TRANSPORT_RESET.to_le_bytes());
            active.complete(EVENT, chain)?;
            self.tell_reset = false;
        }
        Ok(())
    }
}

impl Device for Vsock {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 19, name: "virtio-vsock", class: [2, 0x80, 0] }
    }

    fn features(&self) -> u64 {
        1 // VIRTIO_VSOCK_F_STREAM
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn config(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    fn attach(&mut self, waiter: &Arc<Waiter>) {
        self.waiter = Some(waiter.clone());
    }

    fn bell(&self) -> Option<Doorbell> {
        Some(self.inbox.bell.clone())
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        match index {
            RECEIVE => {
                self.dial();
                let was_starved = std::mem::take(&mut self.starved);
                self.send_control(active)?;
                if was_starved && !self.starved {
                    self.refresh();
                }
                // The queue of control packets may have held the guest's own packets back.
                self.transmit(active)?;
            }
            TRANSMIT => self.transmit(active)?,
            _ => self.tell_of_reset(active)?,
        }
        self.send_control(active)
    }

    fn ready(&mut self, event: Event, active: &mut Active<'_>) -> Result<(), QueueError> {
        let Some(key) = self.tokens.get(&event.token).copied() else { return Ok(()) };
        let Some(connection) = self.connections.get_mut(&key) else { return Ok(()) };
        if event.hung_up && connection.note_hang_up() {
            let flags = connection.host_ends();
            self.say(key, Operation::Shutdown, flags);
            self.settle(key, Fate::Keep);
            return self.send_control(active);
        }
        if event.writable || event.hung_up {
            let fate = connection.drain();
            self.settle(key, fate);
        }
        if event.readable || event.hung_up {
            self.forward(key, active)?;
        }
        self.send_control(active)
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.control.clear();
        self.starved = false;
        self.tell_reset = false;
        self.inbox.refuse_dials(false);
    }

    fn abandon(&mut self) {
        // Before the connections go: who sees one end and dials again is refused, too.
        self.inbox.refuse_dials(true);
        self.connections.clear();
        self.tokens.clear();
        self.control.clear();
    }

    fn save(&self) -> Result<Vec<u8>, String> {
        let saved = Saved {
            guest_cid: self.guest_cid,
            next_port: self.next_port,
            had_connections: !self.connections.is_empty() || self.tell_reset,
        };
        Ok(saved.encode_to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved = Saved::decode(state).map_err(RestoreError::Decode)?;
        if saved.guest_cid != self.guest_cid {
            return Err(RestoreError::Mismatch("another vsock context id".to_owned()));
        }
        self.next_port = saved.next_port;
        self.tell_reset = saved.had_connections;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
