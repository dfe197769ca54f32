//! Host names, in the one form in which they are compared.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Serialize};

use crate::error::{SyntaxError, column_of, quoted};

/// Longest name, in characters of its ASCII form (RFC 1035, without the root's dot).
const LONGEST_NAME: usize = 253;
/// Longest label (RFC 1035 §2.3.4).
const LONGEST_LABEL: usize = 63;
/// The one name by which flows to services of the user's own machine are called, whichever of its names a guest has asked for.
pub const HOST_SERVICE: &str = "host.viv.internal";
/// All names of the user's own machine, for rules, secrets and guests. They are one resource, `localhost` in a rule.
pub const HOST_SERVICES: [&str; 4] =
    ["localhost", HOST_SERVICE, "host.docker.internal", "gateway.viv.internal"];

/// A host name as everything compares it: ASCII (IDNA applied), lower case, without a trailing dot, labels of 1 to 63 of
/// `a-z 0-9 - _`, 253 characters at most.
///
/// The last label is never a number, so a name is never another spelling of an address (`2130706433`, `0x7f.1`). There is no
/// other way from text to a name, so case, dots, Unicode and punycode are settled here and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

impl Name {
    /// Reads a name: any case, Unicode or punycode, one trailing dot or none.
    ///
    /// # Errors
    /// With the column of the first character that cannot stand there.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let ascii = to_ascii(text)?;
        if ascii.len() > LONGEST_NAME {
            return Err(SyntaxError::new(
                text,
                LONGEST_NAME.min(text.chars().count().saturating_sub(1)),
                format!("a host name has at most {LONGEST_NAME} characters, this one {}", ascii.len()),
            ));
        }
        let mut offset = 0;
        for label in ascii.split('.') {
            check_label(label)
                .map_err(|problem| SyntaxError::new(text, offset.min(text.chars().count()), problem))?;
            offset += label.len() + 1;
        }
        if let Some((at, problem)) = like_an_address(&ascii) {
            return Err(SyntaxError::new(text, at, problem));
        }
        Ok(Self(ascii.into()))
    }

    /// The name's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels from left to right.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The name [`HOST_SERVICE`].
    #[must_use]
    pub fn host_service() -> Self {
        Self(HOST_SERVICE.into())
    }

    /// Whether this is one of the names under which the host's own services are known: [`HOST_SERVICES`].
    #[must_use]
    pub fn is_host_service(&self) -> bool {
        HOST_SERVICES.contains(&self.as_str())
    }

    /// Whether both name one host: they are the same, or each is one of the user's own machine.
    #[must_use]
    pub fn is_same_host(&self, other: &Self) -> bool {
        self == other || self.is_host_service() && other.is_host_service()
    }
}

/// The whole text in ASCII and lower case, without a trailing dot, its characters checked.
fn to_ascii(text: &str) -> Result<String, SyntaxError> {
    let body = text.strip_suffix('.').unwrap_or(text);
    if body.is_empty() {
        return Err(SyntaxError::new(text, 0, "expected a host name, found nothing"));
    }
    for (at, c) in body.chars().enumerate() {
        if c.is_ascii() && !is_name_character(c) && c != '.' {
            return Err(SyntaxError::new(
                text,
                at,
                format!(
                    "{} cannot stand in a host name; expected a letter, a digit, '-', '_' or '.'",
                    quoted(c)
                ),
            ));
        }
    }
    let lower = body.to_ascii_lowercase();
    if lower.is_ascii() && !lower.split('.').any(|label| label.starts_with("xn--")) {
        return Ok(lower);
    }
    let suspect = column_of(
        &lower,
        lower.find(|c: char| !c.is_ascii()).or_else(|| lower.find("xn--")).unwrap_or_default(),
    );
    let refuse = || SyntaxError::new(text, suspect, "this is not a valid internationalised name (IDNA)");
    let ascii = Uts46::new()
        .to_ascii(lower.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| refuse())?
        .into_owned();
    // The mapping can bring forth what was not there: a full-width slash becomes a slash, an ideographic stop a dot.
    let ascii = ascii.strip_suffix('.').map(str::to_owned).unwrap_or(ascii);
    if !ascii.chars().all(|c| is_name_character(c) || c == '.')
        || ascii.chars().any(|c| c.is_ascii_uppercase())
    {
        return Err(refuse());
    }
    Ok(ascii)
}

/// Characters of a label. The underscore is no host name's by RFC 952, and in use.
pub(crate) fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

/// What is wrong with an ASCII label.
pub(crate) fn check_label(label: &str) -> Result<(), String> {
    if label.is_empty() {
        return Err(
            "expected a letter or digit, found an empty label (two dots, or a dot at the start)".to_owned()
        );
    }
    if label.len() > LONGEST_LABEL {
        return Err(format!("a label has at most {LONGEST_LABEL} characters, this one {}", label.len()));
    }
    // A name that starts with '-' would be an option in a command line.
    if label.starts_with('-') || label.ends_with('-') {
        return Err("a label neither starts nor ends with '-'".to_owned());
    }
    Ok(())
}

/// Where and why a name would be taken for an address by some: its last label is a number (WHATWG URL §3.5).
pub(crate) fn like_an_address(ascii: &str) -> Option<(usize, String)> {
    let last = ascii.rsplit('.').next().unwrap_or_default();
    let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()));
    if last.is_empty() || !(last.bytes().all(|b| b.is_ascii_digit()) || hexadecimal) {
        return None;
    }
    let at = ascii.len() - last.len();
    let hint =
        lenient_ipv4(ascii).map(|address| format!("; the address would be {address}")).unwrap_or_default();
    Some((
        at,
        format!("a host name does not end in a number, and this is no address in its usual spelling{hint}"),
    ))
}

/// What `inet_aton` makes of a text: decimal, octal and hexadecimal parts, one to four of them.
fn lenient_ipv4(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = text
        .split('.')
        .map(|part| {
            if let Some(hexadecimal) = part.strip_prefix("0x") {
                u64::from_str_radix(if hexadecimal.is_empty() { "0" } else { hexadecimal }, 16).ok()
            } else if part.len() > 1 && part.starts_with('0') {
                u64::from_str_radix(part, 8).ok()
            } else {
                part.parse().ok()
            }
        })
        .collect::<Option<_>>()?;
    let (last, head) = parts.split_last()?;
    if head.len() > 3 || head.iter().any(|part| *part > 255) {
        return None;
    }
    let room = 8 * (4 - u32::try_from(head.len()).ok()?);
    if *last >= 1_u64 << room {
        return None;
    }
    let high = head.iter().fold(0_u64, |sum, part| (sum << 8) | part);
    u32::try_from((high << room) | last).ok().map(Ipv4Addr::from)
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = SyntaxError;
    fn try_from(text: String) -> Result<Self, SyntaxError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0.into()
    }
}

impl std::str::FromStr for Name {
    type Err = SyntaxError;
    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        Self::parse(text)
    }
}

/// IPv4-mapped IPv6 addresses become IPv4; every other address stays as it is.
#[must_use]
pub fn canonical_address(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_are_one_name() {
        for (text, expected) in [
            ("Example.COM", "example.com"),
            ("example.com.", "example.com"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example.", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("faß.example", "xn--fa-hia.example"),
            ("example。com", "example.com"),
            ("ｅｘａｍｐｌｅ.com", "example.com"),
            ("_acme-challenge.example.com", "_acme-challenge.example.com"),
            ("r3---sn-4g5e6.googlevideo.com", "r3---sn-4g5e6.googlevideo.com"),
            ("localhost", "localhost"),
            ("3com.example", "3com.example"),
        ] {
            assert_eq!(Name::parse(text).map(|name| name.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_at_its_column() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = format!("{}example", "a.".repeat(130));
        for (text, column) in [
            ("", 1),
            (".", 1),
            ("..", 1),
            ("a..b", 3),
            (".example.com", 1),
            ("example.com..", 13),
            ("exa mple.com", 4),
            ("example.com\n", 12),
            ("exa\u{0}mple", 4),
            ("a/b", 2),
            ("user@example.com", 5),
            ("-a.example", 1),
            ("a.b-.example", 3),
            ("127.0.0.1", 9),
            ("127.1", 5),
            ("2130706433", 1),
            ("0x7f.0x1", 6),
            ("010.0.0.1", 9),
            ("example.0x", 9),
            ("xn--a.example", 1),
            ("a／b.example", 2),
            (&long_label, 1),
            (&long_name, 254),
        ] {
            let error = Name::parse(text).expect_err(text);
            assert_eq!(error.column(), column, "{text:?}: {error}");
        }
        let hint = Name::parse("2130706433").unwrap_err().to_string();
        assert!(hint.contains("127.0.0.1"), "{hint}");
        assert!(Name::parse("0177.0.0.01").unwrap_err().to_string().contains("127.0.0.1"));
    }

    #[test]
    fn the_users_own_machine_is_one_host_by_each_of_its_names_and_nothing_else_is() {
        let name = |text: &str| Name::parse(text).expect(text);
        assert_eq!(name(HOST_SERVICE), Name::host_service());
        for one in HOST_SERVICES {
            for other in HOST_SERVICES {
                assert!(name(one).is_same_host(&name(&other.to_uppercase())), "{one} {other}");
            }
            for other in ["viv.internal", "a.localhost", "host.docker.internal.example", "xhost.viv.internal"]
            {
                assert!(!name(one).is_same_host(&name(other)), "{one} {other}");
                assert!(!name(other).is_same_host(&name(one)), "{one} {other}");
            }
        }
        assert!(name("a.example").is_same_host(&name("A.example.")));
        assert!(!name("a.example").is_same_host(&name("b.example")));
    }

    #[test]
    fn mapped_addresses_are_what_they_map() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(canonical_address(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
        assert_eq!(canonical_address(ip("::1")), ip("::1"));
        assert_eq!(canonical_address(ip("::10.0.0.1")), ip("::10.0.0.1"));
    }
}
