//! Files that appear whole or not at all, also after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Writes a JSON file: a temporary file beside it, made durable, then renamed.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Damaged { path: path.to_owned(), why: error.to_string() })?;
    text.push(b'\n');
    write_whole(path, &text)
}

/// Writes a file: a temporary file beside it, made durable, then renamed.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| Error::file("cannot write", path, source);
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let fresh = parent.join(name);
    let written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
    let written = written.and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    });
    if let Err(source) = written {
        // On a full disk the half of a file is what takes the rest of it.
        let _ = fs::remove_file(&fresh);
        return Err(fail(source));
    }
    sync_folder(parent)
}

/// Takes the lock of this name, which others hold for moments, making its file if there is none. It is held until the file is closed.
///
/// # Errors
/// `NamesHeld` when somebody keeps it for longer than `patience`.
pub(crate) fn hold(lock: PathBuf, patience: Duration) -> Result<File> {
    let fail = |source: io::Error| Error::file("cannot lock", &lock, source);
    let file =
        File::options().write(true).create(true).truncate(false).mode(0o600).open(&lock).map_err(fail)?;
    if lock_within(&file, patience).map_err(fail)? { Ok(file) } else { Err(Error::NamesHeld { path: lock }) }
}

/// Locks an open file for itself alone (flock); `false` when somebody else keeps it for longer than `patience`.
pub(crate) fn lock_within(file: &File, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(|source| Error::file("cannot write", folder, source))
}

/// Reads a JSON file with a `schema` number no greater than `known`.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, known: u32) -> Result<T> {
    let bytes = fs::read(path).map_err(|source| Error::file("cannot read", path, source))?;
    let damaged = |error: serde_json::Error| Error::Damaged { path: path.to_owned(), why: error.to_string() };
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
    let found = value.get("schema").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found > known {
        return Err(Error::NewerFormat { path: path.to_owned(), found, known });
    }
    serde_json::from_value(value).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Sample {
        schema: u32,
        text: String,
    }

    #[test]
    fn a_newer_schema_is_refused_and_an_old_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.json");
        for schema in [1, 7] {
            write_json(&path, &Sample { schema, text: "x".repeat(10 * schema as usize) }).unwrap();
        }
        assert_eq!(read_json::<Sample>(&path, 7).unwrap().text.len(), 70);
        assert!(matches!(read_json::<Sample>(&path, 6), Err(Error::NewerFormat { found: 7, known: 6, .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn what_could_not_be_put_in_place_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        // A folder is not replaced by a file.
        let path = folder.path().join("spec.json");
        fs::create_dir(&path).unwrap();
        assert!(write_whole(&path, b"x").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the folder is there");
    }

    #[test]
    fn half_a_file_is_damaged_not_a_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spec.json");
        fs::write(&path, b"{\"schema\": 1, ").unwrap();
        assert!(matches!(read_json::<Sample>(&path, 7), Err(Error::Damaged { .. })));
    }
}
