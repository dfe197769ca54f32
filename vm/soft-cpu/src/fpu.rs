//! x87, MMX, SSE and AVX: which instructions are allowed, their enabling checks, and those that move whole state images.
//! Arithmetic is done by the host's own units through [`crate::stub`].

use iced_x86::{CpuidFeature, EncodingKind, Mnemonic, OpKind};

use crate::cpu::{Cpu, XSAVE_BYTES, cr, reg};
use crate::decode::{Handler, Insn, Opnd, linear};
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::ops::enabled_fpu;
use crate::{mem, stub};

type Done = Result<(), Exception>;

/// What must be enabled for an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Needs no vector or x87 state (RDRAND, CRC32).
    Integer,
    /// x87 and MMX; `true` = waits for pending x87 exceptions.
    X87,
    Mmx,
    Sse,
    Avx,
}

/// The class of an allowed instruction whose host has it; `None` = refuse.
pub(crate) fn class(insn: &Insn) -> Option<Class> {
    let iced = &insn.iced;
    if !matches!(iced.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return None;
    }
    let mut class = None;
    for feature in iced.cpuid_features() {
        let (this, present) = feature_class(*feature)?;
        if !present {
            return None;
        }
        class = class.max(Some(rank(this)));
    }
    let mut class = match class? {
        0 => Class::Integer,
        1 => Class::X87,
        2 => Class::Mmx,
        3 => Class::Sse,
        _ => Class::Avx,
    };
    if iced.encoding() == EncodingKind::VEX {
        class = Class::Avx;
    } else if iced.cpuid_features().contains(&CpuidFeature::FPU) {
        // FISTTP names SSE3 as well.
        class = Class::X87;
    } else if class == Class::Sse && uses_mmx(insn) {
        class = Class::Mmx;
    }
    Some(class)
}

const fn rank(class: Class) -> u8 {
    match class {
        Class::Integer => 0,
        Class::X87 => 1,
        Class::Mmx => 2,
        Class::Sse => 3,
        Class::Avx => 4,
    }
}

fn uses_mmx(insn: &Insn) -> bool {
    (0..insn.iced.op_count())
        .any(|index| insn.iced.op_kind(index) == OpKind::Register && insn.iced.op_register(index).is_mm())
        || insn.iced.op_kind(0) == OpKind::MemorySegRDI && insn.iced.mnemonic() == Mnemonic::Maskmovq
}

fn feature_class(feature: CpuidFeature) -> Option<(Class, bool)> {
    use CpuidFeature as F;
    use std::arch::is_x86_feature_detected as has;
    Some(match feature {
        F::INTEL8086 | F::INTEL386 | F::INTEL186 | F::INTEL286 | F::INTEL486 | F::X64 => {
            (Class::Integer, true)
        }
        F::FPU | F::FPU287 | F::FPU387 => (Class::X87, true),
        F::CMOV => (Class::X87, true),
        F::MMX => (Class::Mmx, true),
        F::SSE | F::SSE2 => (Class::Sse, true),
        F::SSE3 => (Class::Sse, has!("sse3")),
        F::SSSE3 => (Class::Sse, has!("ssse3")),
        F::SSE4_1 => (Class::Sse, has!("sse4.1")),
        F::SSE4_2 => (Class::Sse, has!("sse4.2")),
        F::AES => (Class::Sse, has!("aes")),
        F::PCLMULQDQ => (Class::Sse, has!("pclmulqdq")),
        F::SHA => (Class::Sse, has!("sha")),
        F::GFNI => (Class::Sse, has!("gfni")),
        F::AVX => (Class::Avx, has!("avx")),
        F::AVX2 => (Class::Avx, has!("avx2")),
        F::FMA => (Class::Avx, has!("fma")),
        F::F16C => (Class::Avx, has!("f16c")),
        F::VAES => (Class::Avx, has!("vaes")),
        F::VPCLMULQDQ => (Class::Avx, has!("vpclmulqdq")),
        F::RDRAND => (Class::Integer, has!("rdrand")),
        F::RDSEED => (Class::Integer, has!("rdseed")),
        _ => return None,
    })
}

/// Whether the host's processor runs the instructions of an extension. What is not named here counts as missing.
pub fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    use std::arch::is_x86_feature_detected as has;
    match feature {
        F::CX8 => true,
        F::CMPXCHG16B => has!("cmpxchg16b"),
        F::POPCNT => has!("popcnt"),
        F::LZCNT => has!("lzcnt"),
        F::BMI1 => has!("bmi1"),
        F::BMI2 => has!("bmi2"),
        F::MOVBE => has!("movbe"),
        F::ADX => has!("adx"),
        _ => feature_class(feature).is_some_and(|(_, present)| present),
    }
}

/// The handler of an instruction of this family, if it is allowed.
pub(crate) fn select(insn: &mut Insn) -> Option<Handler> {
    use Mnemonic as M;
    // Other encodings of the same mnemonics have mask registers and operands of 64 bytes.
    if !matches!(insn.iced.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
        return None;
    }
    let handler: Handler = match insn.iced.mnemonic() {
        M::Fxsave | M::Fxsave64 => fxsave,
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 => xsave,
        M::Xrstor | M::Xrstor64 => xrstor,
        M::Ldmxcsr | M::Vldmxcsr => ldmxcsr,
        M::Stmxcsr | M::Vstmxcsr => stmxcsr,
        M::Crc32 => crc32,
        M::Wait => wait,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => class(insn).map(|_| masked_move)?,
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => class(insn).map(|_| byte_mask_move)?,
        M::Vgatherdps
        | M::Vgatherdpd
        | M::Vgatherqps
        | M::Vgatherqpd
        | M::Vpgatherdd
        | M::Vpgatherdq
        | M::Vpgatherqd
        | M::Vpgatherqq => class(insn).map(|_| gather)?,
        M::Rdrand | M::Rdseed => class(insn).map(|_| stub::run)?,
        _ => {
            let class = class(insn)?;
            if class == Class::Integer {
                return None;
            }
            stub::run
        }
    };
    Some(handler)
}

/// #UD or #NM when the family is not enabled; #MF when an x87 exception is pending.
pub(crate) fn check(cpu: &Cpu, class: Class) -> Done {
    match class {
        Class::Integer => return Ok(()),
        Class::Avx => {
            if cpu.cr4 & cr::CR4_OSXSAVE == 0 || cpu.xcr0 & 6 != 6 {
                return Err(Exception::ud());
            }
        }
        Class::Sse => {
            if cpu.cr0 & cr::CR0_EM != 0 || cpu.cr4 & cr::CR4_OSFXSR == 0 {
                return Err(Exception::ud());
            }
        }
        Class::Mmx => {
            if cpu.cr0 & cr::CR0_EM != 0 {
                return Err(Exception::ud());
            }
        }
        Class::X87 => return enabled_fpu(cpu),
    }
    if cpu.cr0 & cr::CR0_TS != 0 { Err(Exception::nm()) } else { Ok(()) }
}

/// An unmasked x87 exception waits.
pub(crate) fn x87_pending(cpu: &Cpu) -> bool {
    let (control, status) = (cpu.xsave.0[0], cpu.xsave.0[2]);
    status & !control & 0x3f != 0
}

pub(crate) fn mf() -> Exception {
    Exception::plain(vector::MF)
}

fn aligned(cpu: &Cpu, insn: &Insn, to: u64) -> Result<u64, Exception> {
    let at = linear(cpu, insn);
    if at.is_multiple_of(to) { Ok(at) } else { Err(Exception::gp(0)) }
}

fn fxsave(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    enabled_fpu(cpu)?;
    let at = aligned(cpu, insn, 16)?;
    let mut image = [0; 416];
    image.copy_from_slice(&cpu.xsave.0[..416]);
    mem::write_bytes(cpu, env, at, &image, insn.stack)
}

/// WAIT: only what is pending.
fn wait(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if cpu.cr0 & (cr::CR0_MP | cr::CR0_TS) == cr::CR0_MP | cr::CR0_TS {
        return Err(Exception::nm());
    }
    if x87_pending(cpu) { Err(mf()) } else { Ok(()) }
}

fn bad_mxcsr(bytes: &[u8]) -> bool {
    bytes[2] != 0 || bytes[3] != 0
}

fn fxrstor(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    enabled_fpu(cpu)?;
    let at = aligned(cpu, insn, 16)?;
    let mut image = [0; 512];
    mem::read_bytes(cpu, env, at, &mut image, insn.stack)?;
    if bad_mxcsr(&image[24..28]) {
        return Err(Exception::gp(0));
    }
    image[28..32].copy_from_slice(&[0xff, 0xff, 0, 0]);
    cpu.xsave.0[..416].copy_from_slice(&image[..416]);
    normalize_x87(cpu);
    Ok(())
}

/// ES and B follow from the exception flags and masks.
fn normalize_x87(cpu: &mut Cpu) {
    let pending = x87_pending(cpu);
    cpu.xsave.0[2] = (cpu.xsave.0[2] & 0x7f) | u8::from(pending) << 7;
    cpu.xsave.0[3] = (cpu.xsave.0[3] & 0x7f) | u8::from(pending) << 7;
    cpu.xsave.0[1] &= 0x1f;
    cpu.xsave.0[0] |= 0x40;
}

fn requested(cpu: &Cpu) -> u64 {
    ((cpu.gpr[reg::RAX] & 0xffff_ffff) | cpu.gpr[reg::RDX] << 32) & cpu.xcr0
}

fn xsave_enabled(cpu: &Cpu) -> Done {
    if cpu.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    if cpu.cr0 & cr::CR0_TS != 0 { Err(Exception::nm()) } else { Ok(()) }
}

/// XSAVE, XSAVEOPT: every requested component is written; none is tracked as initial or unmodified.
fn xsave(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    xsave_enabled(cpu)?;
    let at = aligned(cpu, insn, 64)?;
    let mask = requested(cpu);
    let len = if mask & 4 != 0 { XSAVE_BYTES } else { 576 };
    let mut image = [0; XSAVE_BYTES];
    // What is not requested keeps its memory bytes.
    mem::probe_write(cpu, env, at, len as u64, insn.stack)?;
    mem::read_bytes(cpu, env, at, &mut image[..len], insn.stack)?;
    let state = &cpu.xsave.0;
    if mask & 1 != 0 {
        image[..24].copy_from_slice(&state[..24]);
        image[32..160].copy_from_slice(&state[32..160]);
    }
    if mask & 6 != 0 {
        image[24..32].copy_from_slice(&state[24..32]);
    }
    if mask & 2 != 0 {
        image[160..416].copy_from_slice(&state[160..416]);
    }
    if mask & 4 != 0 {
        image[576..832].copy_from_slice(&state[576..832]);
    }
    let mut bv = [0; 8];
    bv.copy_from_slice(&image[512..520]);
    let bv = (u64::from_le_bytes(bv) & !mask) | mask;
    image[512..520].copy_from_slice(&bv.to_le_bytes());
    let (legacy, rest) = image[..len].split_at(416);
    mem::write_bytes(cpu, env, at, legacy, insn.stack)?;
    // Bytes 416-511 belong to software.
    mem::write_bytes(cpu, env, at.wrapping_add(512), &rest[96..104], insn.stack)?;
    if len > 576 {
        mem::write_bytes(cpu, env, at.wrapping_add(576), &rest[160..], insn.stack)?;
    }
    Ok(())
}

fn xrstor(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    xsave_enabled(cpu)?;
    let at = aligned(cpu, insn, 64)?;
    let mask = requested(cpu);
    let mut image = [0; XSAVE_BYTES];
    let len = if mask & 4 != 0 { XSAVE_BYTES } else { 576 };
    mem::read_bytes(cpu, env, at, &mut image[..len], insn.stack)?;
    let mut word = [0; 8];
    word.copy_from_slice(&image[512..520]);
    let bv = u64::from_le_bytes(word);
    if bv & !cpu.xcr0 != 0 || image[520..576].iter().any(|byte| *byte != 0) {
        return Err(Exception::gp(0));
    }
    if mask & 6 != 0 && bad_mxcsr(&image[24..28]) {
        return Err(Exception::gp(0));
    }
    if mask & 6 != 0 {
        cpu.xsave.0[24..28].copy_from_slice(&image[24..28]);
    }
    let fresh = &initial_image();
    let state = &mut cpu.xsave.0;
    if mask & 1 != 0 {
        let from = if bv & 1 != 0 { &image } else { fresh };
        state[..24].copy_from_slice(&from[..24]);
        state[32..160].copy_from_slice(&from[32..160]);
        normalize_x87(cpu);
    }
    let state = &mut cpu.xsave.0;
    if mask & 2 != 0 {
        let from = if bv & 2 != 0 { &image } else { fresh };
        state[160..416].copy_from_slice(&from[160..416]);
    }
    if mask & 4 != 0 {
        let from = if bv & 4 != 0 { &image } else { fresh };
        state[576..832].copy_from_slice(&from[576..832]);
    }
    Ok(())
}

fn initial_image() -> [u8; XSAVE_BYTES] {
    let mut image = [0; XSAVE_BYTES];
    image[0] = 0x7f;
    image[1] = 0x03;
    image
}

fn mxcsr_class(insn: &Insn) -> Class {
    if insn.iced.encoding() == EncodingKind::VEX { Class::Avx } else { Class::Sse }
}

fn ldmxcsr(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    check(cpu, mxcsr_class(insn))?;
    let at = linear(cpu, insn);
    let value = mem::read(cpu, env, at, 4, insn.stack)?;
    if value >> 16 != 0 {
        return Err(Exception::gp(0));
    }
    cpu.xsave.0[24..28].copy_from_slice(&(value as u32).to_le_bytes());
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    check(cpu, mxcsr_class(insn))?;
    let at = linear(cpu, insn);
    let state = &cpu.xsave.0;
    let value = u32::from_le_bytes([state[24], state[25], state[26], state[27]]);
    mem::write(cpu, env, at, u64::from(value), 4, insn.stack)
}

fn crc32(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let data = crate::ops::int::read_op(cpu, env, insn, 1, insn.size1)?;
    let mut crc = crate::ops::int::read_op(cpu, env, insn, 0, 4)? as u32;
    for byte in &data.to_le_bytes()[..insn.size1 as usize] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
        }
    }
    crate::ops::int::set_reg(cpu, insn.ops[0], u64::from(crc), 8);
    Ok(())
}

/// One of the 16 vector registers, 32 bytes.
fn vector(cpu: &Cpu, number: usize) -> [u8; 32] {
    let mut value = [0; 32];
    let number = number & 15;
    value[..16].copy_from_slice(&cpu.xsave.0[160 + 16 * number..176 + 16 * number]);
    value[16..].copy_from_slice(&cpu.xsave.0[576 + 16 * number..592 + 16 * number]);
    value
}

fn set_vector(cpu: &mut Cpu, number: usize, value: &[u8; 32]) {
    let number = number & 15;
    cpu.xsave.0[160 + 16 * number..176 + 16 * number].copy_from_slice(&value[..16]);
    cpu.xsave.0[576 + 16 * number..592 + 16 * number].copy_from_slice(&value[16..]);
}

fn vector_operand(insn: &Insn, index: u32) -> usize {
    insn.iced.op_register(index).number()
}

/// VMASKMOV, VPMASKMOV: only the selected elements are touched.
fn masked_move(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    check(cpu, Class::Avx)?;
    let wide = matches!(insn.iced.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
    let size = if wide { 8u8 } else { 4 };
    let store = insn.ops[0] == Opnd::Mem;
    let data_operand = if store { 2 } else { 0 };
    let total = insn.iced.op_register(data_operand).size();
    let mask = vector(cpu, vector_operand(insn, 1));
    let at = linear(cpu, insn);
    let count = total / size as usize;
    let selected = |index: usize| mask[index * size as usize + size as usize - 1] & 0x80 != 0;
    if store {
        let data = vector(cpu, vector_operand(insn, 2));
        for index in (0..count).filter(|index| selected(*index)) {
            let here = at.wrapping_add((index * size as usize) as u64);
            mem::probe_write(cpu, env, here, u64::from(size), insn.stack)?;
        }
        for index in (0..count).filter(|index| selected(*index)) {
            let from = index * size as usize;
            let here = at.wrapping_add(from as u64);
            mem::write_bytes(cpu, env, here, &data[from..from + size as usize], insn.stack)?;
        }
        return Ok(());
    }
    let mut result = [0; 32];
    for index in (0..count).filter(|index| selected(*index)) {
        let from = index * size as usize;
        let here = at.wrapping_add(from as u64);
        mem::read_bytes(cpu, env, here, &mut result[from..from + size as usize], insn.stack)?;
    }
    set_vector(cpu, vector_operand(insn, 0), &result);
    Ok(())
}

/// MASKMOVQ, MASKMOVDQU: bytes to [rdi].
fn byte_mask_move(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let mmx = insn.iced.mnemonic() == Mnemonic::Maskmovq;
    check(cpu, if mmx { Class::Mmx } else { mxcsr_class(insn) })?;
    let (data, mask, len);
    if mmx {
        if x87_pending(cpu) {
            return Err(mf());
        }
        enter_mmx(cpu);
        let read = |number: usize| {
            let mut value = [0; 32];
            value[..8].copy_from_slice(&cpu.xsave.0[32 + 16 * (number & 7)..40 + 16 * (number & 7)]);
            value
        };
        (data, mask, len) = (read(vector_operand(insn, 1)), read(vector_operand(insn, 2)), 8);
    } else {
        (data, mask, len) = (vector(cpu, vector_operand(insn, 1)), vector(cpu, vector_operand(insn, 2)), 16);
    }
    let mut at = cpu.gpr[reg::RDI];
    if insn.iced.op_kind(0) == OpKind::MemorySegEDI {
        at &= 0xffff_ffff;
    }
    if insn.seg >= 4 {
        at = at.wrapping_add(cpu.seg[(insn.seg & 7) as usize].base);
    }
    for index in (0..len).filter(|index| mask[*index] & 0x80 != 0) {
        mem::probe_write(cpu, env, at.wrapping_add(index as u64), 1, false)?;
    }
    for index in (0..len).filter(|index| mask[*index] & 0x80 != 0) {
        mem::write(cpu, env, at.wrapping_add(index as u64), u64::from(data[index]), 1, false)?;
    }
    Ok(())
}

/// What every MMX instruction does: all registers valid, the top of the stack 0. The image holds the registers from the
/// top on, so they move.
fn enter_mmx(cpu: &mut Cpu) {
    let top = (cpu.xsave.0[3] >> 3 & 7) as usize;
    cpu.xsave.0[32..160].rotate_right(16 * top);
    cpu.xsave.0[4] = 0xff;
    cpu.xsave.0[3] &= !0x38;
}

/// VGATHER*, VPGATHER*: elements loaded so far stay loaded, with their mask cleared, when one faults.
fn gather(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    use Mnemonic as M;
    check(cpu, Class::Avx)?;
    let mnemonic = insn.iced.mnemonic();
    let size =
        if matches!(mnemonic, M::Vgatherdps | M::Vgatherqps | M::Vpgatherdd | M::Vpgatherqd) { 4 } else { 8 };
    let qword_index = matches!(mnemonic, M::Vgatherqps | M::Vgatherqpd | M::Vpgatherqd | M::Vpgatherqq);
    let index_register = insn.iced.memory_index();
    let (to, masks) = (vector_operand(insn, 0), vector_operand(insn, 2));
    let from = index_register.number();
    if to == masks || to == from || masks == from {
        return Err(Exception::ud());
    }
    let indices = vector(cpu, from);
    let index_size = if qword_index { 8 } else { 4 };
    let count = (insn.iced.op_register(0).size() / size).min(index_register.size() / index_size);
    let mut result = vector(cpu, to);
    let mut mask = vector(cpu, masks);
    let base = linear(cpu, insn);
    for element in 0..count {
        let at = element * size;
        if mask[at + size - 1] & 0x80 != 0 {
            let mut raw = [0; 8];
            raw[..index_size].copy_from_slice(&indices[element * index_size..(element + 1) * index_size]);
            let index = u64::from_le_bytes(raw);
            let index = if qword_index { index } else { index as u32 as i32 as u64 };
            let address = base.wrapping_add(index << insn.scale);
            match mem::read(cpu, env, address, size as u8, insn.stack) {
                Ok(value) => result[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]),
                Err(exception) => {
                    set_vector(cpu, to, &result);
                    set_vector(cpu, masks, &mask);
                    return Err(exception);
                }
            }
        }
        mask[at..at + size].fill(0);
    }
    result[count * size..].fill(0);
    set_vector(cpu, to, &result);
    set_vector(cpu, masks, &[0; 32]);
    Ok(())
}
