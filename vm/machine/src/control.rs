//! Who may run: the state that all vCPU threads and the outside share.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hv::{StopToken, Vcpu, Vm};

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A processor shut down after three faults.
    TripleFault,
    /// The engine cannot go on; the sentence says why.
    Crashed(String),
    /// [`crate::MachineHandle::stop`] was called.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Running,
    Paused,
    Ended(Exit),
}

/// Work done on a parked vCPU's thread.
pub(crate) type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

struct State {
    mode: Mode,
    parked: u32,
    jobs: Vec<Option<Job>>,
}

/// A kick can be lost if it comes just before a vCPU enters the guest; so it is repeated at this interval until heeded.
const KICK_AGAIN: Duration = Duration::from_millis(5);

pub(crate) struct Control {
    vm: Arc<dyn Vm>,
    vcpus: u32,
    pub(crate) token: StopToken,
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    pub(crate) fn new(vm: Arc<dyn Vm>, vcpus: u32) -> Self {
        let jobs = (0..vcpus).map(|_| None).collect();
        Self {
            vm,
            vcpus,
            token: StopToken::new(),
            state: Mutex::new(State { mode: Mode::Running, parked: 0, jobs }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupt(&self) {
        self.token.request();
        (0..self.vcpus).for_each(|vcpu| self.vm.kick(vcpu));
    }

    /// Ends the machine; the first reason stays.
    pub(crate) fn end(&self, exit: Exit) {
        let mut state = self.lock();
        if !matches!(state.mode, Mode::Ended(_)) {
            state.mode = Mode::Ended(exit);
        }
        drop(state);
        self.changed.notify_all();
        self.interrupt();
    }

    /// Whether the machine has ended, or is about to.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.lock().mode, Mode::Ended(_))
    }

    /// Keeps vCPUs out of the guest from their first instruction on.
    pub(crate) fn start_paused(&self) {
        self.lock().mode = Mode::Paused;
    }

    /// Pauses and waits until every vCPU is at an instruction boundary; `false` if the machine has ended.
    pub(crate) fn pause(&self) -> bool {
        let mut state = self.lock();
        match state.mode {
            Mode::Ended(_) => return false,
            Mode::Running => state.mode = Mode::Paused,
            Mode::Paused => {}
        }
        loop {
            match state.mode {
                Mode::Paused if state.parked == self.vcpus => return true,
                Mode::Paused => {}
                _ => return false,
            }
            drop(state);
            self.interrupt();
            state =
                self.changed.wait_timeout(self.lock(), KICK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the vCPUs go on after a pause.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        if state.mode == Mode::Paused {
            state.mode = Mode::Running;
            self.token.reset();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Runs `job` on the thread of a paused vCPU; `false` if the machine is not paused.
    pub(crate) fn on_vcpu(&self, vcpu: u32, job: Job) -> bool {
        let mut state = self.lock();
        if state.mode != Mode::Paused || state.parked != self.vcpus {
            return false;
        }
        let Some(slot) = state.jobs.get_mut(vcpu as usize) else { return false };
        *slot = Some(job);
        self.changed.notify_all();
        while state.jobs[vcpu as usize].is_some() && state.mode == Mode::Paused {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// Called by a vCPU's thread outside the guest: does jobs while paused; `false` when the machine has ended.
    pub(crate) fn may_run(&self, id: u32, vcpu: &mut dyn Vcpu) -> bool {
        let mut state = self.lock();
        if state.mode == Mode::Paused {
            state.parked += 1;
            self.changed.notify_all();
            while state.mode == Mode::Paused {
                // Taken out only when done, so that `on_vcpu` can wait for the slot to empty.
                if let Some(job) =
                    state.jobs[id as usize].as_mut().map(|job| std::mem::replace(job, Box::new(|_| {})))
                {
                    drop(state);
                    job(vcpu);
                    state = self.lock();
                    state.jobs[id as usize] = None;
                    self.changed.notify_all();
                } else {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            state.parked -= 1;
        }
        state.mode == Mode::Running
    }

    /// Waits for the end; kicks until `done` says that every vCPU's thread has heeded it.
    pub(crate) fn wait_for_end(&self, done: impl Fn() -> bool) -> Exit {
        let mut state = self.lock();
        loop {
            if let Mode::Ended(exit) = &state.mode {
                let exit = exit.clone();
                drop(state);
                while !done() {
                    self.interrupt();
                    std::thread::sleep(KICK_AGAIN / 5);
                }
                return exit;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
