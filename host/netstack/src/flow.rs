//! How a flow is known on the wire.

use std::net::SocketAddr;

use crate::event::{FlowInfo, Protocol};

/// A 4-tuple without the guest's address, which is fixed for each version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) protocol: Protocol,
    pub(crate) guest_port: u16,
    /// The end that we stand in for.
    pub(crate) remote: SocketAddr,
}

impl FlowKey {
    pub(crate) fn info(&self, link: &crate::Config) -> FlowInfo {
        let source = match self.remote {
            SocketAddr::V4(_) => SocketAddr::from((link.guest_ipv4, self.guest_port)),
            SocketAddr::V6(_) => SocketAddr::from((link.guest_ipv6, self.guest_port)),
        };
        FlowInfo { protocol: self.protocol, source, destination: self.remote }
    }
}
