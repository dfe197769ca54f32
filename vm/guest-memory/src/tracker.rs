//! Who is told when guest memory is written from outside the vCPUs, and which pages are dirty.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};

use crate::PAGE_SIZE;

/// Told after bytes of guest memory changed through a device or loader (not by a vCPU's own store).
pub trait WriteObserver: Send + Sync {
    /// `len` bytes from guest-physical address `gpa` have just been written. Called on the writer's thread; it must
    /// not block on a vCPU.
    fn written(&self, gpa: u64, len: u64);
}

/// One bit per 4 KiB page of a range, set by writers while the log is on.
#[derive(Debug, Default)]
pub struct DirtyLog {
    on: AtomicBool,
    bits: Vec<AtomicU64>,
}

impl DirtyLog {
    fn new(len: u64) -> Self {
        let pages = len.div_ceil(PAGE_SIZE);
        Self {
            on: AtomicBool::new(false),
            bits: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Starts (clearing every bit) or stops logging.
    pub fn set_enabled(&self, on: bool) {
        if on {
            self.bits.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        self.on.store(on, Ordering::SeqCst);
    }

    /// Whether writes are being logged.
    pub fn enabled(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Marks the pages that hold `[offset, offset + len)`; bytes beyond the range are ignored.
    pub fn mark(&self, offset: u64, len: u64) {
        if len == 0 || !self.enabled() {
            return;
        }
        let last = offset.saturating_add(len - 1) / PAGE_SIZE;
        for page in offset / PAGE_SIZE..=last {
            let Some(word) = self.bits.get((page / 64) as usize) else { return };
            word.fetch_or(1 << (page % 64), Ordering::Relaxed);
        }
    }

    /// Takes the bits and clears them: bit `n % 64` of word `n / 64` is page `n` of the range.
    pub fn take(&self) -> Vec<u64> {
        self.bits.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }

    /// Whether the page that holds `offset` is marked.
    pub fn is_marked(&self, offset: u64) -> bool {
        let page = offset / PAGE_SIZE;
        self.bits
            .get((page / 64) as usize)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }
}

#[derive(Default)]
struct Shared {
    gpa: OnceLock<u64>,
    dirty: DirtyLog,
    observer: OnceLock<Arc<dyn WriteObserver>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("gpa", &self.gpa)
            .field("observed", &self.observer.get().is_some())
            .finish()
    }
}

/// The `vm-memory` bitmap of one range: forwards each write to the dirty log and the observer.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    shared: Arc<Shared>,
    base: u64,
}

impl Tracker {
    /// A tracker for a range of `len` bytes at guest-physical address `gpa`.
    pub fn new(gpa: u64, len: u64) -> Self {
        let shared = Shared { gpa: OnceLock::new(), dirty: DirtyLog::new(len), observer: OnceLock::new() };
        shared.gpa.set(gpa).expect("a new cell is empty");
        Self { shared: Arc::new(shared), base: 0 }
    }

    /// Registers the observer of this range; the first one stays.
    pub fn observe(&self, observer: Arc<dyn WriteObserver>) {
        let _ = self.shared.observer.set(observer);
    }

    /// The dirty log of the whole range.
    pub fn dirty(&self) -> &DirtyLog {
        &self.shared.dirty
    }
}

impl WithBitmapSlice<'_> for Tracker {
    type S = Self;
}

impl BitmapSlice for Tracker {}

impl Bitmap for Tracker {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let at = self.base.saturating_add(offset as u64);
        self.shared.dirty.mark(at, len as u64);
        if let (Some(observer), Some(gpa)) = (self.shared.observer.get(), self.shared.gpa.get()) {
            observer.written(gpa.saturating_add(at), len as u64);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.shared.dirty.is_marked(self.base.saturating_add(offset as u64))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { shared: self.shared.clone(), base: self.base.saturating_add(offset as u64) }
    }
}

impl NewBitmap for Tracker {
    fn with_len(len: usize) -> Self {
        Self::new(0, len as u64)
    }
}
