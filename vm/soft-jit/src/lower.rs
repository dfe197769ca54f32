//! One guest instruction to host code.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};
use soft_cpu::cpu::sreg;

use crate::block::Vectors;
use crate::decode::{Class, Decoded, LookAhead, is_homed, returns_flags};
use crate::emit::{ABOVE, GUEST_SP, Mem, R10, R11, RBP, RCX};
use crate::layout::{
    BIT_MASK, INDEX_MASK, PAGE_MASK, SPILL_RCX, Space, TAG_READ, TAG_WRITE, TEMP, TLB_DELTA, TLB_HOST, gpr,
    seg_base,
};
use crate::translate::{Builder, Cold, FLAG_PEEK, Undo, Unsupported};

/// Set in a refill's kind when the access writes; the low byte is the size.
pub(crate) const KIND_WRITE: u32 = 0x100;

/// The number (0-15) of a general register.
fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// The part of host register `host` that has the size of `like`.
fn sized(host: u8, like: Register) -> Result<Register, Unsupported> {
    let index = u32::from(host);
    let base = match like.size() {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        // Numbers 4-7 of the byte registers are ah-bh in iced's order; only r8b-r15b are asked for here.
        1 if host >= 8 => {
            return [
                Register::R8L,
                Register::R9L,
                Register::R10L,
                Register::R11L,
                Register::R12L,
                Register::R13L,
                Register::R14L,
                Register::R15L,
            ]
            .get(host as usize - 8)
            .copied()
            .ok_or(Unsupported);
        }
        _ => return Err(Unsupported),
    };
    Ok(base + index)
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// What happens to a homed register in an instruction.
#[derive(Clone, Copy)]
struct Home {
    guest: u8,
    temp: u8,
    reads: bool,
    writes: bool,
}

impl Builder<'_> {
    /// Translates one instruction; `true` = it ended the block.
    pub(crate) fn lower(&mut self, item: &Decoded) -> Result<bool, Unsupported> {
        let instr = &item.instr;
        match item.class {
            Class::Copy => self.lower_copy(instr).map(|()| false),
            Class::Nop => Ok(false),
            Class::CacheLine => {
                let retry = self.asm.here();
                self.effective_address(instr)?;
                self.check(retry, 1, false).map(|()| false)
            }
            Class::Lea => self.lower_lea(instr).map(|()| false),
            Class::BitString => self.lower_bit_string(instr).map(|()| false),
            Class::Push => self.lower_push(instr).map(|()| false),
            Class::Pop => self.lower_pop(instr).map(|()| false),
            Class::Leave => self.lower_leave().map(|()| false),
            Class::Jump => {
                let target = instr.near_branch_target();
                let live = self.live_at(target);
                self.jump_to(target, live);
                Ok(true)
            }
            Class::Branch => {
                let target = instr.near_branch_target();
                let live = self.live_at(target);
                self.branch(condition(instr)?, target, live);
                if !self.tools.tuning.extend {
                    let next = instr.next_ip();
                    let live = self.live_at(next);
                    self.jump_to(next, live);
                    return Ok(true);
                }
                Ok(false)
            }
            Class::CountBranch => Err(Unsupported),
            Class::Call => self.lower_call(instr).map(|()| true),
            Class::Return => self.lower_return(instr).map(|()| true),
            Class::JumpIndirect => {
                self.load_operand_to_r10(instr)?;
                // Not a call: what follows may use the flags (V8's code does).
                self.jump_r10(true);
                Ok(true)
            }
            Class::CallIndirect => self.lower_call_indirect(instr).map(|()| true),
            Class::Pause => {
                self.lower_pause();
                Ok(false)
            }
            Class::Cli => self.lower_cli().map(|()| false),
            Class::Cld => {
                self.lower_cld();
                Ok(false)
            }
            Class::ReadControl => self.lower_read_control(instr).map(|()| false),
            Class::PushFlags => self.lower_push_flags().map(|()| false),
            Class::ReadTsc => self.lower_read_tsc(instr).map(|()| false),
            Class::Sti => self.lower_sti().map(|()| false),
            Class::Stac | Class::Clac => {
                self.lower_access_control(instr);
                Ok(true)
            }
            Class::SwapGs => {
                self.lower_swap_gs();
                Ok(false)
            }
            Class::RepString => self.lower_rep_string(instr).map(|()| false),
            Class::ReadSegment => self.lower_read_segment(instr).map(|()| false),
            Class::ReadBase => self.lower_read_base(instr).map(|()| false),
            Class::WriteBase => self.lower_write_base(instr).map(|()| false),
            Class::Step => Err(Unsupported),
        }
    }

    /// Whether any status flag is live at a direct target (unknown = live).
    fn live_at(&mut self, target: u64) -> bool {
        let offset = target.wrapping_sub(self.source.linear_page);
        if offset >= 4096 || !self.tools.tuning.liveness {
            return true;
        }
        let mut look = LookAhead {
            page: self.source.page,
            linear_page: self.source.linear_page,
            dead_at_return: self.dead_at_return(),
            cautious: true,
            lines: 0,
            budget: 12,
        };
        let live = look.live_at(offset as i64) != 0;
        self.out.lines |= look.lines;
        live
    }

    /// Whether status flags are taken as dead at returns and indirect jumps.
    fn dead_at_return(&self) -> bool {
        self.tools.tuning.flags_dead_at_return && !self.source.strict
    }

    /// Whether the code behind a call certainly reads flags before it writes them.
    fn reads_flags_after(&mut self, instr: &Instruction) -> bool {
        if !self.dead_at_return() || !self.tools.tuning.liveness {
            return false;
        }
        let mut look = LookAhead {
            page: self.source.page,
            linear_page: self.source.linear_page,
            dead_at_return: true,
            cautious: false,
            lines: 0,
            budget: FLAG_PEEK,
        };
        let live = look.live_at(instr.next_ip().wrapping_sub(self.source.linear_page) as i64) != 0;
        self.out.lines |= look.lines;
        live
    }

    /// Which access the instruction makes to its explicit memory operand: (reads or writes, writes).
    fn memory_access(&mut self, instr: &Instruction) -> Result<(bool, bool), Unsupported> {
        let info = self.tools.info.info(instr);
        let mut touched = (false, false);
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Memory {
                continue;
            }
            let access = info.op_access(op);
            touched = match access {
                OpAccess::None | OpAccess::NoMemAccess => touched,
                OpAccess::Read | OpAccess::CondRead => (true, touched.1),
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                    (true, true)
                }
            };
        }
        Ok(touched)
    }

    /// Loads a guest register used in an address into `temp` if it is homed; returns the host register that holds it.
    pub(crate) fn address_register(&mut self, register: Register, temp: u8) -> u8 {
        let guest = number(register);
        match guest {
            4 => GUEST_SP,
            9..=11 => {
                self.asm.load(temp, Mem::Gs(gpr(guest)));
                temp
            }
            _ => guest,
        }
    }

    /// The linear address of the explicit memory operand into r10; may use r11, keeps flags.
    pub(crate) fn effective_address(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let segment = match instr.memory_segment() {
            Register::FS => Some(seg_base(sreg::FS)),
            Register::GS => Some(seg_base(sreg::GS)),
            _ => None,
        };
        if instr.is_ip_rel_memory_operand() {
            if instr.memory_base() == Register::EIP {
                return Err(Unsupported);
            }
            let target = instr.memory_displacement64();
            match segment {
                None => self.load_linear(R10, target),
                Some(base) => {
                    self.load_linear(R11, target);
                    self.asm.load(R10, Mem::Gs(base));
                    self.asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, 1)), disp: 0 });
                }
            }
            return Ok(());
        }
        let base = instr.memory_base();
        let index = instr.memory_index();
        let displacement = instr.memory_displacement64();
        if base == Register::None && index == Register::None {
            // Absolute: 32 bits sign- or zero-extended by the decoder.
            match segment {
                None => self.asm.constant(R10, displacement),
                Some(slot) => {
                    let disp = i32::try_from(displacement as i64).map_err(|_| Unsupported)?;
                    self.asm.load(R10, Mem::Gs(slot));
                    if disp != 0 {
                        self.asm.lea(R10, Mem::at(R10, disp));
                    }
                }
            }
            return Ok(());
        }
        let narrow = match (base.size(), index.size()) {
            (4, _) | (_, 4) if base != Register::None || index != Register::None => {
                base.size() == 4 || index.size() == 4
            }
            _ => false,
        };
        if (base != Register::None && !matches!(base.size(), 4 | 8))
            || (index != Register::None && !matches!(index.size(), 4 | 8))
        {
            return Err(Unsupported);
        }
        let disp = displacement as i32;
        let base = (base != Register::None).then(|| self.address_register(base, R10));
        let index = (index != Register::None)
            .then(|| (self.address_register(index, R11), instr.memory_index_scale() as u8));
        let mem = Mem::Sib { base, index, disp };
        if narrow {
            self.asm.lea32(R10, mem);
        } else if !(index.is_none() && disp == 0 && base == Some(R10)) {
            if let (Some(from), None, 0) = (base, index, disp) {
                self.asm.mov(R10, from);
            } else {
                self.asm.lea(R10, mem);
            }
        }
        if let Some(slot) = segment {
            self.asm.load(R11, Mem::Gs(slot));
            self.asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, 1)), disp: 0 });
        }
        Ok(())
    }

    /// The linear address in r10 (made since `retry`) becomes a host address, if the page is in the TLB with the right
    /// access and `size` bytes from there lie in it. Uses r11; keeps flags where they are live.
    pub(crate) fn check(&mut self, retry: u32, size: usize, write: bool) -> Result<(), Unsupported> {
        if size == 0 || size > 64 {
            return Err(Unsupported);
        }
        let space = self.source.mode.space;
        let tag = space.tlb() + if write { TAG_WRITE } else { TAG_READ };
        let kind = size as u32 | if write { KIND_WRITE } else { 0 };
        if self.live {
            self.asm.store(Mem::Gs(SPILL_RCX), RCX);
            self.asm.pext(R11, R10, Mem::Gs(INDEX_MASK + 8 * space as i32));
            self.asm.lea32(R11, Mem::Sib { base: None, index: Some((R11, 4)), disp: 0 });
            self.asm.load(RCX, Mem::GsR11x8(tag));
            self.asm.not(RCX);
            self.asm.lea(RCX, Mem::Sib { base: Some(RCX), index: Some((R10, 1)), disp: size as i32 });
            self.asm.pext(RCX, RCX, Mem::Gs(PAGE_MASK));
            let hit = self.asm.jrcxz();
            let from = self.asm.jmp();
            self.cold.push(Cold::Miss {
                from,
                retry,
                kind,
                offset: self.at,
                vector: self.vectors == Vectors::Used,
                undo: Undo::Rcx,
            });
            self.asm.link_short(hit);
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            self.asm.load(R11, Mem::GsR11x8(space.tlb() + TLB_DELTA));
            self.asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, 1)), disp: 0 });
        } else {
            self.asm.rorx(R11, R10, 7);
            self.asm.and32(R11, (space.tlb_len() as i32 - 1) * 32);
            self.asm.op_mem(true, &[0x33], R10, Mem::GsR11(tag)); // xor
            self.asm.alu_imm(true, 7, R10, 4096 - size as i32); // cmp
            let from = self.asm.jcc(ABOVE);
            self.cold.push(Cold::Miss {
                from,
                retry,
                kind,
                offset: self.at,
                vector: self.vectors == Vectors::Used,
                undo: Undo::Xor(tag),
            });
            self.asm.op_mem(true, &[0x03], R10, Mem::GsR11(space.tlb() + TLB_HOST)); // add
        }
        Ok(())
    }

    /// Homed registers among the explicit register operands, each with a scratch register.
    fn homes(&mut self, instr: &Instruction, temps: &[u8]) -> Result<Vec<Home>, Unsupported> {
        let mut homes: Vec<Home> = Vec::new();
        let accesses: Vec<OpAccess> = {
            let info = self.tools.info.info(instr);
            (0..instr.op_count()).map(|op| info.op_access(op)).collect()
        };
        for (op, access) in accesses.iter().enumerate() {
            let op = op as u32;
            if instr.op_kind(op) != OpKind::Register {
                continue;
            }
            let register = instr.op_register(op);
            if !register.is_gpr() || !is_homed(register) {
                continue;
            }
            let whole_write = *access == OpAccess::Write && register.size() >= 4;
            let writes = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
            let guest = number(register);
            if let Some(home) = homes.iter_mut().find(|home| home.guest == guest) {
                home.reads |= !whole_write;
                home.writes |= writes;
                continue;
            }
            let temp = *temps.get(homes.len()).ok_or(Unsupported)?;
            homes.push(Home { guest, temp, reads: !whole_write, writes });
        }
        Ok(homes)
    }

    /// Rewrites register operands: rsp to r9, homed registers to their scratch registers.
    fn rename(instr: &mut Instruction, homes: &[Home]) -> Result<(), Unsupported> {
        let mut extended = false;
        let mut high = false;
        for op in 0..instr.op_count() {
            if instr.op_kind(op) != OpKind::Register {
                continue;
            }
            let register = instr.op_register(op);
            high |= is_high_byte(register);
            if !register.is_gpr() {
                continue;
            }
            let guest = if is_high_byte(register) { continue } else { number(register) };
            let host = if guest == 4 {
                GUEST_SP
            } else if let Some(home) = homes.iter().find(|home| home.guest == guest) {
                home.temp
            } else {
                continue;
            };
            extended = true;
            instr.set_op_register(op, sized(host, register)?);
        }
        // A byte register ah-bh cannot be encoded together with r8-r15.
        if high && extended { Err(Unsupported) } else { Ok(()) }
    }

    fn lower_copy(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let mut copy = *instr;
        copy.set_segment_prefix(Register::None);
        copy.set_has_rep_prefix(false);
        copy.set_has_repne_prefix(false);
        let has_memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
        if !has_memory {
            let homes = self.homes(instr, &[R10, R11])?;
            self.load_homes(&homes);
            Self::rename(&mut copy, &homes)?;
            self.encode(&copy)?;
            self.store_homes(&homes);
            return Ok(());
        }
        let (touches, writes) = self.memory_access(instr)?;
        if !touches {
            return Err(Unsupported);
        }
        let size = instr.memory_size().size();
        let retry = self.asm.here();
        self.effective_address(instr)?;
        self.check(retry, size, writes)?;
        let homes = self.homes(instr, &[R11])?;
        self.copy_with_memory(&mut copy, &homes)
    }

    /// Emits `copy` with its memory operand replaced by the host address in r10.
    fn copy_with_memory(&mut self, copy: &mut Instruction, homes: &[Home]) -> Result<(), Unsupported> {
        let high = (0..copy.op_count())
            .any(|op| copy.op_kind(op) == OpKind::Register && is_high_byte(copy.op_register(op)));
        self.load_homes(homes);
        Self::rename(copy, homes)?;
        copy.set_memory_index(Register::None);
        copy.set_memory_index_scale(1);
        copy.set_memory_displacement64(0);
        copy.set_memory_displ_size(0);
        if high {
            // No REX allowed: the address moves to rdi for this one instruction, which cannot fault.
            self.asm.op_reg(true, &[0x87], R10, 7);
            copy.set_memory_base(Register::RDI);
            self.encode(copy)?;
            self.asm.op_reg(true, &[0x87], R10, 7);
        } else {
            copy.set_memory_base(Register::R10);
            self.encode(copy)?;
        }
        self.store_homes(homes);
        Ok(())
    }

    fn load_homes(&mut self, homes: &[Home]) {
        for home in homes.iter().filter(|home| home.reads) {
            self.asm.load(home.temp, Mem::Gs(gpr(home.guest)));
        }
    }

    fn store_homes(&mut self, homes: &[Home]) {
        for home in homes.iter().filter(|home| home.writes) {
            self.asm.store(Mem::Gs(gpr(home.guest)), home.temp);
        }
    }

    fn lower_lea(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let mut plain = *instr;
        plain.set_segment_prefix(Register::None);
        let target = instr.op0_register();
        let guest = number(target);
        let host = match guest {
            4 => GUEST_SP,
            9..=11 => R10,
            _ => guest,
        };
        // The address without its segment base.
        let base = plain.memory_base();
        let index = plain.memory_index();
        if target.size() == 2 || base == Register::EIP {
            return Err(Unsupported);
        }
        if base == Register::RIP || (base == Register::None && index == Register::None) {
            let address = plain.memory_displacement64();
            if base == Register::RIP {
                self.load_linear(R10, address);
            } else {
                self.asm.constant(R10, address);
            }
            if target.size() == 4 {
                self.asm.op_reg(false, &[0x89], R10, R10);
            }
            if host != R10 {
                self.asm.mov(host, R10);
            }
        } else {
            let narrow = base.size() == 4 || index.size() == 4 || target.size() == 4;
            let disp = plain.memory_displacement64() as i32;
            let base = (base != Register::None).then(|| self.address_register(base, R10));
            let index = (index != Register::None)
                .then(|| (self.address_register(index, R11), plain.memory_index_scale() as u8));
            let mem = Mem::Sib { base, index, disp };
            if narrow { self.asm.lea32(host, mem) } else { self.asm.lea(host, mem) }
        }
        if host == R10 {
            self.asm.store(Mem::Gs(gpr(guest)), R10);
        }
        Ok(())
    }

    fn lower_bit_string(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let bits = instr.op1_register();
        let wide = match bits.size() {
            8 => true,
            4 => false,
            _ => return Err(Unsupported),
        };
        // With 32-bit addresses the sum with the bit's place is cut to 32 bits as well.
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let absolute = base == Register::None && index == Register::None;
        let narrow = base.size() == 4 || index.size() == 4 || (absolute && instr.memory_displ_size() == 4);
        if is_homed(bits) || number(bits) == 4 || narrow {
            return Err(Unsupported);
        }
        let (_, writes) = self.memory_access(instr)?;
        let from = number(bits);
        let retry = self.asm.here();
        self.effective_address(instr)?;
        self.asm.constant(R11, if wide { 6 } else { 5 });
        self.asm.sarx(wide, R11, from, R11);
        if !wide {
            self.asm.op_reg(true, &[0x63], R11, R11); // movsxd r11, r11d
        }
        self.asm
            .lea(R10, Mem::Sib { base: Some(R10), index: Some((R11, if wide { 8 } else { 4 })), disp: 0 });
        self.check(retry, if wide { 8 } else { 4 }, writes)?;
        self.asm.pext(R11, from, Mem::Gs(BIT_MASK + if wide { 0 } else { 8 }));
        let mut copy = *instr;
        copy.set_segment_prefix(Register::None);
        copy.set_has_rep_prefix(false);
        copy.set_has_repne_prefix(false);
        copy.set_op1_register(sized(R11, bits)?);
        self.copy_with_memory(&mut copy, &[])
    }

    /// The guest's stack pointer plus `offset` into r10.
    pub(crate) fn stack_address(&mut self, offset: i32) {
        if offset == 0 {
            self.asm.mov(R10, GUEST_SP);
        } else {
            self.asm.lea(R10, Mem::at(GUEST_SP, offset));
        }
    }

    fn lower_push(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let held = if instr.op0_kind() == OpKind::Memory {
            let retry = self.asm.here();
            self.effective_address(instr)?;
            self.check(retry, 8, false)?;
            self.asm.load(R11, Mem::at(R10, 0));
            self.asm.store(Mem::Gs(TEMP), R11);
            true
        } else {
            false
        };
        let retry = self.asm.here();
        self.stack_address(-8);
        self.check(retry, 8, true)?;
        if held {
            self.asm.load(R11, Mem::Gs(TEMP));
            self.asm.store(Mem::at(R10, 0), R11);
        } else if instr.op0_kind() == OpKind::Register {
            let source = self.address_register(instr.op0_register(), R11);
            self.asm.store(Mem::at(R10, 0), source);
        } else {
            self.asm.store_imm(Mem::at(R10, 0), instr.immediate(0) as i64 as i32);
        }
        self.asm.lea(GUEST_SP, Mem::at(GUEST_SP, -8));
        Ok(())
    }

    fn lower_pop(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let retry = self.asm.here();
        self.stack_address(0);
        self.check(retry, 8, false)?;
        let guest = number(instr.op0_register());
        match guest {
            4 => {
                self.asm.load(GUEST_SP, Mem::at(R10, 0));
                return Ok(());
            }
            9..=11 => {
                self.asm.load(R11, Mem::at(R10, 0));
                self.asm.store(Mem::Gs(gpr(guest)), R11);
            }
            _ => self.asm.load(guest, Mem::at(R10, 0)),
        }
        self.asm.lea(GUEST_SP, Mem::at(GUEST_SP, 8));
        Ok(())
    }

    fn lower_leave(&mut self) -> Result<(), Unsupported> {
        let retry = self.asm.here();
        self.asm.mov(R10, RBP);
        self.check(retry, 8, false)?;
        self.asm.lea(GUEST_SP, Mem::at(RBP, 8));
        self.asm.load(RBP, Mem::at(R10, 0));
        Ok(())
    }

    /// Pushes the address of the next instruction (the check comes first).
    fn push_return_address(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let retry = self.asm.here();
        self.stack_address(-8);
        self.check(retry, 8, true)?;
        let next = instr.next_ip();
        if let (Ok(small), true) = (i32::try_from(next as i64), self.source.mode.space != Space::User) {
            self.asm.store_imm(Mem::at(R10, 0), small);
        } else {
            self.load_linear(R11, next);
            self.asm.store(Mem::at(R10, 0), R11);
        }
        self.asm.lea(GUEST_SP, Mem::at(GUEST_SP, -8));
        Ok(())
    }

    fn lower_call(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        self.push_return_address(instr)?;
        let target = instr.near_branch_target();
        if self.reads_flags_after(instr) {
            self.out.flag_calls.push(target);
        }
        let offset = target.wrapping_sub(self.source.linear_page);
        let live = if !self.out.flag_calls.is_empty() {
            true
        } else if offset < 4096 {
            self.live_at(target)
        } else {
            !self.dead_at_return()
        };
        self.jump_to(target, live);
        Ok(())
    }

    /// The target of an indirect jump into r10.
    fn load_operand_to_r10(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        if instr.op0_kind() == OpKind::Memory {
            let retry = self.asm.here();
            self.effective_address(instr)?;
            self.check(retry, 8, false)?;
            self.asm.load(R10, Mem::at(R10, 0));
        } else {
            let source = self.address_register(instr.op0_register(), R10);
            if source != R10 {
                self.asm.mov(R10, source);
            }
        }
        Ok(())
    }

    fn lower_call_indirect(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        self.load_operand_to_r10(instr)?;
        self.asm.store(Mem::Gs(TEMP), R10);
        self.push_return_address(instr)?;
        self.asm.load(R10, Mem::Gs(TEMP));
        self.jump_r10(!self.dead_at_return());
        Ok(())
    }

    fn lower_return(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let retry = self.asm.here();
        self.stack_address(0);
        self.check(retry, 8, false)?;
        self.asm.load(R10, Mem::at(R10, 0));
        let extra = if instr.op_count() == 1 { i32::from(instr.immediate16()) } else { 0 };
        self.asm.lea(GUEST_SP, Mem::at(GUEST_SP, 8 + extra));
        // A lone return may be where a routine that answers in the flags jumps to (Linux's return thunk is one).
        let lone = self.at as usize == self.source.offset;
        let live = !self.dead_at_return() || lone || returns_flags(self.source.page, self.at as usize);
        self.jump_r10(live);
        Ok(())
    }
}

/// The low four opcode bits of a conditional jump.
fn condition(instr: &Instruction) -> Result<u8, Unsupported> {
    use Mnemonic as M;
    Ok(match instr.mnemonic() {
        M::Jo => 0,
        M::Jno => 1,
        M::Jb => 2,
        M::Jae => 3,
        M::Je => 4,
        M::Jne => 5,
        M::Jbe => 6,
        M::Ja => 7,
        M::Js => 8,
        M::Jns => 9,
        M::Jp => 10,
        M::Jnp => 11,
        M::Jl => 12,
        M::Jge => 13,
        M::Jle => 14,
        M::Jg => 15,
        _ => return Err(Unsupported),
    })
}
