//! The shared memory of a link and what lies where in it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use doorbell::Doorbell;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use backends::LinkError;

use crate::signal::{CAPACITY, Word, Words};

/// Bytes before the first ring: the words of both rings.
const WORDS: usize = 4096;
/// Bytes between two words: no two share a line of the cache, nor the neighbour that is fetched with it.
const STRIDE: usize = 128;
/// Words of a ring.
const WORDS_OF_A_RING: usize = 4;

/// Bytes of a ring.
const RING: usize = CAPACITY as usize;
/// Where the network's ring lies, behind the guest's.
const SECOND_RING: usize = WORDS + RING;
/// What is left of a count of bytes is their place in the ring.
const MASK: u32 = CAPACITY - 1;

/// Bytes of a link's memory.
pub const MEMORY: u64 = WORDS as u64 + 2 * CAPACITY as u64;

const READ: i32 = 1;
const WRITE: i32 = 2;
const SHARED: i32 = 1;

/// Which end of a link is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The guest's network card.
    Guest,
    /// The network.
    Network,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Guest => Self::Network,
            Self::Network => Self::Guest,
        }
    }
}

/// What a link consists of, as descriptors to be handed to two processes. Nothing is mapped.
#[derive(Debug)]
pub struct Pair {
    /// The rings.
    pub memory: OwnedFd,
    /// Rung by the network's side for the guest's.
    pub guest_bell: OwnedFd,
    /// Rung by the guest's side for the network's.
    pub network_bell: OwnedFd,
}

/// Makes a link's parts.
///
/// # Errors
/// The host has no memory or no descriptor left.
pub fn pair() -> io::Result<Pair> {
    let bell = || Doorbell::new()?.as_fd().try_clone_to_owned();
    Ok(Pair { memory: memory()?, guest_bell: bell()?, network_bell: bell()? })
}

/// Makes empty memory, of a length that nobody can change. It serves one link: each side is made from it once.
///
/// # Errors
/// The host has no memory or no descriptor left.
pub fn memory() -> io::Result<OwnedFd> {
    crate::sys::memory(MEMORY)
}

/// A link's memory, mapped.
#[derive(Debug)]
pub(crate) struct Mapping(MmapRegion);

impl Mapping {
    /// Maps what [`memory`] made. Where it comes from is trusted; that it cannot shrink is not asked again.
    pub(crate) fn new(memory: OwnedFd) -> io::Result<Self> {
        let file = File::from(memory);
        if file.metadata()?.len() != MEMORY {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the memory of a link"));
        }
        let region = MmapRegionBuilder::new(MEMORY as usize)
            .with_file_offset(FileOffset::new(file, 0))
            .with_mmap_prot(READ | WRITE)
            .with_mmap_flags(SHARED)
            .build()
            .map_err(io::Error::other)?;
        Ok(Self(region))
    }

    /// The ring in which this side sends.
    pub(crate) fn ring_from(&self, side: Side) -> Ring<'_> {
        let (words, data) = match side {
            Side::Guest => (0, WORDS),
            Side::Network => (STRIDE * WORDS_OF_A_RING, SECOND_RING),
        };
        Ring { memory: self.0.as_volatile_slice(), words, data }
    }
}

/// One of the two rings.
pub(crate) struct Ring<'a> {
    memory: VolatileSlice<'a>,
    words: usize,
    data: usize,
}

/// What only a mistake in this file could cause.
const OUTSIDE: LinkError = LinkError("a place outside of the ring");

impl<'a> Ring<'a> {
    /// The memory of `len` bytes from `at`, which wraps.
    pub(crate) fn pieces(&self, at: u32, len: usize) -> Result<[VolatileSlice<'a>; 2], LinkError> {
        let at = (at & MASK) as usize;
        let first = len.min(RING.saturating_sub(at));
        let rest = len.saturating_sub(first);
        if rest > at {
            return Err(OUTSIDE);
        }
        let piece = |offset: usize, len| self.memory.subslice(offset, len).map_err(|_| OUTSIDE);
        Ok([piece(self.data.saturating_add(at), first)?, piece(self.data, rest)?])
    }

    /// The length at the start of the record at `at`.
    pub(crate) fn length(&self, at: u32) -> Result<u32, LinkError> {
        self.memory.load(self.place(at), Ordering::Relaxed).map_err(|_| OUTSIDE)
    }

    pub(crate) fn set_length(&self, at: u32, len: u32) -> Result<(), LinkError> {
        self.memory.store(len, self.place(at), Ordering::Relaxed).map_err(|_| OUTSIDE)
    }

    fn place(&self, at: u32) -> usize {
        self.data.saturating_add((at & MASK) as usize)
    }

    fn word(&self, word: Word) -> usize {
        let number = match word {
            Word::Head => 0,
            Word::Tail => 1,
            Word::ReceiverWaits => 2,
            Word::SenderWaits => 3usize,
        };
        self.words.saturating_add(number.saturating_mul(STRIDE))
    }
}

/// The words lie in the mapping and are aligned: neither call can fail.
impl Words for Ring<'_> {
    fn load(&self, word: Word, order: Ordering) -> u32 {
        self.memory.load(self.word(word), order).unwrap_or(u32::MAX)
    }

    fn store(&self, word: Word, value: u32, order: Ordering) {
        let _ = self.memory.store(value, self.word(word), order);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}
