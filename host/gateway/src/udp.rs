//! UDP: DNS questions are answered here and now, other flows are relayed datagram by datagram under the same policy.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use netstack::{FlowId, FlowInfo, Refusal};
use policy::Protocol;
use rustix::net::{AddressFamily, SendFlags};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;

use crate::core::{Core, Course, End, Judgement, Slot, Target, is_dns};
use crate::dial::{DialError, Dialer};
use crate::dns;
use crate::flow::Flow;
use crate::record::{Decision, Kind};
use crate::serve::World;
use crate::sys::datagram_socket;
use crate::tcp::{connected, given_up, held, judged, unreached};

/// Datagrams that one flow moves before others have their turn.
const TURN: usize = 64;
/// Bytes of the longest datagram.
const LONGEST: usize = 65_535;

/// A UDP socket that was never bound, for the address's family.
pub(crate) fn socket(towards: SocketAddr) -> io::Result<UdpSocket> {
    let family = if towards.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    UdpSocket::from_std(std::net::UdpSocket::from(datagram_socket(family)?))
}

/// The first datagram of a flow came. `core` is locked.
pub(crate) fn incoming(world: &Rc<World>, core: &mut Core, id: FlowId, info: FlowInfo) {
    if is_dns(info.destination) {
        return answer(world, core, id);
    }
    let Some((target, judgement)) = judged(core, info.destination, Protocol::Udp, Kind::Datagram) else {
        core.count_refused();
        // An error: it is gone by itself.
        let _ = core.stack.refuse(id, Refusal::Unreachable, world.shared.now());
        return;
    };
    let slot = Slot { target: Some(target.clone()), ..Slot::default() };
    let flow = Flow::new(&world.shared, core, id, slot);
    tokio::task::spawn_local(serve(Rc::clone(world), flow, target, judgement));
}

/// Answers the questions that wait in a flow, and forgets it: the next one makes another.
fn answer(world: &World, core: &mut Core, id: FlowId) {
    let now = world.shared.now();
    // Errors: the flow is gone, or frames wait for the guest already. It asks again.
    let _ = core.stack.accept(id, now);
    while let Some(message) = core.stack.recv_datagram(id) {
        core.counters.questions = core.counters.questions.saturating_add(1);
        if !core.rules.may_ask() || !core.rules.may_be_read(message.len()) {
            continue;
        }
        if let Some(answer) = dns::answer(&message, &mut core.rules) {
            let _ = core.stack.send_datagram(id, &answer, now);
        }
    }
    let _ = core.stack.reset(id);
}

async fn serve(world: Rc<World>, flow: Flow, target: Target, judgement: Judgement) {
    let Some(judgement) = held(&world, &flow, &target, judgement, Kind::Datagram).await else {
        return flow.refuse(Refusal::Unreachable);
    };
    let shared = &world.shared;
    if judgement.looks {
        let text = "its rules are about HTTP requests, which cannot be seen in datagrams";
        shared.record(
            target.what(Kind::Datagram, Decision::Refused).because(&judgement.verdict.reason).text(text),
        );
        return flow.refuse(Refusal::Unreachable);
    }
    let upstream = tokio::select! {
        upstream = connect(&world, &target) => upstream,
        _ = flow.ended() => return shared.record(given_up(&target, Kind::Datagram)),
    };
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(error) => {
            shared.record(unreached(&target, Kind::Datagram, &error));
            return flow.refuse(Refusal::Unreachable);
        }
    };
    let address = upstream.peer_addr().ok().map(|peer| policy::canonical_address(peer.ip()));
    flow.note(|slot| slot.reached(address.as_slice()));
    if !connected(&world, &flow, Kind::Datagram) {
        return flow.refuse(Refusal::Unreachable);
    }
    let decision = if judgement.course == Course::Observe { Decision::Observed } else { Decision::Allowed };
    let mut what = target.what(Kind::Datagram, decision).because(&judgement.verdict.reason);
    what.address = address;
    shared.record(what);
    if !flow.accept() {
        return;
    }
    shared.lock().count_opened();
    let mut relay = Relay { flow, upstream, bytes: (0, 0) };
    let _ = poll_fn(|cx| relay.poll(&world, cx)).await;
    let mut what = target.what(Kind::Ended, Decision::Allowed);
    what.address = address;
    shared.record_bytes(what, relay.bytes);
}

/// A socket towards the first allowed address that the host has a route to.
async fn connect(world: &World, target: &Target) -> Result<UdpSocket, DialError> {
    let dialer = Dialer::new(Arc::clone(&world.shared), target.clone());
    let mut last = io::Error::from(io::ErrorKind::HostUnreachable);
    for address in dialer.addresses().await? {
        let address = SocketAddr::new(address, target.port);
        let connected = async {
            let socket = socket(address)?;
            socket.connect(address).await?;
            Ok(socket)
        };
        match connected.await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

struct Relay {
    flow: Flow,
    upstream: UdpSocket,
    bytes: (u64, u64),
}

impl Relay {
    /// Relays until the flow is gone.
    fn poll(&mut self, world: &World, cx: &mut Context<'_>) -> Poll<End> {
        if let Poll::Ready(end) = self.flow.poll_end(cx) {
            return Poll::Ready(end);
        }
        self.up();
        self.down(world, cx);
        Poll::Pending
    }

    fn up(&mut self) {
        loop {
            let datagram = self.flow.shared().lock().stack.recv_datagram(self.flow.id());
            let Some(datagram) = datagram else { return };
            // What the socket does not take is lost, as datagrams may be.
            if let Ok(count) = rustix::net::send(&self.upstream, &datagram, SendFlags::empty()) {
                self.bytes.0 = self.bytes.0.saturating_add(count as u64);
            }
        }
    }

    fn down(&mut self, world: &World, cx: &mut Context<'_>) {
        let mut buffer = world.datagram.borrow_mut();
        buffer.resize(LONGEST, 0);
        for _ in 0..TURN {
            let mut into = ReadBuf::new(&mut buffer);
            match self.upstream.poll_recv(cx, &mut into) {
                Poll::Pending => return,
                Poll::Ready(Ok(())) => {
                    let datagram = into.filled();
                    let now = self.flow.shared().now();
                    // An error: too long for the link, or too much waits for the guest.
                    if self.flow.shared().lock().stack.send_datagram(self.flow.id(), datagram, now).is_ok() {
                        self.bytes.1 = self.bytes.1.saturating_add(datagram.len() as u64);
                        self.flow.shared().pump.notify_one();
                    }
                }
                // The server's host says that nobody listens; the guest's next datagram may find somebody.
                Poll::Ready(Err(_)) => {}
            }
        }
        cx.waker().wake_by_ref();
    }
}
