//! Windows: not yet. `vm-memory` maps there without a bitmap of ours, so that no write would reach the dirty log, and files
//! shared only, so that a device could change the base image.

use std::fs::File;
use std::io;

use vm_memory::MmapRegion;

use crate::Tracker;

/// What RAM ranges are pieces of; there is none.
pub(crate) enum Ram {}

impl Ram {
    /// Refuses.
    pub(crate) fn new(_len: u64) -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn map(&self, _gpa: u64, _offset: u64, _len: u64) -> io::Result<MmapRegion<Tracker>> {
        match *self {}
    }
}

/// Refuses.
pub(crate) fn map_file(_gpa: u64, _len: u64, _file: File) -> io::Result<MmapRegion<Tracker>> {
    Err(unsupported())
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "guest memory is not supported on Windows yet")
}
