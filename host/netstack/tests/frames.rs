//! Frames that no well-behaved guest sends, one by one, and the small protocols: ARP, neighbour discovery, ICMP, UDP.

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use common::{abi, config, offloaded, remote};
use netstack::{
    Counters, DatagramError, Event, FlowId, HEADER, LimitKind, Limits, MAX_FRAME, MTU, NoFlow, Protocol,
    Received, Refusal, SendError, Stack,
};
use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Packet, checksum};

const NOW: Duration = Duration::from_secs(5);

fn new() -> Stack {
    Stack::new(&config(), Limits::default())
}

fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend(abi::GATEWAY_MAC);
    frame.extend(abi::GUEST_MAC);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(protocol: u8, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(abi::GUEST_IPV4.octets());
    packet.extend(to.octets());
    Ipv4Packet::new_unchecked(&mut packet[..]).fill_checksum();
    packet.extend(payload);
    ethernet(0x0800, &packet)
}

fn ipv6(next: u8, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    ethernet(0x86dd, &packet)
}

/// Puts a transport checksum at `at`.
fn sum(mut payload: Vec<u8>, at: usize, from: IpAddr, to: IpAddr, protocol: IpProtocol) -> Vec<u8> {
    let (from, to): (IpAddress, IpAddress) = (from.into(), to.into());
    payload[at..at + 2].fill(0);
    let pseudo = checksum::pseudo_header(&from, &to, protocol, payload.len() as u32);
    let sum = !checksum::combine(&[pseudo, checksum::data(&payload)]);
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    payload
}

fn guest(to: IpAddr) -> IpAddr {
    if to.is_ipv4() { abi::GUEST_IPV4.into() } else { abi::GUEST_IPV6.into() }
}

fn packet(protocol: IpProtocol, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    match to {
        IpAddr::V4(to) => ipv4(protocol.into(), to, payload),
        IpAddr::V6(to) => ipv6(protocol.into(), abi::GUEST_IPV6, to, payload),
    }
}

fn udp_payload(from: u16, to: SocketAddr, body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(from.to_be_bytes());
    payload.extend(to.port().to_be_bytes());
    payload.extend(((8 + body.len()) as u16).to_be_bytes());
    payload.extend([0, 0]);
    payload.extend(body);
    sum(payload, 6, guest(to.ip()), to.ip(), IpProtocol::Udp)
}

fn udp(from: u16, to: SocketAddr, body: &[u8]) -> Vec<u8> {
    packet(IpProtocol::Udp, to.ip(), &udp_payload(from, to, body))
}

fn tcp_payload(from: u16, to: SocketAddr, flags: u8, options: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(from.to_be_bytes());
    payload.extend(to.port().to_be_bytes());
    payload.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        ((20 + options.len()) / 4 * 16) as u8,
        flags,
        255,
        255,
        0,
        0,
        0,
        0,
    ]);
    payload.extend(options);
    sum(payload, 16, guest(to.ip()), to.ip(), IpProtocol::Tcp)
}

fn tcp(from: u16, to: SocketAddr, flags: u8) -> Vec<u8> {
    packet(IpProtocol::Tcp, to.ip(), &tcp_payload(from, to, flags, &[]))
}

fn icmp4(to: Ipv4Addr, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body[2..4].fill(0);
    let sum = !checksum::data(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(1, to, &body)
}

fn icmp6(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> Vec<u8> {
    ipv6(58, from, to, &sum(body.to_vec(), 2, from.into(), to.into(), IpProtocol::Icmpv6))
}

fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![135, 0, 0, 0, 0, 0, 0, 0];
    body.extend(target.octets());
    // A source address that is a lie.
    body.extend([1, 1, 2, 2, 2, 2, 2, 2]);
    body
}

fn arp(operation: u8, sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, operation];
    body.extend(sender_mac);
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    ethernet(0x0806, &body)
}

/// A frame with some bytes (counted from the Ethernet header on) changed.
fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[HEADER + at..HEADER + at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// The same, with the IPv4 header's checksum made right again.
fn with4(frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = with(frame, at, bytes);
    let header = usize::from(frame[HEADER + 14] & 15) * 4;
    frame[HEADER + 24..HEADER + 26].fill(0);
    let sum = !checksum::data(&frame[HEADER + 14..HEADER + 14 + header]);
    frame[HEADER + 24..HEADER + 26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// With an offload header.
fn offload(mut frame: Vec<u8>, header: [u8; HEADER]) -> Vec<u8> {
    frame[..HEADER].copy_from_slice(&header);
    frame
}

fn cut(mut frame: Vec<u8>, len: usize) -> Vec<u8> {
    frame.truncate(HEADER + len);
    frame
}

fn drain(stack: &mut Stack) -> Vec<Vec<u8>> {
    let mut buffer = vec![0; MAX_FRAME];
    let mut frames = Vec::new();
    while let Some(len) = stack.frame_out(&mut buffer, NOW) {
        frames.extend(offloaded(&buffer[..len]));
    }
    frames
}

const SYN: u8 = 2;
type Counter = fn(&Counters) -> u64;

fn bad(name: &'static str, frame: Vec<u8>, counter: Counter) -> (&'static str, Vec<u8>, Counter) {
    (name, frame, counter)
}

/// What each bad frame counts as.
fn bad_frames() -> Vec<(&'static str, Vec<u8>, Counter)> {
    let (r4, r6) = (remote(false), remote(true));
    let IpAddr::V6(to6) = r6.ip() else { unreachable!() };
    let IpAddr::V4(to4) = r4.ip() else { unreachable!() };
    let guest6 = abi::GUEST_IPV6;
    let v4 = |address: [u8; 4]| SocketAddr::new(Ipv4Addr::from(address).into(), 80);
    let v6 = |address: &str| SocketAddr::new(IpAddr::V6(address.parse().unwrap()), 80);
    let local: Ipv6Addr = "fe80::1".parse().unwrap();
    let syn = tcp(1000, r4, SYN);
    let mut long = udp(1000, r4, &vec![0; MTU - 27]);
    long.extend([0; 4]);
    let mut options = vec![0x46, 0, 0, 44, 0, 1, 0x40, 0, 64, 6, 0, 0];
    options.extend(abi::GUEST_IPV4.octets());
    options.extend(to4.octets());
    options.extend([131, 3, 4, 0]);
    options.extend(tcp_payload(1000, r4, SYN, &[]));
    let mut router = vec![5, 2, 0, 0, 1, 0, 0, 0];
    router.extend(tcp_payload(1000, r6, SYN, &[]));
    let ns = |from, to: &str, target| icmp6(from, to.parse().unwrap(), &solicitation(target));
    let gateway6 = abi::GATEWAY_IPV6;
    let group6 = [0x33, 0x33, 0xff, 0, 0, 1];
    vec![
        bad("nothing", vec![], |c| c.short),
        bad("half an offload header", vec![0; 11], |c| c.short),
        bad("half an Ethernet header", cut(syn.clone(), 13), |c| c.short),
        bad("longer than anything", vec![0; MAX_FRAME + 1], |c| c.long),
        bad("longer than the link without segmentation", long, |c| c.long),
        bad("another source MAC", with(syn.clone(), 11, &[9]), |c| c.spoofed),
        bad("our own source MAC", with(syn.clone(), 6, &abi::GATEWAY_MAC), |c| c.spoofed),
        bad("another destination MAC", with(syn.clone(), 5, &[9]), |c| c.not_for_us),
        bad("unicast IP in a broadcast frame", with(syn.clone(), 0, &[255; 6]), |c| c.not_for_us),
        bad("unicast IPv6 in a group's frame", with(tcp(1, r6, SYN), 0, &group6), |c| c.not_for_us),
        bad("802.1Q tag", with(syn.clone(), 12, &[0x81, 0]), |c| c.vlan),
        bad("802.1ad tag", with(syn.clone(), 12, &[0x88, 0xa8]), |c| c.vlan),
        bad("802.3 length", with(syn.clone(), 12, &[0, 40]), |c| c.ethertype),
        bad("LLDP", with(syn.clone(), 12, &[0x88, 0xcc]), |c| c.ethertype),
        bad("PPPoE", with(syn.clone(), 12, &[0x88, 0x64]), |c| c.ethertype),
        bad("EAPOL", with(syn.clone(), 12, &[0x88, 0x8e]), |c| c.ethertype),
        bad("IPv6 in an IPv4 frame", with(tcp(1, r6, SYN), 12, &[8, 0]), |c| c.bad_ip),
        bad("IPv4 in an IPv6 frame", with(syn.clone(), 12, &[0x86, 0xdd]), |c| c.bad_ip),
        // ARP
        bad("ARP, short", cut(arp(1, abi::GUEST_MAC, abi::GUEST_IPV4, abi::GATEWAY_IPV4), 40), |c| c.bad_arp),
        bad(
            "ARP reply that takes our address",
            arp(2, abi::GUEST_MAC, abi::GATEWAY_IPV4, abi::GATEWAY_IPV4),
            |c| c.bad_arp,
        ),
        bad("ARP from our address", arp(1, abi::GUEST_MAC, abi::GATEWAY_IPV4, abi::GATEWAY_IPV4), |c| {
            c.spoofed
        }),
        bad("ARP from another MAC inside", arp(1, [2; 6], abi::GUEST_IPV4, abi::GATEWAY_IPV4), |c| c.spoofed),
        bad(
            "ARP with offloads",
            offload(
                arp(1, abi::GUEST_MAC, abi::GUEST_IPV4, abi::GATEWAY_IPV4),
                [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
            ),
            |c| c.bad_offload,
        ),
        // IPv4
        bad("IPv4, header cut off", cut(syn.clone(), 33), |c| c.bad_ip),
        bad("IPv4, total length longer than the frame", with4(syn.clone(), 16, &[0, 41]), |c| c.bad_ip),
        bad("IPv4, total length shorter than its header", with4(syn.clone(), 16, &[0, 19]), |c| c.bad_ip),
        bad("IPv4, total length 0", with4(syn.clone(), 16, &[0, 0]), |c| c.bad_ip),
        bad("IPv4, header length 16", with4(syn.clone(), 14, &[0x44]), |c| c.bad_ip),
        bad("IPv4, hop limit 0", with4(syn.clone(), 22, &[0]), |c| c.bad_ip),
        bad("IPv4, bad header checksum", with(syn.clone(), 24, &[1, 2]), |c| c.bad_checksum),
        bad("IPv4 with a source route", with4(ethernet(0x0800, &options), 14, &[0x46]), |c| c.ip_options),
        bad("IPv4, first fragment", with4(syn.clone(), 20, &[0x20, 0]), |c| c.fragment),
        bad("IPv4, later fragment", with4(syn.clone(), 20, &[0, 1]), |c| c.fragment),
        bad("IPv4, another source", with4(syn.clone(), 26, &[198, 18, 0, 3]), |c| c.spoofed),
        bad("IPv4, our own source", with4(syn.clone(), 26, &abi::GATEWAY_IPV4.octets()), |c| c.spoofed),
        bad("IPv4, no source (DHCP)", with4(udp(68, v4([255; 4]), b"discover"), 26, &[0; 4]), |c| c.spoofed),
        bad("IPv4, broadcast", with(udp(68, v4([255; 4]), b"discover"), 0, &[255; 6]), |c| c.multicast),
        bad("IPv4, multicast DNS", udp(5353, v4([224, 0, 0, 251]), b"?"), |c| c.multicast),
        bad("IPv4, unspecified", tcp(1, v4([0; 4]), SYN), |c| c.martian),
        bad("IPv4, this network", tcp(1, v4([0, 1, 2, 3]), SYN), |c| c.martian),
        bad("IPv4, loopback", tcp(1, v4([127, 0, 0, 1]), SYN), |c| c.martian),
        bad("IPv4, to itself", tcp(1, v4(abi::GUEST_IPV4.octets()), SYN), |c| c.martian),
        // IPv6
        bad("IPv6, header cut off", cut(tcp(1, r6, SYN), 53), |c| c.bad_ip),
        bad("IPv6, payload longer than the frame", with(tcp(1, r6, SYN), 18, &[0, 21]), |c| c.bad_ip),
        bad("IPv6, version 5", with(tcp(1, r6, SYN), 14, &[0x50]), |c| c.bad_ip),
        bad("IPv6, hop limit 0", with(tcp(1, r6, SYN), 21, &[0]), |c| c.bad_ip),
        bad("IPv6, jumbo", with(tcp(1, r6, SYN), 18, &[0, 0]), |c| c.bad_tcp),
        bad("IPv6, another source", ipv6(6, to6, to6, &[0; 20]), |c| c.spoofed),
        bad("IPv6, mapped IPv4 source", ipv6(6, Ipv4Addr::LOCALHOST.to_ipv6_mapped(), to6, &[0; 20]), |c| {
            c.spoofed
        }),
        bad("IPv6, link-local source", ipv6(6, local, to6, &[0; 20]), |c| c.spoofed),
        bad("IPv6, hop-by-hop options", ipv6(0, guest6, to6, &router), |c| c.extension_header),
        bad("IPv6, routing header", ipv6(43, guest6, to6, &router), |c| c.extension_header),
        bad("IPv6, destination options", ipv6(60, guest6, to6, &router), |c| c.extension_header),
        bad("IPv6, authentication header", ipv6(51, guest6, to6, &router), |c| c.extension_header),
        bad("IPv6, nothing follows", ipv6(59, guest6, to6, &[]), |c| c.extension_header),
        bad("IPv6, mobility", ipv6(135, guest6, to6, &router), |c| c.extension_header),
        bad("IPv6, fragment", ipv6(44, guest6, to6, &router), |c| c.fragment),
        bad("IPv6, multicast", udp(5353, v6("ff02::fb"), b"?"), |c| c.multicast),
        bad("IPv6, listener report", ipv6(0, local, "ff02::16".parse().unwrap(), &router), |c| c.multicast),
        bad("IPv6, unspecified", tcp(1, v6("::"), SYN), |c| c.martian),
        bad("IPv6, loopback", tcp(1, v6("::1"), SYN), |c| c.martian),
        bad("IPv6, to itself", tcp(1, SocketAddr::new(guest6.into(), 80), SYN), |c| c.martian),
        // ICMP
        bad("ICMP, short", ipv4(1, abi::GATEWAY_IPV4, &[8, 0, 0]), |c| c.bad_icmp),
        bad("ICMP, bad checksum", with(icmp4(abi::GATEWAY_IPV4, &[8, 0, 0, 0, 0, 0, 0, 0]), 36, &[1]), |c| {
            c.bad_checksum
        }),
        bad("ICMP redirect", icmp4(abi::GATEWAY_IPV4, &[5, 1, 0, 0, 1, 2, 3, 4]), |c| c.icmp_ignored),
        bad("ICMP unreachable", icmp4(to4, &[3, 4, 0, 0, 0, 0, 2, 0]), |c| c.icmp_ignored),
        bad("ICMP router advertisement", icmp4(abi::GATEWAY_IPV4, &[9, 0, 0, 0, 0, 0, 0, 0]), |c| {
            c.icmp_ignored
        }),
        bad("ICMP echo reply", icmp4(to4, &[0, 0, 0, 0, 0, 0, 0, 0]), |c| c.icmp_ignored),
        bad("ICMPv6 packet too big", icmp6(guest6, to6, &[2, 0, 0, 0, 0, 0, 2, 0]), |c| c.icmp_ignored),
        bad("ICMPv6 router advertisement", icmp6(guest6, gateway6, &[134; 24]), |c| c.icmp_ignored),
        bad("ICMPv6 neighbour advertisement", icmp6(guest6, gateway6, &[136; 24]), |c| c.icmp_ignored),
        bad("ICMPv6 redirect", icmp6(guest6, gateway6, &[137; 40]), |c| c.icmp_ignored),
        bad(
            "ICMPv6 router solicitation",
            icmp6(local, "ff02::2".parse().unwrap(), &[133, 0, 0, 0, 0, 0, 0, 0]),
            |c| c.multicast,
        ),
        bad("ICMPv6, bad checksum", with(ns(guest6, "ff02::1:ff00:1", gateway6), 57, &[9]), |c| {
            c.bad_checksum
        }),
        bad("ICMPv6, short", ipv6(58, guest6, gateway6, &[128]), |c| c.bad_icmp),
        bad(
            "ICMPv6 echo from a link-local address",
            icmp6(local, gateway6, &[128, 0, 0, 0, 0, 0, 0, 0]),
            |c| c.spoofed,
        ),
        bad("solicitation from afar", with(ns(guest6, "ff02::1:ff00:1", gateway6), 21, &[254]), |c| {
            c.bad_icmp
        }),
        bad("solicitation, short", icmp6(guest6, gateway6, &solicitation(gateway6)[..20]), |c| c.bad_icmp),
        bad("solicitation from our address", ns(gateway6, "ff02::1:ff00:1", gateway6), |c| c.spoofed),
        // TCP
        bad("TCP, short", ipv4(6, to4, &[0; 19]), |c| c.bad_tcp),
        bad("TCP, header longer than the packet", with(syn.clone(), 46, &[0x60]), |c| c.bad_tcp),
        bad(
            "TCP, header length 16",
            ipv4(
                6,
                to4,
                &sum(
                    {
                        let mut p = tcp_payload(1, r4, SYN, &[]);
                        p[12] = 0x40;
                        p
                    },
                    16,
                    guest(r4.ip()),
                    r4.ip(),
                    IpProtocol::Tcp,
                ),
            ),
            |c| c.bad_tcp,
        ),
        bad("TCP, bad checksum", with(syn.clone(), 50, &[9, 9]), |c| c.bad_checksum),
        bad("TCP, no checksum", with(syn.clone(), 50, &[0, 0]), |c| c.bad_checksum),
        bad("TCP, SYN and FIN", tcp(1, r4, 3), |c| c.bad_tcp),
        bad("TCP, SYN and RST", tcp(1, r4, 6), |c| c.bad_tcp),
        bad("TCP, everything", tcp(1, r4, 255), |c| c.bad_tcp),
        bad("TCP, from port 0", tcp(0, r4, SYN), |c| c.bad_tcp),
        bad("TCP, to port 0", tcp(1, SocketAddr::new(r4.ip(), 0), SYN), |c| c.bad_tcp),
        bad("TCP, option of length 0", ipv4(6, to4, &tcp_payload(1, r4, SYN, &[2, 0, 5, 180])), |c| {
            c.bad_tcp
        }),
        bad("TCP, option past the end", ipv4(6, to4, &tcp_payload(1, r4, SYN, &[1, 1, 2, 4])), |c| c.bad_tcp),
        // UDP
        bad("UDP, short", ipv4(17, to4, &[0; 7]), |c| c.bad_udp),
        bad("UDP, length past the end", with(udp(1, r4, b"abc"), 38, &[0, 12]), |c| c.bad_udp),
        bad("UDP, length 7", with(udp(1, r4, b"abc"), 38, &[0, 7]), |c| c.bad_udp),
        bad("UDP, from port 0", udp(0, r4, b"abc"), |c| c.bad_udp),
        bad("UDP, to port 0", udp(1, SocketAddr::new(r4.ip(), 0), b"abc"), |c| c.bad_udp),
        bad("UDP, bad checksum", with(udp(1, r4, b"abc"), 40, &[9, 9]), |c| c.bad_checksum),
        bad("UDP over IPv6 without checksum", with(udp(1, r6, b"abc"), 60, &[0, 0]), |c| c.bad_checksum),
        // Offloads
        bad(
            "checksum of a packet elsewhere",
            offload(syn.clone(), [1, 0, 0, 0, 0, 0, 35, 0, 16, 0, 0, 0]),
            |c| c.bad_offload,
        ),
        bad(
            "checksum past the frame",
            offload(syn.clone(), [1, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0]),
            |c| c.bad_offload,
        ),
        bad("UDP's checksum for TCP", offload(syn.clone(), [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0]), |c| {
            c.bad_offload
        }),
        bad(
            "checksum of ICMP",
            offload(icmp4(abi::GATEWAY_IPV4, &[8; 8]), [1, 0, 0, 0, 0, 0, 34, 0, 2, 0, 0, 0]),
            |c| c.bad_offload,
        ),
        bad(
            "segmentation of ICMPv6",
            offload(ns(guest6, "ff02::1:ff00:1", gateway6), [1, 4, 0, 0, 1, 0, 54, 0, 2, 0, 0, 0]),
            |c| c.bad_offload,
        ),
        bad(
            "segmentation without a size",
            offload(syn.clone(), [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]),
            |c| c.bad_offload,
        ),
        bad(
            "segmentation without a checksum to do",
            offload(syn.clone(), [0, 1, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]),
            |c| c.bad_offload,
        ),
        bad("IPv6 segmentation of IPv4", offload(syn.clone(), [1, 4, 0, 0, 9, 0, 34, 0, 16, 0, 0, 0]), |c| {
            c.bad_offload
        }),
        bad("UDP fragmentation", offload(udp(1, r4, b"abc"), [1, 3, 0, 0, 9, 0, 34, 0, 6, 0, 0, 0]), |c| {
            c.bad_offload
        }),
        bad("unknown segmentation", offload(syn.clone(), [1, 0x40, 0, 0, 9, 0, 34, 0, 16, 0, 0, 0]), |c| {
            c.bad_offload
        }),
    ]
}

#[test]
fn every_bad_frame_is_dropped_and_counted() {
    for (name, frame, counter) in bad_frames() {
        let mut stack = new();
        stack.frame_in(&frame, NOW);
        assert_eq!(counter(stack.counters()), 1, "{name}: {:?}", stack.counters());
        assert_eq!((stack.counters().frames_in, stack.counters().accepted), (1, 0), "{name}");
        assert_eq!(stack.next_event(), None, "{name}");
        assert!(drain(&mut stack).is_empty(), "{name}");
        assert_eq!(stack.next_deadline(), None, "{name}");
    }
}

#[test]
fn good_frames_with_odd_parts_are_taken() {
    let (r4, r6) = (remote(false), remote(true));
    let mut padded = tcp(1, r4, SYN);
    padded.extend([7; 6]);
    let left = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    let left6 = [1, 0, 0, 0, 0, 0, 54, 0, 16, 0, 0, 0];
    for (name, frame) in [
        ("padded to Ethernet's minimum", padded),
        ("checksum left to us, IPv4", offload(with(tcp(1, r4, SYN), 50, &[9, 9]), left)),
        ("checksum left to us, IPv6", offload(with(tcp(1, r6, SYN), 70, &[9, 9]), left6)),
        ("unknown flag of the header", offload(tcp(1, r4, SYN), [0xf2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        (
            "a hint that is a lie",
            offload(tcp(1, r4, SYN), [0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
        ),
        ("metadata service (policy's matter)", tcp(1, "169.254.169.254:80".parse().unwrap(), SYN)),
        ("reserved address (policy's matter)", tcp(1, "240.0.0.1:80".parse().unwrap(), SYN)),
        ("mapped IPv4 address (policy's matter)", tcp(1, "[::ffff:127.0.0.1]:80".parse().unwrap(), SYN)),
        ("our own address", tcp(1, SocketAddr::new(abi::GATEWAY_IPV4.into(), 53), SYN)),
        ("UDP over IPv4 without checksum", with(udp(1, r4, b"abc"), 40, &[0, 0])),
    ] {
        let mut stack = new();
        stack.frame_in(&frame, NOW);
        assert!(matches!(stack.next_event(), Some(Event::Incoming { .. })), "{name}: {:?}", stack.counters());
        assert_eq!(stack.counters().accepted, 1, "{name}");
        assert!(drain(&mut stack).is_empty(), "{name}");
    }
}

#[test]
fn only_our_address_is_told() {
    let (mine, gateway) = (abi::GUEST_MAC, abi::GATEWAY_IPV4);
    let ask = |target| with(arp(1, mine, abi::GUEST_IPV4, target), 0, &[255; 6]);
    let mut stack = new();
    stack.frame_in(&ask(gateway), NOW);
    let reply = drain(&mut stack).pop().unwrap();
    assert_eq!(reply[..6], abi::GUEST_MAC);
    assert_eq!(reply[6..12], abi::GATEWAY_MAC);
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[22..28], abi::GATEWAY_MAC);
    assert_eq!(reply[28..32], gateway.octets());
    // A probe before an address is taken is answered too; other addresses are not.
    stack.frame_in(&arp(1, mine, Ipv4Addr::UNSPECIFIED, gateway), NOW);
    assert_eq!(drain(&mut stack).len(), 1);
    for target in [abi::GUEST_IPV4, Ipv4Addr::new(198, 18, 0, 3), Ipv4Addr::new(198, 18, 7, 9)] {
        stack.frame_in(&ask(target), NOW);
    }
    assert!(drain(&mut stack).is_empty());
    assert_eq!(stack.counters().neighbour_ignored, 3);

    let gateway = abi::GATEWAY_IPV6;
    let local: Ipv6Addr = "fe80::76:69ff:fe76:2".parse().unwrap();
    let group: Ipv6Addr = "ff02::1:ff00:1".parse().unwrap();
    for (from, to, flags) in [
        (abi::GUEST_IPV6, group, 0xe0),
        (local, group, 0xe0),
        (abi::GUEST_IPV6, gateway, 0xe0),
        (Ipv6Addr::UNSPECIFIED, group, 0xa0),
    ] {
        let frame = icmp6(from, to, &solicitation(gateway));
        let frame = if to == group { with(frame, 0, &[0x33, 0x33, 0xff, 0, 0, 1]) } else { frame };
        stack.frame_in(&frame, NOW);
        let reply = drain(&mut stack).pop().unwrap();
        // To the guest's fixed address, whatever the solicitation says.
        assert_eq!(reply[..6], abi::GUEST_MAC);
        assert_eq!(reply[21], 255);
        assert_eq!((reply[54], reply[58]), (136, flags));
        assert_eq!(reply[62..78], gateway.octets());
        assert_eq!(reply[80..86], abi::GATEWAY_MAC);
        let all_nodes: Ipv6Addr = "ff02::1".parse().unwrap();
        let wanted = if from.is_unspecified() { all_nodes } else { from };
        assert_eq!(reply[38..54], wanted.octets());
    }
    stack.frame_in(&icmp6(abi::GUEST_IPV6, group, &solicitation(abi::GUEST_IPV6)), NOW);
    assert!(drain(&mut stack).is_empty());
}

#[test]
fn echo_is_ours_and_all_else_is_prohibited() {
    let mut stack = new();
    let echo = [8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    stack.frame_in(&icmp4(abi::GATEWAY_IPV4, &echo), NOW);
    let reply = drain(&mut stack).pop().unwrap();
    assert_eq!(reply[34], 0);
    assert_eq!(reply[38..], echo[4..]);
    assert_eq!(checksum::data(&reply[34..]), 0xffff);
    let mut echo6 = echo;
    echo6[0] = 128;
    stack.frame_in(&icmp6(abi::GUEST_IPV6, abi::GATEWAY_IPV6, &echo6), NOW);
    let reply = drain(&mut stack).pop().unwrap();
    assert_eq!((reply[54], &reply[58..]), (129, &echo[4..]));
    assert_eq!(stack.counters().echo, 2);

    let (IpAddr::V4(to4), IpAddr::V6(to6)) = (remote(false).ip(), remote(true).ip()) else { unreachable!() };
    for (name, frame) in [
        ("echo to others", icmp4(to4, &echo)),
        ("timestamp", icmp4(abi::GATEWAY_IPV4, &[13; 20])),
        ("GRE", ipv4(47, to4, &[0; 30])),
        ("IP in IP", ipv4(4, to4, &[0; 30])),
        ("SCTP", ipv4(132, to4, &[0; 30])),
        ("ESP", ipv4(50, to4, &[0; 30])),
        ("IPv6 in IPv4", ipv4(41, to4, &[0; 600])),
    ] {
        stack.frame_in(&frame, NOW);
        let reply = drain(&mut stack).pop().expect(name);
        assert_eq!(reply[34..36], [3, 13], "{name}");
        assert!(reply.len() <= 14 + 576);
        assert_eq!(reply[42..], frame[HEADER + 14..][..reply.len() - 42], "{name}");
    }
    for (name, frame) in [
        ("echo to others", icmp6(abi::GUEST_IPV6, to6, &echo6)),
        ("SCTP", ipv6(132, abi::GUEST_IPV6, to6, &[0; 2000])),
        ("IPv4 in IPv6", ipv6(4, abi::GUEST_IPV6, to6, &[0; 30])),
    ] {
        stack.frame_in(&frame, NOW);
        let reply = drain(&mut stack).pop().expect(name);
        assert_eq!(reply[54..56], [1, 1], "{name}");
        assert!(reply.len() <= 14 + 1280);
        assert_eq!(reply[62..], frame[HEADER + 14..][..reply.len() - 62], "{name}");
    }
    assert_eq!(stack.counters().prohibited, 10);
    let told = std::iter::from_fn(|| stack.next_event()).map(|event| match event {
        Event::Prohibited { destination, protocol } => (destination, protocol),
        other => panic!("{other:?}"),
    });
    let to4s = [1, 47, 4, 132, 50, 41].map(|protocol| (IpAddr::V4(to4), protocol));
    let to6s = [58, 132, 4].map(|protocol| (IpAddr::V6(to6), protocol));
    let ours = (IpAddr::V4(abi::GATEWAY_IPV4), 1);
    let expected: Vec<_> = to4s[..1].iter().chain([&ours]).chain(&to4s[1..]).chain(&to6s).copied().collect();
    assert_eq!(told.collect::<Vec<_>>(), expected);
}

#[test]
fn resets_that_the_guest_does_not_take_are_bounded() {
    let limits = Limits { tcp_flows: 8, out_frames: 4, ..Limits::default() };
    let most = limits.tcp_flows + limits.out_frames;
    let mut stack = Stack::new(&config(), limits);
    let mut reset = 0;
    for i in 0..1000 {
        stack.frame_in(&tcp(i + 1, remote(false), 2), NOW);
        while let Some(event) = stack.next_event() {
            if let Event::Incoming { flow, .. } = event {
                stack.reset(flow).unwrap();
                reset += 1;
            }
        }
    }
    assert_eq!(reset, 1000);
    let frames = drain(&mut stack).len();
    assert!((1..=most).contains(&frames), "{frames}");
}

#[test]
fn answers_are_limited() {
    let mut stack = new();
    let mut answers = 0;
    let mut told = Vec::new();
    for i in 0..10_000 {
        stack.frame_in(
            &icmp4(abi::GATEWAY_IPV4, &[8, 0, 0, 0, 1, 2, 3, 4]),
            NOW + Duration::from_micros(100 * i),
        );
        answers += drain(&mut stack).len();
        told.extend(std::iter::from_fn(|| stack.next_event()));
    }
    // 200 at once and 200 in the second that it took.
    assert!((399..=401).contains(&answers), "{answers}");
    assert_eq!(told.first(), Some(&Event::Limit { limit: LimitKind::IcmpRate, count: 1 }));
    assert!(told.len() <= 2);

    // Segments of no connection.
    let mut stack = new();
    let mut resets = 0;
    for i in 0..5000 {
        stack.frame_in(&tcp(i + 1, remote(false), 16), NOW);
        resets += drain(&mut stack).len();
    }
    assert_eq!(resets, 1000);
    assert_eq!(stack.counters().rate_limited, 4000);

    // Without anybody taking frames out.
    let limits = Limits { icmp_rate: u32::MAX, out_frames: 10, ..Limits::default() };
    let mut stack = Stack::new(&config(), limits);
    for _ in 0..100 {
        stack.frame_in(&icmp4(abi::GATEWAY_IPV4, &[8; 60000]), NOW);
        stack.frame_in(&icmp4(abi::GATEWAY_IPV4, &[8, 0, 0, 0, 1, 2, 3, 4]), NOW);
    }
    assert_eq!(drain(&mut stack).len(), 10);
    assert_eq!(stack.counters().out_dropped, 190);

    // Without anybody taking events.
    let limits = Limits { events: 5, ..Limits::default() };
    let mut stack = Stack::new(&config(), limits);
    for i in 1..=20 {
        stack.frame_in(&tcp(i, remote(false), SYN), NOW);
    }
    assert_eq!(stack.flows().count(), 5);
    assert_eq!(stack.counters().events_full, 15);
}

fn incoming(stack: &mut Stack) -> FlowId {
    match stack.next_event() {
        Some(Event::Incoming { flow, info }) => {
            assert_eq!(info.protocol, Protocol::Udp);
            flow
        }
        event => panic!("{event:?}"),
    }
}

#[test]
fn datagrams_go_both_ways() {
    for v6 in [false, true] {
        let to = remote(v6);
        let mut stack = new();
        stack.frame_in(&udp(1000, to, b"one"), NOW);
        let flow = incoming(&mut stack);
        stack.frame_in(&udp(1000, to, b""), NOW);
        assert_eq!(stack.next_event(), None);
        assert_eq!(stack.recv_datagram(flow), None);
        assert_eq!(stack.send_datagram(flow, b"early", NOW), Err(DatagramError::NoFlow(NoFlow)));
        stack.accept(flow, NOW).unwrap();
        assert_eq!(stack.accept(flow, NOW), Err(NoFlow));
        assert_eq!(stack.next_event(), Some(Event::Datagram(flow)));
        stack.frame_in(&udp(1000, to, b"three"), NOW);
        // One event for all of them.
        let got: Vec<_> = std::iter::from_fn(|| stack.recv_datagram(flow)).collect();
        assert_eq!(got, [&b"one"[..], b"", b"three"]);
        assert_eq!(stack.next_event(), Some(Event::Datagram(flow)));
        assert_eq!(stack.next_event(), None);

        let ip = if v6 { 40 } else { 20 };
        for body in [&b""[..], b"a", &[7; 1000], &vec![3; MTU - ip - 8][..]] {
            stack.send_datagram(flow, body, NOW).unwrap();
            let frame = drain(&mut stack).pop().unwrap();
            let payload = &frame[14 + ip..];
            assert_eq!(payload[..4], [1, 187, 3, 232]);
            assert_eq!(payload[8..], *body);
            let at: usize = 6;
            assert_eq!(sum(payload.to_vec(), at, to.ip(), guest(to.ip()), IpProtocol::Udp), payload);
            if !v6 {
                assert_eq!(checksum::data(&frame[14..34]), 0xffff);
            }
        }
        let long = vec![0; MTU - ip - 7];
        assert_eq!(stack.send_datagram(flow, &long, NOW), Err(DatagramError::TooLong));
        // TCP's calls are not for it.
        assert_eq!(stack.recv_with(flow, |_| 0), Err::<Received, _>(NoFlow));
        assert_eq!(stack.send_with(flow, |_| 0), Err(SendError::NoFlow(NoFlow)));
        assert_eq!(stack.finish(flow), Err(NoFlow));
        // Nothing for two minutes.
        let deadline = stack.next_deadline().unwrap();
        assert_eq!(deadline, NOW + Duration::from_secs(120));
        assert_eq!(stack.frame_out(&mut vec![0; MAX_FRAME], deadline), None);
        assert_eq!(stack.next_event(), Some(Event::Closed { flow }));
        assert_eq!(stack.next_deadline(), None);
    }
}

#[test]
fn several_datagrams_in_one_frame() {
    let mut stack = new();
    let body: Vec<u8> = (0..250).collect();
    let frame = offload(udp(1000, remote(false), &body), [1, 5, 42, 0, 100, 0, 34, 0, 6, 0, 0, 0]);
    stack.frame_in(&frame, NOW);
    let flow = incoming(&mut stack);
    stack.accept(flow, NOW).unwrap();
    let got: Vec<_> = std::iter::from_fn(|| stack.recv_datagram(flow)).collect();
    assert_eq!(got, [&body[..100], &body[100..200], &body[200..]]);
}

#[test]
fn a_refused_datagram_hears_of_it() {
    for v6 in [false, true] {
        for refusal in [Refusal::Reset, Refusal::Unreachable, Refusal::Prohibited] {
            let mut stack = new();
            let frame = udp(1000, remote(v6), &[9; 2000]);
            stack.frame_in(&frame, NOW);
            let flow = incoming(&mut stack);
            stack.refuse(flow, refusal, NOW).unwrap();
            let reply = drain(&mut stack).pop().unwrap();
            let (icmp, most, code) = if v6 { (54, 1280, [1, 4]) } else { (34, 576, [3, 3]) };
            assert_eq!(reply[icmp..icmp + 2], code);
            assert_eq!(reply.len(), 14 + most);
            // The packet itself is quoted.
            assert_eq!(reply[icmp + 8..], frame[HEADER + 14..][..most - icmp + 14 - 8]);
            assert_eq!(stack.flows().count(), 0);
            assert_eq!(stack.next_deadline(), None);
            // The next one is a new question.
            stack.frame_in(&frame, NOW);
            assert_ne!(incoming(&mut stack), flow);
        }
    }
}

#[test]
fn datagrams_are_limited() {
    let limits = Limits { udp_flows: 3, udp_queue: 4, udp_bytes: 3000, ..Limits::default() };
    let mut stack = Stack::new(&config(), limits);
    let to = remote(false);
    for _ in 0..10 {
        stack.frame_in(&udp(1, to, b"x"), NOW);
    }
    let flow = incoming(&mut stack);
    assert_eq!(stack.next_event(), Some(Event::Limit { limit: LimitKind::UdpQueue, count: 1 }));
    assert_eq!(stack.counters().udp_refused, 6);
    stack.accept(flow, NOW).unwrap();
    assert_eq!(std::iter::from_fn(|| stack.recv_datagram(flow)).count(), 4);
    stack.frame_in(&udp(1, to, &[0; 2000]), NOW);
    stack.frame_in(&udp(1, to, &[0; 2000]), NOW);
    assert_eq!(std::iter::from_fn(|| stack.recv_datagram(flow)).count(), 1);
    // The bytes of flows that are gone are free again.
    stack.frame_in(&udp(2, to, &[0; 2500]), NOW);
    let _ = stack.next_event();
    let other = incoming(&mut stack);
    stack.reset(other).unwrap();
    stack.frame_in(&udp(1, to, &[0; 2500]), NOW);
    assert_eq!(stack.recv_datagram(flow).map(|datagram| datagram.len()), Some(2500));

    stack.frame_in(&udp(2, to, b""), NOW);
    stack.frame_in(&udp(3, to, b""), NOW);
    while stack.next_event().is_some() {}
    stack.frame_in(&udp(4, to, b""), NOW);
    assert_eq!(stack.next_event(), Some(Event::Limit { limit: LimitKind::UdpFlows, count: 1 }));
    // Half a minute later the one that was idle longest makes room.
    stack.frame_in(&udp(1, to, b""), NOW + Duration::from_secs(29));
    stack.frame_in(&udp(4, to, b""), NOW + Duration::from_secs(31));
    assert_eq!(stack.flows().count(), 3);
    assert!(stack.info(flow).is_some());
    assert_eq!(stack.counters().reclaimed, 1);
}

#[test]
fn we_send_the_guest_a_datagram_first() {
    let mut stack = new();
    let source = "198.18.0.1:40000".parse().unwrap();
    let to = (abi::GUEST_IPV4, 53).into();
    let flow = stack.connect(Protocol::Udp, source, to, NOW).unwrap();
    stack.send_datagram(flow, b"knock", NOW).unwrap();
    let frame = drain(&mut stack).pop().unwrap();
    assert_eq!(frame[42..], *b"knock");
    stack.frame_in(&udp(53, source, b"who is there?"), NOW);
    assert_eq!(stack.next_event(), Some(Event::Datagram(flow)));
    assert_eq!(stack.recv_datagram(flow).as_deref(), Some(&b"who is there?"[..]));
}
