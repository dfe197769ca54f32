//! An independent look at emitted bytes: whatever the translator thought, code that is about to become executable must
//! only do what a block may do.
//!
//! Knows nothing of guest instructions. It checks, instruction by instruction, that memory is reached only through `gs`
//! with a constant or table displacement, through `r10` (or, for one instruction, `rdi` exchanged with it) after a check,
//! or through the private stack by push and pop; that jumps stay in the block or go to thunks; and that nothing is there
//! that could enter the host kernel or change what `gs` means.

use iced_x86::{Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::block::{Emitted, Mode};
use crate::layout::{PC_BASE, RFLAGS};

/// Checks a translation before it is placed.
pub(crate) fn verify(emitted: &Emitted, _mode: Mode) -> Result<(), String> {
    let code = &emitted.code;
    let thunk_calls: Vec<u32> = emitted.thunk_calls.iter().map(|(at, _)| *at).collect();
    let mut starts = vec![false; code.len() + 1];
    let mut branches = Vec::new();
    let mut decoder = Decoder::with_ip(64, code, 0, 0);
    let mut exchanged = false;
    let mut bounded = false;
    while decoder.can_decode() {
        let instr = decoder.decode();
        let at = instr.ip() as usize;
        let complain = |what: &str| {
            let bytes = code.get(at..at + instr.len()).unwrap_or_default();
            Err(format!("{what}: {:?} at {at:#x} ({bytes:02x?})", instr.code()))
        };
        if instr.is_invalid() {
            return complain("not an instruction");
        }
        if let Some(start) = starts.get_mut(at) {
            *start = true;
        }
        let counted = std::mem::replace(&mut bounded, bounds_string(&instr));
        if instr.is_string_instruction() {
            if !counted || !instr.has_rep_prefix() {
                return complain("a string instruction out of place");
            }
            continue;
        }
        if let Err(what) = permitted(&instr) {
            return complain(what);
        }
        if let Err(what) = memory(&instr, exchanged) {
            return complain(what);
        }
        exchanged = instr.mnemonic() == Mnemonic::Xchg
            && instr.op0_kind() == OpKind::Register
            && instr.op1_kind() == OpKind::Register
            && [instr.op0_register(), instr.op1_register()].contains(&Register::RDI)
            && [instr.op0_register(), instr.op1_register()].contains(&Register::R10);
        match instr.flow_control() {
            FlowControl::Next => {}
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
                let hole = (at + instr.len()).wrapping_sub(4) as u32;
                if !thunk_calls.contains(&hole) {
                    if instr.flow_control() == FlowControl::Call {
                        return complain("a call that leads to no thunk");
                    }
                    branches.push(instr.near_branch_target());
                }
            }
            FlowControl::IndirectBranch => {
                if instr.op0_kind() != OpKind::Memory || instr.memory_segment() != Register::GS {
                    return complain("an indirect jump not through a table");
                }
            }
            _ => return complain("a transfer that blocks do not make"),
        }
    }
    for target in branches {
        if !starts.get(target as usize).copied().unwrap_or(false) {
            return Err(format!("a jump to {target:#x}, where no instruction starts"));
        }
    }
    Ok(())
}

/// The instruction in front of a permitted `rep movs` or `rep stos`: `lea r11, [r11 + rcx * scale]`.
fn bounds_string(instr: &Instruction) -> bool {
    instr.mnemonic() == Mnemonic::Lea
        && instr.op0_register() == Register::R11
        && instr.memory_base() == Register::R11
        && instr.memory_index() == Register::RCX
}

fn permitted(instr: &Instruction) -> Result<(), &'static str> {
    use Mnemonic as M;
    if instr.is_privileged() {
        return Err("privileged");
    }
    if !matches!(instr.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX) {
        return Err("an encoding that is hidden from the guest");
    }
    if instr.is_string_instruction() {
        return Err("a string instruction");
    }
    match instr.mnemonic() {
        M::Syscall
        | M::Sysenter
        | M::Int
        | M::Int3
        | M::Into
        | M::Cpuid
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrpkru
        | M::Rdpkru
        | M::Xgetbv
        | M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsaveopt
        | M::Xrstor
        | M::Xrstor64
        | M::Fxsave
        | M::Fxrstor
        | M::Std
        | M::Xbegin
        | M::Vmcall
        | M::Vmmcall
        | M::Enclu
        | M::Rdtscp
        | M::Rdpid
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Maskmovdqu
        | M::Maskmovq
        | M::Vmaskmovdqu
        | M::Enter
        | M::Leave => return Err("never allowed"),
        _ => {}
    }
    for op in 0..instr.op_count() {
        if instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_segment_register() {
            return Err("a segment register");
        }
        if instr.op_kind(op) == OpKind::Register && instr.op_register(op).full_register() == Register::RSP {
            return Err("the private stack's pointer");
        }
    }
    Ok(())
}

fn memory(instr: &Instruction, exchanged: bool) -> Result<(), &'static str> {
    let explicit = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    if !explicit {
        return match instr.mnemonic() {
            Mnemonic::Push | Mnemonic::Pop => Err("a push or pop of a register"),
            _ => Ok(()),
        }
        .or_else(|what| {
            if instr.mnemonic() == Mnemonic::Pop && instr.op0_register() == Register::R11 {
                Ok(())
            } else {
                Err(what)
            }
        });
    }
    if matches!(instr.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
        return Ok(());
    }
    let (base, index, segment) = (instr.memory_base(), instr.memory_index(), instr.memory_segment());
    let displacement = instr.memory_displacement64();
    if segment == Register::GS {
        let limit = size_of::<soft_cpu::Cpu>() as u64;
        let constant = base == Register::None && index == Register::None && displacement < limit;
        let table = (base == Register::R11 && index == Register::None
            || base == Register::None && index == Register::R11)
            && displacement >= PC_BASE as u64
            && displacement < limit;
        if !constant && !table {
            return Err("state outside the tables");
        }
        if displacement == RFLAGS as u64
            && !matches!(instr.mnemonic(), Mnemonic::Mov | Mnemonic::And | Mnemonic::Or | Mnemonic::Test)
        {
            return Err("a strange use of the flags' slot");
        }
        return Ok(());
    }
    if segment == Register::FS {
        return Err("fs");
    }
    let through = base == Register::R10 || exchanged && base == Register::RDI;
    if !through || index != Register::None || displacement != 0 {
        return Err("memory not reached through a check");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Space;

    fn check(code: &[u8]) -> Result<(), String> {
        let emitted = Emitted { code: code.to_vec(), ..Emitted::default() };
        verify(&emitted, Mode { space: Space::User, no_vector: false })
    }

    #[test]
    fn code_that_could_leave_the_sandbox_is_refused() {
        for code in [
            &[0x0f, 0x05][..],                              // syscall
            &[0xcd, 0x80],                                  // int 80h
            &[0x48, 0x8b, 0x03],                            // mov rax, [rbx]
            &[0x49, 0x8b, 0x42, 0x08],                      // mov rax, [r10 + 8]
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],    // mov rax, fs:[0]
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0x40], // mov rax, gs:[0x40000000]
            &[0x65, 0x48, 0x8b, 0x00],                      // mov rax, gs:[rax]
            &[0x48, 0x89, 0xc4],                            // mov rsp, rax
            &[0xff, 0xe0],                                  // jmp rax
            &[0xc3],                                        // ret
            &[0xe8, 0, 0, 0, 0],                            // call to no thunk
            &[0xeb, 0x01, 0xb8, 0x0f, 0x05, 0, 0],          // jmp into an immediate
            &[0xf3, 0xa4],                                  // rep movsb
            &[0xf3, 0x48, 0x0f, 0xae, 0xd8],                // wrgsbase rax
            &[0x0f, 0x01, 0xef],                            // wrpkru
        ] {
            assert!(check(code).is_err(), "{code:02x?}");
        }
    }

    #[test]
    fn what_blocks_do_is_accepted() {
        for code in [
            &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0][..], // mov rax, gs:[0]
            &[0x49, 0x8b, 0x02],                             // mov rax, [r10]
            &[0x9c, 0x9d],                                   // pushfq; popfq
        ] {
            assert_eq!(check(code), Ok(()), "{code:02x?}");
        }
    }
}
