//! Ports of the guest that the host can reach: the shim hands over sockets, connections to them become flows to the guest.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use agent_proto::abi::{GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6};
use netstack::ConnectError;
use policy::Protocol;
use rustix::net::SendFlags;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::AbortHandle;

use crate::core::Slot;
use crate::doorkeeper::ServerName;
use crate::flow::Flow;
use crate::record::{Decision, Kind, What};
use crate::relay::{Finished, Relay};
use crate::serve::World;
use crate::wire::Wire;

/// Ports that connections to the guest come from.
const PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// How long the guest may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// After an accept that failed (no descriptor left) the next one waits this long.
const PAUSE: Duration = Duration::from_millis(100);
/// Peers of one UDP port at a time; the one quiet longest makes room.
pub const MOST_PEERS: usize = 256;
/// Bytes of the longest datagram.
const LONGEST: usize = 65_535;

/// A port that is open.
#[derive(Debug)]
pub(crate) struct Published(AbortHandle);

impl Drop for Published {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a port.
pub(crate) fn open(
    world: &Rc<World>,
    number: u64,
    protocol: Protocol,
    guest_port: u16,
    socket: OwnedFd,
) -> io::Result<Published> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    let port = Port { world: Rc::clone(world), number, guest_port };
    let task = match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::from_std(socket.into())?;
            tokio::task::spawn_local(port.listen(listener))
        }
        Protocol::Udp => {
            let socket = UdpSocket::from_std(socket.into())?;
            tokio::task::spawn_local(port.datagrams(socket))
        }
    };
    Ok(Published(task.abort_handle()))
}

#[derive(Clone)]
struct Port {
    world: Rc<World>,
    number: u64,
    guest_port: u16,
}

impl Port {
    async fn listen(self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    tokio::task::spawn_local(self.clone().connection(stream, peer));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr) {
        let what = |decision| {
            let what = What::new(Kind::Publish, decision, peer.ip(), self.guest_port);
            What { protocol: Some(Protocol::Tcp), ..what }
        };
        let shared = &self.world.shared;
        // An error: it is slower.
        let _ = stream.set_nodelay(true);
        match self.guest().await {
            Ok(flow) => {
                let ended = Relay::<ServerName>::new(flow, Wire::Plain(stream), Vec::new(), None).run().await;
                let text = match ended.finished {
                    Finished::GuestGone => "reset by the guest",
                    Finished::UpstreamGone(_) => "reset by the host",
                    _ => "",
                };
                shared.record_bytes(what(Decision::Allowed).text(text), ended.bytes);
            }
            Err(why) => {
                // A reset. An error: it is closed as usual.
                let _ = stream.set_zero_linger();
                shared.record(what(Decision::Failed).text(why));
            }
        }
    }

    /// A connection to the port in the guest, by IPv4, then by IPv6.
    async fn guest(&self) -> Result<Flow, String> {
        for guest in [IpAddr::from(GUEST_IPV4), GUEST_IPV6.into()] {
            let flow = self.connect(Protocol::Tcp, guest).map_err(|error| error.to_string())?;
            match tokio::time::timeout(PATIENCE, opened(&flow)).await {
                Ok(true) => return Ok(flow),
                Ok(false) => {}
                Err(_) => return Err("the guest does not answer".into()),
            }
        }
        Err("nothing listens there in the guest".into())
    }

    /// Begins a flow to the guest from the next free port.
    fn connect(&self, protocol: Protocol, guest: IpAddr) -> Result<Flow, ConnectError> {
        let shared = &self.world.shared;
        let now = shared.now();
        let mut core = shared.lock();
        let source = if guest.is_ipv4() { IpAddr::from(GATEWAY_IPV4) } else { GATEWAY_IPV6.into() };
        let protocol = match protocol {
            Protocol::Tcp => netstack::Protocol::Tcp,
            Protocol::Udp => netstack::Protocol::Udp,
        };
        for _ in PORTS {
            let port = core.next_port;
            core.next_port =
                if PORTS.contains(&port.wrapping_add(1)) { port.wrapping_add(1) } else { *PORTS.start() };
            let (from, to) = (SocketAddr::new(source, port), SocketAddr::new(guest, self.guest_port));
            match core.stack.connect(protocol, from, to, now) {
                Err(ConnectError::InUse) => {}
                Err(error) => return Err(error),
                Ok(id) => {
                    let slot = Slot { publish: Some(self.number), ..Slot::default() };
                    let flow = Flow::new(shared, &mut core, id, slot);
                    drop(core);
                    shared.pump.notify_one();
                    return Ok(flow);
                }
            }
        }
        Err(ConnectError::InUse)
    }

    /// Relays the datagrams of every peer, each in a flow of its own.
    async fn datagrams(self, socket: UdpSocket) {
        let mut peers: HashMap<SocketAddr, (Flow, u64)> = HashMap::new();
        let mut turn = 0u64;
        let mut buffer = vec![0; LONGEST];
        loop {
            let came = poll_fn(|cx| {
                // What the guest sent, for every peer; then the socket.
                peers.retain(|peer, (flow, _)| {
                    let gone = flow.poll_end(cx).is_ready();
                    while let Some(datagram) = { flow.shared().lock().stack.recv_datagram(flow.id()) } {
                        // What the socket does not take is lost, as datagrams may be.
                        let _ = rustix::net::sendto(&socket, &datagram, SendFlags::empty(), peer);
                    }
                    !gone
                });
                let mut into = tokio::io::ReadBuf::new(&mut buffer);
                match socket.poll_recv_from(cx, &mut into) {
                    Poll::Ready(Ok(peer)) => Poll::Ready(Some((peer, into.filled().len()))),
                    Poll::Ready(Err(_)) => Poll::Ready(None),
                    Poll::Pending => Poll::Pending,
                }
            });
            // An error is about a datagram sent before.
            let Some((peer, length)) = came.await else { continue };
            turn = turn.wrapping_add(1);
            if !peers.contains_key(&peer) {
                let Some(flow) = self.new_peer(&mut peers, peer) else { continue };
                peers.insert(peer, (flow, turn));
            }
            let Some((flow, last)) = peers.get_mut(&peer) else { continue };
            *last = turn;
            let now = flow.shared().now();
            let datagram = buffer.get(..length).unwrap_or_default();
            // An error: too long for the link, or too much waits for the guest.
            let _ = flow.shared().lock().stack.send_datagram(flow.id(), datagram, now);
            flow.shared().pump.notify_one();
        }
    }

    fn new_peer(&self, peers: &mut HashMap<SocketAddr, (Flow, u64)>, peer: SocketAddr) -> Option<Flow> {
        if peers.len() >= MOST_PEERS
            && let Some(oldest) = peers.iter().min_by_key(|(_, (_, turn))| *turn).map(|(peer, _)| *peer)
        {
            peers.remove(&oldest);
            let text = format!("more than {MOST_PEERS} peers at once: the one quiet longest made room");
            let what = What::new(Kind::Limit, Decision::Refused, "a published port", self.guest_port);
            self.world.shared.record(What { protocol: Some(Protocol::Udp), ..what.text(text) });
        }
        let flow = self.connect(Protocol::Udp, GUEST_IPV4.into());
        let decision = if flow.is_ok() { Decision::Allowed } else { Decision::Failed };
        let text = flow.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let what = What::new(Kind::Publish, decision, peer.ip(), self.guest_port);
        self.world.shared.record(What { protocol: Some(Protocol::Udp), ..what.text(text) });
        flow.ok()
    }
}

/// Waits until the guest has answered; whether it took the connection.
async fn opened(flow: &Flow) -> bool {
    poll_fn(|cx| {
        if flow.is_open() {
            return Poll::Ready(true);
        }
        flow.poll_end(cx).map(|_| false)
    })
    .await
}
