//! Answers to "who has the gateway's address?". Nothing else is told, nothing is asked, nothing is learnt.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use crate::config::Config;
use crate::emit;

/// The answer to an ARP request for our address.
pub(crate) fn arp_reply(link: &Config, sender: Ipv4Addr) -> Vec<u8> {
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(link.gateway_mac),
        source_protocol_addr: link.gateway_ipv4,
        target_hardware_addr: EthernetAddress(link.guest_mac),
        target_protocol_addr: sender,
    };
    emit::frame(link, EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
        reply.emit(&mut ArpPacket::new_unchecked(bytes));
    })
}

/// The answer to a neighbour solicitation for our address; to all nodes if it was asked by nobody (RFC 4861 §7.2.4).
pub(crate) fn advertisement(link: &Config, sender: Option<Ipv6Addr>) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
    if sender.is_some() {
        flags |= NdiscNeighborFlags::SOLICITED;
    }
    let source = link.gateway_ipv6;
    let destination = sender.unwrap_or(ALL_NODES);
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags,
        target_addr: source,
        lladdr: Some(RawHardwareAddress::from(EthernetAddress(link.gateway_mac))),
    });
    let (from, to) = (IpAddr::V6(source), IpAddr::V6(destination));
    emit::ip(link, from, to, IpProtocol::Icmpv6, 255, reply.buffer_len(), |bytes| {
        let mut packet = Icmpv6Packet::new_unchecked(bytes);
        reply.emit(&source, &destination, &mut packet, &ChecksumCapabilities::default());
    })
}
