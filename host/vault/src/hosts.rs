//! Which hosts a secret may go to. Names are compared in this module and nowhere else: in lower case, without the root's dot
//! (CVE-2026-105570 of sbx was a comparison that minded the case).

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of a pattern that names none.
pub const HTTPS: u16 = 443;

/// The longest name, in bytes (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;

/// Hosts: `api.example.com`, `*.example.com` (one label more), `**.example.com` (any number of labels more), an address; each with `:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern {
    name: String,
    depth: Depth,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Depth {
    Exact,
    OneMore,
    AnyMore,
}

/// What is wrong with a host pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is no host that a secret can be bound to: {why} (column {column})", text.escape_debug())]
pub struct HostError {
    /// The pattern as it was given.
    pub text: String,
    /// Where, from 1.
    pub column: usize,
    /// The rule that it breaks.
    pub why: Cow<'static, str>,
}

/// A host in the one form in which hosts are compared; `None` for what is no host. The user's own machine is one host by any of its names.
pub fn normalized(host: &str) -> Option<Cow<'_, str>> {
    let host = written(host)?;
    Some(if policy::HOST_SERVICES.contains(&&*host) { Cow::Borrowed(policy::HOST_SERVICE) } else { host })
}

/// A host in lower case and without the root's dot.
fn written(host: &str) -> Option<Cow<'_, str>> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(Cow::Owned(address.to_canonical().to_string()));
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(is_name_byte) {
        return None;
    }
    let labels_are_whole = name.split('.').all(|label| !label.is_empty() && label.len() <= 63);
    labels_are_whole.then(|| {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        }
    })
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

impl HostPattern {
    /// Whether a host and port are among those meant. What is no host never is.
    pub fn matches(&self, host: &str, port: u16) -> bool {
        if port != self.port {
            return false;
        }
        let Some(host) = normalized(host) else { return false };
        match self.depth {
            Depth::Exact => *host == *self.name,
            Depth::OneMore => self.labels_before(&host).is_some_and(|before| !before.contains('.')),
            Depth::AnyMore => self.labels_before(&host).is_some(),
        }
    }

    /// The name, or the domain behind the stars, in the form in which hosts are compared.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What stands before `.name`, if something does.
    fn labels_before<'a>(&self, host: &'a str) -> Option<&'a str> {
        let before = host.strip_suffix(self.name.as_str())?.strip_suffix('.')?;
        (!before.is_empty()).then_some(before)
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let fail = |column: usize, why: &'static str| HostError {
            text: text.to_owned(),
            column,
            why: Cow::Borrowed(why),
        };
        if let Some((_, rest)) = text.split_once("://") {
            let why = match of_url(rest) {
                Some(host) => format!("a host is wanted, not a URL; {host} was probably meant"),
                None => "a host is wanted, not a URL".to_owned(),
            };
            return Err(HostError { text: text.to_owned(), column: 1, why: Cow::Owned(why) });
        }
        let (depth, rest, skipped) = if let Some(rest) = text.strip_prefix("**.") {
            (Depth::AnyMore, rest, 3)
        } else if let Some(rest) = text.strip_prefix("*.") {
            (Depth::OneMore, rest, 2)
        } else {
            (Depth::Exact, text, 0)
        };
        let (host, port) = split_port(rest).map_err(|(at, why)| fail(skipped + at + 1, why))?;
        let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
        if let Some(at) = host.char_indices().position(|(_, c)| !(c.is_ascii() && is_name_byte(c as u8)))
            && !is_address
        {
            let why = match host.chars().nth(at) {
                Some('*') => "a star can only stand for the first labels, as in *.example.com",
                Some('/') => "a path is given by itself, with --path",
                Some(c) if !c.is_ascii() => "other letters than ASCII are written in punycode (xn--…)",
                _ => "this character cannot be in a host's name",
            };
            return Err(fail(skipped + at + 1, why));
        }
        // What is below one of the names of the user's own machine is below that one only.
        let one_form = if depth == Depth::Exact { normalized } else { written };
        let name = one_form(host).ok_or_else(|| {
            fail(skipped + 1, "it is no name: labels of 1 to 63 characters with dots between")
        })?;
        if depth != Depth::Exact {
            if is_address {
                return Err(fail(1, "an address has no subdomains"));
            }
            if !name.contains('.') {
                return Err(fail(1, "that would be everybody's hosts; name a domain of at least two labels"));
            }
        }
        Ok(Self { name: name.into_owned(), depth, port })
    }
}

/// The host of a URL, from what stands behind its `://`.
fn of_url(rest: &str) -> Option<HostPattern> {
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?;
    // Without TLS nothing is put in, so HTTP's own port was not meant.
    host.strip_suffix(":80").unwrap_or(host).parse().ok()
}

/// Host and port; on failure the offset in characters and the reason.
fn split_port(text: &str) -> Result<(&str, u16), (usize, &'static str)> {
    if text.parse::<IpAddr>().is_ok() {
        return Ok((text, HTTPS));
    }
    let end_of_host = match text.find(']') {
        Some(at) => at.saturating_add(1),
        None => text.find(':').unwrap_or(text.len()),
    };
    let (host, rest) = text.split_at(end_of_host);
    let column = host.chars().count();
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok((host, HTTPS)),
        None => Err((column, "after an address in brackets only a port can follow")),
        Some(digits) => {
            let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            match digits.parse::<u16>() {
                Ok(port) if port > 0 && all_digits => Ok((host, port)),
                _ => Err((column.saturating_add(1), "a port is a number from 1 to 65535")),
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.depth {
            Depth::Exact => "",
            Depth::OneMore => "*.",
            Depth::AnyMore => "**.",
        })?;
        let is_v6 = self.name.contains(':');
        match (is_v6, self.port) {
            (_, HTTPS) => f.write_str(&self.name),
            (true, port) => write!(f, "[{}]:{port}", self.name),
            (false, port) => write!(f, "{}:{port}", self.name),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str, port: u16) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(host, port)
    }

    #[test]
    fn the_users_own_machine_is_one_host_by_any_of_its_names() {
        for name in policy::HOST_SERVICES {
            for asked in policy::HOST_SERVICES {
                assert!(matches(&format!("{name}:8443"), asked, 8443), "{name} {asked}");
            }
            assert!(!matches(name, "host.example.com", 443) && !matches("host.example.com", name, 443));
            assert!(!matches(name, &format!("a.{name}"), 443), "{name}");
        }
        assert!(matches("HOST.viv.internal:8443", "Host.Docker.Internal.", 8443));
        assert!(!matches("localhost.example.com", "host.viv.internal", 443));
        assert!(matches("*.host.docker.internal", "a.host.docker.internal", 443));
        assert!(!matches("*.host.docker.internal", "a.host.viv.internal", 443));
    }

    #[test]
    fn case_and_the_roots_dot_make_no_difference() {
        for host in ["api.github.com", "API.GitHub.COM", "api.github.com.", "Api.github.com."] {
            assert!(matches("Api.GitHub.com", host, 443), "{host}");
            assert!(matches("*.GITHUB.com", host, 443), "{host}");
        }
    }

    #[test]
    fn only_what_is_named_is_meant() {
        for host in [
            "github.com",
            "xapi.github.com",
            "api.github.com.evil.example",
            "api.github.com..",
            "api.github.com:443",
            "api.github.com/",
            "api.github.com\0",
            "api.github.com ",
            "a@api.github.com",
            "",
            ".",
        ] {
            assert!(!matches("api.github.com", host, 443), "{host:?}");
        }
        assert!(!matches("api.github.com", "api.github.com", 8443));
        assert!(matches("api.github.com:8443", "api.github.com", 8443));
    }

    #[test]
    fn stars_stand_for_labels_and_not_for_the_domain_itself() {
        assert!(matches("*.x.example", "a.x.example", 443));
        assert!(!matches("*.x.example", "a.b.x.example", 443));
        assert!(matches("**.x.example", "a.b.x.example", 443));
        for pattern in ["*.x.example", "**.x.example"] {
            assert!(!matches(pattern, "x.example", 443));
            assert!(!matches(pattern, ".x.example", 443));
            assert!(!matches(pattern, "ax.example", 443));
        }
    }

    #[test]
    fn addresses_have_many_spellings() {
        assert!(matches("[2001:db8::1]:8443", "[2001:DB8:0::1]", 8443));
        assert!(matches("192.0.2.1", "::ffff:192.0.2.1", 443));
        assert!(!matches("192.0.2.1", "192.0.2.10", 443));
    }

    #[test]
    fn what_is_malformed_is_told_with_its_column() {
        for (text, column) in [
            ("", 1),
            ("*", 1),
            ("**", 1),
            ("*.com", 1),
            ("a.*.example", 3),
            ("a b.example", 2),
            ("a.example:0", 11),
            ("a.example:65536", 11),
            ("a.example:+1", 11),
            ("a.example/x", 10),
            ("*.b\u{fc}cher.example", 4),
            ("a\u{7}.example", 2),
            ("[::1]x", 6),
            ("*.192.0.2.1", 1),
        ] {
            let error = text.parse::<HostPattern>().unwrap_err();
            assert_eq!(error.column, column, "{error}");
            assert!(!error.to_string().chars().any(char::is_control));
        }
    }

    #[test]
    fn for_a_url_the_host_is_named_that_was_meant() {
        for (url, host) in [
            ("http://api.example.com", "api.example.com"),
            ("https://API.example.com/v1?x=1", "api.example.com"),
            ("https://u:p@api.example.com:8443/", "api.example.com:8443"),
            ("http://api.example.com:80/", "api.example.com"),
            ("https://[2001:db8::1]:8443/", "[2001:db8::1]:8443"),
            ("https://*.example.com/", "*.example.com"),
            ("https://localhost:8443", "host.viv.internal:8443"),
        ] {
            let error = url.parse::<HostPattern>().unwrap_err().to_string();
            let wanted = format!("a host is wanted, not a URL; {host} was probably meant (column 1)");
            assert!(error.ends_with(&wanted), "{error}");
        }
        for url in ["https://", "://x y", "https:///v1", "https://a://b"] {
            let error = url.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.contains("not a URL"), "{error}");
        }
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read() {
        for text in ["a.example", "*.a.example:8443", "**.a.example", "[2001:db8::1]:80", "192.0.2.1:81"] {
            let pattern: HostPattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), text);
            assert_eq!(serde_json::from_str::<HostPattern>(&format!("\"{text}\"")).unwrap(), pattern);
        }
        let bare: HostPattern = "2001:db8::1".parse().unwrap();
        assert_eq!(bare.to_string().parse::<HostPattern>().unwrap(), bare);
    }
}
