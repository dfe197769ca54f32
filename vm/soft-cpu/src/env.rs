//! What a vCPU sees outside itself: guest memory as host addresses, devices, and who must know of stores to code.

use std::sync::atomic::{AtomicU8, Ordering, fence};

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
    /// To be called after every store of `len` bytes at `gpa` within one page: reports it if someone must know. A page is
    /// made code by setting its flag and then reading it; therefore the flag is read only once the store is visible.
    #[inline]
    pub fn note_store(&self, gpa: u64, len: u64) {
        fence(Ordering::SeqCst);
        if self.ram.page_flags(gpa).is_some_and(|flags| flags.load(Ordering::SeqCst) != 0) {
            self.stored(gpa, len);
        }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::RangeSpec;
    use vm_memory::{Bytes, GuestAddress};

    fn two_ranges() -> RamMap {
        let ram = GuestRam::new(vec![
            RangeSpec { gpa: 0, len: 0x3000, file: None },
            RangeSpec { gpa: 0x10_0000, len: 0x1000, file: None },
        ])
        .expect("the ranges do not overlap");
        RamMap::new(&ram)
    }

    #[test]
    fn a_span_never_leaves_its_range() {
        let map = two_ranges();
        for gpa in [0, 1, 0xfff, 0x2fff, 0x10_0000, 0x10_0fff] {
            let span = map.lookup(gpa).expect("the address is RAM");
            let end = if gpa < 0x3000 { 0x3000 } else { 0x10_1000 };
            assert_eq!(span.len, end - gpa, "{gpa:#x}");
            assert!(span.writable);
        }
        for gpa in [0x3000, 0xf_ffff, 0x10_1000, 1 << 52, u64::MAX] {
            assert!(map.lookup(gpa).is_none(), "{gpa:#x}");
            assert!(map.page_flags(gpa).is_none(), "{gpa:#x}");
        }
    }

    #[test]
    fn a_span_shows_the_memory_that_devices_see() {
        let map = two_ranges();
        map.ram().memory().write_slice(&[0x5a], GuestAddress(0x10_0123)).expect("the address is RAM");
        let span = map.lookup(0x10_0123).expect("the address is RAM");
        // SAFETY: the span holds at least one byte.
        assert_eq!(unsafe { crate::rawmem::load(span.host, 1) }, 0x5a);
    }

    #[test]
    fn flags_are_kept_by_page() {
        let map = two_ranges();
        let page = |gpa| map.page_flags(gpa).expect("the address is RAM");
        page(0x1fff).fetch_or(page_flag::CODE, Ordering::SeqCst);
        assert_eq!(page(0x1000).load(Ordering::SeqCst), page_flag::CODE);
        assert_eq!(page(0x2000).load(Ordering::SeqCst), 0);
        map.flag_all(page_flag::LOG, true);
        assert_eq!(page(0x1000).load(Ordering::SeqCst), page_flag::CODE | page_flag::LOG);
        map.flag_all(page_flag::LOG, false);
        assert_eq!(page(0x10_0000).load(Ordering::SeqCst), 0);
    }
}
