//! Sandboxes as folders: each is one folder with a random id, and nothing else on the host remembers it.
//!
//! ```text
//! sandboxes/<id>/spec.json       what it is; only which folder a share's path leads to is ever noted anew
//!                runtime.json    how it fares; written by its shim
//!                lock            held (flock) by the shim for as long as it lives
//!                check           held by who checks the disk, with the lock
//!                control.sock    where the shim listens
//!                disk/           the writable disk's layers
//!                logs/           console.log, agent.log, dockerd.log, vmm.log, shim.log, each bounded
//! sandboxes/.new-<id>            being made; .gone-<id> being deleted: both are swept when nobody makes one
//! sandboxes/.names               held while a name is chosen and its folder made, and while a spec is written anew
//! ```
//! A process may be killed at any moment: what it held is free at once, and a folder is there as a whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::control::Connection;
use crate::error::{Error, Result};
use crate::logs::Source;
use crate::places::Places;
use crate::spec::{Runtime, SCHEMA, Spec, State};
use crate::workspace::Share;
use crate::{files, naming, workspace};

const SPEC: &str = "spec.json";
const RUNTIME: &str = "runtime.json";
const LOCK: &str = "lock";
const CHECK: &str = "check";
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
}

/// One sandbox's folder.
#[derive(Clone, Debug)]
pub struct Sandbox {
    folder: PathBuf,
    /// What it is.
    pub spec: Spec,
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

    /// All sandboxes that can be read, by name, and what is wrong with the others.
    pub fn list(&self) -> Result<(Vec<Sandbox>, Vec<Error>)> {
        let (mut found, mut wrong) = (Vec::new(), Vec::new());
        for entry in
            fs::read_dir(&self.root).map_err(|source| Error::file("cannot read", &self.root, source))?
        {
            let Ok(entry) = entry else { continue };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            match Sandbox::read(entry.path()) {
                Ok(sandbox) => found.push(sandbox),
                Err(Error::File { source, path, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    // Else it was deleted between the two looks: a folder is there as a whole or not at all.
                    if entry.path().is_dir() {
                        wrong.push(Error::Damaged { path, why: "it is not there".into() });
                    }
                }
                Err(error) => wrong.push(error),
            }
        }
        found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        Ok((found, wrong))
    }

    /// The sandbox that the user means by a name or a unique beginning of one.
    pub fn find(&self, wanted: &str) -> Result<Sandbox> {
        let (mut all, mut unreadable) = self.list()?;
        let names: Vec<&str> = all.iter().map(|sandbox| sandbox.spec.name.as_str()).collect();
        let name = match naming::resolve(wanted, &names) {
            // It may be one of those.
            Err(Error::UnknownSandbox { name, nearest: None }) if !unreadable.is_empty() => {
                return Err(Error::Unreadable { name, cause: Box::new(unreadable.swap_remove(0)) });
            }
            other => other?,
        };
        let index = names.iter().position(|other| *other == name).unwrap_or(0);
        Ok(all.swap_remove(index))
    }

    /// The sandbox with this id.
    pub fn by_id(&self, id: &str) -> Result<Sandbox> {
        Sandbox::read(self.root.join(id))
    }

    /// The sandbox that a `run` with this wish attaches to, if there is one: the one of this name, or without a name the
    /// one of the same agent and workspace. A name that belongs to another agent or workspace is refused.
    pub fn existing(&self, wish: &Wish) -> Result<Option<Sandbox>> {
        let (all, _) = self.list()?;
        let workspace = wish.shares.first().map(|share| share.path.as_path());
        let same = |sandbox: &Sandbox| {
            sandbox.spec.agent == wish.agent && Some(sandbox.spec.workspace()) == workspace
        };
        match &wish.name {
            Some(name) => match all.into_iter().find(|sandbox| sandbox.spec.name == *name) {
                Some(sandbox) if same(&sandbox) => Ok(Some(sandbox)),
                Some(sandbox) => {
                    Err(Error::NameTaken { name: name.clone(), workspace: sandbox.spec.workspace().into() })
                }
                None => Ok(None),
            },
            // The one with a default name before those that the user named, the oldest first.
            None => {
                let default = naming::default_name(&wish.agent, workspace.unwrap_or(Path::new("/")));
                let rank = |s: &Sandbox| (!s.spec.name.starts_with(&default), s.spec.created.clone());
                Ok(all.into_iter().filter(same).min_by_key(rank))
            }
        }
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
            Some(name) if taken.contains(name) => return Err(self.unreadable(name)),
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
        };
        let fresh = self.root.join(format!("{NEW}{id}"));
        let fail = |source| Error::file("cannot make the folder", &fresh, source);
        for folder in [fresh.clone(), fresh.join("disk"), fresh.join("logs")] {
            DirBuilder::new().mode(0o700).create(&folder).map_err(fail)?;
        }
        File::options().write(true).create_new(true).mode(0o600).open(fresh.join(LOCK)).map_err(fail)?;
        files::write_json(&fresh.join(SPEC), &spec)?;
        let folder = self.root.join(&id);
        fs::rename(&fresh, &folder).map_err(fail)?;
        files::sync_folder(&self.root)?;
        Ok((Sandbox { folder, spec }, true))
    }

    /// All names that are taken, as far as they can be told: those of sandboxes of a newer version, too.
    fn names(&self) -> Result<Vec<String>> {
        let entries =
            fs::read_dir(&self.root).map_err(|source| Error::file("cannot read", &self.root, source))?;
        let folders = entries.flatten().filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        Ok(folders.filter_map(|entry| files::read_name(&entry.path().join(SPEC))).collect())
    }

    /// What is said of a name whose sandbox cannot be read.
    fn unreadable(&self, name: &str) -> Error {
        let wrong = self.list().map(|(_, wrong)| wrong).unwrap_or_default().into_iter();
        let is_it = |error: &Error| match error {
            Error::Damaged { path, .. } | Error::NewerFormat { path, .. } => {
                files::read_name(path).is_some_and(|found| found == name)
            }
            _ => false,
        };
        match { wrong }.find(is_it) {
            Some(cause) => Error::Unreadable { name: name.into(), cause: Box::new(cause) },
            None => Error::BadName { name: name.into(), why: "another sandbox has it" },
        }
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
        let spec: Spec = files::read_json(&folder.join(SPEC), SCHEMA)?;
        Ok(Self { folder, spec })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of its writable disk's layers.
    pub fn disk_folder(&self) -> PathBuf {
        self.folder.join("disk")
    }

    /// The file of one of its logs.
    pub fn log(&self, source: Source) -> PathBuf {
        self.folder.join("logs").join(format!("{}.log", source.name()))
    }

    /// Takes the lock, waiting as long as `patience`; `None` when somebody else keeps it. A client that only looks
    /// ([`Self::state`]) holds it for an instant, so no patience at all would be too little.
    pub fn lock(&self, patience: Duration) -> Result<Option<Lock>> {
        let file = self.lock_file()?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::file("cannot lock", &self.folder, error)),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may have been deleted while it was waited for.
        if !self.folder.join(LOCK).exists() {
            return Err(Error::UnknownSandbox { name: self.spec.name.clone(), nearest: None });
        }
        Ok(Some(Lock { _file: file, _check: None }))
    }

    fn lock_file(&self) -> Result<File> {
        File::options().write(true).open(self.folder.join(LOCK)).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::UnknownSandbox { name: self.spec.name.clone(), nearest: None },
            _ => Error::file("cannot lock", &self.folder, source),
        })
    }

    /// Takes the lock to look at the disk, which may last minutes and is no start.
    ///
    /// # Errors
    /// It runs, or somebody looks at it already.
    pub fn lock_to_check(&self) -> Result<Lock> {
        let lock = self.lock(Duration::from_millis(500))?.ok_or_else(|| self.in_use())?;
        let path = self.folder.join(CHECK);
        let fail = |source: io::Error| Error::file("cannot lock", &path, source);
        let check = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let check = check.map_err(fail)?;
        flock(&check, FlockOperation::NonBlockingLockExclusive).map_err(|error| fail(error.into()))?;
        Ok(Lock { _check: Some(check), ..lock })
    }

    /// Whether its disk is being checked.
    pub fn is_checked(&self) -> bool {
        let file = File::open(self.folder.join(CHECK));
        file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// What is said when the lock cannot be had.
    fn in_use(&self) -> Error {
        let name = self.spec.name.clone();
        if self.is_checked() { Error::Checked { name } } else { Error::Running { name } }
    }

    /// Whether a shim lives, or another process has the right to be one.
    pub fn is_running(&self) -> bool {
        let Ok(file) = self.lock_file() else { return false };
        flock(&file, FlockOperation::NonBlockingLockShared).is_err()
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
        let _names = hold_names(self.folder.parent().unwrap_or(Path::new("/")))?;
        self.spec = files::read_json(&self.folder.join(SPEC), SCHEMA)?;
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
        files::write_json(&self.folder.join(SPEC), &spec)?;
        self.spec = spec;
        Ok(())
    }

    /// What it does, as its shim last noted it.
    pub fn state(&self) -> State {
        let noted = |sandbox: &Self| sandbox.runtime().map(|runtime| runtime.state);
        if self.is_running() {
            return match noted(self) {
                _ if self.is_checked() => State::Checking,
                // Of the run before: the new shim has not written yet.
                None | Some(State::Stopped | State::Failed) => State::Starting,
                Some(state) => state,
            };
        }
        match noted(self) {
            None | Some(State::Stopped) => State::Stopped,
            Some(State::Failed) => State::Failed,
            // It may have begun to run between the two looks; else its shim could note no end.
            Some(_) if self.is_running() => State::Starting,
            Some(_) => State::Failed,
        }
    }

    /// Why it does not run, when it has run before; `state` is what [`Self::state`] has just said.
    pub fn end(&self, state: State) -> Option<String> {
        let runtime = self.runtime().filter(|_| state.is_over())?;
        if runtime.state.is_over() {
            return runtime.reason;
        }
        // Its shim was killed before it could say so, maybe with the whole host.
        let booted = crate::sys::uptime().and_then(|up| SystemTime::now().checked_sub(up));
        let started = crate::spec::from_rfc3339(&runtime.started);
        let before = booted.zip(started).is_some_and(|(booted, started)| started < booted);
        Some(if before { "host restarted".into() } else { "shim killed".into() })
    }

    /// What its shim noted last, also that of a run that has ended.
    pub fn runtime(&self) -> Option<Runtime> {
        files::read_json(&self.folder.join(RUNTIME), SCHEMA).ok()
    }

    pub(crate) fn note(&self, runtime: &Runtime) -> Result<()> {
        files::write_json(&self.folder.join(RUNTIME), runtime)
    }

    /// Forgets what was noted of the run before, and what its shim was killed at noting.
    pub(crate) fn forget_run(&self) {
        let pieces = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let pieces = pieces.filter(|entry| entry.file_name().to_string_lossy().starts_with(RUNTIME));
        for piece in pieces {
            let _ = fs::remove_file(piece.path());
        }
    }

    /// Notes a run's end. If that cannot be written, nothing is noted any more: what was written before says that it runs,
    /// which would be taken for a killed shim's.
    pub(crate) fn note_end(&self, runtime: &Runtime) -> Result<()> {
        self.note(runtime).inspect_err(|_| {
            let _ = fs::remove_file(self.folder.join(RUNTIME));
        })
    }

    /// Connects to the shim; `None` when there is none.
    pub fn connect(&self) -> Result<Option<Connection>> {
        match Connection::open(&self.folder) {
            Ok(connection) => Ok(Some(connection)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset => Ok(None),
                _ => Err(Error::host("cannot reach the sandbox", error)),
            },
        }
    }

    /// Bytes that it takes on the host's disk.
    pub fn disk_use(&self) -> u64 {
        room(&self.folder)
    }

    /// Whether its first start has failed, as far as that can be told without its lock.
    pub fn never_started(&self) -> bool {
        let made =
            File::open(self.disk_folder()).is_ok_and(|folder| disk::is_made(folder.as_fd()).unwrap_or(true));
        self.state() == State::Failed && self.ended_failed() && !made
    }

    /// Whether its shim has noted a failure: one that was killed may have been wanted as it was.
    fn ended_failed(&self) -> bool {
        self.runtime().is_some_and(|runtime| runtime.state == State::Failed)
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

    /// Deletes it. It must be stopped.
    pub fn remove(self) -> Result<()> {
        match self.lock(Duration::from_secs(2))? {
            Some(lock) => self.remove_held(lock),
            None => Err(self.in_use()),
        }
    }

    fn remove_held(&self, _lock: Lock) -> Result<()> {
        let root = self.folder.parent().unwrap_or(Path::new("/"));
        let gone = root.join(format!("{GONE}{}", self.spec.id));
        let fail = |source| Error::file("cannot delete", &self.folder, source);
        fs::rename(&self.folder, &gone).map_err(fail)?;
        match fs::remove_dir_all(&gone) {
            // Another client's sweep was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(fail),
        }
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
    hold_names_within(root, NAMES_PATIENCE)
}

fn hold_names_within(root: &Path, patience: Duration) -> Result<File> {
    let path = root.join(".names");
    let fail = |source: io::Error| Error::file("cannot lock", &path, source);
    let file =
        File::options().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
    let deadline = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fail(error.into())),
        }
        if Instant::now() >= deadline {
            return Err(Error::NamesHeld { path });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn random_id() -> Result<String> {
    let mut bytes = [0u8; 8];
    crate::sys::random(&mut bytes).map_err(|error| Error::host("cannot get random bytes", error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
pub(crate) mod tests;
