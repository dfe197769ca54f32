//! Any bytes as a package file: reading and repacking end, and what was repacked can be read again.

use std::io::{self, Read, Write};

use debian::{Deb, Patch, repack_plain};

/// Where a repacked package goes; full after a few megabytes, so that a bomb is no use.
#[derive(Default)]
struct Memory(Vec<u8>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > 4 << 20 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Patch for Memory {
    fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).map_err(io::Error::other)?;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// One input: the file.
pub(crate) fn run(data: &[u8]) {
    if let Ok(mut deb) = Deb::open(data)
        && let Ok(contents) = deb.contents("data.tar")
    {
        let _ = io::copy(&mut contents.take(4 << 20), &mut io::sink());
    }
    let mut out = Memory::default();
    if let Ok(size) = repack_plain(data, &mut out) {
        assert_eq!(size, out.0.len() as u64);
        let mut again = Memory::default();
        repack_plain(&out.0[..], &mut again).expect("what was repacked is a package");
        assert!(out.0 == again.0, "repacking twice changes nothing");
    }
}
