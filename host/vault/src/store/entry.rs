//! One secret as the index has it: all about it but the value.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::error::{Error, Result};
use super::source::{DEFAULT_REFRESH, Source};
use super::{MAX_VALUE, hash};
use crate::binding::{Binding, Place as Where};
use crate::oauth::Endpoint;
use crate::secret::Secret;
use crate::services::{self, Git, Kind};
use crate::shape::{Shape, ShapeKey};
use crate::sigv4::Keys;

/// For whom a secret is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// For all sandboxes.
    Global,
    /// For the one with this id.
    Sandbox(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "for all sandboxes",
            Self::Sandbox(_) => "for that sandbox",
        })
    }
}

/// Where a value is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// In the desktop's keychain.
    Keychain,
    /// In encrypted files.
    Files,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keychain => "the keychain",
            Self::Files => "the encrypted files",
        })
    }
}

/// How long a value that a program gave is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refresh {
    /// So many seconds.
    Every(u64),
    /// The program is run each time.
    OnDemand,
}

/// A secret without its value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Random; the value is kept under it.
    pub(crate) id: String,
    /// The service's name, or one of the user's own.
    pub name: String,
    /// The service, if it is one of the table.
    pub service: Option<String>,
    /// For whom it is.
    pub scope: Scope,
    /// Where it may go.
    pub binding: Binding,
    /// What it consists of.
    pub(crate) kind: Kind,
    /// The placeholder's form.
    pub shape: Shape,
    /// The form of the access key id, with AWS.
    pub(crate) key_id: Option<Shape>,
    /// The guest's variables.
    pub env: BTreeMap<String, String>,
    /// For git over HTTPS.
    pub(crate) git: Option<Git>,
    /// Where the value comes from.
    pub source: Source,
    /// How long that holds.
    pub refresh: Refresh,
    /// Where it is kept, if it is.
    pub kept: Option<Place>,
    /// Ids of sandboxes where somebody has signed in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed_in: Vec<String>,
    /// When it was put in first (RFC 3339).
    pub created: String,
    /// When it was put in last.
    pub replaced: String,
}

/// What the guest has instead.
pub(crate) struct Holders {
    pub(crate) value: String,
    pub(crate) key_id: Option<String>,
}

/// What a custom secret shall be.
#[derive(Clone, Debug, Default)]
pub struct Custom {
    /// Where it may go.
    pub binding: Binding,
    /// The guest's variables that have the placeholder. Without one it is put in without a placeholder.
    pub env: Vec<String>,
    /// The placeholder's form.
    pub placeholder: Option<Shape>,
    /// The user's name, if git shall use it as a password.
    pub git_user: Option<String>,
}

impl Entry {
    /// For a service of the table.
    pub fn of_service(name: &str, scope: Scope, source: Source, allow_other: bool) -> Result<Self> {
        let unknown = || Error::UnknownService { name: name.to_owned(), nearest: services::nearest(name) };
        let service = services::find(name).ok_or_else(unknown)?;
        let mut binding = Binding {
            hosts: service.hosts.clone(),
            places: service.places.clone(),
            allow_other,
            ..Binding::default()
        };
        let mut env = service.env.clone();
        if source == Source::SignIn {
            let endpoint: &Endpoint = services::endpoint(name).ok_or(Error::BadName {
                name: name.to_owned(),
                why: "has no way to sign in that viv knows; give it a key instead",
            })?;
            binding.hosts.clone_from(&endpoint.resources);
            binding.places = vec![
                Where::Header { name: "authorization".into(), format: None },
                Where::Basic { user: None },
            ];
            // Tools that see a key do not offer to sign in.
            env.clear();
        }
        Ok(Self {
            service: Some(service.name.clone()),
            kind: service.kind,
            key_id: service.key_id.clone(),
            env,
            git: service.git.clone(),
            ..Self::fresh(&service.name, scope, source, binding, service.shape.clone())
        })
    }

    /// One of the user's own.
    pub fn custom(name: &str, scope: Scope, source: Source, custom: Custom) -> Result<Self> {
        check_name(name)?;
        for variable in &custom.env {
            check_variable(variable)?;
        }
        let bad = |why| Error::BadName { name: name.to_owned(), why };
        let mut binding = custom.binding;
        let Some(first) = binding.hosts.first() else { return Err(bad("has no host that it is for")) };
        let git = match custom.git_user {
            None => None,
            Some(user) => {
                let fits = !user.is_empty()
                    && user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@+".contains(&byte));
                if !fits || first.to_string().contains('*') {
                    return Err(bad(
                        "can be git's password only for one host and a user of letters, digits and -_.@+",
                    ));
                }
                Some(Git { url: format!("https://{first}"), user })
            }
        };
        binding.inject = custom.env.is_empty() && git.is_none();
        if binding.places.is_empty() {
            binding.places =
                if git.is_some() { vec![Where::Basic { user: None }] } else { vec![Where::AnyHeader] };
        }
        let is_vague =
            |place: &Where| matches!(place, Where::AnyHeader | Where::Basic { user: None } | Where::SigV4);
        if binding.inject && binding.places.iter().any(is_vague) {
            return Err(bad(
                "has neither a variable (--env) for a placeholder nor a place (--header, --query, --basic USER) of its own",
            ));
        }
        let shape = match custom.placeholder {
            Some(shape) => shape,
            None => "viv-{alnum:32}".parse()?,
        };
        Ok(Self {
            env: custom.env.into_iter().map(|variable| (variable, "{value}".to_owned())).collect(),
            git,
            ..Self::fresh(name, scope, source, binding, shape)
        })
    }

    /// A token that nothing was kept of yet.
    fn fresh(name: &str, scope: Scope, source: Source, binding: Binding, shape: Shape) -> Self {
        let now = timestamp();
        Self {
            id: String::new(),
            name: name.to_owned(),
            service: None,
            scope,
            binding,
            kind: Kind::Token,
            shape,
            key_id: None,
            env: BTreeMap::new(),
            git: None,
            source,
            refresh: Refresh::Every(DEFAULT_REFRESH.as_secs()),
            kept: None,
            signed_in: Vec::new(),
            created: now.clone(),
            replaced: now,
        }
    }

    /// Where its placeholder is git's password. Where somebody signs in there is nothing to hand out before.
    pub(crate) fn git_password(&self) -> Option<&Git> {
        self.git.as_ref().filter(|_| self.source != Source::SignIn)
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.scope == other.scope && self.name == other.name
    }

    /// What stands for it in a sandbox's guest: it follows from the sandbox and the name, so that a value that is set again needs no new one.
    pub(crate) fn placeholders(&self, key: &ShapeKey, sandbox: &str) -> Holders {
        let derive = |shape: &Shape, part| shape.derive(key, &[sandbox, &self.name, part]);
        Holders {
            value: derive(&self.shape, "value"),
            key_id: self.key_id.as_ref().map(|shape| derive(shape, "key id")),
        }
    }

    /// Under which a sandbox's tokens are kept.
    pub(crate) fn grant_id(&self, sandbox: &str) -> String {
        let safe: String = sandbox.chars().filter(char::is_ascii_alphanumeric).collect();
        format!("{}-{safe}", self.id)
    }

    /// A hash of all that decides where the value goes.
    pub(crate) fn seal(&self) -> String {
        let bound = (&self.name, &self.service, &self.scope, &self.binding);
        hash(&serde_json::to_vec(&bound).unwrap_or_default())
    }
}

fn timestamp() -> String {
    let now = SystemTime::now().max(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(now).to_string()
}

fn check_name(name: &str) -> Result<()> {
    let bad = |why| Err(Error::BadName { name: name.to_owned(), why });
    if services::find(name).is_some() {
        return bad("is the name of a service: viv secret set is for those");
    }
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !fits || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return bad("cannot be a secret's name: use 1 to 63 letters, digits, dots, dashes and underscores");
    }
    Ok(())
}

/// What shells and loaders go by: with a placeholder in it nothing would start.
const OF_SYSTEMS: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "TERM",
    "LANG",
    "TMPDIR",
    "IFS",
    "ENV",
    "BASH_ENV",
    "SSL_CERT_FILE",
];

fn check_variable(name: &str) -> Result<()> {
    if OF_SYSTEMS.contains(&name) || name.starts_with("LD_") {
        return Err(Error::BadName {
            name: name.to_owned(),
            why: "is a variable that every program goes by",
        });
    }
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if begins && name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Ok(());
    }
    Err(Error::BadName { name: name.to_owned(), why: "cannot be a variable's name" })
}

/// Refuses a value that could stand in no request.
pub fn checked_value(entry: &Entry, value: &Secret) -> Result<()> {
    let bad = |why: &str| Err(Error::BadValue(format!("the value of \"{}\" {why}", entry.name)));
    if value.is_empty() {
        return bad("is empty");
    }
    if value.len() > MAX_VALUE {
        return bad(&format!("is longer than {MAX_VALUE} bytes"));
    }
    if entry.kind == Kind::Aws {
        return aws_keys(value).map(drop);
    }
    if !value.expose().iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return bad("has line ends or other characters that cannot stand in a header");
    }
    if value.expose().starts_with(b" ") || value.expose().ends_with(b" ") {
        return bad("begins or ends with a space");
    }
    Ok(())
}

/// The keys in a text: what `aws configure export-credentials` prints (JSON or variables), or the id, the secret and a session token on lines of
/// their own. With them, when they end.
pub fn aws_keys(value: &Secret) -> Result<(Keys, Option<SystemTime>)> {
    let bad = || {
        Error::BadValue(
            "this is no AWS key: give the access key id, the secret access key and, if there is one, the session token, each on a line".into(),
        )
    };
    let text = value.expose_text().ok_or_else(bad)?.trim();
    let mut parts: [Option<String>; 3] = [None, None, None];
    let mut ends = None;
    if text.starts_with('{') {
        let mut map: BTreeMap<String, serde_json::Value> = serde_json::from_str(text).map_err(|_| bad())?;
        for (name, slot) in ["AccessKeyId", "SecretAccessKey", "SessionToken"].iter().zip(&mut parts) {
            if let Some(serde_json::Value::String(text)) = map.remove(*name) {
                *slot = Some(text);
            }
        }
        let expiration = map.get("Expiration").and_then(serde_json::Value::as_str);
        ends = expiration.and_then(|text| humantime::parse_rfc3339(&text.replace("+00:00", "Z")).ok());
    } else {
        for (number, line) in text.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
            let line = line.strip_prefix("export ").unwrap_or(line);
            let names = ["AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_SESSION_TOKEN="];
            if line.starts_with("AWS_CREDENTIAL_EXPIRATION=") {
                continue;
            }
            let named =
                names.iter().zip(0usize..).find_map(|(name, at)| Some((at, line.strip_prefix(name)?)));
            let (at, text) = named.unwrap_or((number, line));
            *parts.get_mut(at).ok_or_else(bad)? = Some(text.trim_matches('"').to_owned());
        }
    }
    let [key_id, secret, token] = parts;
    let fits = |text: &str, extra: &[u8]| {
        (16..=4096).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    match (key_id, secret) {
        (Some(key_id), Some(mut secret)) if fits(&key_id, b"_") && fits(&secret, b"/+=") => {
            let keys = Keys {
                key_id: Secret::from(key_id),
                secret: Secret::from(std::mem::take(&mut secret)),
                session_token: token.filter(|token| !token.is_empty()).map(Secret::from),
            };
            Ok((keys, ends))
        }
        (key_id, secret) => {
            for mut text in [key_id, secret, token].into_iter().flatten() {
                text.zeroize();
            }
            Err(bad())
        }
    }
}
