//! Random instructions that cannot fault on the host, and machines to run them on.

use std::collections::HashMap;

use iced_x86::{
    Code, ConstantOffsets, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, MemorySize,
    Mnemonic, OpKind, Register,
};

use crate::{CODE, DATA, DATA_BYTES, FLAGS, Machine};

pub(crate) struct Case {
    pub(crate) bytes: Vec<u8>,
    pub(crate) instruction: Instruction,
    pub(crate) machine: Machine,
}

/// xorshift64*: the stream must be the same everywhere.
pub(crate) struct Generator {
    state: u64,
    features: Vec<CpuidFeature>,
    /// How often each instruction was given, so that the common ones do not crowd out the rest.
    given: HashMap<Code, u32>,
}

impl Generator {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            features: features(),
            given: HashMap::new(),
        }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.random() >> 11) % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn next_case(&mut self) -> Case {
        loop {
            let bytes = self.random_bytes();
            let mut decoder = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE);
            let instruction = decoder.decode();
            if instruction.is_invalid() || !self.wanted(&instruction) {
                continue;
            }
            let seen = self.given.get(&instruction.code()).copied().unwrap_or(0);
            if seen > 20 && !self.chance(100 * 20 / u64::from(seen)) {
                continue;
            }
            let offsets = decoder.get_constant_offsets(&instruction);
            let bytes = bytes[..instruction.len()].to_vec();
            if let Some(case) = self.place(bytes, instruction, offsets) {
                *self.given.entry(instruction.code()).or_default() += 1;
                return case;
            }
        }
    }

    fn random_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        for prefix in [0x66, 0xf2, 0xf3, 0x67, 0xf0] {
            let percent = if matches!(prefix, 0x67 | 0xf0) { 3 } else { 18 };
            if self.chance(percent) {
                bytes.push(prefix);
            }
        }
        match self.below(10) {
            0..=3 => {
                if self.chance(55) {
                    bytes.push(0x40 | self.below(16) as u8);
                }
            }
            4..=6 => {
                if self.chance(40) {
                    bytes.push(0x40 | self.below(16) as u8);
                }
                bytes.push(0x0f);
                match self.below(4) {
                    0 => bytes.push(0x38),
                    1 => bytes.push(0x3a),
                    _ => {}
                }
            }
            7 => bytes = vec![0xc5, self.random() as u8],
            _ => bytes = vec![0xc4, self.below(4) as u8 | self.random() as u8 & 0xe0, self.random() as u8],
        }
        (0..14).for_each(|_| bytes.push(self.random() as u8));
        bytes
    }

    fn wanted(&self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        const LEFT_OUT: &[Mnemonic] = &[
            // What they read or write differs between the two runs by nature, or cannot be done in ring 3.
            M::Cpuid,
            M::Rdtsc,
            M::Rdtscp,
            M::Rdpmc,
            M::Rdpid,
            M::Rdrand,
            M::Rdseed,
            M::Xgetbv,
            M::Pushf,
            M::Pushfq,
            M::Popf,
            M::Popfq,
            M::Sgdt,
            M::Sidt,
            M::Sldt,
            M::Str,
            M::Smsw,
            M::Lar,
            M::Lsl,
            M::Verr,
            M::Verw,
            M::Rdfsbase,
            M::Rdgsbase,
            M::Wrfsbase,
            M::Wrgsbase,
            M::Xsave,
            M::Xsave64,
            M::Xsavec,
            M::Xsavec64,
            M::Xsaveopt,
            M::Xsaveopt64,
            M::Xrstor,
            M::Xrstor64,
            M::Fxsave,
            M::Fxsave64,
            M::Fxrstor,
            M::Fxrstor64,
            M::Fnstenv,
            M::Fnsave,
            M::Fldenv,
            M::Frstor,
            M::Fstenv,
            M::Fsave,
            M::Ldmxcsr,
            M::Vldmxcsr,
            M::Fldcw,
            M::Rdpkru,
            M::Wrpkru,
            M::Clui,
            M::Stui,
            M::Testui,
            M::Monitor,
            M::Mwait,
            M::Umonitor,
            M::Umwait,
            M::Tpause,
            M::Monitorx,
            M::Mwaitx,
            M::Clzero,
            M::Cldemote,
            M::Movdiri,
            M::Movdir64b,
            M::Enqcmd,
            M::Enqcmds,
            M::Serialize,
            M::Xend,
            M::Xtest,
            M::Xabort,
            M::Xbegin,
            M::Incsspd,
            M::Incsspq,
            M::Ptwrite,
            M::Lfs,
            M::Lgs,
            M::Lss,
            M::Lds,
            M::Les,
            M::Enter,
            M::Int1,
            M::Into,
            M::Wbnoinvd,
            M::Prefetchwt1,
        ];
        // Without a shadow stack these are reserved NOPs, on every processor.
        let is_nop = matches!(instruction.mnemonic(), M::Rdsspd | M::Rdsspq);
        let features = instruction.cpuid_features();
        // PREFETCH of a register is a reserved NOP by Intel and invalid by AMD (APM 3, PREFETCHlevel).
        let prefetch_of_register = matches!(
            instruction.code(),
            Code::Reservednop_rm16_r16_0F0D
                | Code::Reservednop_rm32_r32_0F0D
                | Code::Reservednop_rm64_r64_0F0D
        );
        // F3 90 with REX.B is PAUSE by Intel and XCHG with R8 by AMD.
        let pause_or_exchange = instruction.code() == Code::Pause && instruction.len() > 2;
        !prefetch_of_register
            && !pause_or_exchange
            && !LEFT_OUT.contains(&instruction.mnemonic())
            && instruction.flow_control() == FlowControl::Next
            && !instruction.is_privileged()
            && !instruction.is_vsib()
            && instruction.segment_prefix() == Register::None
            && (is_nop || features.iter().all(|feature| self.features.contains(feature)))
            && (0..instruction.op_count()).all(|op| !instruction.op_register(op).is_segment_register())
    }

    fn machine(&mut self) -> Machine {
        const CORNERS: [u64; 8] = [0, 1, u64::MAX, 0x80, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64, 1 << 63];
        let mut gpr = [0; 16];
        for value in &mut gpr {
            *value = if self.chance(35) { CORNERS[self.below(8) as usize] } else { self.random() };
        }
        gpr[4] = DATA + 0x2000 + self.below(0x100) * 8;
        let mut data = Box::new([0; DATA_BYTES]);
        let mut xsave = Box::new([0; 832]);
        for chunk in data.chunks_exact_mut(8).chain(xsave[32..416].chunks_exact_mut(8)) {
            chunk.copy_from_slice(&self.random().to_le_bytes());
        }
        for chunk in xsave[576..].chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.random().to_le_bytes());
        }
        xsave[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        xsave[3] = (self.below(8) as u8) << 3; // top of stack
        xsave[4] = self.random() as u8; // tags
        for register in 0..8 {
            xsave[32 + 16 * register + 10..48 + 16 * register].fill(0);
        }
        xsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        xsave[28..32].copy_from_slice(&0xffff_u32.to_le_bytes());
        xsave[512] = 7;
        let flags = self.random() & FLAGS & !0x400 | if self.chance(10) { 0x400 } else { 0 };
        Machine { gpr, flags, xsave, data }
    }

    /// Where a memory operand of `size` bytes goes: often at a page's end, aligned where the instruction insists.
    fn target(&mut self, size: u64) -> u64 {
        if size >= 16 || size == 0 {
            return DATA + 0x800 + self.below(0x70) * 64;
        }
        if self.chance(15) { DATA + 0x1000 - self.below(8) } else { DATA + 0x400 + self.below(0x1800) }
    }

    fn place(
        &mut self,
        mut bytes: Vec<u8>,
        mut instruction: Instruction,
        offsets: ConstantOffsets,
    ) -> Option<Case> {
        let mut machine = self.machine();
        if !self.prepare_implicit(&instruction, &mut machine) {
            return None;
        }
        let has_memory = instruction.mnemonic() != Mnemonic::Xlatb
            && (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
        if has_memory {
            let size = match instruction.memory_size() {
                MemorySize::Unknown => 0,
                size => size.size() as u64,
            };
            let target = self.target(size);
            if instruction.is_ip_rel_memory_operand() {
                if is_bit_string(&instruction) {
                    return None;
                }
                let at = offsets.displacement_offset();
                let displacement = target.wrapping_sub(CODE + bytes.len() as u64) as u32;
                bytes.get_mut(at..at + 4)?.copy_from_slice(&displacement.to_le_bytes());
                instruction = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
            } else if !self.point(&instruction, target, &mut machine) {
                return None;
            }
        }
        if !divides_safely(&instruction, &mut machine) {
            return None;
        }
        Some(Case { bytes, instruction, machine })
    }

    /// Sets the address registers so that the operand lies at `target`.
    fn point(&mut self, instruction: &Instruction, target: u64, machine: &mut Machine) -> bool {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base == index || base == Register::None {
            return false;
        }
        let narrow = base.size() == 4;
        let mut rest = target.wrapping_sub(instruction.memory_displacement64());
        if index != Register::None {
            let number = index.full_register().number();
            if number == 4 {
                return false;
            }
            let value = self.below(0x1000);
            machine.gpr[number] = value;
            rest = rest.wrapping_sub(value * u64::from(instruction.memory_index_scale()));
        }
        // A bit string's register operand moves the address.
        if is_bit_string(instruction) {
            let number = instruction.op1_register().full_register().number();
            if number == base.full_register().number() || number == 4 || Some(number) == numbered(index) {
                return false;
            }
            machine.gpr[number] = self.below(512);
        }
        let garbage = if narrow { self.random() << 32 } else { 0 };
        machine.gpr[base.full_register().number()] = if narrow { rest & 0xffff_ffff | garbage } else { rest };
        // A stack instruction with rsp as the base would move away from the pages, or use another width of it.
        base.full_register() != Register::RSP || (!narrow && instruction.stack_pointer_increment() == 0)
    }

    /// Operands that the encoding does not show: strings, the stack, translation tables.
    fn prepare_implicit(&mut self, instruction: &Instruction, machine: &mut Machine) -> bool {
        use OpKind as K;
        let mut string = false;
        for op in 0..instruction.op_count() {
            match instruction.op_kind(op) {
                K::MemorySegSI | K::MemorySegESI | K::MemorySegRSI => {
                    string = true;
                    machine.gpr[6] = DATA + 0x1000 + self.below(0x800);
                }
                K::MemorySegDI
                | K::MemorySegEDI
                | K::MemorySegRDI
                | K::MemoryESDI
                | K::MemoryESEDI
                | K::MemoryESRDI => {
                    string = true;
                    machine.gpr[7] = DATA + 0x1000 + self.below(0x800);
                }
                _ => {}
            }
        }
        if string {
            machine.gpr[1] = self.below(60);
        }
        match instruction.mnemonic() {
            Mnemonic::Xlatb => machine.gpr[3] = DATA + 0x100,
            Mnemonic::Leave => machine.gpr[5] = machine.gpr[4],
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq => {
                machine.gpr[7] = DATA + 0x900
            }
            _ => {}
        }
        true
    }
}

/// BT and its kin with a register that says how far the bit is.
fn is_bit_string(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op1_kind() == OpKind::Register
}

fn numbered(register: Register) -> Option<usize> {
    (register != Register::None).then(|| register.full_register().number())
}

/// A division must not overflow: small dividends, divisors that are not zero.
fn divides_safely(instruction: &Instruction, machine: &mut Machine) -> bool {
    if !matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
        return true;
    }
    if instruction.op0_kind() == OpKind::Register {
        let register = instruction.op0_register();
        let number = register.full_register().number();
        // AH, CH, DH and BH are kept away as well: simpler than following their parents.
        if matches!(number, 0 | 2 | 4)
            || matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
        {
            return false;
        }
        machine.gpr[number] |= 0x0101_0101_0101_0101 | 2;
        machine.gpr[number] &= 0x7f7f_7f7f_7f7f_7f7f;
    } else {
        if [instruction.memory_base(), instruction.memory_index()]
            .iter()
            .any(|register| matches!(numbered(*register), Some(0 | 2)))
        {
            return false;
        }
        machine.data.iter_mut().for_each(|byte| *byte = *byte & 0x7f | 3);
    }
    machine.gpr[2] = 0;
    machine.gpr[0] &= 0x7f7f_7f7f_7f7f_007f;
    true
}

/// What this host has and the guest is offered.
fn features() -> Vec<CpuidFeature> {
    use CpuidFeature as F;
    let mut features = vec![
        F::INTEL8086,
        F::INTEL8086_ONLY,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
        F::X64,
        F::CPUID,
        F::CMOV,
        F::FPU,
        F::FPU287,
        F::FPU387,
        F::CX8,
        F::MMX,
        F::SSE,
        F::SSE2,
        F::FXSR,
        F::PAUSE,
        F::MULTIBYTENOP,
        F::RDTSCP,
        F::CLFSH,
    ];
    let mut add = |has: bool, feature| {
        if has {
            features.push(feature);
        }
    };
    add(is_x86_feature_detected!("sse3"), F::SSE3);
    add(is_x86_feature_detected!("ssse3"), F::SSSE3);
    add(is_x86_feature_detected!("sse4.1"), F::SSE4_1);
    add(is_x86_feature_detected!("sse4.2"), F::SSE4_2);
    add(is_x86_feature_detected!("popcnt"), F::POPCNT);
    add(is_x86_feature_detected!("lzcnt"), F::LZCNT);
    add(is_x86_feature_detected!("movbe"), F::MOVBE);
    add(is_x86_feature_detected!("bmi1"), F::BMI1);
    add(is_x86_feature_detected!("bmi2"), F::BMI2);
    add(is_x86_feature_detected!("adx"), F::ADX);
    add(is_x86_feature_detected!("aes"), F::AES);
    add(is_x86_feature_detected!("pclmulqdq"), F::PCLMULQDQ);
    add(is_x86_feature_detected!("sha"), F::SHA);
    add(is_x86_feature_detected!("avx"), F::AVX);
    add(is_x86_feature_detected!("avx2"), F::AVX2);
    add(is_x86_feature_detected!("fma"), F::FMA);
    add(is_x86_feature_detected!("f16c"), F::F16C);
    add(is_x86_feature_detected!("gfni"), F::GFNI);
    add(is_x86_feature_detected!("vaes"), F::VAES);
    add(is_x86_feature_detected!("vpclmulqdq"), F::VPCLMULQDQ);
    add(is_x86_feature_detected!("cmpxchg16b"), F::CMPXCHG16B);
    features
}
