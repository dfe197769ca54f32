//! The files that the policy is written in: the user's, each sandbox's own, and rules files that stand for kits.
//!
//! ```text
//! $XDG_CONFIG_HOME/vivarium/policy.json   preset, rules for all sandboxes, approvals of kits
//! <sandbox folder>/policy.json            the sandbox's own rules
//! <sandbox folder>/kits/NAME.json         a kit's rules
//! ```
//! The command line writes them, whole and under a lock; a running sandbox's shim watches them ([`super::standing`]).

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use policy::{Approval, GlobalFile, KitFile, KitRules, PolicySet, SandboxFile};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::folder::Sandbox;
use crate::places::Places;

/// The name of both files.
pub const FILE: &str = "policy.json";
/// The folder of kits' rules in a sandbox's.
pub const KITS: &str = "kits";
/// The newest format that is read, and the one that is written.
const FORMAT: u32 = 1;
/// Bytes of the longest file that is read.
const LONGEST: u64 = 4 << 20;
/// Most kits of a sandbox.
const MOST_KITS: usize = 32;
/// Beside each file while it is changed.
const LOCK: &str = ".policy.lock";
/// How long another client may hold the lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// The user's file.
pub fn global_path(places: &Places) -> PathBuf {
    places.config.join(FILE)
}

/// A sandbox's file.
pub fn sandbox_path(sandbox: &Sandbox) -> PathBuf {
    sandbox.folder().join(FILE)
}

/// What the user's file says; without one, what holds without one: `balanced`, and no further rules.
pub fn global(places: &Places) -> Result<GlobalFile> {
    Ok(read(&global_path(places))?.unwrap_or_default())
}

/// Whether the user has ever decided anything.
pub fn is_begun(places: &Places) -> bool {
    global_path(places).exists()
}

/// What a sandbox's file says.
pub fn local(sandbox: &Sandbox) -> Result<SandboxFile> {
    Ok(read(&sandbox_path(sandbox))?.unwrap_or_default())
}

/// Changes the user's file.
pub fn change_global<T>(places: &Places, change: impl FnOnce(&mut GlobalFile) -> Result<T>) -> Result<T> {
    let fail = |source| Error::file("cannot make the folder", &places.config, source);
    DirBuilder::new().recursive(true).mode(0o700).create(&places.config).map_err(fail)?;
    self::change(&global_path(places), change)
}

/// Changes a sandbox's file.
pub fn change_local<T>(sandbox: &Sandbox, change: impl FnOnce(&mut SandboxFile) -> Result<T>) -> Result<T> {
    self::change(&sandbox_path(sandbox), change)
}

/// Has the user's file say nothing, and gives where what it said lies now; nothing when it is not there.
pub fn reset_global(places: &Places) -> Result<Option<PathBuf>> {
    reset::<GlobalFile>(&global_path(places))
}

/// The same for a sandbox's file.
pub fn reset_local(sandbox: &Sandbox) -> Result<Option<PathBuf>> {
    reset::<SandboxFile>(&sandbox_path(sandbox))
}

/// The file is never away: for a running sandbox that would mean that somebody lost it.
fn reset<F: Serialize + Default>(path: &Path) -> Result<Option<PathBuf>> {
    if !path.exists() {
        return Ok(None);
    }
    let _lock = hold(path)?;
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".{}", crate::spec::rfc3339(std::time::SystemTime::now())));
    let mut aside = PathBuf::from(&name);
    // Nothing that was put aside in the same second is written over.
    let mut number = 1;
    while aside.exists() {
        number += 1;
        aside = PathBuf::from(&name).with_added_extension(number.to_string());
    }
    // Not each file system has links.
    let kept = fs::hard_link(path, &aside).or_else(|_| fs::rename(path, &aside));
    match kept {
        Ok(()) => {}
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::file("cannot move", path, source)),
    }
    files::write_json(path, &F::default())?;
    Ok(Some(aside))
}

fn change<F, T>(path: &Path, change: impl FnOnce(&mut F) -> Result<T>) -> Result<T>
where
    F: DeserializeOwned + Serialize + Default,
{
    let _lock = hold(path)?;
    let mut file: F = read(path)?.unwrap_or_default();
    let outcome = change(&mut file)?;
    files::write_json(path, &file)?;
    Ok(outcome)
}

/// Who holds this changes the file, which takes moments.
fn hold(path: &Path) -> Result<File> {
    files::hold(path.with_file_name(LOCK), PATIENCE)
}

/// Only the number, whatever else is there: a newer file is told apart from a damaged one.
#[derive(Deserialize)]
struct Format {
    schema: u32,
}

/// A file, if it is there. What is wrong with one is said with line and column.
pub(super) fn read<F: DeserializeOwned>(path: &Path) -> Result<Option<F>> {
    match bytes(path)? {
        Some(bytes) => parse(path, &bytes).map(Some),
        None => Ok(None),
    }
}

fn bytes(path: &Path) -> Result<Option<Vec<u8>>> {
    let fail = |source: io::Error| Error::file("cannot read", path, source);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    if file.metadata().map_err(fail)?.len() > LONGEST {
        return Err(Error::Damaged {
            path: path.to_owned(),
            why: "it is longer than any file of ours".into(),
        });
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, LONGEST), &mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

fn parse<F: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<F> {
    let damaged = |error: serde_json::Error| Error::Damaged { path: path.to_owned(), why: error.to_string() };
    let found = serde_json::from_slice::<Format>(bytes).map_err(damaged)?.schema;
    if found > FORMAT {
        return Err(Error::NewerFormat { path: path.to_owned(), found, known: FORMAT });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// A kit's rules, as they lie in a sandbox's folder.
#[derive(Clone, Debug)]
pub struct Kit {
    /// What the file says.
    pub file: KitFile,
    /// SHA-256 of its bytes, in hexadecimal digits.
    pub digest: String,
}

impl Kit {
    /// Whether this very file was approved.
    pub fn is_approved(&self, approvals: &[Approval]) -> bool {
        let same = |approval: &Approval| {
            approval.kit == self.file.kit
                && approval.version == self.file.version
                && approval.digest == self.digest
        };
        approvals.iter().any(same)
    }

    /// The approval of this very file.
    pub fn approval(&self) -> Approval {
        Approval {
            kit: self.file.kit.clone(),
            version: self.file.version.clone(),
            digest: self.digest.clone(),
        }
    }
}

/// Reads a rules file that the user gives for a kit, before anything is made or changed for it.
pub fn given_kit(path: &Path) -> Result<Kit> {
    read_kit(path).map_err(|error| match error {
        newer @ Error::NewerFormat { .. } => newer,
        other => Error::Mistake {
            why: format!("--kit: {other}"),
            hint: "correct that file, or leave --kit out; nothing was made, and a sandbox that is there is as it was".into(),
        },
    })
}

/// Reads a rules file that stands for a kit.
fn read_kit(path: &Path) -> Result<Kit> {
    let bytes = bytes(path)?
        .ok_or_else(|| Error::file("cannot read", path, io::Error::from(io::ErrorKind::NotFound)))?;
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Kit { file: parse(path, &bytes)?, digest })
}

/// Copies rules files into a sandbox's folder, before its first start.
pub fn add_kits(sandbox: &Sandbox, files: &[PathBuf]) -> Result<()> {
    let folder = sandbox.folder().join(KITS);
    for (number, path) in files.iter().enumerate() {
        let kit = given_kit(path)?;
        let fail = |source| Error::file("cannot make the folder", &folder, source);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(fail)?;
        let bytes = bytes(path)?.unwrap_or_default();
        files::write_whole(&folder.join(format!("{number:02}.json")), &bytes)?;
        tracing::info!(kit = kit.file.kit, version = kit.file.version, "The kit's rules are taken over");
    }
    Ok(())
}

/// The kits of a sandbox, in the order in which they were given.
pub fn kits(sandbox: &Sandbox) -> Result<Vec<Kit>> {
    kit_paths(sandbox)?.iter().map(|path| read_kit(path)).collect()
}

fn kit_paths(sandbox: &Sandbox) -> Result<Vec<PathBuf>> {
    let folder = sandbox.folder().join(KITS);
    let fail = |source| Error::file("cannot read", &folder, source);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(fail)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    paths.truncate(MOST_KITS);
    Ok(paths)
}

/// All that is said about a sandbox. `own` are the host's own addresses.
pub fn set(places: &Places, sandbox: &Sandbox, own: &[IpAddr]) -> Result<PolicySet> {
    Ok(find(places, sandbox, own)?.policy)
}

/// What the files say, and which there are.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) policy: PolicySet,
    pub(super) files: BTreeSet<PathBuf>,
}

/// As [`set`].
pub(super) fn find(places: &Places, sandbox: &Sandbox, own: &[IpAddr]) -> Result<Found> {
    let mut files = BTreeSet::new();
    let (global_path, local_path) = (global_path(places), sandbox_path(sandbox));
    let global: Option<GlobalFile> = read(&global_path)?;
    files.extend(global.as_ref().map(|_| global_path));
    let local: Option<SandboxFile> = read(&local_path)?;
    files.extend(local.as_ref().map(|_| local_path));
    let (global, local) = (global.unwrap_or_default(), local.unwrap_or_default());
    let mut kits = Vec::new();
    for path in kit_paths(sandbox)? {
        let kit = read_kit(&path)?;
        files.insert(path);
        kits.push(KitRules {
            approved: kit.is_approved(&global.approvals),
            kit: kit.file.kit,
            version: kit.file.version,
            rules: kit.file.rules,
        });
    }
    let policy = PolicySet {
        sandbox: sandbox.spec.name.clone(),
        preset: local.preset.unwrap_or(global.preset),
        host_addresses: own.to_vec(),
        kits,
        global: global.rules,
        local: local.rules,
        ..PolicySet::default()
    };
    Ok(Found { policy, files })
}

/// What holds where no sandbox is meant.
pub fn set_of_all(places: &Places) -> Result<PolicySet> {
    let global = global(places)?;
    Ok(PolicySet { preset: global.preset, global: global.rules, ..PolicySet::default() })
}

/// What holds as long as the files cannot be read: nothing is allowed. `own` are the host's addresses. What was denied is not
/// known: nobody may be asked, and nothing observed, meanwhile.
pub fn closed(sandbox: &Sandbox, own: &[IpAddr]) -> PolicySet {
    PolicySet {
        sandbox: sandbox.spec.name.clone(),
        preset: policy::Preset::DenyAll,
        host_addresses: own.to_vec(),
        ..PolicySet::default()
    }
}

#[cfg(test)]
mod tests {
    use policy::{Decision, Preset, Resource, Rule};

    use super::*;
    use crate::folder::tests::{sandboxes, wish};

    fn places(root: &Path) -> Places {
        let path = |name: &str| root.join(name);
        Places { state: path("s"), cache: path("c"), config: path("e"), home: root.into() }
    }

    fn rule(text: &str) -> Rule {
        Rule::new(Decision::Allow, Resource::parse(text).unwrap())
    }

    #[test]
    fn without_a_file_balanced_holds_and_a_change_stays() {
        let (root, all) = sandboxes();
        let places = places(root.path());
        let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
        let before = set(&places, &sandbox, &[]).unwrap();
        assert_eq!((before.preset, before.global.len(), is_begun(&places)), (Preset::Balanced, 0, false));
        change_global(&places, |file| {
            file.preset = Preset::DenyAll;
            file.rules.push(rule("example.com"));
            Ok(())
        })
        .unwrap();
        change_local(&sandbox, |file| {
            file.rules.push(rule("example.org:443"));
            Ok(())
        })
        .unwrap();
        let after = set(&places, &sandbox, &[]).unwrap();
        assert_eq!((after.preset, after.global.len(), after.local.len()), (Preset::DenyAll, 1, 1));
        assert_eq!(after.sandbox, sandbox.spec.name);
    }

    #[test]
    fn what_is_wrong_is_named_with_line_and_column_and_left_as_it_is() {
        let (root, all) = sandboxes();
        let places = places(root.path());
        let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
        fs::create_dir_all(&places.config).unwrap();
        for (text, place) in [
            ("{\"schema\": 1,\n \"preset\": ", "line 2 column"),
            (
                "{\"schema\": 1, \"preset\": \"balanced\",\n \"rules\": [\n {\"decision\": \"allow\", \"resource\": \"exa mple\"}]}",
                "line 3 column",
            ),
            ("", "line 1 column 0"),
            ("{\"schema\": 1, \"unknown\": 2}", "line 1 column"),
        ] {
            fs::write(global_path(&places), text).unwrap();
            let error = set(&places, &sandbox, &[]).unwrap_err();
            assert!(
                matches!(error, Error::Damaged { .. }) && error.to_string().contains(place),
                "{text}: {error}"
            );
            assert!(error.hint().unwrap().contains("policy reset"));
            assert!(change_global(&places, |_| Ok(())).is_err(), "nothing is written over it");
            assert_eq!(fs::read_to_string(global_path(&places)).unwrap(), text);
        }
        fs::write(global_path(&places), "{\"schema\": 2, \"anything\": []}").unwrap();
        let newer = set(&places, &sandbox, &[]).unwrap_err();
        assert!(matches!(newer, Error::NewerFormat { found: 2, known: 1, .. }), "{newer}");
        let aside = reset_global(&places).unwrap().unwrap();
        let again = reset_global(&places).unwrap().unwrap();
        assert_ne!(aside, again, "in the same second");
        assert!(fs::read_to_string(aside).unwrap().contains("anything"));
        assert_eq!(set(&places, &sandbox, &[]).unwrap().preset, Preset::Balanced);
    }

    #[test]
    fn a_kits_file_that_cannot_be_read_is_at_fault_and_no_sandbox() {
        let (root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
        let path = root.path().join("kit.json");
        let hint = |error: Error| (error.to_string(), error.hint().unwrap());
        let (why, next) = hint(given_kit(&path).unwrap_err());
        assert!(why.contains("kit.json") && next.contains("--kit"), "{why}: {next}");
        fs::write(&path, "{\"schema\": 1,\n nonsense").unwrap();
        for error in
            [given_kit(&path).unwrap_err(), add_kits(&sandbox, std::slice::from_ref(&path)).unwrap_err()]
        {
            let (why, next) = hint(error);
            assert!(why.contains("kit.json") && why.contains("line 2"), "{why}");
            assert!(next.contains("--kit") && !next.contains("viv rm"), "{next}");
        }
        // The sandbox's own copy, which somebody has changed.
        fs::create_dir_all(sandbox.folder().join(KITS)).unwrap();
        fs::write(sandbox.folder().join(KITS).join("00.json"), "nonsense").unwrap();
        let (why, next) = hint(kits(&sandbox).unwrap_err());
        assert!(why.contains("00.json") && next.contains("remove it") && !next.contains("viv rm"), "{next}");
    }

    #[test]
    fn a_kit_is_approved_by_its_very_bytes() {
        let (root, all) = sandboxes();
        let places = places(root.path());
        let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
        let path = root.path().join("kit.json");
        let text = "{\"schema\":1,\"kit\":\"web\",\"version\":\"1.0\",\"rules\":[{\"decision\":\"allow\",\"resource\":\"example.com\"}]}";
        fs::write(&path, text).unwrap();
        add_kits(&sandbox, std::slice::from_ref(&path)).unwrap();
        let approved = || set(&places, &sandbox, &[]).unwrap().kits[0].approved;
        assert!(!approved());
        let approval = kits(&sandbox).unwrap()[0].approval();
        change_global(&places, |file| {
            file.approvals.push(approval);
            Ok(())
        })
        .unwrap();
        assert!(approved());
        // The same version with other bytes is another kit.
        fs::write(&path, text.replace("example.com", "example.org")).unwrap();
        add_kits(&sandbox, &[path]).unwrap();
        assert!(!approved());
    }

    #[test]
    fn changes_at_once_lose_none() {
        let (root, _all) = sandboxes();
        let places = places(root.path());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let places = &places;
                scope.spawn(move || {
                    change_global(places, |file| {
                        file.rules.push(rule(&format!("h{number}.example.com")));
                        Ok(())
                    })
                });
            }
        });
        assert_eq!(global(&places).unwrap().rules.len(), 8);
    }
}
