//! Stack and near control transfers.

use crate::alu;
use crate::cpu::{Cpu, flag, reg};
use crate::decode::{Insn, Opnd, linear};
use crate::env::Env;
use crate::exception::Exception;
use crate::mem;
use crate::ops::int::{read_op, set_reg};
use crate::paging::is_canonical;

type Done = Result<(), Exception>;

/// Pushes without committing RSP before the store succeeded.
#[inline(always)]
pub(crate) fn push_value(cpu: &mut Cpu, env: &Env<'_>, value: u64, size: u8) -> Done {
    let rsp = cpu.gpr[reg::RSP].wrapping_sub(u64::from(size));
    mem::write(cpu, env, rsp, value, size, true)?;
    cpu.gpr[reg::RSP] = rsp;
    Ok(())
}

pub(crate) fn push(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let value = read_op(cpu, env, insn, 0, size)?;
    push_value(cpu, env, value, size)
}

pub(crate) fn pop(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let rsp = cpu.gpr[reg::RSP];
    let value = mem::read(cpu, env, rsp, size, true)?;
    // The address of a memory destination is computed with the new RSP.
    cpu.gpr[reg::RSP] = rsp.wrapping_add(u64::from(size));
    if insn.ops[0] == Opnd::Mem {
        let at = linear(cpu, insn);
        if let Err(exception) = mem::write(cpu, env, at, value, size, insn.stack) {
            cpu.gpr[reg::RSP] = rsp;
            return Err(exception);
        }
    } else {
        set_reg(cpu, insn.ops[0], value, size);
    }
    Ok(())
}

/// PUSHFQ/PUSHF: VM and RF read as 0.
pub(crate) fn pushf(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = cpu.rflags & !(flag::VM | flag::RF);
    push_value(cpu, env, value, insn.sub)
}

/// Flags that POPF and IRET may change at this privilege.
pub(crate) fn changeable(cpu: &Cpu) -> u64 {
    let mut bits = flag::STATUS | flag::TF | flag::DF | flag::NT | flag::AC | flag::ID;
    if cpu.cpl == 0 {
        bits |= flag::IOPL;
    }
    if u64::from(cpu.cpl) <= (cpu.rflags & flag::IOPL) >> 12 {
        bits |= flag::IF;
    }
    bits
}

/// Sets RFLAGS and asks for a look at interrupts if IF was opened.
pub(crate) fn set_rflags(cpu: &mut Cpu, value: u64) {
    let opened = value & !cpu.rflags & flag::IF != 0;
    cpu.rflags = value | flag::ONE;
    if opened {
        cpu.window_opened();
    }
}

pub(crate) fn popf(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let rsp = cpu.gpr[reg::RSP];
    let value = mem::read(cpu, env, rsp, size, true)?;
    cpu.gpr[reg::RSP] = rsp.wrapping_add(u64::from(size));
    let bits = changeable(cpu) & alu::mask(size);
    let value = (cpu.rflags & !bits & !flag::RF) | (value & bits);
    set_rflags(cpu, value);
    Ok(())
}

pub(crate) fn enter(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let frame = u64::from(insn.iced.immediate16());
    let level = insn.iced.immediate8_2nd() & 31;
    let step = u64::from(size);
    let mut rsp = cpu.gpr[reg::RSP].wrapping_sub(step);
    let mut rbp = cpu.gpr[reg::RBP];
    mem::write(cpu, env, rsp, rbp, size, true)?;
    let top = rsp;
    for _ in 1..level {
        rbp = rbp.wrapping_sub(step);
        let value = mem::read(cpu, env, rbp, size, true)?;
        rsp = rsp.wrapping_sub(step);
        mem::write(cpu, env, rsp, value, size, true)?;
    }
    if level > 0 {
        rsp = rsp.wrapping_sub(step);
        mem::write(cpu, env, rsp, top, size, true)?;
    }
    rsp = rsp.wrapping_sub(frame);
    mem::probe_write(cpu, env, rsp, step, true)?;
    set_reg(cpu, Opnd::Reg(reg::RBP as u8), top, size);
    cpu.gpr[reg::RSP] = rsp;
    Ok(())
}

pub(crate) fn leave(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let rbp = cpu.gpr[reg::RBP];
    let value = mem::read(cpu, env, rbp, size, true)?;
    cpu.gpr[reg::RSP] = rbp.wrapping_add(u64::from(size));
    set_reg(cpu, Opnd::Reg(reg::RBP as u8), value, size);
    Ok(())
}

#[inline(always)]
fn branch(cpu: &mut Cpu, target: u64) -> Done {
    if !is_canonical(target) {
        return Err(Exception::gp(0));
    }
    cpu.interp.next = target;
    Ok(())
}

#[inline(always)]
fn relative(cpu: &Cpu, insn: &Insn) -> u64 {
    cpu.interp.next.wrapping_add(insn.imm)
}

pub(crate) fn jmp_rel(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    let target = relative(cpu, insn);
    branch(cpu, target)
}

pub(crate) fn jmp_indirect(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let target = read_op(cpu, env, insn, 0, 8)?;
    branch(cpu, target)
}

pub(crate) fn jcc<const CC: u8>(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    if alu::condition(CC, cpu.rflags) {
        let target = relative(cpu, insn);
        return branch(cpu, target);
    }
    Ok(())
}

pub(crate) fn call_rel(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let target = relative(cpu, insn);
    call(cpu, env, target)
}

pub(crate) fn call_indirect(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let target = read_op(cpu, env, insn, 0, 8)?;
    call(cpu, env, target)
}

#[inline(always)]
fn call(cpu: &mut Cpu, env: &Env<'_>, target: u64) -> Done {
    if !is_canonical(target) {
        return Err(Exception::gp(0));
    }
    let back = cpu.interp.next;
    push_value(cpu, env, back, 8)?;
    cpu.interp.next = target;
    Ok(())
}

pub(crate) fn ret(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let rsp = cpu.gpr[reg::RSP];
    let target = mem::read(cpu, env, rsp, 8, true)?;
    branch(cpu, target)?;
    let extra = if insn.ops[0] == Opnd::Imm { insn.imm & 0xffff } else { 0 };
    cpu.gpr[reg::RSP] = rsp.wrapping_add(8).wrapping_add(extra);
    Ok(())
}

/// LOOP, LOOPE, LOOPNE, JRCXZ as 0-3; `sub` is the counter's size.
pub(crate) fn loop_op<const K: u8>(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    if K == 3 {
        if cpu.gpr[reg::RCX] & alu::mask(size) != 0 {
            return Ok(());
        }
        let target = relative(cpu, insn);
        return branch(cpu, target);
    }
    let count = cpu.gpr[reg::RCX].wrapping_sub(1) & alu::mask(size);
    let zero = cpu.rflags & flag::ZF != 0;
    let taken = count != 0
        && match K {
            1 => zero,
            2 => !zero,
            _ => true,
        };
    if taken {
        let target = relative(cpu, insn);
        branch(cpu, target)?;
    }
    set_reg(cpu, Opnd::Reg(reg::RCX as u8), count, size);
    Ok(())
}

/// STAC, CLAC.
pub(crate) fn set_ac<const ON: bool>(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if cpu.cpl != 0 {
        return Err(Exception::ud());
    }
    if ON {
        cpu.rflags |= flag::AC;
    } else {
        cpu.rflags &= !flag::AC;
    }
    Ok(())
}
