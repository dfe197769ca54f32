//! What the threads of one VM share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use guest_memory::GuestRam;
use hv::{CreateVmError, Msi, RunError, Vm};
use soft_cpu::apic::Message;
use soft_cpu::clock::Clock;
use soft_cpu::env::page_flag;
use soft_cpu::{ApicPort, CodeWatch, Cpu, Env, Executor, Interpreter, NoWatch, Platform, RamMap, StubMemory};
use soft_jit::{Jit, JitVcpu};

use crate::engine::ExecutorKind;

/// A `Cpu` whose vCPU is gone but whose kick byte other threads may still touch.
struct Retired(#[expect(dead_code, reason = "kept for its address")] Box<Cpu>);

// SAFETY: nothing is done with it but to free it after all other threads are done with the VM.
unsafe impl Send for Retired {}

/// How much slower a guest's clock is with [`soft_jit::Tuning::slow_clock`].
const SLOW_CLOCK: u64 = 32;

/// The shared part of one vCPU.
pub(crate) struct Slot {
    pub(crate) port: Arc<ApicPort>,
    /// Where a waiting AP is to start.
    pub(crate) entry: Mutex<Option<u64>>,
    /// Cached translations must be dropped before guest code runs again.
    pub(crate) invalidate: AtomicBool,
    pub(crate) running: AtomicBool,
    pub(crate) thread: OnceLock<ThreadId>,
    /// Made here because no executable mapping may be made once the process is confined.
    pub(crate) stubs: Mutex<Option<StubMemory>>,
}

pub(crate) struct SoftVm {
    pub(crate) ram: Arc<RamMap>,
    pub(crate) platform: Platform,
    pub(crate) slots: Vec<Slot>,
    jit: Option<Arc<Jit>>,
    counters: Mutex<BTreeMap<String, u64>>,
    retired: Mutex<Vec<Retired>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SoftVm {
    pub(crate) fn new(memory: &GuestRam, vcpus: u32, executor: ExecutorKind) -> Result<Self, CreateVmError> {
        let ram = Arc::new(RamMap::new(memory));
        let ports: Vec<_> = (0..vcpus).map(|id| Arc::new(ApicPort::new(id))).collect();
        let slot = |port: &Arc<ApicPort>| {
            Ok(Slot {
                port: port.clone(),
                entry: Mutex::new(None),
                invalidate: AtomicBool::new(false),
                running: AtomicBool::new(false),
                thread: OnceLock::new(),
                stubs: Mutex::new(Some(
                    StubMemory::new()
                        .map_err(|source| CreateVmError::Host { what: "executable memory", source })?,
                )),
            })
        };
        let slots = ports.iter().map(slot).collect::<Result<_, CreateVmError>>()?;
        let slow = matches!(executor, ExecutorKind::Translator(tuning) if tuning.slow_clock);
        let platform = Platform::with_clock(ports, Clock::slowed(if slow { SLOW_CLOCK } else { 1 }));
        let jit = match executor {
            ExecutorKind::Interpreter => None,
            ExecutorKind::Translator(tuning) => {
                let jit = Jit::new(ram.clone(), tuning).map_err(|error| CreateVmError::Host {
                    what: "memory for translated code",
                    source: std::io::Error::other(error),
                })?;
                memory.observe(&(jit.clone() as Arc<dyn guest_memory::WriteObserver>));
                Some(jit)
            }
        };
        let (counters, retired) = Default::default();
        Ok(Self { ram, platform, slots, jit, counters, retired })
    }

    pub(crate) fn executor(&self) -> Result<Box<dyn Executor>, CreateVmError> {
        Ok(match &self.jit {
            None => Box::new(Interpreter::default()),
            Some(jit) => Box::new(
                JitVcpu::new(jit)
                    .map_err(|source| CreateVmError::Host { what: "a stack for translated code", source })?,
            ),
        })
    }

    pub(crate) fn env<'a>(&'a self, io: &'a dyn hv::CpuIo) -> Env<'a> {
        let watch: &dyn CodeWatch = match &self.jit {
            None => &NoWatch,
            Some(jit) => &**jit,
        };
        Env { ram: &self.ram, io, watch, platform: &self.platform }
    }

    /// Keeps a vCPU's memory until the VM is gone.
    pub(crate) fn retire(&self, cpu: Box<Cpu>, counters: Vec<(String, u64)>) {
        let mut sums = lock(&self.counters);
        for (name, count) in counters {
            *sums.entry(name).or_default() += count;
        }
        drop(sums);
        lock(&self.retired).push(Retired(cpu));
    }

    fn slot(&self, vcpu: u32) -> Result<&Slot, RunError> {
        self.slots.get(vcpu as usize).ok_or_else(|| RunError::Invalid(format!("There is no vCPU {vcpu}")))
    }

    /// Makes every vCPU drop its cached translations, and waits until none runs guest code with old ones.
    fn invalidate_all(&self) {
        let own = std::thread::current().id();
        for slot in &self.slots {
            slot.invalidate.store(true, Ordering::SeqCst);
            slot.port.kick();
        }
        for slot in self.slots.iter().filter(|slot| slot.thread.get() != Some(&own)) {
            while slot.running.load(Ordering::SeqCst) && slot.invalidate.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
        }
    }
}

impl Vm for SoftVm {
    fn kick(&self, vcpu: u32) {
        if let Ok(slot) = self.slot(vcpu) {
            slot.port.kick();
        }
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), RunError> {
        if msi.address >> 20 != 0xfee {
            return Err(RunError::Invalid(format!("The MSI address {:#x} is not one", msi.address)));
        }
        self.platform.route(Message::from_msi(msi.address, msi.data));
        Ok(())
    }

    fn wake_ap(&self, apic_id: u32, entry: u64) -> Result<(), RunError> {
        let slot = self.slot(apic_id)?;
        *lock(&slot.entry) = Some(entry);
        slot.port.kick();
        Ok(())
    }

    fn log_dirty(&self, on: bool) -> Result<(), RunError> {
        for (gpa, _) in self.ram.ranges() {
            if let Some(log) = self.ram.ram().dirty_log(gpa) {
                log.set_enabled(on);
            }
        }
        self.ram.flag_all(page_flag::LOG, on);
        if on {
            self.invalidate_all();
        }
        Ok(())
    }

    fn take_dirty(&self, gpa: u64) -> Result<Vec<u64>, RunError> {
        let log = self.ram.ram().dirty_log(gpa);
        log.map(|log| log.take())
            .ok_or_else(|| RunError::Invalid(format!("No memory range starts at {gpa:#x}")))
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = self.platform.counts();
        if let Some(jit) = &self.jit {
            counters.extend(jit.counters());
        }
        counters.extend(lock(&self.counters).iter().map(|(name, count)| (name.clone(), *count)));
        counters
    }
}
