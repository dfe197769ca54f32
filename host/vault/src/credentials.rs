//! All credentials of one sandbox, as its gateway has them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::binding::{Binding, Place};
use crate::find::{Finder, Tail};
use crate::hosts;
use crate::mask::{Forms, Masker};
use crate::oauth::{Exchange, Grant, Refresh, SignIn};
use crate::place;
use crate::refusal::Refusal;
use crate::secret::{Secret, as_base64};
use crate::sigv4::{self, Claim, Found, Keys, Pending};

/// The longest set as text, in bytes: it goes over the gateway's control socket in one packet.
pub const MAX_WIRE: usize = 96 << 10;

/// One secret with what it is bound to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Credential {
    /// What it is called, in `viv secret ls` and the log.
    pub name: String,
    /// Where it may go.
    pub binding: Binding,
    /// What it is.
    pub value: Value,
}

/// What a secret is.
#[derive(Debug, Serialize, Deserialize)]
pub enum Value {
    /// One text.
    Token {
        /// What the guest has.
        placeholder: String,
        /// What the server gets.
        #[serde(with = "as_base64")]
        value: Secret,
    },
    /// A key of AWS.
    Aws {
        /// The access key id that the guest has.
        key_id: String,
        /// The secret access key that the guest has.
        secret: String,
        /// The real ones.
        keys: WireKeys,
    },
    /// Tokens that somebody gets by signing in.
    SignIn(SignIn),
    /// Not to be had now.
    Missing {
        /// What the guest has.
        placeholders: Vec<String>,
        /// Why, as the end of a sentence.
        why: String,
    },
}

/// [`Keys`] in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct WireKeys {
    #[serde(with = "as_base64")]
    id: Secret,
    #[serde(with = "as_base64")]
    key: Secret,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_base64::optional")]
    token: Option<Secret>,
}

impl From<Keys> for WireKeys {
    fn from(keys: Keys) -> Self {
        Self { id: keys.key_id, key: keys.secret, token: keys.session_token }
    }
}

impl WireKeys {
    fn keys(&self) -> Keys {
        Keys {
            key_id: self.id.duplicate(),
            secret: self.key.duplicate(),
            session_token: self.token.as_ref().map(Secret::duplicate),
        }
    }
}

impl Credential {
    /// All that the guest may have of it.
    fn placeholders(&self) -> Vec<&str> {
        match &self.value {
            Value::Token { placeholder, .. } => vec![placeholder],
            Value::Aws { key_id, secret, .. } => vec![key_id, secret],
            Value::SignIn(sign_in) => sign_in.sentinels(),
            Value::Missing { placeholders, .. } => placeholders.iter().map(String::as_str).collect(),
        }
    }

    /// The real values, each with what to show instead.
    fn values(&self) -> Vec<(&Secret, &str)> {
        match &self.value {
            Value::Token { placeholder, value } => vec![(value, placeholder)],
            Value::Aws { key_id, secret, keys } => {
                let token = keys.token.as_ref().map(|token| (token, secret.as_str()));
                [(&keys.id, key_id.as_str()), (&keys.key, secret.as_str())].into_iter().chain(token).collect()
            }
            Value::SignIn(sign_in) => sign_in.values(),
            Value::Missing { .. } => Vec::new(),
        }
    }

    /// Whether what it has may be sent there at all.
    fn is_for(&self, to: &Destination<'_>) -> bool {
        let is_endpoint =
            matches!(&self.value, Value::SignIn(sign_in) if sign_in.endpoint.is_at(to.host, to.port));
        to.tls && (is_endpoint || self.binding.has_host(to.host, to.port))
    }

    /// The refusal of a placeholder at a place where it may not be.
    fn gone_astray(&self, host: &str, tls: bool) -> Refusal {
        let (secret, host) = (self.name.clone(), host.to_owned());
        let is_home = self.binding.hosts.iter().any(|pattern| pattern.matches(&host, pattern.port()));
        if is_home && !tls {
            Refusal::Plaintext { secret, host }
        } else {
            Refusal::Exfiltration { secret, host }
        }
    }

    fn duplicate(&self) -> Self {
        let value = match &self.value {
            Value::Token { placeholder, value } => {
                Value::Token { placeholder: placeholder.clone(), value: value.duplicate() }
            }
            Value::Aws { key_id, secret, keys } => {
                Value::Aws { key_id: key_id.clone(), secret: secret.clone(), keys: keys.keys().into() }
            }
            Value::SignIn(sign_in) => Value::SignIn(sign_in.duplicate()),
            Value::Missing { placeholders, why } => {
                Value::Missing { placeholders: placeholders.clone(), why: why.clone() }
            }
        };
        Self { name: self.name.clone(), binding: self.binding.clone(), value }
    }
}

/// Where a request goes.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// The host, without the port.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// Whether the connection upstream is TLS with a verified certificate.
    pub tls: bool,
}

/// What was done to a request's head.
#[derive(Debug)]
pub struct Placed {
    /// The names of the secrets that are used.
    pub used: Vec<String>,
    /// What must be done with the body.
    pub body: Body,
}

/// What must be done with a request's body.
#[derive(Debug)]
pub enum Body {
    /// It passes, through a [`Watch`].
    Stream,
    /// The head must be signed still.
    SigV4(Box<Pending>),
    /// Somebody signs in: request and response go through the exchange.
    Token(Box<Exchange>),
}

/// What is wrong with a set as text.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is too long.
    #[error("the secrets of one sandbox are longer than {MAX_WIRE} bytes")]
    TooLong,
    /// It cannot be read. The reason has no value in it.
    #[error("the secrets cannot be read (line {line}, column {column})")]
    Damaged {
        /// Where, from 1.
        line: usize,
        /// Where in the line, from 1.
        column: usize,
    },
}

impl From<serde_json::Error> for WireError {
    fn from(error: serde_json::Error) -> Self {
        // Its words may quote what it did not expect.
        Self::Damaged { line: error.line(), column: error.column() }
    }
}

/// All credentials of one sandbox; immutable, and cheap to clone. The default is none.
#[derive(Clone, Default)]
pub struct Credentials(Arc<Set>);

#[derive(Default)]
struct Set {
    list: Vec<Credential>,
    /// What was in force before: servers may still say it.
    past: Vec<Credential>,
    finder: Finder,
    forms: Arc<Forms>,
}

/// Credentials of before whose values are masked: of one name, and of all.
const MOST_PAST_OF_ONE: usize = 64;
const MOST_PAST: usize = 256;

/// Forgets the oldest of the name that has most while there are too many. A guest makes new tokens of a login at will: they push out one another.
fn forget(past: &mut Vec<Credential>) {
    loop {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for old in past.iter() {
            let count = counts.entry(&old.name).or_default();
            *count = count.saturating_add(1);
        }
        let most = counts.values().copied().max().unwrap_or(0);
        if most <= MOST_PAST_OF_ONE && past.len() <= MOST_PAST {
            return;
        }
        let oldest = past.iter().position(|old| counts.get(old.name.as_str()) == Some(&most));
        let Some(oldest) = oldest else { return };
        past.remove(oldest);
    }
}

impl Credentials {
    /// From single ones.
    pub fn new(list: Vec<Credential>) -> Self {
        Self::with_past(list, Vec::new())
    }

    /// The same, with those of before, which are placed nowhere any more and are masked as they were: a value that was put in is not shown
    /// to the guest because it was replaced or removed before the server said it back.
    #[must_use]
    pub fn remembering(&self, before: &Self) -> Self {
        let is_there = |old: &Credential| {
            self.0.list.iter().any(|new| {
                new.binding.hosts == old.binding.hosts
                    && old
                        .values()
                        .iter()
                        .all(|(old, _)| new.values().iter().any(|(new, _)| new.expose() == old.expose()))
            })
        };
        let old = before.0.past.iter().chain(&before.0.list);
        let past = old.filter(|old| !old.values().is_empty() && !is_there(old)).map(Credential::duplicate);
        let mut past: Vec<Credential> = past.collect();
        forget(&mut past);
        Self::with_past(self.0.list.iter().map(Credential::duplicate).collect(), past)
    }

    fn with_past(list: Vec<Credential>, past: Vec<Credential>) -> Self {
        let texts = list.iter().enumerate().flat_map(|(number, credential)| {
            credential.placeholders().into_iter().map(move |text| (text, number))
        });
        let finder = Finder::new(texts);
        let forms = Arc::new(Forms::new(list.iter().chain(&past).flat_map(Credential::values)));
        Self(Arc::new(Set { list, past, finder, forms }))
    }

    /// Reads what [`Credentials::to_wire`] wrote.
    pub fn from_wire(text: &str) -> Result<Self, WireError> {
        if text.len() > MAX_WIRE {
            return Err(WireError::TooLong);
        }
        Ok(Self::new(serde_json::from_str(text)?))
    }

    /// As text, with the values in it. It is for one process to hand to another, and for nothing else.
    pub fn to_wire(&self) -> Result<Zeroizing<String>, WireError> {
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_WIRE));
        serde_json::to_writer(&mut *text, &self.0.list)?;
        if text.len() > MAX_WIRE {
            return Err(WireError::TooLong);
        }
        String::from_utf8(std::mem::take(&mut *text))
            .map(Zeroizing::new)
            .map_err(|_| WireError::Damaged { line: 1, column: 1 })
    }

    /// With those of `before` in place of those that have these names, as far as `before` has them.
    pub fn with_unchanged(&self, names: &[String], before: &Self) -> Self {
        let of = |credential: &Credential| {
            let is_meant = names.contains(&credential.name);
            let known = before.0.list.iter().find(|known| is_meant && known.name == credential.name);
            known.unwrap_or(credential).duplicate()
        };
        Self::new(self.0.list.iter().map(of).collect())
    }

    /// The names of all.
    pub fn names(&self) -> Vec<&str> {
        self.0.list.iter().map(|credential| credential.name.as_str()).collect()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// Whether TLS to this host must be looked into: a secret is bound to it, or people sign in there.
    pub fn is_bound(&self, host: &str, port: u16) -> bool {
        let to = Destination { host, port, tls: true };
        self.0.list.iter().any(|credential| credential.is_for(&to))
    }

    /// Whether answers of this host may hold values: a secret is bound to it, or was.
    pub fn is_masked(&self, host: &str, port: u16) -> bool {
        let to = Destination { host, port, tls: true };
        self.0.list.iter().chain(&self.0.past).any(|credential| credential.is_for(&to))
    }

    /// The secret whose placeholder is in `bytes`, if one is.
    pub fn find(&self, bytes: &[u8]) -> Option<&str> {
        let number = self.0.finder.all(bytes).next()?;
        Some(self.0.list.get(number)?.name.as_str())
    }

    /// Looks for placeholders in what goes to `to` and is no head of a request.
    pub fn watch(&self, to: &Destination<'_>) -> Watch {
        let passes = self.0.list.iter().map(|credential| credential.is_for(to)).collect();
        Watch {
            set: Arc::clone(&self.0),
            passes,
            tail: Tail::default(),
            host: to.host.to_owned(),
            tls: to.tls,
        }
    }

    /// Makes values in response headers placeholders again; how many headers had one.
    pub fn mask_headers(&self, headers: &mut HeaderMap) -> usize {
        let mut count = 0usize;
        for value in headers.values_mut() {
            if let Some(masked) = self.0.forms.replaced(value.as_bytes()) {
                // Where the masked value were no header's, nothing of it is shown.
                *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static("masked"));
                count = count.saturating_add(1);
            }
        }
        count
    }

    /// Masks values in a response body; see [`Masker`].
    pub fn masker(&self) -> Masker {
        Masker::new(Arc::clone(&self.0.forms))
    }

    /// Has a masker that is at work mask these values from now on.
    pub fn renew(&self, masker: &mut Masker) {
        masker.follow(Arc::clone(&self.0.forms));
    }

    /// Puts credentials into the head of a request to `to`. Every request that is looked into goes through here, also those to hosts that no
    /// secret is bound to. After an error nothing may be sent. `now` dates signatures.
    pub fn place(&self, to: &Destination<'_>, head: &mut Parts, now: SystemTime) -> Result<Placed, Refusal> {
        if hosts::normalized(to.host).is_none() {
            return Err(Refusal::malformed(format!("\"{}\" is no host", to.host.escape_debug())));
        }
        let seen = self.seen(head);
        for (credential, _) in self.0.list.iter().zip(&seen).filter(|(_, seen)| **seen) {
            if !credential.is_for(to) {
                return Err(credential.gone_astray(to.host, to.tls));
            }
        }
        let bound = || self.0.list.iter().zip(&seen).filter(|(credential, _)| credential.is_for(to));
        let mut placed = Placed { used: Vec::new(), body: Body::Stream };
        if let Some(exchange) = bound().find_map(|(credential, _)| exchange(credential, to, head, now)) {
            placed.body = Body::Token(Box::new(exchange?));
            return Ok(placed);
        }
        let (method, path) = (head.method.as_str(), head.uri.path());
        for (credential, _) in bound() {
            if matches!(&credential.value, Value::SignIn(sign_in) if sign_in.mints(path)) {
                let (secret, what) = (credential.name.clone(), "an API key".to_owned());
                return Err(Refusal::Mints { secret, what });
            }
        }
        let mut meant = Vec::new();
        for (credential, seen) in bound() {
            match (&credential.value, credential.binding.has_request(method, path)) {
                (_, true) => meant.push((credential, *seen)),
                (_, false) if *seen => {
                    return Err(Refusal::NotForRequest { secret: credential.name.clone() });
                }
                (_, false) => {}
            }
        }
        let claim = self.claim(head, &meant)?;
        for (credential, _) in meant.iter().filter(|(credential, _)| !credential.binding.allow_other) {
            place::refuse_foreign(credential, head, |bytes| self.0.finder.all(bytes).next().is_some())?;
        }
        for (credential, seen) in meant {
            let is_used = match &credential.value {
                Value::Token { placeholder, value } => {
                    let value = place::Token { secret: &credential.name, placeholder, value };
                    value.put(&credential.binding, head)?
                }
                Value::SignIn(sign_in) => {
                    let mut is_used = false;
                    for (value, sentinel) in sign_in.all_pairs() {
                        let token = place::Token { secret: &credential.name, placeholder: sentinel, value };
                        is_used |= token.put(&credential.binding, head)?;
                    }
                    is_used
                }
                Value::Aws { key_id, keys, .. } => match &claim {
                    Some(claim)
                        if claim.key_id == *key_id && credential.binding.places.contains(&Place::SigV4) =>
                    {
                        let name = &credential.name;
                        sigv4::agrees(name, &claim.scope, to.host, head)?;
                        let pending = Pending::new(name, claim.clone(), keys.keys(), head, now)?;
                        placed.body = Body::SigV4(Box::new(pending));
                        true
                    }
                    _ => false,
                },
                Value::Missing { why, .. } if seen || credential.binding.inject => {
                    return Err(Refusal::Unavailable { secret: credential.name.clone(), why: why.clone() });
                }
                Value::Missing { .. } => false,
            };
            if is_used {
                placed.used.push(credential.name.clone());
            }
        }
        Ok(placed)
    }

    /// A signature of AWS in the head, where there is a key for this host.
    fn claim(&self, head: &Parts, meant: &[(&Credential, bool)]) -> Result<Option<Claim>, Refusal> {
        let Some((credential, _)) =
            meant.iter().find(|(credential, _)| credential.binding.places.contains(&Place::SigV4))
        else {
            return Ok(None);
        };
        let is_ours = |claim: &Claim| {
            meant.iter().any(|(credential, _)| {
                credential.placeholders().first().is_some_and(|key_id| *key_id == claim.key_id)
            })
        };
        match sigv4::find(head)? {
            Found::V4(claim) if is_ours(&claim) => Ok(Some(claim)),
            Found::V4(_) if credential.binding.allow_other => Ok(None),
            Found::V4(_) => Err(Refusal::Foreign {
                secret: credential.name.clone(),
                place: "the AWS signature".to_owned(),
            }),
            Found::V4a => Err(sigv4::sigv4a()),
            Found::V2 => {
                Err(Refusal::unsupported("AWS signatures of version 2 cannot be made; use version 4"))
            }
            Found::Nothing => Ok(None),
        }
    }

    /// Which credentials' placeholders are anywhere in a head.
    fn seen(&self, head: &Parts) -> Vec<bool> {
        let mut seen = vec![false; self.0.list.len()];
        let mut look = |bytes: &[u8]| {
            for number in self.0.finder.all(bytes) {
                if let Some(seen) = seen.get_mut(number) {
                    *seen = true;
                }
            }
        };
        for value in head.headers.values() {
            look(value.as_bytes());
            if let Some(decoded) = place::basic(value.as_bytes()) {
                look(&decoded);
            }
        }
        let target = head.uri.path_and_query().map(|target| target.as_str()).unwrap_or_default();
        look(target.as_bytes());
        look(&percent_encoding::percent_decode_str(target).collect::<Vec<u8>>());
        seen
    }

    /// With the tokens that somebody got by signing in, or that were refreshed.
    pub fn with_grant(&self, grant: &Grant) -> Self {
        let list = self.0.list.iter().map(|credential| {
            let mut credential = credential.duplicate();
            if let Value::SignIn(sign_in) = &mut credential.value
                && credential.name == grant.name
            {
                sign_in.grant = Some(grant.duplicate());
            }
            credential
        });
        Self::new(list.collect())
    }

    /// Whether what an exchange brought may be kept: there may be a login by now that there was not when its request began.
    ///
    /// # Errors
    /// When it would take the place of one that holds.
    pub fn may_keep(&self, exchange: &Exchange, now: SystemTime) -> Result<(), Refusal> {
        let is_meant = |credential: &&Credential| credential.name == exchange.name();
        let is_held = self.0.list.iter().filter(is_meant).any(
            |credential| matches!(&credential.value, Value::SignIn(sign_in) if sign_in.is_signed_in(now)),
        );
        if is_held && !exchange.renews() {
            return Err(Refusal::SignedIn { secret: exchange.name().to_owned() });
        }
        Ok(())
    }

    /// The secrets whose tokens can be refreshed, each with the time when they end.
    pub fn renewable(&self) -> Vec<(String, SystemTime)> {
        let can = self.sign_ins().filter_map(|sign_in| Some((sign_in.refresh()?.name, sign_in.ends()?)));
        can.collect()
    }

    /// What must be asked for the tokens of one secret.
    pub fn refresh(&self, name: &str) -> Option<Refresh> {
        self.sign_ins().filter_map(SignIn::refresh).find(|refresh| refresh.name == name)
    }

    fn sign_ins(&self) -> impl Iterator<Item = &SignIn> {
        self.0.list.iter().filter_map(|credential| match &credential.value {
            Value::SignIn(sign_in) => Some(sign_in),
            _ => None,
        })
    }
}

/// The exchange, where somebody signs in with this request.
fn exchange(
    credential: &Credential,
    to: &Destination<'_>,
    head: &Parts,
    now: SystemTime,
) -> Option<Result<Exchange, Refusal>> {
    let Value::SignIn(sign_in) = &credential.value else { return None };
    // Whatever the method: servers differ in which they take, and in the headers by which they take one for another.
    let is_meant = to.tls && sign_in.endpoint.takes(to.host, to.port, head.uri.path());
    is_meant.then(|| {
        if head.headers.contains_key(http::header::CONTENT_ENCODING) {
            return Err(Refusal::unsupported(
                "a compressed request to a token endpoint cannot be looked into",
            ));
        }
        Ok(Exchange::new(&credential.name, sign_in, now))
    })
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Credentials").field(&self.names()).finish()
    }
}

/// Looks for placeholders in bytes on their way to a host.
pub struct Watch {
    set: Arc<Set>,
    /// By credential: whether it is for that host.
    passes: Vec<bool>,
    tail: Tail,
    host: String,
    tls: bool,
}

impl Watch {
    /// Whether a secret for that host is put into headers of this name, as CGI and its like read it.
    pub fn is_place(&self, name: &HeaderName) -> bool {
        let mine = self.set.list.iter().zip(&self.passes).filter(|(_, passes)| **passes);
        mine.flat_map(|(credential, _)| &credential.binding.places)
            .any(|place| matches!(place, Place::Header { name: known, .. } if place::is_read_as(name, known)))
    }

    /// Takes the next bytes. They are not held back: a placeholder is worth nothing, and that somebody sent it is what counts.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let Self { set, passes, tail, .. } = self;
        let mut stranger = None;
        tail.feed(set.finder.longest(), bytes, |bytes| {
            let wrong = |number: &usize| passes.get(*number) == Some(&false);
            stranger = stranger.or_else(|| set.finder.all(bytes).find(wrong));
        });
        let Some(credential) = stranger.and_then(|number| self.set.list.get(number)) else { return Ok(()) };
        Err(credential.gone_astray(&self.host, self.tls))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("host", &self.host).finish_non_exhaustive()
    }
}
