//! The guest's state as the host sees it, and everyone who wants to hear when it changes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::messages::{Docker, Phase, Status};

/// The one status, with the number of its change.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<(u64, Status)>,
    changed: Condvar,
}

impl Board {
    pub(crate) fn new() -> Self {
        let board = Self::default();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        board.change(|status| {
            status.kernel = release;
            status.set_phase(Phase::Booting);
        });
        board
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Status)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status and tells everyone, if it did change.
    pub(crate) fn change(&self, edit: impl FnOnce(&mut Status)) {
        let mut state = self.lock();
        let before = state.1.clone();
        edit(&mut state.1);
        if state.1 != before {
            state.0 += 1;
            self.changed.notify_all();
        }
    }

    pub(crate) fn set_docker(&self, docker: Docker) {
        self.change(|status| status.set_docker(docker));
    }

    /// Wakes everyone who waits, so that they look at their own reasons to stop.
    pub(crate) fn wake(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }

    pub(crate) fn get(&self) -> Status {
        self.lock().1.clone()
    }

    /// Waits for a status that is newer than `seen`; `None` when `stop` says so.
    pub(crate) fn wait_newer(&self, seen: u64, stop: impl Fn() -> bool) -> Option<(u64, Status)> {
        let mut state = self.lock();
        loop {
            if stop() {
                return None;
            }
            if state.0 > seen {
                return Some(state.clone());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the host has told the guest all that it needs, at most `limit`.
    pub(crate) fn wait_set_up(&self, limit: Duration) {
        let pending = |state: &mut (u64, Status)| !state.1.set_up;
        drop(self.changed.wait_timeout_while(self.lock(), limit, pending));
    }

    /// Waits until booting is over, and returns how.
    pub(crate) fn wait_booted(&self) -> Status {
        let mut state = self.lock();
        while state.1.phase() == Phase::Booting {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.1.clone()
    }
}
