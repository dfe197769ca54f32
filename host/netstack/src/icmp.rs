//! ICMP towards the guest: echo replies and refusals.

use std::net::IpAddr;

use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol};

use crate::config::Config;
use crate::emit;

/// Why a packet did not get through: codes of "destination unreachable" (RFC 792, RFC 1812 §5.2.7.1; RFC 4443 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    fn code(self, v6: bool) -> u8 {
        match (self, v6) {
            (Self::Host, false) => 1,
            (Self::Port, false) => 3,
            (Self::Prohibited, false) => 13,
            (Self::Host, true) => 3,
            (Self::Port, true) => 4,
            (Self::Prohibited, true) => 1,
        }
    }
}

/// Bytes of an ICMP header.
const HEADER: usize = 8;

/// The most of an IP packet that is quoted, so that the whole message stays within 576 bytes (RFC 1812 §4.3.2.3) or 1280.
pub(crate) fn quotable(v6: bool) -> usize {
    if v6 { 1280 - 40 - HEADER } else { 576 - 20 - HEADER }
}

/// Writes the ICMP checksum, for a message between these two.
fn fill_checksum(bytes: &mut [u8], source: IpAddr, destination: IpAddr) {
    match (source, destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Icmpv6Packet::new_unchecked(bytes).fill_checksum(&source, &destination);
        }
        _ => Icmpv4Packet::new_unchecked(bytes).fill_checksum(),
    }
}

fn message(link: &Config, v6: bool, len: usize, fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let protocol = if v6 { IpProtocol::Icmpv6 } else { IpProtocol::Icmp };
    let source = emit::gateway_of(link, v6);
    let destination = emit::guest_of(link, source);
    emit::ip(link, source, destination, protocol, 64, len, |bytes| {
        fill(bytes);
        fill_checksum(bytes, source, destination);
    })
}

/// Tells the guest that its packet `ip`, of which the head is quoted, did not get through. It comes from us: who was meant
/// has not been asked.
pub(crate) fn unreachable(link: &Config, v6: bool, why: Unreachable, ip: &[u8]) -> Vec<u8> {
    let head = ip.get(..quotable(v6)).unwrap_or(ip);
    message(link, v6, head.len().saturating_add(HEADER), |bytes| {
        if let Some((header, quote)) = bytes.split_first_chunk_mut::<HEADER>() {
            *header = [if v6 { 1 } else { 3 }, why.code(v6), 0, 0, 0, 0, 0, 0];
            quote.copy_from_slice(head);
        }
    })
}

/// The answer to an echo request, of which `request` is the ICMP message.
pub(crate) fn echo_reply(link: &Config, v6: bool, request: &[u8]) -> Vec<u8> {
    message(link, v6, request.len(), |bytes| {
        bytes.copy_from_slice(request);
        if let Some((header, _)) = bytes.split_first_chunk_mut::<4>() {
            *header = [if v6 { 129 } else { 0 }, 0, 0, 0];
        }
    })
}
