//! Things that only a broken or hostile guest does: counted always, logged seldom, so that a guest cannot fill the log.

use std::sync::atomic::{AtomicU64, Ordering};

/// Messages that are logged before the intervals double.
const FREE: u64 = 8;

/// One kind of guest misbehaviour.
#[derive(Debug)]
pub struct GuestEvent {
    name: &'static str,
    count: AtomicU64,
}

impl GuestEvent {
    /// A kind with this name and no events yet.
    pub const fn new(name: &'static str) -> Self {
        Self { name, count: AtomicU64::new(0) }
    }

    /// Counts one event; logs the first eight and then the 16th, 32nd, 64th… with `detail`.
    pub fn note(&self, detail: impl FnOnce() -> String) {
        let count = self.count.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if is_logged(count) {
            tracing::warn!(event = self.name, count, detail = %detail(), "The guest misbehaved");
        }
    }

    /// How often it happened.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

fn is_logged(count: u64) -> bool {
    count <= FREE || count.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_events_make_a_handful_of_lines() {
        assert_eq!((1..=1 << 20).filter(|count| is_logged(*count)).count(), 8 + 17);
    }
}
