//! What a signed request claims: which key, for which day, region and service, over which headers.

use http::header::AUTHORIZATION;
use http::request::Parts;
use percent_encoding::percent_decode_str;

use crate::refusal::Refusal;

/// The longest signature header or query, in bytes; AWS takes no longer head than that in all.
const LONGEST: usize = 16 << 10;
/// Headers in a list of signed ones.
const MOST_HEADERS: usize = 100;
/// A week, in seconds: the longest that AWS takes.
const LONGEST_EXPIRY: u32 = 604_800;

/// What the signature is for. The day is that of the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// The region, as `us-east-1`.
    pub region: String,
    /// The service, as `s3`.
    pub service: String,
}

impl Scope {
    /// As it is signed.
    pub(crate) fn on(&self, day: &str) -> String {
        format!("{day}/{}/{}/aws4_request", self.region, self.service)
    }
}

/// Where the signature stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// In the Authorization header.
    Header,
    /// In the query of a URL that was signed in advance.
    Query {
        /// Seconds that it holds.
        expires: u32,
    },
}

/// A claim that can be signed anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The access key id, which is a placeholder if it is of interest.
    pub key_id: String,
    /// What for.
    pub scope: Scope,
    /// The signed headers' names in lower case, as the client listed them.
    pub signed_headers: Vec<String>,
    /// Where it stands.
    pub location: Location,
}

/// A signature in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// None.
    Nothing,
    /// One of Version 4.
    V4(Claim),
    /// One of Version 4A (`AWS4-ECDSA-P256-SHA256`).
    V4a,
    /// One of Version 2 (`AWS KEY:SIGNATURE`).
    V2,
}

/// Looks for a signature.
pub fn find(head: &Parts) -> Result<Found, Refusal> {
    let in_header = in_header(head)?;
    let in_query = in_query(head.uri.query().unwrap_or_default())?;
    match (in_header, in_query) {
        (Found::Nothing, found) | (found, Found::Nothing) => Ok(found),
        _ => Err(Refusal::malformed("the request is signed in a header and in its query")),
    }
}

fn in_header(head: &Parts) -> Result<Found, Refusal> {
    let mut values = head.headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(Found::Nothing) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let (algorithm, rest) = text.trim().split_once([' ', '\t']).unwrap_or((text.trim(), ""));
    let found = match algorithm {
        _ if algorithm.eq_ignore_ascii_case("AWS4-HMAC-SHA256") => Found::V4(from_header(rest)?),
        _ if algorithm.to_ascii_uppercase().starts_with("AWS4-ECDSA") => Found::V4a,
        _ if algorithm.eq_ignore_ascii_case("AWS") => Found::V2,
        _ => return Ok(Found::Nothing),
    };
    if values.next().is_some() {
        return Err(Refusal::malformed("the request has more than one Authorization header"));
    }
    Ok(found)
}

/// The fields of an Authorization header behind the algorithm.
pub(crate) fn from_header(text: &str) -> Result<Claim, Refusal> {
    if text.len() > LONGEST {
        return Err(Refusal::malformed("the AWS signature is too long"));
    }
    let (mut credential, mut headers, mut signature) = (None, None, None);
    for field in text.split([',', ' ', '\t']).filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').ok_or_else(|| bad("a field without a value"))?;
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut headers,
            "Signature" => &mut signature,
            _ => return Err(bad("an unknown field")),
        };
        if slot.replace(value).is_some() {
            return Err(bad("a field twice"));
        }
    }
    let (Some(credential), Some(headers), Some(_)) = (credential, headers, signature) else {
        return Err(bad("not all of Credential, SignedHeaders and Signature"));
    };
    claim(credential, headers, Location::Header)
}

fn bad(what: &str) -> Refusal {
    Refusal::malformed(format!("the AWS signature has {what}"))
}

fn claim(credential: &str, headers: &str, location: Location) -> Result<Claim, Refusal> {
    // A key id has no slash; the scope has exactly four parts.
    let words: Vec<&str> = credential.split('/').collect();
    let [key_id, day, region, service, "aws4_request"] = words.as_slice() else {
        return Err(bad("a credential that is not KEY/DAY/REGION/SERVICE/aws4_request"));
    };
    if day.len() != 8 || !day.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("a day that is no date"));
    }
    let is_word = |word: &str| {
        !word.is_empty()
            && word.len() <= 128
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if !is_word(key_id) || !is_word(region) || !is_word(service) {
        return Err(bad("a key, region or service that cannot be one"));
    }
    let signed_headers: Vec<String> = headers.split(';').map(str::to_ascii_lowercase).collect();
    let names_are_whole =
        signed_headers.iter().all(|name| http::HeaderName::from_bytes(name.as_bytes()).is_ok());
    if signed_headers.len() > MOST_HEADERS || !names_are_whole {
        return Err(bad("a list of headers that cannot be one"));
    }
    Ok(Claim {
        key_id: (*key_id).to_owned(),
        scope: Scope { region: (*region).to_owned(), service: (*service).to_owned() },
        signed_headers,
        location,
    })
}

/// The names of a signature's fields in a query.
const FIELDS: [&str; 7] = [
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
];

/// Whether a `name=value` of a query belongs to a signature.
pub(crate) fn is_signature_field(field: &str) -> bool {
    let name = decoded(field.split('=').next().unwrap_or_default());
    FIELDS.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// With percent signs and pluses read.
pub(crate) fn decoded(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn in_query(query: &str) -> Result<Found, Refusal> {
    if !query.split('&').any(is_signature_field) {
        return Ok(Found::Nothing);
    }
    if query.len() > LONGEST {
        return Err(Refusal::malformed("the AWS signature is too long"));
    }
    let mut values: [Option<String>; 7] = Default::default();
    for field in query.split('&') {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let name = decoded(name);
        let slot = FIELDS.iter().zip(&mut values).find(|(known, _)| name.eq_ignore_ascii_case(known));
        if let Some((_, slot)) = slot
            && slot.replace(decoded(value)).is_some()
        {
            return Err(bad("a field twice"));
        }
    }
    let [algorithm, credential, _, expires, headers, signature, _] = values;
    match algorithm.as_deref() {
        Some("AWS4-HMAC-SHA256") => {}
        Some(text) if text.starts_with("AWS4-ECDSA") => return Ok(Found::V4a),
        // Other uses of the same names, without a signature, are none of our business.
        None if signature.is_none() && credential.is_none() => return Ok(Found::Nothing),
        _ => return Err(bad("an unknown algorithm")),
    }
    let (Some(credential), Some(headers), Some(expires), Some(_)) = (credential, headers, expires, signature)
    else {
        return Err(bad("not all of its fields"));
    };
    let expires = expires.parse().ok().filter(|seconds| (1..=LONGEST_EXPIRY).contains(seconds));
    let expires = expires.ok_or_else(|| bad("an expiry that is not 1 to 604800 seconds"))?;
    Ok(Found::V4(claim(&credential, &headers, Location::Query { expires })?))
}
