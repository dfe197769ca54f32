//! String instructions. A repeated one runs a bounded number of iterations and then comes back to the same RIP with RCX,
//! RSI and RDI showing its progress, as after an interrupt.

use crate::alu::{self, mask};
use crate::cpu::flag::{DF, STATUS, ZF};
use crate::cpu::{Cpu, reg, sreg};
use crate::decode::{Insn, Opnd};
use crate::env::Env;
use crate::exception::Exception;
use crate::mem::{self, Target};
use crate::ops::int::set_reg;
use crate::ops::sys;

type Done = Result<(), Exception>;

/// Iterations before interrupts are looked at.
const CHUNK: u32 = 4096;

pub(crate) const MOVS: u8 = 0;
pub(crate) const STOS: u8 = 1;
pub(crate) const LODS: u8 = 2;
pub(crate) const CMPS: u8 = 3;
pub(crate) const SCAS: u8 = 4;
pub(crate) const INS: u8 = 5;
pub(crate) const OUTS: u8 = 6;

/// 4 with an address-size prefix, else 8.
fn address_size(insn: &Insn) -> u8 {
    if insn.addr32 { 4 } else { 8 }
}

fn advance(cpu: &mut Cpu, register: usize, by: i64, size: u8) {
    let value = cpu.gpr[register].wrapping_add(by as u64);
    set_reg(cpu, Opnd::Reg(register as u8), value & mask(size), size);
}

fn source(cpu: &Cpu, insn: &Insn) -> u64 {
    let offset = cpu.gpr[reg::RSI] & mask(address_size(insn));
    if insn.seg >= sreg::FS as u8 {
        offset.wrapping_add(cpu.seg[(insn.seg & 7) as usize].base)
    } else {
        offset
    }
}

fn destination(cpu: &Cpu, insn: &Insn) -> u64 {
    cpu.gpr[reg::RDI] & mask(address_size(insn))
}

pub(crate) fn string<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let width = address_size(insn);
    if !(insn.rep || insn.repne) {
        return once::<K>(cpu, env, insn);
    }
    let mut budget = CHUNK;
    loop {
        let left = cpu.gpr[reg::RCX] & mask(width);
        if left == 0 {
            if width == 4 {
                cpu.gpr[reg::RCX] &= 0xffff_ffff;
            }
            return Ok(());
        }
        if budget == 0 || cpu.kick.load(std::sync::atomic::Ordering::Relaxed) != 0 && budget < CHUNK {
            cpu.interp.next = cpu.rip;
            return Ok(());
        }
        budget -= 1;
        let done = match K {
            MOVS | STOS => bulk::<K>(cpu, env, insn, left)?,
            _ => 0,
        };
        if done > 0 {
            let count = (cpu.gpr[reg::RCX] & mask(width)).wrapping_sub(done);
            set_reg(cpu, Opnd::Reg(reg::RCX as u8), count, width);
            continue;
        }
        once::<K>(cpu, env, insn)?;
        let count = left.wrapping_sub(1);
        set_reg(cpu, Opnd::Reg(reg::RCX as u8), count, width);
        if K == CMPS || K == SCAS {
            let zero = cpu.rflags & ZF != 0;
            if zero == insn.repne {
                return Ok(());
            }
        }
    }
}

/// A run of MOVS or STOS inside one page each side, upwards; returns how many elements were done (0: do one by one).
fn bulk<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn, left: u64) -> Result<u64, Exception> {
    let size = u64::from(insn.sub);
    if cpu.rflags & DF != 0 || insn.addr32 {
        return Ok(0);
    }
    let to = destination(cpu, insn);
    let mut room = (4096 - (to & 0xfff)) / size;
    let from = source(cpu, insn);
    if K == MOVS {
        room = room.min((4096 - (from & 0xfff)) / size);
    }
    let count = room.min(left);
    if count < 2 {
        return Ok(0);
    }
    let len = (count * size) as usize;
    let mut data = [0u8; 4096];
    if K == MOVS {
        let distance = to.wrapping_sub(from);
        if distance < len as u64 {
            // Overlapping upwards: each element may read what an earlier one wrote.
            return Ok(0);
        }
        let source = mem::page_run(cpu, env, from, len as u64, false)?;
        let target = mem::page_run(cpu, env, to, len as u64, true)?;
        let (Some(source), Some((target, gpa))) = (source, target) else { return Ok(0) };
        // SAFETY: both runs lie inside one mapped page each; the copies go through a private buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(source.0.cast_const(), data.as_mut_ptr(), len);
            std::ptr::copy_nonoverlapping(data.as_ptr(), target, len);
        }
        env.note_store(gpa, len as u64);
    } else {
        let Some((target, gpa)) = mem::page_run(cpu, env, to, len as u64, true)? else { return Ok(0) };
        let value = cpu.gpr[reg::RAX].to_le_bytes();
        for chunk in data[..len].chunks_exact_mut(size as usize) {
            chunk.copy_from_slice(&value[..size as usize]);
        }
        // SAFETY: the run lies inside one mapped writable page.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), target, len) };
        env.note_store(gpa, len as u64);
    }
    advance(cpu, reg::RDI, len as i64, 8);
    if K == MOVS {
        advance(cpu, reg::RSI, len as i64, 8);
    }
    Ok(count)
}

fn once<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let width = address_size(insn);
    let by = if cpu.rflags & DF != 0 { -i64::from(size) } else { i64::from(size) };
    match K {
        MOVS => {
            let (from, to) = (source(cpu, insn), destination(cpu, insn));
            let value = mem::read(cpu, env, from, size, false)?;
            mem::write(cpu, env, to, value, size, false)?;
        }
        STOS => {
            let (to, value) = (destination(cpu, insn), cpu.gpr[reg::RAX]);
            mem::write(cpu, env, to, value, size, false)?;
        }
        LODS => {
            let from = source(cpu, insn);
            let value = mem::read(cpu, env, from, size, false)?;
            set_reg(cpu, Opnd::Reg(reg::RAX as u8), value, size);
        }
        CMPS => {
            let (from, to) = (source(cpu, insn), destination(cpu, insn));
            let a = mem::read(cpu, env, from, size, false)?;
            let b = mem::read(cpu, env, to, size, false)?;
            cpu.rflags = (cpu.rflags & !STATUS) | alu::sub(a, b, 0, size).1;
        }
        SCAS => {
            let to = destination(cpu, insn);
            let b = mem::read(cpu, env, to, size, false)?;
            let a = cpu.gpr[reg::RAX] & mask(size);
            cpu.rflags = (cpu.rflags & !STATUS) | alu::sub(a, b, 0, size).1;
        }
        INS => {
            let port = cpu.gpr[reg::RDX] as u16;
            sys::check_io(cpu, env, port, size)?;
            let to = destination(cpu, insn);
            let target: Target = mem::target(cpu, env, to, size, false)?;
            let value = sys::port_in(env, port, size);
            target.store(cpu, env, value, size);
        }
        _ => {
            let port = cpu.gpr[reg::RDX] as u16;
            sys::check_io(cpu, env, port, size)?;
            let from = source(cpu, insn);
            let value = mem::read(cpu, env, from, size, false)?;
            sys::port_out(env, port, value, size);
        }
    }
    if matches!(K, MOVS | LODS | CMPS | OUTS) {
        advance(cpu, reg::RSI, by, width);
    }
    if matches!(K, MOVS | STOS | CMPS | SCAS | INS) {
        advance(cpu, reg::RDI, by, width);
    }
    Ok(())
}
