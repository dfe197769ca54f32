//! smoltcp's TCP, one socket at a time: the interface is shared, and sees only the socket that a packet belongs to.
//!
//! What this relies on in smoltcp 0.14 (read there, and fuzzed):
//! * A socket announces its window unscaled in a SYN but takes it for scaled when segments come (`remote_last_win`), and
//!   asserts that what it accepts fits its buffer. With a buffer of exactly 65535·2ⁿ bytes (or up to 65535 without scaling)
//!   both are the same; with any other size a guest that sends past the window ends the process. See [`Buffers::new`].
//! * Its own time-outs count from the last segment that came, however long ago, and make timers for idle connections; they
//!   are not used.
//! * It takes a FIN whose data it cut at the end of the window; such segments are given in two parts (`stack::tcp::split`).
//! * A FIN that is lost is forgotten if three acknowledgements are repeated after it: the flow ends by [`Limits::handshake`].
//! * At the end of TIME-WAIT it clears its receive buffer, read or not; a flow in TIME-WAIT is never polled for time.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{ListenError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpEndpoint, TcpRepr, TcpSeqNumber};

use crate::config::{Config, Limits, MTU};
use crate::emit::{self, LOWER, Sent};

/// The segment size of a peer that names none (RFC 9293 §3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The smallest that is believed; smoltcp's.
const MIN_MSS: u16 = 48;

/// The segment size that a SYN names.
pub(crate) fn mss(tcp: &TcpRepr<'_>) -> u16 {
    tcp.max_seg_size.filter(|mss| *mss != 0).map_or(DEFAULT_MSS, |mss| mss.max(MIN_MSS))
}

/// Bytes of a flow's buffers, each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buffers {
    pub(crate) large: usize,
    pub(crate) small: usize,
}

impl Buffers {
    /// The wanted sizes, made ones that a window can announce exactly.
    pub(crate) fn new(limits: &Limits) -> Self {
        const UNSCALED: usize = 65535;
        let sizes = [1, 2, 4, 8, 16, 32, 64, 128].map(|factor| UNSCALED.saturating_mul(factor));
        let large = sizes.into_iter().rev().find(|size| *size <= limits.large_buffer).unwrap_or(UNSCALED);
        Self { large, small: limits.small_buffer.clamp(1, UNSCALED) }
    }
}

/// A flow's TCP.
pub(crate) struct TcpFlow {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Bytes of each of its buffers.
    pub(crate) buffer: usize,
    /// The guest's segment size.
    pub(crate) mss: u16,
    /// The sequence number after all that was sent.
    pub(crate) next: TcpSeqNumber,
    /// The last acknowledgement that was sent.
    pub(crate) ack: TcpSeqNumber,
    /// It was established once.
    pub(crate) opened: bool,
    /// Our side is to be finished.
    pub(crate) finish: bool,
    /// It is to be reset once the guest has all that was sent.
    pub(crate) cut: bool,
    /// The gateway found no room to send.
    pub(crate) wants_room: bool,
    /// The guest's FIN was announced.
    pub(crate) fin: bool,
    /// Both sides are finished and acknowledged.
    pub(crate) done: bool,
    /// Since when the guest owes an acknowledgement.
    pub(crate) waiting: Option<Duration>,
    /// When the guest was heard last.
    pub(crate) heard: Duration,
}

impl std::fmt::Debug for TcpFlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpFlow").field("socket", self.socket()).finish_non_exhaustive()
    }
}

/// When a flow wants to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poll {
    Now,
    At(Duration),
    Never,
}

impl TcpFlow {
    fn new(buffer: usize, limits: &Limits, now: Duration) -> Self {
        // Zeroed memory of this size comes untouched from the kernel.
        let ring = || SocketBuffer::new(vec![0; buffer]);
        let mut socket = Socket::new(ring(), ring());
        // The gateway writes what it has, and a frame is answered once all that came with it was taken: there is nothing
        // to gain by waiting.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_keep_alive(limits.keepalive.map(|interval| interval.max(Duration::from_millis(1)).into()));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            buffer,
            mss: DEFAULT_MSS,
            next: TcpSeqNumber(0),
            ack: TcpSeqNumber(0),
            opened: false,
            finish: false,
            cut: false,
            wants_room: false,
            fin: false,
            done: false,
            waiting: None,
            heard: now,
        }
    }

    pub(crate) fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(crate) fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub(crate) fn state(&self) -> State {
        self.socket().state()
    }

    /// Whether the guest has finished its side (bytes may still be waiting).
    pub(crate) fn guest_finished(&self) -> bool {
        self.done
            || matches!(self.state(), State::CloseWait | State::Closing | State::LastAck | State::TimeWait)
    }

    /// Whether the guest owes us something, and if so whether it is a step of opening or closing.
    pub(crate) fn owed(&self) -> Option<Owed> {
        match self.state() {
            State::SynSent | State::SynReceived => Some(Owed::Handshake),
            _ if self.socket().send_queue() > 0 => Some(Owed::Acknowledgement),
            State::FinWait1 | State::Closing | State::LastAck => Some(Owed::Handshake),
            _ => None,
        }
    }

    /// Notes what was sent.
    fn sent(&mut self, sent: Sent) {
        if sent.next > self.next || !self.opened {
            self.next = sent.next;
        }
        if let Some(ack) = sent.ack {
            self.ack = ack;
        }
    }
}

/// What a guest owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    Handshake,
    Acknowledgement,
}

/// smoltcp's interface, without addresses or routes of its own.
pub(crate) struct Engine {
    interface: Interface,
    segmentation: bool,
    link: Config,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("segmentation", &self.segmentation).finish_non_exhaustive()
    }
}

fn instant(at: Duration) -> Instant {
    Instant::from_micros(i64::try_from(at.as_micros()).unwrap_or(i64::MAX))
}

impl Engine {
    pub(crate) fn new(link: &Config) -> Self {
        let mut config = InterfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = link.seed;
        let mut none = Wire { packet: None, out: Out::None, segmentation: link.segmentation };
        let mut interface = Interface::new(config, &mut none, Instant::ZERO);
        interface.set_any_ip(true);
        Self { interface, segmentation: link.segmentation, link: link.clone() }
    }

    /// A flow that answers the SYN in `ip` at `local`. It is in SYN-RECEIVED, unless smoltcp made nothing of the packet.
    pub(crate) fn answer(
        &mut self,
        ip: &[u8],
        local: SocketAddr,
        buffer: usize,
        limits: &Limits,
        now: Duration,
    ) -> Result<TcpFlow, ListenError> {
        let mut flow = TcpFlow::new(buffer, limits, now);
        flow.socket_mut().listen(IpEndpoint::from(local))?;
        self.ingress(&mut flow, ip, now);
        Ok(flow)
    }

    /// A flow that calls the guest.
    pub(crate) fn call(
        &mut self,
        local: SocketAddr,
        guest: SocketAddr,
        buffer: usize,
        limits: &Limits,
        now: Duration,
    ) -> Option<TcpFlow> {
        let mut flow = TcpFlow::new(buffer, limits, now);
        let context = self.interface.context();
        flow.socket_mut().connect(context, IpEndpoint::from(guest), IpEndpoint::from(local)).ok()?;
        Some(flow)
    }

    /// Gives a flow a packet of its own; the frame to answer with at once, if there is one.
    pub(crate) fn ingress(&mut self, flow: &mut TcpFlow, ip: &[u8], now: Duration) -> Option<Vec<u8>> {
        let mut reply = None;
        let mut wire =
            Wire { packet: Some(ip), out: Out::Owned(&mut reply), segmentation: self.segmentation };
        self.interface.poll_ingress_single(instant(now), &mut wire, &mut flow.sockets);
        let mut reply = reply?;
        let sent = emit::complete_tcp(&mut reply, &self.link, flow.mss)?;
        flow.sent(sent);
        Some(reply)
    }

    /// Writes the flow's next frame to `buffer`; its length, if there was one to write.
    pub(crate) fn egress(
        &mut self,
        flow: &mut TcpFlow,
        buffer: &mut [u8],
        now: Duration,
    ) -> Option<(usize, Sent)> {
        let mut len = 0;
        let mut wire = Wire {
            packet: None,
            out: Out::Borrowed { buffer: Some(buffer), len: &mut len },
            segmentation: self.segmentation,
        };
        self.interface.poll_egress(instant(now), &mut wire, &mut flow.sockets);
        let sent = emit::complete_tcp(buffer.get_mut(..len)?, &self.link, flow.mss)?;
        flow.sent(sent);
        Some((len, sent))
    }

    /// When the flow has something to do.
    pub(crate) fn poll(&mut self, flow: &TcpFlow, now: Duration) -> Poll {
        match self.interface.poll_at(instant(now), &flow.sockets) {
            None => Poll::Never,
            Some(at) if at <= instant(now) && !(flow.state() == State::TimeWait && at > Instant::ZERO) => {
                Poll::Now
            }
            Some(_) if flow.state() == State::TimeWait => Poll::Never,
            Some(at) => Poll::At(Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0))),
        }
    }
}

/// One packet's way through smoltcp.
struct Wire<'a, 'b> {
    packet: Option<&'a [u8]>,
    out: Out<'b>,
    segmentation: bool,
}

/// Where a packet that smoltcp makes goes, with room for the lower layers' headers in front.
enum Out<'b> {
    None,
    Owned(&'b mut Option<Vec<u8>>),
    Borrowed { buffer: Option<&'b mut [u8]>, len: &'b mut usize },
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

enum Sender<'a> {
    Owned(&'a mut Option<Vec<u8>>),
    Borrowed { buffer: &'a mut [u8], len: &'a mut usize },
    Nowhere,
}

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let total = LOWER.saturating_add(len);
        match self {
            Self::Owned(reply) => {
                let frame = reply.insert(vec![0; total]);
                f(frame.get_mut(LOWER..).unwrap_or_default())
            }
            Self::Borrowed { buffer, len } => match buffer.get_mut(LOWER..total) {
                Some(packet) => {
                    *len = total;
                    f(packet)
                }
                // Not with a buffer of MAX_FRAME.
                None => f(&mut vec![0; total]),
            },
            Self::Nowhere => f(&mut vec![0; total]),
        }
    }
}

impl Device for Wire<'_, '_> {
    type RxToken<'c>
        = Received<'c>
    where
        Self: 'c;
    type TxToken<'c>
        = Sender<'c>
    where
        Self: 'c;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let packet = self.packet.take()?;
        let sender = match &mut self.out {
            Out::Owned(reply) => Sender::Owned(reply),
            _ => Sender::Nowhere,
        };
        Some((Received(packet), sender))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        match &mut self.out {
            Out::Borrowed { buffer, len } => Some(Sender::Borrowed { buffer: buffer.take()?, len }),
            _ => None,
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        // What comes was verified; what goes is completed in `emit::complete_tcp`.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        let largest = if self.segmentation { NonZeroUsize::new(MTU) } else { None };
        capabilities.segmentation.tcpv4 = largest;
        capabilities.segmentation.tcpv6 = largest;
        capabilities
    }
}
