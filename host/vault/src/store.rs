//! Where secrets are kept on the host, and where their values come from.
//!
//! ```text
//! $XDG_DATA_HOME/vivarium/secrets/index.json   what there is: names, hosts, placeholders' forms, sources, times; never a value
//!                                 recipient, identity.age, values/*.age     see `encrypted`
//! $XDG_CONFIG_HOME/vivarium/vault.key          the private key, where no passphrase protects it
//! ```
//! A value is in the keychain where there is one, else in an encrypted file, else wherever its source has it. What a value is bound to is noted
//! with the value as well: an index that somebody changed does not send it elsewhere.

mod encrypted;
mod entry;
mod error;
mod files;
mod keychain;
mod source;
mod taken;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use self::encrypted::{Kind as FileKind, Protection};
pub use self::entry::{Custom, Entry, Place as KeptIn, Refresh, Scope, aws_keys, checked_value};
pub use self::error::{Error, Result};
pub use self::source::{DEFAULT_REFRESH, Reference, Source};
pub use self::taken::{Clash, Taken};

use self::encrypted::Files;
use self::keychain::Keychain;
use crate::credentials::{Credential, Credentials, Value};
use crate::oauth::{Grant, SignIn};
use crate::secret::{Secret, as_base64};
use crate::services::{self, Kind};
use crate::shape::{ShapeKey, keyed};

/// The longest value, in bytes.
pub const MAX_VALUE: usize = 16 << 10;
/// The format of the index.
const SCHEMA: u32 = 1;
/// Secrets in all.
const MOST_ENTRIES: usize = 1000;
/// The shortest time after which a program is run again because the keys that it gave end.
const SOONEST_REFRESH: Duration = Duration::from_secs(60);

/// The folders of the vault.
#[derive(Clone, Debug)]
pub struct Folders {
    /// `$XDG_DATA_HOME/vivarium/secrets`.
    pub data: PathBuf,
    /// `$XDG_CONFIG_HOME/vivarium`.
    pub config: PathBuf,
}

impl Folders {
    /// As the environment of this process has them.
    pub fn from_env() -> Result<Self> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || absolute("HOME").ok_or(Error::NoHome);
        let data =
            absolute("XDG_DATA_HOME").map_or_else(|| home().map(|home| home.join(".local/share")), Ok)?;
        let config =
            absolute("XDG_CONFIG_HOME").map_or_else(|| home().map(|home| home.join(".config")), Ok)?;
        Ok(Self { data: data.join("vivarium/secrets"), config: config.join("vivarium") })
    }

    fn index(&self) -> PathBuf {
        self.data.join("index.json")
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Index {
    schema: u32,
    shape_key: ShapeKey,
    entries: Vec<Entry>,
}

/// What is kept with a value.
#[derive(Serialize, Deserialize)]
struct Payload {
    /// What it is bound to: [`Entry::seal`].
    bound: String,
    #[serde(with = "as_base64")]
    value: Secret,
}

/// Where new values are put.
#[derive(Debug)]
pub enum Keep {
    /// The keychain if it answers, else the encrypted files; a key is made with this protection if there is none.
    Best(Option<Protection>),
    /// The keychain.
    Keychain,
    /// The encrypted files; a key is made with this protection if there is none.
    Files(Option<Protection>),
}

/// The secrets of this user.
#[derive(Debug)]
pub struct Vault {
    folders: Folders,
    index: Option<Index>,
    files: Files,
    /// Values that programs gave, and when.
    cache: BTreeMap<String, (SystemTime, Secret)>,
    /// Values that were put in by this process, by their entries' ids: a locked store need not be opened for them.
    given: BTreeMap<String, Secret>,
}

/// What a sandbox gets.
#[derive(Debug)]
pub struct Resolved {
    /// All its credentials.
    pub credentials: Credentials,
    /// What could not be had, one sentence each.
    pub problems: Vec<String>,
    /// The names of those secrets.
    pub failed: Vec<String>,
    /// The names of those that were not asked for; see [`Vault::resolve_some`].
    pub unchanged: Vec<String>,
    /// When a value that came from a program is to be asked for again.
    pub next_refresh: Option<SystemTime>,
}

impl Vault {
    /// Reads what there is; no value is read and nobody is asked.
    pub fn open(folders: &Folders) -> Result<Self> {
        let mut vault = Self {
            folders: folders.clone(),
            index: None,
            files: Files::new(folders),
            cache: BTreeMap::new(),
            given: BTreeMap::new(),
        };
        vault.reload()?;
        Ok(vault)
    }

    fn reload(&mut self) -> Result<()> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let path = self.folders.index();
        let Some(bytes) = files::read(&path)? else {
            self.index = None;
            return Ok(());
        };
        let damaged =
            |error: serde_json::Error| Error::damaged(&path, format!("line {}: {error}", error.line()));
        let head: Head = serde_json::from_slice(&bytes).map_err(damaged)?;
        if head.schema > SCHEMA {
            return Err(Error::NewerFormat { path, found: head.schema });
        }
        self.index = Some(serde_json::from_slice(&bytes).map_err(damaged)?);
        Ok(())
    }

    /// All secrets, those for all sandboxes first.
    pub fn entries(&self) -> &[Entry] {
        self.index.as_ref().map(|index| index.entries.as_slice()).unwrap_or_default()
    }

    /// What this sandbox has: the global secrets that its own do not replace, and behind them those.
    fn of(&self, sandbox: &str) -> Vec<&Entry> {
        let mut by_name: BTreeMap<&str, &Entry> = BTreeMap::new();
        for entry in self.entries() {
            match &entry.scope {
                Scope::Sandbox(id) if id == sandbox => {
                    by_name.insert(&entry.name, entry);
                }
                Scope::Global => {
                    by_name.entry(&entry.name).or_insert(entry);
                }
                Scope::Sandbox(_) => {}
            }
        }
        let mut all: Vec<&Entry> = by_name.into_values().collect();
        // Of two that take one thing the sandbox's own comes last, and has it.
        all.sort_by_key(|entry| entry.scope != Scope::Global);
        all
    }

    /// Whether this sandbox has values that are to be asked for again while it runs.
    pub fn has_ends(&self, sandbox: &str) -> bool {
        let ends = |entry: &&Entry| {
            entry.source.is_dynamic() && (entry.refresh != Refresh::OnDemand || entry.kind == Kind::Aws)
        };
        self.of(sandbox).iter().any(ends)
    }

    /// One text for each secret of a sandbox, another one each time that it is set: whether there are others now.
    pub fn versions(&self, sandbox: &str) -> Vec<String> {
        self.of(sandbox).into_iter().map(|entry| entry.id.clone()).collect()
    }

    /// Whether this sandbox has any.
    pub fn applies(&self, sandbox: &str) -> bool {
        !self.of(sandbox).is_empty()
    }

    /// The variables of the guest. No value is read for them.
    pub fn environment(&self, sandbox: &str) -> Vec<(String, String)> {
        let Some(index) = &self.index else { return Vec::new() };
        let mut variables = BTreeMap::new();
        let mut git = Vec::new();
        for entry in self.of(sandbox) {
            let holders = entry.placeholders(&index.shape_key, sandbox);
            for (name, value) in &entry.env {
                let key_id = holders.key_id.as_deref().unwrap_or_default();
                variables.insert(
                    name.clone(),
                    value.replace("{value}", &holders.value).replace("{key_id}", key_id),
                );
            }
            // Where somebody signs in there is nothing to hand out before.
            if let Some(settings) = entry.git_password() {
                let key = format!("credential.{}.helper", settings.url);
                let script = format!(
                    "!f() {{ test \"$1\" = get && echo 'username={}' && echo 'password={}'; }}; f",
                    settings.user, holders.value
                );
                // The empty one takes away what the image may have.
                git.push((key.clone(), String::new()));
                git.push((key, script));
            }
        }
        if !git.is_empty() {
            variables.insert("GIT_CONFIG_COUNT".into(), git.len().to_string());
        }
        for (number, (key, value)) in git.into_iter().enumerate() {
            variables.insert(format!("GIT_CONFIG_KEY_{number}"), key);
            variables.insert(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        variables.into_iter().collect()
    }

    /// Where values are kept, plainly.
    pub fn storage(&self) -> Storage {
        let counted = |place: KeptIn| self.entries().iter().filter(|entry| entry.kept == Some(place)).count();
        Storage {
            in_keychain: counted(KeptIn::Keychain),
            in_files: counted(KeptIn::Files),
            elsewhere: self.entries().iter().filter(|entry| entry.kept.is_none()).count(),
            files: self.files.kind(),
            data: self.folders.data.clone(),
            key_file: self.files.key_file().clone(),
        }
    }

    /// Whether there are encrypted files, or a key for them.
    pub fn has_key(&self) -> bool {
        self.files.kind().is_some()
    }

    /// Whether [`Vault::resolve`] would ask for a passphrase.
    pub fn is_locked(&self, sandbox: &str) -> bool {
        self.files.is_locked() && self.of(sandbox).iter().any(|entry| entry.kept == Some(KeptIn::Files))
    }

    /// Puts a secret in, or replaces the one of the same name and scope. `value` is there for kept ones. Gives whether one was replaced.
    pub fn set(&mut self, mut entry: Entry, value: Option<&Secret>, keep: Keep) -> Result<bool> {
        let lock = files::Lock::take(&self.folders.data)?;
        self.reload()?;
        if let Some(value) = value {
            checked_value(&entry, value)?;
        }
        self.check_taken(&entry)?;
        let before = self.entries().iter().find(|known| known.is_same(&entry)).cloned();
        if before.is_none() && self.entries().len() >= MOST_ENTRIES {
            return Err(Error::BadValue(format!("there are {MOST_ENTRIES} secrets already")));
        }
        entry.id = random_id()?;
        if let Some(before) = &before {
            entry.created.clone_from(&before.created);
        }
        if let Some(value) = value {
            let place = self.place(keep)?;
            entry.kept = Some(place);
            self.put(place, &entry.id, &entry.seal(), value)?;
        } else if entry.source == Source::SignIn {
            entry.kept = Some(self.place(keep)?);
        }
        let id = entry.id.clone();
        let place = entry.kept;
        let outcome = self.change(|entries| {
            entries.retain(|known| !known.is_same(&entry));
            entries.push(entry);
            entries.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
        });
        if let Err(error) = outcome {
            if let Some(place) = place {
                let _ = self.erase(place, &id);
            }
            return Err(error);
        }
        if let Some(value) = value {
            self.given.insert(id, value.duplicate());
        }
        if let Some(before) = &before {
            self.erase_all(before)?;
        }
        drop(lock);
        Ok(before.is_some())
    }

    /// Takes a secret out.
    pub fn remove(&mut self, scope: &Scope, name: &str) -> Result<()> {
        let count = self.remove_where(|entry| entry.scope == *scope && entry.name == name)?;
        if count == 0 {
            return Err(Error::UnknownSecret { name: name.to_owned(), scope: scope.to_string() });
        }
        Ok(())
    }

    /// Takes out all that belongs to a sandbox, as it goes away itself. How many secrets that were.
    pub fn remove_sandbox(&mut self, sandbox: &str) -> Result<usize> {
        if self.index.is_none() {
            return Ok(0);
        }
        let grants: Vec<(KeptIn, String)> = self
            .entries()
            .iter()
            .filter(|entry| entry.source == Source::SignIn)
            .filter_map(|entry| Some((entry.kept?, entry.grant_id(sandbox))))
            .collect();
        for (place, id) in grants {
            self.erase(place, &id)?;
        }
        self.remove_where(|entry| entry.scope == Scope::Sandbox(sandbox.to_owned()))
    }

    fn remove_where(&mut self, is_meant: impl Fn(&Entry) -> bool) -> Result<usize> {
        if self.index.is_none() {
            return Ok(0);
        }
        let lock = files::Lock::take(&self.folders.data)?;
        self.reload()?;
        let gone: Vec<Entry> = self.entries().iter().filter(|entry| is_meant(entry)).cloned().collect();
        if gone.is_empty() {
            return Ok(0);
        }
        // The index first: a value that nobody knows of is better than an entry without one.
        self.change(|entries| entries.retain(|entry| !is_meant(entry)))?;
        for entry in &gone {
            self.erase_all(entry)?;
        }
        drop(lock);
        Ok(gone.len())
    }

    fn erase_all(&self, entry: &Entry) -> Result<()> {
        let Some(place) = entry.kept else { return Ok(()) };
        self.erase(place, &entry.id)?;
        for sandbox in &entry.signed_in {
            self.erase(place, &entry.grant_id(sandbox))?;
        }
        Ok(())
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<Entry>)) -> Result<()> {
        let mut index = match &self.index {
            Some(index) => index.clone(),
            None => Index { schema: SCHEMA, shape_key: random()?, entries: Vec::new() },
        };
        change(&mut index.entries);
        let path = self.folders.index();
        let mut text =
            serde_json::to_vec_pretty(&index).map_err(|error| Error::damaged(&path, error.to_string()))?;
        text.push(b'\n');
        files::write(&path, &text)?;
        self.index = Some(index);
        Ok(())
    }

    /// Where a new value goes.
    fn place(&mut self, keep: Keep) -> Result<KeptIn> {
        let protection = match keep {
            Keep::Keychain => {
                let keychain = Keychain::connect()?.ok_or_else(no_keychain)?;
                keychain.probe()?;
                return Ok(KeptIn::Keychain);
            }
            Keep::Best(protection) => {
                if has_keychain() {
                    return Ok(KeptIn::Keychain);
                }
                protection
            }
            Keep::Files(protection) => protection,
        };
        if self.files.kind().is_none() {
            self.files.create(&protection.unwrap_or(Protection::KeyFile))?;
        }
        Ok(KeptIn::Files)
    }

    fn put(&self, place: KeptIn, id: &str, seal: &str, value: &Secret) -> Result<()> {
        let payload = Payload { bound: seal.to_owned(), value: value.duplicate() };
        // Room for all of it, so that the buffer never moves.
        let mut text = Zeroizing::new(Vec::with_capacity(value.len().saturating_mul(2).saturating_add(1024)));
        serde_json::to_writer(&mut *text, &payload)
            .map_err(|_| Error::BadValue("the value cannot be written".into()))?;
        match place {
            KeptIn::Keychain => Keychain::connect()?.ok_or_else(no_keychain)?.put(id, &text),
            KeptIn::Files => self.files.put(id, &text),
        }
    }

    fn erase(&self, place: KeptIn, id: &str) -> Result<()> {
        match place {
            // Where the keychain is gone, its values are out of reach; that keeps nobody from removing the entry.
            KeptIn::Keychain => match Keychain::connect() {
                Ok(Some(keychain)) => keychain.remove(id),
                _ => Ok(()),
            },
            KeptIn::Files => self.files.remove(id),
        }
    }

    /// The value under `id`, if it is there. Its seal must be `seal`.
    fn kept(
        &mut self,
        entry: &Entry,
        place: KeptIn,
        id: &str,
        ask: &mut dyn FnMut(&str) -> Result<Secret>,
    ) -> Result<Option<Secret>> {
        let text = match place {
            KeptIn::Keychain => Keychain::connect()?.ok_or_else(no_keychain)?.get(id)?,
            KeptIn::Files => {
                self.files.unlock(ask)?;
                self.files.get(id)?
            }
        };
        let Some(text) = text else { return Ok(None) };
        let payload: Payload = serde_json::from_slice(&text).map_err(|_| {
            Error::damaged(&self.folders.data.join("values").join(id), "it is no value of viv's")
        })?;
        if payload.bound != entry.seal() {
            return Err(Error::Rebound { name: entry.name.clone() });
        }
        Ok(Some(payload.value))
    }

    /// All credentials of a sandbox, with their values: programs are run, and `ask` is called for the passphrase if one is needed. One that cannot
    /// be had is among them without its value, and its reason among the problems.
    ///
    /// # Errors
    /// When it stays locked: nobody was there to ask, or somebody mistyped. That is said once, and not of each secret.
    pub fn resolve(
        &mut self,
        sandbox: &str,
        ask: &mut dyn FnMut(&str) -> Result<Secret>,
    ) -> Result<Resolved> {
        self.gather(sandbox, &|_| true, true, ask)
    }

    /// The same for a sandbox that runs: only those that `is_meant` says are asked for. The others are without a value, and unchanged: the sandbox
    /// goes on with what it has of them ([`Credentials::with_unchanged`]). A store that stays locked is a problem like others.
    pub fn resolve_some(
        &mut self,
        sandbox: &str,
        is_meant: &dyn Fn(&Entry) -> bool,
        ask: &mut dyn FnMut(&str) -> Result<Secret>,
    ) -> Result<Resolved> {
        // The first entry that needs the passphrase asks for it; after a wrong one nobody is asked again.
        let mut is_asked = false;
        let mut once = |prompt: &str| {
            if std::mem::replace(&mut is_asked, true) { Err(Error::Locked) } else { ask(prompt) }
        };
        self.gather(sandbox, is_meant, false, &mut once)
    }

    /// Without `needs_all` it goes on without values that are locked.
    fn gather(
        &mut self,
        sandbox: &str,
        is_meant: &dyn Fn(&Entry) -> bool,
        needs_all: bool,
        ask: &mut dyn FnMut(&str) -> Result<Secret>,
    ) -> Result<Resolved> {
        let mut resolved = Resolved {
            credentials: Credentials::default(),
            problems: Vec::new(),
            failed: Vec::new(),
            unchanged: Vec::new(),
            next_refresh: None,
        };
        let Some(index) = &self.index else { return Ok(resolved) };
        let (shape_key, entries) =
            (index.shape_key, self.of(sandbox).into_iter().cloned().collect::<Vec<_>>());
        let mut list = Vec::new();
        for entry in &entries {
            let holders = entry.placeholders(&shape_key, sandbox);
            let missing = |why: String| {
                let placeholders = [Some(holders.value), holders.key_id].into_iter().flatten().collect();
                Value::Missing { placeholders, why }
            };
            let value = if is_meant(entry) {
                match self.value(entry, sandbox, &shape_key, ask) {
                    Ok((value, again)) => {
                        resolved.next_refresh = [resolved.next_refresh, again].into_iter().flatten().min();
                        value
                    }
                    Err(error) => {
                        if needs_all && error.is_locked() {
                            return Err(error);
                        }
                        let why = error.to_string();
                        resolved.problems.push(format!("the secret \"{}\" cannot be had: {why}", entry.name));
                        resolved.failed.push(entry.name.clone());
                        missing(why)
                    }
                }
            } else {
                resolved.unchanged.push(entry.name.clone());
                missing("it is asked for when the sandbox starts".into())
            };
            list.push(Credential { name: entry.name.clone(), binding: entry.binding.clone(), value });
        }
        resolved.credentials = Credentials::new(list);
        Ok(resolved)
    }

    /// The value of one, and when to ask for it again.
    fn value(
        &mut self,
        entry: &Entry,
        sandbox: &str,
        shape_key: &ShapeKey,
        ask: &mut dyn FnMut(&str) -> Result<Secret>,
    ) -> Result<(Value, Option<SystemTime>)> {
        let holders = entry.placeholders(shape_key, sandbox);
        if entry.source == Source::SignIn {
            let unknown = || Error::UnknownService { name: entry.name.clone(), nearest: None };
            let endpoint = entry.service.as_deref().and_then(services::endpoint).ok_or_else(unknown)?;
            let grant = match entry.kept {
                Some(place) if entry.signed_in.iter().any(|id| id == sandbox) => {
                    self.kept(entry, place, &entry.grant_id(sandbox), ask)?
                }
                _ => None,
            };
            let grant = grant.and_then(|text| Grant::from_wire(text.expose_text()?).ok());
            let sign_in =
                SignIn { endpoint: endpoint.clone(), key: *shape_key, sandbox: sandbox.to_owned(), grant };
            return Ok((Value::SignIn(sign_in), None));
        }
        let (value, again) = match entry.kept {
            Some(place) => {
                let value = match self.given.get(&entry.id) {
                    Some(value) => Some(value.duplicate()),
                    None => self.kept(entry, place, &entry.id, ask)?,
                };
                let place = place.to_string();
                (value.ok_or_else(|| Error::Gone { name: entry.name.clone(), place })?, None)
            }
            None => self.fetched(entry)?,
        };
        if entry.kind == Kind::Aws {
            let (keys, ends) = aws_keys(&value)?;
            // What is kept is the same however often it is read. A program may give keys that have ended, again and again.
            let now = SystemTime::now();
            let ends = ends.filter(|_| entry.source.is_dynamic());
            let ends = ends.and_then(|ends| Some(ends.max(now.checked_add(SOONEST_REFRESH)?)));
            let again = [again, ends].into_iter().flatten().min();
            let key_id = holders.key_id.unwrap_or_default();
            return Ok((Value::Aws { key_id, secret: holders.value, keys: keys.into() }, again));
        }
        checked_value(entry, &value)?;
        Ok((Value::Token { placeholder: holders.value, value }, again))
    }

    fn fetched(&mut self, entry: &Entry) -> Result<(Secret, Option<SystemTime>)> {
        let now = SystemTime::now();
        let life = match entry.refresh {
            Refresh::Every(seconds) if entry.source.is_dynamic() => Some(Duration::from_secs(seconds)),
            _ => None,
        };
        if let Some((at, value)) = self.cache.get(&entry.id)
            && let Some(end) = life.and_then(|life| at.checked_add(life))
            && *at <= now
            && now < end
        {
            return Ok((value.duplicate(), Some(end)));
        }
        let value = source::fetch(&entry.source)?;
        let value =
            value.ok_or_else(|| Error::Gone { name: entry.name.clone(), place: "its source".into() })?;
        let again = life.and_then(|life| now.checked_add(life));
        if again.is_some() {
            self.cache.insert(entry.id.clone(), (now, value.duplicate()));
        }
        Ok((value, again))
    }

    /// Gets a value once, to see that its source works; nothing where there is no source to ask.
    pub fn verify(&self, entry: &Entry) -> Result<Option<Secret>> {
        let value = source::fetch(&entry.source)?;
        if let Some(value) = &value {
            checked_value(entry, value)?;
        }
        Ok(value)
    }

    /// Keeps what somebody got by signing in inside a sandbox, or what was renewed.
    pub fn keep_grant(&mut self, sandbox: &str, grant: &Grant) -> Result<()> {
        let lock = files::Lock::take(&self.folders.data)?;
        self.reload()?;
        let found = self
            .of(sandbox)
            .into_iter()
            .find(|entry| entry.name == grant.name() && entry.source == Source::SignIn)
            .cloned();
        let unknown =
            || Error::UnknownSecret { name: grant.name().to_owned(), scope: "for signing in".into() };
        let entry = found.ok_or_else(unknown)?;
        let place = entry.kept.ok_or_else(unknown)?;
        let text = Secret::new(grant.to_wire()?.as_bytes().to_vec());
        self.put(place, &entry.grant_id(sandbox), &entry.seal(), &text)?;
        if !entry.signed_in.iter().any(|id| id == sandbox) {
            self.change(|entries| {
                for known in entries.iter_mut().filter(|known| known.is_same(&entry)) {
                    known.signed_in.push(sandbox.to_owned());
                }
            })?;
        }
        drop(lock);
        Ok(())
    }
}

fn no_keychain() -> Error {
    Error::Keychain {
        why: "there is no session bus, so no keychain (DBUS_SESSION_BUS_ADDRESS is not set)".into(),
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::BadValue("the host gives no random numbers".into()))?;
    Ok(bytes)
}

fn random_id() -> Result<String> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// HMAC-SHA256 under a fixed key, in hexadecimal: a hash that is no other program's.
fn hash(text: &[u8]) -> String {
    use hmac::Mac;
    let mut mac = keyed(b"vivarium binding 1");
    mac.update(text);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where values are. `Display` says it in a sentence for each place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// How many are in the keychain.
    pub in_keychain: usize,
    /// How many are in encrypted files.
    pub in_files: usize,
    /// How many are read from elsewhere.
    pub elsewhere: usize,
    /// What protects the files.
    pub files: Option<FileKind>,
    /// The folder of the files.
    pub data: PathBuf,
    /// The key file, where that protects them.
    pub key_file: PathBuf,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.in_keychain > 0 {
            parts.push(format!("{} in the keychain (Secret Service)", self.in_keychain));
        }
        if self.in_files > 0 {
            let how = match self.files {
                Some(FileKind::Passphrase) => "locked with a passphrase".to_owned(),
                Some(FileKind::KeyFile) => {
                    format!("its key in {}: whoever reads both reads the values", self.key_file.display())
                }
                None => "whose key is gone".to_owned(),
            };
            parts.push(format!("{} in encrypted files in {}, {how}", self.in_files, self.data.display()));
        }
        if self.elsewhere > 0 {
            parts.push(format!("{} from the environment or programs, not kept here", self.elsewhere));
        }
        if parts.is_empty() {
            return f.write_str("no secrets are kept");
        }
        f.write_str(&parts.join("; "))
    }
}

/// Whether there is a keychain that works.
pub fn has_keychain() -> bool {
    matches!(Keychain::connect(), Ok(Some(keychain)) if keychain.probe().is_ok())
}

/// Which place a new value would go to, for `viv diagnose`.
pub fn best_place(folders: &Folders) -> String {
    match Keychain::connect() {
        Ok(Some(_)) => "the keychain (Secret Service)".into(),
        Ok(None) => format!("{} (no session bus, so no keychain)", file_place(folders)),
        Err(error) => format!("{} ({error})", file_place(folders)),
    }
}

fn file_place(folders: &Folders) -> &'static str {
    match Files::new(folders).kind() {
        Some(FileKind::Passphrase) => "encrypted files, locked with a passphrase",
        Some(FileKind::KeyFile) => "encrypted files, with a key file",
        None => "encrypted files, whose key is yet to be made",
    }
}

#[cfg(test)]
mod tests;
