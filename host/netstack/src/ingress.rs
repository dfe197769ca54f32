//! What a frame of the guest is. Nothing here has state; what is not taken is named by its counter.

use std::net::{Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Message, Icmpv4Packet,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, NdiscRepr,
    TcpPacket, TcpRepr, UdpPacket,
};

use crate::config::{Config, ETHERNET, MAX_FRAME, MTU};
use crate::counters::Counters;
use crate::event::Protocol;
use crate::flow::FlowKey;
use crate::offload::{Offload, Plan};

/// The counter of what was dropped.
pub(crate) type Dropped = fn(&mut Counters) -> &mut u64;

/// A frame that says something.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    /// Who has our IPv4 address?
    ArpRequest {
        /// Who asks: the guest, or nobody (a probe).
        sender: std::net::Ipv4Addr,
    },
    /// Who has our IPv6 address? `None` asks as nobody (duplicate address detection).
    Solicitation { sender: Option<Ipv6Addr> },
    /// An ARP request or neighbour solicitation for another address.
    OtherNeighbour,
    /// An echo request to us: its ICMP message.
    Echo { v6: bool, message: &'a [u8] },
    /// A packet of a kind that does not pass.
    Prohibited { v6: bool, ip: &'a [u8] },
    /// A TCP segment.
    Tcp(Segment<'a>),
    /// One or more UDP datagrams.
    Udp(Datagrams<'a>),
}

/// A TCP segment, well-formed.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) key: FlowKey,
    /// The whole IP packet.
    pub(crate) ip: &'a [u8],
    pub(crate) tcp: TcpRepr<'a>,
}

/// UDP datagrams of one sender to one receiver, well-formed.
#[derive(Debug)]
pub(crate) struct Datagrams<'a> {
    pub(crate) key: FlowKey,
    /// The whole IP packet.
    pub(crate) ip: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// Bytes of each but the last, where one packet carries several.
    pub(crate) pieces: Option<usize>,
}

/// What the layers below IP have told.
struct Lower<'a> {
    link: &'a Config,
    offload: Offload,
    /// The frame was sent to a group's MAC address.
    group: bool,
}

/// Reads a frame with its offload header.
pub(crate) fn parse<'a>(frame: &'a [u8], link: &Config) -> Result<Packet<'a>, Dropped> {
    if frame.len() > MAX_FRAME {
        return Err(|c| &mut c.long);
    }
    let (offload, frame) = Offload::split(frame).ok_or::<Dropped>(|c| &mut c.short)?;
    let ethernet = EthernetFrame::new_checked(frame).map_err::<Dropped, _>(|_| |c| &mut c.short)?;
    if ethernet.src_addr().0 != link.guest_mac {
        return Err(|c| &mut c.spoofed);
    }
    let destination = ethernet.dst_addr();
    let group = !destination.is_unicast();
    if !group && destination.0 != link.gateway_mac {
        return Err(|c| &mut c.not_for_us);
    }
    let lower = Lower { link, offload, group };
    let rest = frame.get(ETHERNET..).unwrap_or_default();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => arp(rest, &lower),
        EthernetProtocol::Ipv4 => ipv4(rest, &lower),
        EthernetProtocol::Ipv6 => ipv6(rest, &lower),
        EthernetProtocol::Unknown(0x8100 | 0x88a8 | 0x9100) => Err(|c| &mut c.vlan),
        _ => Err(|c| &mut c.ethertype),
    }
}

fn arp<'a>(packet: &'a [u8], lower: &Lower<'_>) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_arp;
    let link = lower.link;
    if !lower.offload.is_none() {
        return Err(|c| &mut c.bad_offload);
    }
    let packet = ArpPacket::new_checked(packet).map_err(|_| BAD)?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr: sender,
        target_protocol_addr: target,
        ..
    } = ArpRepr::parse(&packet).map_err(|_| BAD)?
    else {
        return Err(BAD);
    };
    if source_hardware_addr.0 != link.guest_mac || (sender != link.guest_ipv4 && !sender.is_unspecified()) {
        return Err(|c| &mut c.spoofed);
    }
    Ok(if target == link.gateway_ipv4 { Packet::ArpRequest { sender } } else { Packet::OtherNeighbour })
}

/// The plan for a packet whose transport header follows `header` bytes of IP, and whether it may be so long.
fn plan(
    lower: &Lower<'_>,
    protocol: IpProtocol,
    v6: bool,
    header: usize,
    total: usize,
) -> Result<Plan, Dropped> {
    let start = ETHERNET.saturating_add(header);
    let plan = lower.offload.plan(protocol, v6, start).ok_or::<Dropped>(|c| &mut c.bad_offload)?;
    if total > MTU && !plan.large { Err(|c| &mut c.long) } else { Ok(plan) }
}

fn ipv4<'a>(bytes: &'a [u8], lower: &Lower<'_>) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_ip;
    const HEADER: usize = 20;
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| BAD)?;
    let header = usize::from(packet.header_len());
    if packet.version() != 4 || header < HEADER || packet.hop_limit() == 0 {
        return Err(BAD);
    }
    let ip = bytes.get(..packet.total_len().into()).ok_or(BAD)?;
    if !packet.verify_checksum() {
        return Err(|c| &mut c.bad_checksum);
    }
    if header != HEADER {
        return Err(|c| &mut c.ip_options);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(|c| &mut c.fragment);
    }
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    if source != lower.link.guest_ipv4 {
        return Err(|c| &mut c.spoofed);
    }
    if destination.is_multicast() || destination.is_broadcast() {
        return Err(|c| &mut c.multicast);
    }
    if lower.group {
        return Err(|c| &mut c.not_for_us);
    }
    if destination.octets().first() == Some(&0) || destination.is_loopback() || destination == source {
        return Err(|c| &mut c.martian);
    }
    let protocol = packet.next_header();
    let plan = plan(lower, protocol, false, header, ip.len())?;
    let ends = (IpAddress::Ipv4(source), IpAddress::Ipv4(destination));
    let payload = ip.get(header..).ok_or(BAD)?;
    match protocol {
        IpProtocol::Tcp => tcp(ip, payload, ends, plan),
        IpProtocol::Udp => udp(ip, payload, ends, plan),
        IpProtocol::Icmp => icmpv4(ip, payload, destination == lower.link.gateway_ipv4),
        _ => Ok(Packet::Prohibited { v6: false, ip }),
    }
}

fn icmpv4<'a>(ip: &'a [u8], message: &'a [u8], to_us: bool) -> Result<Packet<'a>, Dropped> {
    let packet = Icmpv4Packet::new_checked(message).map_err::<Dropped, _>(|_| |c| &mut c.bad_icmp)?;
    if !packet.verify_checksum() {
        return Err(|c| &mut c.bad_checksum);
    }
    match packet.msg_type() {
        Icmpv4Message::EchoRequest if to_us => Ok(Packet::Echo { v6: false, message }),
        Icmpv4Message::DstUnreachable
        | Icmpv4Message::Redirect
        | Icmpv4Message::TimeExceeded
        | Icmpv4Message::ParamProblem
        | Icmpv4Message::RouterAdvert
        | Icmpv4Message::EchoReply
        | Icmpv4Message::Unknown(4) => Err(|c| &mut c.icmp_ignored),
        _ => Ok(Packet::Prohibited { v6: false, ip }),
    }
}

fn ipv6<'a>(bytes: &'a [u8], lower: &Lower<'_>) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_ip;
    const HEADER: usize = 40;
    let packet = Ipv6Packet::new_checked(bytes).map_err(|_| BAD)?;
    if packet.version() != 6 || packet.hop_limit() == 0 {
        return Err(BAD);
    }
    let ip = bytes.get(..HEADER.saturating_add(packet.payload_len().into())).ok_or(BAD)?;
    let payload = ip.get(HEADER..).ok_or(BAD)?;
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    let protocol = packet.next_header();
    if protocol == IpProtocol::Icmpv6 {
        if !lower.offload.is_none() {
            return Err(|c| &mut c.bad_offload);
        }
        return icmpv6(&packet, ip, payload, lower);
    }
    if destination.is_multicast() {
        return Err(|c| &mut c.multicast);
    }
    if lower.group {
        return Err(|c| &mut c.not_for_us);
    }
    if source != lower.link.guest_ipv6 {
        return Err(|c| &mut c.spoofed);
    }
    if destination.is_unspecified() || destination.is_loopback() || destination == source {
        return Err(|c| &mut c.martian);
    }
    match protocol {
        IpProtocol::Ipv6Frag => return Err(|c| &mut c.fragment),
        IpProtocol::HopByHop
        | IpProtocol::Ipv6Route
        | IpProtocol::Ipv6Opts
        | IpProtocol::Ipv6NoNxt
        | IpProtocol::IpSecAh
        | IpProtocol::Unknown(135 | 139 | 140 | 253 | 254) => return Err(|c| &mut c.extension_header),
        _ => {}
    }
    let plan = plan(lower, protocol, true, HEADER, ip.len())?;
    let ends = (IpAddress::Ipv6(source), IpAddress::Ipv6(destination));
    match protocol {
        IpProtocol::Tcp => tcp(ip, payload, ends, plan),
        IpProtocol::Udp => udp(ip, payload, ends, plan),
        _ => Ok(Packet::Prohibited { v6: true, ip }),
    }
}

/// The one message that may come from a link-local address, or from none, and to a group is a neighbour solicitation.
fn icmpv6<'a>(
    packet: &Ipv6Packet<&'a [u8]>,
    ip: &'a [u8],
    message: &'a [u8],
    lower: &Lower<'_>,
) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_icmp;
    let link = lower.link;
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    let icmp = Icmpv6Packet::new_checked(message).map_err(|_| BAD)?;
    let neighbour = icmp.msg_type() == Icmpv6Message::NeighborSolicit;
    if destination.is_multicast() && !neighbour {
        return Err(|c| &mut c.multicast);
    }
    let local = neighbour && (source.is_unicast_link_local() || source.is_unspecified());
    if source != link.guest_ipv6 && !local {
        return Err(|c| &mut c.spoofed);
    }
    if !icmp.verify_checksum(&source, &destination) {
        return Err(|c| &mut c.bad_checksum);
    }
    if lower.group && !destination.is_multicast() {
        return Err(|c| &mut c.not_for_us);
    }
    if ip.len() > MTU {
        return Err(|c| &mut c.long);
    }
    if neighbour {
        if packet.hop_limit() != 255 {
            return Err(BAD);
        }
        let ignored = ChecksumCapabilities::ignored();
        let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) =
            Icmpv6Repr::parse(&source, &destination, &icmp, &ignored)
        else {
            return Err(BAD);
        };
        let sender = Some(source).filter(|source| !source.is_unspecified());
        return Ok(if target_addr == link.gateway_ipv6 {
            Packet::Solicitation { sender }
        } else {
            Packet::OtherNeighbour
        });
    }
    if destination.is_unspecified() || destination.is_loopback() || destination == source {
        return Err(|c| &mut c.martian);
    }
    match u8::from(icmp.msg_type()) {
        128 if destination == link.gateway_ipv6 => Ok(Packet::Echo { v6: true, message }),
        // Errors, echo replies, router and neighbour advertisements, redirects.
        0..=127 | 129 | 134 | 136 | 137 => Err(|c| &mut c.icmp_ignored),
        _ => Ok(Packet::Prohibited { v6: true, ip }),
    }
}

fn tcp<'a>(
    ip: &'a [u8],
    payload: &'a [u8],
    (source, destination): (IpAddress, IpAddress),
    plan: Plan,
) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_tcp;
    let packet = TcpPacket::new_checked(payload).map_err(|_| BAD)?;
    if plan.verify && !packet.verify_checksum(&source, &destination) {
        return Err(|c| &mut c.bad_checksum);
    }
    let tcp =
        TcpRepr::parse(&packet, &source, &destination, &ChecksumCapabilities::ignored()).map_err(|_| BAD)?;
    let remote = SocketAddr::new(destination.into(), tcp.dst_port);
    let key = FlowKey { protocol: Protocol::Tcp, guest_port: tcp.src_port, remote };
    Ok(Packet::Tcp(Segment { key, ip, tcp }))
}

fn udp<'a>(
    ip: &'a [u8],
    payload: &'a [u8],
    (source, destination): (IpAddress, IpAddress),
    plan: Plan,
) -> Result<Packet<'a>, Dropped> {
    const BAD: Dropped = |c| &mut c.bad_udp;
    let packet = UdpPacket::new_checked(payload).map_err(|_| BAD)?;
    if packet.src_port() == 0 || packet.dst_port() == 0 {
        return Err(BAD);
    }
    if plan.verify {
        // Zero says that there is none: only IPv4 knows that (RFC 768; RFC 8200 §8.1).
        let right = match packet.checksum() {
            0 => matches!(source, IpAddress::Ipv4(_)),
            _ => packet.verify_checksum(&source, &destination),
        };
        if !right {
            return Err(|c| &mut c.bad_checksum);
        }
    }
    let remote = SocketAddr::new(destination.into(), packet.dst_port());
    let key = FlowKey { protocol: Protocol::Udp, guest_port: packet.src_port(), remote };
    Ok(Packet::Udp(Datagrams { key, ip, payload: packet.payload(), pieces: plan.pieces }))
}
