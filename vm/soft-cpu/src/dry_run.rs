//! What instructions would do, without doing it: the interpreter on a copy of the state and an overlay of memory, with the
//! state after each instruction kept. The translator's lock-step mode compares its code with this.
//!
//! A dry run ends before the first instruction that reaches a device, stores to a page that translated code must not
//! store to, raises an exception, or reads what no manual defines: status flags that are left undefined, or a page-table
//! entry that it used before (whose accessed and dirty bits depend on what is in the TLB). It sets no such bits itself.

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::alu;
use crate::cpu::flag::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::cpu::{Cpu, Segment, XSAVE_BYTES, XsaveArea, sreg};
use crate::decode::{self, Insn};
use crate::env::Env;
use crate::exception::Exception;
use crate::overlay::Overlay;

/// Why a dry run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All instructions were run, or one of them jumped elsewhere.
    Complete,
    /// The next instruction raises an exception.
    Exception(Exception),
    /// The next instruction reaches a device or stores where translated code must not.
    Refused,
    /// The next instruction reads flags, or accessed and dirty bits, that have no defined value.
    Undefined,
}

/// The state before an instruction.
#[derive(Clone, Debug)]
struct State {
    rip: u64,
    gpr: [u64; 16],
    rflags: u64,
    /// fs, gs, and the kernel's gs.
    bases: [u64; 3],
    /// Index into [`DryRun::images`].
    image: usize,
    /// Status flags without a defined value.
    undefined: u64,
}

/// The interpreter's record of a run of instructions.
pub struct DryRun {
    /// `None` while the CPU has it.
    overlay: Option<Box<Overlay>>,
    states: Vec<State>,
    images: Vec<XsaveArea>,
    end: End,
}

/// What is put back after a dry run.
struct Saved {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
    shadow: u8,
    seg: [Segment; 8],
    kernel_gs_base: u64,
    xsave: XsaveArea,
    next: u64,
    x87_ip: u64,
}

impl Saved {
    fn of(cpu: &Cpu) -> Self {
        Self {
            gpr: cpu.gpr,
            rip: cpu.rip,
            rflags: cpu.rflags,
            shadow: cpu.shadow,
            seg: cpu.seg,
            kernel_gs_base: cpu.kernel_gs_base,
            xsave: cpu.xsave.clone(),
            next: cpu.interp.next,
            x87_ip: cpu.interp.x87_ip,
        }
    }

    fn restore(self, cpu: &mut Cpu) {
        cpu.gpr = self.gpr;
        cpu.rip = self.rip;
        cpu.rflags = self.rflags;
        cpu.shadow = self.shadow;
        cpu.seg = self.seg;
        cpu.kernel_gs_base = self.kernel_gs_base;
        cpu.xsave = self.xsave;
        cpu.interp.next = self.next;
        cpu.interp.x87_ip = self.x87_ip;
    }
}

/// Status flags in RFLAGS positions of a set of [`RflagsBits`].
pub fn status_flags(bits: u32) -> u64 {
    let pairs = [
        (RflagsBits::CF, CF),
        (RflagsBits::PF, PF),
        (RflagsBits::AF, AF),
        (RflagsBits::ZF, ZF),
        (RflagsBits::SF, SF),
        (RflagsBits::OF, OF),
    ];
    pairs.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, flag)| flag).sum()
}

impl Default for DryRun {
    fn default() -> Self {
        Self {
            overlay: Some(Box::new(Overlay::new())),
            states: Vec::new(),
            images: Vec::new(),
            end: End::Complete,
        }
    }
}

impl DryRun {
    /// Runs the instructions at `rips` as long as control goes from one to the next, starting with these status flags.
    /// The CPU, whose vector state must be in `cpu.xsave`, is as it was afterwards.
    pub fn run(&mut self, cpu: &mut Cpu, env: &Env<'_>, rips: &[u64], status: u64) {
        let saved = Saved::of(cpu);
        let mut overlay = self.overlay.take().unwrap_or_else(|| Box::new(Overlay::new()));
        overlay.reset();
        std::mem::swap(&mut overlay.data, &mut cpu.interp.tlb.data);
        cpu.interp.overlay = Some(overlay);
        cpu.rflags = (cpu.rflags & !STATUS) | (status & STATUS);
        self.states.clear();
        self.images.clear();
        self.record(cpu, 0);
        self.end = End::Complete;
        for (index, rip) in rips.iter().enumerate() {
            if cpu.rip != *rip {
                break;
            }
            if let Some(overlay) = &mut cpu.interp.overlay {
                overlay.instruction = index as u32;
            }
            let undefined = self.states.last().map_or(0, |state| state.undefined);
            match one(cpu, env, undefined) {
                Ok((undefined, jumped)) => {
                    self.record(cpu, undefined);
                    if jumped {
                        break;
                    }
                }
                Err(end) => {
                    self.end = end;
                    break;
                }
            }
        }
        if let Some(mut overlay) = cpu.interp.overlay.take() {
            std::mem::swap(&mut overlay.data, &mut cpu.interp.tlb.data);
            self.overlay = Some(overlay);
        }
        saved.restore(cpu);
    }

    fn record(&mut self, cpu: &Cpu, undefined: u64) {
        if self.images.last().is_none_or(|image| image.0 != cpu.xsave.0) {
            self.images.push(cpu.xsave.clone());
        }
        self.states.push(State {
            rip: cpu.rip,
            gpr: cpu.gpr,
            rflags: cpu.rflags,
            bases: bases(cpu),
            image: self.images.len() - 1,
            undefined,
        });
    }

    /// Why it ended.
    pub fn end(&self) -> End {
        self.end
    }

    /// Instructions that were run.
    pub fn len(&self) -> usize {
        self.states.len().saturating_sub(1)
    }

    /// Whether not even one instruction was run.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `done` instructions lead back to the first one with all general registers as they were: a wait for a store by
    /// somebody else.
    pub fn waits(&self, done: usize) -> bool {
        let (Some(first), Some(last)) = (self.states.first(), self.states.get(done)) else { return false };
        done > 0 && last.rip == first.rip && last.gpr == first.gpr
    }

    /// How many instructions were run when RIP was first this.
    pub fn done_at(&self, rip: u64) -> Option<usize> {
        self.states.iter().position(|state| state.rip == rip)
    }

    /// The status flags after `done` instructions, and which of them have no defined value.
    pub fn status(&self, done: usize) -> (u64, u64) {
        self.states.get(done).map_or((0, 0), |state| (state.rflags & STATUS, state.undefined))
    }

    /// In what the CPU differs from the dry run after `done` instructions, in words. Of the status flags only `flags` are
    /// compared.
    pub fn register_difference(&self, done: usize, cpu: &Cpu, flags: u64) -> Option<String> {
        let state = self.states.get(done)?;
        let differ = |name: &str, real: u64, dry: u64| {
            (real != dry).then(|| format!("{name} is {real:#x}, by the interpreter {dry:#x}"))
        };
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
            "r14", "r15",
        ];
        let compared = !STATUS | (flags & !state.undefined);
        let gpr = || NAMES.iter().zip(cpu.gpr).zip(state.gpr).find_map(|((name, a), b)| differ(name, a, b));
        let base = || {
            let names = ["the base of fs", "the base of gs", "the kernel's base of gs"];
            names.iter().zip(bases(cpu)).zip(state.bases).find_map(|((name, a), b)| differ(name, a, b))
        };
        differ("rip", cpu.rip, state.rip)
            .or_else(gpr)
            .or_else(|| differ("rflags", cpu.rflags & compared, state.rflags & compared))
            .or_else(base)
            .or_else(|| vector_difference(&cpu.xsave.0, &self.images.get(state.image)?.0))
    }

    /// In what guest memory differs from the dry run after `done` instructions, in words.
    pub fn memory_difference(&mut self, env: &Env<'_>, done: usize) -> Option<String> {
        let byte = self.overlay.as_mut()?.difference(env.ram, done as u32)?;
        Some(format!(
            "the byte at physical {:#x} is {:#04x}, by the interpreter {:#04x}",
            byte.gpa, byte.memory, byte.dry
        ))
    }

    /// Whether memory still holds what the dry run loaded from it.
    pub fn loads_hold(&self, env: &Env<'_>) -> bool {
        self.overlay.as_ref().is_none_or(|overlay| overlay.loads_hold(env.ram))
    }
}

fn bases(cpu: &Cpu) -> [u64; 3] {
    [cpu.seg[sreg::FS].base, cpu.seg[sreg::GS].base, cpu.kernel_gs_base]
}

/// Runs one instruction; returns which status flags are undefined behind it, and whether it is a conditional jump to the
/// next instruction that was taken.
fn one(cpu: &mut Cpu, env: &Env<'_>, undefined: u64) -> Result<(u64, bool), End> {
    let insn = decode::fetch(cpu, env).map_err(End::Exception)?;
    // SAFETY: the cache slot is only replaced by `fetch`, which no handler calls.
    let insn = unsafe { &*insn };
    if status_flags(insn.iced.rflags_read()) & undefined != 0 {
        return Err(End::Undefined);
    }
    let shadow = cpu.shadow;
    let jumped = jumps_to_next(cpu, insn);
    loop {
        cpu.interp.next = cpu.rip.wrapping_add(u64::from(insn.len));
        (insn.run)(cpu, env, insn).map_err(End::Exception)?;
        if cpu.interp.overlay.as_ref().is_none_or(|overlay| overlay.refused()) {
            return Err(End::Refused);
        }
        if cpu.interp.overlay.as_ref().is_some_and(|overlay| overlay.unknown()) {
            return Err(End::Undefined);
        }
        // A repeated string instruction may stop to look at interrupts.
        if cpu.interp.next != cpu.rip || !insn.iced.is_string_instruction() {
            break;
        }
    }
    cpu.rip = cpu.interp.next;
    if shadow != 0 {
        cpu.shadow = 0;
    }
    Ok((undefined_after(&insn.iced, undefined), jumped))
}

/// Whether this is a conditional jump to the next instruction (jump labels of Linux may be) that will be taken.
fn jumps_to_next(cpu: &Cpu, insn: &Insn) -> bool {
    let instr = &insn.iced;
    instr.is_jcc_short_or_near()
        && insn.imm == 0
        && alu::condition((instr.condition_code() as u8).wrapping_sub(1), cpu.rflags)
}

/// Status flags, as RFLAGS has them, without a defined value after an instruction, when those of `before` had none before it.
/// What shifts by a register and the like leave undefined only for some counts is taken as undefined for all, and as defined
/// by none: a count of 0 keeps every flag.
pub fn undefined_after(instr: &Instruction, before: u64) -> u64 {
    use Mnemonic as M;
    let last = instr.op_count().saturating_sub(1);
    let counted = instr.op_kind(last) == OpKind::Register && instr.op_register(last) == Register::CL;
    let shift = matches!(instr.mnemonic(), M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd);
    let rotate = matches!(instr.mnemonic(), M::Rol | M::Ror | M::Rcl | M::Rcr);
    let defined = if counted && (shift || rotate) {
        0
    } else {
        instr.rflags_written() | instr.rflags_cleared() | instr.rflags_set()
    };
    // Of a rotate that goes the whole way round iced says that it changes nothing.
    let once = instr.op_kind(last) == OpKind::Immediate8 && instr.immediate8() == 1;
    let round = if rotate && !once { OF } else { 0 };
    (before & !status_flags(defined)) | status_flags(instr.rflags_undefined()) | round
}

/// The x87 instruction and data pointers and the opcode are left out: translated code shows none.
fn vector_difference(real: &[u8; XSAVE_BYTES], dry: &[u8; XSAVE_BYTES]) -> Option<String> {
    let fields = [("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4)];
    let single = fields.into_iter().map(|(name, at, len)| (name.to_owned(), at, len));
    let stack = (0..8).map(|index| (format!("st{index}"), 32 + 16 * index, 10));
    let low = (0..16).map(|index| (format!("xmm{index}"), 160 + 16 * index, 16));
    let high = (0..16).map(|index| (format!("the upper half of ymm{index}"), 576 + 16 * index, 16));
    if real[..6] == dry[..6]
        && real[24..28] == dry[24..28]
        && real[32..416] == dry[32..416]
        && real[576..] == dry[576..]
    {
        return None;
    }
    single.chain(stack).chain(low).chain(high).find_map(|(name, at, len)| {
        let (a, b) = (&real[at..at + len], &dry[at..at + len]);
        (a != b).then(|| format!("{name} is {a:02x?}, by the interpreter {b:02x?}"))
    })
}

impl std::fmt::Debug for DryRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DryRun").field("states", &self.states).field("end", &self.end).finish_non_exhaustive()
    }
}
