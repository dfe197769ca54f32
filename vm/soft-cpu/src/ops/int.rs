//! Integer instructions.

use crate::alu::{self, Shift, mask};
use crate::cpu::flag::{AF, CF, OF, PF, SF, STATUS, ZF};
use crate::cpu::{Cpu, reg};
use crate::decode::{Insn, Opnd, linear, offset};
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::mem;
use crate::rawmem;

type Done = Result<(), Exception>;

/// Reads operand `index` as `size` bytes.
#[inline(always)]
pub(crate) fn read_op(
    cpu: &mut Cpu,
    env: &Env<'_>,
    insn: &Insn,
    index: usize,
    size: u8,
) -> Result<u64, Exception> {
    Ok(match insn.ops[index] {
        Opnd::Reg(number) => cpu.gpr[(number & 15) as usize] & mask(size),
        Opnd::High(number) => (cpu.gpr[(number & 3) as usize] >> 8) & 0xff,
        Opnd::Imm => insn.imm & mask(size),
        Opnd::Mem => return mem::read(cpu, env, linear(cpu, insn), size, insn.stack),
        Opnd::Seg(number) => u64::from(cpu.seg[(number & 7) as usize].selector),
        _ => 0,
    })
}

/// Writes a register operand as x86 does: 32 bits zero the upper half, 8 and 16 keep the rest.
#[inline(always)]
pub(crate) fn set_reg(cpu: &mut Cpu, op: Opnd, value: u64, size: u8) {
    match op {
        Opnd::Reg(number) => {
            let register = &mut cpu.gpr[(number & 15) as usize];
            *register = match size {
                8 => value,
                4 => value & 0xffff_ffff,
                2 => (*register & !0xffff) | (value & 0xffff),
                _ => (*register & !0xff) | (value & 0xff),
            };
        }
        Opnd::High(number) => {
            let register = &mut cpu.gpr[(number & 3) as usize];
            *register = (*register & !0xff00) | (value & 0xff) << 8;
        }
        _ => {}
    }
}

/// Writes operand 0.
#[inline(always)]
pub(crate) fn write_dst(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn, value: u64, size: u8) -> Done {
    if insn.ops[0] == Opnd::Mem {
        return mem::write(cpu, env, linear(cpu, insn), value, size, insn.stack);
    }
    set_reg(cpu, insn.ops[0], value, size);
    Ok(())
}

#[inline(always)]
fn set_status(cpu: &mut Cpu, flags: u64) {
    cpu.rflags = (cpu.rflags & !STATUS) | flags;
}

/// Replaces operand 0 by `f(old)`, atomically under LOCK.
#[inline(always)]
fn modify(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn, size: u8, mut f: impl FnMut(u64) -> u64) -> Done {
    if insn.ops[0] == Opnd::Mem {
        let target = mem::target(cpu, env, linear(cpu, insn), size, insn.stack)?;
        target.update(cpu, env, size, insn.lock, f);
        return Ok(());
    }
    let old = read_op(cpu, env, insn, 0, size)?;
    let new = f(old);
    set_reg(cpu, insn.ops[0], new, size);
    Ok(())
}

pub(crate) const ADD: u8 = 0;
pub(crate) const OR: u8 = 1;
pub(crate) const ADC: u8 = 2;
pub(crate) const SBB: u8 = 3;
pub(crate) const AND: u8 = 4;
pub(crate) const SUB: u8 = 5;
pub(crate) const XOR: u8 = 6;
pub(crate) const CMP: u8 = 7;
pub(crate) const TEST: u8 = 8;

#[inline(always)]
fn combine<const K: u8>(a: u64, b: u64, carry: u64, size: u8) -> (u64, u64) {
    match K {
        ADD => alu::add(a, b, 0, size),
        ADC => alu::add(a, b, carry, size),
        SUB | CMP => alu::sub(a, b, 0, size),
        SBB => alu::sub(a, b, carry, size),
        OR => (a | b, alu::logic(a | b, size)),
        XOR => (a ^ b, alu::logic(a ^ b, size)),
        _ => (a & b, alu::logic(a & b, size)),
    }
}

pub(crate) fn arith<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let b = read_op(cpu, env, insn, 1, size)?;
    let carry = cpu.rflags & CF;
    if K == CMP || K == TEST {
        let a = read_op(cpu, env, insn, 0, size)?;
        set_status(cpu, combine::<K>(a, b, carry, size).1);
        return Ok(());
    }
    let mut flags = 0;
    modify(cpu, env, insn, size, |a| {
        let (r, f) = combine::<K>(a, b, carry, size);
        flags = f;
        r
    })?;
    set_status(cpu, flags);
    Ok(())
}

pub(crate) fn inc_dec<const DEC: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let mut flags = 0;
    modify(cpu, env, insn, size, |a| {
        let (r, f) = if DEC { alu::sub(a, 1, 0, size) } else { alu::add(a, 1, 0, size) };
        flags = f;
        r
    })?;
    cpu.rflags = (cpu.rflags & !(STATUS & !CF)) | (flags & !CF);
    Ok(())
}

pub(crate) fn neg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let mut flags = 0;
    modify(cpu, env, insn, size, |a| {
        let (r, f) = alu::sub(0, a, 0, size);
        flags = f;
        r
    })?;
    set_status(cpu, flags);
    Ok(())
}

pub(crate) fn not(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    modify(cpu, env, insn, size, |a| !a & mask(size))
}

pub(crate) fn mov(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = read_op(cpu, env, insn, 1, insn.size)?;
    write_dst(cpu, env, insn, value, insn.size)
}

pub(crate) fn movzx(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = read_op(cpu, env, insn, 1, insn.size1)?;
    set_reg(cpu, insn.ops[0], value, insn.size);
    Ok(())
}

pub(crate) fn movsx(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = read_op(cpu, env, insn, 1, insn.size1)?;
    set_reg(cpu, insn.ops[0], alu::sext(value, insn.size1), insn.size);
    Ok(())
}

pub(crate) fn lea(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    let value = offset(cpu, insn);
    set_reg(cpu, insn.ops[0], value, insn.size);
    Ok(())
}

pub(crate) fn xchg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    // iced gives the memory operand first or second depending on the form.
    let (this, other) = if insn.ops[1] == Opnd::Mem { (1, 0) } else { (0, 1) };
    let value = read_op(cpu, env, insn, other, size)?;
    let old = if insn.ops[this] == Opnd::Mem {
        let target = mem::target(cpu, env, linear(cpu, insn), size, insn.stack)?;
        target.update(cpu, env, size, true, |_| value)
    } else {
        let old = read_op(cpu, env, insn, this, size)?;
        set_reg(cpu, insn.ops[this], value, size);
        old
    };
    set_reg(cpu, insn.ops[other], old, size);
    Ok(())
}

pub(crate) fn xadd(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let b = read_op(cpu, env, insn, 1, size)?;
    let (old, flags);
    if insn.ops[0] == Opnd::Mem {
        let target = mem::target(cpu, env, linear(cpu, insn), size, insn.stack)?;
        old = target.update(cpu, env, size, insn.lock, |a| alu::add(a, b, 0, size).0);
        flags = alu::add(old, b, 0, size).1;
        set_reg(cpu, insn.ops[1], old, size);
    } else {
        old = read_op(cpu, env, insn, 0, size)?;
        let (r, f) = alu::add(old, b, 0, size);
        flags = f;
        set_reg(cpu, insn.ops[1], old, size);
        set_reg(cpu, insn.ops[0], r, size);
    }
    set_status(cpu, flags);
    Ok(())
}

pub(crate) fn cmpxchg(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let expected = cpu.gpr[reg::RAX] & mask(size);
    let new = read_op(cpu, env, insn, 1, size)?;
    let old = if insn.ops[0] == Opnd::Mem {
        let target = mem::target(cpu, env, linear(cpu, insn), size, insn.stack)?;
        target.update(cpu, env, size, insn.lock, |old| if old == expected { new } else { old })
    } else {
        let old = read_op(cpu, env, insn, 0, size)?;
        if old == expected {
            set_reg(cpu, insn.ops[0], new, size);
        }
        old
    };
    set_status(cpu, alu::sub(expected, old, 0, size).1);
    if old != expected {
        set_reg(cpu, Opnd::Reg(reg::RAX as u8), old, size);
    }
    Ok(())
}

pub(crate) fn cmpxchg8b(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let low = |value: u64| value & 0xffff_ffff;
    let expected = low(cpu.gpr[reg::RAX]) | cpu.gpr[reg::RDX] << 32;
    let new = low(cpu.gpr[reg::RBX]) | cpu.gpr[reg::RCX] << 32;
    let target = mem::target(cpu, env, linear(cpu, insn), 8, insn.stack)?;
    let old = target.update(cpu, env, 8, insn.lock, |old| if old == expected { new } else { old });
    cpu.rflags &= !ZF;
    if old == expected {
        cpu.rflags |= ZF;
    } else {
        cpu.gpr[reg::RAX] = low(old);
        cpu.gpr[reg::RDX] = old >> 32;
    }
    Ok(())
}

pub(crate) fn cmpxchg16b(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let at = linear(cpu, insn);
    if at & 15 != 0 {
        return Err(Exception::gp(0));
    }
    let expected = (cpu.gpr[reg::RAX], cpu.gpr[reg::RDX]);
    let new = (cpu.gpr[reg::RBX], cpu.gpr[reg::RCX]);
    let old = match mem::target(cpu, env, at, 8, insn.stack)? {
        low @ mem::Target::Dry { .. } => {
            let high = mem::target(cpu, env, at.wrapping_add(8), 8, insn.stack)?;
            let old = (low.load(cpu, env, 8), high.load(cpu, env, 8));
            let (next_low, next_high) = if old == expected { new } else { old };
            low.store(cpu, env, next_low, 8);
            high.store(cpu, env, next_high, 8);
            old
        }
        mem::Target::Host { ptr, gpa } => {
            // SAFETY: 16-byte aligned inside one writable page of guest memory.
            let old = unsafe { rawmem::compare_exchange16(ptr, expected, new) };
            env.note_store(gpa, 16);
            old
        }
        _ => return Err(Exception::gp(0)),
    };
    cpu.rflags &= !ZF;
    if old == expected {
        cpu.rflags |= ZF;
    } else {
        (cpu.gpr[reg::RAX], cpu.gpr[reg::RDX]) = old;
    }
    Ok(())
}

/// Shifts and rotates; the kind is in `sub`.
pub(crate) fn shift<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    const KINDS: [Shift; 7] =
        [Shift::Rol, Shift::Ror, Shift::Rcl, Shift::Rcr, Shift::Shl, Shift::Shr, Shift::Sar];
    let size = insn.size;
    let count = match insn.ops[1] {
        Opnd::Imm => insn.imm,
        _ => cpu.gpr[reg::RCX] & 0xff,
    };
    let before = cpu.rflags;
    let mut flags = before;
    modify(cpu, env, insn, size, |a| {
        let (r, f) = alu::shift(KINDS[K as usize], a, count, size, before);
        flags = f;
        r
    })?;
    cpu.rflags = flags;
    Ok(())
}

pub(crate) fn double_shift<const LEFT: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let count = if insn.ops[2] == Opnd::Imm { insn.imm } else { cpu.gpr[reg::RCX] & 0xff };
    let b = read_op(cpu, env, insn, 1, size)?;
    let before = cpu.rflags;
    let mut flags = before;
    modify(cpu, env, insn, size, |a| {
        let (r, f) = alu::double_shift(LEFT, a, b, count, size, before);
        flags = f;
        r
    })?;
    cpu.rflags = flags;
    Ok(())
}

/// BT, BTS, BTR, BTC as 0-3.
pub(crate) fn bit_test<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let n = u64::from(alu::bits(size));
    let index = read_op(cpu, env, insn, 1, size)?;
    let bit = 1u64 << (index % n);
    let change = |old: u64| match K {
        1 => old | bit,
        2 => old & !bit,
        3 => old ^ bit,
        _ => old,
    };
    let old;
    if insn.ops[0] == Opnd::Mem {
        let mut at = linear(cpu, insn);
        if insn.ops[1] != Opnd::Imm {
            // A register index reaches beyond the operand.
            let distance = (alu::sext(index, size) as i64).div_euclid(n as i64) * i64::from(size);
            at = at.wrapping_add(distance as u64);
            if insn.addr32 {
                at &= 0xffff_ffff;
            }
        }
        if K == 0 {
            old = mem::read(cpu, env, at, size, insn.stack)?;
        } else {
            let target = mem::target(cpu, env, at, size, insn.stack)?;
            old = target.update(cpu, env, size, insn.lock, change);
        }
    } else {
        old = read_op(cpu, env, insn, 0, size)?;
        if K != 0 {
            set_reg(cpu, insn.ops[0], change(old), size);
        }
    }
    cpu.rflags = (cpu.rflags & !CF) | u64::from(old & bit != 0);
    Ok(())
}

/// BSF, BSR.
pub(crate) fn bit_scan<const REVERSE: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let value = read_op(cpu, env, insn, 1, size)?;
    set_status(cpu, alu::zsp(value, size) & ZF | PF * u64::from(value == 0));
    if value == 0 {
        // The destination keeps its value (hosts do so although Intel's manual calls it undefined).
        return Ok(());
    }
    let found = if REVERSE { 63 - value.leading_zeros() } else { value.trailing_zeros() };
    set_reg(cpu, insn.ops[0], u64::from(found), size);
    Ok(())
}

/// TZCNT, LZCNT, POPCNT as 0-2.
pub(crate) fn count<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let n = u64::from(alu::bits(size));
    let value = read_op(cpu, env, insn, 1, size)?;
    let r = match K {
        0 => u64::from(value.trailing_zeros()).min(n),
        1 => u64::from(value.leading_zeros()) - (64 - n),
        _ => u64::from(value.count_ones()),
    };
    let flags = if K == 2 {
        if value == 0 { ZF } else { 0 }
    } else {
        u64::from(value == 0) * CF | if r == 0 { ZF } else { 0 }
    };
    set_status(cpu, flags);
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

pub(crate) fn bswap(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let value = read_op(cpu, env, insn, 0, size)?;
    let r = match size {
        8 => value.swap_bytes(),
        4 => u64::from((value as u32).swap_bytes()),
        // Undefined; hosts give 0.
        _ => 0,
    };
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

pub(crate) fn movbe(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let value = read_op(cpu, env, insn, 1, size)?;
    write_dst(cpu, env, insn, value.swap_bytes() >> (64 - alu::bits(size)), size)
}

/// IMUL with two or three operands.
pub(crate) fn imul(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let (a, b) = if insn.ops[2] == Opnd::Imm {
        (read_op(cpu, env, insn, 1, size)?, insn.imm & mask(size))
    } else {
        (read_op(cpu, env, insn, 0, size)?, read_op(cpu, env, insn, 1, size)?)
    };
    let wide = i128::from(alu::sext(a, size) as i64) * i128::from(alu::sext(b, size) as i64);
    let r = wide as u64 & mask(size);
    let over = i128::from(alu::sext(r, size) as i64) != wide;
    set_status(cpu, (alu::zsp(r, size) & !ZF) | u64::from(over) * (CF | OF));
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

/// MUL and one-operand IMUL.
pub(crate) fn mul<const SIGNED: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let a = cpu.gpr[reg::RAX] & mask(size);
    let b = read_op(cpu, env, insn, 0, size)?;
    let wide = if SIGNED {
        (i128::from(alu::sext(a, size) as i64) * i128::from(alu::sext(b, size) as i64)) as u128
    } else {
        u128::from(a) * u128::from(b)
    };
    let low = wide as u64 & mask(size);
    let high = (wide >> alu::bits(size)) as u64 & mask(size);
    let over = if SIGNED {
        alu::sext(low, size) >> 63 != 0 && high != mask(size) || alu::sext(low, size) >> 63 == 0 && high != 0
    } else {
        high != 0
    };
    set_status(cpu, (alu::zsp(low, size) & !ZF) | u64::from(over) * (CF | OF));
    if size == 1 {
        set_reg(cpu, Opnd::Reg(reg::RAX as u8), low | high << 8, 2);
    } else {
        set_reg(cpu, Opnd::Reg(reg::RAX as u8), low, size);
        set_reg(cpu, Opnd::Reg(reg::RDX as u8), high, size);
    }
    Ok(())
}

/// DIV, IDIV.
pub(crate) fn div<const SIGNED: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let n = alu::bits(size);
    let divisor = read_op(cpu, env, insn, 0, size)?;
    let de = Exception::plain(vector::DE);
    if divisor == 0 {
        return Err(de);
    }
    let wide = if size == 1 {
        u128::from(cpu.gpr[reg::RAX] & 0xffff)
    } else {
        u128::from(cpu.gpr[reg::RAX] & mask(size)) | u128::from(cpu.gpr[reg::RDX] & mask(size)) << n
    };
    let (quotient, remainder);
    if SIGNED {
        let shift = 128 - 2 * n;
        let dividend = (wide << shift) as i128 >> shift;
        let divisor = i128::from(alu::sext(divisor, size) as i64);
        let (Some(q), Some(r)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
            return Err(de);
        };
        let limit = 1i128 << (n - 1);
        if q >= limit || q < -limit {
            return Err(de);
        }
        (quotient, remainder) = (q as u64, r as u64);
    } else {
        let q = wide / u128::from(divisor);
        if q > u128::from(mask(size)) {
            return Err(de);
        }
        (quotient, remainder) = (q as u64, (wide % u128::from(divisor)) as u64);
    }
    if size == 1 {
        set_reg(cpu, Opnd::Reg(reg::RAX as u8), (quotient & 0xff) | (remainder & 0xff) << 8, 2);
    } else {
        set_reg(cpu, Opnd::Reg(reg::RAX as u8), quotient, size);
        set_reg(cpu, Opnd::Reg(reg::RDX as u8), remainder, size);
    }
    Ok(())
}

/// CBW, CWDE, CDQE: `sub` is the destination size.
pub(crate) fn widen_acc(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let value = alu::sext(cpu.gpr[reg::RAX], size / 2);
    set_reg(cpu, Opnd::Reg(reg::RAX as u8), value, size);
    Ok(())
}

/// CWD, CDQ, CQO: `sub` is the operand size.
pub(crate) fn sign_to_rdx(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.sub;
    let value = 0u64.wrapping_sub(alu::top(cpu.gpr[reg::RAX], size));
    set_reg(cpu, Opnd::Reg(reg::RDX as u8), value, size);
    Ok(())
}

pub(crate) fn setcc(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let value = u64::from(alu::condition(insn.sub, cpu.rflags));
    write_dst(cpu, env, insn, value, 1)
}

pub(crate) fn cmovcc(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    // The operand is read, and the upper half zeroed, also when the condition is false.
    let value = read_op(cpu, env, insn, 1, insn.size)?;
    let old = read_op(cpu, env, insn, 0, insn.size)?;
    let value = if alu::condition(insn.sub, cpu.rflags) { value } else { old };
    set_reg(cpu, insn.ops[0], value, insn.size);
    Ok(())
}

pub(crate) fn lahf(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    let value = (cpu.rflags & (SF | ZF | AF | PF | CF)) | 2;
    set_reg(cpu, Opnd::High(0), value, 1);
    Ok(())
}

pub(crate) fn sahf(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    let bits = SF | ZF | AF | PF | CF;
    cpu.rflags = (cpu.rflags & !bits) | ((cpu.gpr[reg::RAX] >> 8) & bits);
    Ok(())
}

/// CLC, STC, CMC, CLD, STD as 0-4.
pub(crate) fn flag_op<const K: u8>(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    use crate::cpu::flag::DF;
    match K {
        0 => cpu.rflags &= !CF,
        1 => cpu.rflags |= CF,
        2 => cpu.rflags ^= CF,
        3 => cpu.rflags &= !DF,
        _ => cpu.rflags |= DF,
    }
    Ok(())
}

pub(crate) fn nop(_cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    Ok(())
}

pub(crate) fn xlat(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let mut at = cpu.gpr[reg::RBX].wrapping_add(cpu.gpr[reg::RAX] & 0xff);
    if insn.seg >= 4 {
        at = at.wrapping_add(cpu.seg[(insn.seg & 7) as usize].base);
    }
    let value = mem::read(cpu, env, at, 1, false)?;
    set_reg(cpu, Opnd::Reg(reg::RAX as u8), value, 1);
    Ok(())
}

/// ADCX (`OVERFLOW` = false) and ADOX.
pub(crate) fn adcx<const OVERFLOW: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let b = read_op(cpu, env, insn, 1, size)?;
    let a = read_op(cpu, env, insn, 0, size)?;
    let bit = if OVERFLOW { OF } else { CF };
    let carry = u64::from(cpu.rflags & bit != 0);
    let (r, flags) = alu::add(a, b, carry, size);
    cpu.rflags = (cpu.rflags & !bit) | if flags & CF != 0 { bit } else { 0 };
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

/// MULX: ops are high, low, source; rdx is the other factor.
pub(crate) fn mulx(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let a = cpu.gpr[reg::RDX] & mask(size);
    let b = read_op(cpu, env, insn, 2, size)?;
    let wide = u128::from(a) * u128::from(b);
    set_reg(cpu, insn.ops[1], wide as u64, size);
    set_reg(cpu, insn.ops[0], (wide >> alu::bits(size)) as u64, size);
    Ok(())
}

/// SARX, SHLX, SHRX as 0-2, RORX as 3.
pub(crate) fn shiftx<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let a = read_op(cpu, env, insn, 1, size)?;
    let count = (read_op(cpu, env, insn, 2, size)? & u64::from(alu::bits(size) - 1)) as u32;
    let r = match K {
        0 => ((alu::sext(a, size) as i64) >> count) as u64,
        1 => a << count,
        2 => a >> count,
        _ => (a >> count) | if count == 0 { 0 } else { a << (alu::bits(size) - count) },
    };
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

/// ANDN, BLSI, BLSMSK, BLSR, BZHI, BEXTR, PDEP, PEXT as 0-7.
pub(crate) fn bmi<const K: u8>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let size = insn.size;
    let n = u64::from(alu::bits(size));
    let m = mask(size);
    let a = read_op(cpu, env, insn, 1, size)?;
    let b = if insn.ops[2] == Opnd::None { 0 } else { read_op(cpu, env, insn, 2, size)? };
    let zs = |r: u64| alu::zsp(r, size) & (ZF | SF);
    let (r, flags) = match K {
        0 => {
            let r = !a & b & m;
            (r, zs(r))
        }
        1 => {
            let r = a & a.wrapping_neg() & m;
            (r, zs(r) | u64::from(a != 0) * CF)
        }
        2 => {
            let r = (a ^ a.wrapping_sub(1)) & m;
            (r, zs(r) & SF | u64::from(a == 0) * CF)
        }
        3 => {
            let r = a & a.wrapping_sub(1) & m;
            (r, zs(r) | u64::from(a == 0) * CF)
        }
        4 => {
            let index = b & 0xff;
            let r = if index < n { a & ((1u64 << index) - 1) } else { a };
            (r, zs(r) | u64::from(index >= n) * CF)
        }
        5 => {
            let (start, len) = (b & 0xff, (b >> 8) & 0xff);
            let r = if start < n { a >> start } else { 0 };
            let r = if len < n { r & ((1u64 << len) - 1) } else { r };
            (r, zs(r) & ZF)
        }
        6 | 7 => {
            set_reg(cpu, insn.ops[0], deposit_extract(K == 6, a, b), size);
            return Ok(());
        }
        _ => (0, 0),
    };
    set_status(cpu, flags);
    set_reg(cpu, insn.ops[0], r, size);
    Ok(())
}

fn deposit_extract(deposit: bool, a: u64, mut mask: u64) -> u64 {
    let mut r = 0;
    let mut k = 0;
    while mask != 0 {
        let bit = mask & mask.wrapping_neg();
        if deposit {
            if a >> k & 1 != 0 {
                r |= bit;
            }
        } else if a & bit != 0 {
            r |= 1 << k;
        }
        k += 1;
        mask ^= bit;
    }
    r
}
