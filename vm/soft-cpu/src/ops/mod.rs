//! The instructions, and which handler runs which.

pub(crate) mod far;
pub(crate) mod flow;
pub(crate) mod int;
pub(crate) mod string;
pub(crate) mod sys;

use iced_x86::{Code, Mnemonic, OpKind};

use crate::cpu::{Cpu, sreg};
use crate::decode::{Handler, Insn, Opnd};
use crate::env::Env;
use crate::exception::Exception;
use crate::fpu;

/// An instruction that this CPU does not have: #UD, and counted by name.
pub(crate) fn undefined(_cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Result<(), Exception> {
    if !matches!(insn.iced.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID) {
        env.platform.count(&format!("instruction {:?}", insn.iced.mnemonic()));
    }
    Err(Exception::ud())
}

fn integer(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    use int::*;
    Some(match mnemonic {
        M::Add => arith::<ADD>,
        M::Or => arith::<OR>,
        M::Adc => arith::<ADC>,
        M::Sbb => arith::<SBB>,
        M::And => arith::<AND>,
        M::Sub => arith::<SUB>,
        M::Xor => arith::<XOR>,
        M::Cmp => arith::<CMP>,
        M::Test => arith::<TEST>,
        M::Inc => inc_dec::<false>,
        M::Dec => inc_dec::<true>,
        M::Neg => neg,
        M::Not => not,
        M::Movzx => movzx,
        M::Movsx | M::Movsxd => movsx,
        M::Lea => lea,
        M::Xchg => xchg,
        M::Xadd => xadd,
        M::Cmpxchg => cmpxchg,
        M::Cmpxchg8b => cmpxchg8b,
        M::Cmpxchg16b => cmpxchg16b,
        M::Bswap => bswap,
        M::Movbe => movbe,
        M::Movnti => mov,
        M::Imul => imul,
        M::Mul => mul::<false>,
        M::Div => div::<false>,
        M::Idiv => div::<true>,
        M::Cbw | M::Cwde | M::Cdqe => widen_acc,
        M::Cwd | M::Cdq | M::Cqo => sign_to_rdx,
        M::Lahf => lahf,
        M::Sahf => sahf,
        M::Clc => flag_op::<0>,
        M::Stc => flag_op::<1>,
        M::Cmc => flag_op::<2>,
        M::Cld => flag_op::<3>,
        M::Std => flag_op::<4>,
        M::Xlatb => xlat,
        M::Adcx => adcx::<false>,
        M::Adox => adcx::<true>,
        M::Mulx => mulx,
        _ => return None,
    })
}

/// Shifts, single bits, and the bit manipulation extensions.
fn bits(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    use int::*;
    Some(match mnemonic {
        M::Rol => shift::<0>,
        M::Ror => shift::<1>,
        M::Rcl => shift::<2>,
        M::Rcr => shift::<3>,
        M::Shl | M::Sal => shift::<4>,
        M::Shr => shift::<5>,
        M::Sar => shift::<6>,
        M::Shld => double_shift::<true>,
        M::Shrd => double_shift::<false>,
        M::Bt => bit_test::<0>,
        M::Bts => bit_test::<1>,
        M::Btr => bit_test::<2>,
        M::Btc => bit_test::<3>,
        M::Bsf => bit_scan::<false>,
        M::Bsr => bit_scan::<true>,
        M::Tzcnt => count::<0>,
        M::Lzcnt => count::<1>,
        M::Popcnt => count::<2>,
        M::Sarx => shiftx::<0>,
        M::Shlx => shiftx::<1>,
        M::Shrx => shiftx::<2>,
        M::Rorx => shiftx::<3>,
        M::Andn => bmi::<0>,
        M::Blsi => bmi::<1>,
        M::Blsmsk => bmi::<2>,
        M::Blsr => bmi::<3>,
        M::Bzhi => bmi::<4>,
        M::Bextr => bmi::<5>,
        M::Pdep => bmi::<6>,
        M::Pext => bmi::<7>,
        _ => return None,
    })
}

/// What does nothing here.
fn hint(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    match mnemonic {
        M::Nop
        | M::Endbr64
        | M::Endbr32
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2
        | M::Prefetchnta
        | M::Prefetchw
        | M::Prefetch
        | M::Prefetchwt1
        | M::Prefetchit0
        | M::Prefetchit1
        | M::Cldemote
        // Reserved NOPs without shadow stacks; every C++ unwinder runs RDSSPQ.
        | M::Rdsspd
        | M::Rdsspq
        | M::Reservednop => Some(int::nop),
        _ => None,
    }
}

fn flow_handler(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    use flow::*;
    Some(match mnemonic {
        M::Push => push,
        M::Pop => pop,
        M::Pushf | M::Pushfq => pushf,
        M::Popf | M::Popfq => popf,
        M::Enter => enter,
        M::Leave => leave,
        M::Ret => ret,
        M::Loop => loop_op::<0>,
        M::Loope => loop_op::<1>,
        M::Loopne => loop_op::<2>,
        M::Jrcxz | M::Jecxz => loop_op::<3>,
        M::Stac => set_ac::<true>,
        M::Clac => set_ac::<false>,
        M::Jo => jcc::<0>,
        M::Jno => jcc::<1>,
        M::Jb => jcc::<2>,
        M::Jae => jcc::<3>,
        M::Je => jcc::<4>,
        M::Jne => jcc::<5>,
        M::Jbe => jcc::<6>,
        M::Ja => jcc::<7>,
        M::Js => jcc::<8>,
        M::Jns => jcc::<9>,
        M::Jp => jcc::<10>,
        M::Jnp => jcc::<11>,
        M::Jl => jcc::<12>,
        M::Jge => jcc::<13>,
        M::Jle => jcc::<14>,
        M::Jg => jcc::<15>,
        _ => return None,
    })
}

fn system(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    use far::*;
    use sys::*;
    Some(match mnemonic {
        M::Int | M::Int3 | M::Int1 => int,
        M::Iret | M::Iretd | M::Iretq => iret,
        M::Syscall => syscall,
        M::Sysret | M::Sysretq => sysret,
        M::Retf => far_ret,
        M::Lss => load_far::<{ sreg::SS }>,
        M::Lfs => load_far::<{ sreg::FS }>,
        M::Lgs => load_far::<{ sreg::GS }>,
        M::Lldt => load_system::<false>,
        M::Ltr => load_system::<true>,
        M::Sldt | M::Str => store_system,
        M::Lar => inspect::<0>,
        M::Lsl => inspect::<1>,
        M::Verr => inspect::<2>,
        M::Verw => inspect::<3>,
        M::In => port_read,
        M::Out => port_write,
        M::Hlt => hlt,
        M::Cli => cli,
        M::Sti => sti,
        M::Pause => pause,
        M::Rdtsc => rdtsc::<false>,
        M::Rdtscp => rdtsc::<true>,
        M::Rdpid => rdpid,
        M::Cpuid => cpuid_op,
        M::Rdmsr => rdmsr,
        M::Wrmsr => wrmsr,
        M::Swapgs => swapgs,
        M::Rdfsbase => rd_base::<{ sreg::FS }>,
        M::Rdgsbase => rd_base::<{ sreg::GS }>,
        M::Wrfsbase => wr_base::<{ sreg::FS }>,
        M::Wrgsbase => wr_base::<{ sreg::GS }>,
        M::Smsw => smsw,
        M::Lmsw => lmsw,
        M::Clts => clts,
        M::Lgdt => load_table::<false>,
        M::Lidt => load_table::<true>,
        M::Sgdt => store_table::<false>,
        M::Sidt => store_table::<true>,
        M::Invlpg => invlpg,
        M::Invpcid => invpcid,
        M::Wbinvd | M::Invd => privileged_nop,
        M::Rdpmc => rdpmc,
        M::Xgetbv => xgetbv,
        M::Xsetbv => xsetbv,
        M::Vmcall | M::Vmmcall => hypercall,
        M::Clflush | M::Clflushopt | M::Clwb => cache_line,
        M::Mfence | M::Lfence | M::Sfence => fence,
        _ => return None,
    })
}

fn string_handler(mnemonic: Mnemonic) -> Option<(Handler, u8)> {
    use Mnemonic as M;
    use string::{CMPS, INS, LODS, MOVS, OUTS, SCAS, STOS, string};
    Some(match mnemonic {
        M::Movsb => (string::<MOVS>, 1),
        M::Movsw => (string::<MOVS>, 2),
        M::Movsd => (string::<MOVS>, 4),
        M::Movsq => (string::<MOVS>, 8),
        M::Stosb => (string::<STOS>, 1),
        M::Stosw => (string::<STOS>, 2),
        M::Stosd => (string::<STOS>, 4),
        M::Stosq => (string::<STOS>, 8),
        M::Lodsb => (string::<LODS>, 1),
        M::Lodsw => (string::<LODS>, 2),
        M::Lodsd => (string::<LODS>, 4),
        M::Lodsq => (string::<LODS>, 8),
        M::Cmpsb => (string::<CMPS>, 1),
        M::Cmpsw => (string::<CMPS>, 2),
        M::Cmpsd => (string::<CMPS>, 4),
        M::Cmpsq => (string::<CMPS>, 8),
        M::Scasb => (string::<SCAS>, 1),
        M::Scasw => (string::<SCAS>, 2),
        M::Scasd => (string::<SCAS>, 4),
        M::Scasq => (string::<SCAS>, 8),
        M::Insb => (string::<INS>, 1),
        M::Insw => (string::<INS>, 2),
        M::Insd => (string::<INS>, 4),
        M::Outsb => (string::<OUTS>, 1),
        M::Outsw => (string::<OUTS>, 2),
        M::Outsd => (string::<OUTS>, 4),
        _ => return None,
    })
}

/// SETcc and CMOVcc by condition.
fn conditional(mnemonic: Mnemonic) -> Option<(Handler, u8)> {
    use Mnemonic as M;
    const SET: [M; 16] = [
        M::Seto,
        M::Setno,
        M::Setb,
        M::Setae,
        M::Sete,
        M::Setne,
        M::Setbe,
        M::Seta,
        M::Sets,
        M::Setns,
        M::Setp,
        M::Setnp,
        M::Setl,
        M::Setge,
        M::Setle,
        M::Setg,
    ];
    const MOVE: [M; 16] = [
        M::Cmovo,
        M::Cmovno,
        M::Cmovb,
        M::Cmovae,
        M::Cmove,
        M::Cmovne,
        M::Cmovbe,
        M::Cmova,
        M::Cmovs,
        M::Cmovns,
        M::Cmovp,
        M::Cmovnp,
        M::Cmovl,
        M::Cmovge,
        M::Cmovle,
        M::Cmovg,
    ];
    if let Some(cc) = SET.iter().position(|set| *set == mnemonic) {
        return Some((int::setcc, cc as u8));
    }
    MOVE.iter().position(|set| *set == mnemonic).map(|cc| (int::cmovcc as Handler, cc as u8))
}

fn is_string(insn: &Insn) -> bool {
    (0..insn.iced.op_count()).any(|index| {
        matches!(
            insn.iced.op_kind(index),
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemoryESRDI | OpKind::MemoryESEDI
        )
    })
}

/// Sets [`Insn::run`] and [`Insn::sub`].
pub(crate) fn select(insn: &mut Insn) {
    let mnemonic = insn.iced.mnemonic();
    if is_string(insn)
        && let Some((run, size)) = string_handler(mnemonic)
    {
        let esi = |kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
        insn.addr32 = (0..insn.iced.op_count()).any(|index| esi(insn.iced.op_kind(index)));
        (insn.run, insn.sub) = (run, size);
        return;
    }
    if mnemonic == Mnemonic::Mov {
        return select_mov(insn);
    }
    let handler = integer(mnemonic)
        .or_else(|| bits(mnemonic))
        .or_else(|| flow_handler(mnemonic))
        .or_else(|| hint(mnemonic))
        .or_else(|| system(mnemonic));
    if let Some(run) = handler {
        insn.run = run;
        if mnemonic == Mnemonic::Imul && insn.iced.op_count() == 1 {
            insn.run = int::mul::<true>;
        }
        select_sub(insn, mnemonic);
    } else if let Some((run, sub)) = conditional(mnemonic) {
        (insn.run, insn.sub) = (run, sub);
    } else if matches!(mnemonic, Mnemonic::Jmp | Mnemonic::Call) {
        select_jump(insn);
    } else {
        insn.run = fpu::select(insn).unwrap_or(undefined);
    }
}

fn select_mov(insn: &mut Insn) {
    insn.run = match (insn.ops[0], insn.ops[1]) {
        (Opnd::Seg(_), _) => far::mov_to_seg,
        (_, Opnd::Seg(_)) => far::mov_from_seg,
        (Opnd::Cr(_), _) => sys::mov_to_cr,
        (_, Opnd::Cr(_)) => sys::mov_from_cr,
        (Opnd::Dr(_), _) => sys::mov_to_dr,
        (_, Opnd::Dr(_)) => sys::mov_from_dr,
        (Opnd::Other, _) | (_, Opnd::Other) => undefined,
        _ => int::mov,
    };
}

fn select_jump(insn: &mut Insn) {
    let call = insn.iced.mnemonic() == Mnemonic::Call;
    let far = insn.iced.is_jmp_far_indirect() || insn.iced.is_call_far_indirect();
    insn.run = match (call, far, insn.ops[0]) {
        (false, false, Opnd::Imm) => flow::jmp_rel,
        (true, false, Opnd::Imm) => flow::call_rel,
        (false, false, _) => flow::jmp_indirect,
        (true, false, _) => flow::call_indirect,
        (false, true, _) => far::far_jmp,
        (true, true, _) => far::far_call,
    };
    if far {
        insn.sub = match insn.code {
            Code::Jmp_m1616 | Code::Call_m1616 => 2,
            Code::Jmp_m1632 | Code::Call_m1632 => 4,
            _ => 8,
        };
    }
}

/// The size or register that some handlers take from `sub`.
fn select_sub(insn: &mut Insn, mnemonic: Mnemonic) {
    use Mnemonic as M;
    let stack = insn.iced.stack_pointer_increment().unsigned_abs() as u8;
    insn.sub = match mnemonic {
        M::Push | M::Pop => {
            if let Opnd::Seg(_) = insn.ops[0]
                && mnemonic == M::Pop
            {
                insn.run = far::pop_seg;
            }
            stack
        }
        M::Pushf | M::Popf => 2,
        M::Pushfq | M::Popfq => 8,
        M::Enter | M::Leave => {
            if matches!(insn.code, Code::Enterw_imm16_imm8 | Code::Leavew) {
                2
            } else {
                8
            }
        }
        M::Iret => 2,
        M::Iretd => 4,
        M::Iretq => 8,
        M::Retf => match insn.code {
            Code::Retfw | Code::Retfw_imm16 => 2,
            Code::Retfd | Code::Retfd_imm16 => 4,
            _ => 8,
        },
        M::Lss | M::Lfs | M::Lgs => insn.size,
        M::Cbw | M::Cwd => 2,
        M::Cwde | M::Cdq => 4,
        M::Cdqe | M::Cqo => 8,
        M::Sldt => sreg::LDTR as u8,
        M::Str => sreg::TR as u8,
        M::In => insn.size,
        M::Out => insn.size1,
        M::Jecxz => 4,
        M::Loop | M::Loope | M::Loopne | M::Jrcxz => {
            let narrow = matches!(
                insn.code,
                Code::Loop_rel8_64_ECX | Code::Loope_rel8_64_ECX | Code::Loopne_rel8_64_ECX
            );
            if narrow { 4 } else { 8 }
        }
        _ => 0,
    };
    if mnemonic == M::Out && insn.iced.op_kind(1) != OpKind::Register {
        insn.sub = 1;
    }
    if mnemonic == M::Xchg && insn.ops[1] == Opnd::Mem {
        insn.size = insn.size1;
    }
    if matches!(mnemonic, M::Xlatb) {
        insn.seg = match insn.iced.segment_prefix() {
            iced_x86::Register::FS => sreg::FS as u8,
            iced_x86::Register::GS => sreg::GS as u8,
            _ => sreg::DS as u8,
        };
    }
}

pub(crate) fn enabled_fpu(cpu: &Cpu) -> Result<(), Exception> {
    use crate::cpu::cr;
    if cpu.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 { Err(Exception::nm()) } else { Ok(()) }
}
