//! One set-up at a time: a lock file that the system lets go of when its holder dies.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use crate::FetchError;

/// An exclusive lock on a file; it ends with this value, or with the process.
#[derive(Debug)]
pub struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock at `path` (made if it is not there), waiting for another process if need be;
    /// `waiting` is called once before such a wait.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub fn acquire(path: &Path, waiting: impl FnOnce()) -> Result<Self, FetchError> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => return Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => waiting(),
            Err(TryLockError::Error(error)) => return Err(failed(path, "lock")(error)),
        }
        loop {
            match file.lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(path, "lock")(error)),
            }
        }
    }

    /// Takes the lock at `path` if no other process has it.
    ///
    /// # Errors
    /// If the file cannot be made or locked.
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, FetchError> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(path, "lock")(error)),
        }
    }
}

fn open(path: &Path) -> Result<File, FetchError> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true).open(path).map_err(failed(path, "create the lock"))
}

fn failed(path: &Path, what: &'static str) -> impl Fn(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::File { what, path: path.clone(), source }
}
