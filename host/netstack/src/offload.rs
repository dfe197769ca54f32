//! The header in front of every frame: what the sender left for the receiver to do (virtio 1.3 §5.1.6).
//!
//! From the guest it is believed only where the packet bears it out. Towards the guest every TCP segment carries a partial
//! checksum, as between two virtual machines of one host: a frame that the guest's kernel forwards to a container is completed
//! or cut by it like one of its own. (DATA_VALID would not do: a forwarded frame is taken as unchecked again.)

use smoltcp::wire::IpProtocol;

/// Bytes of `virtio_net_hdr_v1`.
pub const HEADER: usize = 12;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM
const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Set beside a TCP type: the segments carry congestion marks.
const GSO_ECN: u8 = 0x80;

/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: u16 = 16;
/// The same in a UDP header.
const UDP_CHECKSUM: u16 = 6;

/// What the guest left to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    needs_checksum: bool,
    segmentation: u8,
    segment: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

/// How a packet of a protocol is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The checksum is there and must be right.
    pub(crate) verify: bool,
    /// The payload is to be cut into pieces of so many bytes.
    pub(crate) pieces: Option<usize>,
    /// The packet may be longer than the link's MTU.
    pub(crate) large: bool,
}

impl Offload {
    /// Splits a frame from its header.
    pub(crate) fn split(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = frame.split_first_chunk::<HEADER>()?;
        let [flags, segmentation, _, _, segment0, segment1, start0, start1, offset0, offset1, _, _] = *header;
        let offload = Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            segmentation,
            segment: u16::from_le_bytes([segment0, segment1]),
            checksum_start: u16::from_le_bytes([start0, start1]),
            checksum_offset: u16::from_le_bytes([offset0, offset1]),
        };
        Some((offload, frame))
    }

    /// What follows from the header for a packet whose transport header begins `start` bytes into the frame; `None` if it
    /// asks for what cannot be.
    pub(crate) fn plan(&self, protocol: IpProtocol, v6: bool, start: usize) -> Option<Plan> {
        let checksum = match protocol {
            IpProtocol::Tcp => Some(TCP_CHECKSUM),
            IpProtocol::Udp => Some(UDP_CHECKSUM),
            _ => None,
        };
        if self.needs_checksum
            && (usize::from(self.checksum_start) != start || Some(self.checksum_offset) != checksum)
        {
            return None;
        }
        let tcp = if v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        let verify = !self.needs_checksum;
        match (self.segmentation, protocol) {
            (GSO_NONE, _) => Some(Plan { verify, pieces: None, large: false }),
            // Segmentation implies that the sum is left to do.
            _ if verify || self.segment == 0 => None,
            (kind, IpProtocol::Tcp) if kind & !GSO_ECN == tcp => {
                Some(Plan { verify, pieces: None, large: true })
            }
            (GSO_UDP_L4, IpProtocol::Udp) => {
                Some(Plan { verify, pieces: Some(self.segment.into()), large: true })
            }
            _ => None,
        }
    }

    /// Whether it asks for nothing, as before ARP.
    pub(crate) fn is_none(&self) -> bool {
        !self.needs_checksum && self.segmentation == GSO_NONE
    }
}

/// The header of a frame that needs nothing more.
pub(crate) fn complete() -> [u8; HEADER] {
    // num_buffers is the device's to set; one is what it is without merging.
    [0, GSO_NONE, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
}

/// The header of a frame with TCP, whose checksum is partial. `headers` is the length of all headers from Ethernet's on,
/// `start` where TCP's begins, `segment` the most that a segment may carry where the payload is longer than that.
pub(crate) fn partial(v6: bool, headers: u16, start: u16, segment: Option<u16>) -> [u8; HEADER] {
    let kind = match (segment, v6) {
        (None, _) => GSO_NONE,
        (Some(_), false) => GSO_TCPV4,
        (Some(_), true) => GSO_TCPV6,
    };
    let [h0, h1] = headers.to_le_bytes();
    let [g0, g1] = segment.unwrap_or(0).to_le_bytes();
    let [s0, s1] = start.to_le_bytes();
    let [o0, o1] = TCP_CHECKSUM.to_le_bytes();
    [NEEDS_CSUM, kind, h0, h1, g0, g1, s0, s1, o0, o1, 1, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_packet_bears_out_is_believed() {
        let plan = |header: [u8; HEADER], protocol, v6| {
            let (offload, rest) = Offload::split(&header).unwrap();
            assert!(rest.is_empty());
            offload.plan(protocol, v6, 34)
        };
        let (tcp, udp, icmp) = (IpProtocol::Tcp, IpProtocol::Udp, IpProtocol::Icmp);
        let some = |verify, pieces, large| Some(Plan { verify, pieces, large });
        for (header, protocol, v6, wanted) in [
            ([0; 12], tcp, false, some(true, None, false)),
            // DATA_VALID and unknown flags are not for us.
            ([0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], tcp, false, some(true, None, false)),
            ([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], tcp, false, some(false, None, false)),
            ([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], udp, false, some(false, None, false)),
            ([1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], tcp, false, None),
            ([1, 0, 0, 0, 0, 0, 35, 0, 16, 0, 0, 0], tcp, false, None),
            ([1, 0, 0, 0, 0, 0, 34, 0, 2, 0, 0, 0], icmp, false, None),
            ([1, 1, 0, 0, 1, 0, 34, 0, 16, 0, 0, 0], tcp, false, some(false, None, true)),
            ([1, 0x81, 9, 9, 1, 0, 34, 0, 16, 0, 0, 0], tcp, false, some(false, None, true)),
            ([1, 4, 0, 0, 1, 0, 34, 0, 16, 0, 0, 0], tcp, true, some(false, None, true)),
            ([1, 4, 0, 0, 1, 0, 34, 0, 16, 0, 0, 0], tcp, false, None),
            ([1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], tcp, false, None),
            ([0, 1, 0, 0, 1, 0, 34, 0, 16, 0, 0, 0], tcp, false, None),
            ([1, 5, 0, 0, 7, 0, 34, 0, 6, 0, 0, 0], udp, false, some(false, Some(7), true)),
            ([1, 3, 0, 0, 7, 0, 34, 0, 6, 0, 0, 0], udp, false, None),
            ([1, 0x85, 0, 0, 7, 0, 34, 0, 6, 0, 0, 0], udp, false, None),
            ([1, 5, 0, 0, 7, 0, 34, 0, 16, 0, 0, 0], tcp, false, None),
        ] {
            assert_eq!(plan(header, protocol, v6), wanted, "{header:?} {protocol} {v6}");
        }
        assert_eq!(Offload::split(&[0; 11]), None);
    }
}
