//! What became of the guest's frames, by name.

/// Counts since the stack was made. Every frame that comes in is in `accepted`, or in exactly one of those under "dropped".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed in.
    pub frames_in: u64,
    /// Frames handed out.
    pub frames_out: u64,
    /// Frames that were taken: given to a flow, answered, or knowingly ignored.
    pub accepted: u64,

    // Dropped: offload header and Ethernet.
    /// Shorter than its headers.
    pub short: u64,
    /// Longer than the link or [`MAX_FRAME`](crate::MAX_FRAME) allow.
    pub long: u64,
    /// An offload header that contradicts the packet: unknown segmentation, checksum asked for elsewhere than there is one.
    pub bad_offload: u64,
    /// Source MAC or IP address that is not the guest's.
    pub spoofed: u64,
    /// Destination MAC that is neither ours nor one we listen to.
    pub not_for_us: u64,
    /// Tagged (802.1Q, 802.1ad).
    pub vlan: u64,
    /// Any ethertype but ARP, IPv4, IPv6; 802.3 length fields too.
    pub ethertype: u64,

    // Dropped: ARP.
    /// ARP that is damaged, or an answer (nothing is learnt from it).
    pub bad_arp: u64,

    // Dropped: IP.
    /// IP header with an impossible version, length or hop limit.
    pub bad_ip: u64,
    /// Fragments, of both versions.
    pub fragment: u64,
    /// IPv4 options.
    pub ip_options: u64,
    /// IPv6 extension headers.
    pub extension_header: u64,
    /// A checksum, of any layer, that is wrong; or none where there must be one.
    pub bad_checksum: u64,
    /// To multicast or broadcast (DHCP, mDNS, listener reports, …).
    pub multicast: u64,
    /// To an address that no packet may have as its destination: unspecified, loopback, the guest's own.
    pub martian: u64,

    // Dropped: transport.
    /// TCP with impossible lengths, flags, options or ports.
    pub bad_tcp: u64,
    /// UDP with impossible lengths or ports.
    pub bad_udp: u64,
    /// ICMP with impossible lengths or values, neighbour discovery that breaks RFC 4861 §7.1.
    pub bad_icmp: u64,
    /// ICMP that tells us something (errors, redirects, advertisements): nothing is learnt from it.
    pub icmp_ignored: u64,

    // Dropped: limits.
    /// Arrived while [`Limits::events`](crate::Limits) events were waiting.
    pub events_full: u64,
    /// SYNs beyond the limits.
    pub tcp_refused: u64,
    /// Datagrams beyond the limits.
    pub udp_refused: u64,

    // Among the accepted.
    /// SYNs of a flow that is being decided on.
    pub syn_again: u64,
    /// Segments of no flow.
    pub stray: u64,
    /// Echo requests to us that were answered.
    pub echo: u64,
    /// ARP requests and neighbour solicitations for other addresses than ours.
    pub neighbour_ignored: u64,
    /// IP protocols other than TCP, UDP and ICMP, and ICMP to others: answered "administratively prohibited".
    pub prohibited: u64,

    // On the way out.
    /// Answers that were not given because there were too many in a second.
    pub rate_limited: u64,
    /// Frames dropped as too many were waiting for the guest.
    pub out_dropped: u64,
    /// Flows reset to make room for others.
    pub reclaimed: u64,
}
