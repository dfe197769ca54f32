//! The shared pieces of code between Rust and blocks. They name no host address: Rust functions are reached through
//! pointers in the vCPU state, everything else is `gs`-relative.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, byte_ptr, dword_ptr, eax, edx, qword_ptr, r8, r9, r10, r10d, r11, r11d, r12, r13, r14,
    r15, rax, rbp, rbx, rcx, rdi, rdx, registers, rsi, rsp, ymmword_ptr,
};

use crate::block::Thunk;
use crate::layout::{
    BY, ENTRY, EXIT_BRANCH, EXIT_CODE, EXIT_JUMP, EXIT_SIGNAL, EXIT_SITE, EXIT_SITE_SLOT, EXIT_STEP,
    EXIT_STEP_VECTOR, GUEST_MXCSR, HOST_MXCSR, HOST_STACK, JUMP_HOST, JUMP_WAYS, JumpEntry, KICK, PC_BASE,
    REFILL, RFLAGS, RIP, RUST_RSP, SAVED, SAVED_YMM, Space, THIS, VECTORS_LIVE, XSAVE, gpr,
};

/// Components of the extended state that belong to the guest: x87, SSE, AVX.
const COMPONENTS: i32 = 7;

/// The code of one thunk, position-independent.
pub(crate) fn assemble(thunk: Thunk) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    match thunk {
        Thunk::Enter => enter(&mut a)?,
        Thunk::Site => {
            a.pop(gs(EXIT_SITE_SLOT))?;
            a.mov(gs(EXIT_CODE), EXIT_SITE as i32)?;
            leave(&mut a)?;
        }
        Thunk::JumpMiss => jump_miss(&mut a)?,
        Thunk::BranchMiss => branch_miss(&mut a)?,
        Thunk::JumpProbe(space) => {
            probe(&mut a, space)?;
            jump_miss(&mut a)?;
        }
        Thunk::BranchProbe(space) => {
            a.mov(gs(BY), r11)?;
            probe(&mut a, space)?;
            a.mov(r11, gs(BY))?;
            branch_miss(&mut a)?;
        }
        Thunk::Step => {
            a.mov(gs(RIP), r10)?;
            a.mov(gs(EXIT_CODE), EXIT_STEP as i32)?;
            leave(&mut a)?;
        }
        Thunk::StepVector => {
            a.mov(gs(RIP), r10)?;
            a.mov(gs(EXIT_CODE), EXIT_STEP_VECTOR as i32)?;
            leave(&mut a)?;
        }
        Thunk::SaveVectors => save_vectors(&mut a)?,
        Thunk::Signal => {
            a.mov(gs(EXIT_CODE), EXIT_SIGNAL as i32)?;
            leave(&mut a)?;
        }
        Thunk::Refill => refill(&mut a)?,
    }
    a.assemble(0)
}

fn jump_miss(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(gs(RIP), r10)?;
    a.mov(gs(EXIT_CODE), EXIT_JUMP as i32)?;
    leave(a)
}

fn branch_miss(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(gs(RIP), r10)?;
    a.mov(gs(EXIT_SITE_SLOT), r11)?;
    a.mov(gs(EXIT_CODE), EXIT_BRANCH as i32)?;
    leave(a)
}

/// Goes on at the guest address in r10 if one of the slots around its own in the jump cache has it and nobody kicks;
/// otherwise what follows runs, with all but r11 as it was.
fn probe(a: &mut CodeAssembler, space: Space) -> Result<(), IcedError> {
    let entry = size_of::<JumpEntry>() as i32;
    let slot = |offset: i32| qword_ptr(r11 + offset).gs();
    let mut missed = a.create_label();
    let mut hit = a.create_label();
    a.pushfq()?;
    a.cmp(byte_ptr(KICK).gs(), 0)?;
    a.jne(missed)?;
    // As `jump_index`.
    a.rorx(r11, r10, 8)?;
    a.add(r11d, r10d)?;
    a.and(r11d, (space.jump_len() - JUMP_WAYS) as i32)?;
    a.shl(r11d, 4)?;
    for way in 0..JUMP_WAYS as i32 {
        let mut other = a.create_label();
        a.cmp(slot(space.jumps() + way * entry), r10)?;
        a.jne(other)?;
        a.add(r11d, way * entry)?;
        a.jmp(hit)?;
        a.set_label(&mut other)?;
    }
    a.jmp(missed)?;
    a.set_label(&mut hit)?;
    if space == Space::User {
        a.and(r10, -4096)?;
        a.mov(gs(PC_BASE), r10)?;
    }
    a.popfq()?;
    a.jmp(slot(space.jumps() + JUMP_HOST))?;
    a.set_label(&mut missed)?;
    a.popfq()
}

fn gs(offset: i32) -> iced_x86::code_asm::AsmMemoryOperand {
    qword_ptr(offset).gs()
}

/// Guest registers that live in host registers, by number in the slot array; 4 (rsp) lives in r9.
fn resident() -> [(u8, iced_x86::code_asm::AsmRegister64); 13] {
    [
        (0, rax),
        (1, rcx),
        (2, rdx),
        (3, rbx),
        (4, r9),
        (5, rbp),
        (6, rsi),
        (7, rdi),
        (8, r8),
        (12, r12),
        (13, r13),
        (14, r14),
        (15, r15),
    ]
}

/// `extern "sysv64" fn()`: loads the guest's registers and jumps to `head.entry`. Returns when translated code leaves.
fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(gs(RUST_RSP), rsp)?;
    a.mov(rsp, gs(HOST_STACK))?;
    let mut in_memory = a.create_label();
    let mut loaded = a.create_label();
    a.cmp(gs(VECTORS_LIVE), 0)?;
    a.je(in_memory)?;
    load_ymm(a)?;
    a.ldmxcsr(dword_ptr(GUEST_MXCSR).gs())?;
    a.set_label(&mut loaded)?;
    a.mov(r10, gs(RFLAGS))?;
    a.and(r10d, 0x8d5)?;
    a.or(r10d, 0x202)?;
    a.push(r10)?;
    for (slot, register) in resident() {
        a.mov(register, gs(gpr(slot)))?;
    }
    a.popfq()?;
    a.jmp(gs(ENTRY))?;
    a.set_label(&mut in_memory)?;
    a.mov(eax, COMPONENTS)?;
    a.xor(edx, edx)?;
    a.xrstor64(registers_ptr(XSAVE))?;
    a.jmp(loaded)
}

fn ymm() -> [iced_x86::code_asm::AsmRegisterYmm; 16] {
    use registers as r;
    [
        r::ymm0,
        r::ymm1,
        r::ymm2,
        r::ymm3,
        r::ymm4,
        r::ymm5,
        r::ymm6,
        r::ymm7,
        r::ymm8,
        r::ymm9,
        r::ymm10,
        r::ymm11,
        r::ymm12,
        r::ymm13,
        r::ymm14,
        r::ymm15,
    ]
}

fn save_ymm(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (index, register) in ymm().into_iter().enumerate() {
        a.vmovups(ymmword_ptr(SAVED_YMM + 32 * index as i32).gs(), register)?;
    }
    a.vzeroupper()
}

fn load_ymm(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (index, register) in ymm().into_iter().enumerate() {
        a.vmovups(register, ymmword_ptr(SAVED_YMM + 32 * index as i32).gs())?;
    }
    Ok(())
}

/// `extern "sysv64" fn()`: after this `cpu.xsave` holds the guest's state, every component of it: the interpreter writes to
/// the image alone, and a component that XSAVE found in its initial state (XSTATE_BV, Intel SDM 1 13.4.2) would not be read back.
/// What depends on the host is not shown: the x87 pointers, which are addresses of the code cache, and MXCSR_MASK.
fn save_vectors(a: &mut CodeAssembler) -> Result<(), IcedError> {
    load_ymm(a)?;
    a.ldmxcsr(dword_ptr(GUEST_MXCSR).gs())?;
    a.mov(eax, COMPONENTS)?;
    a.xor(edx, edx)?;
    a.xsave64(registers_ptr(XSAVE))?;
    a.mov(qword_ptr(XSAVE + 8).gs(), 0)?;
    a.mov(qword_ptr(XSAVE + 16).gs(), 0)?;
    a.mov(dword_ptr(XSAVE + 28).gs(), 0xffff)?;
    a.mov(byte_ptr(XSAVE + 512).gs(), COMPONENTS)?;
    a.ldmxcsr(dword_ptr(HOST_MXCSR).gs())?;
    a.vzeroupper()?;
    a.mov(gs(VECTORS_LIVE), 0)?;
    a.ret()
}

fn registers_ptr(offset: i32) -> iced_x86::code_asm::AsmMemoryOperand {
    iced_x86::code_asm::ptr(offset).gs()
}

/// Saves the guest's registers and returns to Rust.
fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (slot, register) in resident() {
        a.mov(gs(gpr(slot)), register)?;
    }
    a.pushfq()?;
    a.pop(r10)?;
    a.and(r10d, 0x8d5)?;
    a.mov(r11, gs(RFLAGS))?;
    a.and(r11, !0x8d5)?;
    a.or(r11, r10)?;
    a.mov(gs(RFLAGS), r11)?;
    a.stmxcsr(dword_ptr(GUEST_MXCSR).gs())?;
    a.ldmxcsr(dword_ptr(HOST_MXCSR).gs())?;
    save_ymm(a)?;
    a.mov(gs(VECTORS_LIVE), 1)?;
    a.mov(rsp, gs(RUST_RSP))?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()
}

/// Called from a block with a linear address in r10 and the access in r11. Calls the refill with all registers kept;
/// returns to the block, or drops the return address into the exit site and leaves.
fn refill(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let caller_saved = [rax, rcx, rdx, rsi, rdi, r8, r9];
    for (index, register) in caller_saved.iter().enumerate() {
        a.mov(gs(SAVED + 8 * index as i32), *register)?;
    }
    save_ymm(a)?;
    // Rust relies on its own rounding and masks. The x87 registers stay the guest's: no code of ours uses them.
    a.stmxcsr(dword_ptr(GUEST_MXCSR).gs())?;
    a.ldmxcsr(dword_ptr(HOST_MXCSR).gs())?;
    a.pushfq()?;
    a.pop(gs(SAVED + 8 * 15))?;
    // The private stack stays as it is (the return address on top); Rust runs on its own.
    a.mov(gs(SAVED + 8 * 14), rsp)?;
    a.mov(rsp, gs(RUST_RSP))?;
    a.sub(rsp, 64)?;
    a.and(rsp, -16)?;
    a.mov(rdi, r10)?;
    a.mov(rsi, r11)?;
    a.mov(rdx, gs(THIS))?;
    a.call(gs(REFILL))?;
    a.mov(rsp, gs(SAVED + 8 * 14))?;
    a.mov(r11, rax)?;
    load_ymm(a)?;
    a.ldmxcsr(dword_ptr(GUEST_MXCSR).gs())?;
    for (index, register) in caller_saved.iter().enumerate() {
        a.mov(*register, gs(SAVED + 8 * index as i32))?;
    }
    let mut refused = a.create_label();
    a.test(r11, r11)?;
    a.je(refused)?;
    a.push(gs(SAVED + 8 * 15))?;
    a.popfq()?;
    a.ret()?;
    a.set_label(&mut refused)?;
    a.push(gs(SAVED + 8 * 15))?;
    a.popfq()?;
    a.pop(gs(EXIT_SITE_SLOT))?;
    a.mov(gs(EXIT_CODE), EXIT_SITE as i32)?;
    leave(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thunk_assembles_and_names_no_absolute_address() {
        for thunk in Thunk::ALL {
            let code = assemble(thunk).unwrap();
            let mut decoder = iced_x86::Decoder::with_ip(64, &code, 0, 0);
            while decoder.can_decode() {
                let instr = decoder.decode();
                assert!(!instr.is_invalid(), "{thunk:?}");
                assert!(
                    !(0..instr.op_count()).any(|op| instr.op_kind(op) == iced_x86::OpKind::Immediate64),
                    "{thunk:?}"
                );
            }
        }
    }

    #[test]
    fn rust_has_its_own_mxcsr_in_a_refill() {
        let code = assemble(Thunk::Refill).unwrap();
        let loads = |instr: &iced_x86::Instruction| {
            let slot = instr.memory_displacement64() as i32;
            (instr.mnemonic() == iced_x86::Mnemonic::Ldmxcsr).then_some(slot)
        };
        let instrs: Vec<_> = iced_x86::Decoder::with_ip(64, &code, 0, 0).into_iter().collect();
        let call = instrs.iter().position(|instr| instr.mnemonic() == iced_x86::Mnemonic::Call).unwrap();
        let (before, after) = instrs.split_at(call);
        assert_eq!(before.iter().rev().find_map(loads), Some(HOST_MXCSR));
        assert_eq!(after.iter().find_map(loads), Some(GUEST_MXCSR));
        let kept = before.iter().find(|instr| instr.mnemonic() == iced_x86::Mnemonic::Stmxcsr).unwrap();
        assert_eq!(kept.memory_displacement64() as i32, GUEST_MXCSR);
    }
}
