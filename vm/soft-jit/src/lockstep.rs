//! Lock-step mode: before a block is entered the interpreter runs its instructions dry; where the block leaves, registers,
//! flags, vector state and the bytes it stored must be what the interpreter says. A difference is a defect of one of the
//! two and ends the VM.
//!
//! Status flags that a look-ahead takes for dead hold rubbish in translated code. With liveness on, they are judged by
//! their effect: the interpreter goes on with the true flags from block to block, and what reads a wrong one makes a
//! register, a jump or a stored byte differ. With `no-liveness` they are compared at each exit.
//!
//! One vCPU runs at a time. What a device, or the delivery of an interrupt to another vCPU, did meanwhile may explain a difference:
//! then the comparison is inconclusive.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use soft_cpu::cpu::flag::STATUS;
use soft_cpu::{Cpu, DryRun, End, Env, status_flags};

use crate::block::Vectors;
use crate::decode::{self, classify};
use crate::shared::BlockId;

/// What the vCPUs of a VM share in lock-step mode: a baton, and what devices do.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// The next ticket, and the one that has the baton.
    next: AtomicU64,
    serving: AtomicU64,
    sleepers: Mutex<()>,
    passed: Condvar,
    /// Stores by devices.
    pub(crate) device_stores: AtomicU64,
}

/// Blocks and interpreted instructions that a vCPU runs before it passes the baton on.
const QUANTUM: u32 = 2000;

/// How often a vCPU looks whether it has the baton before it sleeps, and how often of these in a row: two that wait for
/// each other's stores pass it on all the time, and a sleeper waits long on a busy host.
const LOOKS: u32 = 3000;
const QUICK_LOOKS: u32 = 500;

impl Turns {
    fn take(&self) {
        let mine = self.next.fetch_add(1, Ordering::SeqCst);
        for look in 0..LOOKS {
            if self.serving.load(Ordering::SeqCst) == mine {
                return;
            }
            if look < QUICK_LOOKS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        let mut guard = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        while self.serving.load(Ordering::SeqCst) != mine {
            guard = self.passed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pass(&self) {
        self.serving.fetch_add(1, Ordering::SeqCst);
        // Whoever has looked in vain sleeps by now.
        drop(self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        self.passed.notify_all();
    }
}

/// Status flags as they would be without the rubbish of dead ones.
#[derive(Clone, Copy, Debug)]
struct Truth {
    rip: u64,
    status: u64,
}

/// Where a block left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// By a jump: everything before was done.
    Jump,
    /// Before the instruction at RIP, which is for the interpreter.
    Step(Vectors),
}

/// The block that was entered.
#[derive(Debug)]
struct Entered {
    rip: u64,
    /// [`Turns::device_stores`] when the interpreter began.
    device_stores: u64,
}

/// A defect was found.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) text: String,
    /// Where the block starts.
    pub(crate) rip: u64,
}

/// The lock-step state of one vCPU.
#[derive(Debug, Default)]
pub(crate) struct LockStep {
    dry: DryRun,
    id: BlockId,
    rips: Vec<u64>,
    truth: Option<Truth>,
    entered: Option<Entered>,
    blocks: u64,
    instructions: u64,
    inconclusive: u64,
    undefined: u64,
    /// Whether this vCPU has the baton, and what it may still run.
    has_turn: bool,
    left: u32,
}

impl LockStep {
    /// The vCPU is about to run something: waits for the baton if it does not have it, or has had it for long.
    pub(crate) fn take_turn(&mut self, turns: &Turns) {
        if self.has_turn && self.left > 0 {
            self.left -= 1;
            return;
        }
        self.end_turn(turns);
        turns.take();
        (self.has_turn, self.left) = (true, QUANTUM);
    }

    /// The vCPU runs nothing for now.
    pub(crate) fn end_turn(&mut self, turns: &Turns) {
        if std::mem::take(&mut self.has_turn) {
            turns.pass();
        }
    }

    /// The block `id` is next, whose instructions are at these offsets of their page.
    pub(crate) fn choose(&mut self, id: BlockId, offsets: impl Iterator<Item = u16>) {
        self.id = id;
        self.rips.clear();
        self.rips.extend(offsets.map(u64::from));
    }

    /// The interpreter runs the block that was chosen.
    pub(crate) fn rehearse(&mut self, cpu: &mut Cpu, env: &Env<'_>, turns: &Turns) {
        let page = cpu.rip & !0xfff;
        self.rips.iter_mut().for_each(|rip| *rip = rip.wrapping_add(page));
        let status = match self.truth {
            Some(truth) if truth.rip == cpu.rip => truth.status,
            _ => cpu.rflags,
        };
        self.entered =
            Some(Entered { rip: cpu.rip, device_stores: turns.device_stores.load(Ordering::SeqCst) });
        self.dry.run(cpu, env, &self.rips, status);
    }

    /// Compares the CPU, which has just left the block, with what the interpreter said. `exact_flags` = all status flags
    /// are kept by translated code; `in_use` says whether the block still is.
    pub(crate) fn compare(
        &mut self,
        cpu: &Cpu,
        env: &Env<'_>,
        turns: &Turns,
        left: Left,
        exact_flags: bool,
        in_use: impl FnOnce(BlockId) -> bool,
    ) -> Result<(), Difference> {
        let Some(entered) = self.entered.take() else { return Ok(()) };
        let flags = if exact_flags { STATUS } else { 0 };
        let done = match left {
            Left::Jump => Some(self.dry.len()),
            Left::Step(_) => self.dry.done_at(cpu.rip),
        };
        let difference = match (left, done, self.dry.end()) {
            // What comes after an instruction that reads flags or table entries without a defined value is not known.
            (Left::Jump, _, End::Undefined) | (Left::Step(_), None, End::Undefined) => {
                self.truth = None;
                self.undefined += 1;
                return Ok(());
            }
            (Left::Jump, _, End::Exception(exception)) => Some(format!(
                "it went on to {:#x} although instruction {} raises {exception:?}",
                cpu.rip,
                self.dry.len() + 1
            )),
            (Left::Jump, _, End::Refused) => Some(format!(
                "it went on to {:#x} although instruction {} reaches a device, or a page with code",
                cpu.rip,
                self.dry.len() + 1
            )),
            (_, None, _) => Some(format!("it left for {:#x}, where the interpreter does not come", cpu.rip)),
            (_, Some(done), _) => self
                .dry
                .register_difference(done, cpu, flags)
                .or_else(|| self.dry.memory_difference(env, done))
                .map(|what| format!("after {done} instructions {what}")),
        };
        let Some(what) = difference else {
            let done = done.unwrap_or_default();
            self.blocks += 1;
            self.instructions += done as u64;
            if self.dry.waits(done) {
                self.left = 0;
            }
            let (status, undefined) = self.dry.status(done);
            let status = (status & !undefined) | (cpu.rflags & undefined & STATUS);
            self.truth = Some(Truth { rip: cpu.rip, status });
            return Ok(());
        };
        self.truth = None;
        let stored = turns.device_stores.load(Ordering::SeqCst) != entered.device_stores;
        if stored || !in_use(self.id) || !self.dry.loads_hold(env) {
            self.inconclusive += 1;
            return Ok(());
        }
        let text = format!(
            "Lock-step: the translation of the code at {:#x} (CPL {}) is not what the interpreter does: {what}",
            entered.rip, cpu.cpl
        );
        Err(Difference { text, rip: entered.rip })
    }

    /// What was compared.
    pub(crate) fn counters(&self) -> [(String, u64); 4] {
        [
            ("blocks compared in lock-step".to_owned(), self.blocks),
            ("instructions compared in lock-step".to_owned(), self.instructions),
            ("inconclusive comparisons".to_owned(), self.inconclusive),
            ("blocks that use undefined flags".to_owned(), self.undefined),
        ]
    }

    /// Before the interpreter runs `instr`, which is at RIP, for real: the flags it reads must be true.
    pub(crate) fn before_step(&mut self, cpu: &Cpu, instr: Option<&Instruction>) -> Result<(), String> {
        let (Some(truth), Some(instr)) = (self.truth, instr) else {
            self.truth = None;
            return Ok(());
        };
        if truth.rip != cpu.rip {
            self.truth = None;
            return Ok(());
        }
        let wrong = (truth.status ^ cpu.rflags) & status_flags(instr.rflags_read());
        if wrong != 0 {
            return Err(format!(
                "Lock-step: {:?} at {:#x} (CPL {}) reads status flags {wrong:#x} that were taken for dead",
                instr.code(),
                cpu.rip,
                cpu.cpl
            ));
        }
        Ok(())
    }

    /// After it: follows the true flags.
    pub(crate) fn after_step(&mut self, cpu: &Cpu, instr: Option<&Instruction>) {
        let (Some(truth), Some(instr)) = (self.truth.take(), instr) else { return };
        let modified = status_flags(instr.rflags_modified());
        let conditional = classify(*instr).kills != instr.rflags_modified() & decode::STATUS;
        if instr.flow_control() != FlowControl::Next
            || cpu.rip != truth.rip.wrapping_add(instr.len() as u64)
            || conditional
        {
            return;
        }
        let status = (cpu.rflags & modified) | (truth.status & !modified);
        self.truth = Some(Truth { rip: cpu.rip, status: status & STATUS });
    }
}

/// Code in words: bytes and names, up to a number of instructions.
pub(crate) fn describe(bytes: &[u8], ip: u64, limit: usize) -> String {
    let mut decoder = Decoder::with_ip(64, bytes, ip, DecoderOptions::NONE);
    let mut text = String::new();
    for _ in 0..limit {
        if !decoder.can_decode() {
            break;
        }
        let at = decoder.position();
        let instr = decoder.decode();
        let raw = bytes.get(at..decoder.position()).unwrap_or_default();
        let hex: Vec<String> = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("; {:#x}: {} {:?}", instr.ip(), hex.join(" "), instr.code());
    }
    text
}
