//! What a rule is about: hosts and ports.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::{SyntaxError, column_of, quoted};
use crate::name::{Name, canonical_address};
use crate::pattern::NamePattern;

/// Longest text of one resource, in bytes.
const LONGEST: usize = 1024;

/// A range of ports, or all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// Every port.
    pub const ALL: Ports = Ports { first: 1, last: u16::MAX };

    /// One port; `None` for 0, which is none.
    #[must_use]
    pub fn one(port: u16) -> Option<Self> {
        (port != 0).then_some(Self { first: port, last: port })
    }

    /// From one port to another; the caller has seen to their order.
    pub(crate) fn between(first: u16, last: u16) -> Self {
        Self { first, last }
    }

    /// The first port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether a port is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    fn parse(text: &str) -> Result<Self, SyntaxError> {
        if text == "*" {
            return Ok(Self::ALL);
        }
        let Some((first, last)) = text.split_once('-') else {
            let port = parse_port(text)?;
            return Ok(Self { first: port, last: port });
        };
        let (start, offset) = (parse_port(first)?, first.len() + 1);
        let end = parse_port(last).map_err(|error| error.within(text, offset))?;
        if end < start {
            return Err(SyntaxError::new(
                text,
                offset,
                format!("the range ends before it starts: {start}-{end}"),
            ));
        }
        Ok(Self { first: start, last: end })
    }
}

fn parse_port(text: &str) -> Result<u16, SyntaxError> {
    let expected = "expected a port from 1 to 65535, a range such as 8000-8100, or '*'";
    if text.is_empty() {
        return Err(SyntaxError::new(text, 0, expected));
    }
    if let Some((at, c)) = text.chars().enumerate().find(|(_, c)| !c.is_ascii_digit()) {
        return Err(SyntaxError::new(text, at, format!("{expected}, found {}", quoted(c))));
    }
    match text.parse::<u16>() {
        Ok(port) if port != 0 && !text.starts_with('0') => Ok(port),
        _ => Err(SyntaxError::new(text, 0, format!("{expected}, found {}", crate::error::shown(text)))),
    }
}

/// Which hosts a resource is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `**`: everything. An allow of it reaches no guarded address and no service of the host.
    Any,
    /// Names.
    Names(NamePattern),
    /// An address or a network.
    Network(IpNet),
    /// `localhost`: services of the host itself.
    HostService,
}

/// Hosts and their ports, as a rule has them: `*.example.com:443`, `10.0.0.0/8`, `[2001:db8::1]:443`, `localhost:5432`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resource {
    hosts: HostPattern,
    ports: Ports,
}

impl Resource {
    /// A resource made of its parts.
    #[must_use]
    pub fn new(hosts: HostPattern, ports: Ports) -> Self {
        Self { hosts, ports }
    }

    /// The hosts.
    #[must_use]
    pub fn hosts(&self) -> &HostPattern {
        &self.hosts
    }

    /// The ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Reads one resource.
    ///
    /// # Errors
    /// With the column of what does not fit and what was expected.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        if text.is_empty() {
            return Err(SyntaxError::new(text, 0, "expected a host, found nothing"));
        }
        if text.len() > LONGEST {
            return Err(SyntaxError::new(text, LONGEST, format!("a resource has at most {LONGEST} bytes")));
        }
        if let Some((at, c)) = text.chars().enumerate().find(|(_, c)| c.is_control() || c.is_whitespace()) {
            return Err(SyntaxError::new(text, at, format!("{} cannot stand in a host", quoted(c))));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            let at = scheme.chars().count();
            return Err(SyntaxError::new(
                text,
                at,
                format!("a rule takes a host, no URL; leave out '{scheme}://'"),
            ));
        }
        let (host, ports, offset) = split_port(text)?;
        let hosts = parse_host(host).map_err(|error| error.within(text, offset))?;
        let ports = match ports {
            Some((at, ports)) => Ports::parse(ports).map_err(|error| error.within(text, at))?,
            None if hosts == HostPattern::HostService => {
                return Err(SyntaxError::new(
                    text,
                    text.chars().count(),
                    "a service of the host needs its port; expected ':' and a port, or ':*' for all",
                ));
            }
            None => Ports::ALL,
        };
        Ok(Self { hosts, ports })
    }

    /// Reads a comma-separated list; blanks around commas are passed over.
    ///
    /// # Errors
    /// With the column in the whole list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, SyntaxError> {
        let mut offset = 0;
        let mut list = Vec::new();
        for piece in text.split(',') {
            let blank = piece.chars().take_while(|c| *c == ' ').count();
            list.push(
                Self::parse(piece.trim_matches(' ')).map_err(|error| error.within(text, offset + blank))?,
            );
            offset += piece.chars().count() + 1;
        }
        Ok(list)
    }
}

/// The text of the host, the text of the ports with its offset, the host's offset.
type Parts<'a> = (&'a str, Option<(usize, &'a str)>, usize);

/// Parts a resource into host and ports.
fn split_port(text: &str) -> Result<Parts<'_>, SyntaxError> {
    // A bracket is an IPv6 address's when there is a colon in it, else a set of characters.
    if let Some(rest) = text.strip_prefix('[')
        && let Some((inside, after)) = rest.split_once(']')
        && inside.contains(':')
    {
        let end = inside.chars().count() + 2;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((inside, Some((end + 1, ports)), 1)),
            None if after.is_empty() => Ok((inside, None, 1)),
            None => Err(SyntaxError::new(text, end, "expected ':' and a port after ']'")),
        };
    }
    match text.match_indices(':').map(|(at, _)| at).collect::<Vec<_>>().as_slice() {
        [] => Ok((text, None, 0)),
        [colon] => match (text.get(..*colon), text.get(colon + 1..)) {
            (Some(""), _) => Err(SyntaxError::new(text, 0, "expected a host before ':'")),
            (Some(host), Some(ports)) => Ok((host, Some((column_of(text, *colon) + 1, ports)), 0)),
            _ => Ok((text, None, 0)),
        },
        [_, second, ..] => {
            let address = text.split('/').next().unwrap_or_default();
            let address = address.split('%').next().unwrap_or_default();
            if text.contains("::") || address.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'))
            {
                return Ok((text, None, 0));
            }
            let at = column_of(text, *second);
            Err(SyntaxError::new(text, at, "a second ':'; expected one port, or an IPv6 address in brackets"))
        }
    }
}

fn parse_host(text: &str) -> Result<HostPattern, SyntaxError> {
    if text == "**" {
        return Ok(HostPattern::Any);
    }
    if let Some((address, length)) = text.split_once('/') {
        return parse_network(text, address, length).map(HostPattern::Network);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(HostPattern::Network(IpNet::from(canonical_address(address))));
    }
    if text.contains(':') {
        return Err(not_an_address(text));
    }
    let pattern = NamePattern::parse(text)?;
    Ok(match Name::parse(text) {
        Ok(name) if name.is_host_service() => HostPattern::HostService,
        _ => HostPattern::Names(pattern),
    })
}

fn not_an_address(text: &str) -> SyntaxError {
    if let Some(zone) = text.find('%') {
        return SyntaxError::new(text, column_of(text, zone), "an address in a rule has no zone");
    }
    let at = text.chars().position(|c| !c.is_ascii_hexdigit() && c != ':' && c != '.').unwrap_or_default();
    SyntaxError::new(text, at, "expected an IPv6 address such as 2001:db8::1")
}

fn parse_network(text: &str, address: &str, length: &str) -> Result<IpNet, SyntaxError> {
    let slash = address.chars().count();
    let Ok(ip) = address.parse::<IpAddr>() else {
        if address.contains(':') {
            return Err(not_an_address(address).within(text, 0));
        }
        return Err(SyntaxError::new(
            text,
            slash,
            "only an address is followed by '/' and a prefix length; a path is given with --path",
        ));
    };
    let most: u8 = if ip.is_ipv4() { 32 } else { 128 };
    let expected = format!("expected a prefix length from 0 to {most}");
    let digits = !length.is_empty() && length.len() <= 3 && length.bytes().all(|b| b.is_ascii_digit());
    let prefix = match length.parse::<u8>() {
        Ok(prefix) if digits && prefix <= most && (length == "0" || !length.starts_with('0')) => prefix,
        _ => {
            let wrong = length.chars().position(|c| !c.is_ascii_digit()).unwrap_or_default();
            return Err(SyntaxError::new(text, slash + 1 + wrong, expected));
        }
    };
    let network = IpNet::new(ip, prefix).map_err(|_| SyntaxError::new(text, slash + 1, expected))?;
    if network.trunc() != network {
        return Err(SyntaxError::new(
            text,
            0,
            format!("{ip} has bits beyond the first {prefix}; expected {}", network.trunc()),
        ));
    }
    Ok(unmapped(network))
}

/// A network of IPv4-mapped addresses is an IPv4 network.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => IpNet::new(v4.into(), prefix).unwrap_or(network),
        _ => network,
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.first, self.last) {
            _ if *self == Self::ALL => f.write_str("*"),
            (first, last) if first == last => write!(f, "{first}"),
            (first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("**"),
            HostPattern::Names(pattern) => write!(f, "{pattern}"),
            HostPattern::Network(network) if network.prefix_len() == network.max_prefix_len() => {
                write!(f, "{}", network.addr())
            }
            HostPattern::Network(network) => write!(f, "{network}"),
            HostPattern::HostService => f.write_str("localhost"),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.hosts, self.ports) {
            (HostPattern::HostService, ports) => write!(f, "localhost:{ports}"),
            (hosts, Ports::ALL) => write!(f, "{hosts}"),
            (HostPattern::Network(IpNet::V6(_)), ports) => write!(f, "[{}]:{ports}", self.hosts),
            (hosts, ports) => write!(f, "{hosts}:{ports}"),
        }
    }
}

impl TryFrom<String> for Resource {
    type Error = SyntaxError;
    fn try_from(text: String) -> Result<Self, SyntaxError> {
        Self::parse(&text)
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> Self {
        resource.to_string()
    }
}

impl std::str::FromStr for Resource {
    type Err = SyntaxError;
    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_and_printed_in_one_way() {
        for (text, printed) in [
            ("example.com", "example.com"),
            ("Example.com.:443", "example.com:443"),
            ("example.com:*", "example.com"),
            ("example.com:1-65535", "example.com"),
            ("example.com:8000-8100", "example.com:8000-8100"),
            ("example.com:80-80", "example.com:80"),
            ("*.example.com:22", "*.example.com:22"),
            ("**.example.com", "**.example.com"),
            ("**", "**"),
            ("**:443", "**:443"),
            ("api?.example.com", "api?.example.com"),
            ("api[12].example.com", "api[12].example.com"),
            ("[ab]pi.example.com:1", "[ab]pi.example.com:1"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.0/8:5432", "10.0.0.0/8:5432"),
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32:22", "192.0.2.7:22"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::ffff:10.0.0.0/104]:80", "10.0.0.0/8:80"),
            ("localhost:5432", "localhost:5432"),
            ("LOCALHOST.:*", "localhost:*"),
            ("host.docker.internal:5432-5433", "localhost:5432-5433"),
            ("host.viv.internal:80", "localhost:80"),
            ("bücher.example:443", "xn--bcher-kva.example:443"),
        ] {
            let resource = Resource::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(resource.to_string(), printed);
            assert_eq!(Resource::parse(printed), Ok(resource));
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_column() {
        for (text, column, part) in [
            ("", 1, "found nothing"),
            (" example.com", 1, "' '"),
            ("example.com\t", 12, "'\\t'"),
            ("exa\u{7}mple.com", 4, "'\\u{7}'"),
            ("https://example.com", 6, "leave out 'https://'"),
            ("example.com/path", 12, "--path"),
            ("example.com:", 13, "a port from 1 to 65535"),
            ("example.com:http", 13, "found 'h'"),
            ("example.com:44x", 15, "found 'x'"),
            ("example.com:0", 13, "found 0"),
            ("example.com:65536", 13, "65536"),
            ("example.com:080", 13, "080"),
            ("example.com:+80", 13, "'+'"),
            ("example.com:90-80", 16, "ends before it starts"),
            ("example.com:80-", 16, "a port from 1"),
            ("example.com:80:90", 15, "second ':'"),
            (":443", 1, "a host before"),
            ("*", 1, "lone '*'"),
            ("localhost", 10, "needs its port"),
            ("host.docker.internal", 21, "needs its port"),
            ("10.0.0.0/33", 10, "0 to 32"),
            ("10.0.0.0/", 10, "0 to 32"),
            ("10.0.0.0/x", 10, "0 to 32"),
            ("10.0.0.0/08", 10, "0 to 32"),
            ("10.1.2.3/8", 1, "expected 10.0.0.0/8"),
            ("2001:db8::1/32", 1, "expected 2001:db8::/32"),
            ("2001:db8::/129", 12, "0 to 128"),
            ("fe80::1%eth0", 8, "no zone"),
            ("[fe80::1%eth0]:80", 9, "no zone"),
            ("2001:db8::g1", 11, "IPv6 address"),
            ("[2001:db8::1]443", 14, "':' and a port"),
            ("[2001:db8::1", 1, "IPv6 address"),
            ("1:2:3", 1, "IPv6 address"),
            ("192.168.1.*", 11, "192.168.1.0/24"),
            ("256.1.1.1", 9, "no address"),
            ("0x7f000001", 1, "127.0.0.1"),
        ] {
            let error = Resource::parse(text).expect_err(text);
            assert!(error.to_string().contains(part), "{text:?}: {error}");
            assert_eq!(error.column(), column, "{text:?}: {error}");
        }
    }

    #[test]
    fn lists_count_columns_from_their_own_start() {
        let list = Resource::parse_list("example.com, 10.0.0.0/8:22").unwrap();
        assert_eq!(
            list.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["example.com", "10.0.0.0/8:22"]
        );
        assert_eq!(Resource::parse_list("a.example, b.example:x").unwrap_err().column(), 22);
        assert_eq!(Resource::parse_list("a.example,").unwrap_err().column(), 11);
    }
}
