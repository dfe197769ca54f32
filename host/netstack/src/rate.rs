//! Token buckets, and limit events at most once a second.

use std::time::Duration;

use crate::event::{Event, LimitKind};

/// So many in a second, and as many at once.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// Thousandths of a token.
    level: u64,
    /// When `level` held.
    at: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: u32) -> Self {
        let rate = u64::from(rate);
        Self { rate, level: rate.saturating_mul(1000), at: Duration::ZERO }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.at).as_millis();
        if elapsed > 0 {
            let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
            self.level = self
                .level
                .saturating_add(elapsed.saturating_mul(self.rate))
                .min(self.rate.saturating_mul(1000));
            self.at = now;
        }
        match self.level.checked_sub(1000) {
            Some(level) => {
                self.level = level;
                true
            }
            None => false,
        }
    }
}

/// The shortest time between two events of one limit.
const APART: Duration = Duration::from_secs(1);

/// Counts limits that were hit.
#[derive(Debug, Default)]
pub(crate) struct LimitLog {
    entries: [(u64, Option<Duration>); LimitKind::ALL.len()],
}

impl LimitLog {
    /// A limit was hit: the event to give, unless there was one within the last second.
    pub(crate) fn hit(&mut self, limit: LimitKind, now: Duration) -> Option<Event> {
        let (count, last) = self.entries.get_mut(limit as usize)?;
        *count = count.saturating_add(1);
        if last.is_some_and(|last| now.saturating_sub(last) < APART) {
            return None;
        }
        *last = Some(now);
        Some(Event::Limit { limit, count: std::mem::take(count) })
    }

    /// When [`LimitLog::due`] has to be asked: a flood that ends leaves a count that nothing else would tell of.
    pub(crate) fn next(&self) -> Option<Duration> {
        let waiting = self.entries.iter().filter(|(count, _)| *count > 0);
        waiting.filter_map(|(_, last)| last.map(|last| last.saturating_add(APART))).min()
    }

    /// The event of a count that has waited for its second.
    pub(crate) fn due(&mut self, now: Duration) -> Option<Event> {
        let mut kinds = LimitKind::ALL.into_iter().zip(&mut self.entries);
        kinds.find_map(|(limit, (count, last))| {
            let is_due = *count > 0 && last.is_some_and(|last| now.saturating_sub(last) >= APART);
            is_due.then(|| {
                *last = Some(now);
                Event::Limit { limit, count: std::mem::take(count) }
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(10);
        assert_eq!((0..20).filter(|_| bucket.take(Duration::ZERO)).count(), 10);
        assert!(!bucket.take(Duration::from_millis(99)));
        assert!(bucket.take(Duration::from_millis(100)));
        assert!(!bucket.take(Duration::from_millis(199)));
        assert_eq!((0..99).filter(|_| bucket.take(Duration::from_secs(3600))).count(), 10);
    }

    #[test]
    fn limits_are_told_once_a_second_with_their_count() {
        let mut log = LimitLog::default();
        let count = |event| match event {
            Some(Event::Limit { count, .. }) => count,
            _ => 0,
        };
        assert_eq!(count(log.hit(LimitKind::TcpFlows, Duration::from_secs(5))), 1);
        for _ in 0..41 {
            assert_eq!(log.hit(LimitKind::TcpFlows, Duration::from_millis(5900)), None);
        }
        assert_eq!(count(log.hit(LimitKind::Events, Duration::from_millis(5900))), 1);
        assert_eq!(count(log.hit(LimitKind::TcpFlows, Duration::from_secs(6))), 42);
        // The last ones are told of though nothing comes any more.
        assert_eq!(log.next(), None);
        assert_eq!(log.hit(LimitKind::TcpFlows, Duration::from_millis(6100)), None);
        assert_eq!(log.next(), Some(Duration::from_secs(7)));
        assert_eq!(log.due(Duration::from_millis(6900)), None);
        assert_eq!(count(log.due(Duration::from_secs(7))), 1);
        assert_eq!((log.due(Duration::from_secs(9)), log.next()), (None, None));
    }

    #[test]
    fn each_limit_has_its_own_place() {
        let numbers = LimitKind::ALL.map(|limit| limit as usize);
        assert_eq!(numbers, std::array::from_fn(|number| number));
    }
}
