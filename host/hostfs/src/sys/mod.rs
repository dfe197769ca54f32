//! The host's file system calls, relative to a directory descriptor and never following a symbolic link.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use fuse_wire::{Errno, FileKind, Timestamp};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::SYSTEM_CALLS;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(not(target_os = "linux"))]
mod none;
#[cfg(not(target_os = "linux"))]
pub use none::SYSTEM_CALLS;
#[cfg(not(target_os = "linux"))]
pub(crate) use none::*;

type Result<T> = std::result::Result<T, Errno>;

/// What makes a file itself, whatever it is called: a number that is used again after deletion comes with another birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    /// Time of birth; zeros where the file system keeps none.
    pub(crate) birth: (i64, u32),
    pub(crate) kind: FileKind,
}

/// What the host says of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) identity: Identity,
    /// Permission, set-id and sticky bits.
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
}

/// What a descriptor is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenFor {
    /// To name the file only (`O_PATH`).
    Naming,
    Reading,
    Writing,
    ReadingAndWriting,
}

/// What a share is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShareFor {
    /// To name things beneath it.
    Directory,
    Reading,
    ReadingAndWriting,
}

/// One entry as the host's directory has it.
pub(crate) struct HostEntry<'a> {
    pub(crate) name: &'a CStr,
    pub(crate) inode: u64,
    pub(crate) next: u64,
    pub(crate) kind: Option<FileKind>,
}

/// The descriptor of something shared.
pub(crate) fn borrow(fd: &impl AsFd) -> BorrowedFd<'_> {
    fd.as_fd()
}
