//! Frames that we make ourselves, and what is missing from those that smoltcp makes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber, UdpPacket, checksum,
};

use crate::config::{Config, ETHERNET};
use crate::offload::{self, HEADER};

/// Bytes before the IP packet.
pub(crate) const LOWER: usize = HEADER + ETHERNET;

/// Writes the Ethernet header of a frame to the guest.
pub(crate) fn ethernet(frame: &mut [u8], link: &Config, kind: EthernetProtocol) {
    if let Ok(mut frame) = EthernetFrame::new_checked(frame) {
        frame.set_dst_addr(EthernetAddress(link.guest_mac));
        frame.set_src_addr(EthernetAddress(link.gateway_mac));
        frame.set_ethertype(kind);
    }
}

/// A frame to the guest whose payload is written by `fill`.
pub(crate) fn frame(
    link: &Config,
    kind: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut frame = vec![0; LOWER.saturating_add(len)];
    if let Some((header, rest)) = frame.split_first_chunk_mut::<HEADER>() {
        *header = offload::complete();
        ethernet(rest, link, kind);
        fill(rest.get_mut(ETHERNET..).unwrap_or_default());
    }
    frame
}

/// A frame with an IP packet whose payload is written by `fill`. The checksum of the payload is `fill`'s.
pub(crate) fn ip(
    link: &Config,
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    hop_limit: u8,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = IpRepr::new(source.into(), destination.into(), protocol, len, hop_limit);
    let kind = match source {
        IpAddr::V4(_) => EthernetProtocol::Ipv4,
        IpAddr::V6(_) => EthernetProtocol::Ipv6,
    };
    frame(link, kind, repr.buffer_len(), |packet| {
        repr.emit(&mut *packet, &ChecksumCapabilities::default());
        fill(packet.get_mut(repr.header_len()..).unwrap_or_default());
    })
}

/// The guest's address of the same version.
pub(crate) fn guest_of(link: &Config, other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => IpAddr::V4(link.guest_ipv4),
        IpAddr::V6(_) => IpAddr::V6(link.guest_ipv6),
    }
}

/// Our own address of a version.
pub(crate) fn gateway_of(link: &Config, v6: bool) -> IpAddr {
    if v6 { IpAddr::V6(link.gateway_ipv6) } else { IpAddr::V4(link.gateway_ipv4) }
}

/// A UDP datagram from `remote` to a port of the guest. `ident` tells IPv4 packets apart, should a bridge of the guest have
/// to cut them.
pub(crate) fn udp(link: &Config, remote: SocketAddr, guest_port: u16, ident: u16, payload: &[u8]) -> Vec<u8> {
    const UDP: usize = 8;
    let guest = guest_of(link, remote.ip());
    let len = payload.len().saturating_add(UDP);
    let mut frame = ip(link, remote.ip(), guest, IpProtocol::Udp, 64, len, |bytes| {
        if let Some(body) = bytes.get_mut(UDP..) {
            body.copy_from_slice(payload);
        }
        let mut packet = UdpPacket::new_unchecked(bytes);
        packet.set_src_port(remote.port());
        packet.set_dst_port(guest_port);
        packet.set_len(u16::try_from(len).unwrap_or(u16::MAX));
        packet.fill_checksum(&remote.ip().into(), &guest.into());
    });
    if remote.is_ipv4()
        && let Some(ip) = frame.get_mut(LOWER..)
        && let Ok(mut packet) = smoltcp::wire::Ipv4Packet::new_checked(ip)
    {
        packet.set_ident(ident);
        packet.set_dont_frag(false);
        packet.fill_checksum();
    }
    frame
}

/// A TCP segment without data, from `remote` to a port of the guest.
pub(crate) fn tcp(
    link: &Config,
    remote: SocketAddr,
    guest_port: u16,
    control: TcpControl,
    seq: TcpSeqNumber,
    ack: Option<TcpSeqNumber>,
) -> Vec<u8> {
    let guest = guest_of(link, remote.ip());
    let repr = TcpRepr {
        src_port: remote.port(),
        dst_port: guest_port,
        control,
        seq_number: seq,
        ack_number: ack,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    ip(link, remote.ip(), guest, IpProtocol::Tcp, 64, repr.buffer_len(), |bytes| {
        let mut packet = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut packet, &remote.ip().into(), &guest.into(), &ChecksumCapabilities::default());
    })
}

/// The sequence number `len` bytes on.
pub(crate) fn after(seq: TcpSeqNumber, len: usize) -> TcpSeqNumber {
    // A segment has fewer bytes than that.
    TcpSeqNumber(seq.0.wrapping_add(i32::try_from(len).unwrap_or(0)))
}

/// What a TCP segment on its way to the guest says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// The sequence number after it.
    pub(crate) next: TcpSeqNumber,
    pub(crate) ack: Option<TcpSeqNumber>,
    pub(crate) payload: usize,
}

/// Completes a frame whose IP packet smoltcp wrote from [`LOWER`] on: Ethernet's header, the checksum for the guest to complete,
/// and the size `segment` to which it may cut the payload.
pub(crate) fn complete_tcp(frame: &mut [u8], link: &Config, segment: u16) -> Option<Sent> {
    let (header, rest) = frame.split_first_chunk_mut::<HEADER>()?;
    let v6 = rest.get(ETHERNET)? >> 4 == 6;
    let (kind, start) = if v6 { (EthernetProtocol::Ipv6, 40) } else { (EthernetProtocol::Ipv4, 20) };
    ethernet(rest, link, kind);
    let start = ETHERNET.checked_add(start)?;
    let (ip, tcp) = rest.split_at_mut_checked(start)?;
    let (source, destination): (IpAddress, IpAddress) = if v6 {
        let addresses = ip.get(ETHERNET.checked_add(8)?..)?;
        let (source, destination) = addresses.split_first_chunk::<16>()?;
        (Ipv6Addr::from(*source).into(), Ipv6Addr::from(*destination.first_chunk::<16>()?).into())
    } else {
        let addresses = ip.get(ETHERNET.checked_add(12)?..)?;
        let (source, destination) = addresses.split_first_chunk::<4>()?;
        (Ipv4Addr::from(*source).into(), Ipv4Addr::from(*destination.first_chunk::<4>()?).into())
    };
    let length = u32::try_from(tcp.len()).ok()?;
    let mut packet = TcpPacket::new_checked(tcp).ok()?;
    packet.set_checksum(checksum::pseudo_header(&source, &destination, IpProtocol::Tcp, length));
    let payload = packet.payload_mut().len();
    let headers = start.checked_add(packet.header_len().into())?;
    let large = Some(segment).filter(|segment| payload > usize::from(*segment));
    *header = offload::partial(v6, u16::try_from(headers).ok()?, u16::try_from(start).ok()?, large);
    let sent = Sent {
        next: after(packet.seq_number(), packet.segment_len()),
        ack: packet.ack().then(|| packet.ack_number()),
        payload,
    };
    Some(sent)
}
