//! When a shim has waited long enough: for the guest to be ready, for a session to come, for a shutdown.

use std::time::{Duration, Instant};

use crate::spec::State;

/// How long a sandbox goes on without sessions.
const IDLE: Duration = Duration::from_secs(30);

/// What a guest gets until sessions can be opened. The slowest engine needs seconds; one that a guest's own doing keeps
/// from coming up would otherwise be waited for, and use its CPUs, for ever.
const UNTIL_READY: Duration = Duration::from_secs(300);

/// Between two looks at a guest that goes down. Looks are counted and not seconds: a host that slept, or a shim that was stopped
/// for a while, has not waited.
const LOOK: Duration = Duration::from_secs(1);

/// A guest that goes down is ended as by a power cut when its disk was still for so many looks in a row. More than the ten seconds
/// that its processes get to end.
const STILL: u32 = 20;

/// And after so many in all: what the guest and the host have cached of a disk may take a slow one minutes to write.
const MOST_LOOKS: u32 = 600;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nobody wants the sandbox any more.
    Idle,
    /// The guest is not ready after all this time.
    NotReady,
    /// A look at the guest that goes down; see [`Clock::looked`].
    Look,
}

/// The clock of one run.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Since when nobody wants the sandbox.
    idle_since: Option<Instant>,
    /// When patience with the start ends, or the next look at the shutdown is due.
    deadline: Option<Instant>,
    /// The looks that are left while the disk is still, and all in all.
    still: u32,
    looks: u32,
}

impl Clock {
    /// Starts with the run. Nobody has connected yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self { idle_since: Some(now), deadline: Some(now + UNTIL_READY), still: 0, looks: 0 }
    }

    /// Sessions can be opened.
    pub(crate) fn ready(&mut self) {
        *self = Self { idle_since: None, deadline: None, still: 0, looks: 0 };
    }

    /// The guest was asked to shut down.
    pub(crate) fn stopping(&mut self, now: Instant) {
        *self = Self { idle_since: None, deadline: Some(now + LOOK), still: STILL, looks: MOST_LOOKS };
    }

    /// Nobody wants to keep the disk: its writing gives no more time.
    pub(crate) fn hurry(&mut self) {
        self.looks = self.looks.min(STILL);
    }

    /// What a look has shown: whether the disk `worked` since the one before. False when it was the last one.
    pub(crate) fn looked(&mut self, worked: bool, now: Instant) -> bool {
        self.still = if worked { STILL } else { self.still.saturating_sub(1) };
        self.looks = self.looks.saturating_sub(1);
        let goes_on = self.still > 0 && self.looks > 0;
        self.deadline = goes_on.then_some(now + LOOK);
        goes_on
    }

    /// Says who is there. A sandbox that starts is wanted by whoever is connected, one that runs by sessions only.
    pub(crate) fn note(&mut self, state: State, clients: usize, sessions: usize, now: Instant) {
        let idle = match state {
            State::Starting => clients == 0,
            State::Running => sessions == 0,
            State::Stopping | State::Checking | State::Stopped | State::Failed => false,
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
            return Some(if state == State::Starting { Due::NotReady } else { Due::Look });
        }
        None
    }
}

/// What is said of a guest that is not ready in time.
pub(crate) fn not_ready() -> String {
    format!("the guest was not ready within {} s", UNTIL_READY.as_secs())
}

/// What is said of a guest that was ended because it did not end.
pub(crate) fn cut_off() -> String {
    "cut off: the guest did not shut down in time".into()
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
    }

    /// How many looks a shutdown gets; `worked` says of each whether the disk did.
    fn looks(clock: &mut Clock, worked: impl Fn(u32) -> bool) -> u32 {
        let start = Instant::now();
        clock.stopping(start);
        clock.note(State::Stopping, 0, 0, start);
        let mut looks = 0;
        while let Some(at) = clock.next() {
            assert_eq!(clock.due(State::Stopping, at - Duration::from_millis(1)), None);
            assert_eq!(clock.due(State::Stopping, at), Some(Due::Look));
            looks += 1;
            let goes_on = clock.looked(worked(looks), at);
            assert_eq!(goes_on, clock.next().is_some());
        }
        looks
    }

    #[test]
    fn a_shutdown_gets_more_time_while_the_disk_works_and_not_for_ever() {
        let mut clock = Clock::new(Instant::now());
        assert_eq!(looks(&mut clock, |_| false), STILL);
        assert_eq!(looks(&mut clock, |look| look <= 100), 100 + STILL);
        assert_eq!(looks(&mut clock, |look| look % (STILL - 1) == 0), MOST_LOOKS);
        assert_eq!(looks(&mut clock, |_| true), MOST_LOOKS);
    }

    #[test]
    fn a_shim_that_was_stopped_for_an_hour_has_looked_once() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        clock.stopping(start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(clock.due(State::Stopping, late), Some(Due::Look));
        assert!(clock.looked(false, late));
        assert_eq!(clock.next(), Some(late + LOOK));
        // For a disk that is to be deleted its writing is not waited for.
        clock.hurry();
        assert!((1..STILL).all(|_| clock.looked(true, late)));
        assert!(!clock.looked(true, late));
    }
}
