//! Addresses, routes and neighbours of an interface, by the kernel's routing socket (rtnetlink(7)). One request at a time, each acknowledged.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use netlink_packet_core::{Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rustix::net::{RecvFlags, SendFlags, SocketType};

/// A message's header, `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;

/// A routing socket.
#[derive(Debug)]
pub(crate) struct Routing {
    socket: OwnedFd,
    sequence: u32,
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

impl Routing {
    pub(crate) fn open() -> io::Result<Self> {
        // The protocol 0 of this family is NETLINK_ROUTE.
        let socket = rustix::net::socket(rustix::net::AddressFamily::NETLINK, SocketType::RAW, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The number of the interface with this name.
    pub(crate) fn index_of(&self, name: &str) -> io::Result<u32> {
        Ok(rustix::net::netdevice::name_to_index(&self.socket, name)?)
    }

    /// Gives an interface an address that is used at once: nobody else is on the link to have it already (no DAD).
    pub(crate) fn add_address(&mut self, interface: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = interface;
        message.header.flags = AddressHeaderFlags::Permanent;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent));
        }
        self.carry_out(libc::RTM_NEWADDR, &message)
    }

    /// Says once and for all which hardware address a neighbour has.
    pub(crate) fn set_neighbour(
        &mut self,
        interface: u32,
        address: IpAddr,
        hardware: &[u8; 6],
    ) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = interface;
        message.header.state = NeighbourState::Permanent;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            NeighbourAttribute::Destination(address.into()),
            NeighbourAttribute::LinkLayerAddress(hardware.to_vec()),
        ];
        self.carry_out(libc::RTM_NEWNEIGH, &message)
    }

    /// Sends everything that has no better route to `gateway`, with `source` as the sender's address.
    pub(crate) fn set_default_route(
        &mut self,
        interface: u32,
        gateway: IpAddr,
        source: IpAddr,
    ) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::Oif(interface),
            RouteAttribute::PrefSource(source.into()),
        ];
        self.carry_out(libc::RTM_NEWROUTE, &message)
    }

    /// Sends one request and waits for the kernel's word on it.
    fn carry_out(&mut self, kind: u16, message: &impl Emitable) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + message.buffer_len();
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        header.message_type = kind;
        header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        header.sequence_number = self.sequence;
        let mut request = vec![0u8; length];
        let (head, body) = request.split_at_mut(HEADER);
        header.emit(head);
        message.emit(body);
        rustix::net::send(&self.socket, &request, SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        loop {
            let (got, _) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
            let answer = answer.get(..got).unwrap_or_default();
            if let Some(result) = acknowledgement(answer, self.sequence) {
                return result;
            }
        }
    }
}

/// What the kernel says of the request with this number; `None` when it speaks of something else.
fn acknowledgement(answer: &[u8], sequence: u32) -> Option<io::Result<()>> {
    let (header, body) = answer.split_at_checked(HEADER)?;
    let kind = u16::from_ne_bytes(header.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(header.get(8..12)?.try_into().ok()?);
    if i32::from(kind) != libc::NLMSG_ERROR || number != sequence {
        return None;
    }
    // `struct nlmsgerr` begins with the error number, negated; 0 is the acknowledgement.
    Some(match i32::from_ne_bytes(*body.first_chunk()?) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, sequence: u32, error: i32) -> Vec<u8> {
        let mut bytes = vec![0u8; HEADER];
        let mut header = NetlinkHeader::default();
        (header.length, header.message_type, header.sequence_number) = (36, kind, sequence);
        header.emit(&mut bytes);
        bytes.extend(error.to_ne_bytes());
        bytes.resize(36, 0);
        bytes
    }

    #[test]
    fn only_the_answer_to_the_request_counts() {
        let error = u16::try_from(libc::NLMSG_ERROR).expect("a small number");
        assert!(matches!(acknowledgement(&answer(error, 7, 0), 7), Some(Ok(()))));
        let refused = acknowledgement(&answer(error, 7, -libc::ENODEV), 7).expect("an answer");
        assert_eq!(refused.expect_err("refused").raw_os_error(), Some(libc::ENODEV));
        assert!(acknowledgement(&answer(error, 6, 0), 7).is_none());
        assert!(acknowledgement(&answer(libc::RTM_NEWADDR, 7, 0), 7).is_none());
        for end in 0..20 {
            assert!(acknowledgement(&answer(error, 7, 0)[..end], 7).is_none());
        }
    }

    /// The kernel refuses an interface that there is none of, and not the message's form.
    #[test]
    fn the_kernel_reads_the_requests() {
        let mut routing = Routing::open().expect("a routing socket");
        let address = IpAddr::from([198, 18, 0, 2]);
        let error = routing.add_address(0x7fff_fff0, address, 30).expect_err("no such interface");
        // Who may not change the network is told that first.
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }
}
