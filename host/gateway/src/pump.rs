//! Frames from the ring into the stack and back, and what the stack has to say about them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use frame_ring::{Link, LinkError, Sent};
use netstack::{Event, FlowId, LimitKind, Protocol};
use policy::HostKey;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

use crate::core::{Core, End};
use crate::record::{Decision, Kind, What};
use crate::serve::World;
use crate::{tcp, udp};

/// Frames each way before the flows have their turn.
const TURN: usize = 256;

/// Why no frame comes or goes any more.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The ring's other side wrote what cannot be.
    #[error("the frame ring: {}", .0.0)]
    Link(LinkError),
    /// The bell cannot be heard.
    #[error("the frame ring's bell: {0}")]
    Bell(#[from] io::Error),
}

pub(crate) struct Pump {
    world: Rc<World>,
    link: Link,
    bell: AsyncFd<OwnedFd>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Bytes of `outgoing` that the ring had no room for.
    waiting: Option<usize>,
}

impl Pump {
    pub(crate) fn new(world: Rc<World>, link: Link) -> Result<Self, PumpError> {
        let bell = watched(link.bell().as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        let incoming = vec![0; frame_ring::MAX_FRAME.max(netstack::MAX_FRAME)];
        let outgoing = incoming.clone();
        Ok(Self { world, link, bell, incoming, outgoing, waiting: None })
    }

    /// Runs until the link breaks.
    pub(crate) async fn run(mut self) -> PumpError {
        loop {
            let more = match self.turn() {
                Ok(more) => more,
                Err(error) => return PumpError::Link(error),
            };
            if more {
                tokio::task::yield_now().await;
            } else if let Err(error) = self.wait().await {
                return error.into();
            }
        }
    }

    /// Moves what there is to move. Whether there is more.
    fn turn(&mut self) -> Result<bool, LinkError> {
        self.link.bell().answer();
        let shared = Rc::clone(&self.world);
        let shared = &shared.shared;
        let now = shared.now();
        let mut core = shared.lock();
        let mut more = true;
        for _ in 0..TURN {
            let Some(length) = self.link.receive(&mut self.incoming)? else {
                more = false;
                break;
            };
            core.counters.frames_in = core.counters.frames_in.saturating_add(1);
            core.stack.frame_in(self.incoming.get(..length).unwrap_or_default(), now);
        }
        while let Some(event) = core.stack.next_event() {
            heed(&self.world, &mut core, event);
        }
        let sent_all = self.send(&mut core)?;
        // Frames out move timers on, which may end flows.
        while let Some(event) = core.stack.next_event() {
            heed(&self.world, &mut core, event);
        }
        if core.rules.recorder.due().is_some() || !core.words.is_empty() {
            shared.outbox.notify_one();
        }
        Ok(more || !sent_all)
    }

    /// Sends what the stack has to say; `false` when there may be more and the ring has room.
    fn send(&mut self, core: &mut Core) -> Result<bool, LinkError> {
        let now = self.world.shared.now();
        for _ in 0..TURN {
            let length = match self.waiting.take().or_else(|| core.stack.frame_out(&mut self.outgoing, now)) {
                Some(length) => length,
                None => return Ok(true),
            };
            match self.link.send(&[self.outgoing.get(..length).unwrap_or_default()])? {
                Sent::Taken => core.counters.frames_out = core.counters.frames_out.saturating_add(1),
                Sent::Full => {
                    self.waiting = Some(length);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Waits for the bell, for a flow with something to send, or for the stack's next timer.
    async fn wait(&mut self) -> io::Result<()> {
        let shared = &self.world.shared;
        // While the ring is full no timer can send anything: the bell rings when there is room.
        let deadline = if self.waiting.is_none() { shared.lock().stack.next_deadline() } else { None };
        let deadline = deadline.and_then(|at| shared.instant(at));
        tokio::select! {
            ready = self.bell.readable() => ready?.clear_ready(),
            () = shared.pump.notified() => {}
            () = sleep_until(deadline.unwrap_or_else(std::time::Instant::now).into()), if deadline.is_some() => {}
        }
        Ok(())
    }
}

/// A descriptor that the runtime looks after.
#[expect(
    deprecated,
    reason = "its replacement is unsafe, for types that could close their descriptor under it; this one cannot"
)]
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// One thing that the stack says.
fn heed(world: &Rc<World>, core: &mut Core, event: Event) {
    match event {
        Event::Incoming { flow, info } => match info.protocol {
            Protocol::Tcp => tcp::incoming(world, core, flow, info),
            Protocol::Udp => udp::incoming(world, core, flow, info),
        },
        Event::Readable(flow) | Event::Datagram(flow) => {
            if let Some(waker) = core.flows.get_mut(&flow).and_then(|slot| slot.read.take()) {
                waker.wake();
            }
        }
        Event::Writable(flow) => {
            if let Some(slot) = core.flows.get_mut(&flow) {
                slot.open = true;
                if let Some(waker) = slot.write.take() {
                    waker.wake();
                }
            }
        }
        Event::Closed { flow } => end(core, flow, End::Closed),
        Event::Reset { flow, .. } => end(core, flow, End::Reset),
        Event::Prohibited { destination, protocol } => {
            let host = core.rules.host(destination).unwrap_or(HostKey::Address(destination));
            let text = match protocol {
                1 | 58 => "ICMP passes to nobody".to_owned(),
                other => format!("IP protocol {other} passes to nobody: TCP and UDP do"),
            };
            core.rules.record(What::new(Kind::Datagram, Decision::Refused, host, 0).text(text));
        }
        Event::Limit { limit, count } => {
            let what = What::new(Kind::Limit, Decision::Refused, "network", 0).text(limit_text(limit));
            core.rules.recorder.add_many(what, count, std::time::Instant::now());
        }
    }
}

fn end(core: &mut Core, flow: FlowId, end: End) {
    if let Some(slot) = core.flows.get_mut(&flow) {
        slot.end = Some(end);
        slot.wake();
    }
}

/// A limit of the stack, in words.
fn limit_text(limit: LimitKind) -> &'static str {
    match limit {
        LimitKind::TcpFlows => "too many TCP connections at once: the guest tries again",
        LimitKind::TcpPending => "too many TCP connections are being opened at once: the guest tries again",
        LimitKind::BufferBytes => "the large buffers of TCP connections are used up: new ones are slower",
        LimitKind::UdpFlows => "too many UDP flows at once: datagrams dropped",
        LimitKind::UdpQueue => "datagrams come faster than they can be passed on: dropped",
        LimitKind::IcmpRate => "too many ICMP, ARP or neighbour messages: not answered",
        LimitKind::StrayRate => "too many TCP segments of no connection: not answered",
        LimitKind::OutQueue => "the guest does not take its frames: dropped",
        LimitKind::Events => "more is asked for than can be dealt with: frames dropped",
    }
}
