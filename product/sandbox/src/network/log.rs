//! The record of a sandbox's network: what the gateway decided, one JSON object a line, numbered without gaps across restarts.
//!
//! The gateway folds what repeats, so that a flood makes few lines; the file is begun anew when it is full and the one before is kept, and
//! what was before that is folded ([`folded`]): no decision goes uncounted. It goes with the sandbox's folder.
//!
//! What cannot be written now is kept and tried again; of what is too much for that the counts are.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gateway::record::Record;
use serde::{Deserialize, Serialize};

use crate::logs::old;

mod folded;

/// The file's name in the sandbox's folder.
pub const FILE: &str = "network.jsonl";
/// Bytes after which the file is moved to `network.jsonl.1`.
const LIMIT: u64 = 16 << 20;
/// The longest line that is written, and read.
const LONGEST_LINE: usize = 16 << 10;
/// The longest of a record's texts.
const LONGEST_TEXT: usize = 2000;
/// Records that wait while they cannot be written; of more only the counts are kept, by kind.
const MOST_PENDING: usize = 4096;

/// A record as it lies in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in this sandbox, from 1; of several, the last one's.
    pub seq: u64,
    /// How many numbered records it was made of; `None`: it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
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
    /// What could not be written yet, in order, and the sums of what was too much for that, by kind.
    pending: VecDeque<Record>,
    beyond: BTreeMap<String, Record>,
    /// A write went wrong: half a line may stand at the end.
    torn: bool,
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
                let number = |path| File::open(path).and_then(|mut file| last_number(&mut file));
                let before =
                    [old(path), folded::path(path)].into_iter().filter_map(|path| number(path).ok()?);
                before.max().unwrap_or(0)
            }
        };
        let (pending, beyond) = Default::default();
        let written = file.metadata()?.len();
        let mut log =
            Self { path: path.to_owned(), written, file, last, limit, pending, beyond, torn: false };
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

    /// Writes records, those before that could not be written first; each has its number when it is written. A gateway that was taken over
    /// has at most chosen their words.
    ///
    /// # Errors
    /// What could not be written waits for the next call.
    pub(crate) fn append(&mut self, records: Vec<Record>) -> io::Result<()> {
        for mut record in records {
            let what = &mut record.what;
            shorten(&mut what.host);
            shorten(&mut what.text);
            let others =
                [&mut what.method, &mut what.path, &mut what.layer, &mut what.rule, &mut what.remedy];
            others.into_iter().flatten().for_each(shorten);
            if self.pending.len() >= MOST_PENDING && !self.torn {
                // Many at once are no reason to fold: what goes wrong now goes wrong below again.
                let _ = self.flush();
            }
            if self.pending.len() < MOST_PENDING {
                self.pending.push_back(record);
                continue;
            }
            record.what = record.what.of_kind();
            folded::add(&mut self.beyond, record);
        }
        self.flush()
    }

    /// Writes what waits.
    fn flush(&mut self) -> io::Result<()> {
        loop {
            while let Some(record) = self.pending.front() {
                let entry = Entry { seq: self.last + 1, entries: None, record: record.clone() };
                self.write(&entry)?;
                self.last = entry.seq;
                self.pending.pop_front();
            }
            if self.beyond.is_empty() {
                return Ok(());
            }
            self.pending.extend(std::mem::take(&mut self.beyond).into_values());
        }
    }

    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.written >= self.limit {
            self.begin_anew()?;
        }
        if self.torn {
            // Half a line costs itself alone.
            line.insert(0, b'\n');
        }
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        self.written = self.written.saturating_add(line.len() as u64);
        Ok(())
    }

    /// The file is full: what stands in the one before it is folded, and it takes that one's place.
    fn begin_anew(&mut self) -> io::Result<()> {
        folded::fold(&self.path)?;
        match fs::rename(&self.path, old(&self.path)) {
            // It was moved before, and no new one could be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = File::options().read(true).append(true).create(true).mode(0o600).open(&self.path)?;
        (self.written, self.torn) = (0, false);
        Ok(())
    }

    /// How many decisions wait that could not be written.
    pub(crate) fn unwritten(&self) -> u64 {
        let waiting = self.pending.iter().chain(self.beyond.values());
        waiting.fold(0, |sum, record| sum.saturating_add(record.count))
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

    /// The number of the last record that was given out.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What has come since the last look. Lines that cannot be read are passed over.
    pub fn read(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        match self.file.take() {
            None => {
                self.rest_of(&folded::path(&self.path), &mut entries);
                self.rest_of(&old(&self.path), &mut entries);
            }
            Some((inode, file)) => {
                self.lines(file, inode, &mut entries);
            }
        }
        let now = fs::metadata(&self.path).map(|meta| meta.ino()).ok();
        if now.is_some() && now != self.file.as_ref().map(|(inode, _)| *inode) {
            // Begun anew: what was written to the one before since the look is in it.
            if self.last > 0 {
                self.rest_of(&old(&self.path), &mut entries);
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
        while self.some_lines(&mut file, |entry| entries.push(entry)) {}
        self.file = Some((inode, file));
    }

    /// Reads a line, or a piece of one; false at the end.
    fn some_lines(&mut self, file: &mut BufReader<File>, take: impl FnOnce(Entry)) -> bool {
        let mut piece = Vec::new();
        match Read::by_ref(file).take(LONGEST_LINE as u64).read_until(b'\n', &mut piece) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        if self.begun.len() <= LONGEST_LINE {
            self.begun.extend_from_slice(&piece);
        }
        if !piece.ends_with(b"\n") {
            return true;
        }
        let line = std::mem::take(&mut self.begun);
        if let Ok(entry) = serde_json::from_slice::<Entry>(&line)
            && entry.seq > self.last
        {
            self.last = entry.seq;
            take(entry);
        }
        true
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
    fn the_log_is_bounded_and_counts_what_it_no_longer_tells() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = NetworkLog::with_limit(&path, 5000).unwrap();
        let secret = What::new(Kind::Exfiltration, Decision::Refused, "evil.example", 443).text("of github");
        let mut early = records(1, "evil.example");
        early[0].what = secret.clone();
        log.append(early).unwrap();
        log.append(records(3, "upload.example")).unwrap();
        log.append(records(5000, "example.com")).unwrap();
        let total: u64 =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(total < 14_000, "{total}");
        let entries = LogReader::open(folder.path()).read();
        assert_eq!(entries.last().unwrap().seq, 5004);
        // Nothing of the beginning is gone, and each number is accounted for.
        assert!(entries.iter().any(|entry| entry.record.what == secret && entry.record.count == 1));
        let sum = |host: &str| {
            let of = entries.iter().filter(|entry| entry.record.what.host == host);
            of.map(|entry| entry.record.count).sum::<u64>()
        };
        assert_eq!((sum("upload.example"), sum("example.com")), (3, 5000));
        assert_eq!(entries.iter().map(|entry| entry.entries.unwrap_or(1)).sum::<u64>(), 5004);
        assert!(numbers(&entries).is_sorted());
        drop(log);
        // As when a shim was killed just after a new file was begun.
        fs::remove_file(&path).unwrap();
        fs::remove_file(old(&path)).unwrap();
        assert!(NetworkLog::with_limit(&path, 600).unwrap().last() > 4900);
    }

    #[test]
    fn what_is_folded_twice_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = NetworkLog::with_limit(&path, 2000).unwrap();
        log.append(records(30, "example.com")).unwrap();
        // A shim that was killed between folding and moving folds the same file again.
        folded::fold(&path).unwrap();
        folded::fold(&path).unwrap();
        let entries = LogReader::open(folder.path()).read();
        assert_eq!(entries.iter().map(|entry| entry.record.count).sum::<u64>(), 30);
        assert_eq!(entries.last().unwrap().seq, 30);
    }

    #[test]
    fn a_flood_of_hosts_folds_within_bounds_and_hides_nothing_that_went_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = NetworkLog::with_limit(&path, 100_000).unwrap();
        log.append(records(1, "upload.example")).unwrap();
        let refused = |n: u64| {
            let what = What::new(Kind::Dns, Decision::Refused, format!("a.{n:x}.example"), 0);
            Record { time: n, last: n, count: 2, bytes_up: 0, bytes_down: 0, what }
        };
        for round in 0..10 {
            log.append((0..1000).map(|n| refused(round * 1000 + n)).collect()).unwrap();
        }
        let entries = LogReader::open(folder.path()).read();
        assert!(entries.len() < 5000, "{}", entries.len());
        assert_eq!(entries.iter().map(|entry| entry.record.count).sum::<u64>(), 20_001);
        let out = entries.iter().find(|entry| entry.record.what.host == "upload.example").unwrap();
        assert_eq!((out.record.count, out.record.bytes_up), (1, 3));
    }

    /// A file on a disk without room.
    fn full(path: &Path) -> NetworkLog {
        let mut log = NetworkLog::open(path).unwrap();
        log.file = File::options().append(true).open("/dev/full").unwrap();
        log
    }

    #[test]
    fn what_cannot_be_written_waits_and_is_written_when_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = full(folder.path());
        let error = log.append(records(2, "a")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(log.append(records(1, "b")).is_err());
        assert_eq!((log.unwritten(), log.last()), (3, 0));
        log.file = File::options().append(true).open(folder.path().join(FILE)).unwrap();
        // Half of a line had been written.
        log.file.write_all(b"{\"seq\": 1, \"ti").unwrap();
        log.append(records(1, "c")).unwrap();
        let entries = LogReader::open(folder.path()).read();
        assert_eq!(numbers(&entries), [1, 2, 3, 4]);
        let hosts: Vec<_> = entries.iter().map(|entry| entry.record.what.host.as_str()).collect();
        assert_eq!(hosts, ["a", "a", "b", "c"]);
        assert_eq!(log.unwritten(), 0);
    }

    #[test]
    fn of_too_much_that_cannot_be_written_the_counts_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = full(folder.path());
        for n in 0..20 {
            assert!(log.append(records(1000, &format!("h{n}.example"))).is_err());
        }
        assert_eq!(log.unwritten(), 20_000);
        assert!(log.pending.len() <= MOST_PENDING && log.beyond.len() == 1);
        log.file = File::options().append(true).open(folder.path().join(FILE)).unwrap();
        log.append(Vec::new()).unwrap();
        let entries = LogReader::open(folder.path()).read();
        assert_eq!(entries.iter().map(|entry| entry.record.count).sum::<u64>(), 20_000);
        assert_eq!(entries.iter().map(|entry| entry.record.bytes_down).sum::<u64>(), 80_000);
        assert_eq!(entries.last().unwrap().record.what.host, "**");
    }

    #[test]
    fn a_file_that_cannot_be_begun_anew_goes_on_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = NetworkLog::with_limit(&path, 100).unwrap();
        log.append(records(1, "a")).unwrap();
        // It was moved, and then there was no descriptor or no room for the new one.
        fs::rename(&path, old(&path)).unwrap();
        log.append(records(1, "b")).unwrap();
        assert_eq!(numbers(&LogReader::open(folder.path()).read()), [1, 2]);
    }
}
