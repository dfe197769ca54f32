//! Runs one instruction on the host's CPU with every register set.

use iced_x86::code_asm::*;

use crate::{CODE, DATA, DATA_BYTES, FLAGS, Machine};

/// Absolute addresses below 2 GiB, so that code can reach the context when every register is the guest's.
const CONTEXT: u32 = 0x2000_0000;
const GPR: u32 = CONTEXT;
const RFLAGS: u32 = CONTEXT + 0x80;
const HOST_RSP: u32 = CONTEXT + 0x88;
/// A stack of its own for the moves of flags.
const FLAG_STACK: u32 = CONTEXT + 0x800;
const XSAVE: u32 = CONTEXT + 0x1000;
const ENTER: u64 = 0x2800_1000;
const LEAVE: u64 = 0x2800_2000;

pub(crate) struct Native;

fn map(at: u64, len: usize, prot: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new mapping at an address where nothing is.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, prot, flags, -1, 0) };
    assert_eq!(got as u64, at, "the test's fixed addresses are free");
}

fn put(at: u64, bytes: &[u8]) {
    // SAFETY: the callers write inside the mappings made in `Native::new`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
}

fn get<const N: usize>(at: u64) -> Box<[u8; N]> {
    let mut bytes = Box::new([0; N]);
    // SAFETY: as in `put`.
    unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), N) }
    bytes
}

const REGISTERS: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];

impl Native {
    pub(crate) fn new() -> Self {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(u64::from(CONTEXT), 0x2000, rw);
        map(CODE & !0xfff, 0x3000, rw | libc::PROT_EXEC);
        map(DATA, DATA_BYTES, rw);
        put(ENTER, &enter().expect("fixed code assembles"));
        put(LEAVE, &leave().expect("fixed code assembles"));
        Self
    }

    pub(crate) fn run(&mut self, bytes: &[u8], machine: &mut Machine) {
        let mut code = bytes.to_vec();
        let jump = LEAVE.wrapping_sub(CODE + bytes.len() as u64 + 5) as i32;
        code.push(0xe9);
        code.extend(jump.to_le_bytes());
        put(CODE, &code);
        put(DATA, &machine.data[..]);
        put(u64::from(XSAVE), &machine.xsave[..]);
        let gprs: Vec<u8> = machine.gpr.iter().flat_map(|value| value.to_le_bytes()).collect();
        put(u64::from(GPR), &gprs);
        put(u64::from(RFLAGS), &(machine.flags & FLAGS | 0x202).to_le_bytes());
        // SAFETY: the code at ENTER saves and restores what the ABI asks for; the instruction between was chosen so that it
        // neither faults nor leaves the data pages.
        unsafe { std::mem::transmute::<u64, extern "sysv64" fn()>(ENTER)() };
        for (index, chunk) in get::<128>(u64::from(GPR)).chunks_exact(8).enumerate() {
            machine.gpr[index] = u64::from_le_bytes(chunk.try_into().expect("eight bytes"));
        }
        machine.flags = u64::from_le_bytes(*get::<8>(u64::from(RFLAGS))) & FLAGS;
        machine.data = get(DATA);
        machine.xsave = get(u64::from(XSAVE));
        normalise(&mut machine.xsave);
    }
}

/// XSAVE leaves components alone that are in their initial state; puts that state there.
fn normalise(area: &mut [u8; 832]) {
    let present = area[512];
    if present & 1 == 0 {
        area[0..24].fill(0);
        area[0] = 0x7f;
        area[1] = 3;
        area[32..160].fill(0);
    }
    if present & 2 == 0 {
        area[160..416].fill(0);
    }
    if present & 4 == 0 {
        area[576..832].fill(0);
    }
    area[512] = 7;
}

fn enter() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in [rbx, rbp, r12, r13, r14, r15] {
        a.push(register)?;
    }
    a.mov(qword_ptr(HOST_RSP), rsp)?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xrstor(ptr(XSAVE))?;
    a.mov(rsp, i64::from(RFLAGS))?;
    a.popfq()?;
    for (index, register) in REGISTERS.iter().enumerate() {
        a.mov(*register, qword_ptr(GPR + 8 * index as u32))?;
    }
    let here = a.assemble(ENTER)?.len() as u64 + ENTER;
    let jump = CODE.wrapping_sub(here + 5) as i32;
    let mut bytes = a.assemble(ENTER)?;
    bytes.push(0xe9);
    bytes.extend(jump.to_le_bytes());
    Ok(bytes)
}

fn leave() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for (index, register) in REGISTERS.iter().enumerate() {
        a.mov(qword_ptr(GPR + 8 * index as u32), *register)?;
    }
    a.mov(rsp, i64::from(FLAG_STACK))?;
    a.pushfq()?;
    a.pop(qword_ptr(RFLAGS))?;
    a.cld()?;
    a.mov(rsp, qword_ptr(HOST_RSP))?;
    a.mov(eax, 7)?;
    a.xor(edx, edx)?;
    a.xsave(ptr(XSAVE))?;
    a.fninit()?;
    a.ldmxcsr(dword_ptr(CONTEXT + 0x90))?;
    a.vzeroupper()?;
    for register in [r15, r14, r13, r12, rbp, rbx] {
        a.pop(register)?;
    }
    a.ret()?;
    let bytes = a.assemble(LEAVE)?;
    put(u64::from(CONTEXT) + 0x90, &0x1f80_u32.to_le_bytes());
    Ok(bytes)
}
