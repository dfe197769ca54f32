//! A sandbox's logs: each line with the time at which the host heard it, and none of them able to fill the disk, because
//! the guest decides what is written to most.

mod read;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use self::read::{Line, Reader};

/// Bytes after which a log is moved to `NAME.log.1` and begun again.
pub const LOG_LIMIT: u64 = 1 << 20;

/// The longest line that is kept whole, in bytes; what is longer goes on in the next one.
pub const LONGEST_LINE: usize = 4096;

/// Where a line comes from. All but the shim's are in the hands of the guest or of what a guest may have taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The guest's console: what its kernel has to say, and the agent's first words.
    Console,
    /// The agent in the guest.
    Agent,
    /// The Docker daemon in the guest.
    Dockerd,
    /// The virtual machine's process.
    Vmm,
    /// The process that owns the sandbox on the host.
    Shim,
    /// The sandbox's network.
    Gateway,
}

impl Source {
    /// All, in the order in which lines of the same moment are shown.
    pub const ALL: [Self; 6] =
        [Self::Shim, Self::Vmm, Self::Gateway, Self::Console, Self::Agent, Self::Dockerd];

    /// The name, also of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Agent => "agent",
            Self::Dockerd => "dockerd",
            Self::Vmm => "vmm",
            Self::Shim => "shim",
            Self::Gateway => "gateway",
        }
    }

    /// The source of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.name() == name)
    }
}

/// The file that a log of this path is moved to when it is full.
pub(crate) fn old(path: &Path) -> PathBuf {
    let mut old = path.to_owned().into_os_string();
    old.push(".1");
    old.into()
}

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
        fs::rename(&self.path, old(&self.path))?;
        *self = Self::with_limit(&self.path, self.limit)?;
        Ok(())
    }
}

impl Write for BoundedLog {
    /// Whole lines that are written at once stay in one file: it may become longer by one of them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.written >= self.limit {
            self.begin_again()?;
        }
        let taken = self.file.write(bytes.get(..LONGEST_LINE * 2).unwrap_or(bytes))?;
        self.written = self.written.saturating_add(taken as u64);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A log of lines that begin with the time of their coming, whatever is in them.
#[derive(Debug)]
pub(crate) struct LineLog {
    log: BoundedLog,
    /// The beginning of a line whose end has not come.
    begun: Vec<u8>,
}

impl LineLog {
    pub(crate) fn new(log: BoundedLog) -> Self {
        Self { log, begun: Vec::new() }
    }

    /// Takes bytes as they come, and shows each line that they end to `seen`.
    pub(crate) fn take(&mut self, bytes: &[u8], mut seen: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.begun.extend_from_slice(piece);
            while self.begun.ends_with(b"\n") || self.begun.len() >= LONGEST_LINE {
                let rest = self.begun.split_off(self.begun.len().min(LONGEST_LINE));
                let line = std::mem::replace(&mut self.begun, rest);
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                seen(line);
                self.line(line);
            }
        }
    }

    /// Writes a line of its own. One that cannot be written is lost: whoever spoke must not be kept by it.
    pub(crate) fn line(&mut self, line: &[u8]) {
        let line = line.get(..LONGEST_LINE).unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut text = humantime::format_rfc3339_millis(SystemTime::now()).to_string().into_bytes();
        text.push(b' ');
        // A line within a line would be taken for one with a time of its own.
        text.extend(line.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }));
        text.push(b'\n');
        if let Err(error) = self.log.write_all(&text) {
            tracing::debug!(%error, "A log could not be written");
        }
    }

    /// Writes what is left of a line without an end.
    pub(crate) fn finish(&mut self, seen: impl FnMut(&[u8])) {
        if !self.begun.is_empty() {
            self.take(b"\n", seen);
        }
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
        assert!(total <= 240, "{total}");
        assert!(fs::read_to_string(&path).unwrap().ends_with("the end"));
        // Opened again it goes on behind what is there.
        BoundedLog::with_limit(&path, 100).unwrap().write_all(b"!").unwrap();
        assert!(fs::read_to_string(&path).unwrap().ends_with("the end!"));
    }

    #[test]
    fn every_line_has_a_time_however_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut log = LineLog::new(BoundedLog::open(&path).unwrap());
        let mut seen = Vec::new();
        log.take(b"one\r\ntw", |line| seen.push(line.to_vec()));
        log.take(b"o\n\nthree", |line| seen.push(line.to_vec()));
        log.take(&vec![b'x'; LONGEST_LINE * 2 + 7], |line| seen.push(line.to_vec()));
        log.line(b"2001-01-01T00:00:00Z forged\n2001-01-01T00:00:00Z as well");
        log.finish(|line| seen.push(line.to_vec()));
        assert_eq!(seen[..3], [b"one\r".to_vec(), b"two".to_vec(), Vec::new()]);
        assert_eq!(seen[3].len(), LONGEST_LINE);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<(&str, &str)> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
        for (time, _) in &lines {
            assert!(humantime::parse_rfc3339(time).unwrap().elapsed().unwrap().as_secs() < 3600, "{time}");
        }
        let words: Vec<&str> = lines.iter().map(|(_, words)| *words).collect();
        assert_eq!(words[..3], ["one", "two", ""]);
        assert!(words.iter().all(|line| line.len() <= LONGEST_LINE));
        assert_eq!(words.iter().filter(|line| line.contains("forged")).count(), 1);
        assert_eq!(words.concat().matches('x').count(), LONGEST_LINE * 2 + 7, "nothing is lost");
    }
}
