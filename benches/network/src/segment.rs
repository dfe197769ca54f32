//! Packets as a guest writes and reads them: Ethernet, IPv4, TCP and UDP, as far as it takes.

use std::net::{Ipv4Addr, SocketAddrV4};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

const ETHERNET: usize = 14;
const IP: usize = 20;

/// The guest's end of the link, and who its frames go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) mac: [u8; 6],
    pub(crate) router: [u8; 6],
    pub(crate) address: Ipv4Addr,
}

/// A TCP segment's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Of a SYN: the segment size, and how far windows are shifted.
    pub(crate) options: Option<(u16, u8)>,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    Tcp(Tcp, &'a [u8]),
    /// A datagram's payload, and the port that it is for.
    Udp(u16, &'a [u8]),
    Other,
}

impl Ends {
    fn lower(&self, to: Ipv4Addr, protocol: u8, behind: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ETHERNET + IP + 32);
        frame.extend(self.router);
        frame.extend(self.mac);
        frame.extend([8, 0]);
        let total = u16::try_from(IP + behind).unwrap_or(u16::MAX);
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(self.address.octets());
        frame.extend(to.octets());
        let sum = checksum(&frame[ETHERNET..]);
        frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The headers of a frame with a segment of so many bytes; its checksum is left to do.
    pub(crate) fn tcp(&self, to: Ipv4Addr, tcp: &Tcp, payload: usize) -> Vec<u8> {
        let options = if tcp.options.is_some() { 8 } else { 0 };
        let mut frame = self.lower(to, 6, 20 + options + payload);
        frame.extend(tcp.from.to_be_bytes());
        frame.extend(tcp.to.to_be_bytes());
        frame.extend(tcp.seq.to_be_bytes());
        frame.extend(tcp.ack.to_be_bytes());
        frame.extend([((20 + options) as u8 / 4) << 4, tcp.flags]);
        frame.extend(tcp.window.to_be_bytes());
        frame.extend([0; 4]);
        if let Some((mss, shift)) = tcp.options {
            frame.extend([2, 4]);
            frame.extend(mss.to_be_bytes());
            frame.extend([3, 3, shift, 0]);
        }
        frame
    }

    /// The headers of a frame with a datagram, without a checksum.
    pub(crate) fn udp(&self, from: u16, to: SocketAddrV4, payload: usize) -> Vec<u8> {
        let mut frame = self.lower(*to.ip(), 17, 8 + payload);
        frame.extend(from.to_be_bytes());
        frame.extend(to.port().to_be_bytes());
        frame.extend(u16::try_from(8 + payload).unwrap_or(u16::MAX).to_be_bytes());
        frame.extend([0, 0]);
        frame
    }
}

/// Reads a frame, trusting whoever sent it.
pub(crate) fn parse(frame: &[u8]) -> Packet<'_> {
    parsed(frame).unwrap_or(Packet::Other)
}

fn parsed(frame: &[u8]) -> Option<Packet<'_>> {
    let half = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let word = |bytes: &[u8], at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if half(frame, 12)? != 0x0800 {
        return None;
    }
    let ip = &frame[ETHERNET..];
    let ip = ip.get(..half(ip, 2)?.into())?;
    let body = ip.get(usize::from(ip.first()? & 15) * 4..)?;
    match ip.get(9)? {
        6 => {
            let header = usize::from(body.get(12)? >> 4) * 4;
            let flags = *body.get(13)?;
            let options = (flags & SYN != 0).then(|| options(body.get(20..header).unwrap_or_default()));
            let tcp = Tcp {
                from: half(body, 0)?,
                to: half(body, 2)?,
                seq: word(body, 4)?,
                ack: word(body, 8)?,
                flags,
                window: half(body, 14)?,
                options,
            };
            Some(Packet::Tcp(tcp, body.get(header..)?))
        }
        17 => Some(Packet::Udp(half(body, 2)?, body.get(8..)?)),
        _ => None,
    }
}

/// Segment size and window shift that a SYN names.
fn options(mut options: &[u8]) -> (u16, u8) {
    let (mut mss, mut shift) = (536, 0);
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [2, 4, high, low, rest @ ..] => {
                mss = u16::from_be_bytes([*high, *low]);
                rest
            }
            [3, 3, bits, rest @ ..] => {
                shift = *bits;
                rest
            }
            [_, length, ..] if *length >= 2 && options[0] != 0 => {
                options.get(usize::from(*length)..).unwrap_or_default()
            }
            _ => return (mss, shift),
        };
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let ends = Ends { mac: [2; 6], router: [4; 6], address: Ipv4Addr::new(10, 0, 0, 2) };
        let tcp =
            Tcp { from: 1, to: 2, seq: 3, ack: 4, flags: SYN | ACK, window: 5, options: Some((1460, 7)) };
        let mut frame = ends.tcp(Ipv4Addr::new(10, 0, 0, 1), &tcp, 3);
        assert_eq!(checksum(&frame[14..34]), 0, "the header's sum is right");
        frame.extend(b"abc");
        assert_eq!(parse(&frame), Packet::Tcp(tcp, b"abc"));
        // Padding that Ethernet asks for is no data.
        frame.extend([0; 9]);
        assert_eq!(parse(&frame), Packet::Tcp(tcp, b"abc"));
        let mut frame = ends.udp(53, SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 54), 2);
        frame.extend(b"hi");
        assert_eq!(parse(&frame), Packet::Udp(54, b"hi"));
        assert_eq!(parse(&frame[..20]), Packet::Other);
        assert_eq!(options(&[1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 3, 3, 9]), (536, 9));
    }
}
