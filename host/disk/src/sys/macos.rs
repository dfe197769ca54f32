//! macOS. Never run so far.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};

use super::Access;

/// Opens an entry of a folder, without following a link. There is no `RESOLVE_BENEATH`; names here are single components.
pub(crate) fn open_beneath(
    folder: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd> {
    let name = name.into_c_str()?;
    if name.to_bytes().contains(&b'/') || name.to_bytes() == b".." {
        return Err(Errno::INVAL);
    }
    rustix::fs::openat(folder, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// What a descriptor is open for.
pub(crate) fn access(file: &OwnedFd) -> Result<Access> {
    Ok(match rustix::fs::fcntl_getfl(file)? & OFlags::RWMODE {
        OFlags::RDWR => Access::ReadingAndWriting,
        OFlags::RDONLY => Access::Reading,
        _ => Access::Other,
    })
}

/// Reads once; how many bytes came.
pub(crate) fn read_at(file: &OwnedFd, into: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
    rustix::io::preadv(file, into, offset)
}

/// Writes once; how many bytes went.
pub(crate) fn write_at(file: &OwnedFd, from: &[IoSlice<'_>], offset: u64) -> Result<usize> {
    rustix::io::pwritev(file, from, offset)
}

/// Brings the file's data to the disk, through the drive's cache: `fsync` alone stops before it (fcntl(2), F_FULLFSYNC).
pub(crate) fn sync(file: &OwnedFd) -> Result<()> {
    rustix::fs::fcntl_fullfsync(file)
}

/// Not yet: `F_PUNCHHOLE` is in no safe crate. Discards do nothing, and zeros are written.
pub(crate) fn punch_hole(_file: &OwnedFd, _offset: u64, _len: u64) -> Result<()> {
    Err(Errno::OPNOTSUPP)
}
