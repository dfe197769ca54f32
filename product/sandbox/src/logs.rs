//! Logs that cannot fill the disk: the guest decides what is written to some of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes after which a log is moved to `NAME.1` and begun again.
pub const LOG_LIMIT: u64 = 1 << 20;

/// A log of at most two files of [`LOG_LIMIT`] bytes.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    written: u64,
    limit: u64,
}

impl BoundedLog {
    /// Opens or makes the log at `path`; what is in it stays.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LOG_LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = File::options().append(true).create(true).mode(0o600).open(path)?;
        let written = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, written, limit })
    }

    fn begin_again(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        fs::rename(&self.path, &old)?;
        *self = Self::with_limit(&self.path, self.limit)?;
        Ok(())
    }
}

impl Write for BoundedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.limit {
            self.begin_again()?;
        }
        let room = usize::try_from(self.limit.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let taken = self.file.write(bytes.get(..room).unwrap_or(bytes))?;
        self.written = self.written.saturating_add(taken as u64);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_never_stops_talking_fills_two_files_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut log = BoundedLog::with_limit(&path, 100).unwrap();
        for _ in 0..50 {
            log.write_all(b"0123456789012345678").unwrap();
        }
        log.write_all(b"the end").unwrap();
        drop(log);
        let total: u64 =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total <= 200, "{total}");
        assert!(fs::read_to_string(&path).unwrap().ends_with("the end"));
        // Opened again it goes on behind what is there.
        BoundedLog::with_limit(&path, 100).unwrap().write_all(b"!").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("the end!"));
    }
}
