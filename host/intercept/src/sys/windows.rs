//! Windows: access-control lists are not bound yet, and a key that others may read is worse than none.

use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

fn refuse<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "a file for its owner alone is not supported on Windows yet",
    ))
}

/// Refuses.
pub(crate) fn make_private_folder(_folder: &Path) -> io::Result<()> {
    refuse()
}

/// Refuses.
pub(crate) fn create_private(_path: &Path) -> io::Result<File> {
    refuse()
}

/// Refuses.
pub(crate) fn open_itself(_path: &Path) -> io::Result<File> {
    refuse()
}

/// Unknown, and never reached: nothing opens.
pub(crate) fn mode_for_others(_metadata: &Metadata) -> Option<u32> {
    Some(0o777)
}

/// Refuses.
pub(crate) fn sync_folder(_folder: &Path) -> io::Result<()> {
    refuse()
}
