//! Linux: a memfd, as the machine that the suite runs in may have no folder to write to.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, memfd_create};

/// An empty file.
pub(crate) fn nameless_file() -> io::Result<File> {
    Ok(File::from(memfd_create("read-only", MemfdFlags::CLOEXEC)?))
}
