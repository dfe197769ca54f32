//! Random programs, translated, against the same bytes run by the host itself at the same addresses.
//!
//! The host's own copy of guest memory lies at the guest's addresses, so that even stack and RIP-relative accesses agree.

use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, edx, ptr, qword_ptr, r12, r13, r14, r15, rax, rbp, rbx, rdi, rsp,
};
use iced_x86::{Code, Decoder, Encoder, Instruction, Mnemonic, OpKind, Register};
use soft_cpu::cpu::flag;
use soft_cpu::{Exit, status_flags, undefined_after};

use crate::Tuning;
use crate::bare_guest::Shared;
use crate::decode::{Class, classify};

pub(crate) const BASE: u64 = 0x1000_0000;
pub(crate) const SIZE: u64 = 0x10_0000;
/// Code starts here; the end of a program is at `END`.
pub(crate) const CODE: u64 = BASE + 0x1_0000;
pub(crate) const END: u64 = BASE + 0x8000;
/// Registers and the host's stack pointer of a native run.
const SAVE: u64 = BASE + 0x4000;
pub(crate) const DATA: u64 = BASE + 0x4_0000;

/// The status flags that a program leaves undefined and that processors leave differently (SF after IMUL: Intel's is the
/// result's sign, AMD's is kept); none if an instruction reads such a flag, so that what it does is undefined, too. All of
/// them clear AF where it is undefined.
fn undefined(code: &[Instruction]) -> Option<u64> {
    code.iter().try_fold(0, |undefined, instr| {
        let read = status_flags(instr.rflags_read());
        (read & undefined == 0).then(|| undefined_after(instr, undefined) & !flag::AF)
    })
}

/// A small generator of numbers; the seed of a failing case is printed.
pub(crate) struct Random(pub(crate) u64);
impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }
    /// Values where carries, signs and sizes matter.
    fn value(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(4),
            1 => u64::MAX - self.below(4),
            2 => 1u64 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            _ => self.next(),
        }
    }
}

/// One random instruction that both sides may run, with the movs that make its memory operand valid in front.
fn instruction(random: &mut Random, out: &mut Vec<Instruction>) {
    loop {
        let mut bytes = [0u8; 16];
        for byte in &mut bytes {
            *byte = random.next() as u8;
        }
        match random.below(8) {
            0 => bytes[0] = 0x0f,
            1 => bytes[0] = 0x48 | (bytes[0] & 7),
            2 => {
                bytes[0] = 0x48 | (bytes[0] & 7);
                bytes[1] = 0x0f;
            }
            3 => {
                bytes[0] = 0x66;
                bytes[1] = 0x0f;
            }
            4 => bytes[0] = 0xc5,
            5 => {
                bytes[0] = 0xc4;
                bytes[1] = (bytes[1] & 0xe0) | (1 + random.below(3) as u8);
            }
            6 => {
                bytes[0] = 0xf0 | (bytes[0] & 3);
                bytes[1] = if random.below(2) == 0 { 0x0f } else { 0x48 };
            }
            _ => {}
        }
        let mut instr = Decoder::with_ip(64, &bytes, 0, 0).decode();
        if instr.is_invalid() {
            continue;
        }
        if !instr.cpuid_features().iter().all(|feature| soft_cpu::host_has(*feature)) {
            continue;
        }
        let class = classify(instr).class;
        if !matches!(class, Class::Copy | Class::Lea | Class::BitString | Class::Push | Class::Pop) {
            continue;
        }
        if matches!(
            instr.mnemonic(),
            Mnemonic::Cmpxchg16b
                | Mnemonic::Div
                | Mnemonic::Idiv
                | Mnemonic::Rdrand
                | Mnemonic::Rdseed
                | Mnemonic::Ldmxcsr
                | Mnemonic::Vldmxcsr
                | Mnemonic::Vzeroupper
                | Mnemonic::Vzeroall
        ) || instr.encoding() == iced_x86::EncodingKind::VEX && !cfg!(all())
            || instr.is_ip_rel_memory_operand()
            || matches!(instr.segment_prefix(), Register::FS | Register::GS)
            || (0..instr.op_count()).any(|op| {
                instr.op_kind(op) == OpKind::Register
                    && instr.op_register(op).full_register() == Register::RSP
            })
        {
            continue;
        }
        // x87 code words may unmask exceptions, and its data pointers differ by design.
        if instr.mnemonic() == Mnemonic::Fldcw || instr.code() == Code::Wait {
            continue;
        }
        // A double shift of 16 bits by more is undefined, and processors differ (Intel SDM 2B, SHLD; AMD APM 3).
        let double_of_16 = matches!(
            instr.code(),
            Code::Shld_rm16_r16_imm8
                | Code::Shrd_rm16_r16_imm8
                | Code::Shld_rm16_r16_CL
                | Code::Shrd_rm16_r16_CL
        );
        if double_of_16 && (instr.op2_kind() != OpKind::Immediate8 || instr.immediate8() & 31 > 16) {
            continue;
        }
        if (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory) {
            let vector = classify(instr).vector;
            let (align, grain) = if vector { (64, 64) } else { (1, 1) };
            let bases = [
                Register::RBX,
                Register::RBP,
                Register::R9,
                Register::R10,
                Register::R13,
                Register::R15,
                Register::RDI,
                Register::R12,
            ];
            let base = bases[random.below(bases.len() as u64) as usize];
            let indices = [Register::None, Register::R11, Register::R9, Register::RSI, Register::R14];
            let mut index = indices[random.below(indices.len() as u64) as usize];
            if index == base {
                index = Register::None;
            }
            let mut address = DATA + 0x1000 + random.below(0x2000);
            address -= address % align;
            let disp = (random.below(0x200) as i64 - 0x100) * grain;
            instr.set_memory_base(base);
            instr.set_memory_index(index);
            let scale = if vector { 1 } else { 1 << random.below(4) };
            instr.set_memory_index_scale(scale);
            instr.set_memory_displacement64(disp as u64);
            instr.set_memory_displ_size(8);
            let index_value = random.below(64) * grain as u64;
            let mut base_value = address.wrapping_sub(disp as u64);
            if index != Register::None {
                out.push(Instruction::with2(Code::Mov_r64_imm64, index, index_value).unwrap());
                base_value = base_value.wrapping_sub(index_value.wrapping_mul(u64::from(scale)));
            }
            if class == Class::BitString {
                // The bit offset register adds to the address; keep it small.
                let bits = instr.op1_register().full_register();
                if bits == base || bits == index || bits.is_gpr() && bits == Register::RSP {
                    continue;
                }
                let small = random.below(0x2000) as i64 - 0x1000;
                out.push(Instruction::with2(Code::Mov_r64_imm64, bits, small as u64).unwrap());
            }
            out.push(Instruction::with2(Code::Mov_r64_imm64, base, base_value).unwrap());
        }
        out.push(instr);
        return;
    }
}

pub(crate) fn program(random: &mut Random, length: u64) -> Vec<u8> {
    let mut instrs = Vec::new();
    for _ in 0..length {
        let before = instrs.len();
        instruction(random, &mut instrs);
        instrs.retain(|instr| Encoder::new(64).encode(instr, CODE).is_ok());
        if undefined(&instrs).is_none() {
            instrs.truncate(before);
        }
    }
    if undefined(&instrs) != Some(0) {
        instrs.push(Instruction::with2(Code::Cmp_AL_imm8, Register::AL, random.below(256) as u32).unwrap());
    }
    let mut encoder = Encoder::new(64);
    let mut at = CODE;
    for instr in instrs {
        at += encoder.encode(&instr, at).unwrap() as u64;
    }
    at += encoder.encode(&Instruction::with_branch(Code::Jmp_rel32_64, END).unwrap(), at).unwrap() as u64;
    assert!(at < DATA);
    encoder.take_buffer()
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) struct State {
    pub(crate) gpr: [u64; 16],
    pub(crate) flags: u64,
    xmm: Vec<u8>,
    data: Vec<u8>,
}

pub(crate) fn initial(random: &mut Random) -> State {
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = random.value();
    }
    gpr[4] = DATA + 0x8000;
    let mut xmm = vec![0u8; 832];
    xmm[0] = 0x7f;
    xmm[1] = 0x03;
    xmm[24] = 0x80;
    xmm[25] = 0x1f;
    xmm[512] = 7;
    for at in (160..416).chain(576..832) {
        xmm[at] = random.next() as u8;
    }
    let data = (0..0x10000).map(|_| random.next() as u8).collect();
    State { gpr, flags: random.next() & flag::STATUS | 2, xmm, data }
}

struct Native;

impl Native {
    /// Maps the host's copy of guest memory and writes the pieces of code that go in and out.
    fn new() -> Self {
        // SAFETY: a fixed mapping at a low address that nothing else in this test process uses.
        let memory = unsafe {
            libc::mmap(
                BASE as *mut _,
                SIZE as usize,
                7,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        assert_eq!(memory as u64, BASE);
        let mut a = CodeAssembler::new(64).unwrap();
        let save = SAVE as i32;
        use iced_x86::code_asm::registers as r;
        let all = [
            rax,
            r::rcx,
            r::rdx,
            rbx,
            rsp,
            rbp,
            r::rsi,
            rdi,
            r::r8,
            r::r9,
            r::r10,
            r::r11,
            r12,
            r13,
            r14,
            r15,
        ];
        // At END: save everything and return to Rust.
        for (index, register) in all.iter().enumerate() {
            a.mov(qword_ptr(save + 8 * index as i32), *register).unwrap();
        }
        a.mov(rsp, qword_ptr(save + 0x100)).unwrap();
        a.pushfq().unwrap();
        a.pop(qword_ptr(save + 0x80)).unwrap();
        a.mov(eax, 7).unwrap();
        a.xor(edx, edx).unwrap();
        a.xsave64(ptr(save + 0x400)).unwrap();
        a.ldmxcsr(dword_ptr(save + 0x108)).unwrap();
        a.fninit().unwrap();
        for register in [r15, r14, r13, r12, rbp, rbx] {
            a.pop(register).unwrap();
        }
        a.ret().unwrap();
        let end = a.assemble(END).unwrap();
        let mut a = CodeAssembler::new(64).unwrap();
        for register in [rbx, rbp, r12, r13, r14, r15] {
            a.push(register).unwrap();
        }
        a.mov(qword_ptr(save + 0x100), rsp).unwrap();
        a.mov(eax, 7).unwrap();
        a.xor(edx, edx).unwrap();
        a.xrstor64(ptr(save + 0x400)).unwrap();
        a.push(qword_ptr(save + 0x80)).unwrap();
        a.popfq().unwrap();
        for (index, register) in all.iter().enumerate() {
            a.mov(*register, qword_ptr(save + 8 * index as i32)).unwrap();
        }
        a.jmp(CODE).unwrap();
        let start = a.assemble(END + 0x1000).unwrap();
        // SAFETY: inside the mapping just made.
        unsafe {
            std::ptr::copy_nonoverlapping(end.as_ptr(), END as *mut u8, end.len());
            std::ptr::copy_nonoverlapping(start.as_ptr(), (END + 0x1000) as *mut u8, start.len());
        }
        Self
    }

    fn run(&self, code: &[u8], state: &State) -> State {
        let mut after = state.clone();
        // SAFETY: all addresses lie in the mapping; the code ends by a jump to END, which restores the ABI's registers.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), CODE as *mut u8, code.len());
            std::ptr::copy_nonoverlapping(state.data.as_ptr(), DATA as *mut u8, state.data.len());
            let save = SAVE as *mut u64;
            for (index, value) in state.gpr.iter().enumerate() {
                save.add(index).write(*value);
            }
            save.add(16).write(state.flags);
            save.add(0x108 / 8).write(0x1f80);
            std::ptr::copy_nonoverlapping(state.xmm.as_ptr(), (SAVE + 0x400) as *mut u8, 832);
            let start: extern "sysv64" fn() = std::mem::transmute((END + 0x1000) as *const ());
            start();
            for (index, value) in after.gpr.iter_mut().enumerate() {
                *value = save.add(index).read();
            }
            after.flags = save.add(16).read() & flag::STATUS | 2;
            std::ptr::copy_nonoverlapping((SAVE + 0x400) as *const u8, after.xmm.as_mut_ptr(), 832);
            std::ptr::copy_nonoverlapping(DATA as *const u8, after.data.as_mut_ptr(), after.data.len());
        }
        after
    }
}

fn compare(tuning: Tuning, user: bool, seed: u64, cases: u64, native: &Native) {
    assert!(tuning.verify, "every block is verified");
    let mut random = Random(seed);
    let mut guest = Shared::new(BASE, SIZE, 1, tuning).vcpu(0);
    guest.cpu.cpl = if user { 3 } else { 0 };
    let host = guest.vm.map.lookup(BASE).unwrap().host;
    let mut skipped = 0;
    for case in 0..cases {
        let length = 1 + random.below(12);
        let code = program(&mut random, length);
        let state = initial(&mut random);
        let expected = native.run(&code, &state);
        guest.write(CODE, &code);
        guest.write(END, &[0x9c, 0xf4]); // pushfq; hlt (which is #GP at CPL 3, and that without an IDT a shutdown)
        guest.write(DATA, &state.data);
        guest.cpu.gpr = state.gpr;
        guest.cpu.rflags = state.flags;
        guest.cpu.xsave.0.copy_from_slice(&state.xmm);
        let exit = guest.run(CODE);
        let cpu = &guest.cpu;
        assert!(!matches!(exit, Exit::Crashed(_)), "case {case} of seed {seed:#x}: {exit:?}");
        if !(END..=END + 2).contains(&cpu.rip) {
            skipped += 1;
            continue;
        }
        let mut after = state.clone();
        after.gpr = cpu.gpr;
        after.flags = cpu.rflags & flag::STATUS | 2;
        after.xmm.copy_from_slice(&cpu.xsave.0);
        // SAFETY: inside guest memory.
        unsafe {
            std::ptr::copy_nonoverlapping(
                host.add((DATA - BASE) as usize),
                after.data.as_mut_ptr(),
                after.data.len(),
            );
        }
        if cpu.rip != END {
            // pushfq ran.
            after.gpr[4] += 8;
            let at = (after.gpr[4] - 8 - DATA) as usize;
            after.data[at..at + 8].copy_from_slice(&expected.data[at..at + 8]);
        }
        // The x87 instruction and data pointers and MXCSR_MASK are those of the host, which a guest does not see.
        let mut expected = expected;
        for image in [&mut after.xmm, &mut expected.xmm] {
            image[8..24].fill(0);
            image[28..32].fill(0);
            image[6..8].fill(0);
            image[416..512].fill(0);
            image[512..576].fill(0);
        }
        if after != expected {
            let mut text = String::new();
            for instr in Decoder::with_ip(64, &code, CODE, 0).iter() {
                text += &format!(
                    "  {:#x} {:?} {:?} mem {:?}+{:?}*{}+{:#x}\n",
                    instr.ip(),
                    instr.code(),
                    (0..instr.op_count())
                        .map(|op| (instr.op_kind(op), instr.op_register(op)))
                        .collect::<Vec<_>>(),
                    instr.memory_base(),
                    instr.memory_index(),
                    instr.memory_index_scale(),
                    instr.memory_displacement64()
                );
            }
            for (index, (a, e)) in after.gpr.iter().zip(&expected.gpr).enumerate() {
                if a != e {
                    text += &format!("  gpr {index}: translated {a:#x} native {e:#x}\n");
                }
            }
            for (name, a, e) in [("xsave", &after.xmm, &expected.xmm), ("data", &after.data, &expected.data)]
            {
                if let Some(at) = (0..a.len()).find(|at| a[*at] != e[*at]) {
                    text += &format!(
                        "  {name} from {at:#x}: translated {:02x?} native {:02x?}\n",
                        &a[at..(at + 16).min(a.len())],
                        &e[at..(at + 16).min(a.len())]
                    );
                }
            }
            panic!(
                "case {case} of seed {seed:#x} {tuning:?} user {user}: flags {:#x}, native {:#x}\n{text}",
                after.flags, expected.flags
            );
        }
    }
    if tuning.lockstep {
        let compared = guest.counter("blocks compared in lock-step");
        let doubtful =
            guest.counter("inconclusive comparisons") + guest.counter("blocks that use undefined flags");
        eprintln!("{compared} blocks compared, {doubtful} inconclusive");
        assert!(compared > doubtful && compared + doubtful >= cases, "{compared} compared, {doubtful} not");
    }
    eprintln!("{cases} cases, {skipped} left to the interpreter, {:?}", guest.vm.jit.counters());
    assert!(skipped < cases / 2, "{skipped} of {cases} cases left translated code");
}

#[test]
fn random_programs_do_what_the_host_does() {
    let native = Native::new();
    let cases = std::env::var("JIT_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let seed = std::env::var("JIT_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0x1234_5678);
    let single = Tuning { block_limit: 1, ..Tuning::default() };
    let lockstep = Tuning { lockstep: true, ..Tuning::default() };
    let exact = Tuning { lockstep: true, liveness: false, ..Tuning::default() };
    for user in [false, true] {
        for tuning in [Tuning::default(), Tuning::plain(), single, lockstep, exact] {
            compare(tuning, user, seed, cases, &native);
        }
    }
}
