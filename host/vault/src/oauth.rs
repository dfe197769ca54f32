//! Signing in: the tokens that a token endpoint answers with (RFC 6749, section 5.1) stay on the host. The guest gets *sentinels* of the
//! same shape, which work as placeholders do, and the gateway asks for new tokens before the old ones end.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use memchr::memmem;
use percent_encoding::utf8_percent_encode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::{Zeroize, Zeroizing};

use crate::credentials::WireError;
use crate::hosts::HostPattern;
use crate::mask::UNRESERVED;
use crate::refusal::Refusal;
use crate::secret::{Secret, as_base64};
use crate::shape::{Shape, ShapeKey};
use crate::sigv4::decoded;

/// The longest body of a request to a token endpoint and of its answer, in bytes.
pub const MAX_BODY: usize = 64 << 10;

/// Sentinels that go on working after their token was renewed: one whose text shows when it ends changes each time.
const KEPT_SENTINELS: usize = 4;
/// Tokens in one answer.
const MOST_TOKENS: usize = 16;
/// Levels of an answer that are looked into.
const DEEPEST: usize = 8;
/// The longest time that a token holds, in seconds: ten years.
const LONGEST_LIFE: u64 = 315_360_000;

/// The names under which tokens stand in answers.
const TOKEN_FIELDS: [&str; 3] = ["access_token", "refresh_token", "id_token"];

/// How tokens begin by which tools tell their kind. This much of one is no secret.
const PREFIXES: [&str; 9] =
    ["sk-ant-oat01-", "sk-ant-ort01-", "gho_", "ghu_", "ghr_", "ghp_", "ya29.", "1//", "rt_"];

/// Requests by which somebody who has signed in gets further credentials, which nobody would keep here: the service and the path.
const MINTS: [(&str, &str); 1] = [("anthropic", "/api/oauth/claude_cli/create_api_key")];

/// Where people sign in to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// The service.
    pub service: String,
    /// The hosts of the endpoint, each the same for all that matters.
    pub hosts: Vec<HostPattern>,
    /// Its paths.
    pub paths: Vec<String>,
    /// Where the tokens may be used.
    pub resources: Vec<HostPattern>,
    /// How the endpoint wants a request for new tokens.
    pub body: BodyKind,
}

/// The form of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyKind {
    /// `application/x-www-form-urlencoded`, as the specification has it.
    Form,
    /// `application/json`.
    Json,
}

impl Endpoint {
    /// Whether it is on this host.
    pub fn is_at(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host, port))
    }

    /// Whether a request to there is one for tokens.
    pub fn takes(&self, host: &str, port: u16, path: &str) -> bool {
        if !self.is_at(host, port) {
            return false;
        }
        let path = spelt_plainly(path);
        self.paths.iter().any(|known| spelt_plainly(known) == path)
    }
}

/// A path as the most lenient server may read it: decoded, without empty and dotted segments, parameters, a form's suffix and case.
/// Whoever is in the guest chooses the spelling, and an exchange that is not seen puts real tokens there.
fn spelt_plainly(path: &str) -> String {
    let mut decoded = path.to_lowercase();
    // A server behind a server decodes what was decoded.
    for _ in 0..3 {
        decoded = percent_encoding::percent_decode_str(&decoded).decode_utf8_lossy().to_lowercase();
    }
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split(['/', '\\']) {
        let name = segment.split(';').next().unwrap_or_default();
        match name.trim_matches(|letter: char| letter.is_whitespace() || letter.is_control()) {
            "" | "." => {}
            ".." => _ = segments.pop(),
            segment => segments.push(segment),
        }
    }
    let mut joined = segments.join("/");
    if joined.ends_with(".json") {
        joined.truncate(joined.len() - ".json".len());
    }
    joined
}

/// A service where somebody signs in inside the guest.
#[derive(Debug, Serialize, Deserialize)]
pub struct SignIn {
    /// Where.
    pub endpoint: Endpoint,
    /// What sentinels are derived from, with the sandbox's id.
    pub key: ShapeKey,
    /// The sandbox's id.
    pub sandbox: String,
    /// The tokens, once somebody has signed in.
    pub grant: Option<Grant>,
}

/// Tokens that were granted.
#[derive(Debug, Serialize, Deserialize)]
pub struct Grant {
    pub(crate) name: String,
    tokens: Vec<Token>,
    /// Unix time in seconds.
    ends: Option<u64>,
    /// What the client said of itself (`client_id`, …); needed to ask for new tokens.
    client: Vec<ClientField>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Token {
    /// Where it stands in the answer, with dots between the levels.
    field: String,
    #[serde(with = "as_base64")]
    value: Secret,
    /// The newest one last.
    sentinels: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ClientField {
    name: String,
    #[serde(with = "as_base64")]
    value: Secret,
}

impl Token {
    fn duplicate(&self) -> Self {
        Self { field: self.field.clone(), value: self.value.duplicate(), sentinels: self.sentinels.clone() }
    }
}

impl ClientField {
    fn duplicate(&self) -> Self {
        Self { name: self.name.clone(), value: self.value.duplicate() }
    }
}

impl Grant {
    /// The secret that it belongs to.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When its tokens end, if that was said.
    pub fn ends(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.ends?))
    }

    /// A second one of the same values.
    pub fn duplicate(&self) -> Self {
        Self {
            name: self.name.clone(),
            tokens: self.tokens.iter().map(Token::duplicate).collect(),
            ends: self.ends,
            client: self.client.iter().map(ClientField::duplicate).collect(),
        }
    }

    /// As text, with the values in it: for the process that keeps it.
    pub fn to_wire(&self) -> Result<Zeroizing<String>, WireError> {
        Ok(Zeroizing::new(serde_json::to_string(self)?))
    }

    /// Reads what [`Grant::to_wire`] wrote.
    pub fn from_wire(text: &str) -> Result<Self, WireError> {
        if text.len() > crate::credentials::MAX_WIRE {
            return Err(WireError::TooLong);
        }
        Ok(serde_json::from_str(text)?)
    }

    fn field(&self, field: &str) -> Option<&Token> {
        self.tokens.iter().find(|token| token.field == field)
    }
}

impl SignIn {
    pub(crate) fn sentinels(&self) -> Vec<&str> {
        self.all_pairs().map(|(_, sentinel)| sentinel).collect()
    }

    /// Each value with its newest sentinel.
    pub(crate) fn values(&self) -> Vec<(&Secret, &str)> {
        let tokens = self.grant.iter().flat_map(|grant| &grant.tokens);
        tokens.filter_map(|token| Some((&token.value, token.sentinels.last()?.as_str()))).collect()
    }

    /// Each value with each of its sentinels.
    pub(crate) fn all_pairs(&self) -> impl Iterator<Item = (&Secret, &str)> {
        let tokens = self.grant.iter().flat_map(|grant| &grant.tokens);
        tokens.flat_map(|token| token.sentinels.iter().map(move |sentinel| (&token.value, sentinel.as_str())))
    }

    pub(crate) fn ends(&self) -> Option<SystemTime> {
        self.grant.as_ref()?.ends()
    }

    /// Whether there are tokens that have not ended.
    pub(crate) fn is_signed_in(&self, now: SystemTime) -> bool {
        self.grant.is_some() && self.ends().is_none_or(|ends| now < ends)
    }

    /// Whether a request to this path would be answered with a further credential.
    pub(crate) fn mints(&self, path: &str) -> bool {
        let known = MINTS.iter().filter(|(service, _)| *service == self.endpoint.service);
        known.into_iter().any(|(_, known)| spelt_plainly(known) == spelt_plainly(path))
    }

    /// Whether a request asks for new tokens with the refresh token that is kept here, and for nothing else: each field is there once.
    fn is_renewal(&self, body: &[u8], is_json: bool) -> bool {
        let Some(fields) = fields(body, is_json) else { return false };
        let is_once = |name: &str| fields.iter().filter(|(known, _)| known == name).count() == 1;
        let value = |name| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let tokens = self.grant.iter().flat_map(|grant| &grant.tokens);
        let mut kept = tokens.filter(|token| token.field.ends_with("refresh_token"));
        fields.iter().all(|(name, _)| is_once(name))
            && value("grant_type") == Some("refresh_token")
            && value("refresh_token").is_some_and(|asked| {
                kept.any(|token| token.sentinels.iter().any(|sentinel| sentinel == asked))
            })
    }

    pub(crate) fn duplicate(&self) -> Self {
        Self {
            endpoint: self.endpoint.clone(),
            key: self.key,
            sandbox: self.sandbox.clone(),
            grant: self.grant.as_ref().map(Grant::duplicate),
        }
    }

    /// What to ask for new tokens, if there is something to ask with.
    pub(crate) fn refresh(&self) -> Option<Refresh> {
        let grant = self.grant.as_ref()?;
        let token = grant.field("refresh_token")?;
        let host = self.endpoint.hosts.first()?;
        let text = |secret: &'_ Secret| secret.expose_text().map(|text| Zeroizing::new(text.to_owned()));
        let mut fields = vec![
            ("grant_type".to_owned(), Zeroizing::new("refresh_token".to_owned())),
            ("refresh_token".to_owned(), text(&token.value)?),
        ];
        for field in &grant.client {
            fields.push((field.name.clone(), text(&field.value)?));
        }
        Some(Refresh {
            name: grant.name.clone(),
            host: host.name().to_owned(),
            port: host.port(),
            path: self.endpoint.paths.first()?.clone(),
            content_type: match self.endpoint.body {
                BodyKind::Form => "application/x-www-form-urlencoded",
                BodyKind::Json => "application/json",
            },
            body: written(&fields, self.endpoint.body)?,
            sign_in: self.duplicate(),
        })
    }
}

fn written(fields: &[(String, Zeroizing<String>)], kind: BodyKind) -> Option<Zeroizing<Vec<u8>>> {
    let mut out = Zeroizing::new(Vec::with_capacity(MAX_BODY));
    match kind {
        BodyKind::Form => {
            for (name, value) in fields {
                if !out.is_empty() {
                    out.push(b'&');
                }
                out.extend_from_slice(name.as_bytes());
                out.push(b'=');
                for part in utf8_percent_encode(value, UNRESERVED) {
                    out.extend_from_slice(part.as_bytes());
                }
            }
        }
        BodyKind::Json => {
            let pairs: std::collections::BTreeMap<&str, &str> =
                fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            serde_json::to_writer(&mut *out, &pairs).ok()?;
        }
    }
    Some(out)
}

/// One request to a token endpoint and its answer.
#[derive(Debug)]
pub struct Exchange {
    name: String,
    sign_in: SignIn,
    client: Vec<ClientField>,
    now: SystemTime,
    /// The request was for new tokens in place of those that are kept.
    renews: bool,
}

/// What came of an answer.
#[derive(Debug)]
pub struct Kept {
    /// What the guest gets.
    pub body: Vec<u8>,
    /// The tokens.
    pub grant: Grant,
}

impl Exchange {
    pub(crate) fn new(name: &str, sign_in: &SignIn, now: SystemTime) -> Self {
        let (name, sign_in) = (name.to_owned(), sign_in.duplicate());
        Self { name, sign_in, client: Vec::new(), now, renews: false }
    }

    /// The secret that it is of.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn renews(&self) -> bool {
        self.renews
    }

    /// The request's body with tokens for sentinels. Its length may change. Whoever is in the guest could sign in as somebody else, and have
    /// the user's work go there: while there is a login only its own renewal passes.
    pub fn request(
        &mut self,
        content_type: Option<&str>,
        body: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        if body.len() > MAX_BODY {
            return Err(Refusal::TooLarge { what: "a request to a token endpoint", limit: MAX_BODY });
        }
        let kind = content_type
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let is_json = kind == "application/json" || kind.ends_with("+json");
        self.client = client_fields(body, is_json);
        self.renews = self.sign_in.is_renewal(body, is_json);
        if !self.renews && self.sign_in.is_signed_in(self.now) {
            return Err(Refusal::SignedIn { secret: self.name.clone() });
        }
        let replaced = if is_json { self.in_json(body) } else { self.in_form(body) };
        if replaced.len() > MAX_BODY.saturating_mul(2) {
            return Err(Refusal::TooLarge { what: "a request to a token endpoint", limit: MAX_BODY });
        }
        Ok(replaced)
    }

    /// Sentinels are ASCII that JSON does not escape; each is a whole string.
    fn in_json(&self, body: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(body.to_vec());
        for (value, sentinel) in self.sign_in.all_pairs() {
            let quoted = format!("\"{sentinel}\"");
            let Some(at) = memmem::find(&text, quoted.as_bytes()) else { continue };
            let Some(value) = value.expose_text().and_then(|value| serde_json::to_string(value).ok()) else {
                continue;
            };
            let value = Zeroizing::new(value);
            let (before, behind) = text.split_at(at);
            let behind = behind.get(quoted.len()..).unwrap_or_default();
            text = Zeroizing::new([before, value.as_bytes(), behind].concat());
        }
        text
    }

    fn in_form(&self, body: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(body.len().saturating_mul(2)));
        for (number, field) in body.split(|byte| *byte == b'&').enumerate() {
            if number > 0 {
                out.push(b'&');
            }
            let at =
                field.iter().position(|byte| *byte == b'=').map_or(field.len(), |at| at.saturating_add(1));
            let (name, value) = field.split_at(at);
            let plain = decoded(&String::from_utf8_lossy(value));
            out.extend_from_slice(name);
            match self.sign_in.all_pairs().find(|(_, sentinel)| *sentinel == plain) {
                Some((real, _)) => {
                    let encoded = percent_encoding::percent_encode(real.expose(), UNRESERVED);
                    encoded.for_each(|part| out.extend_from_slice(part.as_bytes()));
                }
                None => out.extend_from_slice(value),
            }
        }
        out
    }

    /// Takes the tokens out of an answer. `None`: there are none in it (it is an error, or somebody has yet to agree), and it passes as it is.
    /// An answer that cannot be understood is refused: it may have tokens in it.
    pub fn response(&self, status: u16, body: &[u8], now: SystemTime) -> Result<Option<Kept>, Refusal> {
        kept(&self.name, &self.sign_in, &self.client, status, body, now)
    }
}

/// `client_id` and `client_secret` of a request.
fn client_fields(body: &[u8], is_json: bool) -> Vec<ClientField> {
    const NAMES: [&str; 2] = ["client_id", "client_secret"];
    let field = |name: &str, value: String| ClientField { name: name.to_owned(), value: Secret::from(value) };
    if is_json {
        let Ok(Value::Object(mut map)) = serde_json::from_slice(body) else { return Vec::new() };
        let fields = NAMES.iter().filter_map(|name| match map.remove(*name) {
            Some(Value::String(value)) => Some(field(name, value)),
            _ => None,
        });
        let fields = fields.collect();
        wipe(&mut Value::Object(map));
        return fields;
    }
    let text = String::from_utf8_lossy(body);
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| NAMES.contains(name)).map(|(name, value)| field(name, decoded(value))).collect()
}

/// The fields of a request, texts alone, as often as they are there; `None` when that cannot be said.
fn fields(body: &[u8], is_json: bool) -> Option<Vec<(String, String)>> {
    if is_json {
        return serde_json::from_slice::<Fields>(body).ok().map(|fields| fields.0);
    }
    let pairs = std::str::from_utf8(body).ok()?.split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    };
    Some(pairs.map(pair).collect())
}

/// The fields of a JSON object; one that is there twice is there twice.
struct Fields(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    let value = if let Value::String(text) = value { text } else { value.to_string() };
                    fields.push((name, value));
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(Visitor)
    }
}

/// Overwrites all strings.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(list) => list.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        _ => {}
    }
}

/// A request for new tokens, to be sent by the gateway.
pub struct Refresh {
    /// The secret.
    pub name: String,
    /// Where to.
    pub host: String,
    /// Where to.
    pub port: u16,
    /// POST to this path.
    pub path: String,
    /// What the body is.
    pub content_type: &'static str,
    /// The body, with a real token in it.
    pub body: Zeroizing<Vec<u8>>,
    sign_in: SignIn,
}

impl std::fmt::Debug for Refresh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refresh").field("name", &self.name).field("host", &self.host).finish_non_exhaustive()
    }
}

impl Refresh {
    /// The tokens of the answer.
    pub fn response(&self, status: u16, body: &[u8], now: SystemTime) -> Result<Grant, Refusal> {
        let unavailable = |why: String| Refusal::Unavailable { secret: self.name.clone(), why };
        if !(200..300).contains(&status) {
            return Err(unavailable(format!(
                "the token endpoint of {} answered {status}; sign in again",
                self.sign_in.endpoint.service
            )));
        }
        match kept(&self.name, &self.sign_in, &[], status, body, now)? {
            Some(kept) => Ok(kept.grant),
            None => Err(unavailable(
                "the answer of the token endpoint has no token in it; sign in again".to_owned(),
            )),
        }
    }
}

fn kept(
    name: &str,
    sign_in: &SignIn,
    client: &[ClientField],
    status: u16,
    body: &[u8],
    now: SystemTime,
) -> Result<Option<Kept>, Refusal> {
    let grants = (200..300).contains(&status);
    if grants && body.len() > MAX_BODY {
        return Err(Refusal::TooLarge { what: "the answer of a token endpoint", limit: MAX_BODY });
    }
    let mut taken = Taken { sign_in, tokens: Vec::new(), life: None };
    let shown = match serde_json::from_slice::<Value>(body) {
        Ok(mut answer) => {
            taken.take_json(&mut answer, "", 0)?;
            let shown = serde_json::to_vec(&answer)
                .map_err(|_| Refusal::malformed("the answer cannot be written"))?;
            wipe(&mut answer);
            shown
        }
        // A page of words about an error passes where there can be no token in it.
        Err(_) if !grants && is_harmless(body) => return Ok(None),
        Err(_) => taken.take_form(body)?,
    };
    let Taken { tokens: mut fresh, life, .. } = taken;
    if fresh.is_empty() {
        return Ok(None);
    }
    if !grants {
        return Err(Refusal::malformed(format!("the token endpoint answered {status} with a token")));
    }
    let before = sign_in.grant.as_ref();
    for token in before.iter().flat_map(|grant| &grant.tokens) {
        match fresh.iter_mut().find(|new| new.field == token.field) {
            // An answer may leave out what stays as it is.
            None => fresh.push(token.duplicate()),
            Some(new) => {
                let newest = std::mem::take(&mut new.sentinels);
                let older = token.sentinels.iter().filter(|old| !newest.contains(old)).cloned();
                let mut all: Vec<String> = older.chain(newest.iter().cloned()).collect();
                let surplus = all.len().saturating_sub(KEPT_SENTINELS);
                new.sentinels = all.drain(..).skip(surplus).collect();
            }
        }
    }
    let client = match (client, before) {
        ([], Some(before)) => before.client.iter().map(ClientField::duplicate).collect(),
        (client, _) => client.iter().map(ClientField::duplicate).collect(),
    };
    let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let ends = life.map(|life| since_epoch.saturating_add(life.min(LONGEST_LIFE)));
    Ok(Some(Kept { body: shown, grant: Grant { name: name.to_owned(), tokens: fresh, ends, client } }))
}

/// Text in which no field of a token is named.
fn is_harmless(body: &[u8]) -> bool {
    std::str::from_utf8(body)
        .is_ok_and(|text| !text.contains('\0') && !TOKEN_FIELDS.iter().any(|field| text.contains(field)))
}

/// What is taken out of an answer.
struct Taken<'a> {
    sign_in: &'a SignIn,
    tokens: Vec<Token>,
    /// Seconds.
    life: Option<u64>,
}

impl Taken<'_> {
    fn take_json(&mut self, value: &mut Value, path: &str, depth: usize) -> Result<(), Refusal> {
        if depth > DEEPEST {
            return Err(Refusal::malformed("the answer of the token endpoint is nested too deep"));
        }
        match value {
            Value::Object(map) => self.take_object(map, path, depth),
            Value::Array(list) => {
                for (number, item) in list.iter_mut().enumerate() {
                    self.take_json(item, &format!("{path}{number}."), depth.saturating_add(1))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_object(&mut self, map: &mut Map<String, Value>, path: &str, depth: usize) -> Result<(), Refusal> {
        for (name, value) in map.iter_mut() {
            let field = format!("{path}{name}");
            let is_token = TOKEN_FIELDS.contains(&name.as_str());
            match value {
                Value::String(text) if is_token && !text.is_empty() => {
                    *text = self.token(field, std::mem::take(text))?;
                }
                Value::Array(_) | Value::Object(_) | Value::Number(_) if is_token => {
                    return Err(Refusal::malformed("a token in the answer of the token endpoint is no text"));
                }
                Value::Number(number) if field == "expires_in" => self.life = number.as_u64(),
                Value::String(text) if field == "expires_in" => self.life = text.parse().ok(),
                other => self.take_json(other, &format!("{field}."), depth.saturating_add(1))?,
            }
        }
        Ok(())
    }

    fn take_form(&mut self, body: &[u8]) -> Result<Vec<u8>, Refusal> {
        let text = std::str::from_utf8(body)
            .ok()
            .filter(|text| text.contains('=') && !text.contains(['{', '<', '\n']));
        let text = text.ok_or_else(|| {
            Refusal::malformed("the answer of the token endpoint is neither JSON nor a form")
        })?;
        let (mut out, mut is_known) = (Vec::new(), false);
        for pair in text.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name);
            is_known |= name == "error" || TOKEN_FIELDS.contains(&name.as_str());
            let value = if TOKEN_FIELDS.contains(&name.as_str()) && !value.is_empty() {
                self.token(name.clone(), decoded(value))?
            } else {
                if name == "expires_in" {
                    self.life = value.parse().ok();
                }
                decoded(value)
            };
            out.push(format!(
                "{}={}",
                utf8_percent_encode(&name, UNRESERVED),
                utf8_percent_encode(&value, UNRESERVED)
            ));
        }
        if !is_known {
            // Base64 has equals signs, too.
            return Err(Refusal::malformed("the answer of the token endpoint is no form of the standard's"));
        }
        Ok(out.join("&").into_bytes())
    }

    /// Keeps a token; what the guest gets.
    fn token(&mut self, field: String, value: String) -> Result<String, Refusal> {
        if self.tokens.len() >= MOST_TOKENS {
            return Err(Refusal::malformed("the answer of the token endpoint has too many tokens"));
        }
        let sentinel = sentinel(self.sign_in, &field, &value);
        self.tokens.push(Token { field, value: Secret::from(value), sentinels: vec![sentinel.clone()] });
        Ok(sentinel)
    }
}

/// What stands for a token. Of a JWT (RFC 7519) tools read the claims, which are no secret; without the signature it is worth nothing.
fn sentinel(sign_in: &SignIn, field: &str, token: &str) -> String {
    let random = |count: usize, of: &str| {
        let shape = format!("{{base64url:{}}}", count.clamp(32, 400)).parse::<Shape>();
        let label = ["sentinel", &sign_in.sandbox, &sign_in.endpoint.service, field, of];
        shape.map(|shape| shape.derive(&sign_in.key, &label)).unwrap_or_default()
    };
    if let Some((claims, signature)) = jwt(token) {
        return format!("{claims}.{}", random(signature.len(), claims));
    }
    let prefix = PREFIXES.iter().find(|prefix| token.starts_with(**prefix)).copied().unwrap_or_default();
    format!("{prefix}{}", random(token.len().saturating_sub(prefix.len()), ""))
}

/// A token's header and claims, and its signature.
fn jwt(token: &str) -> Option<(&str, &str)> {
    let (claims, signature) = token.rsplit_once('.')?;
    let (header, payload) = claims.split_once('.')?;
    let is_object = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<Map<String, Value>>(&bytes).ok()
    };
    is_object(header)?.get("alg")?;
    is_object(payload)?;
    Some((claims, signature))
}

#[cfg(test)]
mod tests;
