//! What the vCPUs of one VM share: interrupt routing, CPUID, the clock, the timer thread and counters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::apic::{ApicPort, Message};
use crate::clock::Clock;
use crate::cpuid::CpuidTable;

/// Shared by all vCPUs of a VM.
pub struct Platform {
    /// The APICs, by id.
    pub ports: Vec<Arc<ApicPort>>,
    /// What CPUID answers.
    pub cpuid: CpuidTable,
    /// TSC frequency and kvmclock's origin.
    pub clock: Arc<Clock>,
    timer: Arc<Timer>,
    thread: Mutex<Option<JoinHandle<()>>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

struct Timer {
    ports: Vec<Arc<ApicPort>>,
    clock: Arc<Clock>,
    /// When the thread will look again, by the clock.
    next: AtomicU64,
    quit: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Platform {
    /// The platform over these APICs. Starts no thread; see [`Self::start`].
    pub fn new(ports: Vec<Arc<ApicPort>>) -> Self {
        Self::with_clock(ports, Clock::new())
    }

    /// The same with a given clock.
    pub fn with_clock(ports: Vec<Arc<ApicPort>>, clock: Clock) -> Self {
        let clock = Arc::new(clock);
        let timer = Arc::new(Timer {
            ports: ports.clone(),
            clock: clock.clone(),
            next: AtomicU64::new(u64::MAX),
            quit: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
        });
        Self {
            cpuid: CpuidTable::new(ports.len() as u32, clock.khz()),
            ports,
            clock,
            timer,
            thread: Mutex::new(None),
            counts: Mutex::new(BTreeMap::new()),
        }
    }

    /// Starts the timer thread, if it does not run yet. Called when the first vCPU is bound, after the process was
    /// confined.
    ///
    /// # Errors
    /// The host's, when it gives no thread.
    pub fn start(&self) -> std::io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let timer = self.timer.clone();
            *thread = Some(std::thread::Builder::new().name("soft-timer".into()).spawn(move || timer.run())?);
        }
        Ok(())
    }

    /// Tells the timer thread that a port's deadline moved.
    pub(crate) fn deadline_changed(&self, deadline: u64) {
        if deadline < self.timer.next.load(Ordering::SeqCst) {
            let guard = self.timer.lock.lock().unwrap_or_else(PoisonError::into_inner);
            drop(guard);
            self.timer.changed.notify_one();
        }
    }

    /// Delivers an interrupt message to the APICs it names.
    pub fn route(&self, message: Message) {
        crate::apic::route(&self.ports, message);
    }

    /// Counts a rare event by name (unknown instructions, unknown MSRs…).
    #[cold]
    pub fn count(&self, name: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(name) {
            *count += 1;
        } else if counts.len() < 1000 {
            counts.insert(name.to_owned(), 1);
        }
    }

    /// What was counted.
    pub fn counts(&self) -> Vec<(String, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(name, count)| (name.clone(), *count)).collect()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.timer.quit.store(true, Ordering::SeqCst);
        drop(self.timer.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.timer.changed.notify_one();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Timer {
    fn run(&self) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.quit.load(Ordering::SeqCst) {
            // Any arming from here on finds `next` at its largest and notifies.
            self.next.store(u64::MAX, Ordering::SeqCst);
            let now = self.clock.now();
            let mut next = u64::MAX;
            for port in &self.ports {
                if !port.armed.load(Ordering::SeqCst) {
                    continue;
                }
                let deadline = port.deadline.load(Ordering::SeqCst);
                if deadline <= now {
                    port.armed.store(false, Ordering::SeqCst);
                    port.kick();
                } else {
                    next = next.min(deadline);
                }
            }
            self.next.store(next, Ordering::SeqCst);
            // Look once more: a deadline armed between the scan and the store saw MAX and will notify, but only
            // after it gets the lock that is released by the wait below.
            let wait = if next == u64::MAX {
                Duration::from_secs(3600)
            } else {
                self.clock.duration(next.saturating_sub(self.clock.now()))
            };
            guard = self.changed.wait_timeout(guard, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
