//! The record of a sandbox's network: what the gateway decided, one JSON object a line, numbered without gaps across restarts.
//!
//! The gateway folds what repeats, so that a flood makes few lines; the file is begun anew when it is full and the one before is kept. It
//! goes with the sandbox's folder.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gateway::record::Record;
use serde::{Deserialize, Serialize};

use crate::logs::old;

/// The file's name in the sandbox's folder.
pub const FILE: &str = "network.jsonl";
/// Bytes after which the file is moved to `network.jsonl.1`.
const LIMIT: u64 = 16 << 20;
/// The longest line that is written, and read.
const LONGEST_LINE: usize = 16 << 10;
/// The longest of a record's texts.
const LONGEST_TEXT: usize = 2000;

/// A record as it lies in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in this sandbox, from 1.
    pub seq: u64,
    /// The record.
    #[serde(flatten)]
    pub record: Record,
}

/// Who writes it: the shim.
#[derive(Debug)]
pub(crate) struct NetworkLog {
    path: PathBuf,
    file: File,
    written: u64,
    last: u64,
    limit: u64,
}

impl NetworkLog {
    /// Opens or makes the log in a sandbox's folder, and goes on after its last number.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Self::with_limit(&folder.join(FILE), LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let mut file = File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
        let last = match last_number(&mut file)? {
            Some(last) => last,
            // Begun anew just now, or all of it is damaged: the one before knows.
            None => {
                File::open(old(path)).and_then(|mut old| last_number(&mut old)).unwrap_or(None).unwrap_or(0)
            }
        };
        let mut log = Self { path: path.to_owned(), written: file.metadata()?.len(), file, last, limit };
        if log.written > 0 && !log.ends_with_a_line()? {
            // A killed shim left half a line.
            log.file.write_all(b"\n")?;
        }
        Ok(log)
    }

    fn ends_with_a_line(&mut self) -> io::Result<bool> {
        let mut last = [0u8; 1];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        Ok(last == *b"\n")
    }

    /// Writes records; each has its number when this returns. A gateway that was taken over has at most chosen their words.
    pub(crate) fn append(&mut self, records: Vec<Record>) -> io::Result<()> {
        for mut record in records {
            let what = &mut record.what;
            shorten(&mut what.host);
            shorten(&mut what.text);
            let others =
                [&mut what.method, &mut what.path, &mut what.layer, &mut what.rule, &mut what.remedy];
            others.into_iter().flatten().for_each(shorten);
            let entry = Entry { seq: self.last + 1, record };
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            if self.written >= self.limit {
                fs::rename(&self.path, old(&self.path))?;
                self.file =
                    File::options().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
                self.written = 0;
            }
            self.file.write_all(&line)?;
            self.written = self.written.saturating_add(line.len() as u64);
            self.last = entry.seq;
        }
        Ok(())
    }

    /// The number of the last record.
    #[cfg(test)]
    fn last(&self) -> u64 {
        self.last
    }
}

fn shorten(text: &mut String) {
    if text.len() > LONGEST_TEXT {
        let mut end = LONGEST_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
}

/// Only the number of a line, which a version to come may write otherwise.
#[derive(Deserialize)]
struct Number {
    seq: u64,
}

/// The number of the last whole line; nothing where there is none.
fn last_number(file: &mut File) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    let mut piece = 2 * LONGEST_LINE as u64;
    loop {
        let start = length.saturating_sub(piece);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        Read::by_ref(file).take(piece).read_to_end(&mut bytes)?;
        let lines = bytes.split(|byte| *byte == b'\n').rev();
        // Of a damaged line the one before tells.
        for line in lines {
            if let Ok(found) = serde_json::from_slice::<Number>(line) {
                return Ok(Some(found.seq));
            }
        }
        if start == 0 {
            return Ok(None);
        }
        piece = piece.saturating_mul(8);
    }
}

/// Who reads it: the command line, while a shim may write.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    file: Option<(u64, BufReader<File>)>,
    /// The number of the last record that was given out.
    last: u64,
    begun: Vec<u8>,
}

impl LogReader {
    /// The log of a sandbox's folder, from its beginning.
    pub fn open(folder: &Path) -> Self {
        Self { path: folder.join(FILE), file: None, last: 0, begun: Vec::new() }
    }

    /// The same, but only what comes from here on.
    pub fn at_end(folder: &Path) -> Self {
        let mut reader = Self::open(folder);
        reader.read();
        reader
    }

    /// What has come since the last look. Lines that cannot be read are passed over.
    pub fn read(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        match self.file.take() {
            None => {
                self.rest_of(&old(&self.path.clone()), &mut entries);
            }
            Some((inode, file)) => {
                self.lines(file, inode, &mut entries);
            }
        }
        let now = fs::metadata(&self.path).map(|meta| meta.ino()).ok();
        if now.is_some() && now != self.file.as_ref().map(|(inode, _)| *inode) {
            // Begun anew: what was written to the one before since the look is in it.
            if self.last > 0 {
                self.rest_of(&old(&self.path.clone()), &mut entries);
            }
            if let Ok(file) = File::open(&self.path) {
                let inode = file.metadata().map(|meta| meta.ino()).unwrap_or_default();
                self.begun.clear();
                self.lines(BufReader::new(file), inode, &mut entries);
            }
        }
        entries
    }

    fn rest_of(&mut self, path: &Path, entries: &mut Vec<Entry>) {
        if let Ok(file) = File::open(path) {
            self.begun.clear();
            self.lines(BufReader::new(file), 0, entries);
            self.file = None;
        }
    }

    fn lines(&mut self, mut file: BufReader<File>, inode: u64, entries: &mut Vec<Entry>) {
        loop {
            let mut piece = Vec::new();
            match Read::by_ref(&mut file).take(LONGEST_LINE as u64).read_until(b'\n', &mut piece) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let is_whole = piece.ends_with(b"\n");
            if self.begun.len() <= LONGEST_LINE {
                self.begun.extend_from_slice(&piece);
            }
            if !is_whole {
                continue;
            }
            let line = std::mem::take(&mut self.begun);
            if let Ok(entry) = serde_json::from_slice::<Entry>(&line)
                && entry.seq > self.last
            {
                self.last = entry.seq;
                entries.push(entry);
            }
        }
        self.file = Some((inode, file));
    }
}

#[cfg(test)]
mod tests {
    use gateway::record::{Decision, Kind, What};

    use super::*;

    fn records(count: usize, host: &str) -> Vec<Record> {
        let what = What::new(Kind::Connect, Decision::Allowed, host, 443);
        let record = Record { time: 1, last: 2, count: 1, bytes_up: 3, bytes_down: 4, what };
        std::iter::repeat_n(record, count).collect()
    }

    fn numbers(entries: &[Entry]) -> Vec<u64> {
        entries.iter().map(|entry| entry.seq).collect()
    }

    #[test]
    fn numbers_go_on_over_restarts_and_new_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut reader = LogReader::open(folder.path());
        for _ in 0..3 {
            NetworkLog::with_limit(&path, 2000).unwrap().append(records(4, "example.com")).unwrap();
        }
        assert_eq!(numbers(&reader.read()), (1..=12).collect::<Vec<_>>());
        let mut log = NetworkLog::with_limit(&path, 600).unwrap();
        for _ in 0..5 {
            log.append(records(1, "example.org")).unwrap();
            assert_eq!(reader.read().len(), 1, "who follows sees each once, over a new file, too");
        }
        assert_eq!(log.last(), 17);
        drop(log);
        // Just begun anew, and empty.
        fs::rename(&path, old(&path)).unwrap();
        assert_eq!(NetworkLog::with_limit(&path, 600).unwrap().last(), 17);
    }

    #[test]
    fn half_a_line_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        NetworkLog::open(folder.path()).unwrap().append(records(2, "a")).unwrap();
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"seq\": 3, \"ho");
        fs::write(&path, &text).unwrap();
        NetworkLog::open(folder.path()).unwrap().append(records(1, "b")).unwrap();
        let entries = LogReader::open(folder.path()).read();
        assert_eq!(numbers(&entries), [1, 2, 3]);
        assert_eq!(entries[2].record.what.host, "b");
    }

    #[test]
    fn a_long_word_does_not_make_a_long_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = NetworkLog::open(folder.path()).unwrap();
        log.append(records(1, &"é".repeat(100_000))).unwrap();
        assert!(fs::metadata(folder.path().join(FILE)).unwrap().len() < LONGEST_LINE as u64);
        assert_eq!(LogReader::open(folder.path()).read().len(), 1);
        assert!(LogReader::at_end(folder.path()).read().is_empty());
    }

    #[test]
    fn the_log_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = NetworkLog::with_limit(&path, 5000).unwrap();
        log.append(records(500, "example.com")).unwrap();
        let total: u64 =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total < 12_000, "{total}");
        assert_eq!(numbers(&LogReader::open(folder.path()).read()).last(), Some(&500));
    }
}
