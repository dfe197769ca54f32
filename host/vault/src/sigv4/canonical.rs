//! The canonical request: the one text that both sides hash.

use http::header::HOST;
use http::request::Parts;
use percent_encoding::{AsciiSet, percent_decode_str, percent_encode, utf8_percent_encode};

use super::UNSTABLE;
use crate::mask::UNRESERVED;
use crate::refusal::Refusal;

/// As in names, but slashes stay.
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// How a path is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathRules {
    /// Empty and dot segments are taken out.
    pub(crate) normalizes: bool,
    /// What is encoded already is encoded once more.
    pub(crate) encodes_twice: bool,
}

impl PathRules {
    /// S3 has names with anything in them and takes paths as they are; all others normalize.
    pub(crate) fn of(service: &str) -> Self {
        let is_s3 = matches!(service, "s3" | "s3-object-lambda" | "s3-outposts" | "s3express");
        Self { normalizes: !is_s3, encodes_twice: !is_s3 }
    }
}

/// The text and the list of headers that are in it.
pub(crate) struct CanonicalRequest {
    pub(crate) text: String,
    pub(crate) signed_headers: String,
}

impl CanonicalRequest {
    /// Of a head as it is sent; `query` instead of the head's own where that is yet to be set.
    pub(crate) fn new(
        head: &Parts,
        query: Option<&str>,
        listed: &[String],
        hash: &str,
        rules: PathRules,
    ) -> Result<Self, Refusal> {
        let names = names(head, listed);
        let mut headers = String::new();
        for name in &names {
            let values: Result<Vec<String>, Refusal> =
                head.headers.get_all(name.as_str()).iter().map(|value| folded(value.as_bytes())).collect();
            headers.push_str(name);
            headers.push(':');
            headers.push_str(&values?.join(","));
            headers.push('\n');
        }
        let signed_headers = names.join(";");
        let query = query.unwrap_or_else(|| head.uri.query().unwrap_or_default());
        let text = format!(
            "{}\n{}\n{}\n{headers}\n{signed_headers}\n{hash}",
            head.method,
            path(head.uri.path(), rules),
            canonical_query(query),
        );
        Ok(Self { text, signed_headers })
    }
}

/// The names that are signed: those the client listed as far as they are there and arrive as they are sent, the host, and all of AWS's own.
pub(crate) fn names(head: &Parts, listed: &[String]) -> Vec<String> {
    let is_ours = |name: &str| {
        name == HOST.as_str() || name.starts_with("x-amz-") || listed.iter().any(|known| known == name)
    };
    let mut names: Vec<String> = head
        .headers
        .keys()
        .map(|name| name.as_str())
        .filter(|name| is_ours(name) && !UNSTABLE.contains(name))
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names
}

/// A value without spaces around it, and with one for several inside.
fn folded(value: &[u8]) -> Result<String, Refusal> {
    let text = std::str::from_utf8(value).map_err(|_| Refusal::malformed("a signed header is not UTF-8"))?;
    Ok(text.split([' ', '\t', '\n', '\r']).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "))
}

pub(crate) fn path(raw: &str, rules: PathRules) -> String {
    let normal = if rules.normalizes { without_dots(raw) } else { raw.to_owned() };
    let normal = if normal.is_empty() { "/" } else { &normal };
    if rules.encodes_twice {
        // What is encoded on the wire is encoded once more, percent signs and all.
        utf8_percent_encode(normal, PATH).to_string()
    } else {
        percent_encode(&percent_decode_str(normal).collect::<Vec<u8>>(), PATH).to_string()
    }
}

/// RFC 3986, section 5.2.4, and without empty segments.
fn without_dots(raw: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut ends_in_slash = true;
    for segment in raw.split('/') {
        ends_in_slash = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    let slash = if ends_in_slash && !kept.is_empty() { "/" } else { "" };
    format!("/{}{slash}", kept.join("/"))
}

pub(crate) fn canonical_query(raw: &str) -> String {
    let encoded = |text: &str| {
        percent_encode(&percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>(), UNRESERVED)
            .to_string()
    };
    let mut fields: Vec<(String, String)> = raw
        .split('&')
        .filter(|field| !field.is_empty())
        .map(|field| {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            (encoded(name), encoded(value))
        })
        .collect();
    fields.sort_unstable();
    let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    fields.join("&")
}
