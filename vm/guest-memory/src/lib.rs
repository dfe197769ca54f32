//! Guest-physical memory: what backs it, who is told of writes, which pages are dirty.
//!
//! RAM is memory that only the process running the VM maps (DESIGN §3; on Linux one memfd); read-only ranges (a pmem base image) are
//! private mappings of a file. Devices and engines reach it through `vm-memory`'s volatile slices only. Every write made
//! through those slices is reported to [`Tracker`], which keeps the dirty log and tells the engine (a software CPU must
//! drop translations of code that a device overwrote).

mod backing;
mod sys;
mod tracker;

pub use backing::{GuestRam, MapError, RangeKind, RangeSpec};
pub use tracker::{DirtyLog, Tracker, WriteObserver};

/// The `vm-memory` type that all devices and engines use.
pub type GuestMemory = vm_memory::GuestMemoryMmap<Tracker>;

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;
