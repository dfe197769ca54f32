//! What a person asks with `viv policy check`.

use crate::error::{SyntaxError, column_of, quoted};
use crate::path::CanonicalPath;
use crate::target::{HostKey, Protocol};

/// The port that is meant when none is said.
const USUAL_PORT: u16 = 443;

/// A target, and a request of it if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The host.
    pub host: HostKey,
    /// The port.
    pub port: u16,
    /// The protocol; TCP when parsed.
    pub protocol: Protocol,
    /// Method and path.
    pub request: Option<(String, CanonicalPath)>,
}

impl Question {
    /// Reads `[METHOD] HOST[:PORT][/path]` or a URL: port 443 unless it says another one, `GET` if there is a path alone, `/`
    /// if there is a method alone. IPv6 addresses with a port or path stand in brackets.
    ///
    /// # Errors
    /// With the column of what does not fit.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let (method, rest, offset) = match text.split_once(' ') {
            Some((method, rest)) => {
                let bad = method.chars().enumerate().find(|(_, c)| !c.is_ascii_alphabetic());
                if let Some((at, c)) = bad {
                    let problem =
                        format!("expected a method such as GET before the blank, found {}", quoted(c));
                    return Err(SyntaxError::new(text, at, problem));
                }
                (Some(method), rest, method.chars().count() + 1)
            }
            None => (None, text, 0),
        };
        if method == Some("") {
            return Err(SyntaxError::new(text, 0, "expected a method or a host, found a blank"));
        }
        let (usual, scheme) = match rest {
            url if url.starts_with("https://") => (443, 8),
            url if url.starts_with("http://") => (80, 7),
            _ => (USUAL_PORT, 0),
        };
        let plain = rest.get(scheme..).unwrap_or_default();
        let offset = offset + scheme;
        let end = plain.find(['/', '?']).unwrap_or(plain.len());
        let (authority, path) = plain.split_at_checked(end).unwrap_or((plain, ""));
        let (host, port) = parse_authority(authority).map_err(|error| error.within(text, offset))?;
        let is_url = scheme > 0;
        let Some(port) = port.or((is_url || host != HostKey::HostService).then_some(usual)) else {
            let at = offset + authority.chars().count();
            return Err(SyntaxError::new(
                text,
                at,
                "a service of the host needs its port; expected ':' and a port",
            ));
        };
        let request = if method.is_some() || !path.is_empty() {
            let path = path.split('?').next().unwrap_or_default();
            let at = offset + authority.chars().count();
            let path =
                CanonicalPath::parse(path).map_err(|error| SyntaxError::new(text, at, error.to_string()))?;
            Some((method.unwrap_or("GET").to_ascii_uppercase(), path))
        } else {
            None
        };
        Ok(Self { host, port, protocol: Protocol::Tcp, request })
    }
}

fn parse_authority(text: &str) -> Result<(HostKey, Option<u16>), SyntaxError> {
    if let Some(at) = text.find('@') {
        return Err(SyntaxError::new(
            text,
            column_of(text, at),
            "expected a host, found a user name before '@'",
        ));
    }
    let (host, port, by) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None, 1),
        Some((host, after)) => match after.strip_prefix(':') {
            Some(port) => (host, Some((host.chars().count() + 3, port)), 1),
            None => {
                return Err(SyntaxError::new(
                    text,
                    host.chars().count() + 2,
                    "expected ':' and a port after ']'",
                ));
            }
        },
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some((host.chars().count() + 1, port)), 0),
            _ => (text, None, 0),
        },
    };
    if by == 1 && !host.contains(':') {
        return Err(SyntaxError::new(text, by, "expected an IPv6 address between '[' and ']'"));
    }
    if let Some(at) = host.chars().position(|c| matches!(c, '*' | '?' | '[')) {
        return Err(SyntaxError::new(
            text,
            at,
            "a question is about one host; expected a name without wildcards",
        ));
    }
    let host = HostKey::parse(host).map_err(|error| error.within(text, by))?;
    let port = match port {
        None => None,
        Some((at, digits)) => match digits.parse::<u16>() {
            Ok(port) if port != 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Some(port),
            _ => return Err(SyntaxError::new(text, at, "expected a port from 1 to 65535")),
        },
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read() {
        for (text, host, port, request) in [
            ("example.com", "example.com", 443, None),
            ("Example.com.:22", "example.com", 22, None),
            ("example.com/a/b?c=d", "example.com", 443, Some(("GET", "/a/b"))),
            ("POST example.com/a", "example.com", 443, Some(("POST", "/a"))),
            ("post example.com", "example.com", 443, Some(("POST", "/"))),
            ("http://example.com/x", "example.com", 80, Some(("GET", "/x"))),
            ("https://example.com", "example.com", 443, None),
            ("https://example.com:8443?x", "example.com", 8443, Some(("GET", "/"))),
            ("10.0.0.1", "10.0.0.1", 443, None),
            ("::ffff:10.0.0.1", "10.0.0.1", 443, None),
            ("2001:db8::1", "2001:db8::1", 443, None),
            ("[2001:db8::1]:80/a", "2001:db8::1", 80, Some(("GET", "/a"))),
            ("localhost:5432", "localhost", 5432, None),
            ("host.docker.internal:5432", "localhost", 5432, None),
            ("http://localhost/", "localhost", 80, Some(("GET", "/"))),
        ] {
            let question = Question::parse(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((question.host.to_string().as_str(), question.port), (host, port), "{text}");
            let found = question.request.map(|(method, path)| (method, path.to_string()));
            assert_eq!(
                found.as_ref().map(|(method, path)| (method.as_str(), path.as_str())),
                request,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_question_is_refused_at_its_column() {
        for (text, column) in [
            ("", 1),
            (" example.com", 1),
            ("G3T example.com", 2),
            ("GET exa mple.com", 8),
            ("GET *.example.com", 5),
            ("example.com:", 13),
            ("example.com:0", 13),
            ("example.com:+1", 13),
            ("https://user@example.com", 13),
            ("[2001:db8::1]80", 14),
            ("[example.com]", 2),
            ("localhost", 10),
            ("127.1", 5),
            ("example.com/a/../b", 12),
            ("ftp://example.com", 5),
        ] {
            let error = Question::parse(text).expect_err(text);
            assert_eq!(error.column(), column, "{text:?}: {error}");
        }
    }
}
