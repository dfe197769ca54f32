//! Bytes between a flow of the guest and its upstream connection: from the stack's buffers to the socket and back without
//! a copy in between, each side as fast as the other takes them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use crate::flow::Flow;
use crate::record::Kind;
use crate::wire::Wire;

/// Bytes that one way of a flow moves before others have their turn.
const TURN: usize = 512 << 10;

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum Finished {
    /// Both ways said goodbye.
    Whole,
    /// The guest's side went without.
    GuestGone,
    /// Upstream's side went without.
    UpstreamGone(io::Error),
    /// What the guest sent may not go upstream.
    Refused(Kind, String),
    /// It has to be looked into: these are the guest's first bytes. Nothing came from upstream yet.
    Divert(Vec<u8>),
}

/// A relay's end, with both sides where they are needed further.
pub(crate) struct Ended {
    pub(crate) finished: Finished,
    /// Bytes that were passed on, up and down.
    pub(crate) bytes: (u64, u64),
    /// After [`Finished::Divert`].
    pub(crate) sides: Option<(Flow, Wire)>,
}

/// What the gate says of the guest's next bytes.
pub(crate) enum Gate {
    /// They may go upstream, as everything after them.
    Open(Vec<u8>),
    /// These may go upstream, and the next ones are looked at.
    Pass(Vec<u8>),
    /// All that it was shown may go upstream, and the next ones are looked at.
    Through,
    /// It needs more.
    Wait,
    /// They may not.
    Shut(Kind, String),
    /// They have to be looked into.
    Divert(Vec<u8>),
}

/// Looks at the first bytes of the guest before any goes upstream.
pub(crate) trait Doorkeeper {
    /// Takes the next bytes; after anything but [`Gate::Wait`], [`Gate::Pass`] and [`Gate::Through`] it is asked no more.
    fn look(&mut self, bytes: &[u8]) -> Gate;
    /// Sees what upstream says meanwhile. What it has kept back of the guest's bytes it may let go now. Not [`Gate::Through`].
    fn answered(&mut self, bytes: &[u8]) -> Gate;
    /// The guest said goodbye before the gate was open. Not [`Gate::Wait`], nor [`Gate::Through`].
    fn over(&mut self) -> Gate;
}

pub(crate) struct Relay<D> {
    flow: Flow,
    upstream: Wire,
    gate: Option<D>,
    /// Bytes that were looked at, on their way upstream.
    up_first: Vec<u8>,
    /// How many of those that the flow has next were, too.
    looked_at: usize,
    /// Bytes that came before the relay began, on their way to the guest.
    down_first: Vec<u8>,
    up_done: bool,
    down_done: bool,
    /// Why upstream takes or gives nothing more. What it has said before is still for the guest.
    failed: Option<io::Error>,
    /// Bytes that were passed on, up and down.
    bytes: (u64, u64),
}

impl<D: Doorkeeper> Relay<D> {
    pub(crate) fn new(flow: Flow, upstream: Wire, early: Vec<u8>, gate: Option<D>) -> Self {
        Self {
            flow,
            upstream,
            gate,
            up_first: Vec::new(),
            looked_at: 0,
            down_first: early,
            up_done: false,
            down_done: false,
            failed: None,
            bytes: (0, 0),
        }
    }

    /// Relays until an end; then the flow is over, too.
    pub(crate) async fn run(mut self) -> Ended {
        let finished = poll_fn(|cx| self.poll(cx)).await;
        let bytes = self.bytes;
        let mut sides = None;
        match &finished {
            Finished::Whole => self.flow.leave(),
            Finished::GuestGone | Finished::Refused(..) => {
                // A reset, as the guest's was. An error: it is closed as usual.
                let _ = self.upstream.set_zero_linger();
            }
            Finished::UpstreamGone(_) => self.flow.leave_to_reset(),
            Finished::Divert(_) => sides = Some((self.flow, self.upstream)),
        }
        Ended { finished, bytes, sides }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finished> {
        let (mut up, mut down) = (TURN, TURN);
        // Both are polled each time: they leave their wakers behind.
        if let Poll::Ready(end) = self.poll_up(cx, &mut up) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_down(cx, &mut down) {
            return Poll::Ready(end);
        }
        if self.up_done && self.down_done {
            return Poll::Ready(self.failed.take().map_or(Finished::Whole, Finished::UpstreamGone));
        }
        if up > 0
            && let Poll::Ready(crate::core::End::Reset) = self.flow.poll_end(cx)
        {
            // The guest's half is over, or upstream takes nothing just now: nobody else would see a reset.
            return Poll::Ready(Finished::GuestGone);
        }
        if up == 0 || down == 0 {
            cx.waker().wake_by_ref();
        }
        if self.failed.is_none() {
            self.upstream.poll_drain(cx, self.up_done);
        }
        Poll::Pending
    }

    /// Upstream takes nothing more. What it has said is read to its end.
    fn fail_up(&mut self, error: io::Error) {
        self.up_done = true;
        self.failed.get_or_insert(error);
    }

    /// Upstream is gone: it gives nothing more, and takes nothing.
    fn fail_down(&mut self, error: io::Error) {
        (self.up_done, self.down_done) = (true, true);
        self.failed.get_or_insert(error);
    }

    /// From the guest to upstream. Ready only at an end that is one for both ways.
    fn poll_up(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<Finished> {
        while !self.up_done && *left > 0 {
            let is_new = self.up_first.is_empty() && self.looked_at == 0;
            if let Some(gate) = self.gate.as_mut().filter(|_| is_new) {
                let mut said = Gate::Wait;
                let looked_at = &mut self.looked_at;
                let got = self.flow.poll_receive(cx, |bytes| {
                    said = gate.look(bytes);
                    match said {
                        // They stay where they are, for `write_up`.
                        Gate::Through => {
                            *looked_at = bytes.len();
                            0
                        }
                        _ => bytes.len(),
                    }
                });
                match got {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(_)) => return Poll::Ready(Finished::GuestGone),
                    Poll::Ready(Ok(Some(0))) => said = gate.over(),
                    Poll::Ready(Ok(_)) => {}
                }
                if let Some(end) = self.heed(said) {
                    return Poll::Ready(end);
                }
                continue;
            }
            match self.upstream.poll_write_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => {
                    self.fail_up(error);
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {}
            }
            match self.write_up(cx) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(0)) => self.up_done = true,
                Ok(Poll::Ready(count)) => *left = left.saturating_sub(count),
                Err(Finished::UpstreamGone(error)) => {
                    self.fail_up(error);
                    return Poll::Pending;
                }
                Err(end) => return Poll::Ready(end),
            }
        }
        Poll::Pending
    }

    /// Does what the gate says.
    fn heed(&mut self, said: Gate) -> Option<Finished> {
        match said {
            Gate::Wait | Gate::Through => None,
            Gate::Shut(kind, why) => Some(Finished::Refused(kind, why)),
            Gate::Divert(bytes) if self.bytes.1 == 0 && self.down_first.is_empty() => {
                Some(Finished::Divert(bytes))
            }
            Gate::Divert(_) => {
                let why = "a TLS connection that its server began cannot be looked into";
                Some(Finished::Refused(Kind::Tls, why.into()))
            }
            Gate::Pass(mut bytes) => {
                self.up_first.append(&mut bytes);
                None
            }
            Gate::Open(mut bytes) => {
                self.gate = None;
                self.up_first.append(&mut bytes);
                None
            }
        }
    }

    /// One write. Ready with 0: the guest said goodbye, and upstream was told. `WouldBlock` comes back as a try of no bytes.
    fn write_up(&mut self, cx: &mut Context<'_>) -> Result<Poll<usize>, Finished> {
        if !self.up_first.is_empty() {
            return match self.upstream.try_write(&self.up_first) {
                Ok(count) => {
                    self.up_first.drain(..count.min(self.up_first.len()));
                    self.bytes.0 = self.bytes.0.saturating_add(count as u64);
                    Ok(Poll::Ready(count.max(1)))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(self.rewait_write(cx)?),
                Err(error) => Err(Finished::UpstreamGone(error)),
            };
        }
        let mut failed = None;
        let upstream = &mut self.upstream;
        let most = if self.gate.is_some() { self.looked_at } else { usize::MAX };
        let got = self.flow.poll_receive(cx, |bytes| {
            let bytes = bytes.get(..bytes.len().min(most)).unwrap_or_default();
            upstream.try_write(bytes).unwrap_or_else(|error| {
                failed = Some(error);
                0
            })
        });
        match failed {
            Some(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Err(Finished::UpstreamGone(error));
            }
            Some(_) => return self.rewait_write(cx),
            None => {}
        }
        match got {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Err(_)) => Err(Finished::GuestGone),
            Poll::Ready(Ok(Some(0))) => {
                // Does not wait on a TCP socket. An error: upstream is gone, which reading says.
                let _ = Pin::new(&mut self.upstream).poll_shutdown(cx);
                Ok(Poll::Ready(0))
            }
            Poll::Ready(Ok(count)) => {
                let count = count.unwrap_or_default();
                self.looked_at = self.looked_at.saturating_sub(count);
                self.bytes.0 = self.bytes.0.saturating_add(count as u64);
                Ok(Poll::Ready(count.max(1)))
            }
        }
    }

    /// The socket took nothing: its readiness is gone, and asking again leaves a waker.
    fn rewait_write(&self, cx: &mut Context<'_>) -> Result<Poll<usize>, Finished> {
        match self.upstream.poll_write_ready(cx) {
            Poll::Pending => Ok(Poll::Pending),
            Poll::Ready(Ok(())) => Ok(Poll::Ready(1)),
            Poll::Ready(Err(error)) => Err(Finished::UpstreamGone(error)),
        }
    }

    /// From upstream to the guest. Ready only at an end that is one for both ways.
    fn poll_down(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<Finished> {
        while !self.down_done && *left > 0 {
            if self.down_first.is_empty() {
                match self.upstream.poll_read_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Err(error)) => {
                        self.fail_down(error);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => {}
                }
            }
            let (mut read, mut said) = (Ok(0), Gate::Wait);
            let (upstream, first, gate) = (&mut self.upstream, &mut self.down_first, self.gate.as_mut());
            let put = self.flow.poll_send(cx, |room| {
                read = if first.is_empty() { upstream.try_read(room) } else { Ok(take_first(first, room)) };
                let count = *read.as_ref().unwrap_or(&0);
                if let (Some(gate), Some(bytes @ [_, ..])) = (gate, room.get(..count)) {
                    said = gate.answered(bytes);
                }
                count
            });
            if !matches!(said, Gate::Wait) {
                if let Some(end) = self.heed(said) {
                    return Poll::Ready(end);
                }
                // The guest's side had its turn.
                cx.waker().wake_by_ref();
            }
            match (put, read) {
                (Poll::Pending, _) => return Poll::Pending,
                (Poll::Ready(Err(_)), _) => return Poll::Ready(Finished::GuestGone),
                (_, Ok(0)) => {
                    self.down_done = true;
                    // A reset says that it is not whole.
                    if self.failed.is_none() {
                        self.flow.finish();
                    }
                }
                (_, Ok(count)) => {
                    self.bytes.1 = self.bytes.1.saturating_add(count as u64);
                    *left = left.saturating_sub(count);
                }
                (_, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                (_, Err(error)) => self.fail_down(error),
            }
        }
        Poll::Pending
    }
}

/// Moves as many of the first bytes as there is room for.
fn take_first(first: &mut Vec<u8>, room: &mut [u8]) -> usize {
    let count = first.len().min(room.len());
    for (to, from) in room.iter_mut().zip(first.drain(..count)) {
        *to = from;
    }
    count
}
