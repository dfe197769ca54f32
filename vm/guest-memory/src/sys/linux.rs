//! Linux: RAM is one sealed memfd.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use crate::Tracker;

const READ: i32 = 1;
const WRITE: i32 = 2;
const SHARED: i32 = 1;
const PRIVATE: i32 = 2;
const ANONYMOUS: i32 = 0x20;
const NO_RESERVE: i32 = 0x4000;

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
        MmapRegionBuilder::new_with_bitmap(len as usize, Tracker::new(gpa, len))
            .with_file_offset(FileOffset::from_arc(self.0.clone(), offset))
            .with_mmap_prot(READ | WRITE)
            .with_mmap_flags(SHARED)
            .build()
            .map_err(io::Error::other)
    }
}

/// Maps a file from its start, privately, for the range that starts at `gpa`. The file is closed: a descriptor is enough to
/// change the mode and the attributes of a file that is the user's, and this process will be the guest's closest neighbour.
#[expect(
    unsafe_code,
    reason = "`vm-memory` keeps the file of a region open; a mapping laid over the region's own needs none"
)]
pub(crate) fn map_file(gpa: u64, len: u64, file: File) -> io::Result<MmapRegion<Tracker>> {
    let region = MmapRegionBuilder::new_with_bitmap(len as usize, Tracker::new(gpa, len))
        .with_mmap_prot(READ | WRITE)
        .with_mmap_flags(ANONYMOUS | PRIVATE | NO_RESERVE)
        .build()
        .map_err(io::Error::other)?;
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: what is replaced is all of the region's own new mapping, which nothing refers to yet; the one in its place has
    // the same address, length and protection, and the region unmaps it in the end.
    unsafe { mmap(region.as_ptr().cast(), region.size(), protection, flags, &file, 0) }?;
    Ok(region)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use vm_memory::bytes::Bytes as _;

    use super::*;

    #[test]
    fn a_mapped_file_is_not_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 8192]).unwrap();
        let opened = file.reopen().unwrap();
        let about = opened.metadata().unwrap();
        drop(file);
        let open = || {
            let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let same = |about_that: std::fs::Metadata| {
                (about_that.dev(), about_that.ino()) == (about.dev(), about.ino())
            };
            descriptors
                .filter_map(|fd| std::fs::metadata(fd.path()).ok())
                .filter(|that| same(that.clone()))
                .count()
        };
        assert_eq!(open(), 1);
        let region = map_file(0, 8192, opened).unwrap();
        assert_eq!(open(), 0);
        let slice = vm_memory::VolatileMemory::get_slice(&region, 4096, 4096).unwrap();
        assert_eq!(slice.read_obj::<u8>(4095).unwrap(), 7);
        slice.write_obj(1u8, 0).unwrap();
        assert_eq!(slice.read_obj::<u8>(0).unwrap(), 1);
    }
}
