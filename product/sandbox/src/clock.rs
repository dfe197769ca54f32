//! When a shim has waited long enough: for the guest to be ready, for a session to come, for a shutdown.

use std::time::{Duration, Instant};

use crate::spec::State;

/// How long a sandbox goes on without sessions.
const IDLE: Duration = Duration::from_secs(30);

/// What a guest gets until sessions can be opened. The slowest engine needs seconds; one that a guest's own doing keeps
/// from coming up would otherwise be waited for, and use its CPUs, for ever.
const UNTIL_READY: Duration = Duration::from_secs(300);

/// A guest that was asked to shut down is ended as by a power cut after this time.
const SHUTDOWN_HARD: Duration = Duration::from_secs(20);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nobody wants the sandbox any more.
    Idle,
    /// The guest is not ready after all this time.
    NotReady,
    /// The guest has not shut down.
    NotStopped,
}

/// The clock of one run.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Since when nobody wants the sandbox.
    idle_since: Option<Instant>,
    /// When patience with the start or with the shutdown ends.
    deadline: Option<Instant>,
}

impl Clock {
    /// Starts with the run. Nobody has connected yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { idle_since: Some(now), deadline: Some(now + UNTIL_READY) }
    }

    /// Sessions can be opened.
    pub(crate) fn ready(&mut self) {
        *self = Self { idle_since: None, deadline: None };
    }

    /// The guest was asked to shut down.
    pub(crate) fn stopping(&mut self, now: Instant) {
        *self = Self { idle_since: None, deadline: Some(now + SHUTDOWN_HARD) };
    }

    /// Says who is there. A sandbox that starts is wanted by whoever is connected, one that runs by sessions only.
    pub(crate) fn note(&mut self, state: State, clients: usize, sessions: usize, now: Instant) {
        let idle = match state {
            State::Starting => clients == 0,
            State::Running => sessions == 0,
            State::Stopping | State::Stopped | State::Failed => false,
        };
        self.idle_since = if idle { self.idle_since.or(Some(now)) } else { None };
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Option<Instant> {
        [self.idle_since.map(|since| since + IDLE), self.deadline].into_iter().flatten().min()
    }

    /// What is due; said once.
    pub(crate) fn due(&mut self, state: State, now: Instant) -> Option<Due> {
        if self.idle_since.is_some_and(|since| now >= since + IDLE) {
            self.idle_since = None;
            return Some(Due::Idle);
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            self.deadline = None;
            return Some(if state == State::Starting { Due::NotReady } else { Due::NotStopped });
        }
        None
    }
}

/// What is said of a guest that is not ready in time.
pub(crate) fn not_ready() -> String {
    format!("the guest was not ready within {} s", UNTIL_READY.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_never_ready_is_ended_also_while_somebody_waits() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.note(State::Starting, 1, 0, start);
        assert_eq!(clock.next(), Some(start + UNTIL_READY));
        assert_eq!(clock.due(State::Starting, start + UNTIL_READY - Duration::from_secs(1)), None);
        assert_eq!(clock.due(State::Starting, start + UNTIL_READY), Some(Due::NotReady));
        assert_eq!(clock.due(State::Starting, start + UNTIL_READY), None, "said once");
    }

    #[test]
    fn a_start_that_nobody_waits_for_any_more_is_idle() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.note(State::Starting, 1, 0, start);
        let left = start + Duration::from_secs(5);
        clock.note(State::Starting, 0, 0, left);
        assert_eq!(clock.due(State::Starting, left + IDLE - Duration::from_secs(1)), None);
        assert_eq!(clock.due(State::Starting, left + IDLE), Some(Due::Idle));
        // Nobody ever came.
        assert_eq!(Clock::new(start).due(State::Starting, start + IDLE), Some(Due::Idle));
    }

    #[test]
    fn a_ready_guest_has_no_deadline_and_idles_without_sessions() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.ready();
        clock.note(State::Running, 3, 1, start);
        assert_eq!(clock.next(), None);
        clock.note(State::Running, 3, 0, start);
        clock.note(State::Running, 2, 0, start + IDLE / 2);
        assert_eq!(clock.due(State::Running, start + IDLE), Some(Due::Idle));
        clock.stopping(start);
        clock.note(State::Stopping, 0, 0, start);
        assert_eq!(clock.due(State::Stopping, start + SHUTDOWN_HARD), Some(Due::NotStopped));
    }
}
