//! Linux.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Result;

use super::Access;

/// Opens what lies beneath a folder, without following links.
pub(crate) fn open_beneath(
    folder: BorrowedFd<'_>,
    name: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve)
}

/// What a descriptor is open for.
pub(crate) fn access(file: &OwnedFd) -> Result<Access> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(match flags & OFlags::RWMODE {
        OFlags::RDWR => Access::ReadingAndWriting,
        OFlags::RDONLY if !flags.contains(OFlags::PATH) => Access::Reading,
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

/// Brings the file's data to the disk.
pub(crate) fn sync(file: &OwnedFd) -> Result<()> {
    rustix::fs::fdatasync(file)
}

/// Gives a range back to the file system; it reads as zeros. `OPNOTSUPP` or `NOSYS` where there are no holes.
pub(crate) fn punch_hole(file: &OwnedFd, offset: u64, len: u64) -> Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, hole, offset, len)
}
