//! macOS and Windows have no call for a whole file system that waits until it is done.

use std::fs::File;
use std::io;
use std::path::Path;

/// Brings everything beneath a folder to the disk, file by file.
pub(crate) fn sync_tree(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let (path, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Windows syncs what is open for writing only.
            File::options().write(true).open(&path)?.sync_all()?;
        }
    }
    super::sync_folder(folder)
}
