//! System instructions that are frequent enough to be done in line. All but RDTSC and reads of selectors are made at
//! CPL 0 only.

use iced_x86::{Code, Instruction, OpKind, Register};
use soft_cpu::cpu::sreg;

use crate::block::Vectors;
use crate::decode::Class;
use crate::emit::{ABOVE, EQUAL, GUEST_SP, Mem, NOT_EQUAL, R10, R11, RAX, RCX, RDI, RDX, RSI};
use crate::layout::{
    FLAGS, IRQ_WINDOW, KERNEL_GS_BASE, PAUSES, RFLAGS, SPILL_RCX, Space, TEMP, TSC_AUX, TSC_OFFSET, control,
    gpr, seg_base, selector,
};
use crate::translate::{Builder, Cold, Unsupported};

const IF: i32 = 0x200;
const DF: i32 = 0x400;
const AC: i32 = 0x4_0000;

impl Builder<'_> {
    /// CPL 0 only.
    pub(crate) fn lower_cli(&mut self) -> Result<(), Unsupported> {
        if self.live {
            // btr changes CF only, so spare it with a copy through the host stack; rare.
            self.asm.bytes(&[0x9c]); // pushfq
        }
        // and dword gs:[RFLAGS], ~IF
        self.asm.op_mem(false, &[0x81], 4, Mem::Gs(RFLAGS));
        self.asm.bytes(&(!0x200u32).to_le_bytes());
        if self.live {
            self.asm.bytes(&[0x9d]); // popfq
        }
        Ok(())
    }

    pub(crate) fn lower_cld(&mut self) {
        self.change_rflags(4, !DF);
    }

    /// A loop that waits for another vCPU gives its core away now and then: that vCPU's thread may want it.
    pub(crate) fn lower_pause(&mut self) {
        self.asm.bytes(&[0xf3, 0x90]);
        if self.live {
            return;
        }
        self.asm.op_mem(false, &[0x80], 0, Mem::Gs(PAUSES)); // add byte
        self.asm.bytes(&[4]);
        let from = self.asm.jcc(EQUAL);
        self.cold.push(Cold::Step { from, at: self.at, vectors: Vectors::Untouched });
    }

    /// `mov` from CR0, CR2, CR3 or CR4. CPL 0 only.
    pub(crate) fn lower_read_control(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let slot = control(instr.op1_register().number() as u32).ok_or(Unsupported)?;
        let (host, home) = Self::destination(instr.op0_register());
        self.asm.load(host, Mem::Gs(slot));
        if let Some(home) = home {
            self.asm.store(Mem::Gs(home), host);
        }
        Ok(())
    }

    /// CPL 0 only.
    pub(crate) fn lower_push_flags(&mut self) -> Result<(), Unsupported> {
        // The status flags are read: the check keeps them.
        self.live = true;
        let retry = self.asm.here();
        self.stack_address(-8);
        self.check(retry, 8, true)?;
        self.asm.bytes(&[0x9c, 0x41, 0x5b]); // pushfq; pop r11
        self.asm.bytes(&[0x9c]); // pushfq, to be restored
        self.asm.alu_imm(true, 4, R11, 0x8d5);
        self.asm.store(Mem::Gs(TEMP), R11);
        self.asm.load(R11, Mem::Gs(RFLAGS));
        self.asm.alu_imm(true, 4, R11, !(0x8d5 | 0x1_0000));
        self.asm.op_mem(true, &[0x0b], R11, Mem::Gs(TEMP)); // or
        self.asm.store(Mem::at(R10, 0), R11);
        self.asm.bytes(&[0x9d]); // popfq
        self.asm.lea(GUEST_SP, Mem::at(GUEST_SP, -8));
        Ok(())
    }

    /// Sets or clears bits of RFLAGS in memory; the status flags are kept if they are live.
    fn change_rflags(&mut self, digit: u8, value: i32) {
        if self.live {
            self.asm.bytes(&[0x9c]); // pushfq
        }
        self.asm.op_mem(false, &[0x81], digit, Mem::Gs(RFLAGS));
        self.asm.bytes(&value.to_le_bytes());
        if self.live {
            self.asm.bytes(&[0x9d]); // popfq
        }
    }

    /// In line only if nothing waits for interrupts to be enabled, and if the instruction in the shadow is in the block
    /// and goes on without Rust (so that `sti; hlt` is left to the interpreter as a pair).
    pub(crate) fn lower_sti(&mut self) -> Result<(), Unsupported> {
        let quiet = matches!(
            self.following,
            Some(
                Class::Copy
                    | Class::Nop
                    | Class::Lea
                    | Class::BitString
                    | Class::Push
                    | Class::Pop
                    | Class::Leave
                    | Class::Return
                    | Class::Jump
                    | Class::Branch
            )
        );
        if !quiet {
            return Err(Unsupported);
        }
        let from = if self.live {
            self.asm.store(Mem::Gs(SPILL_RCX), RCX);
            self.asm.op_mem(false, &[0x0f, 0xb6], RCX, Mem::Gs(IRQ_WINDOW));
            let closed = self.asm.jrcxz();
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            let from = self.asm.jmp();
            self.asm.link_short(closed);
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            from
        } else {
            self.asm.cmp_byte_gs(IRQ_WINDOW, 0);
            self.asm.jcc(NOT_EQUAL)
        };
        self.cold.push(Cold::Step { from, at: self.at, vectors: Vectors::Untouched });
        self.change_rflags(1, IF);
        Ok(())
    }

    /// `stac`, `clac`: what follows belongs to another space.
    pub(crate) fn lower_access_control(&mut self, instr: &Instruction) {
        let space = if instr.code() == Code::Stac {
            self.change_rflags(1, AC);
            Space::KernelAc
        } else {
            self.change_rflags(4, !AC);
            Space::Kernel
        };
        self.load_linear(R10, instr.next_ip());
        self.jump_r10_in(space, self.live, None);
    }

    pub(crate) fn lower_swap_gs(&mut self) {
        self.asm.load(R10, Mem::Gs(seg_base(sreg::GS)));
        self.asm.load(R11, Mem::Gs(KERNEL_GS_BASE));
        self.asm.store(Mem::Gs(seg_base(sreg::GS)), R11);
        self.asm.store(Mem::Gs(KERNEL_GS_BASE), R10);
    }

    /// The host register of a plain destination, or r10 and the slot to store it to.
    fn destination(register: Register) -> (u8, Option<i32>) {
        match register.full_register().number() as u8 {
            4 => (GUEST_SP, None),
            guest @ 9..=11 => (R10, Some(gpr(guest))),
            guest => (guest, None),
        }
    }

    pub(crate) fn lower_read_segment(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let slot = match instr.op1_register() {
            Register::ES => sreg::ES,
            Register::CS => sreg::CS,
            Register::SS => sreg::SS,
            Register::DS => sreg::DS,
            Register::FS => sreg::FS,
            Register::GS => sreg::GS,
            _ => return Err(Unsupported),
        };
        if instr.op0_kind() == OpKind::Memory {
            let retry = self.asm.here();
            self.effective_address(instr)?;
            self.check(retry, 2, true)?;
            self.asm.op_mem(false, &[0x0f, 0xb7], R11, Mem::Gs(selector(slot)));
            self.asm.bytes(&[0x66]);
            self.asm.op_mem(false, &[0x89], R11, Mem::at(R10, 0));
            return Ok(());
        }
        let (host, home) = Self::destination(instr.op0_register());
        if instr.op0_register().size() < 4 {
            // The upper part of the register stays.
            let to = if home.is_some() { R11 } else { host };
            self.asm.bytes(&[0x66]);
            self.asm.op_mem(false, &[0x8b], to, Mem::Gs(selector(slot)));
            if let Some(home) = home {
                self.asm.bytes(&[0x66]);
                self.asm.op_mem(false, &[0x89], to, Mem::Gs(home));
            }
            return Ok(());
        }
        self.asm.op_mem(false, &[0x0f, 0xb7], host, Mem::Gs(selector(slot)));
        if let Some(home) = home {
            self.asm.store(Mem::Gs(home), host);
        }
        Ok(())
    }

    fn base_slot(instr: &Instruction) -> i32 {
        match instr.code() {
            Code::Rdfsbase_r64 | Code::Wrfsbase_r64 => seg_base(sreg::FS),
            _ => seg_base(sreg::GS),
        }
    }

    pub(crate) fn lower_read_base(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let (host, home) = Self::destination(instr.op0_register());
        self.asm.load(host, Mem::Gs(Self::base_slot(instr)));
        if let Some(home) = home {
            self.asm.store(Mem::Gs(home), host);
        }
        Ok(())
    }

    pub(crate) fn lower_write_base(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let source = self.address_register(instr.op0_register(), R10);
        self.asm.store(Mem::Gs(TEMP), source);
        self.asm.constant(R11, 47);
        self.asm.sarx(true, R10, source, R11);
        self.asm.lea(R10, Mem::at(R10, 1));
        let from = if self.live {
            // 0 and 1 are canonical.
            self.asm.constant(R11, 1);
            self.asm.sarx(true, R10, R10, R11);
            self.asm.store(Mem::Gs(SPILL_RCX), RCX);
            self.asm.mov(RCX, R10);
            let canonical = self.asm.jrcxz();
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            let from = self.asm.jmp();
            self.asm.link_short(canonical);
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            from
        } else {
            self.asm.alu_imm(true, 7, R10, 1);
            self.asm.jcc(ABOVE)
        };
        self.cold.push(Cold::Step { from, at: self.at, vectors: Vectors::Untouched });
        self.asm.load(R10, Mem::Gs(TEMP));
        self.asm.store(Mem::Gs(Self::base_slot(instr)), R10);
        Ok(())
    }

    /// Guest time = host time + offset, without touching flags.
    pub(crate) fn lower_read_tsc(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let aux = instr.code() == Code::Rdtscp;
        if aux {
            self.asm.bytes(&[0x0f, 0xae, 0xe8]); // lfence
        }
        self.asm.bytes(&[0x0f, 0x31]); // rdtsc
        self.asm.rorx(RDX, RDX, 32);
        self.asm.lea(RAX, Mem::Sib { base: Some(RAX), index: Some((RDX, 1)), disp: 0 });
        self.asm.load(R10, Mem::Gs(TSC_OFFSET));
        self.asm.lea(RAX, Mem::Sib { base: Some(RAX), index: Some((R10, 1)), disp: 0 });
        self.asm.rorx(RDX, RAX, 32);
        self.asm.op_reg(false, &[0x89], RAX, RAX);
        self.asm.op_reg(false, &[0x89], RDX, RDX);
        if aux {
            self.asm.op_mem(false, &[0x8b], RCX, Mem::Gs(TSC_AUX));
        }
        Ok(())
    }

    /// `rep movs`, `rep stos` that stay within one page on each side run as such on the host's addresses; others are left
    /// to the interpreter.
    pub(crate) fn lower_rep_string(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        let (moves, shift, opcode): (bool, u8, &[u8]) = match instr.code() {
            Code::Movsb_m8_m8 => (true, 0u8, &[0xf3, 0xa4][..]),
            Code::Movsw_m16_m16 => (true, 1, &[0x66, 0xf3, 0xa5]),
            Code::Movsd_m32_m32 => (true, 2, &[0xf3, 0xa5]),
            Code::Movsq_m64_m64 => (true, 3, &[0xf3, 0x48, 0xa5]),
            Code::Stosb_m8_AL => (false, 0, &[0xf3, 0xaa]),
            Code::Stosw_m16_AX => (false, 1, &[0x66, 0xf3, 0xab]),
            Code::Stosd_m32_EAX => (false, 2, &[0xf3, 0xab]),
            Code::Stosq_m64_RAX => (false, 3, &[0xf3, 0x48, 0xab]),
            _ => return Err(Unsupported),
        };
        let size = 1usize << shift;
        let scale = size as u8;
        let live = self.live;
        let leave = |builder: &mut Self, from| {
            let (at, vectors) = (builder.at, Vectors::Untouched);
            builder.cold.push(if live {
                Cold::StepWithFlags { from, at, vectors }
            } else {
                Cold::Step { from, at, vectors }
            });
        };
        if live {
            self.asm.bytes(&[0x9c]); // pushfq
            self.asm.op_mem(false, &[0x8f], 0, Mem::Gs(FLAGS)); // pop
        }
        // test dword gs:[RFLAGS], DF
        self.asm.op_mem(false, &[0xf7], 0, Mem::Gs(RFLAGS));
        self.asm.bytes(&0x400u32.to_le_bytes());
        let from = self.asm.jcc(NOT_EQUAL);
        leave(self, from);
        self.asm.alu_imm(true, 7, RCX, 4096 >> shift);
        let from = self.asm.jcc(ABOVE);
        leave(self, from);
        for side in [RDI, RSI].into_iter().take(if moves { 2 } else { 1 }) {
            self.asm.mov(R10, side);
            self.asm.and32(R10, 0xfff);
            self.asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((RCX, scale)), disp: 0 });
            self.asm.alu_imm(true, 7, R10, 4096);
            let from = self.asm.jcc(ABOVE);
            leave(self, from);
        }
        // test rcx, rcx; je done
        self.asm.op_reg(true, &[0x85], RCX, RCX);
        let nothing = self.asm.jcc(EQUAL);
        if live {
            leave(self, nothing);
            self.restore_flags();
        }
        let retry = self.asm.here();
        self.asm.mov(R10, RDI);
        self.check(retry, size, true)?;
        self.asm.store(Mem::Gs(TEMP), R10);
        if moves {
            let retry = self.asm.here();
            self.asm.mov(R10, RSI);
            self.check(retry, size, false)?;
            self.asm.op_reg(true, &[0x87], R10, RSI); // xchg: the guest's rsi is in r10
        }
        self.asm.load(R11, Mem::Gs(TEMP));
        self.asm.op_reg(true, &[0x87], R11, RDI); // xchg: the guest's rdi is in r11
        self.asm.lea(R10, Mem::Sib { base: Some(R10), index: Some((RCX, scale)), disp: 0 });
        self.asm.lea(R11, Mem::Sib { base: Some(R11), index: Some((RCX, scale)), disp: 0 });
        self.asm.bytes(opcode);
        self.asm.mov(RDI, R11);
        if moves {
            self.asm.mov(RSI, R10);
        }
        if !live {
            self.asm.link_here(nothing);
        }
        Ok(())
    }

    /// Loads the status flags that were kept in their slot.
    pub(crate) fn restore_flags(&mut self) {
        self.asm.op_mem(false, &[0xff], 6, Mem::Gs(FLAGS)); // push
        self.asm.bytes(&[0x9d]); // popfq
    }
}
