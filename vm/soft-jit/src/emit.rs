//! Writes the fixed instruction sequences as bytes. Guest instructions themselves go through iced's encoder.
//!
//! Offsets are relative to the start of the block; the block's start is 16-byte aligned in the code cache.

pub(crate) const RAX: u8 = 0;
pub(crate) const RCX: u8 = 1;
pub(crate) const RDX: u8 = 2;
pub(crate) const RBP: u8 = 5;
pub(crate) const RSI: u8 = 6;
pub(crate) const RDI: u8 = 7;
/// Holds the guest's rsp.
pub(crate) const GUEST_SP: u8 = 9;
pub(crate) const R10: u8 = 10;
pub(crate) const R11: u8 = 11;

/// A memory operand of an emitted instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mem {
    /// `gs:[offset]`
    Gs(i32),
    /// `gs:[r11 + offset]`
    GsR11(i32),
    /// `gs:[r11 * 8 + offset]`
    GsR11x8(i32),
    /// `[base + index * scale + disp]`; scale is 1, 2, 4 or 8. At least one of base and index is there.
    Sib { base: Option<u8>, index: Option<(u8, u8)>, disp: i32 },
}

impl Mem {
    /// `[base + disp]`
    pub(crate) const fn at(base: u8, disp: i32) -> Self {
        Self::Sib { base: Some(base), index: None, disp }
    }
}

/// A condition code (the low four bits of `jcc`).
pub(crate) type Cond = u8;
pub(crate) const EQUAL: Cond = 4;
pub(crate) const NOT_EQUAL: Cond = 5;
pub(crate) const ABOVE: Cond = 7;

/// A growing block.
#[derive(Debug, Default)]
pub(crate) struct Asm {
    pub(crate) buf: Vec<u8>,
}

impl Asm {
    pub(crate) fn here(&self) -> u32 {
        self.buf.len() as u32
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// ModRM, SIB and displacement; `reg` and base/index are full numbers (the caller made the REX/VEX bits).
    fn modrm(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        match mem {
            Mem::Gs(offset) => {
                self.bytes(&[reg | 4, 0x25]);
                self.imm32(offset);
            }
            Mem::GsR11(offset) => {
                self.bytes(&[0x80 | reg | (R11 & 7)]);
                self.imm32(offset);
            }
            Mem::GsR11x8(offset) => {
                self.bytes(&[reg | 4, 0xc0 | ((R11 & 7) << 3) | 5]);
                self.imm32(offset);
            }
            Mem::Sib { base: None, index, disp } => {
                let sib = index
                    .map_or(4 << 3, |(index, scale)| (scale.trailing_zeros() as u8) << 6 | (index & 7) << 3);
                self.bytes(&[reg | 4, sib | 5]);
                self.imm32(disp);
            }
            Mem::Sib { base: Some(base), index, disp } => {
                let small = i8::try_from(disp).ok();
                let mode = match small {
                    Some(0) if base & 7 != 5 => 0,
                    Some(_) => 0x40,
                    None => 0x80,
                };
                match index {
                    None if base & 7 != 4 => self.bytes(&[mode | reg | (base & 7)]),
                    None => self.bytes(&[mode | reg | 4, 0x20 | (base & 7)]),
                    Some((index, scale)) => {
                        let scale = (scale.trailing_zeros() as u8) << 6;
                        self.bytes(&[mode | reg | 4, scale | (index & 7) << 3 | (base & 7)]);
                    }
                }
                match (mode, small) {
                    (0, _) => {}
                    (0x40, Some(small)) => self.bytes(&[small as u8]),
                    _ => self.imm32(disp),
                }
            }
        }
    }

    /// Bits X and B (extended index and base) of a memory operand.
    fn xb(mem: Mem) -> (u8, u8) {
        match mem {
            Mem::Gs(_) => (0, 0),
            Mem::GsR11(_) => (0, 1),
            Mem::GsR11x8(_) => (1, 0),
            Mem::Sib { base, index, .. } => {
                (index.map_or(0, |(index, _)| index >> 3), base.map_or(0, |base| base >> 3))
            }
        }
    }

    fn segment(&mut self, mem: Mem) {
        if !matches!(mem, Mem::Sib { .. }) {
            self.bytes(&[0x65]);
        }
    }

    /// `opcode reg, mem` in 64 (`wide`) or 32 bits.
    pub(crate) fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: u8, mem: Mem) {
        self.segment(mem);
        let (x, b) = Self::xb(mem);
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | x << 1 | b;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(opcode);
        self.modrm(reg, mem);
    }

    /// `opcode reg, rm` between registers in 64 or 32 bits.
    pub(crate) fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        self.bytes(opcode);
        self.bytes(&[0xc0 | (reg & 7) << 3 | (rm & 7)]);
    }

    pub(crate) fn load(&mut self, reg: u8, mem: Mem) {
        self.op_mem(true, &[0x8b], reg, mem);
    }

    pub(crate) fn store(&mut self, mem: Mem, reg: u8) {
        self.op_mem(true, &[0x89], reg, mem);
    }

    pub(crate) fn lea(&mut self, reg: u8, mem: Mem) {
        self.op_mem(true, &[0x8d], reg, mem);
    }

    pub(crate) fn lea32(&mut self, reg: u8, mem: Mem) {
        self.op_mem(false, &[0x8d], reg, mem);
    }

    pub(crate) fn mov(&mut self, to: u8, from: u8) {
        self.op_reg(true, &[0x89], from, to);
    }

    /// Loads a constant without touching flags.
    pub(crate) fn constant(&mut self, reg: u8, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            if reg >= 8 {
                self.bytes(&[0x41]);
            }
            self.bytes(&[0xb8 | (reg & 7)]);
            self.bytes(&value.to_le_bytes());
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.bytes(&[0x48 | reg >> 3, 0xc7, 0xc0 | (reg & 7)]);
            self.imm32(value);
        } else {
            self.bytes(&[0x48 | reg >> 3, 0xb8 | (reg & 7)]);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// `mov qword [mem], sign-extended imm32`
    pub(crate) fn store_imm(&mut self, mem: Mem, value: i32) {
        self.op_mem(true, &[0xc7], 0, mem);
        self.imm32(value);
    }

    fn vex3(&mut self, reg: u8, (x, b): (u8, u8), map: u8, source: u8, pp: u8) {
        self.bytes(&[
            0xc4,
            (1 - (reg >> 3)) << 7 | (1 - x) << 6 | (1 - b) << 5 | map,
            0x80 | (15 - source) << 3 | pp,
        ]);
    }

    /// `rorx to, from, count` (64-bit, flags kept)
    pub(crate) fn rorx(&mut self, to: u8, from: u8, count: u8) {
        self.vex3(to, (0, from >> 3), 3, 0, 3);
        self.bytes(&[0xf0, 0xc0 | (to & 7) << 3 | (from & 7), count]);
    }

    /// `pext to, from, [mask]` (64-bit, flags kept)
    pub(crate) fn pext(&mut self, to: u8, from: u8, mask: Mem) {
        self.segment(mask);
        self.vex3(to, Self::xb(mask), 2, from, 2);
        self.bytes(&[0xf5]);
        self.modrm(to, mask);
    }

    /// `pdep to, from, [mask]` (64-bit, flags kept)
    pub(crate) fn pdep(&mut self, to: u8, from: u8, mask: Mem) {
        self.segment(mask);
        self.vex3(to, Self::xb(mask), 2, from, 3);
        self.bytes(&[0xf5]);
        self.modrm(to, mask);
    }

    /// `not reg` (flags kept)
    pub(crate) fn not(&mut self, reg: u8) {
        self.op_reg(true, &[0xf7], 2, reg);
    }

    /// `sarx to, from, count` (flags kept), 64 or 32 bits
    pub(crate) fn sarx(&mut self, wide: bool, to: u8, from: u8, count: u8) {
        let w = u8::from(wide) << 7;
        self.bytes(&[
            0xc4,
            (1 - (to >> 3)) << 7 | 0x40 | (1 - (from >> 3)) << 5 | 2,
            w | (15 - count) << 3 | 2,
        ]);
        self.bytes(&[0xf7, 0xc0 | (to & 7) << 3 | (from & 7)]);
    }

    /// `and r32, imm32`; clobbers flags
    pub(crate) fn and32(&mut self, reg: u8, value: i32) {
        self.alu_imm(false, 4, reg, value);
    }

    /// `and/cmp/... reg, imm32` by the opcode's /digit; clobbers flags
    pub(crate) fn alu_imm(&mut self, wide: bool, digit: u8, reg: u8, value: i32) {
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3;
        if rex != 0x40 {
            self.bytes(&[rex]);
        }
        if let Ok(small) = i8::try_from(value) {
            self.bytes(&[0x83, 0xc0 | digit << 3 | (reg & 7), small as u8]);
        } else {
            self.bytes(&[0x81, 0xc0 | digit << 3 | (reg & 7)]);
            self.imm32(value);
        }
    }

    /// `cmp byte gs:[offset], imm8`
    pub(crate) fn cmp_byte_gs(&mut self, offset: i32, value: u8) {
        self.op_mem(false, &[0x80], 7, Mem::Gs(offset));
        self.bytes(&[value]);
    }

    /// `jcc rel32`; returns where the rel32 is.
    pub(crate) fn jcc(&mut self, cond: Cond) -> u32 {
        self.bytes(&[0x0f, 0x80 | cond]);
        self.hole()
    }

    /// `jmp rel32`; returns where the rel32 is.
    pub(crate) fn jmp(&mut self) -> u32 {
        self.bytes(&[0xe9]);
        self.hole()
    }

    /// `call rel32`; returns where the rel32 is.
    pub(crate) fn call(&mut self) -> u32 {
        self.bytes(&[0xe8]);
        self.hole()
    }

    fn hole(&mut self) -> u32 {
        let at = self.here();
        self.imm32(0);
        at
    }

    /// Lets the rel32 at `at` lead to `target` (an offset relative to the block's start; may lie outside).
    pub(crate) fn link(&mut self, at: u32, target: i64) {
        let relative = (target - (i64::from(at) + 4)) as i32;
        let at = at as usize;
        if let Some(hole) = self.buf.get_mut(at..at + 4) {
            hole.copy_from_slice(&relative.to_le_bytes());
        }
    }

    /// Lets the rel32 at `at` lead here.
    pub(crate) fn link_here(&mut self, at: u32) {
        self.link(at, i64::from(self.here()));
    }

    /// `jrcxz` over what follows; returns the place of its rel8.
    pub(crate) fn jrcxz(&mut self) -> u32 {
        self.bytes(&[0xe3, 0]);
        self.here() - 1
    }

    /// Lets the rel8 at `at` lead here.
    pub(crate) fn link_short(&mut self, at: u32) {
        let distance = self.here() - (at + 1);
        debug_assert!(distance < 128);
        if let Some(byte) = self.buf.get_mut(at as usize) {
            *byte = distance as u8;
        }
    }

    /// Pads so that a rel32 which follows `skip` opcode bytes is 4-byte aligned (it may be patched while it runs).
    pub(crate) fn align_patch(&mut self, skip: u32) {
        match (self.here() + skip) % 4 {
            1 => self.bytes(&[0x0f, 0x1f, 0x00]),
            2 => self.bytes(&[0x66, 0x90]),
            3 => self.bytes(&[0x90]),
            _ => {}
        }
    }

    /// `jmp qword [mem]`
    pub(crate) fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0xff], 4, mem);
    }
}
