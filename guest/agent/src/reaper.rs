//! Reaping: the one place that takes the status of ended processes.
//!
//! PID 1 inherits every orphan, so it must wait for any child; but a wait for any child would also take the status of a
//! process that somebody here waits for. So only the reaper waits: it looks which child has ended without reaping it, then reaps that one and hands
//! the status to whoever registered it. A child is registered under the same lock under which it is started, so it cannot end unseen in between.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys::{self, Ended};

/// The children that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    children: Mutex<HashMap<Pid, Arc<Slot>>>,
    started: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
}

/// A child that was started here.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    slot: Arc<Slot>,
    reaper: Arc<Reaper>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reaper {
    /// Starts a process and registers it.
    pub(crate) fn spawn(self: &Arc<Self>, command: &mut Command) -> io::Result<Child> {
        let mut children = lock(&self.children);
        // The handle is dropped: it neither waits nor kills, and the reaper has the pid.
        let id = command.spawn()?.id();
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        let slot = Arc::new(Slot::default());
        children.insert(pid, Arc::clone(&slot));
        // Still under the lock: nobody has reaped it, so the number is the child's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).inspect_err(|_| {
            // Nobody would have it in hand; it is reaped like any other.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        })?;
        drop(children);
        self.started.notify_all();
        Ok(Child { pid, pidfd, slot, reaper: Arc::clone(self) })
    }

    /// Reaps for ever.
    pub(crate) fn run(&self) -> ! {
        loop {
            match sys::peek_ended_child() {
                Ok(Some(pid)) => self.reap(pid),
                Ok(None) => self.wait_for_start(),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn reap(&self, pid: Pid) {
        let mut children = lock(&self.children);
        let ended = sys::reap(pid);
        let slot = children.remove(&pid);
        drop(children);
        if let (Some(slot), Some(ended)) = (slot, ended) {
            *lock(&slot.ended) = Some(ended);
            slot.changed.notify_all();
        }
    }

    /// There was no child at all: only a start can change that.
    fn wait_for_start(&self) {
        let mut children = lock(&self.children);
        if children.is_empty() {
            let waited = self.started.wait_timeout(children, Duration::from_secs(1));
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        } else if !sys::has_children() {
            // Nothing is started under the lock, so these were reaped by someone else. That cannot happen in PID 1, but must not hang.
            for (_, slot) in children.drain() {
                *lock(&slot.ended) = Some(Ended::Code(125));
                slot.changed.notify_all();
            }
        }
    }
}

impl Child {
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once the process has ended.
    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Waits until it has ended.
    pub(crate) fn wait(&self) -> Ended {
        let mut ended = lock(&self.slot.ended);
        loop {
            if let Some(ended) = *ended {
                return ended;
            }
            ended = self.slot.changed.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits at most this long; `None` when it still runs.
    pub(crate) fn wait_for(&self, limit: Duration) -> Option<Ended> {
        let waiting = lock(&self.slot.ended);
        let (ended, _) = self
            .slot
            .changed
            .wait_timeout_while(waiting, limit, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *ended
    }

    /// Signals the process group that the child leads, unless the child is gone (its number may be someone else's then).
    pub(crate) fn signal_group(&self, signal: i32) -> io::Result<()> {
        self.signal(self.pid, signal)
    }

    /// Signals a group that belongs to the child's session, as long as the child is there.
    pub(crate) fn signal(&self, group: Pid, signal: i32) -> io::Result<()> {
        // Under the lock nothing is reaped, so a registered number is still this child's.
        let children = lock(&self.reaper.children);
        if !children.contains_key(&self.pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sys::signal_group(group, signal)
    }
}
