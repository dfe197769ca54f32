//! The guard: addresses that no rule by name reaches, and what opens them.
//!
//! A name that is allowed can resolve to anything, also to the host's own network (rebinding). So each address that a name
//! resolved to, and each that a guest chose itself, is compared with this list. It is explicit: an address that is not in it
//! is not guarded, whatever its registration says, as registries and mirrors may be anywhere (documentation ranges,
//! benchmarking ranges behind a proxy).
//!
//! A rule opens a guarded range by naming it: a network that lies within the range, for the addresses, ports and protocols of
//! that rule. A wider one (`0.0.0.0/0`, `**`) does not, and one for a private network does not open the metadata service
//! or the host's own address in it, which are ranges of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::name::canonical_address;

/// One range of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardRange {
    /// The range.
    pub network: IpNet,
    /// What it is, to stand after "is".
    pub what: &'static str,
    /// Whether a rule can open it.
    pub openable: bool,
}

/// A prefix whose addresses have an IPv4 address inside, which is where their packets end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    /// The prefix.
    pub network: IpNet,
    /// The first bit of the IPv4 address.
    pub offset: u8,
    /// Whether the IPv4 address is written with its bits turned round.
    pub inverted: bool,
    /// What it is.
    pub what: &'static str,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8, what: &'static str) -> GuardRange {
    GuardRange {
        network: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)),
        what,
        openable: true,
    }
}

const fn v6(segments: [u16; 8], length: u8, what: &'static str) -> GuardRange {
    GuardRange { network: net6(segments, length), what, openable: true }
}

const fn net6(segments: [u16; 8], length: u8) -> IpNet {
    let [a, b, c, d, e, f, g, h] = segments;
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

const fn shut(range: GuardRange) -> GuardRange {
    GuardRange { openable: false, ..range }
}

/// The list. Of two ranges that hold an address the narrower one counts.
const RANGES: &[GuardRange] = &[
    shut(v4(0, 0, 0, 0, 8, "this host (RFC 1122), which the host takes for itself")),
    v4(10, 0, 0, 0, 8, "a private network (RFC 1918)"),
    v4(100, 64, 0, 0, 10, "shared address space of carriers and overlay networks (RFC 6598)"),
    v4(100, 100, 100, 200, 32, "a cloud's metadata service (Alibaba)"),
    v4(127, 0, 0, 0, 8, "the host's loopback (RFC 1122)"),
    v4(168, 63, 129, 16, 32, "a cloud's metadata service (Azure)"),
    v4(169, 254, 0, 0, 16, "link-local (RFC 3927)"),
    v4(169, 254, 0, 23, 32, "a cloud's metadata service (Tencent)"),
    v4(169, 254, 169, 254, 32, "a cloud's metadata service (AWS, Azure, Google and others)"),
    v4(169, 254, 170, 2, 32, "a cloud's credential service (AWS ECS)"),
    v4(169, 254, 170, 23, 32, "a cloud's credential service (AWS EKS)"),
    v4(172, 16, 0, 0, 12, "a private network (RFC 1918)"),
    v4(192, 0, 0, 0, 24, "reserved for protocols (RFC 6890)"),
    v4(192, 0, 0, 192, 32, "a cloud's metadata service (Oracle)"),
    v4(192, 168, 0, 0, 16, "a private network (RFC 1918)"),
    shut(v4(224, 0, 0, 0, 4, "multicast (RFC 5771)")),
    v4(240, 0, 0, 0, 4, "reserved, and in use as a private network (RFC 1112)"),
    shut(v4(255, 255, 255, 255, 32, "broadcast (RFC 919)")),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, "IPv4-compatible, obsolete (RFC 4291)"),
    shut(v6(
        [0, 0, 0, 0, 0, 0, 0, 0],
        128,
        "the unspecified address (RFC 4291), which the host takes for itself",
    )),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "the host's loopback (RFC 4291)"),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, "a local translation to IPv4 (RFC 8215)"),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, "a black hole (RFC 6666)"),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, "a private network (unique local, RFC 4193)"),
    v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, "a cloud's metadata service (Oracle)"),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23], 128, "a cloud's credential service (AWS EKS)"),
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, "a cloud's metadata service (AWS)"),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, "a cloud's metadata service (Google)"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local (RFC 4291)"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128, "a cloud's metadata service (OpenStack)"),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, "a private network (site-local, obsolete, RFC 3879)"),
    shut(v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast (RFC 4291)")),
];

/// Forms of IPv4 addresses within IPv6. (IPv4-mapped ones, `::ffff:0:0/96`, are IPv4 addresses from the start.)
const EMBEDDINGS: &[Embedding] = &[
    embedding(net6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), 96, false, "IPv4-translated (RFC 2765)"),
    embedding(net6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96), 96, false, "NAT64 (RFC 6052)"),
    embedding(net6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), 32, false, "Teredo's server (RFC 4380)"),
    embedding(net6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), 96, true, "Teredo's client (RFC 4380)"),
    embedding(net6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), 16, false, "6to4 (RFC 3056)"),
];

const fn embedding(network: IpNet, offset: u8, inverted: bool, what: &'static str) -> Embedding {
    Embedding { network, offset, inverted, what }
}

/// The guarded ranges, for documents and tests.
#[must_use]
pub fn guard_table() -> &'static [GuardRange] {
    RANGES
}

/// The IPv6 prefixes whose inner IPv4 address is judged too, for documents and tests.
#[must_use]
pub fn embedding_table() -> &'static [Embedding] {
    EMBEDDINGS
}

/// One address that a packet to another one ends at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) address: IpAddr,
    /// Where in the outer address it stands; `None` for the outer address itself, and for bits turned round.
    pub(crate) offset: Option<u8>,
}

/// An address and the IPv4 addresses inside it.
pub(crate) fn views(address: IpAddr) -> Vec<View> {
    let address = canonical_address(address);
    let mut views = vec![View { address, offset: None }];
    if let IpAddr::V6(outer) = address {
        for form in EMBEDDINGS.iter().filter(|form| form.network.contains(&address)) {
            let shift = 96_u32.saturating_sub(form.offset.into());
            let bits = u32::try_from((u128::from(outer) >> shift) & u128::from(u32::MAX)).unwrap_or_default();
            let bits = if form.inverted { !bits } else { bits };
            views.push(View {
                address: Ipv4Addr::from(bits).into(),
                offset: (!form.inverted).then_some(form.offset),
            });
        }
    }
    views
}

/// What guards one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guarded {
    pub(crate) range: GuardRange,
    pub(crate) view: View,
}

/// The range that holds a view of an address: the narrowest one, and the host's own addresses before all.
pub(crate) fn guarded(view: View, own: &[IpAddr]) -> Option<Guarded> {
    let range = if own.contains(&view.address) {
        let network = IpNet::from(view.address);
        // What can never be opened stays so.
        match narrowest(view.address) {
            Some(range) if !range.openable => range,
            _ => GuardRange { network, what: "an address of this host", openable: true },
        }
    } else {
        narrowest(view.address)?
    };
    Some(Guarded { range, view })
}

fn narrowest(address: IpAddr) -> Option<GuardRange> {
    RANGES
        .iter()
        .filter(|range| range.network.contains(&address))
        .max_by_key(|range| range.network.prefix_len())
        .copied()
}

impl Guarded {
    /// Whether a rule with this network names the range: its network holds the address and lies within the range. For an
    /// IPv4 address inside an IPv6 one the network may be of either family.
    pub(crate) fn opened_by(&self, network: &IpNet, outer: IpAddr) -> bool {
        if !self.range.openable {
            return false;
        }
        let length = self.range.network.prefix_len();
        let plain = network.contains(&self.view.address) && network.prefix_len() >= length;
        let wrapped = self.view.offset.is_some_and(|offset| {
            network.contains(&outer) && network.prefix_len() >= offset.saturating_add(length)
        });
        plain || wrapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn what(address: IpAddr) -> Option<&'static str> {
        views(address).into_iter().find_map(|view| guarded(view, &[])).map(|guarded| guarded.range.what)
    }

    fn neighbours(network: IpNet) -> (Option<IpAddr>, Option<IpAddr>) {
        let step = |address: IpAddr, up: bool| match address {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4);
                if up { bits.checked_add(1) } else { bits.checked_sub(1) }.map(|bits| IpAddr::V4(bits.into()))
            }
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                if up { bits.checked_add(1) } else { bits.checked_sub(1) }.map(|bits| IpAddr::V6(bits.into()))
            }
        };
        (step(network.network(), false), step(network.broadcast(), true))
    }

    #[test]
    fn each_range_ends_where_it_says() {
        for range in RANGES {
            for edge in [range.network.network(), range.network.broadcast()] {
                let found = narrowest(edge).unwrap_or_else(|| panic!("{edge}"));
                assert!(
                    found.network == range.network || found.network.prefix_len() > range.network.prefix_len()
                );
                assert!(what(edge).is_some(), "{edge}");
            }
            let (below, above) = neighbours(range.network);
            for outside in [below, above].into_iter().flatten() {
                assert!(!range.network.contains(&outside));
                // A neighbour is open unless another range of the list holds it.
                let held = RANGES.iter().any(|other| other.network.contains(&outside));
                assert_eq!(narrowest(outside).is_some(), held, "{outside}");
            }
        }
        assert!(RANGES.iter().all(|range| range.network.trunc() == range.network));
    }

    /// Written out by hand, apart from the list: the last address before, the first, the last, the first after.
    #[test]
    fn edges_by_hand() {
        for (guard, open) in [
            (vec!["0.0.0.0", "0.255.255.255"], vec!["1.0.0.0"]),
            (vec!["10.0.0.0", "10.255.255.255"], vec!["9.255.255.255", "11.0.0.0"]),
            (vec!["100.64.0.0", "100.127.255.255"], vec!["100.63.255.255", "100.128.0.0"]),
            (vec!["127.0.0.0", "127.255.255.255"], vec!["126.255.255.255", "128.0.0.0"]),
            (vec!["168.63.129.16"], vec!["168.63.129.15", "168.63.129.17"]),
            (vec!["169.254.0.0", "169.254.255.255"], vec!["169.253.255.255", "169.255.0.0"]),
            (vec!["172.16.0.0", "172.31.255.255"], vec!["172.15.255.255", "172.32.0.0"]),
            (vec!["192.0.0.0", "192.0.0.255"], vec!["191.255.255.255", "192.0.1.0"]),
            (vec!["192.168.0.0", "192.168.255.255"], vec!["192.167.255.255", "192.169.0.0"]),
            (vec!["224.0.0.0", "239.255.255.255"], vec!["223.255.255.255"]),
            (vec!["240.0.0.0", "255.255.255.254", "255.255.255.255"], vec![]),
            (vec!["::", "::1", "::2", "::ffff:ffff"], vec!["::1:0:0"]),
            (vec!["64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"], vec!["64:ff9b:2::"]),
            (vec!["100::", "100::ffff:ffff:ffff:ffff"], vec!["100:0:0:1::", "ff:ffff::"]),
            (vec!["fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], vec!["fbff::", "fe00::"]),
            (vec!["fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], vec!["fe7f:ffff::"]),
            (vec!["fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], vec![]),
            (vec!["ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], vec![]),
            // Not guarded: documentation and benchmarking ranges, in which this machine's registries are.
            (
                vec![],
                vec![
                    "192.0.2.1",
                    "198.51.100.1",
                    "203.0.113.1",
                    "2001:db8::1",
                    "3fff::1",
                    "198.18.0.1",
                    "198.19.255.255",
                    "192.88.99.1",
                    "8.8.8.8",
                    "2606:4700::1111",
                ],
            ),
        ] {
            for address in guard {
                assert!(what(ip(address)).is_some(), "{address}");
            }
            for address in open {
                assert_eq!(what(ip(address)), None, "{address}");
            }
        }
    }

    #[test]
    fn other_forms_of_an_address_are_that_address() {
        for (form, inner) in [
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("::ffff:a9fe:a9fe", "169.254.169.254"),
            ("::ffff:0:10.0.0.1", "10.0.0.1"),
            ("64:ff9b::10.0.0.1", "10.0.0.1"),
            ("64:ff9b::169.254.169.254", "169.254.169.254"),
            ("64:ff9b::8.8.8.8", "8.8.8.8"),
            ("2002:0a00:0001::", "10.0.0.1"),
            ("2002:7f00:0001:1:2:3:4:5", "127.0.0.1"),
            ("2002:0808:0808::1", "8.8.8.8"),
            ("2001:0:0a00:0001::f7f7:f7f7", "10.0.0.1"),
            ("2001:0:0808:0808:0:0:80ff:fffe", "127.0.0.1"),
            ("2001:0:0808:0808:0:0:f7f7:f7f7", "8.8.8.8"),
        ] {
            assert_eq!(what(ip(form)), what(ip(inner)), "{form}");
            assert!(views(ip(form)).iter().any(|view| view.address == ip(inner)), "{form}");
        }
        // Every range of IPv4 through every form.
        for range in RANGES.iter().filter(|range| matches!(range.network, IpNet::V4(_))) {
            for edge in [range.network.network(), range.network.broadcast()] {
                let IpAddr::V4(v4) = edge else { unreachable!() };
                let bits = u128::from(u32::from(v4));
                for form in EMBEDDINGS {
                    let IpAddr::V6(prefix) = form.network.network() else { unreachable!() };
                    let inner = if form.inverted { bits ^ u128::from(u32::MAX) } else { bits };
                    let outer = Ipv6Addr::from(u128::from(prefix) | (inner << (96 - u32::from(form.offset))));
                    assert!(what(outer.into()).is_some(), "{outer} {}", form.what);
                }
                assert!(what(Ipv4Addr::to_ipv6_mapped(&v4).into()).is_some());
            }
        }
    }

    #[test]
    fn a_network_opens_what_it_names_and_no_more() {
        let opens = |network: &str, address: &str| {
            let network: IpNet = network.parse().unwrap();
            let outer = canonical_address(ip(address));
            let guards: Vec<Guarded> =
                views(outer).into_iter().filter_map(|view| guarded(view, &[ip("192.168.7.7")])).collect();
            assert!(!guards.is_empty(), "{address}");
            guards.iter().all(|guard| guard.opened_by(&network, outer))
        };
        for (network, address, expected) in [
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.1.0.0/16", "10.1.2.3", true),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.2.0.0/16", "10.1.2.3", false),
            ("0.0.0.0/0", "10.1.2.3", false),
            ("8.0.0.0/6", "10.1.2.3", false),
            ("::/0", "::1", false),
            ("169.254.0.0/16", "169.254.1.1", true),
            ("169.254.0.0/16", "169.254.169.254", false),
            ("169.254.169.254/32", "169.254.169.254", true),
            ("fd00::/8", "fd00:ec2::254", false),
            ("192.168.0.0/16", "192.168.7.8", true),
            ("192.168.0.0/16", "192.168.7.7", false),
            ("192.168.7.7/32", "192.168.7.7", true),
            ("0.0.0.0/32", "0.0.0.0", false),
            ("224.0.0.0/4", "224.0.0.1", false),
            ("255.255.255.255/32", "255.255.255.255", false),
            ("::/128", "::", false),
            ("10.0.0.0/8", "64:ff9b::10.1.2.3", true),
            ("64:ff9b::a00:0/104", "64:ff9b::10.1.2.3", true),
            ("64:ff9b::/96", "64:ff9b::10.1.2.3", false),
            ("2002:a00::/24", "2002:a01:203::1", true),
            ("2002::/16", "2002:a01:203::1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ] {
            assert_eq!(opens(network, address), expected, "{network} {address}");
        }
    }
}
