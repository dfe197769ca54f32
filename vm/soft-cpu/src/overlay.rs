//! The stores of a dry run, kept beside guest memory, and a log of what it loaded.

use std::cell::RefCell;

use crate::env::RamMap;
use crate::mem::{DataTlb, empty_data};
use crate::rawmem;

/// A store that was not made.
struct Store {
    gpa: u64,
    size: u8,
    /// The instruction that makes it.
    instruction: u32,
    /// What memory held.
    old: u64,
    value: u64,
}

/// What guest memory held when it was loaded.
struct Load {
    gpa: u64,
    size: u8,
    value: u64,
}

/// A page with bytes that differ from guest memory.
struct Page {
    gpa: u64,
    /// One bit for each byte.
    present: [u64; 64],
    data: Box<[u8; 4096]>,
}

impl Page {
    fn get(&self, offset: usize) -> Option<u8> {
        (self.present[offset / 64] >> (offset % 64) & 1 != 0).then(|| self.data[offset])
    }

    fn set(&mut self, offset: usize, value: u8) {
        self.present[offset / 64] |= 1 << (offset % 64);
        self.data[offset] = value;
    }
}

/// A byte of guest memory that is not what the dry run says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteDifference {
    pub(crate) gpa: u64,
    pub(crate) dry: u8,
    pub(crate) memory: u8,
}

/// What a dry run keeps instead of changing guest memory.
pub(crate) struct Overlay {
    /// The interpreter's table of data translations while the dry run has an empty one.
    pub(crate) data: DataTlb,
    pages: Vec<Page>,
    /// Pages of `pages` in use; the others wait to be used again.
    used: usize,
    loads: Vec<Load>,
    stores: Vec<Store>,
    /// Number of the instruction being run.
    pub(crate) instruction: u32,
    refused: bool,
    /// Page-table entries whose accessed or dirty bit a walk would have set.
    entries: RefCell<Vec<u64>>,
    /// One of them was read.
    unknown: bool,
}

impl Overlay {
    pub(crate) fn new() -> Self {
        Self {
            data: empty_data(),
            pages: Vec::new(),
            used: 0,
            loads: Vec::new(),
            stores: Vec::new(),
            instruction: 0,
            refused: false,
            entries: RefCell::default(),
            unknown: false,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.used = 0;
        self.loads.clear();
        self.stores.clear();
        self.refused = false;
        self.entries.get_mut().clear();
        self.unknown = false;
    }

    /// A walk would have set a bit of the page-table entry at `gpa`.
    pub(crate) fn note_entry(&self, gpa: u64) {
        self.entries.borrow_mut().push(gpa);
    }

    /// A page-table entry was read whose accessed and dirty bits are not known: whether the processor has set them already
    /// depends on what is in its TLB.
    pub(crate) fn unknown(&self) -> bool {
        self.unknown
    }

    /// The instruction does what a dry run cannot.
    pub(crate) fn refuse(&mut self) {
        self.refused = true;
    }

    pub(crate) fn refused(&self) -> bool {
        self.refused
    }

    fn page(&self, gpa: u64) -> Option<&Page> {
        self.pages[..self.used].iter().find(|page| page.gpa == gpa & !0xfff)
    }

    fn page_mut(&mut self, gpa: u64) -> &mut Page {
        let gpa = gpa & !0xfff;
        let index = match self.pages[..self.used].iter().position(|page| page.gpa == gpa) {
            Some(index) => index,
            None => {
                if self.used == self.pages.len() {
                    self.pages.push(Page { gpa, present: [0; 64], data: Box::new([0; 4096]) });
                }
                self.used += 1;
                let page = &mut self.pages[self.used - 1];
                page.gpa = gpa;
                page.present = [0; 64];
                self.used - 1
            }
        };
        &mut self.pages[index]
    }

    /// What the dry run sees at `gpa` (`size` bytes inside a page), where memory holds `memory`.
    pub(crate) fn read(&mut self, gpa: u64, memory: u64, size: u8) -> u64 {
        self.loads.push(Load { gpa, size, value: memory });
        let end = gpa + u64::from(size);
        self.unknown |= self.entries.get_mut().iter().any(|entry| *entry < end && gpa < entry + 8);
        self.merge(gpa, memory, size)
    }

    /// What a walk sees of the page-table entry at `gpa`, where memory holds `memory`.
    pub(crate) fn peek(&self, gpa: u64, memory: u64) -> u64 {
        self.merge(gpa, memory, 8)
    }

    fn merge(&self, gpa: u64, memory: u64, size: u8) -> u64 {
        let Some(page) = self.page(gpa) else { return memory };
        let mut bytes = memory.to_le_bytes();
        for (index, byte) in bytes[..size as usize].iter_mut().enumerate() {
            if let Some(stored) = page.get((gpa & 0xfff) as usize + index) {
                *byte = stored;
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Keeps a store of `size` bytes inside a page where memory holds `memory`.
    pub(crate) fn write(&mut self, gpa: u64, memory: u64, value: u64, size: u8) {
        let instruction = self.instruction;
        self.stores.push(Store { gpa, size, instruction, old: memory, value });
        self.apply(gpa, value, size);
    }

    fn apply(&mut self, gpa: u64, value: u64, size: u8) {
        let page = self.page_mut(gpa);
        for (index, byte) in value.to_le_bytes()[..size as usize].iter().enumerate() {
            page.set((gpa & 0xfff) as usize + index, *byte);
        }
    }

    /// The first byte of guest memory that is not as the first `done` instructions leave it. Stores of later instructions
    /// must not have been made.
    pub(crate) fn difference(&mut self, ram: &RamMap, done: u32) -> Option<ByteDifference> {
        let stores = std::mem::take(&mut self.stores);
        self.used = 0;
        let later = stores.partition_point(|store| store.instruction < done);
        for store in &stores[..later] {
            self.apply(store.gpa, store.value, store.size);
        }
        for store in &stores[later..] {
            // Memory was not changed meanwhile, so every store of a byte knows the same old value.
            for (index, byte) in store.old.to_le_bytes()[..store.size as usize].iter().enumerate() {
                let page = self.page_mut(store.gpa);
                let offset = (store.gpa & 0xfff) as usize + index;
                if page.get(offset).is_none() {
                    page.set(offset, *byte);
                }
            }
        }
        self.stores = stores;
        self.pages[..self.used].iter().find_map(|page| compare(ram, page))
    }

    /// Whether what was loaded is still there, but for bytes that the dry run's own instructions store.
    pub(crate) fn loads_hold(&self, ram: &RamMap) -> bool {
        self.loads.iter().all(|load| {
            load.value.to_le_bytes()[..load.size as usize].iter().enumerate().all(|(index, byte)| {
                let gpa = load.gpa + index as u64;
                let stored = self.page(gpa).is_some_and(|page| page.get((gpa & 0xfff) as usize).is_some());
                stored || memory_byte(ram, gpa) == Some(*byte)
            })
        })
    }
}

fn memory_byte(ram: &RamMap, gpa: u64) -> Option<u8> {
    let span = ram.lookup(gpa)?;
    // SAFETY: a span holds at least one byte and lives as long as the map.
    Some(unsafe { rawmem::load(span.host, 1) } as u8)
}

fn compare(ram: &RamMap, page: &Page) -> Option<ByteDifference> {
    for (word, bits) in page.present.iter().enumerate() {
        let mut left = *bits;
        while left != 0 {
            let offset = word * 64 + left.trailing_zeros() as usize;
            left &= left - 1;
            let gpa = page.gpa + offset as u64;
            let (dry, memory) = (page.data[offset], memory_byte(ram, gpa)?);
            if dry != memory {
                return Some(ByteDifference { gpa, dry, memory });
            }
        }
    }
    None
}
