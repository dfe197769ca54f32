//! `viv secret`: credentials that sandboxes use and never see.

mod ask;
mod running;

use std::collections::BTreeMap;

use sandbox::folder::Sandboxes;
use sandbox::places::Places;
use serde::Serialize;
use vault::binding::{self, Place};
use vault::services::{self, Kind};
use vault::store::{Custom, Entry, Folders, Keep, KeptIn, Reference, Refresh, Scope, Source, Vault};
use vault::{Binding, Secret};

use crate::cli::secret::{
    ImportOptions, SecretLsOptions, SecretOptions, SecretRmOptions, SecretVerb, SetCustomOptions, SetOptions,
    SourceOptions,
};
use crate::commands::{may_interact, say};
use crate::failure::{Failure, OURS};

pub(crate) use self::running::{ask_again, for_shim, if_changed};

impl From<vault::store::Error> for Failure {
    fn from(error: vault::store::Error) -> Self {
        // Its chain of causes has no value in it; values are never part of an error.
        tracing::info!(?error, "The secrets could not be used");
        let failure = Self::new(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// The verb.
pub(crate) fn run(options: &SecretOptions, no_input: bool) -> Result<u8, Failure> {
    let interactive = may_interact(no_input);
    match &options.verb {
        SecretVerb::Set(options) => set(options, interactive),
        SecretVerb::SetCustom(options) => set_custom(options, interactive),
        SecretVerb::Ls(options) => list(options),
        SecretVerb::Rm(options) => remove(options, interactive),
        SecretVerb::Import(options) => import(options, interactive),
    }
}

fn open() -> Result<Vault, Failure> {
    Ok(Vault::open(&Folders::from_env()?)?)
}

/// The scope that `--sandbox` means.
fn scope(sandbox: Option<&String>) -> Result<Scope, Failure> {
    let Some(name) = sandbox else { return Ok(Scope::Global) };
    let found = Sandboxes::open(&Places::from_env()?)?.find(name)?;
    Ok(Scope::Sandbox(found.spec.id))
}

fn set(options: &SetOptions, interactive: bool) -> Result<u8, Failure> {
    let source = if options.oauth { Source::SignIn } else { source(&options.source)? };
    let scope = scope(options.source.sandbox.as_ref())?;
    let entry = Entry::of_service(&options.service, scope, source, options.source.allow_other)?;
    put(entry, &options.source, interactive)
}

fn set_custom(options: &SetCustomOptions, interactive: bool) -> Result<u8, Failure> {
    let mut binding = Binding { allow_other: options.source.allow_other, ..Binding::default() };
    for host in &options.host {
        binding.hosts.push(host.parse().map_err(vault::store::Error::from)?);
    }
    let place = |text: String| text.parse::<Place>().map_err(vault::store::Error::from);
    for header in &options.header {
        binding.places.push(place(format!("header:{header}"))?);
    }
    for query in &options.query {
        binding.places.push(place(format!("query:{query}"))?);
    }
    match options.basic.as_deref() {
        None => {}
        Some("") => binding.places.push(Place::Basic { user: None }),
        Some(user) => binding.places.push(place(format!("basic={user}"))?),
    }
    for method in &options.method {
        binding.methods.push(binding::method(method).map_err(vault::store::Error::from)?);
    }
    for path in &options.path {
        binding.paths.push(path.parse().map_err(vault::store::Error::from)?);
    }
    let placeholder =
        options.placeholder.as_deref().map(str::parse).transpose().map_err(vault::store::Error::from)?;
    let custom =
        Custom { binding, env: options.env.clone(), placeholder, git_user: options.git_user.clone() };
    let scope = scope(options.source.sandbox.as_ref())?;
    let entry = Entry::custom(&options.name, scope, source(&options.source)?, custom)?;
    put(entry, &options.source, interactive)
}

fn source(options: &SourceOptions) -> Result<Source, Failure> {
    if let Some(name) = &options.from_env {
        return Ok(Source::Env(name.clone()));
    }
    if let Some(reference) = &options.reference {
        return Ok(Source::Ref(reference.parse::<Reference>()?));
    }
    if let Some(command) = &options.command {
        if command.trim().is_empty() {
            return Err(
                Failure::new("--command is empty").hint("viv secret set github --command 'gh auth token'")
            );
        }
        return Ok(Source::Command(command.clone()));
    }
    Ok(Source::Kept)
}

fn refresh(options: &SourceOptions, source: &Source) -> Result<Option<Refresh>, Failure> {
    let Some(text) = &options.refresh else { return Ok(None) };
    if !source.is_dynamic() {
        return Err(Failure::new("--refresh is for values of --ref and --command").hint("leave it out"));
    }
    if text == "on-demand" {
        return Ok(Some(Refresh::OnDemand));
    }
    match humantime::parse_duration(text) {
        Ok(time) if (60..=30 * 86_400).contains(&time.as_secs()) => Ok(Some(Refresh::Every(time.as_secs()))),
        _ => Err(Failure::new(format!("\"{}\" is no time from one minute to 30 days", text.escape_debug()))
            .hint("--refresh 30m, --refresh 8h or --refresh on-demand")),
    }
}

fn keep(store: Option<&str>, vault: &Vault, interactive: bool) -> Result<Keep, Failure> {
    let has_key = vault.has_key();
    match store {
        Some("keychain") => Ok(Keep::Keychain),
        Some("passphrase") if has_key => match vault.storage().files {
            Some(vault::store::FileKind::Passphrase) => Ok(Keep::Files(None)),
            _ => Err(Failure::new("the encrypted files have a key file already")
                .hint("viv secret rm all that is in them first")),
        },
        Some("passphrase") => Ok(Keep::Files(Some(ask::new_passphrase(interactive)?))),
        Some("key-file") => match vault.storage().files {
            Some(vault::store::FileKind::Passphrase) => {
                Err(Failure::new("the encrypted files are locked with a passphrase already")
                    .hint("leave --store out"))
            }
            _ => Ok(Keep::Files(Some(vault::store::Protection::KeyFile))),
        },
        Some(other) => Err(Failure::new(format!("\"{}\" is no place to keep values", other.escape_debug()))
            .hint("--store keychain, --store passphrase or --store key-file")),
        None if has_key || vault::store::has_keychain() => Ok(Keep::Best(None)),
        None => Ok(Keep::Best(Some(ask::protection(interactive)?))),
    }
}

/// Gets the value if it is to be kept, and puts the secret in.
fn put(mut entry: Entry, options: &SourceOptions, interactive: bool) -> Result<u8, Failure> {
    let mut vault = open()?;
    if let Some(refresh) = refresh(options, &entry.source)? {
        entry.refresh = refresh;
    }
    // Nobody is asked for a value that is refused for something else.
    vault.check_taken(&entry)?;
    let mut is_masked = true;
    let value = match &entry.source {
        Source::Kept => Some(ask::value(&entry, interactive)?),
        Source::SignIn => None,
        _ if options.no_verify => None,
        _ => {
            let value = vault.verify(&entry)?;
            is_masked = value.as_ref().is_none_or(vault::mask::is_masked);
            None
        }
    };
    if let Some(value) = &value {
        vault::store::checked_value(&entry, value)?;
        is_masked = vault::mask::is_masked(value);
    }
    let keep = match entry.source {
        Source::Kept | Source::SignIn => keep(options.store.as_deref(), &vault, interactive)?,
        _ => Keep::Best(None),
    };
    let is_replaced = vault.set(entry.clone(), value.as_ref(), keep)?;
    drop(value);
    let kept = vault.entries().iter().find(|known| known.name == entry.name && known.scope == entry.scope);
    let kept = kept.unwrap_or(&entry).clone();
    if options.json {
        let names = sandbox_names();
        say(&format!("{}\n", serde_json::to_string(&row(&kept, &names)).map_err(Failure::new)?))?;
    } else {
        eprintln!("{}", told(&kept, is_replaced, &vault));
    }
    if !is_masked {
        say_unmasked(&kept.name);
    }
    running::tell(&mut vault, &kept.scope, &[&kept.name], interactive)?;
    Ok(0)
}

/// What is said of a value that so much else may look like that it is not looked for.
fn say_unmasked(name: &str) {
    eprintln!(
        "viv: the value of {name} has fewer than {} characters and is not masked: a server that says it back shows it to the guest",
        vault::mask::SHORTEST_MASKED
    );
}

/// What was done, in two lines.
fn told(entry: &Entry, is_replaced: bool, vault: &Vault) -> String {
    let done = if is_replaced { "replaced" } else { "set" };
    let hosts: Vec<String> = entry.binding.hosts.iter().map(ToString::to_string).collect();
    let place = match (entry.kept, &entry.source) {
        (_, Source::SignIn) => "nothing is kept until somebody signs in inside a sandbox".to_owned(),
        (Some(KeptIn::Keychain), _) => "kept in the keychain".to_owned(),
        (Some(KeptIn::Files), _) => format!("kept in {}", where_files(vault)),
        (None, source) => format!("not kept here: {} gives it", source_text(source)),
    };
    format!("{} {done} {}, only for {}.\n{}.", entry.name, entry.scope, hosts.join(", "), capital(&place))
}

fn where_files(vault: &Vault) -> String {
    let storage = vault.storage();
    match storage.files {
        Some(vault::store::FileKind::KeyFile) => format!(
            "an encrypted file, whose key is in {}: whoever reads both reads the value",
            storage.key_file.display()
        ),
        _ => "an encrypted file, locked with your passphrase".to_owned(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn source_text(source: &Source) -> String {
    match source {
        Source::Kept => "kept".to_owned(),
        Source::Env(name) => format!("variable {name}"),
        Source::Ref(reference) => reference.to_string(),
        Source::Command(text) => format!("command {text}"),
        Source::SignIn => "sign-in".to_owned(),
    }
}

/// One secret, as `--json` has it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    service: Option<&'a str>,
    /// The sandbox's name; none means all.
    sandbox: Option<String>,
    hosts: Vec<String>,
    methods: &'a [String],
    paths: Vec<String>,
    places: Vec<String>,
    env: Vec<&'a str>,
    allow_other: bool,
    source: &'static str,
    /// The variable, reference or command.
    from: Option<String>,
    kept: Option<KeptIn>,
    /// Sandboxes where somebody has signed in.
    signed_in: Vec<String>,
    created: &'a str,
    replaced: &'a str,
}

/// The names of sandboxes by their ids.
fn sandbox_names() -> BTreeMap<String, String> {
    let listed = Places::from_env().and_then(|places| Sandboxes::open(&places)?.list());
    let (sandboxes, _) = listed.unwrap_or_default();
    sandboxes.into_iter().map(|sandbox| (sandbox.spec.id, sandbox.spec.name)).collect()
}

fn row<'a>(entry: &'a Entry, names: &BTreeMap<String, String>) -> Row<'a> {
    let name = |id: &String| names.get(id).cloned().unwrap_or_else(|| format!("(gone: {id})"));
    Row {
        name: &entry.name,
        service: entry.service.as_deref(),
        sandbox: match &entry.scope {
            Scope::Global => None,
            Scope::Sandbox(id) => Some(name(id)),
        },
        hosts: entry.binding.hosts.iter().map(ToString::to_string).collect(),
        methods: &entry.binding.methods,
        paths: entry.binding.paths.iter().map(ToString::to_string).collect(),
        places: entry.binding.places.iter().map(ToString::to_string).collect(),
        env: entry.env.keys().map(String::as_str).collect(),
        allow_other: entry.binding.allow_other,
        source: entry.source.word(),
        from: match &entry.source {
            Source::Kept | Source::SignIn => None,
            Source::Env(name) => Some(name.clone()),
            Source::Ref(reference) => Some(reference.to_string()),
            Source::Command(text) => Some(text.clone()),
        },
        kept: entry.kept,
        signed_in: entry.signed_in.iter().map(name).collect(),
        created: &entry.created,
        replaced: &entry.replaced,
    }
}

fn list(options: &SecretLsOptions) -> Result<u8, Failure> {
    let vault = open()?;
    let wanted = scope(options.sandbox.as_ref())?;
    let names = sandbox_names();
    let is_meant =
        |entry: &&Entry| wanted == Scope::Global || entry.scope == Scope::Global || entry.scope == wanted;
    let entries: Vec<&Entry> = vault.entries().iter().filter(is_meant).collect();
    if options.json {
        for entry in entries {
            say(&format!("{}\n", serde_json::to_string(&row(entry, &names)).map_err(Failure::new)?))?;
        }
        return Ok(0);
    }
    let mut lines = vec![["SECRET", "SANDBOX", "SOURCE", "VARIABLES", "HOSTS"].map(str::to_owned)];
    for entry in &entries {
        let row = row(entry, &names);
        let source = match entry.kept {
            Some(KeptIn::Keychain) if entry.source == Source::Kept => "keychain".to_owned(),
            Some(KeptIn::Files) if entry.source == Source::Kept => "encrypted file".to_owned(),
            _ => row.source.to_owned(),
        };
        let sandbox = row.sandbox.unwrap_or_else(|| "(all)".to_owned());
        lines.push([row.name.to_owned(), sandbox, source, few(&row.env), few(&row.hosts)]);
    }
    say(&crate::commands::columns(&lines))?;
    if !entries.is_empty() {
        eprintln!("Values: {}.", vault.storage());
    }
    Ok(0)
}

/// The first two, and how many more there are.
fn few<T: AsRef<str>>(texts: &[T]) -> String {
    let shown: Vec<&str> = texts.iter().take(2).map(AsRef::as_ref).collect();
    match texts.len() {
        0 => "-".to_owned(),
        1 | 2 => shown.join(" "),
        count => format!("{} and {} more", shown.join(" "), count.saturating_sub(2)),
    }
}

fn remove(options: &SecretRmOptions, interactive: bool) -> Result<u8, Failure> {
    let mut vault = open()?;
    let scope = scope(options.sandbox.as_ref())?;
    for name in &options.names {
        if !vault.entries().iter().any(|entry| entry.name == *name && entry.scope == scope) {
            return Err(
                vault::store::Error::UnknownSecret { name: name.clone(), scope: scope.to_string() }.into()
            );
        }
    }
    let names = options.names.join(" ");
    if !options.force {
        if !interactive {
            return Err(Failure::new("viv secret rm asks before it deletes, and there is nobody to ask")
                .hint(format!("viv secret rm -f {names}")));
        }
        eprintln!("{names} {scope} will be deleted; running sandboxes can no longer use it.");
        if !crate::commands::lifecycle::ask("Go on?")? {
            eprintln!("Nothing was deleted.");
            return Ok(OURS);
        }
    }
    let mut outcome = Ok(());
    let mut gone = Vec::new();
    for name in &options.names {
        match vault.remove(&scope, name) {
            Ok(()) => gone.push(name.as_str()),
            Err(error) => outcome = outcome.and(Err(Failure::from(error))),
        }
    }
    // First of all they must be out of use, also where nobody reads the output.
    let told = running::tell(&mut vault, &scope, &gone, interactive);
    for name in gone {
        say(&format!("{name}\n"))?;
    }
    outcome.and(told).map(|()| 0)
}

/// A service with what this process's variables have for it.
fn found(service: &services::Service) -> Option<(String, Secret)> {
    use std::os::unix::ffi::OsStringExt;
    let variable =
        |name: &String| std::env::var_os(name).filter(|value| !value.is_empty()).map(OsStringExt::into_vec);
    if service.kind == Kind::Aws {
        let parts: Option<Vec<Vec<u8>>> = service.import.iter().map(variable).collect();
        let mut parts = parts?;
        parts.extend(variable(&"AWS_SESSION_TOKEN".to_owned()));
        return Some((service.import.join(" "), Secret::new(parts.join(&b'\n'))));
    }
    service.import.iter().find_map(|name| Some((name.clone(), Secret::new(variable(name)?))))
}

fn import(options: &ImportOptions, interactive: bool) -> Result<u8, Failure> {
    let mut vault = open()?;
    let scope = scope(options.sandbox.as_ref())?;
    for name in &options.services {
        if services::find(name).is_none() {
            return Err(vault::store::Error::UnknownService {
                name: name.clone(),
                nearest: services::nearest(name),
            }
            .into());
        }
    }
    if options.services.is_empty() && !options.all && !options.dry_run {
        return Err(Failure::new("viv secret import takes services, or --all")
            .hint("viv secret import --dry-run shows what there is"));
    }
    let is_meant = |service: &&services::Service| {
        options.services.is_empty() || options.services.contains(&service.name)
    };
    let (mut set, mut code, mut is_found) = (Vec::new(), 0, false);
    for service in services::all().iter().filter(is_meant) {
        let Some((variable, value)) = found(service) else {
            if options.services.contains(&service.name) {
                let failure = Failure::new(format!("no variable of {} is set", service.title))
                    .hint(format!("it is read from {}", service.import.join(" or ")));
                failure.print();
                code = failure.code;
            }
            continue;
        };
        is_found = true;
        let name = &service.name;
        let is_there = vault.entries().iter().any(|entry| entry.name == *name && entry.scope == scope);
        if is_there && !options.force {
            eprintln!("{name} is set {scope} already; -f replaces it with {variable}.");
            continue;
        }
        let entry = Entry::of_service(name, scope.clone(), Source::Kept, false)?;
        // Before anybody is asked where values are to be kept.
        let mut outcome = vault.check_taken(&entry);
        if outcome.is_ok() && !options.dry_run {
            let keep = keep(options.store.as_deref(), &vault, interactive)?;
            outcome = vault.set(entry, Some(&value), keep).map(|_| set.push(name.as_str()));
        }
        match outcome {
            Ok(()) => {
                say(&format!("{name} from {variable}\n"))?;
                if !vault::mask::is_masked(&value) {
                    say_unmasked(name);
                }
            }
            Err(error) => {
                let failure = Failure::from(error);
                failure.print();
                code = failure.code;
            }
        }
    }
    if !is_found && options.services.is_empty() {
        eprintln!(
            "No variable of this shell is a known service's; viv secret set --help names the services."
        );
    }
    if !set.is_empty() {
        eprintln!("Values: {}.", vault.storage());
        running::tell(&mut vault, &scope, &set, interactive)?;
    }
    Ok(code)
}

/// A sandbox is gone: so are its secrets. That they could not be deleted does not undo that.
pub(crate) fn forget(sandbox: &str) {
    let outcome = Folders::from_env().and_then(|folders| Vault::open(&folders)?.remove_sandbox(sandbox));
    if let Err(error) = outcome {
        eprintln!("viv: the secrets of that sandbox stay: {error}");
    }
}
