//! A file as a block device, byte for byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};

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
    read_only: bool,
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
        Ok(RawFile { file, len, read_only })
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

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match rustix::io::retry_on_intr(|| sys::punch_hole(&self.file, offset, len)) {
            // A file system without holes.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.fill_with_zeros(offset, len),
            other => Ok(other?),
        }
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
