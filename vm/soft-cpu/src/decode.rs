//! From instruction bytes to a record that the interpreter runs, and the cache of these records. Records hold nothing that
//! depends on the address, and a hit compares the bytes: stores to code need no notice.

use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register,
};

use crate::cpu::{Cpu, sreg};
use crate::env::Env;
use crate::exception::Exception;
use crate::mem;
use crate::ops;

/// What runs one instruction. RIP is still that of the instruction; `cpu.interp.next` is where the next one is.
pub(crate) type Handler = fn(&mut Cpu, &Env<'_>, &Insn) -> Result<(), Exception>;

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opnd {
    None,
    /// A general register.
    Reg(u8),
    /// AH, CH, DH, BH as the number of the register that holds it.
    High(u8),
    Mem,
    Imm,
    /// es, cs, ss, ds, fs, gs.
    Seg(u8),
    Cr(u8),
    Dr(u8),
    /// Vector, mask, x87 and other registers: native stubs look at the iced instruction.
    Other,
}

/// "No register" in [`Insn::base`] and [`Insn::index`].
pub(crate) const NO_REG: u8 = 16;
/// RIP as [`Insn::base`].
pub(crate) const RIP: u8 = 17;

/// A decoded instruction.
#[derive(Clone, Copy)]
pub(crate) struct Insn {
    pub(crate) bytes: u128,
    pub(crate) mask: u128,
    pub(crate) run: Handler,
    pub(crate) disp: u64,
    pub(crate) imm: u64,
    pub(crate) ops: [Opnd; 3],
    pub(crate) len: u8,
    /// Operand size in bytes: that of operand 0, or of the memory operand.
    pub(crate) size: u8,
    /// Size of operand 1.
    pub(crate) size1: u8,
    pub(crate) base: u8,
    pub(crate) index: u8,
    pub(crate) scale: u8,
    /// es, cs, ss, ds: base 0 in 64-bit mode. fs, gs count.
    pub(crate) seg: u8,
    pub(crate) addr32: bool,
    pub(crate) stack: bool,
    pub(crate) lock: bool,
    pub(crate) rep: bool,
    pub(crate) repne: bool,
    /// Condition code, shift kind, ALU kind: what the handler wants.
    pub(crate) sub: u8,
    pub(crate) code: Code,
    pub(crate) iced: Instruction,
}

impl Insn {
    pub(crate) fn has_mem(&self) -> bool {
        self.ops.contains(&Opnd::Mem)
    }
}

/// The decoder's options for this host.
pub fn decoder_options() -> u32 {
    // AMD and Intel differ in 66h-prefixed near branches; copied instructions behave like the host's.
    if crate::cpuid::host_is_amd() { DecoderOptions::AMD } else { DecoderOptions::NONE }
}

const SLOTS: usize = 1 << 14;

/// The decode cache.
pub(crate) struct Cache {
    slots: Box<[Insn]>,
    options: u32,
}

impl Cache {
    pub(crate) fn new() -> Self {
        let empty = Insn { mask: 0, bytes: 1, ..blank() };
        Self { slots: vec![empty; SLOTS].into_boxed_slice(), options: decoder_options() }
    }
}

fn blank() -> Insn {
    Insn {
        bytes: 0,
        mask: 0,
        run: ops::undefined,
        disp: 0,
        imm: 0,
        ops: [Opnd::None; 3],
        len: 1,
        size: 8,
        size1: 8,
        base: NO_REG,
        index: NO_REG,
        scale: 0,
        seg: sreg::DS as u8,
        addr32: false,
        stack: false,
        lock: false,
        rep: false,
        repne: false,
        sub: 0,
        code: Code::INVALID,
        iced: Instruction::default(),
    }
}

/// Fetches and decodes the instruction at RIP. The pointer stays valid until the next call.
#[inline(always)]
pub(crate) fn fetch(cpu: &mut Cpu, env: &Env<'_>) -> Result<*const Insn, Exception> {
    let rip = cpu.rip;
    let page = mem::code_page(cpu, env, rip)?;
    let offset = (rip & 0xfff) as usize;
    let gpa = page.gpa + offset as u64;
    let slot = (gpa ^ (gpa >> 14)) as usize % SLOTS;
    if offset <= 4096 - 16 {
        // SAFETY: 16 bytes from there are inside the page.
        let bytes = unsafe {
            let low = crate::rawmem::load(page.host.add(offset), 8);
            let high = crate::rawmem::load(page.host.add(offset + 8), 8);
            u128::from(low) | u128::from(high) << 64
        };
        let insn = &mut cpu.interp.cache.slots[slot];
        if (bytes ^ insn.bytes) & insn.mask != 0 || insn.mask == 0 {
            let options = cpu.interp.cache.options;
            *insn = match decode(&bytes.to_le_bytes()[..15], options) {
                Ok(insn) => insn,
                Err(_) => return Err(Exception::ud()),
            };
        }
        return Ok(&raw const cpu.interp.cache.slots[slot]);
    }
    fetch_at_end(cpu, env, page, offset, slot)
}

/// The last 15 bytes of a page: the next page is touched only if its bytes are needed.
#[cold]
fn fetch_at_end(
    cpu: &mut Cpu,
    env: &Env<'_>,
    page: mem::CodeEntry,
    offset: usize,
    slot: usize,
) -> Result<*const Insn, Exception> {
    let mut bytes = [0u8; 16];
    let first = 4096 - offset;
    for (index, byte) in bytes.iter_mut().enumerate().take(first.min(15)) {
        // SAFETY: offset + index < 4096.
        *byte = unsafe { crate::rawmem::load(page.host.add(offset + index), 1) } as u8;
    }
    let options = cpu.interp.cache.options;
    let mut result = decode(&bytes[..first.min(15)], options);
    if matches!(result, Err(DecoderError::NoMoreBytes)) && first < 15 {
        let next = (cpu.rip | 0xfff).wrapping_add(1);
        let second = mem::code_page(cpu, env, next)?;
        for (index, byte) in bytes[first..15].iter_mut().enumerate() {
            // SAFETY: index < 15.
            *byte = unsafe { crate::rawmem::load(second.host.add(index), 1) } as u8;
        }
        result = decode(&bytes[..15], options);
    }
    let insn = result.map_err(|_| Exception::ud())?;
    cpu.interp.cache.slots[slot] = insn;
    Ok(&raw const cpu.interp.cache.slots[slot])
}

fn gpr_number(register: Register) -> Option<Opnd> {
    if !register.is_gpr() {
        return None;
    }
    Some(match register {
        Register::AH => Opnd::High(0),
        Register::CH => Opnd::High(1),
        Register::DH => Opnd::High(2),
        Register::BH => Opnd::High(3),
        other => Opnd::Reg(other.full_register().number() as u8),
    })
}

fn segment_number(register: Register) -> Option<u8> {
    Some(match register {
        Register::ES => sreg::ES as u8,
        Register::CS => sreg::CS as u8,
        Register::SS => sreg::SS as u8,
        Register::DS => sreg::DS as u8,
        Register::FS => sreg::FS as u8,
        Register::GS => sreg::GS as u8,
        _ => return None,
    })
}

/// Whether an operand of this kind is a constant in the instruction.
pub fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn operand(iced: &Instruction, index: u32, insn: &mut Insn) -> (Opnd, u8) {
    match iced.op_kind(index) {
        OpKind::Register => {
            let register = iced.op_register(index);
            let size = register.size() as u8;
            if let Some(op) = gpr_number(register) {
                return (op, size);
            }
            if let Some(number) = segment_number(register) {
                return (Opnd::Seg(number), 2);
            }
            if register.is_cr() {
                return (Opnd::Cr(register.number() as u8), 8);
            }
            if register.is_dr() {
                return (Opnd::Dr(register.number() as u8), 8);
            }
            (Opnd::Other, size)
        }
        OpKind::Memory => {
            let size = match iced.memory_size() {
                MemorySize::Unknown => 0,
                size => size.size().min(255) as u8,
            };
            (Opnd::Mem, size)
        }
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            // Decoded at address 0: keep the distance from the next instruction.
            insn.imm = iced.near_branch_target().wrapping_sub(iced.len() as u64);
            (Opnd::Imm, 8)
        }
        kind if is_immediate(kind) => {
            if !matches!(iced.op_kind(index), OpKind::Immediate8_2nd) {
                insn.imm = iced.immediate(index);
            }
            (Opnd::Imm, 8)
        }
        // String operands and far branches: their handlers know.
        _ => (Opnd::None, 0),
    }
}

/// Decodes 64-bit code.
fn decode(bytes: &[u8], options: u32) -> Result<Insn, DecoderError> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, options);
    let iced = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => {}
        DecoderError::NoMoreBytes if bytes.len() < 15 => return Err(DecoderError::NoMoreBytes),
        error => return Err(error),
    }
    let mut insn = blank();
    let len = iced.len();
    insn.len = len as u8;
    insn.mask = (1u128 << (8 * len as u32)) - 1;
    let mut raw = [0; 16];
    raw[..len].copy_from_slice(&bytes[..len]);
    insn.bytes = u128::from_le_bytes(raw);
    insn.code = iced.code();
    insn.iced = iced;
    let mut sizes = [0u8; 3];
    for index in 0..iced.op_count().min(3) {
        let (op, size) = operand(&iced, index, &mut insn);
        insn.ops[index as usize] = op;
        sizes[index as usize] = size;
    }
    insn.size = sizes[0];
    insn.size1 = sizes[1];
    insn.lock = iced.has_lock_prefix();
    insn.rep = iced.has_rep_prefix();
    insn.repne = iced.has_repne_prefix();
    if insn.has_mem() {
        lower_memory(&iced, &mut insn);
    } else if let Some(seg) = segment_number(iced.segment_prefix()) {
        insn.seg = seg;
    }
    if iced.mnemonic() == Mnemonic::Lea {
        insn.size1 = sizes[0];
    }
    ops::select(&mut insn);
    Ok(insn)
}

fn lower_memory(iced: &Instruction, insn: &mut Insn) {
    let register = |register: Register| match register {
        Register::None => NO_REG,
        Register::RIP | Register::EIP => RIP,
        other => other.number() as u8,
    };
    insn.base = register(iced.memory_base());
    insn.index = if iced.memory_index().is_gpr() { register(iced.memory_index()) } else { NO_REG };
    insn.scale = iced.memory_index_scale().trailing_zeros() as u8;
    insn.disp = iced.memory_displacement64();
    let base = iced.memory_base();
    let index = iced.memory_index();
    insn.addr32 = base.is_gpr32()
        || index.is_gpr32()
        || base == Register::EIP
        || (base == Register::None && index == Register::None && iced.memory_displ_size() == 4);
    if base == Register::None && index == Register::None {
        // moffs and absolute forms: iced sign-extends disp32 unless the address size is 32.
        insn.addr32 = false;
    }
    if matches!(base, Register::RIP | Register::EIP) {
        // Decoded at address 0: what iced gives is the offset from the start of the instruction.
        insn.disp = insn.disp.wrapping_sub(u64::from(insn.len));
    }
    if let Some(seg) = segment_number(iced.memory_segment()) {
        insn.seg = seg;
    }
    insn.stack = insn.seg == sreg::SS as u8;
}

/// The offset part of the memory operand's address.
#[inline(always)]
pub(crate) fn offset(cpu: &Cpu, insn: &Insn) -> u64 {
    let mut address = insn.disp;
    if insn.base < 16 {
        address = address.wrapping_add(cpu.gpr[(insn.base & 15) as usize]);
    } else if insn.base == RIP {
        address = address.wrapping_add(cpu.interp.next);
    }
    if insn.index < 16 {
        address = address.wrapping_add(cpu.gpr[(insn.index & 15) as usize] << insn.scale);
    }
    if insn.addr32 { address & 0xffff_ffff } else { address }
}

/// The linear address of the memory operand.
#[inline(always)]
pub(crate) fn linear(cpu: &Cpu, insn: &Insn) -> u64 {
    let offset = offset(cpu, insn);
    if insn.seg >= sreg::FS as u8 {
        offset.wrapping_add(cpu.seg[(insn.seg & 7) as usize].base)
    } else {
        offset
    }
}
