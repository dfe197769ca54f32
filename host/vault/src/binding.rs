//! What a secret is bound to: hosts, requests and the places in them where it may stand.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hosts::HostPattern;

/// Where a secret may go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The hosts.
    pub hosts: Vec<HostPattern>,
    /// The methods, in upper case; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The paths; none means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathPattern>,
    /// Where it stands in a request.
    pub places: Vec<Place>,
    /// Whether it is put in without a placeholder: into each request that the rest of the binding means.
    #[serde(default)]
    pub inject: bool,
    /// Whether other credentials, which the guest has of its own, may go to these hosts.
    #[serde(default)]
    pub allow_other: bool,
}

impl Binding {
    /// Whether the host is among those meant.
    pub fn has_host(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host, port))
    }

    /// Whether the request is among those meant. A path in a form that servers read differently never is where paths are limited.
    pub fn has_request(&self, method: &str, path: &str) -> bool {
        let has_method = self.methods.is_empty() || self.methods.iter().any(|known| known == method);
        let has_path = self.paths.is_empty()
            || (is_plain(path) && self.paths.iter().any(|pattern| pattern.matches(path)));
        has_method && has_path
    }
}

/// Whether all servers take a path for the same: no empty, `.` or `..` segments, no backslash, semicolon or percent sign. (Servers differ in when
/// they decode; a pattern has no percent sign either.)
fn is_plain(path: &str) -> bool {
    let segments_are_plain = path.strip_prefix('/').is_some_and(|rest| {
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        rest.is_empty() || rest.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
    });
    segments_are_plain && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\%;?#".contains(&byte))
}

/// A path with `*` for a segment or the rest of one, and `**` for any number of segments: `/api/**`, `/repos/*/contents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPattern(String);

/// What is wrong with a path, header, method or place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" {why}", text.escape_debug())]
pub struct BindingError {
    /// The text as it was given.
    pub text: String,
    /// The rest of the sentence.
    pub why: String,
}

impl BindingError {
    fn new(text: &str, why: impl Into<String>) -> Self {
        Self { text: text.to_owned(), why: why.into() }
    }
}

impl PathPattern {
    fn matches(&self, path: &str) -> bool {
        let pattern: Vec<&str> = self.0.split('/').collect();
        let segments: Vec<&str> = path.split('/').collect();
        segments_match(&pattern, &segments)
    }
}

/// Compares segment by segment, by trying again after the last `**`.
fn segments_match(pattern: &[&str], segments: &[&str]) -> bool {
    let (mut p, mut s) = (0usize, 0usize);
    let mut again: Option<(usize, usize)> = None;
    while let Some(segment) = segments.get(s) {
        match pattern.get(p) {
            Some(&"**") => {
                again = Some((p, s));
                p = p.saturating_add(1);
            }
            Some(wanted) if segment_matches(wanted, segment) => {
                p = p.saturating_add(1);
                s = s.saturating_add(1);
            }
            _ => match &mut again {
                Some((star, from)) => {
                    *from = from.saturating_add(1);
                    (p, s) = (star.saturating_add(1), *from);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|wanted| *wanted == "**")
}

fn segment_matches(wanted: &str, segment: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(beginning) => segment.starts_with(beginning),
        None => wanted == segment,
    }
}

impl FromStr for PathPattern {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        if !text.starts_with('/') {
            return Err(BindingError::new(text, "is no path: it does not begin with a slash"));
        }
        if !is_plain(text) {
            return Err(BindingError::new(
                text,
                "is no path to compare with: it has empty or dot segments, a query, or characters that servers read differently",
            ));
        }
        for segment in text.split('/') {
            let stars = segment.matches('*').count();
            if stars > 0 && segment != "**" && !(stars == 1 && segment.ends_with('*')) {
                return Err(BindingError::new(text, "has a star elsewhere than at the end of a segment"));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PathPattern {
    type Error = BindingError;

    fn try_from(text: String) -> Result<Self, BindingError> {
        text.parse()
    }
}

impl From<PathPattern> for String {
    fn from(pattern: PathPattern) -> String {
        pattern.0
    }
}

/// A place in a request. As text: `header:x-api-key`, `header:authorization=Bearer {value}`, `headers`, `basic`, `basic=USER`, `query:key`, `sigv4`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// A header: the placeholder alone or behind a scheme (`Bearer`, `token`, …); with a format the whole value is written anew.
    Header {
        /// Its name, in lower case.
        name: String,
        /// The value with `{value}` in it.
        format: Option<String>,
    },
    /// Any header, anywhere in its value.
    AnyHeader,
    /// HTTP Basic authentication, as the name or the password.
    Basic {
        /// The user to put in with it, where it is put in without a placeholder.
        user: Option<String>,
    },
    /// A parameter of the query.
    Query {
        /// Its name.
        name: String,
    },
    /// AWS Signature Version 4: the request is signed anew.
    SigV4,
}

/// A header's name in lower case, if it may carry a credential.
fn header_name(name: &str) -> Result<String, BindingError> {
    let parsed = http::HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| BindingError::new(name, "cannot be the name of a header"))?;
    // These say how the message is read; a secret in them would change that.
    const FRAMING: [&str; 9] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "keep-alive",
    ];
    if FRAMING.contains(&parsed.as_str()) {
        return Err(BindingError::new(name, "is a header that carries no credential"));
    }
    Ok(parsed.as_str().to_owned())
}

impl FromStr for Place {
    type Err = BindingError;

    fn from_str(text: &str) -> Result<Self, BindingError> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "header" => {
                let (name, format) = match rest.split_once('=') {
                    Some((name, format)) => (name, Some(format)),
                    None => (rest, None),
                };
                if let Some(format) = format {
                    let fits = format.matches("{value}").count() == 1
                        && format.bytes().all(|byte| (0x20..0x7f).contains(&byte));
                    if !fits {
                        return Err(BindingError::new(
                            format,
                            "is no format: {value} must stand in it once, in printable ASCII",
                        ));
                    }
                }
                Ok(Self::Header {
                    name: header_name(name.trim())?,
                    format: format.map(|format| format.trim().to_owned()),
                })
            }
            "query"
                if !rest.is_empty()
                    && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#+%".contains(&byte)) =>
            {
                Ok(Self::Query { name: rest.to_owned() })
            }
            "query" => Err(BindingError::new(rest, "cannot be the name of a parameter")),
            _ => match text {
                "headers" => Ok(Self::AnyHeader),
                "sigv4" => Ok(Self::SigV4),
                "basic" => Ok(Self::Basic { user: None }),
                _ => match text.strip_prefix("basic=") {
                    Some(user)
                        if !user.is_empty() && !user.contains(':') && !user.contains(char::is_control) =>
                    {
                        Ok(Self::Basic { user: Some(user.to_owned()) })
                    }
                    Some(user) => Err(BindingError::new(user, "cannot be the user of Basic authentication")),
                    None => Err(BindingError::new(
                        text,
                        "is no place: there are header:NAME, headers, basic, query:NAME and sigv4",
                    )),
                },
            },
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header { name, format: None } => write!(f, "header:{name}"),
            Self::Header { name, format: Some(format) } => write!(f, "header:{name}={format}"),
            Self::AnyHeader => f.write_str("headers"),
            Self::Basic { user: None } => f.write_str("basic"),
            Self::Basic { user: Some(user) } => write!(f, "basic={user}"),
            Self::Query { name } => write!(f, "query:{name}"),
            Self::SigV4 => f.write_str("sigv4"),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = BindingError;

    fn try_from(text: String) -> Result<Self, BindingError> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

/// A method in upper case.
pub fn method(text: &str) -> Result<String, BindingError> {
    const KNOWN: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
    let upper = text.to_ascii_uppercase();
    if KNOWN.contains(&upper.as_str()) {
        Ok(upper)
    } else {
        Err(BindingError::new(text, format!("is no HTTP method; there are {}", KNOWN.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pattern: &str, path: &str) -> bool {
        let binding = Binding { paths: vec![pattern.parse().unwrap()], ..Binding::default() };
        binding.has_request("GET", path)
    }

    #[test]
    fn paths_are_compared_by_segments() {
        assert!(path("/api/**", "/api/v1/x") && path("/api/**", "/api/") && path("/api/**", "/api"));
        assert!(!path("/api/**", "/apix") && !path("/api/**", "/"));
        assert!(
            path("/repos/*/contents", "/repos/a/contents")
                && !path("/repos/*/contents", "/repos/a/b/contents")
        );
        assert!(path("/**/info/*", "/a/b/info/refs") && !path("/**/info/*", "/a/b/info"));
        assert!(path("/v1/mess*", "/v1/messages") && !path("/v1/mess*", "/v1/mes"));
        assert!(path("/", "/") && !path("/", "/x"));
        assert!(path("/**/a/**/b", "/x/a/a/y/b") && !path("/**/a/**/b", "/x/b"));
    }

    #[test]
    fn paths_that_servers_read_differently_are_never_meant() {
        for odd in [
            "/api/../x",
            "/api/./x",
            "/api//x",
            "/api/%2e%2e/x",
            "/api/a%2Fb",
            "/api/a\\b",
            "/api/x;y",
            "api/x",
            "/api/\u{e4}",
            "",
            "*",
        ] {
            assert!(!path("/api/**", odd), "{odd:?}");
        }
        let all = Binding::default();
        assert!(all.has_request("GET", "/api//x"), "without a limit there is nothing to get around");
    }

    #[test]
    fn methods_limit_too() {
        let binding = Binding { methods: vec!["GET".into()], ..Binding::default() };
        assert!(
            binding.has_request("GET", "/x")
                && !binding.has_request("POST", "/x")
                && !binding.has_request("get", "/x")
        );
        assert_eq!(method("post").unwrap(), "POST");
        assert!(method("CONNECT").is_err() && method("").is_err());
    }

    #[test]
    fn places_are_written_as_they_are_read() {
        for text in [
            "header:x-api-key",
            "header:authorization=Bearer {value}",
            "headers",
            "basic",
            "basic=ci",
            "query:key",
            "sigv4",
        ] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-Key".parse::<Place>().unwrap().to_string(), "header:x-key");
        for text in [
            "header:",
            "header:a b",
            "header:host",
            "header:x=Bearer",
            "header:x={value}{value}",
            "query:",
            "query:a=b",
            "basic=",
            "basic=a:b",
            "cookie",
            "header:x={value}\r\n",
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_path_is_told() {
        for text in ["", "api", "/a//b", "/a/../b", "/a?x=1", "/a*b", "/***", "/a/%41"] {
            assert!(text.parse::<PathPattern>().is_err(), "{text}");
        }
    }
}
