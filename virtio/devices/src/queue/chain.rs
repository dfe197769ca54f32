//! Descriptor chains: walked once, checked completely, then reached only through [`Reader`] and [`Writer`].

use guest_memory::{GuestMemory, GuestRam};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

/// Most bytes in one chain, all descriptors together.
pub(super) const MAX_CHAIN_BYTES: u32 = 16 << 20;

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;

/// Why a chain is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It has more descriptors than the queue, or loops.
    #[error("It has more descriptors than the queue")]
    TooLong,
    /// A descriptor's `next` points outside its table.
    #[error("A descriptor points outside its table")]
    BadNext,
    /// A device-readable descriptor comes after a device-writable one.
    #[error("A readable descriptor follows a writable one")]
    Direction,
    /// An indirect table is nested, chained, empty or of an odd length.
    #[error("An indirect table is malformed")]
    Indirect,
    /// The buffers are not all in RAM.
    #[error("A buffer is outside RAM")]
    Outside,
    /// The buffers are more than 16 MiB together.
    #[error("It has more than {MAX_CHAIN_BYTES} bytes")]
    TooLarge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    at: u64,
    len: u32,
}

/// A chain that the device has taken and must complete. Its buffers lie in RAM and are small enough together.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    written: u32,
}

impl Chain {
    /// Follows the chain that starts at `head`. Every descriptor is read once, then checked, then kept.
    pub(super) fn walk(ram: &GuestRam, table: u64, size: u16, head: u16) -> Result<Self, ChainError> {
        let memory = ram.memory();
        let mut chain = Self { head, readable: Vec::new(), writable: Vec::new(), written: 0 };
        let (mut table, mut entries, mut index) = (table, u32::from(size), u32::from(head));
        let mut indirect = false;
        let mut total: u32 = 0;
        let mut left = u32::from(size);
        loop {
            let descriptor = read_descriptor(memory, table, index)?;
            if descriptor.refers_to_indirect_table() {
                let bytes = descriptor.len();
                let count = bytes.checked_div(DESCRIPTOR).unwrap_or(0);
                let malformed = indirect || descriptor.has_next() || count == 0 || bytes % DESCRIPTOR != 0;
                if malformed || count > u32::from(size) {
                    return Err(ChainError::Indirect);
                }
                (table, entries, index, indirect) = (descriptor.addr().0, count, 0, true);
                continue;
            }
            left = left.checked_sub(1).ok_or(ChainError::TooLong)?;
            let segment = Segment { at: descriptor.addr().0, len: descriptor.len() };
            total = total
                .checked_add(segment.len)
                .filter(|sum| *sum <= MAX_CHAIN_BYTES)
                .ok_or(ChainError::TooLarge)?;
            chain.add(ram, segment, descriptor.is_write_only())?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = u32::from(descriptor.next());
            if index >= entries {
                return Err(ChainError::BadNext);
            }
        }
    }

    fn add(&mut self, ram: &GuestRam, segment: Segment, writable: bool) -> Result<(), ChainError> {
        if !writable && !self.writable.is_empty() {
            return Err(ChainError::Direction);
        }
        if segment.len == 0 {
            return Ok(());
        }
        let inside = if writable {
            ram.is_writable(segment.at, segment.len.into())
        } else {
            ram.memory().check_range(GuestAddress(segment.at), segment.len as usize)
        };
        if !inside {
            return Err(ChainError::Outside);
        }
        if writable {
            self.writable.push(segment)
        } else {
            self.readable.push(segment)
        }
        Ok(())
    }

    /// The index that names the chain to the driver.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable_len(&self) -> u32 {
        self.readable.iter().fold(0, |sum, segment| sum.saturating_add(segment.len))
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u32 {
        self.writable.iter().fold(0, |sum, segment| sum.saturating_add(segment.len))
    }

    /// Bytes that were written at the front of the writable buffers.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Reads the readable buffers from their start.
    pub fn reader<'a>(&'a self, ram: &'a GuestRam) -> Reader<'a> {
        Reader { memory: ram.memory(), cursor: Cursor::new(&self.readable) }
    }

    /// Writes the writable buffers from their start. What it writes is what [`Chain::written`] counts.
    pub fn writer<'a>(&'a mut self, ram: &'a GuestRam) -> Writer<'a> {
        self.written = 0;
        Writer { memory: ram.memory(), cursor: Cursor::new(&self.writable), written: &mut self.written }
    }

    /// Writes the writable buffers from where the last writer ended.
    pub fn append<'a>(&'a mut self, ram: &'a GuestRam) -> Writer<'a> {
        let mut cursor = Cursor::new(&self.writable);
        let mut skip = self.written as usize;
        while skip > 0
            && let Some(piece) = cursor.take(skip)
        {
            skip = skip.saturating_sub(piece.len as usize);
        }
        Writer { memory: ram.memory(), cursor, written: &mut self.written }
    }
}

fn read_descriptor(memory: &GuestMemory, table: u64, index: u32) -> Result<Descriptor, ChainError> {
    let offset = u64::from(index).saturating_mul(DESCRIPTOR.into());
    let at = table.checked_add(offset).ok_or(ChainError::Outside)?;
    memory.read_obj(GuestAddress(at)).map_err(|_| ChainError::Outside)
}

/// A place in a list of segments.
struct Cursor<'a> {
    segments: std::slice::Iter<'a, Segment>,
    current: Segment,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a [Segment]) -> Self {
        Self { segments: segments.iter(), current: Segment { at: 0, len: 0 } }
    }

    /// The next piece of at most `wanted` bytes; `None` at the end.
    fn take(&mut self, wanted: usize) -> Option<Segment> {
        while self.current.len == 0 {
            self.current = *self.segments.next()?;
        }
        let len = self.current.len.min(u32::try_from(wanted).unwrap_or(u32::MAX));
        let piece = Segment { at: self.current.at, len };
        self.current.at = self.current.at.saturating_add(len.into());
        self.current.len = self.current.len.saturating_sub(len);
        Some(piece)
    }

    fn remaining(&self) -> usize {
        let rest =
            self.segments.as_slice().iter().fold(0u64, |sum, segment| sum.saturating_add(segment.len.into()));
        usize::try_from(rest.saturating_add(self.current.len.into())).unwrap_or(usize::MAX)
    }
}

/// Reads a chain's readable buffers in order.
pub struct Reader<'a> {
    memory: &'a GuestMemory,
    cursor: Cursor<'a>,
}

impl Reader<'_> {
    /// Fills `buffer` as far as there are bytes; how many.
    pub fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(piece) = self.cursor.take(rest.len()) else { break };
            let Some(target) = rest.get_mut(..piece.len as usize) else { break };
            // The range was checked when the chain was walked, and guest memory never shrinks.
            if self.memory.read_slice(target, GuestAddress(piece.at)).is_err() {
                break;
            }
            done = done.saturating_add(piece.len as usize);
        }
        done
    }

    /// The same for memory that another process may change at the same time.
    pub fn read_into(&mut self, target: &VolatileSlice<'_>) -> usize {
        let mut done = 0;
        while let Some(rest) = target.offset(done).ok().filter(|rest| !rest.is_empty()) {
            let Some(piece) = self.cursor.take(rest.len()) else { break };
            let mut at = 0;
            for source in self.memory.get_slices(GuestAddress(piece.at), piece.len as usize).flatten() {
                let Ok(rest) = rest.offset(at) else { break };
                source.copy_to_volatile_slice(rest);
                at = at.saturating_add(source.len());
            }
            done = done.saturating_add(piece.len as usize);
        }
        done
    }

    /// The next `N` bytes, if there are as many.
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }
}

/// Writes a chain's writable buffers in order.
pub struct Writer<'a> {
    memory: &'a GuestMemory,
    cursor: Cursor<'a>,
    written: &'a mut u32,
}

impl Writer<'_> {
    /// Writes `bytes` as far as there is room; how many.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let Some(piece) = self.cursor.take(rest.len()) else { break };
            let Some(source) = rest.get(..piece.len as usize) else { break };
            if self.memory.write_slice(source, GuestAddress(piece.at)).is_err() {
                break;
            }
            done = done.saturating_add(piece.len as usize);
            *self.written = self.written.saturating_add(piece.len);
        }
        done
    }

    /// The same for memory that another process may change at the same time.
    pub fn write_from(&mut self, source: &VolatileSlice<'_>) -> usize {
        let mut done = 0;
        while let Some(rest) = source.offset(done).ok().filter(|rest| !rest.is_empty()) {
            let Some(piece) = self.cursor.take(rest.len()) else { break };
            let mut at = 0;
            for target in self.memory.get_slices(GuestAddress(piece.at), piece.len as usize).flatten() {
                let Ok(rest) = rest.offset(at) else { break };
                at = at.saturating_add(target.len());
                rest.copy_to_volatile_slice(target);
            }
            done = done.saturating_add(piece.len as usize);
            *self.written = self.written.saturating_add(piece.len);
        }
        done
    }

    /// Bytes of room that are left.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining()
    }
}
