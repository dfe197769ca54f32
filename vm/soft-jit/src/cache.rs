//! The code cache: one memfd mapped twice, writable at one address and executable at another. It is cut into units that
//! are filled one after the other and reused in the same order.

use std::ffi::c_void;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::block::Thunk;

/// Why the code cache could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The host gave no memory, or forbids executable memfds (`vm.memfd_noexec`, an SELinux `execmem` rule).
    #[error("The host refused the code cache ({what})")]
    Host {
        /// The step that was refused.
        what: &'static str,
        /// Its reason.
        #[source]
        source: rustix::io::Errno,
    },
    /// A shared piece of code could not be assembled: a defect.
    #[error("A thunk could not be assembled")]
    Thunk(#[from] iced_x86::IcedError),
}

/// Smallest and largest number of units.
const UNITS: usize = 8;
/// Bytes in front of the first unit, for thunks.
const THUNKS: usize = 16384;
/// Blocks start at multiples of this.
const ALIGN: usize = 16;
/// A unit counts as full with this many bytes for each of its blocks.
const BYTES_PER_BLOCK: usize = 64;

pub(crate) struct CodeCache {
    rw: *mut u8,
    rx: *mut u8,
    len: usize,
    unit_len: usize,
    unit: usize,
    next: usize,
    thunks: [(Thunk, usize); Thunk::ALL.len()],
}

// SAFETY: the mappings belong to this value alone and live until it is dropped; writes need `&mut self` or are atomic.
unsafe impl Send for CodeCache {}

impl CodeCache {
    pub(crate) fn new(bytes: usize) -> Result<Self, CacheError> {
        let unit_len = (bytes / UNITS).next_multiple_of(4096).max(256 << 10);
        let len = THUNKS + unit_len * UNITS;
        let host = |what| move |source| CacheError::Host { what, source };
        let fd = memfd_create("vivarium-code", MemfdFlags::CLOEXEC).map_err(host("memfd"))?;
        ftruncate(&fd, len as u64).map_err(host("size"))?;
        let map = |prot, what| {
            // SAFETY: a fresh mapping at an address the kernel chooses; nothing else is changed.
            unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }.map_err(host(what))
        };
        let rw = map(ProtFlags::READ | ProtFlags::WRITE, "writable mapping")?.cast::<u8>();
        let rx = match map(ProtFlags::READ | ProtFlags::EXEC, "executable mapping") {
            Ok(rx) => rx.cast::<u8>(),
            Err(error) => {
                // SAFETY: the mapping was just made with this length and is not used any more.
                let _ = unsafe { munmap(rw.cast::<c_void>(), len) };
                return Err(error);
            }
        };
        let mut cache =
            Self { rw, rx, len, unit_len, unit: 0, next: 0, thunks: Thunk::ALL.map(|thunk| (thunk, 0)) };
        for slot in 0..Thunk::ALL.len() {
            let code = crate::thunk::assemble(Thunk::ALL[slot])?;
            cache.thunks[slot].1 = cache.next;
            let at = cache.next;
            cache.next = (at + code.len()).next_multiple_of(64);
            assert!(cache.next <= THUNKS, "thunks fit in their place");
            cache.write(at, &code);
        }
        cache.next = THUNKS;
        Ok(cache)
    }

    /// Number of units.
    pub(crate) fn units(&self) -> usize {
        UNITS
    }

    /// The unit that holds an offset.
    pub(crate) fn unit_of(&self, offset: usize) -> usize {
        (offset.saturating_sub(THUNKS) / self.unit_len).min(UNITS - 1)
    }

    /// Offset of a thunk.
    pub(crate) fn thunk(&self, thunk: Thunk) -> usize {
        self.thunks.iter().find(|(name, _)| *name == thunk).map_or(0, |(_, at)| *at)
    }

    /// Bytes for a block in the current unit; `None` when the unit is full.
    pub(crate) fn allocate(&mut self, len: usize) -> Option<usize> {
        let end = THUNKS + (self.unit + 1) * self.unit_len;
        let at = self.next.next_multiple_of(ALIGN);
        if at + len > end {
            return None;
        }
        self.next = at + len;
        Some(at)
    }

    /// Goes to the next unit, whose blocks the caller has dropped, and returns its number.
    pub(crate) fn advance(&mut self) -> usize {
        self.unit = self.next_unit();
        self.next = THUNKS + self.unit * self.unit_len;
        self.unit
    }

    /// The unit that blocks are placed in, and how many it may hold: what is known of a block takes host memory as well.
    pub(crate) fn current_unit(&self) -> (usize, usize) {
        (self.unit, self.unit_len / BYTES_PER_BLOCK)
    }

    /// The unit that [`Self::advance`] would go to.
    pub(crate) fn next_unit(&self) -> usize {
        (self.unit + 1) % UNITS
    }

    /// Writes code that no thread executes yet.
    pub(crate) fn write(&mut self, at: usize, code: &[u8]) {
        assert!(at + code.len() <= self.len, "code lies in the cache");
        // SAFETY: the range lies in the writable mapping (asserted); source and target do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.rw.add(at), code.len()) };
    }

    /// Lets the 4-byte aligned rel32 at `at` lead to `target`, while other threads may execute it.
    pub(crate) fn patch(&self, at: usize, target: usize) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "patch sites are aligned and in the cache");
        let relative = (target as i64 - (at as i64 + 4)) as i32;
        // SAFETY: in the mapping and aligned (asserted); concurrent readers are instruction fetches.
        unsafe { std::sync::atomic::AtomicI32::from_ptr(self.rw.add(at).cast()) }
            .store(relative, std::sync::atomic::Ordering::SeqCst);
    }

    /// All its bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: the mapping is readable and of this length; whoever asks lets no vCPU run.
        unsafe { std::ptr::copy_nonoverlapping(self.rx, bytes.as_mut_ptr(), self.len) };
        bytes
    }

    /// The executable address of an offset.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.rx as u64 + offset as u64
    }

    /// The offset of an executable address, if it lies in the cache.
    pub(crate) fn offset(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.rx as u64);
        (offset < self.len as u64).then_some(offset as usize)
    }

    /// The range of executable addresses.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.rx as u64..self.rx as u64 + self.len as u64
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        for mapping in [self.rw, self.rx] {
            // SAFETY: both mappings were made with this length and die with this value; no thread runs in them (vCPU
            // executors hold the Jit).
            let _ = unsafe { munmap(mapping.cast::<c_void>(), self.len) };
        }
    }
}
