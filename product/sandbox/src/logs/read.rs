//! Reading logs back: the lines of all sources by their times, and what comes.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{LOG_LIMIT, LONGEST_LINE, Source, old};
use crate::folder::Folder;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When the host heard it; that of the line before where it has none of its own.
    pub time: SystemTime,
    /// Whose it is.
    pub source: Source,
    /// The words, with whatever the guest put into them.
    pub text: String,
}

/// The logs of a sandbox as they grow.
#[derive(Debug)]
pub struct Reader {
    logs: Vec<Log>,
}

#[derive(Debug)]
struct Log {
    source: Source,
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// A line whose end is not there yet.
    begun: Vec<u8>,
    last: SystemTime,
}

impl Reader {
    /// These logs of the sandbox, from the beginning of what is kept.
    pub fn open(sandbox: &Folder, sources: &[Source]) -> Self {
        let log = |source: &Source| Log {
            source: *source,
            path: sandbox.log(*source),
            file: None,
            begun: Vec::new(),
            last: SystemTime::UNIX_EPOCH,
        };
        Self { logs: sources.iter().map(log).collect() }
    }

    /// All lines that have come since the last call, by their times.
    pub fn read(&mut self) -> Vec<Line> {
        let mut all = Vec::new();
        for log in &mut self.logs {
            let mut lines = Vec::new();
            log.read(&mut lines);
            // Lines of one source stay in their order, whatever a clock that was set back says.
            let mut latest = SystemTime::UNIX_EPOCH;
            all.extend(lines.into_iter().map(|line| {
                latest = latest.max(line.time);
                (latest, line)
            }));
        }
        all.sort_by_key(|(latest, _)| *latest);
        all.into_iter().map(|(_, line)| line).collect()
    }
}

impl Log {
    fn read(&mut self, lines: &mut Vec<Line>) {
        if self.file.is_none() {
            if let Ok(before) = File::open(old(&self.path)) {
                self.drain(&mut BufReader::new(before), lines);
            }
            self.file = File::open(&self.path).ok().map(BufReader::new);
        }
        // A log that was begun again in the meantime is read to its end under its old name first.
        for _ in 0..2 {
            let Some(mut file) = self.file.take() else { return };
            self.drain(&mut file, lines);
            let inode = |meta: std::io::Result<std::fs::Metadata>| meta.ok().map(|meta| meta.ino());
            let (ours, named) = (inode(file.get_ref().metadata()), inode(std::fs::metadata(&self.path)));
            self.file = if ours == named || named.is_none() {
                Some(file)
            } else {
                File::open(&self.path).ok().map(BufReader::new)
            };
            if ours == named {
                return;
            }
        }
    }

    fn drain(&mut self, file: &mut impl BufRead, lines: &mut Vec<Line>) {
        // A log that grows as fast as it is read is not read for ever.
        let mut file = file.take(LOG_LIMIT * 4);
        while let Ok(count) = (&mut file).take(LONGEST_LINE as u64 * 2).read_until(b'\n', &mut self.begun) {
            if count == 0 {
                return;
            }
            if !self.begun.ends_with(b"\n") && self.begun.len() < LONGEST_LINE * 2 {
                continue;
            }
            let line = std::mem::take(&mut self.begun);
            lines.push(self.parse(&line));
        }
    }

    fn parse(&mut self, line: &[u8]) -> Line {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end_matches(['\n', '\r']);
        let stamped = text
            .split_once(' ')
            .and_then(|(time, words)| Some((humantime::parse_rfc3339(time).ok()?, words.trim_start())));
        let (time, words) = stamped.unwrap_or((self.last, text));
        self.last = time;
        Line { time, source: self.source, text: words.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{BoundedLog, LineLog};

    fn log(path: PathBuf) -> Log {
        Log { source: Source::Agent, path, file: None, begun: Vec::new(), last: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn what_was_written_comes_back_also_when_the_log_is_begun_again_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.log");
        let mut reader = log(path.clone());
        let mut lines = Vec::new();
        reader.read(&mut lines);
        assert!(lines.is_empty());

        let mut writer = LineLog::new(BoundedLog::open(&path).unwrap());
        writer.line(b"one");
        reader.read(&mut lines);
        assert_eq!(lines.len(), 1);
        for number in 0..400 {
            writer.line(format!("{number} {}", "x".repeat(3000)).as_bytes());
        }
        assert!(old(&path).exists(), "it was begun again");
        reader.read(&mut lines);
        writer.line(b"last");
        reader.read(&mut lines);
        assert_eq!(lines.len(), 402);
        assert!(
            lines
                .iter()
                .zip(0..)
                .skip(1)
                .take(400)
                .all(|(line, n)| line.text.starts_with(&format!("{} ", n - 1)))
        );
        assert_eq!(lines.last().unwrap().text, "last");
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_turn_a_log_around() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, shim) = (folder.path().join("agent.log"), folder.path().join("shim.log"));
        std::fs::write(&agent, "2026-01-01T00:00:09Z one\n2026-01-01T00:00:01Z two\n").unwrap();
        std::fs::write(&shim, "2026-01-01T00:00:05Z other\n").unwrap();
        let lines = Reader { logs: vec![log(agent), log(shim)] }.read();
        let words: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(words, ["other", "one", "two"]);
        assert!(lines[2].time < lines[0].time, "as it was noted");
    }

    #[test]
    fn a_line_without_a_time_has_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shim.log");
        std::fs::write(&path, "2026-01-01T00:00:00.5Z  INFO it\n  goes on\n\n2026-01-01T00:00:01Z b\nhalf")
            .unwrap();
        let mut lines = Vec::new();
        let mut reader = log(path);
        reader.read(&mut lines);
        let words: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(words, ["INFO it", "  goes on", "", "b"]);
        assert!(lines[0].time == lines[1].time && lines[2].time < lines[3].time);
    }
}
