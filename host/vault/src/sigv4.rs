//! AWS Signature Version 4: a request that was signed with placeholders is signed anew with the real key, which never leaves.
//!
//! The signature is checked by AWS over the request that arrives there, so it is made from the very bytes that are sent. That, and that derived
//! keys are overwritten, is why this is no call of a library that builds requests. It is checked against AWS's own test suite.
//! "Signature Version 4 signing process", AWS General Reference; "Signature calculations … chunked", Amazon S3 API reference.

mod canonical;
mod chunks;
mod fresh;
mod keys;
mod parse;
mod scope;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use http::request::Parts;
use percent_encoding::utf8_percent_encode;

pub use self::chunks::ChunkSigner;
pub(crate) use self::parse::decoded;
pub use self::parse::{Claim, Found, Location, Scope, find};

pub(crate) use self::scope::agrees;

use self::canonical::{CanonicalRequest, PathRules};
use self::keys::{SigningKey, hex_of_sha256};
use crate::mask::UNRESERVED;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// The longest body, or chunk of a body, that is held to be signed, in bytes.
pub const MAX_BUFFERED: usize = 16 << 20;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// What may change on the way, or is no part of what arrives: never signed.
const UNSTABLE: [&str; 12] = [
    "authorization",
    "connection",
    "expect",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "x-amzn-trace-id",
];

/// The real credentials.
#[derive(Debug)]
pub struct Keys {
    /// The access key id.
    pub key_id: Secret,
    /// The secret access key.
    pub secret: Secret,
    /// Of temporary credentials.
    pub session_token: Option<Secret>,
}

impl Keys {
    /// A second one of the same values.
    pub fn duplicate(&self) -> Self {
        Self {
            key_id: self.key_id.duplicate(),
            secret: self.secret.duplicate(),
            session_token: self.session_token.as_ref().map(Secret::duplicate),
        }
    }
}

/// What must be done with the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The request says its hash, or that it is not signed: the body passes as it is.
    Declared,
    /// The body must be there as a whole, at most [`MAX_BUFFERED`] bytes, before the head can be signed.
    Undeclared,
    /// Each chunk of the body is signed: it passes through a [`ChunkSigner`].
    Chunked,
}

/// A request that waits for its new signature.
#[derive(Debug)]
pub struct Pending {
    secret: String,
    claim: Claim,
    keys: Keys,
    hash: Hash,
    now: SystemTime,
}

#[derive(Debug)]
enum Hash {
    Known(String),
    OfBody,
    Chunks { word: String, has_trailer: bool },
}

impl Pending {
    /// From what a request claims, for the secret of this name. Refuses what cannot be signed anew.
    pub fn new(
        secret: &str,
        claim: Claim,
        keys: Keys,
        head: &Parts,
        now: SystemTime,
    ) -> Result<Self, Refusal> {
        fresh::check_head(secret, &claim.scope, head)?;
        let hash = match declared(&claim, head)? {
            hash if !fresh::is_in_body(&claim.scope) => hash,
            Hash::Chunks { .. } => {
                return Err(Refusal::unsupported("a call of this AWS service is not sent in signed chunks"));
            }
            _ => Hash::OfBody,
        };
        Ok(Self { secret: secret.to_owned(), claim, keys, hash, now })
    }

    /// What [`Pending::sign`] needs.
    pub fn payload(&self) -> Payload {
        match self.hash {
            Hash::Known(_) => Payload::Declared,
            Hash::OfBody => Payload::Undeclared,
            Hash::Chunks { .. } => Payload::Chunked,
        }
    }

    /// Signs the head as it is now: nothing of it may change afterwards but the headers of [`UNSTABLE`]. `body` is the whole body where it is
    /// undeclared. Gives the signer of the chunks where there are chunks.
    pub fn sign(self, head: &mut Parts, body: Option<&[u8]>) -> Result<Option<ChunkSigner>, Refusal> {
        let payload_hash = match (&self.hash, body) {
            (Hash::Known(hash), _) => hash.clone(),
            (Hash::Chunks { word, .. }, _) => word.clone(),
            (Hash::OfBody, Some(body)) if body.len() <= MAX_BUFFERED => hex_of_sha256(body),
            (Hash::OfBody, Some(_)) => {
                return Err(Refusal::TooLarge {
                    what: "a body that must be signed as a whole",
                    limit: MAX_BUFFERED,
                });
            }
            (Hash::OfBody, None) => {
                return Err(Refusal::malformed("the body of a signed request is missing"));
            }
        };
        if fresh::is_in_body(&self.claim.scope) {
            fresh::check_body(&self.secret, &self.claim.scope, head, body.unwrap_or_default())?;
        }
        let date = amz_date(self.now)?;
        let day = date.get(..8).unwrap_or_default();
        let scope = self.claim.scope.on(day);
        let key = SigningKey::derive(&self.keys.secret, day, &self.claim.scope);
        ensure_host(head)?;
        let signer = Signer { pending: &self, date: &date, scope: &scope, key: &key, hash: &payload_hash };
        let signature = match self.claim.location {
            Location::Header => signer.sign_header(head)?,
            Location::Query { expires } => signer.sign_query(head, expires)?,
        };
        Ok(match self.hash {
            Hash::Chunks { has_trailer, .. } => {
                Some(ChunkSigner::new(key, date, scope, signature, has_trailer))
            }
            _ => None,
        })
    }
}

/// What both places of a signature are made from.
struct Signer<'a> {
    pending: &'a Pending,
    date: &'a str,
    scope: &'a str,
    key: &'a SigningKey,
    hash: &'a str,
}

impl Signer<'_> {
    /// The signature of the head as it is, with these query fields in place of its own if there are any.
    fn signature(&self, head: &Parts, query: Option<&str>) -> Result<(CanonicalRequest, String), Refusal> {
        let claim = &self.pending.claim;
        let rules = PathRules::of(&claim.scope.service);
        let canonical = CanonicalRequest::new(head, query, &claim.signed_headers, self.hash, rules)?;
        let signature = self.key.sign(&string_to_sign(self.date, self.scope, &canonical.text));
        Ok((canonical, signature))
    }

    fn sign_header(&self, head: &mut Parts) -> Result<String, Refusal> {
        head.headers.remove(AUTHORIZATION);
        head.headers.remove(TOKEN);
        head.headers.insert(DATE, plain_value(self.date.as_bytes())?);
        if let Some(token) = &self.pending.keys.session_token {
            head.headers.insert(TOKEN, sensitive_value(token.expose())?);
        }
        let (canonical, signature) = self.signature(head, None)?;
        let value = format!(
            "{ALGORITHM} Credential={}/{}, SignedHeaders={}, Signature={signature}",
            self.key_id()?,
            self.scope,
            canonical.signed_headers
        );
        head.headers.insert(AUTHORIZATION, sensitive_value(value.as_bytes())?);
        Ok(signature)
    }

    fn sign_query(&self, head: &mut Parts, expires: u32) -> Result<String, Refusal> {
        let encoded = |bytes: &str| utf8_percent_encode(bytes, UNRESERVED).to_string();
        head.headers.remove(TOKEN);
        let query = head.uri.query().unwrap_or_default();
        let mut fields: Vec<String> = query
            .split('&')
            .filter(|field| !field.is_empty() && !parse::is_signature_field(field))
            .map(str::to_owned)
            .collect();
        let signed_headers = canonical::names(head, &self.pending.claim.signed_headers).join(";");
        fields.push(format!("X-Amz-Algorithm={ALGORITHM}"));
        fields.push(format!("X-Amz-Credential={}", encoded(&format!("{}/{}", self.key_id()?, self.scope))));
        fields.push(format!("X-Amz-Date={}", self.date));
        fields.push(format!("X-Amz-Expires={expires}"));
        fields.push(format!("X-Amz-SignedHeaders={}", encoded(&signed_headers)));
        if let Some(token) = &self.pending.keys.session_token {
            let token =
                token.expose_text().ok_or_else(|| Refusal::malformed("the session token is no text"))?;
            fields.push(format!("X-Amz-Security-Token={}", encoded(token)));
        }
        let unsigned = fields.join("&");
        let (_, signature) = self.signature(head, Some(&unsigned))?;
        crate::place::set_query(&mut head.uri, &format!("{unsigned}&X-Amz-Signature={signature}"))?;
        Ok(signature)
    }

    fn key_id(&self) -> Result<&str, Refusal> {
        self.pending
            .keys
            .key_id
            .expose_text()
            .ok_or_else(|| Refusal::malformed("the access key id is no text"))
    }
}

/// What a request says of its body.
fn declared(claim: &Claim, head: &Parts) -> Result<Hash, Refusal> {
    let mut values = head.headers.get_all(CONTENT_SHA256).iter();
    let Some(value) = values.next() else {
        return Ok(match claim.location {
            // S3 signs no body of a URL that is signed in advance.
            Location::Query { .. } if claim.scope.service.starts_with("s3") => {
                Hash::Known(UNSIGNED.to_owned())
            }
            _ => Hash::OfBody,
        });
    };
    if values.next().is_some() {
        return Err(Refusal::malformed("x-amz-content-sha256 is there more than once"));
    }
    let word = value.to_str().unwrap_or_default().trim();
    let is_hash = word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    match word {
        UNSIGNED | "STREAMING-UNSIGNED-PAYLOAD-TRAILER" => Ok(Hash::Known(word.to_owned())),
        _ if is_hash => Ok(Hash::Known(word.to_owned())),
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" => {
            Ok(Hash::Chunks { word: word.to_owned(), has_trailer: false })
        }
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER" => {
            Ok(Hash::Chunks { word: word.to_owned(), has_trailer: true })
        }
        "STREAMING-AWS4-HMAC-SHA256-EVENTS" => {
            Err(Refusal::unsupported("AWS event streams from the guest cannot be signed anew yet"))
        }
        _ if word.starts_with("STREAMING-AWS4-ECDSA") => Err(sigv4a()),
        _ => Err(Refusal::malformed("x-amz-content-sha256 is no SHA-256 and no word that is known")),
    }
}

/// The refusal of the asymmetric variant.
pub(crate) fn sigv4a() -> Refusal {
    Refusal::unsupported(
        "AWS SigV4a (multi-region access points) cannot be signed anew: use a regional endpoint, or AWS_SIGV4A_SIGNING_REGION_SET unset",
    )
}

/// The host is signed always. With HTTP/2 it is in the URI only.
fn ensure_host(head: &mut Parts) -> Result<(), Refusal> {
    if !head.headers.contains_key(HOST) {
        let authority = head.uri.authority().map(|authority| authority.as_str().to_owned());
        let authority = authority.ok_or_else(|| Refusal::malformed("a signed request names no host"))?;
        head.headers.insert(HOST, plain_value(authority.as_bytes())?);
    }
    Ok(())
}

fn string_to_sign(date: &str, scope: &str, canonical: &str) -> String {
    format!("{ALGORITHM}\n{date}\n{scope}\n{}", hex_of_sha256(canonical.as_bytes()))
}

fn plain_value(bytes: &[u8]) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_bytes(bytes).map_err(|_| Refusal::malformed("a value cannot stand in a header"))
}

fn sensitive_value(bytes: &[u8]) -> Result<HeaderValue, Refusal> {
    let mut value = plain_value(bytes)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A time as AWS writes it: `20150830T123600Z`.
fn amz_date(now: SystemTime) -> Result<String, Refusal> {
    // The year 9999 ends then; the library that writes dates takes no later ones.
    const END_OF_DATES: Duration = Duration::from_secs(253_402_300_799);
    match now.duration_since(UNIX_EPOCH) {
        Ok(since) if since <= END_OF_DATES => {
            let text = humantime::format_rfc3339_seconds(now).to_string();
            Ok(text.replace(['-', ':'], ""))
        }
        _ => Err(Refusal::unsupported("the host's clock is at a time that no signature can have")),
    }
}

#[cfg(test)]
mod tests;
