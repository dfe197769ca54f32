//! What every guest of the suite starts with: page tables, descriptor tables, handlers.
//!
//! | from | what |
//! |---|---|
//! | 0x1000 | GDT |
//! | 0x2000 | IDT |
//! | 0x3000-0x9fff | identity map of the first 4 GiB: 4 KiB pages below 2 MiB, 2 MiB pages above; user-accessible |
//! | 0xa000 | TSS |
//! | 0x10000 | real-mode start of an AP |
//! | 0x18000 | handlers |
//! | 0x20000 | code |
//! | 0x30000 | data |
//! | 0x38000 | what the exception handler saw, then the interrupt counters |
//! | 0x48000… | stacks, growing down |

use guest_memory::GuestRam;
use hv::state::{Gpr, Segment, System};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use crate::Failure;

pub(crate) const GDT: u64 = 0x1000;
pub(crate) const IDT: u64 = 0x2000;
pub(crate) const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
/// Four page directories, one per GiB.
pub(crate) const PDS: u64 = 0x5000;
/// The page table of the first 2 MiB.
pub(crate) const PT: u64 = 0x9000;
const TSS: u64 = 0xa000;
pub(crate) const HANDLERS: u64 = 0x1_8000;
pub(crate) const CODE: u64 = 0x2_0000;
pub(crate) const AP_CODE: u64 = 0x2_8000;
pub(crate) const DATA: u64 = 0x3_0000;
pub(crate) const RECORD: u64 = 0x3_8000;
/// Where the exception handler returns to; 0 ends the guest.
pub(crate) const FIXUP: u64 = RECORD + 0x48;
pub(crate) const IRQ_COUNTS: u64 = 0x3_9000;
const STACKS: u64 = 0x4_8000;
const STACK_SIZE: u64 = 0x4000;
/// The ring-0 stack that ring 3 enters on, and the one for double faults.
pub(crate) const RSP0: u64 = 0x6_8000;
pub(crate) const IST1: u64 = 0x6_c000;

/// RAM of every guest.
pub(crate) const RAM: u64 = 0x40_0000;
/// Where nothing but [`hv::CpuIo`] answers.
pub(crate) const MMIO: u64 = 0xd000_0000;
/// The read-only range and its size.
pub(crate) const READ_ONLY: u64 = 0x1000_0000;
pub(crate) const READ_ONLY_LEN: u64 = 0x1_0000;
/// The local APIC's registers.
pub(crate) const APIC: u64 = 0xfee0_0000;
/// A write here ends the vCPU's run: all is well.
pub(crate) const DONE_PORT: u16 = 0xf4;
/// A byte written here ends the vCPU's run: it says what went wrong.
pub(crate) const FAIL_PORT: u16 = 0xf5;
/// What the default handler writes to [`FAIL_PORT`] for an exception that nobody expected.
pub(crate) const UNEXPECTED: u8 = 0xee;
/// What a guest writes to [`FAIL_PORT`] when an exception that it waited for did not come.
pub(crate) const SILENT: u8 = 0xdd;

pub(crate) const KERNEL_CODE: u16 = 0x08;
pub(crate) const KERNEL_DATA: u16 = 0x10;
pub(crate) const USER_DATA: u16 = 0x1b;
pub(crate) const USER_CODE: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;
/// A data segment that is not present.
pub(crate) const ABSENT: u16 = 0x38;
/// A flat 32-bit code segment.
pub(crate) const GDT_LIMIT: u32 = 0x47;

/// Assembles guest code for the address `at`.
pub(crate) fn assemble(
    at: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, Failure> {
    let mut assembler = CodeAssembler::new(64)?;
    write(&mut assembler)?;
    Ok(assembler.assemble(at)?)
}

/// Ends the vCPU's run.
pub(crate) fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.out(i32::from(DONE_PORT), al)?;
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// Turns the APIC on: spurious vector 0xff.
pub(crate) fn enable_apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rcx, APIC + 0xf0)?;
    a.mov(dword_ptr(rcx), 0x1ff)
}

/// Writes everything that the module describes.
pub(crate) fn install(ram: &GuestRam) -> Result<(), Failure> {
    let memory = ram.memory();
    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    put(PML4, PDPT | 7)?;
    for gib in 0..4 {
        put(PDPT + gib * 8, (PDS + gib * 0x1000) | 7)?;
        for index in 0..512 {
            put(PDS + gib * 0x1000 + index * 8, gib << 30 | index << 21 | 0x87)?;
        }
    }
    put(PDS, PT | 7)?;
    for index in 0..512 {
        put(PT + index * 8, index << 12 | 7)?;
    }
    let gdt = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x0000_8b00_0000_0067 | (TSS & 0xff_ffff) << 16,
        0,
        0x00cf_1300_0000_ffff,
        0x00cf_9b00_0000_ffff,
    ];
    for (index, descriptor) in (0..).zip(gdt) {
        put(GDT + index * 8, descriptor)?;
    }
    put(TSS + 4, RSP0)?;
    put(TSS + 0x24, IST1)?;
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        let ist = u64::from(vector == 8);
        // Breakpoints and a system-call gate may come from ring 3.
        let dpl = if vector == 3 || vector == 0x80 { 3 } else { 0 };
        let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | ist << 32 | (0x8e | dpl << 5) << 40;
        put(IDT + vector * 16, low | (handler >> 16 & 0xffff) << 48)?;
        put(IDT + vector * 16 + 8, 0)?;
    }
    install_handlers(ram)
}

/// A 16-byte stub per vector, then the two common handlers.
fn install_handlers(ram: &GuestRam) -> Result<(), Failure> {
    let exceptions = HANDLERS + 0x1000;
    let interrupts = HANDLERS + 0x1200;
    for vector in 0..256u64 {
        let at = HANDLERS + vector * 16;
        let stub = assemble(at, |a| {
            if !matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30) {
                a.push(0)?;
            }
            a.push(vector as i32)?;
            a.jmp(if vector < 32 { exceptions } else { interrupts })
        })?;
        ram.memory().write_slice(&stub, GuestAddress(at))?;
    }
    ram.memory().write_slice(&assemble(exceptions, exception_handler)?, GuestAddress(exceptions))?;
    ram.memory().write_slice(&assemble(interrupts, interrupt_handler)?, GuestAddress(interrupts))?;
    Ok(())
}

/// Notes what happened at [`RECORD`], then returns to the address in [`FIXUP`] or ends the guest.
fn exception_handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut unexpected = a.create_label();
    a.push(rax)?;
    a.push(rcx)?;
    a.mov(rcx, RECORD)?;
    // On the stack: rcx, rax, vector, error code, rip, cs, rflags, rsp, ss.
    for field in 0..7 {
        a.mov(rax, qword_ptr(rsp + (16 + field * 8)))?;
        a.mov(qword_ptr(rcx + (8 + field * 8)), rax)?;
    }
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rcx + 0x40), rax)?;
    a.inc(qword_ptr(rcx))?;
    a.mov(rax, qword_ptr(rcx + 0x48))?;
    a.test(rax, rax)?;
    a.jz(unexpected)?;
    a.mov(qword_ptr(rsp + 32), rax)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(&mut unexpected)?;
    a.mov(al, i32::from(UNEXPECTED))?;
    a.out(i32::from(FAIL_PORT), al)?;
    a.jmp(unexpected)
}

/// Counts the vector at [`IRQ_COUNTS`] and signals the end of the interrupt.
fn interrupt_handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.push(rcx)?;
    a.mov(rcx, qword_ptr(rsp + 16))?;
    a.lock().inc(qword_ptr(rcx * 8 + IRQ_COUNTS as i32))?;
    a.mov(rcx, APIC + 0xb0)?;
    a.mov(dword_ptr(rcx), 0)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()
}

/// Flat 64-bit segments, paging on, interrupts off.
pub(crate) fn long_mode(vcpu: u32) -> System {
    let flat = |selector: u16, attributes| Segment {
        selector: selector.into(),
        base: 0,
        limit: u32::MAX,
        attributes,
    };
    let data = || flat(KERNEL_DATA, 0xc093);
    System {
        segments: vec![
            data(),
            flat(KERNEL_CODE, 0xa09b),
            data(),
            data(),
            data(),
            data(),
            Segment { selector: 0, base: 0, limit: 0, attributes: 1 << 16 },
            Segment { selector: TSS_SELECTOR.into(), base: TSS, limit: 0x67, attributes: 0x8b },
        ],
        gdt_base: GDT,
        gdt_limit: GDT_LIMIT,
        idt_base: IDT,
        idt_limit: 0xfff,
        cr0: 0x8005_0033,
        cr2: 0,
        cr3: PML4,
        cr4: 0x620,
        cr8: 0,
        efer: 0xd01,
        apic_base: if vcpu == 0 { APIC | 0x900 } else { APIC | 0x800 },
    }
}

/// Registers for a start at `entry` on the vCPU's own stack.
pub(crate) fn registers(vcpu: u32, entry: u64) -> Gpr {
    let mut regs = vec![0; 16];
    if let Some(stack) = regs.get_mut(4) {
        *stack = stack_top(vcpu);
    }
    Gpr { regs, rip: entry, rflags: 2 }
}

/// Where the vCPU's stack begins.
pub(crate) fn stack_top(vcpu: u32) -> u64 {
    STACKS + u64::from(vcpu) * STACK_SIZE
}
