//! One instruction at a time, and what runs many of them.

use crate::cpu::Cpu;
use crate::env::Env;
use crate::exception::Exception;

/// What [`step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One instruction was completed, or its exception was delivered: go on at `cpu.rip`. Mode bits (CPL, AC, CR3…) may
    /// have changed; look at them and drain `cpu.tlb_events`. `cpu.kick` is set if an interrupt should be looked at.
    Done,
    /// HLT: `cpu.halted` is set and RIP is past it.
    Halt,
    /// Triple fault.
    Shutdown,
}

/// Why an executor came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// `cpu.kick` was seen (and left set).
    Kicked,
    /// The guest executed HLT.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The engine found a defect of its own and cannot go on.
    Crashed(String),
}

/// Runs guest code on one vCPU. Lives on the vCPU's thread.
pub trait Executor {
    /// Runs until `cpu.kick` is not zero, HLT, or shutdown. All of `cpu` is canonical when it returns. The caller clears
    /// `kick`, delivers interrupts and handles the shadow of STI/MOV SS (by one [`step`]) before it calls again.
    fn run(&mut self, cpu: &mut Cpu, env: &Env<'_>) -> Exit;

    /// What this executor counted, for `viv diagnose`.
    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// The caller changed `cpu` from outside (state set, dirty log switched): drop all cached translations of addresses.
    fn invalidate(&mut self, cpu: &mut Cpu);
}

/// The interpreter's caches.
#[derive(Default)]
pub struct InterpState {}

/// Executes exactly one instruction (a bounded piece of a REP string operation), delivering its exceptions.
pub fn step(_cpu: &mut Cpu, _env: &Env<'_>) -> Step {
    Step::Shutdown
}

/// Delivers an exception through the IDT, with double and triple faults.
pub fn deliver(_cpu: &mut Cpu, _env: &Env<'_>, _exception: Exception) -> Step {
    Step::Shutdown
}
