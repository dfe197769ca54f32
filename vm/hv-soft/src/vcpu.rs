//! A vCPU on its thread: interrupts, HLT, stop requests, and runs of the executor between them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hv::state::{StateElement, StateError, StateId};
use hv::{CpuIo, CreateVmError, Halt, NoDevices, RunError, StopToken, Vcpu, VcpuBinder};
use soft_cpu::apic::{self, Apic};
use soft_cpu::cpu::flag;
use soft_cpu::{Cpu, Env, Exception, Executor, Exit, Poll, Step, deliver, exec, poll_interrupts, step};

use crate::state;
use crate::vm::{Slot, SoftVm, lock};

pub(crate) struct Binder {
    vm: Arc<SoftVm>,
    index: u32,
}

impl Binder {
    pub(crate) fn new(vm: Arc<SoftVm>, index: u32) -> Self {
        Self { vm, index }
    }
}

impl VcpuBinder for Binder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, CreateVmError> {
        let mut cpu = Cpu::new(self.index);
        let slot = &self.vm.slots[self.index as usize];
        cpu.apic = Apic::with_port(slot.port.clone());
        cpu.tsc_offset = self.vm.platform.clock.tsc_offset();
        if let Some(memory) = lock(&slot.stubs).take() {
            cpu.set_stub_memory(memory);
        }
        self.vm
            .platform
            .start()
            .map_err(|source| CreateVmError::Host { what: "a thread for the guest's timers", source })?;
        let thread = std::thread::current();
        let _ = slot.thread.set(thread.id());
        // SAFETY: the Cpu is never moved out of its box, and `Drop` hands the box to the VM, which outlives the port's
        // users (they reach the port through the VM).
        unsafe { slot.port.attach(&raw mut cpu.kick, thread) };
        let executor = self.vm.executor()?;
        Ok(Box::new(SoftVcpu {
            cpu: Some(cpu),
            executor: Some(executor),
            index: self.index as usize,
            waiting: self.index != 0,
            exception: None,
            vm: self.vm,
        }))
    }
}

pub(crate) struct SoftVcpu {
    executor: Option<Box<dyn Executor>>,
    cpu: Option<Box<Cpu>>,
    index: usize,
    /// An AP that was not started.
    waiting: bool,
    /// An exception that a restored state left to be delivered.
    exception: Option<Exception>,
    vm: Arc<SoftVm>,
}

impl Drop for SoftVcpu {
    fn drop(&mut self) {
        let counters = self.executor.as_ref().map(|executor| executor.counters()).unwrap_or_default();
        self.executor = None;
        if let Some(cpu) = self.cpu.take() {
            self.vm.retire(cpu, counters);
        }
    }
}

/// Ends the claim that guest code runs, whatever way `run` is left.
struct Running<'a>(&'a Slot);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, Ordering::SeqCst);
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, io: &dyn CpuIo, stop: &StopToken) -> Result<Halt, RunError> {
        let vm = self.vm.clone();
        let slot = &vm.slots[self.index];
        let env = vm.env(io);
        let (Some(cpu), Some(executor)) = (self.cpu.as_deref_mut(), self.executor.as_deref_mut()) else {
            return Err(RunError::Invalid("The vCPU is gone".to_owned()));
        };
        slot.running.store(true, Ordering::SeqCst);
        let _running = Running(slot);
        loop {
            // Cleared before everything that a kick may be about is looked at.
            cpu.kick.store(0, Ordering::SeqCst);
            if stop.is_requested() {
                return Ok(Halt::Stopped);
            }
            if slot.invalidate.swap(false, Ordering::SeqCst) {
                exec::flush(cpu);
                executor.invalidate(cpu);
            }
            if self.waiting {
                let entry = lock(&slot.entry).take();
                match entry {
                    Some(entry) => {
                        // The rest of its state is what the machine set (ACPI 6.4 §5.2.12.19: 64-bit mode over an
                        // identity map).
                        cpu.rip = entry;
                        cpu.rflags &= !flag::IF;
                        cpu.halted = 0;
                        self.waiting = false;
                    }
                    None => {
                        std::thread::park();
                        continue;
                    }
                }
            }
            if let Some(halt) = turn(cpu, &env, executor, &mut self.exception) {
                return Ok(halt);
            }
        }
    }

    fn get_state(&mut self, id: StateId) -> Result<StateElement, StateError> {
        let vm = self.vm.clone();
        let env = vm.env(&NoDevices);
        let Some(cpu) = self.cpu.as_deref_mut() else { return Err(StateError::Unknown(id)) };
        state::get(cpu, &env, id, self.waiting, self.exception)
    }

    fn set_state(&mut self, element: &StateElement) -> Result<(), StateError> {
        let vm = self.vm.clone();
        let env = vm.env(&NoDevices);
        let (Some(cpu), Some(executor)) = (self.cpu.as_deref_mut(), self.executor.as_deref_mut()) else {
            return Err(StateError::Unknown(element.id()));
        };
        state::set(cpu, &env, element, &mut self.waiting, &mut self.exception)?;
        exec::flush(cpu);
        executor.invalidate(cpu);
        Ok(())
    }

    fn state_ids(&self) -> &'static [StateId] {
        state::ORDER
    }
}

/// Delivers what is due, then runs guest code or waits; `Some` ends the run.
fn turn(
    cpu: &mut Cpu,
    env: &Env<'_>,
    executor: &mut dyn Executor,
    exception: &mut Option<Exception>,
) -> Option<Halt> {
    if let Some(exception) = exception.take()
        && deliver(cpu, env, exception) == Step::Shutdown
    {
        return Some(Halt::TripleFault);
    }
    match poll_interrupts(cpu, env) {
        Poll::Idle | Poll::Delivered => {}
        Poll::Shutdown => return Some(Halt::TripleFault),
        Poll::Shadow => return (step(cpu, env) == Step::Shutdown).then_some(Halt::TripleFault),
    }
    if cpu.halted != 0 {
        wait(cpu, env);
        return None;
    }
    match executor.run(cpu, env) {
        Exit::Kicked | Exit::Halt => None,
        Exit::Shutdown => Some(Halt::TripleFault),
        Exit::Crashed(reason) => Some(Halt::Crashed(reason)),
    }
}

/// Sleeps until the APIC timer is due or another thread kicks this vCPU (whose `unpark` is remembered if it came first).
fn wait(cpu: &Cpu, env: &Env<'_>) {
    match apic::sleep_ticks(cpu, env) {
        None => std::thread::park(),
        Some(0) => {}
        Some(ticks) => {
            apic::disarm_thread(cpu);
            std::thread::park_timeout(env.platform.clock.duration(ticks));
            apic::rearm_thread(cpu, env);
        }
    }
}
