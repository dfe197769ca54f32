//! Systems that the file server has not been brought to: no share can be opened, and nothing can be done beneath one.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use fuse_wire::{Errno, FallocateMode, SeekTarget, SetTime, SpaceReport, Timestamp, XattrMode};

use super::{HostEntry, OpenFor, Result, ShareFor, Stat};

/// System calls that the file server makes while it serves: none.
pub const SYSTEM_CALLS: &[&str] = &[];

/// Refuses.
pub(crate) fn open_share(_path: &Path, _how: ShareFor) -> std::io::Result<OwnedFd> {
    Err(io_error(Errno::NOSYS))
}

/// Errno values are the guest's, which this system's are not; there is one cause anyhow.
pub(crate) fn io_error(_errno: Errno) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::Unsupported, "folders cannot be shared on this system yet")
}

/// The caller's effective user and all of its groups.
pub(crate) fn credentials() -> (u32, Vec<u32>) {
    (rustix::process::geteuid().as_raw(), vec![rustix::process::getegid().as_raw()])
}

/// How many descriptors this process may have open, as far as it says.
pub(crate) fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX)
}

/// The time now, by the C library's clock: rustix looks for the kernel's by a call that a vmm's filter kills.
pub(crate) fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: now.as_secs().cast_signed(), nanoseconds: now.subsec_nanos() }
}

pub(crate) fn stat_at(_dir: BorrowedFd<'_>, _name: &CStr) -> Result<Stat> {
    Err(Errno::NOSYS)
}

pub(crate) fn stat_of(_fd: BorrowedFd<'_>) -> Result<Stat> {
    Err(Errno::NOSYS)
}

pub(crate) fn is_kernel_interface(_dir: BorrowedFd<'_>, _name: &CStr) -> Result<bool> {
    Err(Errno::NOSYS)
}

pub(crate) fn open_directory_path(_dir: BorrowedFd<'_>, _path: &CStr) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}

pub(crate) fn open_directory(_dir: BorrowedFd<'_>, _path: &CStr) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}

pub(crate) fn open_entry(
    _dir: BorrowedFd<'_>,
    _name: &CStr,
    _how: OpenFor,
    _synchronous: bool,
) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}

pub(crate) fn create_entry(
    _dir: BorrowedFd<'_>,
    _name: &CStr,
    _how: OpenFor,
    _synchronous: bool,
    _mode: u32,
) -> Result<OwnedFd> {
    Err(Errno::NOSYS)
}

pub(crate) fn make_directory(_dir: BorrowedFd<'_>, _name: &CStr, _mode: u32) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn make_symlink(_dir: BorrowedFd<'_>, _name: &CStr, _target: &CStr) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn read_link(_dir: BorrowedFd<'_>, _name: &CStr) -> Result<Vec<u8>> {
    Err(Errno::NOSYS)
}

pub(crate) fn unlink(_dir: BorrowedFd<'_>, _name: &CStr, _directory: bool) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn rename(
    _from: (BorrowedFd<'_>, &CStr),
    _to: (BorrowedFd<'_>, &CStr),
    _mode: fuse_wire::RenameMode,
) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn link(_from: (BorrowedFd<'_>, &CStr), _to: (BorrowedFd<'_>, &CStr)) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn set_mode(_fd: BorrowedFd<'_>, _mode: u32) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn set_length(_fd: BorrowedFd<'_>, _size: u64) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn set_times(_fd: BorrowedFd<'_>, _atime: Option<SetTime>, _mtime: Option<SetTime>) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn read(_fd: BorrowedFd<'_>, _offset: u64, _into: &mut [IoSliceMut<'_>]) -> Result<usize> {
    Err(Errno::NOSYS)
}

pub(crate) fn write(
    _fd: BorrowedFd<'_>,
    _offset: u64,
    _append: bool,
    _from: &[IoSlice<'_>],
) -> Result<usize> {
    Err(Errno::NOSYS)
}

pub(crate) fn get_xattr(_fd: BorrowedFd<'_>, _name: &CStr, _most: usize) -> Result<Vec<u8>> {
    Err(Errno::NOSYS)
}

pub(crate) fn set_xattr(_fd: BorrowedFd<'_>, _name: &CStr, _value: &[u8], _mode: XattrMode) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn list_xattr(_fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    Err(Errno::NOSYS)
}

pub(crate) fn remove_xattr(_fd: BorrowedFd<'_>, _name: &CStr) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn sync(_fd: BorrowedFd<'_>, _data_only: bool) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn sync_file_system(_fd: BorrowedFd<'_>) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn allocate(_fd: BorrowedFd<'_>, _offset: u64, _length: u64, _mode: FallocateMode) -> Result<()> {
    Err(Errno::NOSYS)
}

pub(crate) fn seek(_fd: BorrowedFd<'_>, _offset: u64, _target: SeekTarget) -> Result<u64> {
    Err(Errno::NOSYS)
}

pub(crate) fn copy_range(
    _from: BorrowedFd<'_>,
    _from_offset: u64,
    _to: BorrowedFd<'_>,
    _to_offset: u64,
    _length: u64,
) -> Result<usize> {
    Err(Errno::NOSYS)
}

pub(crate) fn space(_fd: BorrowedFd<'_>) -> Result<SpaceReport> {
    Err(Errno::NOSYS)
}

pub(crate) fn list(
    _fd: BorrowedFd<'_>,
    _offset: u64,
    _take: impl FnMut(HostEntry<'_>) -> bool,
) -> Result<()> {
    Err(Errno::NOSYS)
}
