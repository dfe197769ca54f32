//! What the link looks like and how much a guest may use.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::offload::HEADER;

/// The link's MTU in bytes: the longest IP packet that is not a super-segment.
pub const MTU: usize = 65520;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// The longest frame in either direction, its offload header included.
pub const MAX_FRAME: usize = HEADER + ETHERNET + 65535;

/// The two ends of the link. Nothing of it is ever learnt from the guest.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's MAC address: the only one that its frames may come from.
    pub guest_mac: [u8; 6],
    /// Our own.
    pub gateway_mac: [u8; 6],
    /// The guest's address: the only one that its packets may come from.
    pub guest_ipv4: Ipv4Addr,
    /// Our own, answered to ARP and echo requests. Every other destination is reached through it.
    pub gateway_ipv4: Ipv4Addr,
    /// As `guest_ipv4`.
    pub guest_ipv6: Ipv6Addr,
    /// As `gateway_ipv4`, for neighbour discovery.
    pub gateway_ipv6: Ipv6Addr,
    /// Whether TCP data goes to the guest in segments larger than its MSS, up to [`MTU`], for its kernel to cut
    /// (VIRTIO_NET_F_GUEST_TSO4 and 6). Without, no frame exceeds the guest's MSS.
    pub segmentation: bool,
    /// Where initial sequence numbers come from: 64 bits of the operating system's generator.
    pub seed: u64,
}

/// How much one guest may ask of its gateway. What meets one of [`LimitKind`](crate::LimitKind) is told by
/// [`Event::Limit`](crate::Event::Limit); a flow that one of the times ends, or that is reclaimed, by its own end.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP flows, pending ones included. At the limit the flow that has been idle longest is reset if it has been idle for
    /// [`Limits::reclaim_after`]; without one a SYN is dropped, and the guest's kernel tries again. Default 4096.
    pub tcp_flows: usize,
    /// TCP flows not yet decided on. Beyond it a SYN is dropped: the oldest are not given up, or a flood would cancel what the
    /// gateway is connecting. A pending flow costs some 400 bytes. Default 1024.
    pub tcp_pending: usize,
    /// How long a flow has been idle before it may be reclaimed. Default 5 minutes (TCP), a tenth of it for UDP.
    pub reclaim_after: Duration,
    /// Bytes reserved for large buffers of all TCP flows; pages that were never used cost no memory. A flow takes twice
    /// [`Limits::large_buffer`] of it when it is accepted. When it is used up, flows get [`Limits::small_buffer`]s: they are
    /// slower. Default 256 MiB.
    pub buffer_bytes: usize,
    /// Bytes of a flow's buffer each way, rounded down to a window that TCP can announce (65535·2ⁿ). Default 512 KiB.
    pub large_buffer: usize,
    /// The same where [`Limits::buffer_bytes`] is used up; at most 65535. Default 32 KiB.
    pub small_buffer: usize,
    /// UDP flows, pending ones included. At the limit as for TCP; a datagram without a flow is dropped. Default 2048.
    pub udp_flows: usize,
    /// Datagrams waiting for the gateway, in one flow. More are dropped. Default 64.
    pub udp_queue: usize,
    /// Bytes of datagrams waiting for the gateway, in all flows. More are dropped. Default 8 MiB.
    pub udp_bytes: usize,
    /// A UDP flow without a datagram for this long is closed. Default 2 minutes.
    pub udp_idle: Duration,
    /// ICMP messages and answers to ARP and neighbour solicitations in a second, and as many at once. Default 200.
    pub icmp_rate: u32,
    /// Resets and acknowledgements in a second for segments that belong to no flow, and as many at once. Default 1000.
    pub stray_rate: u32,
    /// Frames queued towards the guest (answers and datagrams; TCP data is not queued). More are dropped. Default 1024.
    pub out_frames: usize,
    /// Bytes of these frames. Default 4 MiB.
    pub out_bytes: usize,
    /// Events waiting for the gateway. Beyond it frames are dropped unread. Default 16384.
    pub events: usize,
    /// Closed connections whose last acknowledgement can be repeated (TIME-WAIT); the oldest are forgotten. Default 1024.
    pub time_wait: usize,
    /// How long a guest may leave data unacknowledged before its flow is reset. Default 15 minutes: a paused guest is quiet.
    pub stall: Duration,
    /// How long a guest may take over opening a flow that was accepted, or closing one. Default 1 minute.
    pub handshake: Duration,
    /// After this long without a segment an empty one is sent, and a guest that leaves four of them unanswered is reset.
    /// Off by default: it makes timers for idle flows.
    pub keepalive: Option<Duration>,
    /// A TCP flow without a segment for this long is reset. Off by default: it makes timers for idle flows.
    pub tcp_idle: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tcp_flows: 4096,
            tcp_pending: 1024,
            reclaim_after: Duration::from_secs(300),
            buffer_bytes: 256 << 20,
            large_buffer: 512 << 10,
            small_buffer: 32 << 10,
            udp_flows: 2048,
            udp_queue: 64,
            udp_bytes: 8 << 20,
            udp_idle: Duration::from_secs(120),
            icmp_rate: 200,
            stray_rate: 1000,
            out_frames: 1024,
            out_bytes: 4 << 20,
            events: 16384,
            time_wait: 1024,
            stall: Duration::from_secs(900),
            handshake: Duration::from_secs(60),
            keepalive: None,
            tcp_idle: None,
        }
    }
}
