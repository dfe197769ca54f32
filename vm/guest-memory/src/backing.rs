//! What lies behind guest-physical ranges.

use std::fs::File;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::{DirtyLog, GuestMemory, PAGE_SIZE, WriteObserver, sys};

/// What a guest-physical range is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// Ordinary RAM.
    Ram,
    /// A file that the guest sees as persistent memory and cannot change: its writes are dropped.
    ReadOnly,
}

/// One range to be mapped.
#[derive(Debug)]
pub struct RangeSpec {
    /// First guest-physical address; page-aligned.
    pub gpa: u64,
    /// Bytes; a positive multiple of the page size.
    pub len: u64,
    /// What backs it: `None` is a piece of the RAM, `Some` a file mapped privately from offset 0 (a device that is
    /// told to write there changes this VM's copy of the page, never the file, and cannot fault the process).
    pub file: Option<File>,
}

/// Why guest memory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A range is empty, unaligned, or overlaps another.
    #[error("Guest memory range {gpa:#x}+{len:#x} is empty, unaligned or overlaps another")]
    BadRange {
        /// The range's first address.
        gpa: u64,
        /// The range's length in bytes.
        len: u64,
    },
    /// The host refused the memory.
    #[error("The host refused {len} bytes of memory")]
    Host {
        /// Bytes asked for.
        len: u64,
        /// The host's reason.
        #[source]
        source: std::io::Error,
    },
    /// The host refused a mapping.
    #[error("Cannot map guest memory at {gpa:#x}")]
    Map {
        /// The range's first address.
        gpa: u64,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// All of a VM's memory: the `vm-memory` view, and what each range is. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: GuestMemory,
    ranges: Arc<[(u64, u64, RangeKind)]>,
}

impl GuestRam {
    /// Maps the given ranges. On Linux RAM ranges lie one behind the other in a single sealed memfd, in the order given.
    pub fn new(mut specs: Vec<RangeSpec>) -> Result<Self, MapError> {
        specs.sort_by_key(|spec| spec.gpa);
        let mut end = 0;
        for spec in &specs {
            let bad = MapError::BadRange { gpa: spec.gpa, len: spec.len };
            if spec.len == 0 || spec.len % PAGE_SIZE != 0 || spec.gpa % PAGE_SIZE != 0 || spec.gpa < end {
                return Err(bad);
            }
            end = spec.gpa.checked_add(spec.len).ok_or(bad)?;
        }
        let total = specs.iter().filter(|spec| spec.file.is_none()).map(|spec| spec.len).sum();
        let ram = sys::Ram::new(total).map_err(|source| MapError::Host { len: total, source })?;
        let mut offset = 0;
        let mut regions = Vec::new();
        let mut ranges = Vec::new();
        for spec in specs {
            let (region, kind) = match spec.file {
                None => {
                    let region = ram.map(spec.gpa, offset, spec.len);
                    offset += spec.len;
                    (region, RangeKind::Ram)
                }
                Some(file) => (sys::map_file(spec.gpa, spec.len, file), RangeKind::ReadOnly),
            };
            let region = region.map_err(|source| MapError::Map { gpa: spec.gpa, source })?;
            let bad = MapError::BadRange { gpa: spec.gpa, len: spec.len };
            regions.push(GuestRegionMmap::new(region, GuestAddress(spec.gpa)).ok_or(bad)?);
            ranges.push((spec.gpa, spec.len, kind));
        }
        let memory = GuestMemory::from_regions(regions).map_err(|_| MapError::BadRange { gpa: 0, len: 0 })?;
        Ok(Self { memory, ranges: ranges.into() })
    }

    /// The `vm-memory` view, read-only ranges included: devices may read from them.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The ranges as (first address, bytes, kind), in rising order.
    pub fn ranges(&self) -> &[(u64, u64, RangeKind)] {
        &self.ranges
    }

    /// What lies at `gpa`, if anything.
    pub fn kind_at(&self, gpa: u64) -> Option<RangeKind> {
        self.ranges.iter().find(|(start, len, _)| gpa.wrapping_sub(*start) < *len).map(|(_, _, kind)| *kind)
    }

    /// Whether all of `[gpa, gpa + len)` is RAM.
    pub fn is_writable(&self, gpa: u64, len: u64) -> bool {
        self.ranges.iter().any(|(start, size, kind)| {
            *kind == RangeKind::Ram
                && gpa >= *start
                && gpa.checked_add(len).is_some_and(|end| end <= start.saturating_add(*size))
        })
    }

    /// Registers the one observer of writes made from outside the vCPUs.
    pub fn observe(&self, observer: &Arc<dyn WriteObserver>) {
        for region in self.memory.iter() {
            region.bitmap().observe(observer.clone());
        }
    }

    /// The dirty log of the range that starts at `gpa`.
    pub fn dirty_log(&self, gpa: u64) -> Option<&DirtyLog> {
        let region = self.memory.iter().find(|region| region.start_addr().0 == gpa)?;
        Some(std::ops::Deref::deref(region).bitmap().dirty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use vm_memory::Bytes;

    fn two_ranges() -> GuestRam {
        GuestRam::new(vec![
            RangeSpec { gpa: 0x10_0000, len: 0x4000, file: None },
            RangeSpec { gpa: 0, len: 0x2000, file: None },
        ])
        .expect("ranges are valid")
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let specs = vec![
            RangeSpec { gpa: 0, len: 0x2000, file: None },
            RangeSpec { gpa: 0x1000, len: 0x1000, file: None },
        ];
        assert!(matches!(GuestRam::new(specs), Err(MapError::BadRange { gpa: 0x1000, .. })));
    }

    #[test]
    fn writes_reach_the_observer_and_the_dirty_log() {
        #[derive(Default)]
        struct Seen(Mutex<Vec<(u64, u64)>>);
        impl WriteObserver for Seen {
            fn written(&self, gpa: u64, len: u64) {
                self.0.lock().unwrap().push((gpa, len));
            }
        }
        let ram = two_ranges();
        let seen = Arc::new(Seen::default());
        ram.observe(&(seen.clone() as Arc<dyn WriteObserver>));
        ram.dirty_log(0x10_0000).unwrap().set_enabled(true);
        ram.memory().write_slice(&[1, 2, 3], GuestAddress(0x10_1fff)).unwrap();
        assert_eq!(*seen.0.lock().unwrap(), [(0x10_1fff, 3)]);
        assert_eq!(ram.dirty_log(0x10_0000).unwrap().take(), [0b110]);
    }

    #[test]
    fn a_read_only_range_is_not_writable() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[7; 4096]).unwrap();
        let ram = GuestRam::new(vec![
            RangeSpec { gpa: 0, len: 0x1000, file: None },
            RangeSpec { gpa: 0x1000, len: 0x1000, file: Some(file) },
        ])
        .unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(0x1fff)).unwrap(), 7);
        assert!(ram.is_writable(0, 0x1000) && !ram.is_writable(0xfff, 2) && !ram.is_writable(0x1000, 1));
    }
}
