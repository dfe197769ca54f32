//! One instruction at a time, and what runs many of them.

use std::sync::atomic::Ordering;

use crate::cpu::{Cpu, flag};
use crate::decode::{self, Cache};
use crate::env::Env;
use crate::exception::deliver;
use crate::mem::Tlb;
use crate::ops::sys;
use crate::overlay::Overlay;
use crate::stub::Stubs;

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
pub struct InterpState {
    pub(crate) tlb: Tlb,
    /// Takes the stores of a dry run; see [`crate::DryRun`].
    pub(crate) overlay: Option<Box<Overlay>>,
    pub(crate) cache: Cache,
    pub(crate) stubs: Stubs,
    /// Address of the next instruction while one is executed.
    pub(crate) next: u64,
    pub(crate) x87_ip: u64,
}

impl Default for InterpState {
    fn default() -> Self {
        Self { tlb: Tlb::new(), overlay: None, cache: Cache::new(), stubs: Stubs::new(), next: 0, x87_ip: 0 }
    }
}

/// Executes exactly one instruction (a bounded piece of a REP string operation), delivering its exceptions.
#[inline]
pub fn step(cpu: &mut Cpu, env: &Env<'_>) -> Step {
    let insn = match decode::fetch(cpu, env) {
        Ok(insn) => insn,
        Err(exception) => return deliver(cpu, env, exception),
    };
    // SAFETY: the cache slot is only replaced by `fetch`, which no handler calls.
    let insn = unsafe { &*insn };
    let trap = cpu.rflags & flag::TF != 0;
    let level = cpu.cpl;
    let shadow = cpu.shadow;
    cpu.interp.next = cpu.rip.wrapping_add(u64::from(insn.len));
    if let Err(exception) = (insn.run)(cpu, env, insn) {
        return deliver(cpu, env, exception);
    }
    cpu.rip = cpu.interp.next;
    if shadow != 0 {
        cpu.shadow = 0;
    }
    if trap && cpu.cpl >= level && cpu.shadow == 0 {
        // SYSCALL and INT clear TF; what they enter at a lower CPL is not stepped.
        let exception = sys::single_step(cpu);
        return deliver(cpu, env, exception);
    }
    if cpu.halted != 0 { Step::Halt } else { Step::Done }
}

/// Runs everything through [`step`].
#[derive(Debug, Default)]
pub struct Interpreter {
    steps: u64,
}

impl Executor for Interpreter {
    fn run(&mut self, cpu: &mut Cpu, env: &Env<'_>) -> Exit {
        loop {
            if cpu.kick.load(Ordering::Relaxed) != 0 {
                return Exit::Kicked;
            }
            self.steps += 1;
            match step(cpu, env) {
                Step::Done => {}
                Step::Halt => return Exit::Halt,
                Step::Shutdown => return Exit::Shutdown,
            }
        }
    }

    fn counters(&self) -> Vec<(String, u64)> {
        vec![("interpreted instructions".to_owned(), self.steps)]
    }

    fn invalidate(&mut self, cpu: &mut Cpu) {
        flush(cpu);
    }
}

/// Drops the interpreter's cached translations of addresses; for whoever changed the state from outside.
pub fn flush(cpu: &mut Cpu) {
    cpu.interp.tlb.clear();
}
