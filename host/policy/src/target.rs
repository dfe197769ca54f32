//! What a question is about: a host, a port, a protocol, and a request.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::SyntaxError;
use crate::name::{Name, canonical_address};
use crate::path::CanonicalPath;

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// The host that a flow goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host<'a> {
    /// A name that was asked for. The names of the host's services are taken for [`Host::HostService`].
    Name(&'a Name),
    /// An address that the guest chose itself.
    Address(IpAddr),
    /// A service of the host.
    HostService,
}

/// Where a flow goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    /// The host.
    pub host: Host<'a>,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

impl<'a> Target<'a> {
    /// A TCP target.
    #[must_use]
    pub fn tcp(host: Host<'a>, port: u16) -> Self {
        Self { host, port, protocol: Protocol::Tcp }
    }

    /// A UDP target.
    #[must_use]
    pub fn udp(host: Host<'a>, port: u16) -> Self {
        Self { host, port, protocol: Protocol::Udp }
    }
}

/// An HTTP request, as far as rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The method as it came.
    pub method: &'a str,
    /// The path.
    pub path: &'a CanonicalPath,
}

/// A host, owned: for questions, records and observations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostKey {
    /// A name.
    Name(Name),
    /// An address, never an IPv4-mapped one when parsed.
    Address(IpAddr),
    /// A service of the host.
    HostService,
}

impl HostKey {
    /// Reads a name or an address (IPv6 without brackets); `localhost` and its other names are the host's services.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(canonical_address(address)));
        }
        let name = Name::parse(text)?;
        Ok(if name.is_host_service() { Self::HostService } else { Self::Name(name) })
    }

    /// The same, borrowed.
    #[must_use]
    pub fn as_host(&self) -> Host<'_> {
        match self {
            Self::Name(name) => Host::Name(name),
            Self::Address(address) => Host::Address(*address),
            Self::HostService => Host::HostService,
        }
    }
}

impl<'a> Host<'a> {
    /// One host in one form: names of the host's services are such, mapped addresses are IPv4.
    pub(crate) fn settled(self) -> Host<'a> {
        match self {
            Host::Name(name) if name.is_host_service() => Host::HostService,
            Host::Address(address) => Host::Address(canonical_address(address)),
            other => other,
        }
    }

    /// The same, owned.
    #[must_use]
    pub fn to_key(self) -> HostKey {
        match self.settled() {
            Host::Name(name) => HostKey::Name(name.clone()),
            Host::Address(address) => HostKey::Address(address),
            Host::HostService => HostKey::HostService,
        }
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => write!(f, "{name}"),
            Host::Address(address) => write!(f, "{address}"),
            Host::HostService => f.write_str("localhost"),
        }
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_host())
    }
}

impl TryFrom<String> for HostKey {
    type Error = SyntaxError;
    fn try_from(text: String) -> Result<Self, SyntaxError> {
        Self::parse(&text)
    }
}

impl From<HostKey> for String {
    fn from(host: HostKey) -> Self {
        host.to_string()
    }
}

/// `host:port`, with brackets where IPv6 needs them.
pub(crate) fn host_port(host: Host<'_>, port: u16) -> String {
    match host {
        Host::Address(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        host => format!("{host}:{port}"),
    }
}
