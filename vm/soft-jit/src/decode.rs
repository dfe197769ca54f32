//! Which guest instructions are translated, and which status flags matter.
//!
//! The allow-list is by feature and, for the base instruction set, by mnemonic: what is not named here is left to the
//! interpreter, so a new or forgotten instruction is slow, never wrong, and never reaches the host's decoder by accident.

use crate::block::Vectors;

use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind,
    Register, RflagsBits,
};

/// CF, PF, AF, ZF, SF, OF as [`RflagsBits`].
pub(crate) const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Copied with registers renamed and its memory operand redirected.
    Copy,
    /// Nothing to do (nop, endbr64, prefetch, cache hints).
    Nop,
    /// `clflush`, `clflushopt`, `clwb`: nothing but the faults of a read.
    CacheLine,
    /// `pause`
    Pause,
    /// `lea`
    Lea,
    /// `bt`, `bts`, `btr`, `btc` with a memory operand and a bit offset in a register.
    BitString,
    /// `push` of a register, immediate or memory operand, 64-bit.
    Push,
    /// `pop` of a register, 64-bit.
    Pop,
    /// `leave`, 64-bit.
    Leave,
    /// Direct jump.
    Jump,
    /// Conditional jump on flags.
    Branch,
    /// `jrcxz`, `jecxz`, `loop` without flags.
    CountBranch,
    /// Direct call.
    Call,
    /// Near return.
    Return,
    /// Indirect jump.
    JumpIndirect,
    /// Indirect call.
    CallIndirect,
    /// `cli`
    Cli,
    /// `cld`
    Cld,
    /// `mov` of a control register to a general one.
    ReadControl,
    /// `pushfq`
    PushFlags,
    /// `rdtsc`, `rdtscp`
    ReadTsc,
    /// `sti`
    Sti,
    /// `stac`
    Stac,
    /// `clac`
    Clac,
    /// `swapgs`
    SwapGs,
    /// `rep movs`, `rep stos` with 64-bit addresses.
    RepString,
    /// `mov` from a segment register.
    ReadSegment,
    /// `rdfsbase`, `rdgsbase`, 64-bit.
    ReadBase,
    /// `wrfsbase`, `wrgsbase`, 64-bit.
    WriteBase,
    /// Left to the interpreter.
    Step,
}

fn feature_allowed(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::POPCNT
            | F::LZCNT
            | F::BMI1
            | F::BMI2
            | F::AES
            | F::PCLMULQDQ
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::MOVBE
            | F::ADX
            | F::SHA
            | F::GFNI
            | F::VAES
            | F::VPCLMULQDQ
            | F::CX8
            | F::CMPXCHG16B
            | F::RDRAND
            | F::RDSEED
    )
}

/// Whether an instruction of an allowed extension beyond the integer core touches x87, MMX, SSE or AVX registers.
fn is_vector_feature(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::AVX
            | F::AVX2
            | F::FMA
            | F::F16C
            | F::SHA
            | F::GFNI
            | F::VAES
            | F::VPCLMULQDQ
    )
}

/// Whether a general-purpose instruction may be copied.
fn core_allowed(mnemonic: Mnemonic) -> bool {
    base_allowed(mnemonic) || conditional_allowed(mnemonic) || later_allowed(mnemonic)
}

fn base_allowed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Adc
            | M::Add
            | M::And
            | M::Bsf
            | M::Bsr
            | M::Bswap
            | M::Bt
            | M::Btc
            | M::Btr
            | M::Bts
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Clc
            | M::Cmc
            | M::Stc
            | M::Cmp
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Dec
            | M::Div
            | M::Idiv
            | M::Imul
            | M::Inc
            | M::Mov
            | M::Movsx
            | M::Movsxd
            | M::Movzx
            | M::Mul
            | M::Neg
            | M::Not
            | M::Or
            | M::Rcl
            | M::Rcr
            | M::Rol
            | M::Ror
            | M::Sal
            | M::Sar
            | M::Shl
            | M::Shr
            | M::Sbb
            | M::Shld
            | M::Shrd
            | M::Sub
            | M::Test
            | M::Xadd
            | M::Xchg
            | M::Xor
            | M::Lahf
            | M::Sahf
    )
}

fn conditional_allowed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
    )
}

/// Of the extensions that came later (POPCNT, MOVBE, BMI, ADX, random numbers).
fn later_allowed(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Movbe
            | M::Adcx
            | M::Adox
            | M::Rdrand
            | M::Rdseed
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
    )
}

/// Instructions of the allowed extensions that must not be copied: state images, implicit operands, vector gathers.
fn extension_denied(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Monitor
            | M::Mwait
            | M::Vgatherdpd
            | M::Vgatherdps
            | M::Vgatherqpd
            | M::Vgatherqps
            | M::Vpgatherdd
            | M::Vpgatherdq
            | M::Vpgatherqd
            | M::Vpgatherqq
    )
}

fn is_hint(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Nop
            | M::Endbr64
            | M::Prefetch
            | M::Prefetchw
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Prefetchwt1
            | M::Prefetchit0
            | M::Prefetchit1
            | M::Rdsspd
            | M::Rdsspq
            | M::Cldemote
    )
}

/// What translation needs to know of one instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decoded {
    pub(crate) instr: Instruction,
    pub(crate) class: Class,
    /// Uses x87 or vector registers.
    pub(crate) vector: bool,
    /// May touch that state in any way, images of it included.
    pub(crate) vectors: Vectors,
    /// Status flags read.
    pub(crate) reads: u32,
    /// Status flags that are certainly overwritten.
    pub(crate) kills: u32,
}

/// Classifies an instruction.
pub(crate) fn classify(instr: Instruction) -> Decoded {
    let features = instr.cpuid_features();
    let vector = features.iter().any(|feature| is_vector_feature(*feature));
    let class = class_of(&instr);
    let untouched = !vector && !instr.is_save_restore_instruction() && !instr.is_invalid();
    let vectors = if untouched { Vectors::Untouched } else { Vectors::Used };
    Decoded { instr, class, vector, vectors, reads: instr.rflags_read() & STATUS, kills: kills(&instr) }
}

fn class_of(instr: &Instruction) -> Class {
    use Mnemonic as M;
    if instr.is_invalid() {
        return Class::Step;
    }
    let mnemonic = instr.mnemonic();
    if is_hint(mnemonic) {
        return Class::Nop;
    }
    if matches!(mnemonic, M::Clflush | M::Clflushopt | M::Clwb) {
        return Class::CacheLine;
    }
    if let Some(class) = class_by_code(instr) {
        return class;
    }
    if instr.is_jcc_short_or_near() {
        return if matches!(instr.op0_kind(), OpKind::NearBranch64) { Class::Branch } else { Class::Step };
    }
    if !matches!(instr.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        || instr.is_vsib()
        || instr.is_string_instruction()
        || instr.is_privileged()
        || instr.flow_control() != FlowControl::Next
        || !instr.cpuid_features().iter().all(|feature| feature_allowed(*feature))
    {
        return Class::Step;
    }
    let vector = instr.cpuid_features().iter().any(|feature| is_vector_feature(*feature));
    let fence = matches!(mnemonic, M::Lfence | M::Mfence | M::Sfence);
    if (!vector && !core_allowed(mnemonic)) || extension_denied(mnemonic) || unusual_operands(instr) {
        return Class::Step;
    }
    if fence {
        return Class::Copy;
    }
    if matches!(mnemonic, M::Bt | M::Bts | M::Btr | M::Btc)
        && instr.op0_kind() == OpKind::Memory
        && instr.op1_kind() == OpKind::Register
    {
        return Class::BitString;
    }
    Class::Copy
}

/// The class of an instruction that is not like others: control flow, the stack, strings, system instructions.
fn class_by_code(instr: &Instruction) -> Option<Class> {
    Some(match instr.code() {
        Code::Pushq_imm32 | Code::Pushq_imm8 | Code::Push_r64 | Code::Push_rm64 => Class::Push,
        Code::Pop_r64 => Class::Pop,
        Code::Pop_rm64 if instr.op0_kind() == OpKind::Register => Class::Pop,
        Code::Leaveq => Class::Leave,
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => Class::Jump,
        Code::Call_rel32_64 => Class::Call,
        Code::Retnq | Code::Retnq_imm16 => Class::Return,
        Code::Jmp_rm64 => Class::JumpIndirect,
        Code::Call_rm64 => Class::CallIndirect,
        Code::Jrcxz_rel8_64 | Code::Jecxz_rel8_64 | Code::Loop_rel8_64_RCX => Class::CountBranch,
        Code::Cli => Class::Cli,
        Code::Cld => Class::Cld,
        Code::Pause => Class::Pause,
        Code::Mov_r64_cr => Class::ReadControl,
        Code::Pushfq => Class::PushFlags,
        Code::Rdtsc | Code::Rdtscp => Class::ReadTsc,
        Code::Movsb_m8_m8 | Code::Movsw_m16_m16 | Code::Movsd_m32_m32 | Code::Movsq_m64_m64
            if (instr.has_rep_prefix() || instr.has_repne_prefix())
                && instr.op0_kind() == OpKind::MemoryESRDI
                && instr.op1_kind() == OpKind::MemorySegRSI
                && !matches!(instr.memory_segment(), Register::FS | Register::GS) =>
        {
            Class::RepString
        }
        Code::Stosb_m8_AL | Code::Stosw_m16_AX | Code::Stosd_m32_EAX | Code::Stosq_m64_RAX
            if (instr.has_rep_prefix() || instr.has_repne_prefix())
                && instr.op0_kind() == OpKind::MemoryESRDI =>
        {
            Class::RepString
        }
        Code::Sti => Class::Sti,
        Code::Stac => Class::Stac,
        Code::Clac => Class::Clac,
        Code::Swapgs => Class::SwapGs,
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => Class::ReadSegment,
        Code::Rdfsbase_r64 | Code::Rdgsbase_r64 => Class::ReadBase,
        Code::Wrfsbase_r64 | Code::Wrgsbase_r64 => Class::WriteBase,
        Code::Lea_r16_m | Code::Lea_r32_m | Code::Lea_r64_m => Class::Lea,
        Code::Mov_AL_moffs8
        | Code::Mov_AX_moffs16
        | Code::Mov_EAX_moffs32
        | Code::Mov_RAX_moffs64
        | Code::Mov_moffs8_AL
        | Code::Mov_moffs16_AX
        | Code::Mov_moffs32_EAX
        | Code::Mov_moffs64_RAX => Class::Step,
        _ => return None,
    })
}

/// Operands other than general or vector registers, immediates and one plain memory operand.
fn unusual_operands(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| match instr.op_kind(op) {
        OpKind::Register => {
            let register = instr.op_register(op);
            !(register.is_gpr()
                || register.is_xmm()
                || register.is_ymm()
                || register.is_mm()
                || register.is_st())
        }
        OpKind::Memory => instr.memory_size().size() == 0,
        kind => !soft_cpu::is_immediate(kind),
    })
}

/// Status flags certainly overwritten. Shifts and rotates whose count may be zero keep all flags then.
fn kills(instr: &Instruction) -> u32 {
    use Mnemonic as M;
    let modified = instr.rflags_modified() & STATUS;
    match instr.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => {
            let count = instr.op_count().saturating_sub(1);
            let wide = if instr.op0_kind() == OpKind::Memory {
                instr.memory_size().size() == 8
            } else {
                instr.op0_register().size() == 8
            };
            let bits = if wide { 63 } else { 31 };
            if instr.op_kind(count) == OpKind::Immediate8 && instr.immediate8() & bits != 0 {
                modified
            } else {
                0
            }
        }
        // Undefined by the manual but kept by processors, or conditional.
        M::Bsf | M::Bsr | M::Bt | M::Bts | M::Btr | M::Btc | M::Div | M::Idiv => {
            modified & !instr.rflags_undefined()
        }
        // Moves of control and debug registers.
        M::Mov => modified & !instr.rflags_undefined(),
        _ if instr.is_string_instruction() => 0,
        _ => modified,
    }
}

/// Decodes the instruction at `offset` of a page that goes on in the next one.
pub(crate) fn decode_crossing(
    page: &[u8; 4096],
    next: &[u8; 4096],
    offset: usize,
    linear_page: u64,
) -> Option<Instruction> {
    let mut bytes = [0u8; 30];
    let first = page.get(offset..)?;
    let first = first.get(..15).unwrap_or(first);
    bytes.get_mut(..first.len())?.copy_from_slice(first);
    bytes.get_mut(first.len()..first.len() + 15)?.copy_from_slice(next.get(..15)?);
    let ip = linear_page.wrapping_add(offset as u64);
    let instr = Decoder::with_ip(64, &bytes, ip, decoder_options()).decode();
    (!instr.is_invalid()).then_some(instr)
}

/// Decodes the instruction at `offset` in a page; `None` if its bytes are not all in the page.
pub(crate) fn decode_at(page: &[u8; 4096], offset: usize, linear_page: u64) -> Option<Instruction> {
    let bytes = page.get(offset..)?;
    let mut decoder = Decoder::with_ip(64, bytes, linear_page.wrapping_add(offset as u64), decoder_options());
    let instr = decoder.decode();
    if instr.is_invalid() && bytes.len() < 15 {
        return None;
    }
    Some(instr)
}

/// Near branches with a 66h prefix differ between vendors; such branches are left to the interpreter either way.
fn decoder_options() -> u32 {
    DecoderOptions::NONE
}

/// Looks ahead from `offset` for status flags that are read before they are written. Adds the 64-byte lines it looked
/// at to `lines`: the answer is only good while they stay as they are.
pub(crate) struct LookAhead<'a> {
    pub(crate) page: &'a [u8; 4096],
    pub(crate) linear_page: u64,
    pub(crate) dead_at_return: bool,
    /// What cannot be known counts as live; otherwise as dead.
    pub(crate) cautious: bool,
    pub(crate) lines: u64,
    pub(crate) budget: u32,
}

/// Instructions looked at in one search.
pub(crate) const LOOK_AHEAD: u32 = 24;

impl LookAhead<'_> {
    /// The live flags at `offset` from the page's start.
    pub(crate) fn live_at(&mut self, offset: i64) -> u32 {
        self.search(offset, STATUS)
    }

    fn unknown(&self, live: u32, wanted: u32) -> u32 {
        if self.cautious { live | wanted } else { live }
    }

    /// Live flags among `wanted`.
    fn search(&mut self, mut offset: i64, mut wanted: u32) -> u32 {
        let mut live = 0;
        loop {
            if wanted & !live == 0 {
                return live;
            }
            if self.budget == 0 || !(0..4096).contains(&offset) {
                return self.unknown(live, wanted);
            }
            self.budget -= 1;
            let Some(instr) = decode_at(self.page, offset as usize, self.linear_page) else {
                return live | wanted;
            };
            let len = instr.len().max(1) as i64;
            self.lines |= line_mask(offset as usize, len as usize);
            let decoded = classify(instr);
            live |= decoded.reads & wanted;
            let target = instr.near_branch_target().wrapping_sub(self.linear_page) as i64;
            match instr.flow_control() {
                FlowControl::Next => wanted &= !decoded.kills,
                FlowControl::ConditionalBranch => live |= self.search(target, wanted),
                FlowControl::UnconditionalBranch => {
                    offset = target;
                    continue;
                }
                FlowControl::Call if instr.is_call_near() && (0..4096).contains(&target) => {
                    offset = target;
                    continue;
                }
                FlowControl::Interrupt
                    if instr.mnemonic() == Mnemonic::Int3 || instr.mnemonic() == Mnemonic::Int =>
                {
                    return live;
                }
                FlowControl::Exception => return live,
                // V8's code compares, jumps through a table and then uses the comparison.
                FlowControl::IndirectBranch => return live | wanted,
                _ => return if self.dead_at_return { live } else { self.unknown(live, wanted) },
            }
            offset += len;
        }
    }
}

/// Whether a return at `offset` follows an instruction that sets flags for its own sake (`popf`, `sahf`, `stc`, `clc`,
/// `cmc`): such a routine returns its answer in the flags, as Linux's `this_cpu_cmpxchg16b_emu` does.
pub(crate) fn returns_flags(page: &[u8; 4096], offset: usize) -> bool {
    let before = offset.checked_sub(1).and_then(|at| page.get(at));
    matches!(before, Some(0x9d | 0x9e | 0xf5 | 0xf8 | 0xf9))
}

/// The 64-byte lines of `[offset, offset + len)` of a page as bits.
pub(crate) fn line_mask(offset: usize, len: usize) -> u64 {
    let first = (offset / 64).min(63);
    let last = ((offset + len.max(1) - 1) / 64).min(63);
    (u64::MAX >> (63 - (last - first))) << first
}

/// Whether a register is one that translated code keeps elsewhere (r9-r11 in slots, rsp in r9).
pub(crate) fn is_homed(register: Register) -> bool {
    matches!(register.full_register(), Register::R9 | Register::R10 | Register::R11)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(bytes: &[u8]) -> Class {
        classify(Decoder::with_ip(64, bytes, 0, 0).decode()).class
    }

    #[test]
    fn nothing_that_reaches_the_host_kernel_is_copied() {
        for bytes in [
            &[0x0f, 0x05][..],                     // syscall
            &[0x0f, 0x34],                         // sysenter
            &[0xcd, 0x80],                         // int 80h
            &[0xcc],                               // int3
            &[0xf4],                               // hlt
            &[0xe4, 0x10],                         // in
            &[0x0f, 0xa2],                         // cpuid
            &[0x0f, 0x01, 0xd0],                   // xgetbv
            &[0x0f, 0x01, 0xef],                   // wrpkru
            &[0x8e, 0xd8],                         // mov ds, eax
            &[0x9d],                               // popfq
            &[0xfd],                               // std
            &[0x0f, 0x01, 0xe0],                   // smsw eax
            &[0x0f, 0x00, 0xc0],                   // sldt eax
            &[0xf3, 0x0f, 0xc7, 0xf8],             // rdpid
            &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0], // vaddps zmm (EVEX)
            &[0xc5, 0xf8, 0x77][..0],              // nothing at all
        ] {
            assert_eq!(class(bytes), Class::Step, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_shift_by_a_register_may_keep_flags() {
        let decode = |bytes: &[u8]| classify(Decoder::with_ip(64, bytes, 0, 0).decode());
        assert_eq!(decode(&[0xd3, 0xe0]).kills, 0); // shl eax, cl
        assert_eq!(decode(&[0xc1, 0xe0, 0x20]).kills, 0); // shl eax, 32
        assert_eq!(decode(&[0x48, 0xc1, 0xe0, 0x20]).kills, STATUS); // shl rax, 32
        assert_eq!(decode(&[0xff, 0xc0]).kills, STATUS & !RflagsBits::CF); // inc eax
    }

    #[test]
    fn look_ahead_follows_both_arms() {
        // je +2; xor eax,eax; setc al; ret   (arm 1: xor kills all; arm 2: setc reads CF)
        let code = [0x74, 0x02, 0x31, 0xc0, 0x0f, 0x92, 0xc0, 0xc3];
        let mut page = [0x90u8; 4096];
        page[..code.len()].copy_from_slice(&code);
        let mut look = LookAhead {
            page: &page,
            linear_page: 0x1000,
            dead_at_return: true,
            cautious: true,
            lines: 0,
            budget: LOOK_AHEAD,
        };
        assert_eq!(look.live_at(0), RflagsBits::ZF | RflagsBits::CF);
        assert_eq!(look.lines, 1);
    }

    #[test]
    fn lines_of_a_range() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 2), 3);
        assert_eq!(line_mask(4032, 64), 1 << 63);
    }
}
