//! What is shared: a folder or a single file, as a descriptor that somebody more trusted has opened.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use fuse_wire::{Errno, FileKind};

use crate::sys::{self, ShareFor, Stat};

/// A folder or file of the host for the guest.
#[derive(Debug)]
pub struct Share {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) read_only: bool,
    pub(crate) stat: Stat,
}

/// Why something cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It could not be opened or looked at.
    #[error("Cannot open what is to be shared")]
    Open(#[source] std::io::Error),
    /// It is neither a directory nor a regular file.
    #[error("Only directories and regular files can be shared")]
    Kind,
}

impl Share {
    /// Shares what a descriptor is open on: a directory (`O_PATH` is enough), or a regular file, open for reading, and for writing
    /// too unless `read_only`. A single file is that inode for as long as the sandbox runs, whatever its name comes to mean.
    ///
    /// # Errors
    /// The descriptor is of another kind or cannot be looked at.
    pub fn new(fd: OwnedFd, read_only: bool) -> Result<Share, ShareError> {
        let stat = sys::stat_of(fd.as_fd()).map_err(open_error)?;
        if !matches!(stat.identity.kind, FileKind::Directory | FileKind::Regular) {
            return Err(ShareError::Kind);
        }
        Ok(Share { fd: Arc::new(fd), read_only, stat })
    }

    /// Opens and shares what a path of the user names; links in it are followed, as it is the user's own.
    ///
    /// # Errors
    /// It cannot be opened, or is of another kind.
    pub fn open(path: &Path, read_only: bool) -> Result<Share, ShareError> {
        let kind = std::fs::metadata(path).map_err(ShareError::Open)?;
        let how = if kind.is_dir() {
            ShareFor::Directory
        } else if !kind.is_file() {
            return Err(ShareError::Kind);
        } else if read_only {
            ShareFor::Reading
        } else {
            ShareFor::ReadingAndWriting
        };
        let fd = sys::open_share(path, how).map_err(ShareError::Open)?;
        Share::new(fd, read_only)
    }

    /// The descriptor, for a confinement rule that names it.
    pub fn descriptor(&self) -> impl AsFd {
        Arc::clone(&self.fd)
    }

    /// Whether the guest may not write.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

fn open_error(errno: Errno) -> ShareError {
    ShareError::Open(sys::io_error(errno))
}
