//! macOS: RAM is anonymous memory. There are no memfds, and a POSIX shared memory object can be neither sealed nor sought.

use std::fs::File;
use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::Tracker;

const READ: i32 = 1;
const WRITE: i32 = 2;
const PRIVATE: i32 = 2;
/// `MAP_ANON` of `<sys/mman.h>`.
const ANONYMOUS: i32 = 0x1000;

/// What RAM ranges are pieces of: nothing that they share.
pub(crate) struct Ram;

impl Ram {
    /// Nothing is taken before a range is mapped.
    #[expect(clippy::unnecessary_wraps, reason = "systems where memory is taken here can refuse it")]
    pub(crate) fn new(_len: u64) -> io::Result<Self> {
        Ok(Self)
    }

    /// Maps `len` bytes for the range that starts at `gpa`; no other mapping is of the same memory.
    pub(crate) fn map(&self, gpa: u64, _offset: u64, len: u64) -> io::Result<MmapRegion<Tracker>> {
        build(MmapRegionBuilder::new_with_bitmap(len as usize, Tracker::new(gpa, len)), PRIVATE | ANONYMOUS)
    }
}

/// Maps a file from its start, privately, for the range that starts at `gpa`.
pub(crate) fn map_file(gpa: u64, len: u64, file: File) -> io::Result<MmapRegion<Tracker>> {
    let builder = MmapRegionBuilder::new_with_bitmap(len as usize, Tracker::new(gpa, len));
    build(builder.with_file_offset(FileOffset::new(file, 0)), PRIVATE)
}

fn build(builder: MmapRegionBuilder<Tracker>, flags: i32) -> io::Result<MmapRegion<Tracker>> {
    builder.with_mmap_prot(READ | WRITE).with_mmap_flags(flags).build().map_err(io::Error::other)
}
