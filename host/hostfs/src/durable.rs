//! Making a file system of the host durable at the guest's word, which costs everybody who uses it.
//!
//! A guest's `sync` means all that it wrote; the host's `syncfs` writes out what *all* programs have written to that file
//! system. So it is done only when this session has changed something since, and not again before a pause is over: the guest waits,
//! not the host's other programs. What a guest may do without end, `fsync` of its own files, stays as it is.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::node::lock;

/// What of this session is not durable yet, and when it was last made so.
#[derive(Default)]
pub(crate) struct Durable {
    changed: AtomicBool,
    /// Held while it is done; the time of its end.
    last: Mutex<Option<Instant>>,
    count: AtomicU64,
}

impl Durable {
    /// To be said after each change, whether or not it succeeded as a whole.
    pub(crate) fn note_change(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// How often the host was asked.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Calls `sync` if there is something to make durable, `pause` after the last time at the earliest.
    pub(crate) fn make<E>(&self, pause: Duration, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        // Whoever comes second waits, and finds its own changes done or still to be done.
        let mut last = lock(&self.last);
        if !self.changed.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(rest) = last.and_then(|last| pause.checked_sub(last.elapsed())) {
            std::thread::sleep(rest);
        }
        // Before the sync, so that it has all whose note is taken here; what is changed while it runs may not be in it.
        self.changed.swap(false, Ordering::AcqRel);
        self.count.fetch_add(1, Ordering::Relaxed);
        let outcome = sync();
        if outcome.is_err() {
            self.note_change();
        }
        *last = Some(Instant::now());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn only_changes_are_made_durable_and_failures_tried_again() {
        let durable = Durable::default();
        let done = |result: Result<(), ()>| durable.make(Duration::ZERO, || result);
        done(Err(())).unwrap();
        assert_eq!(durable.count(), 0, "nothing was changed");
        durable.note_change();
        done(Err(())).unwrap_err();
        done(Ok(())).unwrap();
        assert_eq!(durable.count(), 2, "what failed is not done");
        done(Err(())).unwrap();
        assert_eq!(durable.count(), 2);
        // With nothing to do nobody waits.
        durable.make(NEVER, || Err(())).unwrap();
    }

    #[test]
    fn it_is_not_done_again_before_the_pause_is_over() {
        let durable = Durable::default();
        let pause = Duration::from_millis(50);
        let mut ends = Vec::new();
        for _ in 0..3 {
            durable.note_change();
            let made: Result<(), ()> = durable.make(pause, || {
                ends.push(Instant::now());
                Ok(())
            });
            made.unwrap();
        }
        assert!(ends.windows(2).all(|pair| pair[1] - pair[0] >= pause), "{ends:?}");
    }

    #[test]
    fn a_change_during_the_sync_is_left_for_the_next() {
        let durable = Durable::default();
        durable.note_change();
        let made: Result<(), ()> = durable.make(Duration::ZERO, || {
            durable.note_change();
            Ok(())
        });
        made.unwrap();
        durable.make(Duration::ZERO, || Ok::<(), ()>(())).unwrap();
        assert_eq!(durable.count(), 2);
    }
}
