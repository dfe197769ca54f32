//! Windows.

use std::io;
use std::path::Path;

/// Nothing: a folder cannot be synced there, and NTFS keeps its entries in a journal.
#[expect(clippy::unnecessary_wraps, reason = "other systems can fail here")]
pub(crate) fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// Refuses: `GetDiskFreeSpaceEx` is not bound yet, and an unknown amount is not enough.
pub(crate) fn free_bytes(_path: &Path) -> io::Result<u64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the free space cannot be asked for on Windows yet"))
}
