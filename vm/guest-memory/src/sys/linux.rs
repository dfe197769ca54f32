//! Linux: RAM is one sealed memfd.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::Tracker;

const READ: i32 = 1;
const WRITE: i32 = 2;
const SHARED: i32 = 1;
const PRIVATE: i32 = 2;

/// What RAM ranges are pieces of.
pub(crate) struct Ram(Arc<File>);

impl Ram {
    /// `len` bytes that can neither shrink nor grow: a mapping of them can never fault for lack of a file.
    pub(crate) fn new(len: u64) -> io::Result<Self> {
        let fd: OwnedFd = memfd_create("vivarium-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, len)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self(Arc::new(File::from(fd))))
    }

    /// Maps the bytes from `offset` for the range that starts at `gpa`.
    pub(crate) fn map(&self, gpa: u64, offset: u64, len: u64) -> io::Result<MmapRegion<Tracker>> {
        map(gpa, len, FileOffset::from_arc(self.0.clone(), offset), SHARED)
    }
}

/// Maps a file from its start, privately, for the range that starts at `gpa`.
pub(crate) fn map_file(gpa: u64, len: u64, file: File) -> io::Result<MmapRegion<Tracker>> {
    map(gpa, len, FileOffset::new(file, 0), PRIVATE)
}

fn map(gpa: u64, len: u64, at: FileOffset, flags: i32) -> io::Result<MmapRegion<Tracker>> {
    MmapRegionBuilder::new_with_bitmap(len as usize, Tracker::new(gpa, len))
        .with_file_offset(at)
        .with_mmap_prot(READ | WRITE)
        .with_mmap_flags(flags)
        .build()
        .map_err(io::Error::other)
}
