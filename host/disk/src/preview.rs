//! A disk with writes that are not kept: for looking at it as its next start would find it, journal replayed and all.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backends::BlockBackend;

use crate::description::GRAIN;
use crate::{RawFile, RawFileError};

/// The disk below, only read, and a scratch file of the same length above, in which a block lies at its own offset once it was
/// written. Which blocks that are is known to this value alone: the scratch file is of no use after it.
#[derive(Debug)]
pub struct Preview {
    below: RawFile,
    above: RawFile,
    /// One bit for each block of [`GRAIN`] bytes that is above.
    written: Mutex<Vec<u64>>,
}

impl Preview {
    /// A preview of the disk `below` of `len` bytes, a multiple of 4096. `scratch` is an empty file, best one without a name.
    ///
    /// # Errors
    /// A file is of another kind, too short, or not open for what is asked; or the scratch file cannot be made as long.
    pub fn new(
        below: impl Into<OwnedFd>,
        scratch: impl Into<OwnedFd>,
        len: u64,
    ) -> Result<Self, RawFileError> {
        let scratch = scratch.into();
        rustix::fs::ftruncate(&scratch, 0)
            .and_then(|()| rustix::fs::ftruncate(&scratch, len))
            .map_err(|errno| RawFileError::Look(errno.into()))?;
        let words = usize::try_from(len.div_ceil(GRAIN).div_ceil(64)).unwrap_or(usize::MAX);
        Ok(Self {
            below: RawFile::new(below, len, true)?,
            above: RawFile::new(scratch, len, false)?,
            written: Mutex::new(vec![0; words]),
        })
    }

    fn written(&self) -> MutexGuard<'_, Vec<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies a block up before a part of it is written.
    fn raise(&self, written: &mut [u64], block: u64) -> io::Result<()> {
        if !is_set(written, block) {
            let mut bytes = [0; GRAIN as usize];
            self.below.read(block * GRAIN, &mut [IoSliceMut::new(&mut bytes)])?;
            self.above.write(block * GRAIN, &[IoSlice::new(&bytes)])?;
            set(written, block);
        }
        Ok(())
    }

    /// Copies up what is only partly inside of a range, and returns the blocks that are wholly inside.
    fn raise_edges(&self, written: &mut [u64], offset: u64, len: u64) -> io::Result<std::ops::Range<u64>> {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(GRAIN), end / GRAIN);
        if !offset.is_multiple_of(GRAIN) && len > 0 {
            self.raise(written, offset / GRAIN)?;
        }
        if !end.is_multiple_of(GRAIN) && len > 0 {
            self.raise(written, end / GRAIN)?;
        }
        Ok(first..last.max(first))
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "Beyond the end of the disk")),
        }
    }
}

fn is_set(bits: &[u64], block: u64) -> bool {
    bits.get((block / 64) as usize).is_some_and(|word| word >> (block % 64) & 1 == 1)
}

fn set(bits: &mut [u64], block: u64) {
    if let Some(word) = bits.get_mut((block / 64) as usize) {
        *word |= 1 << (block % 64);
    }
}

impl BlockBackend for Preview {
    fn len(&self) -> u64 {
        self.below.len()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let written = self.written();
        for buffer in buffers {
            let mut rest: &mut [u8] = buffer;
            while !rest.is_empty() {
                // As far as one of the two files goes.
                let above = is_set(&written, offset / GRAIN);
                let mut end = (offset / GRAIN + 1) * GRAIN;
                while end - offset < rest.len() as u64 && is_set(&written, end / GRAIN) == above {
                    end += GRAIN;
                }
                let count = usize::try_from(end - offset).map_or(rest.len(), |count| count.min(rest.len()));
                let (part, after) = rest.split_at_mut(count);
                let from = if above { &self.above } else { &self.below };
                from.read(offset, &mut [IoSliceMut::new(part)])?;
                offset += count as u64;
                rest = after;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let len = buffers.iter().fold(0u64, |sum, buffer| sum.saturating_add(buffer.len() as u64));
        self.check(offset, len)?;
        let mut written = self.written();
        let whole = self.raise_edges(&mut written, offset, len)?;
        self.above.write(offset, buffers)?;
        whole.for_each(|block| set(&mut written, block));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Gives back what the scratch file has of the range; what lies below stays as it is.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let _written = self.written();
        self.above.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let mut written = self.written();
        let whole = self.raise_edges(&mut written, offset, len)?;
        self.above.write_zeroes(offset, len)?;
        whole.for_each(|block| set(&mut written, block));
        Ok(())
    }
}
