//! Files that appear whole or not at all, and that nobody else reads.

use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use zeroize::Zeroizing;

use super::error::{Error, Result};

/// How long another program may hold the lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest file of ours, in bytes.
const LONGEST: u64 = 4 << 20;

/// Makes a folder that only its owner uses.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::file("cannot make", path, source))
}

/// Writes a file: a new one beside it, made durable, then renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |source| Error::file("cannot write", path, source);
    let parent = path.parent().unwrap_or(Path::new("."));
    make_folder(parent)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let fresh = parent.join(name);
    // What an interrupted run left is ours to replace; anything else of that name, as a link, is not followed.
    let _ = fs::remove_file(&fresh);
    let written =
        File::options().write(true).create_new(true).mode(0o600).open(&fresh).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&fresh, path)
        });
    if let Err(source) = written {
        let _ = fs::remove_file(&fresh);
        return Err(fail(source));
    }
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(fail)
}

/// Reads a file; `None` if it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let fail = |source| Error::file("cannot read", path, source);
    let opened = File::options()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::CLOEXEC).bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let length = file.metadata().map_err(fail)?;
    if !length.is_file() || length.len() > LONGEST {
        return Err(Error::damaged(path, "it is no file that viv writes"));
    }
    // Room for all, so that the buffer never moves and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        usize::try_from(length.len()).unwrap_or_default().saturating_add(1),
    ));
    file.take(LONGEST).read_to_end(&mut bytes).map_err(fail)?;
    Ok(Some(bytes))
}

/// Refuses what others can read or write.
pub(crate) fn refuse_exposed(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.mode() & 0o077 != 0 => {
            Err(Error::Exposed { path: path.to_owned(), mode: metadata.mode() & 0o7777 })
        }
        _ => Ok(()),
    }
}

/// Deletes a file that may be gone already.
pub(crate) fn delete(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::file("cannot delete", path, error))
        }
        _ => Ok(()),
    }
}

/// Held while the secrets are changed; free as soon as its holder is gone.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        make_folder(folder)?;
        let path: PathBuf = folder.join(".lock");
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|source| Error::file("cannot open", &path, source))?;
        let end = Instant::now().checked_add(PATIENCE);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::file("cannot lock", &path, error.into())),
            }
            if end.is_none_or(|end| Instant::now() > end) {
                return Err(Error::Busy { path });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
