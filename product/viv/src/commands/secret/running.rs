//! What sandboxes get of the secrets: all of them when they start, and what changes while they run.

use std::fs::File;
use std::time::UNIX_EPOCH;

use rustix::fs::{FlockOperation, flock};
use sandbox::client;
use sandbox::escape::escaped;
use sandbox::folder::{Sandbox, Sandboxes};
use sandbox::network::{SecretText, Secrets};
use sandbox::places::Places;
use vault::Secret;
use vault::store::{Clash, Error, Resolved, Scope, Vault};

use super::{ask, open};
use crate::failure::{Failure, LONGEST};

/// What a shim is given when it is started.
#[derive(Debug)]
pub(crate) struct Given {
    /// All secrets.
    pub(crate) secrets: Secrets,
    /// Which ones those are.
    versions: Vec<String>,
}

/// All secrets of a sandbox, for its gateway and its sessions; what cannot be had is said, and is refused where it is used.
pub(crate) fn for_shim(sandbox: &Sandbox, interactive: bool) -> Result<Given, Failure> {
    let mut vault = open()?;
    let id = &sandbox.spec.id;
    let resolved = vault.resolve(id, &mut |prompt| ask::passphrase(prompt, interactive))?;
    say_problems(&resolved.problems);
    for Clash { taken, kept, lost } in vault.clashes(id) {
        let text = format!(
            "the secrets {lost} and {kept} are both for {taken}: the guest has that of {kept} there   viv secret rm takes one out"
        );
        eprintln!("viv: {}", escaped(&text, LONGEST));
    }
    Ok(Given { secrets: packed(&vault, id, &resolved)?, versions: vault.versions(id) })
}

/// Programs and people take their time: a sandbox that was started with secrets that were removed or set meanwhile gets those that there are now.
pub(crate) fn if_changed(sandbox: &Sandbox, given: &Given, interactive: bool) -> Result<(), Failure> {
    if open()?.versions(&sandbox.spec.id) == given.versions {
        return Ok(());
    }
    give(sandbox, || for_shim(sandbox, interactive).map(Some))
}

/// Gives a running sandbox the values that programs give, asked for again. What could not be had comes back: that stays as it was.
pub(crate) fn ask_again(sandbox: &Sandbox) -> Result<Vec<String>, Failure> {
    let id = &sandbox.spec.id;
    let mut problems = Vec::new();
    give(sandbox, || {
        let mut vault = open()?;
        // Nobody is asked for a passphrase in the middle of a session.
        let mut resolved = vault.resolve_some(id, &|entry| entry.source.is_dynamic(), &mut nobody)?;
        resolved.unchanged.append(&mut resolved.failed);
        let secrets = packed(&vault, id, &resolved)?;
        problems = resolved.problems;
        // Those of before hold on, and the next session tries again.
        let is_vain = secrets.until.is_none() && !problems.is_empty();
        Ok((!is_vain).then(|| Given { secrets, versions: vault.versions(id) }))
    })?;
    Ok(problems)
}

/// How often secrets are read again that are others by the time that a sandbox is to have them.
const ATTEMPTS: usize = 8;

/// Gives a running sandbox what `pack` makes of the secrets. Programs and people take their time, and others may set and remove secrets meanwhile:
/// then it is made again, for what comes last in the sandbox must be what was written last. One process at a time looks and gives.
fn give(sandbox: &Sandbox, mut pack: impl FnMut() -> Result<Option<Given>, Failure>) -> Result<(), Failure> {
    for _ in 0..ATTEMPTS {
        let Some(given) = pack()? else { return Ok(()) };
        let folder = File::open(sandbox.folder()).map_err(|error| Failure::new(error.to_string()))?;
        flock(&folder, FlockOperation::LockExclusive).map_err(|error| Failure::new(error.to_string()))?;
        if open()?.versions(&sandbox.spec.id) == given.versions {
            client::set_secrets(sandbox, &given.secrets)?;
            return Ok(());
        }
    }
    Err(Failure::new("its secrets are changed again and again"))
}

fn nobody(_: &str) -> Result<Secret, Error> {
    Err(Error::Locked)
}

fn packed(vault: &Vault, sandbox: &str, resolved: &Resolved) -> Result<Secrets, Failure> {
    let text = resolved.credentials.to_wire().map_err(Failure::new)?;
    let until = resolved.next_refresh.and_then(|at| Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs()));
    let (variables, unchanged) = (vault.environment(sandbox), resolved.unchanged.clone());
    let lasting = !vault.has_ends(sandbox);
    Ok(Secrets {
        text: Some(SecretText::new(text)),
        variables,
        until,
        unchanged,
        lasting,
        ..Secrets::default()
    })
}

fn say_problems(problems: &[String]) {
    for problem in problems {
        eprintln!("viv: {}", escaped(problem, LONGEST));
    }
}

/// Tells all running sandboxes of a scope that the secrets with these names were set or removed. The others stay what the sandboxes have: neither
/// their programs nor a passphrase are asked for them.
///
/// # Errors
/// Which sandboxes could not be told. All others were.
pub(super) fn tell(
    vault: &mut Vault,
    scope: &Scope,
    names: &[&str],
    interactive: bool,
) -> Result<(), Failure> {
    let (sandboxes, damaged) = Sandboxes::open(&Places::from_env()?)?.list()?;
    let is_meant = |id: &str| *scope == Scope::Global || *scope == Scope::Sandbox(id.to_owned());
    let mut behind = Vec::new();
    for sandbox in sandboxes.iter().filter(|sandbox| is_meant(&sandbox.spec.id) && sandbox.is_running()) {
        if let Err(failure) = tell_one(vault, sandbox, scope, names, interactive) {
            behind.push((sandbox.spec.name.clone(), failure.message().to_owned()));
        }
    }
    for one in damaged.iter().filter(|one| is_meant(&one.id()) && one.is_running()) {
        behind.push((one.id(), one.cause().to_string()));
    }
    if behind.is_empty() {
        return Ok(());
    }
    let (who, why): (Vec<String>, Vec<String>) =
        behind.into_iter().map(|(name, why)| (name.clone(), format!("{name}: {why}"))).unzip();
    let what = format!("{} of before stays in use in {}", names.join(" "), why.join("; "));
    Err(Failure::new(what).hint(format!("viv stop {} ends that", who.join(" "))))
}

fn tell_one(
    vault: &mut Vault,
    sandbox: &Sandbox,
    scope: &Scope,
    names: &[&str],
    interactive: bool,
) -> Result<(), Failure> {
    let id = &sandbox.spec.id;
    let own = Scope::Sandbox(id.clone());
    let is_changed = |entry: &vault::store::Entry| names.contains(&entry.name.as_str());
    let mut is_first = true;
    give(sandbox, || {
        if !std::mem::take(&mut is_first) {
            *vault = open()?;
        }
        let resolved =
            vault.resolve_some(id, &is_changed, &mut |prompt| ask::passphrase(prompt, interactive))?;
        say_problems(&resolved.problems);
        let mut secrets = packed(vault, id, &resolved)?;
        // A sandbox's own secret is another one than that of all: its login stays.
        let is_own =
            |name: &str| vault.entries().iter().any(|entry| entry.name == name && entry.scope == own);
        let anew = names.iter().filter(|name| *scope == own || !is_own(name));
        secrets.forget = anew.map(|name| (*name).to_owned()).collect();
        Ok(Some(Given { secrets, versions: vault.versions(id) }))
    })
}
