//! One sandbox's folder: what can be done with a sandbox whatever its `spec.json` says, and when nobody can read that.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use super::{CHECK, GONE, LOCK, Lock, RUNTIME, room};
use crate::control::Connection;
use crate::error::{Error, Result};
use crate::files;
use crate::logs::Source;
use crate::spec::{Runtime, SCHEMA, State};

/// One sandbox's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
    name: String,
}

impl AsRef<Self> for Folder {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl Folder {
    /// The folder at `path` of the sandbox that goes by `name`.
    pub(super) fn new(path: PathBuf, name: impl Into<String>) -> Self {
        Self { path, name: name.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The sandbox's id: the folder's own name.
    pub fn id(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What the sandbox goes by: its name, or its id if it has none that can be read and is its alone.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, going by another name.
    pub(super) fn going_by(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// The folder of its writable disk's layers.
    pub fn disk_folder(&self) -> PathBuf {
        self.path.join("disk")
    }

    /// The file of one of its logs.
    pub fn log(&self, source: Source) -> PathBuf {
        self.path.join("logs").join(format!("{}.log", source.name()))
    }

    /// Takes the lock, waiting as long as `patience`; `None` when somebody else keeps it. A client that only looks
    /// ([`Self::state`]) holds it for an instant, so no patience at all would be too little.
    pub fn lock(&self, patience: Duration) -> Result<Option<Lock>> {
        let Some(file) = self.lock_file()? else { return Ok(None) };
        let fail = |error| Error::file("cannot lock", &self.path, error);
        if !files::lock_within(&file, patience).map_err(fail)? {
            return Ok(None);
        }
        // It may have been deleted while it was waited for.
        if !self.path.join(LOCK).exists() {
            return Err(self.is_gone());
        }
        Ok(Some(Lock { _file: file, _check: None }))
    }

    /// The lock's file, made anew if somebody has deleted it; `None` when a shim lives nevertheless.
    fn lock_file(&self) -> Result<Option<File>> {
        let path = self.path.join(LOCK);
        let file = match File::options().write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.is_running() {
                    return Ok(None);
                }
                File::options().write(true).create(true).truncate(false).mode(0o600).open(&path)
            }
            other => other,
        };
        match file {
            Ok(file) => Ok(Some(file)),
            // The whole folder is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.is_gone()),
            Err(error) => Err(Error::file("cannot lock", &self.path, error)),
        }
    }

    fn is_gone(&self) -> Error {
        Error::UnknownSandbox { name: self.name.clone(), nearest: None, unreadable: 0 }
    }

    /// Takes the lock to look at the disk, which may last minutes and is no start. A shim that was killed holds its lock until the
    /// kernel has taken it apart: that is waited for as long as `dying`.
    ///
    /// # Errors
    /// It runs, or somebody looks at it already.
    pub fn lock_to_check(&self, dying: Duration) -> Result<Lock> {
        let mut lock = self.lock(Duration::from_millis(500))?;
        if lock.is_none() && !self.is_checked() && self.connect()?.is_none() {
            lock = self.lock(dying)?;
        }
        let lock = lock.ok_or_else(|| self.in_use())?;
        let path = self.path.join(CHECK);
        let fail = |source: io::Error| Error::file("cannot lock", &path, source);
        let check = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let check = check.map_err(fail)?;
        // Who looks whether it is checked has it for an instant.
        if !files::lock_within(&check, Duration::from_millis(500)).map_err(fail)? {
            return Err(self.in_use());
        }
        Ok(Lock { _check: Some(check), ..lock })
    }

    /// Whether its disk is being checked.
    pub fn is_checked(&self) -> bool {
        let file = File::open(self.path.join(CHECK));
        file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
    }

    /// What is said when the lock cannot be had.
    fn in_use(&self) -> Error {
        let name = self.name.clone();
        if self.is_checked() { Error::Checked { name } } else { Error::Running { name } }
    }

    /// Whether a shim lives, or another process has the right to be one.
    pub fn is_running(&self) -> bool {
        match File::options().write(true).open(self.path.join(LOCK)) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockShared).is_err(),
            // Without a lock it is running if somebody listens.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.connect().is_ok_and(|connection| connection.is_some())
            }
            Err(_) => false,
        }
    }

    /// What it does, as its shim last noted it.
    pub fn state(&self) -> State {
        let noted = |folder: &Self| folder.runtime().map(|runtime| runtime.state);
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
            // Or to have run: an end is noted before the lock is given back.
            Some(_) => match noted(self) {
                None | Some(State::Stopped) => State::Stopped,
                Some(_) => State::Failed,
            },
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
        files::read_json(&self.path.join(RUNTIME), SCHEMA).ok()
    }

    pub(crate) fn note(&self, runtime: &Runtime) -> Result<()> {
        files::write_json(&self.path.join(RUNTIME), runtime)
    }

    /// Forgets what was noted of the run before, and what its shim was killed at noting.
    pub(crate) fn forget_run(&self) {
        let pieces = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let pieces = pieces.filter(|entry| entry.file_name().to_string_lossy().starts_with(RUNTIME));
        for piece in pieces {
            let _ = fs::remove_file(piece.path());
        }
    }

    /// Notes a run's end. If that cannot be written, nothing is noted any more: what was written before says that it runs,
    /// which would be taken for a killed shim's.
    pub(crate) fn note_end(&self, runtime: &Runtime) -> Result<()> {
        self.note(runtime).inspect_err(|_| {
            let _ = fs::remove_file(self.path.join(RUNTIME));
        })
    }

    /// Connects to the shim; `None` when there is none.
    pub fn connect(&self) -> Result<Option<Connection>> {
        match Connection::open(&self.path) {
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
        room(&self.path)
    }

    /// Whether its shim has noted a failure: one that was killed may have been wanted as it was.
    pub(super) fn ended_failed(&self) -> bool {
        self.runtime().is_some_and(|runtime| runtime.state == State::Failed)
    }

    /// Deletes it. It must be stopped.
    pub fn remove(&self) -> Result<()> {
        match self.lock(Duration::from_secs(2))? {
            Some(lock) => self.remove_held(lock),
            None => Err(self.in_use()),
        }
    }

    pub(super) fn remove_held(&self, _lock: Lock) -> Result<()> {
        let root = self.path.parent().unwrap_or(Path::new("/"));
        let gone = root.join(format!("{GONE}{}", self.id()));
        let fail = |source| Error::file("cannot delete", &self.path, source);
        fs::rename(&self.path, &gone).map_err(fail)?;
        match fs::remove_dir_all(&gone) {
            // Another client's sweep was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(fail),
        }
    }
}
