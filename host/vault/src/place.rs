//! Puts a value into one place of a request's head.

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use memchr::memmem;
use percent_encoding::utf8_percent_encode;
use zeroize::Zeroizing;

use crate::binding::{Binding, Place};
use crate::credentials::Credential;
use crate::mask::UNRESERVED;
use crate::refusal::Refusal;
use crate::secret::Secret;

/// The longest header or query that comes of it, in bytes.
const LONGEST: usize = 64 << 10;

/// Headers in which servers look for a credential.
const CREDENTIAL_HEADERS: [&str; 8] = [
    "authorization",
    "api-key",
    "deploy-token",
    "job-token",
    "private-token",
    "x-api-key",
    "x-auth-token",
    "x-goog-api-key",
];

/// Whether servers take a header of this name for the one that is `known`: CGI and its like read `x_api_key` as `x-api-key` (RFC 3875 §4.1.18).
pub fn is_read_as(name: &HeaderName, known: &str) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.as_str().bytes().map(plain).eq(known.bytes().map(plain))
}

/// Whether servers look for a credential in a header of this name.
pub fn may_hold_a_credential(name: &HeaderName) -> bool {
    CREDENTIAL_HEADERS.iter().any(|known| is_read_as(name, known))
}

/// Query parameters in which servers look for one: RFC 6750 §2.3, and what GitLab and others call theirs.
const CREDENTIAL_PARAMETERS: [&str; 5] = ["access_token", "api_key", "apikey", "job_token", "private_token"];

/// As lenient as servers are: clients leave the padding out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The scheme of an Authorization header and what follows, if it has both.
fn scheme(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = value.trim_ascii();
    let at = value.iter().position(|byte| b" \t".contains(byte))?;
    let (scheme, rest) = value.split_at(at);
    Some((scheme, rest.trim_ascii()))
}

/// `name:password` of Basic authentication (RFC 7617), if the value of a header is that.
pub(crate) fn basic(value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (scheme, rest) = scheme(value)?;
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    LENIENT.decode(rest).ok().map(Zeroizing::new)
}

/// Sets the query and leaves the rest of the URI.
pub(crate) fn set_query(uri: &mut Uri, query: &str) -> Result<(), Refusal> {
    let target = Zeroizing::new(format!("{}?{query}", uri.path()));
    if target.len() > LONGEST {
        return Err(Refusal::TooLarge { what: "the request's target", limit: LONGEST });
    }
    let malformed = || Refusal::malformed("the request's target cannot be written anew");
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target.as_str()).map_err(|_| malformed())?);
    *uri = Uri::from_parts(parts).map_err(|_| malformed())?;
    Ok(())
}

/// Refuses a head that has, where this credential could stand, one that is not kept here.
pub(crate) fn refuse_foreign(
    credential: &Credential,
    head: &Parts,
    is_known: impl Fn(&[u8]) -> bool,
) -> Result<(), Refusal> {
    let secret = || credential.name.clone();
    let mut names: Vec<HeaderName> = CREDENTIAL_HEADERS.map(HeaderName::from_static).to_vec();
    let mut parameters = CREDENTIAL_PARAMETERS.to_vec();
    let mut overwritten = Vec::new();
    for place in &credential.binding.places {
        match place {
            Place::Header { name, .. } => {
                if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                    if credential.binding.inject {
                        overwritten.push(name.clone());
                    }
                    names.push(name);
                }
            }
            Place::Basic { .. } if credential.binding.inject => overwritten.push(AUTHORIZATION),
            Place::Query { name } if credential.binding.inject => {
                parameters.retain(|known| known != name);
            }
            Place::Query { name } => parameters.push(name.as_str()),
            _ => {}
        }
    }
    // CGI and its like read `x_api_key` as `x-api-key` (RFC 3875 §4.1.18).
    let disguised = head.headers.keys().find(|name| {
        name.as_str().contains('_')
            && names.iter().any(|known| *known.as_str() == name.as_str().replace('_', "-"))
    });
    if let Some(name) = disguised {
        return Err(Refusal::Foreign { secret: secret(), place: format!("the header {name}") });
    }
    for name in names.iter().filter(|name| !overwritten.contains(name)) {
        let values: Vec<&[u8]> = head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        let knows = |value: &[u8]| is_known(value) || basic(value).is_some_and(|decoded| is_known(&decoded));
        let place = || format!("the header {name}");
        if values.len() > 1 {
            return Err(Refusal::Repeated { secret: secret(), place: place() });
        }
        if values.iter().any(|value| !value.trim_ascii().is_empty() && !knows(value)) {
            return Err(Refusal::Foreign { secret: secret(), place: place() });
        }
    }
    for name in parameters {
        for (_, value) in fields(head.uri.query().unwrap_or_default()).filter(|(key, _)| key == name) {
            if !value.is_empty() && !is_known(value.as_bytes()) {
                return Err(Refusal::Foreign { secret: secret(), place: format!("the parameter {name}") });
            }
        }
    }
    Ok(())
}

/// The decoded fields of a query.
fn fields(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').map(|field| {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        (crate::sigv4::decoded(name), crate::sigv4::decoded(value))
    })
}

/// A value with what stands for it.
pub(crate) struct Token<'a> {
    pub(crate) secret: &'a str,
    pub(crate) placeholder: &'a str,
    pub(crate) value: &'a Secret,
}

impl Token<'_> {
    /// Puts it into all places of a binding where the placeholder stands, or where it is put in without one. Whether it was put in.
    pub(crate) fn put(&self, binding: &Binding, head: &mut Parts) -> Result<bool, Refusal> {
        let mut is_used = false;
        for place in &binding.places {
            is_used |= match place {
                Place::Header { name, format } => {
                    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| self.unfit())?;
                    if binding.inject {
                        self.set_header(head, name, format.as_deref().unwrap_or("{value}"))?
                    } else {
                        self.in_header(head, &name, format.as_deref())?
                    }
                }
                Place::AnyHeader => self.in_any_header(head)?,
                Place::Basic { user } => match user {
                    Some(user) if binding.inject => self.set_basic(head, user)?,
                    _ => self.in_basic(head)?,
                },
                Place::Query { name } => self.in_query(head, name, binding.inject)?,
                Place::SigV4 => false,
            };
        }
        Ok(is_used)
    }

    fn unfit(&self) -> Refusal {
        Refusal::Unavailable {
            secret: self.secret.to_owned(),
            why: "its value cannot stand where it should".to_owned(),
        }
    }

    fn repeated(&self, place: String) -> Refusal {
        Refusal::Repeated { secret: self.secret.to_owned(), place }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        memmem::find(bytes, self.placeholder.as_bytes()).is_some()
    }

    fn write(&self, head: &mut Parts, name: HeaderName, value: &[u8]) -> Result<bool, Refusal> {
        if value.len() > LONGEST {
            return Err(Refusal::TooLarge { what: "a header", limit: LONGEST });
        }
        let mut value = HeaderValue::from_bytes(value).map_err(|_| self.unfit())?;
        value.set_sensitive(true);
        // Takes the place of all that are there.
        head.headers.insert(name, value);
        Ok(true)
    }

    fn formatted(&self, format: &str) -> Zeroizing<Vec<u8>> {
        let (before, behind) = format.split_once("{value}").unwrap_or((format, ""));
        Zeroizing::new([before.as_bytes(), self.value.expose(), behind.as_bytes()].concat())
    }

    fn set_header(&self, head: &mut Parts, name: HeaderName, format: &str) -> Result<bool, Refusal> {
        self.write(head, name, &self.formatted(format))
    }

    /// The one value of a header, if the placeholder is in it.
    fn only_value(&self, head: &Parts, name: &HeaderName) -> Result<Option<Vec<u8>>, Refusal> {
        let values: Vec<&[u8]> = head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        if !values.iter().any(|value| self.is_in(value)) {
            return Ok(None);
        }
        match values.as_slice() {
            [value] => Ok(Some(value.to_vec())),
            _ => Err(self.repeated(format!("the header {name}"))),
        }
    }

    /// The placeholder alone, or behind a scheme.
    fn in_header(&self, head: &mut Parts, name: &HeaderName, format: Option<&str>) -> Result<bool, Refusal> {
        let Some(value) = self.only_value(head, name)? else { return Ok(false) };
        if let Some(format) = format {
            return self.set_header(head, name.clone(), format);
        }
        let value = value.trim_ascii();
        let rest = match scheme(value) {
            Some((scheme, rest))
                if scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') =>
            {
                rest
            }
            _ => value,
        };
        let rest = rest.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(rest);
        if rest != self.placeholder.as_bytes() {
            return Err(Refusal::malformed(format!(
                "the header {name} has more in it than the placeholder of the secret \"{}\"",
                self.secret
            )));
        }
        let replaced = Zeroizing::new(self.replaced(value));
        self.write(head, name.clone(), &replaced)
    }

    /// With each placeholder replaced.
    fn replaced(&self, bytes: &[u8]) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::with_capacity(bytes.len().saturating_add(self.value.len())), bytes);
        while let Some(at) = memmem::find(rest, self.placeholder.as_bytes()) {
            out.extend_from_slice(rest.get(..at).unwrap_or_default());
            out.extend_from_slice(self.value.expose());
            rest = rest.get(at.saturating_add(self.placeholder.len())..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
        out
    }

    fn in_any_header(&self, head: &mut Parts) -> Result<bool, Refusal> {
        let mut is_used = self.in_basic(head)?;
        let names: Vec<HeaderName> = head.headers.keys().cloned().collect();
        for name in names {
            if name == AUTHORIZATION {
                is_used |= self.in_header(head, &name, None)?;
            } else if name != http::header::HOST
                && let Some(value) = self.only_value(head, &name)?
            {
                // It grows with each placeholder in it.
                let count = memmem::find_iter(&value, self.placeholder.as_bytes()).count();
                if count.saturating_mul(self.value.len()) > LONGEST {
                    return Err(Refusal::TooLarge { what: "a header", limit: LONGEST });
                }
                is_used |= self.write(head, name, &Zeroizing::new(self.replaced(&value)))?;
            }
        }
        Ok(is_used)
    }

    fn set_basic(&self, head: &mut Parts, user: &str) -> Result<bool, Refusal> {
        let pair = Zeroizing::new([user.as_bytes(), b":", self.value.expose()].concat());
        self.write_basic(head, &pair)
    }

    fn write_basic(&self, head: &mut Parts, pair: &[u8]) -> Result<bool, Refusal> {
        let encoded = Zeroizing::new(STANDARD.encode(pair));
        self.write(head, AUTHORIZATION, Zeroizing::new(format!("Basic {}", *encoded)).as_bytes())
    }

    /// As the name or the password.
    fn in_basic(&self, head: &mut Parts) -> Result<bool, Refusal> {
        let values: Vec<Zeroizing<Vec<u8>>> =
            head.headers.get_all(AUTHORIZATION).iter().filter_map(|value| basic(value.as_bytes())).collect();
        if !values.iter().any(|pair| self.is_in(pair)) {
            return Ok(false);
        }
        let [pair] = values.as_slice() else {
            return Err(self.repeated("the header authorization".to_owned()));
        };
        if head.headers.get_all(AUTHORIZATION).iter().count() != 1 {
            return Err(self.repeated("the header authorization".to_owned()));
        }
        let at = pair.iter().position(|byte| *byte == b':');
        let (name, password) = match at {
            Some(at) => {
                (pair.get(..at).unwrap_or_default(), pair.get(at.saturating_add(1)..).unwrap_or_default())
            }
            None => (pair.as_slice(), [].as_slice()),
        };
        let placeholder = self.placeholder.as_bytes();
        let value = |part: &[u8]| -> Zeroizing<Vec<u8>> {
            Zeroizing::new(if part == placeholder { self.value.expose().to_vec() } else { part.to_vec() })
        };
        if name != placeholder && password != placeholder {
            return Err(Refusal::malformed(format!(
                "Basic authentication has more in it than the placeholder of the secret \"{}\"",
                self.secret
            )));
        }
        if name == placeholder && self.value.expose().contains(&b':') {
            return Err(self.unfit());
        }
        let new = Zeroizing::new([value(name).as_slice(), b":", value(password).as_slice()].concat());
        self.write_basic(head, &new)
    }

    fn in_query(&self, head: &mut Parts, name: &str, inject: bool) -> Result<bool, Refusal> {
        let query = head.uri.query().unwrap_or_default().to_owned();
        let is_named = |field: &str| fields(field).next().is_some_and(|(key, _)| key == name);
        let count = query.split('&').filter(|field| is_named(field)).count();
        let is_there = fields(&query).any(|(key, value)| key == name && self.is_in(value.as_bytes()));
        if !inject && !is_there {
            return Ok(false);
        }
        if !inject && count > 1 {
            return Err(self.repeated(format!("the parameter {name}")));
        }
        if !inject && !fields(&query).any(|(key, value)| key == name && value == self.placeholder) {
            return Err(Refusal::malformed(format!(
                "the parameter {name} has more in it than the placeholder of the secret \"{}\"",
                self.secret
            )));
        }
        let text = self.value.expose_text().ok_or_else(|| self.unfit())?;
        let field = Zeroizing::new(format!(
            "{}={}",
            utf8_percent_encode(name, UNRESERVED),
            utf8_percent_encode(text, UNRESERVED)
        ));
        let mut out: Vec<&str> = Vec::new();
        for old in query.split('&').filter(|old| !old.is_empty()) {
            match is_named(old) {
                false => out.push(old),
                true if !inject => out.push(&field),
                true => {}
            }
        }
        if inject {
            out.push(&field);
        }
        set_query(&mut head.uri, &Zeroizing::new(out.join("&")))?;
        Ok(true)
    }
}
