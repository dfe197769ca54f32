//! Sandboxes as folders: each is one folder with a random id, and nothing else on the host remembers it.
//!
//! ```text
//! sandboxes/<id>/spec.json       what it is; only which folder a share's path leads to is ever noted anew
//!                runtime.json    how it fares; written by its shim
//!                lock            held (flock) by the shim for as long as it lives
//!                check           held by who checks the disk, with the lock
//!                control.sock    where the shim listens
//!                policy.json     its own network rules; kits/ has those of kits
//!                ports.json      what it publishes
//!                network.jsonl   what was decided on its network, bounded
//!                disk/           the writable disk's layers
//!                logs/           console.log, agent.log, dockerd.log, vmm.log, shim.log, each bounded
//! sandboxes/.new-<id>            being made; .gone-<id> being deleted: both are swept when nobody makes one
//! sandboxes/.names               held while a name is chosen and its folder made, and while a spec is written anew
//! ```
//! A process may be killed at any moment: what it held is free at once, and a folder is there as a whole or not at all.

mod damaged;
mod find;
mod one;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

pub use self::damaged::Damaged;
pub use self::one::Folder;
use crate::error::{Error, Result};
use crate::network::policy_files;
use crate::network::ports::{self, Publish};
use crate::places::Places;
use crate::spec::{Networking, SCHEMA, Spec, State};
use crate::workspace::Share;
use crate::{files, naming, workspace};

const SPEC: &str = "spec.json";
const RUNTIME: &str = "runtime.json";
const LOCK: &str = "lock";
const CHECK: &str = "check";
const NAMES: &str = ".names";
/// How long another client may hold the names: one that was stopped (Ctrl-Z), or that a disk holds up, would be waited for without a word.
const NAMES_PATIENCE: Duration = Duration::from_secs(30);
const NEW: &str = ".new-";
const GONE: &str = ".gone-";

/// All sandboxes of this user.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    root: PathBuf,
}

/// What a new sandbox shall be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The name asked for; none means the default for agent and workspace.
    pub name: Option<String>,
    /// The agent.
    pub agent: String,
    /// The workspace first, then further folders.
    pub shares: Vec<Share>,
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// The engine asked for.
    pub engine: Option<String>,
    /// Id of the base image.
    pub image: String,
    /// Whether it has a network.
    pub network: Networking,
    /// Files with kits' rules.
    pub kits: Vec<PathBuf>,
    /// Ports that it publishes from its first start on.
    pub ports: Vec<Publish>,
}

/// One sandbox: its folder, with all that can be done with that alone, and what is in its spec.
#[derive(Clone, Debug)]
pub struct Sandbox {
    folder: Folder,
    /// What it is.
    pub spec: Spec,
}

impl Deref for Sandbox {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl AsRef<Folder> for Sandbox {
    fn as_ref(&self) -> &Folder {
        &self.folder
    }
}

/// The right to be a sandbox's shim, or to delete it. Given back when dropped, also by a killed process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    /// Says to others that the disk is being checked.
    _check: Option<File>,
}

impl Sandboxes {
    /// Opens the folder of sandboxes and makes it, if need be, for this user alone.
    pub fn open(places: &Places) -> Result<Self> {
        let root = places.sandboxes();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)
            .map_err(|source| Error::file("cannot make the folder", &root, source))?;
        Ok(Self { root })
    }

    /// Makes a sandbox, or gives the one that [`Self::existing`] finds, and says whether it is new. Two processes at once get
    /// the same one.
    pub fn create(&self, wish: &Wish) -> Result<(Sandbox, bool)> {
        if let Some(name) = &wish.name {
            naming::check(name)?;
        }
        let _names = hold_names(&self.root)?;
        self.sweep();
        if let Some(sandbox) = self.existing(wish)? {
            return Ok((sandbox, false));
        }
        let taken = self.names()?;
        let name = match &wish.name {
            Some(name) if taken.contains(name) => return Err(self.taken(name)),
            Some(name) => name.clone(),
            None => {
                let workspace = wish.shares.first().map_or(Path::new("/"), |share| &share.path);
                let base = naming::default_name(&wish.agent, workspace);
                naming::first_free(&base, |name| taken.iter().any(|taken| taken == name))
            }
        };
        let id = random_id()?;
        let spec = Spec {
            schema: SCHEMA,
            id: id.clone(),
            name,
            agent: wish.agent.clone(),
            arch: std::env::consts::ARCH.into(),
            created: crate::spec::rfc3339(SystemTime::now()),
            shares: wish.shares.clone(),
            cpus: wish.cpus,
            memory: wish.memory,
            disk: wish.disk,
            engine: wish.engine.clone(),
            image: wish.image.clone(),
            network: wish.network,
        };
        let fresh = self.root.join(format!("{NEW}{id}"));
        let fail = |source| Error::file("cannot make the folder", &fresh, source);
        for folder in [fresh.clone(), fresh.join("disk"), fresh.join("logs")] {
            DirBuilder::new().mode(0o700).create(&folder).map_err(fail)?;
        }
        File::options().write(true).create_new(true).mode(0o600).open(fresh.join(LOCK)).map_err(fail)?;
        let half = Sandbox::new(fresh.clone(), spec.clone());
        policy_files::add_kits(&half, &wish.kits)?;
        if !wish.ports.is_empty() {
            ports::write(&fresh, &wish.ports)?;
        }
        files::write_json(&fresh.join(SPEC), &spec)?;
        let folder = self.root.join(&id);
        fs::rename(&fresh, &folder).map_err(fail)?;
        files::sync_folder(&self.root)?;
        Ok((Sandbox::new(folder, spec), true))
    }

    /// The folders that killed processes left half made or half deleted, with their disks.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        // What is being made just now is none.
        let _names = hold_names(&self.root)?;
        Ok(self.half_there())
    }

    /// Deletes [`Self::leftovers`].
    pub fn remove_leftovers(&self) -> Result<()> {
        let _names = hold_names(&self.root)?;
        for path in self.half_there() {
            match fs::remove_dir_all(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::file("cannot delete", path, source));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Deletes what can be deleted of that. The names are held.
    fn sweep(&self) {
        for path in self.half_there() {
            let _ = fs::remove_dir_all(path);
        }
    }

    /// The names are held.
    fn half_there(&self) -> Vec<PathBuf> {
        let is_half_there = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(NEW) || name.starts_with(GONE)
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter(is_half_there).map(|entry| entry.path()).collect()
    }
}

impl Sandbox {
    fn read(folder: PathBuf) -> Result<Self> {
        let path = folder.join(SPEC);
        let spec: Spec = files::read_json(&path, SCHEMA)?;
        // As in a copy of another one's folder, which would be taken for that one.
        if folder.file_name().is_none_or(|id| id != spec.id.as_str()) {
            return Err(Error::Damaged { path, why: format!("it is that of the sandbox {}", spec.id) });
        }
        match spec.fault() {
            Some(why) => Err(Error::Damaged { path, why }),
            None => Ok(Self::new(folder, spec)),
        }
    }

    fn new(folder: PathBuf, spec: Spec) -> Self {
        Self { folder: Folder::new(folder, spec.name.clone()), spec }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Takes the folders that the user has just named, as they are now. A folder that was deleted and made again is another
    /// one, and only the user can say that it is meant. A stopped sandbox takes further folders, too, and `:ro` for one that
    /// was writable; nothing makes a read-only one writable.
    ///
    /// # Errors
    /// [`Error::SharesFixed`] if it runs with other folders, [`Error::Exchanged`] if with one that another has taken the place of:
    /// what a guest sees is decided before it starts.
    pub fn adopt(&mut self, named: &[Share]) -> Result<()> {
        // Another client may name folders for it at the same moment.
        let _names = hold_names(self.folder().parent().unwrap_or(Path::new("/")))?;
        self.spec = files::read_json(&self.folder().join(SPEC), SCHEMA)?;
        let mut spec = self.spec.clone();
        let (mut other, mut exchanged) = (None, None);
        for now in named {
            match spec.shares.iter_mut().find(|share| share.path == now.path) {
                Some(share) => {
                    // What nobody has noted cannot be told from what is there.
                    if share.identity.is_some() && share.identity != now.identity {
                        exchanged = Some(now);
                    }
                    share.identity = now.identity;
                    if now.read_only && !share.read_only {
                        share.read_only = true;
                        other = Some(now);
                    }
                }
                None => {
                    spec.shares.push(now.clone());
                    other = Some(now);
                }
            }
        }
        if spec == self.spec {
            return Ok(());
        }
        // Held while the file is written; a shim reads it when it has the lock.
        let _lock = match other.or(exchanged) {
            None => None,
            Some(share) => {
                workspace::check_overlaps(&spec.shares)?;
                let (name, path) = (self.spec.name.clone(), share.path.clone());
                match self.lock(Duration::from_millis(500))? {
                    None if self.is_checked() => return Err(Error::Checked { name }),
                    None if other.is_some() => return Err(Error::SharesFixed { name, path }),
                    None => return Err(Error::Exchanged { name, path }),
                    lock => lock,
                }
            }
        };
        files::write_json(&self.folder().join(SPEC), &spec)?;
        self.spec = spec;
        Ok(())
    }

    /// Whether its first start has failed, as far as that can be told without its lock.
    pub fn never_started(&self) -> bool {
        let made =
            File::open(self.disk_folder()).is_ok_and(|folder| disk::is_made(folder.as_fd()).unwrap_or(true));
        self.state() == State::Failed && self.ended_failed() && !made
    }

    /// Deletes it if its first start has failed: no guest has ever made its file system on the disk, so there is nothing to
    /// lose. Any other sandbox is given back.
    pub fn remove_if_it_never_started(self) -> Result<Option<Self>> {
        let lock = match self.lock(Duration::ZERO) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(Some(self)),
            // Another client was faster.
            Err(Error::UnknownSandbox { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        // One that nobody has tried to start yet is as it was wanted.
        let ended = self.ended_failed();
        let folder = File::open(self.disk_folder())
            .map_err(|source| Error::file("cannot open", self.disk_folder(), source))?;
        // What cannot be told is left alone.
        if !ended || disk::is_made(folder.as_fd()).unwrap_or(true) {
            return Ok(Some(self));
        }
        tracing::info!(sandbox = self.spec.name, "Deleting it: its first start failed");
        self.remove_held(lock)?;
        Ok(None)
    }
}

/// Bytes that a file or a folder with all in it takes on the disk.
pub(crate) fn room(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.blocks().saturating_mul(512);
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| room(&entry.path())).sum()
}

/// Who holds this makes sandboxes and writes their specs, which takes moments.
fn hold_names(root: &Path) -> Result<File> {
    files::hold(root.join(NAMES), NAMES_PATIENCE)
}

fn random_id() -> Result<String> {
    let mut bytes = [0u8; 8];
    crate::sys::random(&mut bytes).map_err(|error| Error::host("cannot get random bytes", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
pub(crate) mod tests;
