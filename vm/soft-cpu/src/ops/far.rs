//! Far transfers and segment registers: IRET, SYSCALL, SYSRET, INT n, far JMP/CALL/RET, LLDT, LTR, LAR and kin.

use iced_x86::Code;

use crate::alu::mask;
use crate::cpu::{Cpu, cr, flag, reg, sreg};
use crate::decode::{Insn, Opnd, linear};
use crate::env::Env;
use crate::exception::{Exception, Source, deliver_event, vector};
use crate::mem;
use crate::ops::flow::{changeable, push_value, set_rflags};
use crate::ops::int::{read_op, set_reg, write_dst};
use crate::paging::is_canonical;
use crate::segment;

type Done = Result<(), Exception>;

/// INT3, INT n, INT1: `sub` is the vector.
pub(crate) fn int(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let (number, source) = match insn.code {
        Code::Int_imm8 => (insn.imm as u8, Source::Software),
        Code::Int1 => {
            return Err(Exception::plain(vector::DB));
        }
        _ => (vector::BP, Source::Software),
    };
    // The saved RIP is that of the next instruction; a fault in the delivery shows this one's.
    let rip = cpu.rip;
    cpu.rip = cpu.interp.next;
    match deliver_event(cpu, env, number, None, source) {
        Ok(()) => {
            cpu.interp.next = cpu.rip;
            Ok(())
        }
        Err(exception) => {
            cpu.rip = rip;
            Err(exception)
        }
    }
}

pub(crate) fn iret(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    if cpu.rflags & flag::NT != 0 {
        return Err(Exception::gp(0));
    }
    let size = insn.sub;
    let mut words = [0u64; 5];
    let mut bytes = [0u8; 40];
    let len = 5 * size as usize;
    let rsp = cpu.gpr[reg::RSP];
    mem::read_bytes(cpu, env, rsp, &mut bytes[..len], true)?;
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(size as usize)) {
        let mut raw = [0; 8];
        raw[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(raw);
    }
    let [rip, cs, rflags, rsp, ss] = words;
    let (code, level) = segment::check_code(cpu, env, cs as u16, true)?;
    let stack = segment::check_stack(cpu, env, ss as u16, level)?;
    if !is_canonical(rip) {
        return Err(Exception::gp(0));
    }
    let bits = (changeable(cpu) | flag::RF) & mask(size);
    let outer = level != cpu.cpl;
    cpu.seg[sreg::CS] = code;
    cpu.seg[sreg::SS] = stack;
    cpu.gpr[reg::RSP] = rsp;
    cpu.interp.next = rip;
    cpu.cpl = level;
    cpu.nmi_masked = 0;
    let value = (cpu.rflags & !bits) | (rflags & bits);
    set_rflags(cpu, value);
    if outer {
        segment::drop_inner(cpu);
    }
    Ok(())
}

pub(crate) fn syscall(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if cpu.efer & cr::EFER_SCE == 0 {
        return Err(Exception::ud());
    }
    cpu.gpr[reg::RCX] = cpu.interp.next;
    cpu.gpr[reg::R11] = cpu.rflags & !flag::RF;
    cpu.interp.next = cpu.lstar;
    cpu.rflags = cpu.rflags & !(cpu.fmask | flag::RF) | flag::ONE;
    let selector = (cpu.star >> 32) as u16 & !3;
    segment::set_flat(cpu, selector, selector.wrapping_add(8), 0);
    Ok(())
}

pub(crate) fn sysret(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    if cpu.efer & cr::EFER_SCE == 0 {
        return Err(Exception::ud());
    }
    // SYSRETD would enter compatibility mode, which this CPU does not have.
    if cpu.cpl != 0 || insn.code != Code::Sysretq || !is_canonical(cpu.gpr[reg::RCX]) {
        return Err(Exception::gp(0));
    }
    cpu.interp.next = cpu.gpr[reg::RCX];
    let selector = ((cpu.star >> 48) as u16).wrapping_add(16) | 3;
    segment::set_flat(cpu, selector, ((cpu.star >> 48) as u16).wrapping_add(8) | 3, 3);
    let value = cpu.gpr[reg::R11] & 0x3c_7fd7;
    set_rflags(cpu, value);
    Ok(())
}

fn enter_code(cpu: &mut Cpu, env: &Env<'_>, selector: u16, target: u64) -> Done {
    let (code, _) = segment::check_code(cpu, env, selector, false)?;
    if !is_canonical(target) {
        return Err(Exception::gp(0));
    }
    cpu.seg[sreg::CS] = code;
    cpu.interp.next = target;
    Ok(())
}

/// Reads the far pointer m16:16, m16:32 or m16:64; `sub` is the offset's size.
fn far_pointer(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Result<(u16, u64), Exception> {
    let at = linear(cpu, insn);
    let size = insn.sub as usize;
    let mut bytes = [0; 10];
    mem::read_bytes(cpu, env, at, &mut bytes[..size + 2], insn.stack)?;
    let mut raw = [0; 8];
    raw[..size].copy_from_slice(&bytes[..size]);
    Ok((u16::from_le_bytes([bytes[size], bytes[size + 1]]), u64::from_le_bytes(raw)))
}

pub(crate) fn far_jmp(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let (selector, target) = far_pointer(cpu, env, insn)?;
    enter_code(cpu, env, selector, target)
}

pub(crate) fn far_call(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let (selector, target) = far_pointer(cpu, env, insn)?;
    let size = insn.sub;
    let (old, back) = (u64::from(cpu.seg[sreg::CS].selector), cpu.interp.next);
    let rsp = cpu.gpr[reg::RSP];
    mem::probe_write(cpu, env, rsp.wrapping_sub(2 * u64::from(size)), 2 * u64::from(size), true)?;
    enter_code(cpu, env, selector, target)?;
    push_value(cpu, env, old, size)?;
    push_value(cpu, env, back, size)
}

pub(crate) fn far_ret(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let step = u64::from(size);
    let rsp = cpu.gpr[reg::RSP];
    let target = mem::read(cpu, env, rsp, size, true)?;
    let selector = mem::read(cpu, env, rsp.wrapping_add(step), size, true)? as u16;
    let extra = if insn.ops[0] == Opnd::Imm { insn.imm & 0xffff } else { 0 };
    let (code, level) = segment::check_code(cpu, env, selector, true)?;
    if !is_canonical(target) {
        return Err(Exception::gp(0));
    }
    let mut rsp = rsp.wrapping_add(2 * step).wrapping_add(extra);
    if level != cpu.cpl {
        let new_rsp = mem::read(cpu, env, rsp, size, true)?;
        let ss = mem::read(cpu, env, rsp.wrapping_add(step), size, true)? as u16;
        cpu.seg[sreg::SS] = segment::check_stack(cpu, env, ss, level)?;
        rsp = new_rsp.wrapping_add(extra);
        cpu.cpl = level;
        cpu.seg[sreg::CS] = code;
        segment::drop_inner(cpu);
    } else {
        cpu.seg[sreg::CS] = code;
    }
    cpu.gpr[reg::RSP] = rsp;
    cpu.interp.next = target;
    Ok(())
}

/// MOV Sreg, r/m16.
pub(crate) fn mov_to_seg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let Opnd::Seg(number) = insn.ops[0] else { return Err(Exception::ud()) };
    let selector = read_op(cpu, env, insn, 1, 2)? as u16;
    if number as usize == sreg::CS {
        return Err(Exception::ud());
    }
    segment::load(cpu, env, number as usize, selector)?;
    if number as usize == sreg::SS {
        cpu.shadow = 1;
    }
    Ok(())
}

/// MOV r/m, Sreg: a memory operand is always 16 bits.
pub(crate) fn mov_from_seg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = read_op(cpu, env, insn, 1, 2)?;
    let size = if insn.ops[0] == Opnd::Mem { 2 } else { insn.size };
    write_dst(cpu, env, insn, value, size)
}

/// POP FS, POP GS.
pub(crate) fn pop_seg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let Opnd::Seg(number) = insn.ops[0] else { return Err(Exception::ud()) };
    let rsp = cpu.gpr[reg::RSP];
    let selector = mem::read(cpu, env, rsp, 2, true)? as u16;
    segment::load(cpu, env, number as usize, selector)?;
    cpu.gpr[reg::RSP] = rsp.wrapping_add(u64::from(insn.sub));
    Ok(())
}

/// LSS, LFS, LGS: `sub` is the offset's size.
pub(crate) fn load_far<const REGISTER: usize>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let (selector, offset) = far_pointer(cpu, env, insn)?;
    segment::load(cpu, env, REGISTER, selector)?;
    set_reg(cpu, insn.ops[0], offset, insn.sub);
    Ok(())
}

/// LLDT (`TASK` = false) and LTR.
pub(crate) fn load_system<const TASK: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    if cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    let selector = read_op(cpu, env, insn, 0, 2)? as u16;
    let register = if TASK { sreg::TR } else { sreg::LDTR };
    if selector & !3 == 0 {
        if TASK {
            return Err(Exception::gp(0));
        }
        cpu.seg[register].selector = selector;
        cpu.seg[register].attributes = segment::UNUSABLE;
        return Ok(());
    }
    let error = u32::from(selector & !3);
    if selector & 4 != 0 {
        return Err(Exception::gp(error));
    }
    let Some(mut descriptor) = segment::lookup(cpu, env, selector)? else { return Err(Exception::gp(error)) };
    let wanted = if TASK { descriptor.kind() == 9 } else { descriptor.kind() == 2 };
    if descriptor.is_segment() || !wanted {
        return Err(Exception::gp(error));
    }
    if !descriptor.present() {
        return Err(Exception::np(error));
    }
    let high = segment::high_base(cpu, env, descriptor)?;
    if TASK {
        descriptor.raw |= 2 << 40;
        let byte = (descriptor.raw >> 40) as u8;
        mem::system_write(cpu, env, descriptor.at.wrapping_add(5), &[byte], false)?;
    }
    let mut segment = descriptor.segment(selector);
    segment.base |= high;
    cpu.seg[register] = segment;
    Ok(())
}

/// SLDT, STR: `sub` is the register.
pub(crate) fn store_system(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    super::sys::umip(cpu)?;
    let value = u64::from(cpu.seg[(insn.sub & 7) as usize].selector);
    let size = if insn.ops[0] == Opnd::Mem { 2 } else { insn.size };
    write_dst(cpu, env, insn, value, size)
}

/// LAR, LSL, VERR, VERW as 0-3.
pub(crate) fn inspect<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let operand = usize::from(K < 2);
    let selector = read_op(cpu, env, insn, operand, 2)? as u16;
    cpu.rflags &= !flag::ZF;
    if selector & !3 == 0 {
        return Ok(());
    }
    let Some(descriptor) = segment::lookup(cpu, env, selector)? else { return Ok(()) };
    let conforming = descriptor.is_code() && descriptor.conforming();
    let reachable = conforming || descriptor.dpl() >= cpu.cpl && descriptor.dpl() >= (selector & 3) as u8;
    let good = match K {
        0 => descriptor.is_segment() || matches!(descriptor.kind(), 2 | 9 | 11 | 12),
        1 => descriptor.is_segment() || matches!(descriptor.kind(), 2 | 9 | 11),
        2 => descriptor.is_segment() && (!descriptor.is_code() || descriptor.kind() & 2 != 0),
        _ => descriptor.is_segment() && !descriptor.is_code() && descriptor.kind() & 2 != 0,
    };
    if !good || !reachable {
        return Ok(());
    }
    cpu.rflags |= flag::ZF;
    match K {
        0 => set_reg(cpu, insn.ops[0], descriptor.raw >> 32 & 0x00ff_ff00, insn.size),
        1 => set_reg(cpu, insn.ops[0], u64::from(descriptor.limit()), insn.size),
        _ => {}
    }
    Ok(())
}
