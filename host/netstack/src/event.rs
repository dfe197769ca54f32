//! What the stack tells its gateway, and the words of their conversation.

use std::net::{IpAddr, SocketAddr};

/// Names a flow; never used twice in the life of a [`Stack`](crate::Stack).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId(pub(crate) u64);

/// A flow's transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP: all datagrams between two ends, until there is none for a while.
    Udp,
}

/// A flow's two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowInfo {
    /// Its transport.
    pub protocol: Protocol,
    /// The guest's end, also of a flow that we opened.
    pub source: SocketAddr,
    /// The end that we stand in for.
    pub destination: SocketAddr,
}

/// Something for the gateway to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest opens a flow. It hears nothing until `accept` or `refuse`.
    Incoming {
        /// Its name from now on.
        flow: FlowId,
        /// Who wants to talk to whom.
        info: FlowInfo,
    },
    /// TCP: the flow is established, or there is room again after `send_with` found none.
    Writable(FlowId),
    /// TCP: bytes or the guest's FIN came. Read until there is nothing; the next event comes with the next bytes.
    Readable(FlowId),
    /// UDP: datagrams came. Read until there is none.
    Datagram(FlowId),
    /// TCP: both sides have finished and everything was read (the guest's FIN may not have been seen yet). UDP: nothing came
    /// or went for a while. The flow is gone.
    Closed {
        /// Which one.
        flow: FlowId,
    },
    /// The flow is gone at once, with all bytes still in it. Also a pending one that the guest gave up.
    Reset {
        /// Which one.
        flow: FlowId,
        /// Why.
        cause: ResetCause,
    },
    /// A packet of a kind that does not pass was answered "administratively prohibited", as far as answers are given.
    Prohibited {
        /// Where it was to go.
        destination: IpAddr,
        /// Its number in IANA's "Protocol Numbers": 1 and 58 are ICMP.
        protocol: u8,
    },
    /// The guest hit a limit; at most one event a second for each kind, and none that is not told of within a second.
    Limit {
        /// Which one.
        limit: LimitKind,
        /// How often since the last such event.
        count: u64,
    },
}

/// Why a flow ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The guest reset it.
    Guest,
    /// The guest acknowledged nothing for [`Limits::stall`](crate::Limits) or did not finish a handshake.
    Stalled,
    /// Nothing happened for [`Limits::tcp_idle`](crate::Limits).
    Idle,
    /// It was idle and the room was needed.
    Reclaimed,
}

/// A limit of [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// `tcp_flows`
    TcpFlows,
    /// `tcp_pending`
    TcpPending,
    /// `buffer_bytes`: a flow got small buffers.
    BufferBytes,
    /// `udp_flows`
    UdpFlows,
    /// `udp_queue` or `udp_bytes`
    UdpQueue,
    /// `icmp_rate`
    IcmpRate,
    /// `stray_rate`
    StrayRate,
    /// `out_frames` or `out_bytes`
    OutQueue,
    /// `events`
    Events,
}

impl LimitKind {
    pub(crate) const ALL: [Self; 9] = [
        Self::TcpFlows,
        Self::TcpPending,
        Self::BufferBytes,
        Self::UdpFlows,
        Self::UdpQueue,
        Self::IcmpRate,
        Self::StrayRate,
        Self::OutQueue,
        Self::Events,
    ];
}

/// How a flow is refused. UDP knows one form: ICMP port unreachable, at which QUIC falls back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// TCP reset: "connection refused".
    Reset,
    /// ICMP host unreachable: "no route to host".
    Unreachable,
    /// ICMP administratively prohibited.
    Prohibited,
}

/// There is no such flow, or not any more; or it is of another protocol or not in a state for the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such flow")]
pub struct NoFlow;

/// What `recv_with` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes were taken.
    Bytes(usize),
    /// Nothing now.
    Empty,
    /// Nothing any more: the guest has finished its side.
    Finished,
}

/// Why nothing can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The flow is gone.
    #[error(transparent)]
    NoFlow(#[from] NoFlow),
    /// Our side was finished.
    #[error("this side of the flow was finished")]
    Finished,
}

/// Why a datagram was not queued for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// The flow is gone or not accepted.
    #[error(transparent)]
    NoFlow(#[from] NoFlow),
    /// It does not fit the link.
    #[error("the datagram is longer than the link's MTU")]
    TooLong,
    /// Too many frames are waiting for the guest: dropped.
    #[error("too many frames are waiting for the guest")]
    Full,
}

/// Why no flow towards the guest was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The destination is not the guest's address, or an end is not possible.
    #[error("not an address pair that reaches the guest")]
    Address,
    /// There is a flow between these ends.
    #[error("these ports are in use between the two")]
    InUse,
    /// A limit of flows was hit.
    #[error("too many flows")]
    Full,
}
