//! What a vCPU sees outside itself: guest memory as host addresses, devices, and who must know of stores to code.

use std::sync::atomic::{AtomicU8, Ordering};

use guest_memory::{GuestRam, PAGE_SIZE, RangeKind};
use hv::CpuIo;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// Told about stores that hit pages with [`page_flag::CODE`].
pub trait CodeWatch: Sync {
    /// `len` bytes at `gpa` (one page) were just stored by the vCPU whose thread calls. The page has
    /// [`page_flag::CODE`] set. Must not block on another vCPU that may be waiting for this one without polling its kick.
    fn stored(&self, gpa: u64, len: u64);
}

/// The watch of an engine that keeps no translations.
#[derive(Clone, Copy, Debug)]
pub struct NoWatch;

impl CodeWatch for NoWatch {
    fn stored(&self, _gpa: u64, _len: u64) {}
}

/// Bits in [`RamMap::page_flags`]. A page with any bit set must not be written through a TLB entry without a check.
pub mod page_flag {
    /// Translated code was made from the page.
    pub const CODE: u8 = 1;
    /// Writes are logged.
    pub const LOG: u8 = 2;
}

/// A run of host memory behind guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub struct RamSpan {
    /// Host address of the first byte asked for.
    pub host: *mut u8,
    /// Bytes from there to the end of the range.
    pub len: u64,
    /// Whether guest writes take effect; they are dropped otherwise.
    pub writable: bool,
}

struct Range {
    gpa: u64,
    len: u64,
    host: *mut u8,
    writable: bool,
    flags: Vec<AtomicU8>,
}

/// Guest-physical to host addresses: the one place where host pointers to guest memory are made.
pub struct RamMap {
    ranges: Vec<Range>,
    ram: GuestRam,
}

// SAFETY: the pointers lead to mappings that live as long as `ram`, which is held here, and are shared with the guest by
// nature: all access is by volatile or atomic operations.
unsafe impl Send for RamMap {}
// SAFETY: as above.
unsafe impl Sync for RamMap {}

impl RamMap {
    /// The map of all ranges of `ram`.
    pub fn new(ram: &GuestRam) -> Self {
        let ranges = ram
            .memory()
            .iter()
            .map(|region| {
                let gpa = region.start_addr().0;
                let len = region.len();
                Range {
                    gpa,
                    len,
                    host: region
                        .get_host_address(vm_memory::MemoryRegionAddress(0))
                        .expect("a region has a first byte"),
                    writable: ram.kind_at(gpa) == Some(RangeKind::Ram),
                    flags: (0..len / PAGE_SIZE).map(|_| AtomicU8::new(0)).collect(),
                }
            })
            .collect();
        Self { ranges, ram: ram.clone() }
    }

    /// What lies at `gpa`: a host pointer valid for [`RamSpan::len`] bytes, `None` for MMIO and holes.
    #[inline]
    pub fn lookup(&self, gpa: u64) -> Option<RamSpan> {
        for range in &self.ranges {
            let offset = gpa.wrapping_sub(range.gpa);
            if offset < range.len {
                // SAFETY: offset lies inside the mapping of `range.len` bytes that starts at `range.host`.
                let host = unsafe { range.host.add(offset as usize) };
                return Some(RamSpan { host, len: range.len - offset, writable: range.writable });
            }
        }
        None
    }

    /// The flags of the RAM page that holds `gpa`; see [`page_flag`].
    #[inline]
    pub fn page_flags(&self, gpa: u64) -> Option<&AtomicU8> {
        for range in &self.ranges {
            let offset = gpa.wrapping_sub(range.gpa);
            if offset < range.len {
                return range.flags.get((offset / PAGE_SIZE) as usize);
            }
        }
        None
    }

    /// Sets or clears a flag on every page.
    pub fn flag_all(&self, flag: u8, on: bool) {
        for page in self.ranges.iter().flat_map(|range| &range.flags) {
            if on {
                page.fetch_or(flag, Ordering::SeqCst);
            } else {
                page.fetch_and(!flag, Ordering::SeqCst);
            }
        }
    }

    /// Marks `[gpa, gpa + len)` in the dirty log.
    pub fn mark_dirty(&self, gpa: u64, len: u64) {
        for range in &self.ranges {
            let offset = gpa.wrapping_sub(range.gpa);
            if offset < range.len {
                if let Some(log) = self.ram.dirty_log(range.gpa) {
                    log.mark(offset, len);
                }
                return;
            }
        }
    }

    /// The memory behind this map.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// (first gpa, bytes) of each range.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().map(|range| (range.gpa, range.len))
    }
}

/// All that a vCPU needs besides its own state.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// Guest memory.
    pub ram: &'a RamMap,
    /// Devices.
    pub io: &'a dyn CpuIo,
    /// Who keeps translations.
    pub watch: &'a dyn CodeWatch,
    /// What the VM's vCPUs share.
    pub platform: &'a crate::platform::Platform,
}

impl Env<'_> {
    /// To be called after a store of `len` bytes at `gpa` within one RAM page whose flags are not zero.
    #[cold]
    pub fn stored(&self, gpa: u64, len: u64) {
        let Some(flags) = self.ram.page_flags(gpa) else { return };
        let flags = flags.load(Ordering::SeqCst);
        if flags & page_flag::LOG != 0 {
            self.ram.mark_dirty(gpa, len);
        }
        if flags & page_flag::CODE != 0 {
            self.watch.stored(gpa, len);
        }
    }
}
