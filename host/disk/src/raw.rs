//! A file as a block device, byte for byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use backends::BlockBackend;
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::sys;

/// How far the device may be longer than its file: up to the next border of this size, read as zeros.
const ROUNDING: u64 = 4096;

/// A file or block device of the host, opened by somebody else.
#[derive(Debug)]
pub struct RawFile {
    file: OwnedFd,
    len: u64,
    /// Bytes that the file had when it was opened; what the device has beyond reads as zeros.
    file_len: u64,
    read_only: bool,
    /// The file's file system has said that it knows no holes.
    without_holes: AtomicBool,
}

/// Why a file cannot be a block device.
#[derive(Debug, thiserror::Error)]
pub enum RawFileError {
    /// It could not be looked at.
    #[error("Cannot look at the file behind the disk")]
    Look(#[source] io::Error),
    /// It is a directory, pipe or other thing.
    #[error("Only a regular file or a block device can be behind a disk")]
    Kind,
    /// It is shorter than the device is to be.
    #[error("The file has {found} bytes, the disk needs {expected}")]
    TooShort {
        /// Bytes that the device is to have.
        expected: u64,
        /// Bytes that the file has.
        found: u64,
    },
    /// The descriptor does not allow what the device is to do.
    #[error("The file is not open for {0}")]
    Access(&'static str),
}

impl RawFile {
    /// A device of `len` bytes over a file that is at least as long (the last 4 KiB may lack). A file open for writing can be made
    /// read-only, not the other way round.
    ///
    /// # Errors
    /// The file is of another kind, too short, or not open for what is asked.
    pub fn new(file: impl Into<OwnedFd>, len: u64, read_only: bool) -> Result<RawFile, RawFileError> {
        let file = file.into();
        let look = |errno: Errno| RawFileError::Look(errno.into());
        let stat = rustix::fs::fstat(&file).map_err(look)?;
        let found = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
            FileType::BlockDevice => rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(look)?,
            _ => return Err(RawFileError::Kind),
        };
        if found.next_multiple_of(ROUNDING) < len {
            return Err(RawFileError::TooShort { expected: len, found });
        }
        match sys::access(&file).map_err(look)? {
            sys::Access::ReadingAndWriting => {}
            sys::Access::Reading if read_only => {}
            _ if read_only => return Err(RawFileError::Access("reading")),
            _ => return Err(RawFileError::Access("reading and writing")),
        }
        Ok(RawFile { file, len, file_len: found, read_only, without_holes: AtomicBool::new(false) })
    }

    /// The descriptor, for whoever maps the file or hands it on.
    pub fn descriptor(&self) -> impl AsFd {
        &self.file
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "Beyond the end of the disk")),
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }

    /// Gives a range back to the file system, so that it reads as zeros; false where there are no holes, and nothing was done.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.check_writable()?;
        self.check(offset, len)?;
        if len == 0 {
            return Ok(true);
        }
        if self.without_holes.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match rustix::io::retry_on_intr(|| sys::punch_hole(&self.file, offset, len)) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.without_holes.store(true, Ordering::Relaxed);
                Ok(false)
            }
            other => Ok(other.map(|()| true)?),
        }
    }

    fn fill_with_zeros(&self, mut offset: u64, mut len: u64) -> io::Result<()> {
        let zeros = [0u8; 64 * 1024];
        while len > 0 {
            let part = usize::try_from(len).map_or(zeros.len(), |len| len.min(zeros.len()));
            write_all(&self.file, offset, &mut [IoSlice::new(&zeros[..part])])?;
            offset += part as u64;
            len -= part as u64;
        }
        Ok(())
    }
}

impl BlockBackend for RawFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, mut offset: u64, mut buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.check(offset, sum(buffers.iter().map(|buffer| buffer.len())))?;
        while buffers.iter().any(|buffer| !buffer.is_empty()) {
            let count = match sys::read_at(&self.file, buffers, offset) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            if count == 0 {
                if offset < self.file_len {
                    // It was cut since: zeros would be a lie that the guest writes back.
                    return Err(Errno::IO.into());
                }
                // The file ends here, the device a little later.
                for buffer in buffers {
                    buffer.fill(0);
                }
                break;
            }
            offset += count as u64;
            IoSliceMut::advance_slices(&mut buffers, count);
        }
        Ok(())
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.check_writable()?;
        self.check(offset, sum(buffers.iter().map(|buffer| buffer.len())))?;
        write_all(&self.file, offset, &mut buffers.to_vec())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        Ok(rustix::io::retry_on_intr(|| sys::sync(&self.file))?)
    }

    /// Nothing where there are no holes: zeros would take the host's space for what the guest wants no more, up to the whole disk
    /// when the guest trims it.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(offset, len).map(|_| ())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.punch_hole(offset, len)? { Ok(()) } else { self.fill_with_zeros(offset, len) }
    }
}

fn write_all(file: &OwnedFd, mut offset: u64, mut buffers: &mut [IoSlice<'_>]) -> io::Result<()> {
    while buffers.iter().any(|buffer| !buffer.is_empty()) {
        let count = match sys::write_at(file, buffers, offset) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += count as u64;
        IoSlice::advance_slices(&mut buffers, count);
    }
    Ok(())
}

fn sum(lengths: impl Iterator<Item = usize>) -> u64 {
    lengths.fold(0u64, |sum, len| sum.saturating_add(len as u64))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const LEN: u64 = 8 << 20;

    /// A disk of nothing but a hole, on a file system that says it knows none.
    fn without_holes() -> (RawFile, std::fs::File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let device = RawFile::new(file.try_clone().unwrap(), LEN, false).unwrap();
        device.without_holes.store(true, Ordering::Relaxed);
        (device, file)
    }

    #[test]
    fn a_discard_takes_no_space_where_there_are_no_holes() {
        let (device, file) = without_holes();
        device.write(4096, &[IoSlice::new(&[7; 4096])]).unwrap();
        let taken = || file.metadata().unwrap().blocks() * 512;
        let before = taken();
        device.discard(0, LEN).unwrap();
        assert_eq!(taken(), before, "as much as it was");
        assert!(device.discard(LEN, 1).is_err() && device.discard(1, u64::MAX).is_err());
    }

    #[test]
    fn zeros_are_written_where_there_are_no_holes() {
        let (device, _) = without_holes();
        device.write(0, &[IoSlice::new(&vec![7; 1 << 20])]).unwrap();
        device.write_zeroes(512, (1 << 20) - 1024).unwrap();
        let mut bytes = vec![1; 1 << 20];
        device.read(0, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
        let (first, rest) = bytes.split_at(512);
        let (zeros, last) = rest.split_at((1 << 20) - 1024);
        assert!(first.iter().chain(last).all(|byte| *byte == 7) && zeros.iter().all(|byte| *byte == 0));
    }
}
