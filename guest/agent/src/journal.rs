//! What the agent and dockerd have to say, for hosts that listen: the last of it is kept, and nobody ever waits for them.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use agent_proto::messages::{LogLine, LogSource};

/// Most bytes that are kept; the oldest lines go first.
const LIMIT: usize = 256 * 1024;
/// The longest line, in bytes; what is longer is cut.
const LONGEST: usize = 4000;
/// What a line takes beside its text.
const OVERHEAD: usize = 64;

/// The one journal of this guest.
pub(crate) static JOURNAL: Journal = Journal::new();

/// The last lines, with their numbers.
#[derive(Debug)]
pub(crate) struct Journal {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug)]
struct Lines {
    /// The number of the first line that is still here.
    first: u64,
    kept: VecDeque<(LogSource, Vec<u8>)>,
    bytes: usize,
}

impl Journal {
    const fn new() -> Self {
        let lines = Lines { first: 0, kept: VecDeque::new(), bytes: 0 };
        Self { lines: Mutex::new(lines), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    pub(crate) fn add(&self, source: LogSource, text: &[u8]) {
        let text = text.get(..LONGEST).unwrap_or(text).to_vec();
        let mut lines = self.lock();
        lines.bytes += text.len() + OVERHEAD;
        lines.kept.push_back((source, text));
        while lines.bytes > LIMIT
            && let Some((_, oldest)) = lines.kept.pop_front()
        {
            lines.first += 1;
            lines.bytes -= oldest.len() + OVERHEAD;
        }
        self.changed.notify_all();
    }

    /// Waits for the line with this number, or the first that is still here; `None` when `stop` says so. Gives the number
    /// of the one behind it, too.
    pub(crate) fn wait_for(&self, number: u64, stop: impl Fn() -> bool) -> Option<(LogLine, u64)> {
        let mut lines = self.lock();
        loop {
            if stop() {
                return None;
            }
            let lost = lines.first.saturating_sub(number);
            let at = number.max(lines.first);
            let index = usize::try_from(at - lines.first).ok()?;
            if let Some((source, text)) = lines.kept.get(index) {
                let line = LogLine { source: (*source).into(), text: text.clone(), lost };
                return Some((line, at + 1));
            }
            lines = self.changed.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes everyone who waits, so that they look at their own reasons to stop.
    pub(crate) fn wake(&self) {
        let _lines = self.lock();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_first_and_are_counted() {
        let journal = Journal::new();
        for number in 0..10_000u32 {
            journal.add(LogSource::Agent, format!("{number} {}", "x".repeat(100)).as_bytes());
        }
        let (line, next) = journal.wait_for(0, || false).unwrap();
        assert!(line.lost > 5000 && next == line.lost + 1);
        assert!(line.text.starts_with(format!("{} ", line.lost).as_bytes()));
        let (after, _) = journal.wait_for(next, || false).unwrap();
        assert_eq!(after.lost, 0);
        assert!(journal.lock().bytes <= LIMIT);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let journal = Journal::new();
        journal.add(LogSource::Dockerd, &vec![b'x'; 1 << 20]);
        assert_eq!(journal.wait_for(0, || false).unwrap().0.text.len(), LONGEST);
        assert!(journal.wait_for(1, || true).is_none());
        let found = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| journal.wait_for(1, || false));
            journal.add(LogSource::Agent, b"at last");
            waiting.join().unwrap()
        });
        assert_eq!(found.unwrap().0.text, b"at last");
    }
}
