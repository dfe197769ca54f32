//! Runs one x87, MMX, SSE or AVX instruction on the host's own units: a small piece of code loads the registers that the
//! instruction uses from the state block, executes it with its memory operand replaced by a bounce buffer, and stores what
//! it changed.
//!
//! The instruction comes from the guest, so: only what [`crate::fpu::class`] allows gets here; it is re-encoded, never
//! copied; its one memory operand is `[register]` with a register that we set; and nothing that it can raise on the host
//! is left unmasked (SIMD exceptions are masked and looked at afterwards, alignment and pending x87 exceptions are checked
//! before). Code lies in a memfd mapped twice, writable and executable.

use std::collections::HashMap;

use iced_x86::code_asm::{AsmRegister64, CodeAssembler, dword_ptr, gpr64 as r, ptr, qword_ptr, xmmword_ptr};
use iced_x86::{EncodingKind, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use crate::cpu::flag::STATUS;
use crate::cpu::{Cpu, cr};
use crate::decode::{Insn, linear};
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::fpu::{self, Class};
use crate::mem;
use crate::sys;

/// What a stub reads and writes; offsets are used by [`build`].
#[repr(C, align(64))]
struct Context {
    gpr: [u64; 16],
    flags: u64,
    area: *mut u8,
    memory: *mut u8,
    mxcsr: u32,
    host_mxcsr: u32,
}

const FLAGS: i32 = 128;
const AREA: i32 = 136;
const MEMORY: i32 = 144;
const MXCSR: i32 = 152;
const HOST_MXCSR: i32 = 156;
const MASKS: u32 = 0x1f80;

#[derive(Clone, Copy)]
struct Stub {
    entry: extern "sysv64" fn(*mut Context),
    class: Class,
    /// Bytes of the memory operand, 0 = none.
    size: u16,
    reads: bool,
    writes: bool,
    align: u8,
    waits: bool,
}

#[repr(align(64))]
struct Bounce([u8; 576]);

/// The stubs of one vCPU.
pub(crate) struct Stubs {
    pub(crate) arena: Option<StubMemory>,
    known: HashMap<u128, Option<Stub>>,
    recent: Box<[(u128, Option<Stub>)]>,
}

const RECENT: usize = 2048;

impl Stubs {
    pub(crate) fn new() -> Self {
        Self { arena: None, known: HashMap::new(), recent: vec![(0, None); RECENT].into_boxed_slice() }
    }

    fn get(&mut self, insn: &Insn) -> Option<Stub> {
        // Bytes beyond the length are zero in `Insn::bytes`; the length tells apart what could be a prefix of another.
        let key = insn.bytes | u128::from(insn.len) << 120;
        let slot =
            ((key as u64 ^ (key >> 64) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 53) as usize % RECENT;
        if self.recent[slot].0 == key {
            return self.recent[slot].1;
        }
        let stub = match self.known.get(&key) {
            Some(stub) => *stub,
            None => {
                let stub = self.make(insn);
                self.known.insert(key, stub);
                stub
            }
        };
        self.recent[slot] = (key, stub);
        stub
    }

    fn make(&mut self, insn: &Insn) -> Option<Stub> {
        let (code, mut stub) = build(insn)?;
        if self.arena.is_none() {
            self.arena = StubMemory::new().ok();
        }
        if !self.arena.as_ref()?.fits(code.len()) {
            // A guest can make any number of encodings: start over rather than grow.
            self.known.clear();
            self.recent.fill((0, None));
            self.arena.as_mut()?.used = 0;
        }
        let entry = self.arena.as_mut()?.put(&code)?;
        // SAFETY: `entry` is the executable address of the code just built, which follows the sysv64 convention.
        stub.entry = unsafe { std::mem::transmute::<*const u8, extern "sysv64" fn(*mut Context)>(entry) };
        Some(stub)
    }
}

const ARENA_BYTES: usize = 1 << 20;

/// Executable memory for one vCPU's stubs. Made before the process is confined: no executable mapping may be made after.
#[derive(Debug)]
pub struct StubMemory {
    writable: *mut u8,
    executable: *const u8,
    used: usize,
}

// SAFETY: the mappings belong to this value alone.
unsafe impl Send for StubMemory {}

impl StubMemory {
    /// Maps it twice, writable and executable.
    ///
    /// # Errors
    /// The host's, when it gives no executable memory.
    pub fn new() -> std::io::Result<Self> {
        let (writable, executable) = sys::map_twice(ARENA_BYTES)?;
        Ok(Self { writable, executable, used: 0 })
    }

    fn fits(&self, len: usize) -> bool {
        self.used + len + 16 <= ARENA_BYTES
    }

    fn put(&mut self, code: &[u8]) -> Option<*const u8> {
        if !self.fits(code.len()) {
            return None;
        }
        // SAFETY: the range was just checked to lie inside both mappings.
        let entry = unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len());
            self.executable.add(self.used)
        };
        self.used = (self.used + code.len() + 15) & !15;
        Some(entry)
    }
}

impl Drop for StubMemory {
    fn drop(&mut self) {
        // SAFETY: the mappings were made by `new` with this length and nothing points into them any more.
        unsafe { sys::unmap_both(self.writable, self.executable, ARENA_BYTES) };
    }
}

extern "sysv64" fn nothing(_: *mut Context) {}

fn alignment(insn: &Insn, size: usize) -> u8 {
    use Mnemonic as M;
    let mnemonic = insn.iced.mnemonic();
    if insn.iced.encoding() == EncodingKind::VEX {
        return match mnemonic {
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => {
                size as u8
            }
            _ => 1,
        };
    }
    match mnemonic {
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Pcmpestri
        | M::Pcmpestrm
        | M::Pcmpistri
        | M::Pcmpistrm => 1,
        _ if size == 16 => 16,
        _ => 1,
    }
}

const SPARE: [AsmRegister64; 12] =
    [r::rbx, r::rbp, r::r12, r::r13, r::r14, r::r15, r::rsi, r::rdi, r::r8, r::r9, r::r10, r::r11];
const SAVED: [AsmRegister64; 6] = [r::rbx, r::rbp, r::r12, r::r13, r::r14, r::r15];

struct Uses {
    /// (host register, guest register number, written).
    gprs: Vec<(Register, usize, bool)>,
    /// (number, written).
    vectors: Vec<(usize, bool)>,
    size: usize,
    reads: bool,
    writes: bool,
}

/// Replaces RSP operands, finds what the instruction uses, and picks registers of ours that it does not.
fn analyse(iced: &mut Instruction) -> Option<(Uses, [AsmRegister64; 3])> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(iced).clone();
    let mut taken: Vec<Register> =
        info.used_registers().iter().map(|used| used.register().full_register()).collect();
    let mut spare = SPARE.iter().copied().filter(|register| !taken.contains(&Register::from(*register)));
    let ours = [spare.next()?, spare.next()?, spare.next()?];
    let stand_in = Register::from(spare.next()?);
    let mut uses = Uses { gprs: Vec::new(), vectors: Vec::new(), size: 0, reads: false, writes: false };
    for index in 0..iced.op_count() {
        if iced.op_kind(index) == OpKind::Register && iced.op_register(index).full_register() == Register::RSP
        {
            let register =
                if iced.op_register(index).size() == 8 { stand_in } else { stand_in.full_register32() };
            iced.try_set_op_register(index, register).ok()?;
        }
        if iced.op_kind(index) == OpKind::Memory {
            uses.size = iced.memory_size().size();
            let access = info.op_access(index);
            uses.writes = matches!(
                access,
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            uses.reads = matches!(
                access,
                OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            iced.set_memory_base(Register::from(ours[1]));
            iced.set_memory_index(Register::None);
            iced.set_memory_index_scale(1);
            iced.set_memory_displacement64(0);
            iced.set_memory_displ_size(0);
            iced.set_segment_prefix(Register::None);
        }
    }
    let info = factory.info(iced).clone();
    taken.clear();
    for used in info.used_registers() {
        let register = used.register().full_register();
        let written = !matches!(
            used.access(),
            OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
        );
        if register == Register::from(ours[1]) {
            continue;
        }
        if register.is_gpr64() {
            let guest = if register == stand_in { 4 } else { register.number() };
            if guest == 4 && register == Register::RSP {
                return None;
            }
            uses.gprs.push((register, guest, written));
        } else if register.is_vector_register() {
            uses.vectors.push((register.number(), written));
        }
    }
    Some((uses, ours))
}

fn build(insn: &Insn) -> Option<(Vec<u8>, Stub)> {
    let class = fpu::class(insn)?;
    let mut iced = insn.iced;
    let (uses, ours) = analyse(&mut iced)?;
    let image = matches!(class, Class::X87 | Class::Mmx);
    let code = assemble(iced, &uses, ours, image).ok()?;
    let size = if uses.size > 512 { return None } else { uses.size };
    let stub = Stub {
        entry: nothing,
        class,
        size: size as u16,
        reads: uses.reads,
        writes: uses.writes,
        align: alignment(insn, size),
        waits: class == Class::Mmx || class == Class::X87 && !no_wait(insn.iced.mnemonic()),
    };
    Some((code, stub))
}

const fn no_wait(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fninit
            | M::Fnstsw
            | M::Fnstcw
            | M::Fnclex
            | M::Fnsave
            | M::Fnstenv
            | M::Fndisi
            | M::Fneni
            | M::Fnsetpm
    )
}

fn assemble(
    iced: Instruction,
    uses: &Uses,
    [context, memory, area]: [AsmRegister64; 3],
    image: bool,
) -> Result<Vec<u8>, iced_x86::IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in SAVED {
        a.push(register)?;
    }
    if context != r::rdi {
        a.mov(context, r::rdi)?;
    }
    a.mov(area, qword_ptr(context + AREA))?;
    if image {
        a.fxrstor64(ptr(area))?;
    } else {
        a.ldmxcsr(dword_ptr(context + MXCSR))?;
        for (number, _) in &uses.vectors {
            let (x, y) = vector_registers(*number);
            a.vmovups(x, xmmword_ptr(area + (160 + 16 * *number as i32)))?;
            a.vinsertf128(y, y, xmmword_ptr(area + (576 + 16 * *number as i32)), 1)?;
        }
    }
    a.push(qword_ptr(context + FLAGS))?;
    a.popfq()?;
    a.mov(memory, qword_ptr(context + MEMORY))?;
    for (register, guest, _) in &uses.gprs {
        if let Some(register) = iced_x86::code_asm::get_gpr64(*register) {
            a.mov(register, qword_ptr(context + 8 * *guest as i32))?;
        }
    }
    a.add_instruction(iced)?;
    for (register, guest, written) in &uses.gprs {
        if let (true, Some(register)) = (*written, iced_x86::code_asm::get_gpr64(*register)) {
            a.mov(qword_ptr(context + 8 * *guest as i32), register)?;
        }
    }
    a.pushfq()?;
    a.pop(qword_ptr(context + FLAGS))?;
    if image {
        a.fxsave64(ptr(area))?;
        a.fninit()?;
    } else {
        for (number, written) in &uses.vectors {
            if *written {
                let (x, y) = vector_registers(*number);
                a.vmovups(xmmword_ptr(area + (160 + 16 * *number as i32)), x)?;
                a.vextractf128(xmmword_ptr(area + (576 + 16 * *number as i32)), y, 1)?;
            }
        }
        a.stmxcsr(dword_ptr(context + MXCSR))?;
        a.vzeroupper()?;
    }
    a.ldmxcsr(dword_ptr(context + HOST_MXCSR))?;
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()?;
    a.assemble(0x1000)
}

fn vector_registers(
    number: usize,
) -> (iced_x86::code_asm::AsmRegisterXmm, iced_x86::code_asm::AsmRegisterYmm) {
    use iced_x86::code_asm::{registers::xmm::*, registers::ymm::*};
    const X: [iced_x86::code_asm::AsmRegisterXmm; 16] = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ];
    const Y: [iced_x86::code_asm::AsmRegisterYmm; 16] = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ];
    (X[number & 15], Y[number & 15])
}

fn guest_mxcsr(cpu: &Cpu) -> u32 {
    let state = &cpu.xsave.0;
    u32::from_le_bytes([state[24], state[25], state[26], state[27]])
}

fn set_guest_mxcsr(cpu: &mut Cpu, value: u32) {
    cpu.xsave.0[24..28].copy_from_slice(&value.to_le_bytes());
}

fn host_mxcsr() -> u32 {
    0x1f80
}

/// Executes the instruction through its stub.
pub(crate) fn run(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Result<(), Exception> {
    if matches!(insn.iced.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) {
        fpu::check(cpu, Class::Avx)?;
        if insn.iced.mnemonic() == Mnemonic::Vzeroall {
            cpu.xsave.0[160..416].fill(0);
        }
        cpu.xsave.0[576..832].fill(0);
        return Ok(());
    }
    let Some(stub) = cpu.interp.stubs.get(insn) else {
        env.platform.count(&format!("instruction {:?}", insn.iced.mnemonic()));
        return Err(Exception::ud());
    };
    fpu::check(cpu, stub.class)?;
    if stub.waits && fpu::x87_pending(cpu) {
        return Err(fpu::mf());
    }
    let size = stub.size as usize;
    let mut bounce = Bounce([0; 576]);
    let at = linear(cpu, insn);
    if size > 0 {
        if stub.align > 1 && !at.is_multiple_of(u64::from(stub.align)) {
            return Err(Exception::gp(0));
        }
        if stub.writes {
            mem::probe_write(cpu, env, at, size as u64, insn.stack)?;
        }
        if stub.reads {
            match size {
                1 | 2 | 4 | 8 => {
                    let value = mem::read(cpu, env, at, size as u8, insn.stack)?;
                    bounce.0[..8].copy_from_slice(&value.to_le_bytes());
                }
                _ => mem::read_bytes(cpu, env, at, &mut bounce.0[..size], insn.stack)?,
            }
        }
    }
    execute(cpu, &stub, &mut bounce)?;
    if stub.class == Class::X87 {
        fix_pointers(cpu, at, size);
    }
    if stub.writes {
        match size {
            1 | 2 | 4 | 8 => {
                let mut raw = [0; 8];
                raw.copy_from_slice(&bounce.0[..8]);
                mem::write(cpu, env, at, u64::from_le_bytes(raw), size as u8, insn.stack)?;
            }
            _ => mem::write_bytes(cpu, env, at, &bounce.0[..size], insn.stack)?,
        }
    }
    Ok(())
}

/// The x87 instruction pointer in the image is that of the stub: put the guest's there.
fn fix_pointers(cpu: &mut Cpu, at: u64, size: usize) {
    let mut raw = [0; 8];
    raw.copy_from_slice(&cpu.xsave.0[8..16]);
    let pointer = u64::from_le_bytes(raw);
    if pointer != cpu.interp.x87_ip && pointer != 0 {
        let rip = cpu.rip;
        cpu.xsave.0[8..16].copy_from_slice(&rip.to_le_bytes());
        if size > 0 {
            cpu.xsave.0[16..24].copy_from_slice(&at.to_le_bytes());
        }
        cpu.interp.x87_ip = rip;
    }
}

fn execute(cpu: &mut Cpu, stub: &Stub, bounce: &mut Bounce) -> Result<(), Exception> {
    let mxcsr = guest_mxcsr(cpu);
    let unmasked = mxcsr & MASKS != MASKS && stub.class != Class::Integer;
    let before = if unmasked { Some(cpu.xsave.clone()) } else { None };
    if unmasked {
        set_guest_mxcsr(cpu, (mxcsr | MASKS) & !0x3f);
    }
    if stub.class == Class::X87 {
        let mut raw = [0; 8];
        raw.copy_from_slice(&cpu.xsave.0[8..16]);
        cpu.interp.x87_ip = u64::from_le_bytes(raw);
    }
    let mut context = Context {
        gpr: cpu.gpr,
        flags: cpu.rflags & STATUS | 2,
        area: cpu.xsave.0.as_mut_ptr(),
        memory: bounce.0.as_mut_ptr(),
        mxcsr: guest_mxcsr(cpu),
        host_mxcsr: host_mxcsr(),
    };
    (stub.entry)(&raw mut context);
    // FXSAVE wrote the host's MXCSR_MASK; the guest's is the same on all hosts.
    cpu.xsave.0[28..32].copy_from_slice(&[0xff, 0xff, 0, 0]);
    if !matches!(stub.class, Class::X87 | Class::Mmx) {
        set_guest_mxcsr(cpu, context.mxcsr);
    }
    if let Some(before) = before {
        let raised = guest_mxcsr(cpu) & 0x3f;
        if raised & !(mxcsr >> 7) & 0x3f != 0 {
            cpu.xsave = before;
            set_guest_mxcsr(cpu, mxcsr | raised);
            let known = cpu.cr4 & cr::CR4_OSXMMEXCPT != 0;
            return Err(if known { Exception::plain(vector::XM) } else { Exception::ud() });
        }
        set_guest_mxcsr(cpu, mxcsr | raised);
    }
    cpu.gpr = context.gpr;
    cpu.rflags = (cpu.rflags & !STATUS) | (context.flags & STATUS);
    Ok(())
}
