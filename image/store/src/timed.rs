//! How long the parts of a set-up took.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fetch::{Progress, Update};

use crate::record::Part;

/// Passes progress on and notes when each step was complete. Steps follow one another, so the time between two ends is the
/// later step's.
pub(crate) struct Timed<'p> {
    listener: &'p dyn Progress,
    state: Mutex<(Instant, Vec<Part>)>,
}

impl<'p> Timed<'p> {
    pub(crate) fn new(listener: &'p dyn Progress) -> Self {
        Self { listener, state: Mutex::new((Instant::now(), Vec::new())) }
    }

    /// Ends a step that has no progress of its own.
    pub(crate) fn end(&self, step: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let milliseconds = u64::try_from(state.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        state.1.push(Part { step: step.to_owned(), milliseconds });
        state.0 = Instant::now();
    }

    /// The steps so far, in their order.
    pub(crate) fn parts(&self) -> Vec<Part> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

impl Progress for Timed<'_> {
    fn update(&self, update: &Update<'_>) {
        self.listener.update(update);
    }

    fn finished(&self, step: &str) {
        self.end(step);
        self.listener.finished(step);
    }

    fn note(&self, line: &str) {
        self.listener.note(line);
    }
}
