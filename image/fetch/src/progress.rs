//! Telling how far it is, without knowing who listens.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What the numbers of a step count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes: show them as MB and the rate as MB/s.
    Bytes,
    /// Things: "143/200".
    Items,
    /// Shares of the work, weighed by how long they are known to take: "61 %".
    Shares,
}

/// Where a step stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Update<'a> {
    /// The step's name, the same for all its updates: "Debian packages".
    pub step: &'a str,
    /// What is being done just now: "configuring docker.io"; may be empty.
    pub detail: &'a str,
    /// How many units are done.
    pub done: u64,
    /// How many there are; 0 when nobody knows.
    pub total: u64,
    /// What is counted.
    pub unit: Unit,
    /// Units per second over the last seconds, once it can be told.
    pub rate: Option<f64>,
    /// The time that is left, once it can be told.
    pub left: Option<Duration>,
}

/// Somebody who wants to know. Called from several threads, at most some ten times a second and step.
pub trait Progress: Send + Sync {
    /// A step stands here now.
    fn update(&self, update: &Update<'_>);
    /// A step is complete.
    fn finished(&self, step: &str);
    /// One line that matters to the user, whatever the progress: a wait, a replaced version.
    fn note(&self, line: &str);
}

/// Nobody listens.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn update(&self, _: &Update<'_>) {}
    fn finished(&self, _: &str) {}
    fn note(&self, _: &str) {}
}

/// Counts a step's units, works out rate and time left, and limits how often that is said.
pub struct Meter<'a> {
    progress: &'a dyn Progress,
    step: &'a str,
    unit: Unit,
    total: u64,
    state: Mutex<State>,
}

struct State {
    done: u64,
    /// Units that were there already and say nothing about the rate.
    free: u64,
    started: Instant,
    said: Option<Instant>,
    /// Start of the window the rate is taken over, and what was done then.
    window: (Instant, u64),
    rate: Option<f64>,
}

const SAY_EVERY: Duration = Duration::from_millis(100);
const WINDOW: Duration = Duration::from_millis(1500);
/// Before that, the pace of a step says nothing of its end.
const LEFT_AFTER: Duration = Duration::from_secs(2);

impl<'a> Meter<'a> {
    /// Starts a step of `total` units (0: unknown).
    #[must_use]
    pub fn new(progress: &'a dyn Progress, step: &'a str, unit: Unit, total: u64) -> Self {
        let now = Instant::now();
        let state = State { done: 0, free: 0, started: now, said: None, window: (now, 0), rate: None };
        Self { progress, step, unit, total, state: Mutex::new(state) }
    }

    /// Counts units that took no time now, such as files that are in the cache already.
    pub fn skip(&self, units: u64) {
        let mut state = self.lock();
        state.done = state.done.saturating_add(units);
        state.free = state.free.saturating_add(units);
        // Looking at them took a while that says nothing about the network.
        state.started = Instant::now();
        state.window = (state.started, state.done);
    }

    /// Takes units back: a download that has to start again.
    pub fn take_back(&self, units: u64) {
        let mut state = self.lock();
        state.done = state.done.saturating_sub(units);
        state.free = state.free.min(state.done);
        state.window = (Instant::now(), state.done);
    }

    /// Counts `units` more and tells, unless it was told a moment ago.
    pub fn add(&self, units: u64, detail: &str) {
        let mut state = self.lock();
        state.done = state.done.saturating_add(units);
        self.say(&mut state, detail, false);
    }

    /// Sets the count itself.
    pub fn set(&self, done: u64, detail: &str) {
        let mut state = self.lock();
        state.done = done;
        self.say(&mut state, detail, true);
    }

    /// Ends the step.
    pub fn finish(&self) {
        self.say(&mut self.lock(), "", true);
        self.progress.finished(self.step);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn say(&self, state: &mut State, detail: &str, always: bool) {
        let now = Instant::now();
        if !always && state.said.is_some_and(|said| now.duration_since(said) < SAY_EVERY) {
            return;
        }
        state.said = Some(now);
        let span = now.duration_since(state.window.0);
        if span >= WINDOW {
            let fresh = state.done.saturating_sub(state.window.1) as f64 / span.as_secs_f64();
            state.rate = Some(state.rate.map_or(fresh, |old| old.mul_add(0.5, fresh * 0.5)));
            state.window = (now, state.done);
        }
        let remaining = self.total.saturating_sub(state.done);
        // Right at the start the mean is all there is.
        let mean = || {
            let secs = now.duration_since(state.started).as_secs_f64();
            (secs > 0.7).then(|| state.done.saturating_sub(state.free) as f64 / secs)
        };
        let rate = state.rate.or_else(mean);
        // Over the whole step: a pause of a moment makes no hours of it, and a burst no seconds.
        let since = now.duration_since(state.started);
        let paced = state.done.saturating_sub(state.free);
        let left = (since >= LEFT_AFTER && paced > 0 && self.total > 0)
            .then(|| since.as_secs_f64() * remaining as f64 / paced as f64)
            .and_then(|left| Duration::try_from_secs_f64(left).ok());
        self.progress.update(&Update {
            step: self.step,
            detail,
            done: state.done,
            total: self.total,
            unit: self.unit,
            rate,
            left,
        });
    }
}
