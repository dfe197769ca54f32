//! How often something may still happen: a token bucket.

use std::time::Instant;

/// So many at once, and so many in a second after that.
#[derive(Debug)]
pub(crate) struct Allowance {
    most: f64,
    a_second: f64,
    left: f64,
    counted: Option<Instant>,
}

impl Allowance {
    /// A full one.
    pub(crate) fn new(most: f64, a_second: f64) -> Self {
        Self { most, a_second, left: most, counted: None }
    }

    /// Takes one, if one is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let since = self.counted.map_or(0.0, |then| now.saturating_duration_since(then).as_secs_f64());
        self.counted = Some(now);
        self.left = (self.left + since * self.a_second).min(self.most);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}
