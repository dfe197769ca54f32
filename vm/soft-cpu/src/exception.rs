//! Exceptions as values, and their delivery through the IDT.

use crate::cpu::{Cpu, Segment, flag, reg, sreg};
use crate::env::Env;
use crate::exec::Step;
use crate::mem;
use crate::paging::is_canonical;
use crate::segment;

/// Exception vectors (Intel SDM 3A §6.3.1).
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 floating-point error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// SIMD floating-point error.
    pub const XM: u8 = 19;
}

/// An exception that an instruction raised. RIP is still that of the instruction for faults, already past it for traps
/// (#BP, #OF, #DB after a step).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// See [`vector`].
    pub vector: u8,
    /// The error code that is pushed, for vectors that have one.
    pub error: Option<u32>,
    /// For #PF, the address that goes to CR2.
    pub cr2: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, cr2: 0 }
    }
    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }
    /// #NM.
    pub const fn nm() -> Self {
        Self::plain(vector::NM)
    }
    /// #GP with an error code (0, or a selector).
    pub const fn gp(error: u32) -> Self {
        Self { vector: vector::GP, error: Some(error), cr2: 0 }
    }
    /// #SS with an error code.
    pub const fn ss(error: u32) -> Self {
        Self { vector: vector::SS, error: Some(error), cr2: 0 }
    }
    /// #NP of a selector.
    pub const fn np(error: u32) -> Self {
        Self { vector: vector::NP, error: Some(error), cr2: 0 }
    }
    /// #TS of a selector.
    pub const fn ts(error: u32) -> Self {
        Self { vector: vector::TS, error: Some(error), cr2: 0 }
    }
    /// #PF at a linear address.
    pub const fn pf(linear: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), cr2: linear }
    }
}

/// Where an event comes from; decides checks and the error codes of faults during its delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// INT n, INT3, INTO.
    Software,
    /// An exception.
    Exception,
    /// An interrupt from outside.
    External,
}

/// Delivers an exception through the IDT; a fault in the delivery becomes #DF, a fault in that a triple fault.
pub fn deliver(cpu: &mut Cpu, env: &Env<'_>, exception: Exception) -> Step {
    let mut current = exception;
    // At most: first, #PF or the like, #DF.
    for _ in 0..4 {
        if current.vector == vector::PF {
            cpu.cr2 = current.cr2;
        }
        let Err(second) = deliver_event(cpu, env, current.vector, current.error, Source::Exception) else {
            return Step::Done;
        };
        if current.vector == vector::DF {
            return Step::Shutdown;
        }
        if second.vector == vector::PF {
            cpu.cr2 = second.cr2;
        }
        let contributory = |vector: u8| matches!(vector, vector::DE | vector::TS..=vector::GP);
        let double = contributory(current.vector) && contributory(second.vector)
            || current.vector == vector::PF && (second.vector == vector::PF || contributory(second.vector));
        current = if double { Exception { vector: vector::DF, error: Some(0), cr2: 0 } } else { second };
    }
    Step::Shutdown
}

/// Delivers an external interrupt or NMI.
pub(crate) fn deliver_interrupt(cpu: &mut Cpu, env: &Env<'_>, vector: u8) -> Step {
    cpu.halted = 0;
    match deliver_event(cpu, env, vector, None, Source::External) {
        Ok(()) => Step::Done,
        Err(exception) => deliver(cpu, env, exception),
    }
}

/// Pushes the frame and enters the handler (Intel SDM 3A §6.14). Nothing is changed when it fails.
pub(crate) fn deliver_event(
    cpu: &mut Cpu,
    env: &Env<'_>,
    vector: u8,
    error: Option<u32>,
    source: Source,
) -> Result<(), Exception> {
    let ext = u32::from(source != Source::Software);
    let idt_error = u32::from(vector) * 8 + 2 + ext;
    let offset = u64::from(vector) * 16;
    if offset + 15 > u64::from(cpu.idt.limit) {
        return Err(Exception::gp(idt_error));
    }
    let at = cpu.idt.base.wrapping_add(offset);
    let low = mem::system_read(cpu, env, at, 8)?;
    let high = mem::system_read(cpu, env, at.wrapping_add(8), 8)?;
    let kind = low >> 40 & 0x1f;
    if kind != 0xe && kind != 0xf || source == Source::Software && (low >> 45 & 3) < u64::from(cpu.cpl) {
        return Err(Exception::gp(idt_error));
    }
    if low >> 47 & 1 == 0 {
        return Err(Exception::np(idt_error));
    }
    let target = (low & 0xffff) | (low >> 48) << 16 | (high & 0xffff_ffff) << 32;
    let (code, level) = gate_code(cpu, env, (low >> 16) as u16, ext)?;
    let ist = (low >> 32 & 7) as u8;
    let rsp = if ist != 0 {
        tss_stack(cpu, env, 36 + 8 * (u64::from(ist) - 1))?
    } else if level != cpu.cpl {
        tss_stack(cpu, env, 4 + 8 * u64::from(level))?
    } else {
        cpu.gpr[reg::RSP]
    };
    if !is_canonical(target) {
        return Err(Exception::gp(ext));
    }
    // Faults show RF in the saved flags so that a debug breakpoint does not hit again (Intel SDM 3B §17.3.1.1).
    let fault = source == Source::Exception && !matches!(vector, vector::DB | vector::BP | vector::OF);
    let rflags = cpu.rflags | if fault { flag::RF } else { 0 };
    let mut frame = [0u8; 48];
    let words = [
        u64::from(error.unwrap_or(0)),
        cpu.rip,
        u64::from(cpu.seg[sreg::CS].selector),
        rflags,
        cpu.gpr[reg::RSP],
        u64::from(cpu.seg[sreg::SS].selector),
    ];
    for (chunk, word) in frame.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let frame = if error.is_some() { &frame[..] } else { &frame[8..] };
    let rsp = (rsp & !15).wrapping_sub(frame.len() as u64);
    mem::system_write(cpu, env, rsp, frame, true)?;
    if level != cpu.cpl {
        cpu.seg[sreg::SS] = Segment {
            base: 0,
            limit: 0,
            attributes: segment::UNUSABLE | u32::from(level) << 5,
            selector: u16::from(level),
            pad: [0; 3],
        };
    }
    cpu.seg[sreg::CS] = code;
    cpu.cpl = level;
    cpu.gpr[reg::RSP] = rsp;
    cpu.rip = target;
    cpu.rflags &= !(flag::TF | flag::NT | flag::RF | flag::VM);
    if kind == 0xe {
        cpu.rflags &= !flag::IF;
    }
    cpu.shadow = 0;
    Ok(())
}

/// The code segment of a gate, and the level it runs at.
fn gate_code(cpu: &mut Cpu, env: &Env<'_>, selector: u16, ext: u32) -> Result<(Segment, u8), Exception> {
    let error = u32::from(selector & !3) + ext;
    if selector & !3 == 0 {
        return Err(Exception::gp(ext));
    }
    let Some(mut descriptor) = segment::lookup(cpu, env, selector)? else { return Err(Exception::gp(error)) };
    if !descriptor.is_code() || descriptor.dpl() > cpu.cpl || !descriptor.long() {
        return Err(Exception::gp(error));
    }
    if !descriptor.present() {
        return Err(Exception::np(error));
    }
    let level = if descriptor.conforming() { cpu.cpl } else { descriptor.dpl() };
    segment::set_accessed(cpu, env, &mut descriptor)?;
    Ok((descriptor.segment((selector & !3) | u16::from(level)), level))
}

fn tss_stack(cpu: &mut Cpu, env: &Env<'_>, offset: u64) -> Result<u64, Exception> {
    let tr = cpu.seg[sreg::TR];
    if offset + 7 > u64::from(tr.limit) {
        return Err(Exception::ts(u32::from(tr.selector & !3)));
    }
    let rsp = mem::system_read(cpu, env, tr.base.wrapping_add(offset), 8)?;
    if !is_canonical(rsp) {
        return Err(Exception::ss(0));
    }
    Ok(rsp)
}
