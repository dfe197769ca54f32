//! From a host to the rules whose pattern fits it, without looking at the others.
//!
//! Ordered maps, not hashed ones: no random state, and the keys are the rules' own, so a guest cannot choose what collides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::name::Name;
use crate::resource::HostPattern;

/// The number of a rule in its policy.
pub(crate) type Number = usize;

/// Rules by what they can fit. Each stands in one bucket.
#[derive(Debug, Default)]
pub(crate) struct Index {
    any: Vec<Number>,
    host_service: Vec<Number>,
    /// By the part behind the last wildcard; a name without one is its own.
    suffixes: BTreeMap<Box<str>, Vec<Number>>,
    networks: BTreeMap<IpNet, Vec<Number>>,
    /// Prefix lengths in use: of IPv4 and of IPv6.
    lengths: (BTreeSet<u8>, BTreeSet<u8>),
}

impl Index {
    pub(crate) fn insert(&mut self, number: Number, hosts: &HostPattern) {
        match hosts {
            HostPattern::Any => self.any.push(number),
            HostPattern::HostService => self.host_service.push(number),
            HostPattern::Names(pattern) => {
                self.suffixes.entry(pattern.suffix().into()).or_default().push(number);
            }
            HostPattern::Network(network) => {
                let lengths =
                    if network.addr().is_ipv4() { &mut self.lengths.0 } else { &mut self.lengths.1 };
                lengths.insert(network.prefix_len());
                self.networks.entry(network.trunc()).or_default().push(number);
            }
        }
    }

    /// Rules about everything.
    pub(crate) fn any(&self) -> &[Number] {
        &self.any
    }

    /// Rules about the host's services by that word.
    pub(crate) fn host_service(&self) -> &[Number] {
        &self.host_service
    }

    /// Rules whose literal end the name has; their patterns are still to be compared.
    pub(crate) fn names(&self, name: &Name, found: &mut Vec<Number>) {
        let text = name.as_str();
        let mut suffix = Some(text);
        while let Some(now) = suffix {
            found.extend(self.suffixes.get(now).into_iter().flatten());
            suffix = now.split_once('.').map(|(_, rest)| rest);
        }
        found.extend(self.suffixes.get("").into_iter().flatten());
    }

    /// Rules whose network holds the address.
    pub(crate) fn networks(&self, address: IpAddr, found: &mut Vec<Number>) {
        let lengths = if address.is_ipv4() { &self.lengths.0 } else { &self.lengths.1 };
        for length in lengths {
            if let Ok(network) = IpNet::new(address, *length) {
                found.extend(self.networks.get(&network.trunc()).into_iter().flatten());
            }
        }
    }
}

/// Where the host's services are, as addresses: what a network rule must hold to be about them.
pub(crate) const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
