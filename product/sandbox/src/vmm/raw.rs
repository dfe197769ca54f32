//! A disk that is a file of plain sectors: the disks of a build.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use backends::BlockBackend;
use rustix::fs::FallocateFlags;
use rustix::io::{preadv, pwritev};

/// The file and what was decided about it when it was opened.
#[derive(Debug)]
pub(super) struct RawDisk {
    file: File,
    len: u64,
    read_only: bool,
}

impl RawDisk {
    /// A disk of the file's present length.
    pub(super) fn new(file: File, read_only: bool) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self { file, len, read_only })
    }

    /// Zeros, by a hole where the file system has holes, else written.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = vec![0u8; 1 << 16];
        let mut done = 0;
        while done < len {
            let piece = usize::try_from((len - done).min(1 << 16)).unwrap_or(1 << 16);
            let slice = [IoSlice::new(zeros.get(..piece).unwrap_or_default())];
            let count = pwritev(&self.file, &slice, offset + done)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += count as u64;
        }
        Ok(())
    }
}

impl BlockBackend for RawDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, mut offset: u64, mut buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            match preadv(&self.file, buffers, offset) {
                // The file became shorter under us; what is gone reads as an error, not as old data.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    offset += count as u64;
                    IoSliceMut::advance_slices(&mut buffers, count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut copies: Vec<IoSlice<'_>> = buffers.to_vec();
        let mut rest = copies.as_mut_slice();
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match pwritev(&self.file, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    offset += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_come_back_and_discarded_ones_are_zero() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = RawDisk::new(file, false).unwrap();
        assert_eq!(disk.len(), 1 << 20);
        let (one, two) = ([1u8; 5000], [2u8; 3192]);
        disk.write(4096, &[IoSlice::new(&one), IoSlice::new(&[]), IoSlice::new(&two)]).unwrap();
        disk.flush().unwrap();
        let (mut a, mut b) = (vec![9u8; 4096], vec![9u8; 8192]);
        disk.read(0, &mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap();
        assert!(a.iter().all(|byte| *byte == 0));
        assert!(b[..5000].iter().all(|byte| *byte == 1) && b[5000..].iter().all(|byte| *byte == 2));
        disk.discard(4096, 4096).unwrap();
        disk.read(4096, &mut [IoSliceMut::new(&mut b)]).unwrap();
        assert!(b[..4096].iter().all(|byte| *byte == 0) && b[4096] == 1);
        assert!(disk.read((1 << 20) - 512, &mut [IoSliceMut::new(&mut vec![0u8; 1024])]).is_err());
    }
}
