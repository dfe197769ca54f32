//! Exceptions: vector, error code, CR2, the RIP that is saved, and what the fault leaves as it was.

use hv::{Halt, Hypervisor};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::paging::entry;
use crate::guest::{
    self, ABSENT, CODE, DATA, FAIL_PORT, FIXUP, HANDLERS, IDT, RECORD, SILENT, USER_CODE, USER_DATA, done,
};
use crate::machine::{Machine, Outcome, ensure, same};

/// A page below 2 MiB that nothing else uses, and its successor.
const PAGE: u64 = 0x10_0000;
const NEXT: u64 = 0x10_1000;
const NON_CANONICAL: u64 = 0x8000_0000_0000_1000;

/// Where the saved RIP points.
#[derive(Clone, Copy, PartialEq)]
enum Saved {
    /// At the instruction.
    At,
    /// Behind it.
    Behind,
    /// Here.
    Address(u64),
}

/// What is expected of an exception.
#[derive(Clone, Copy)]
struct Expected {
    vector: u64,
    error: u64,
    saved: Saved,
    /// What CR2 is, of a page fault.
    address: Option<u64>,
}

const fn fault(vector: u64, error: u64) -> Expected {
    Expected { vector, error, saved: Saved::At, address: None }
}

const fn page_fault(error: u64, address: u64) -> Expected {
    Expected { vector: 14, error, saved: Saved::At, address: Some(address) }
}

/// Runs `prepare`, then `raise`, a single instruction, and checks the one exception that it must raise. r13-r15 belong
/// to this function.
fn expect(
    machine: &Machine,
    expected: Expected,
    prepare: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    raise: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Outcome<hv::state::Gpr> {
    machine.load(CODE, |a| {
        let mut at = a.create_label();
        let mut behind = a.create_label();
        let mut resume = a.create_label();
        a.lea(r13, qword_ptr(behind))?;
        a.lea(r14, qword_ptr(at))?;
        a.lea(r15, qword_ptr(resume))?;
        a.mov(qword_ptr(FIXUP), r15)?;
        prepare(a)?;
        a.set_label(&mut at)?;
        raise(a)?;
        a.set_label(&mut behind)?;
        // Nothing was raised.
        a.mov(al, i32::from(SILENT))?;
        a.out(i32::from(FAIL_PORT), al)?;
        a.set_label(&mut resume)?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.finish()?;
    let gpr = cpu.gpr()?;
    let field = |index: u64| machine.read(RECORD + 8 * index);
    same("the number of exceptions", field(0)?, 1)?;
    same("the vector", field(1)?, expected.vector)?;
    same("the error code", field(2)?, expected.error)?;
    let reg = |number: usize| gpr.regs.get(number).copied().unwrap_or_default();
    let rip = match expected.saved {
        Saved::At => reg(14),
        Saved::Behind => reg(13),
        Saved::Address(address) => address,
    };
    same("the saved RIP", field(3)?, rip)?;
    if let Some(address) = expected.address {
        same("CR2 in the handler", field(8)?, address)?;
        same("CR2 in the state", cpu.system()?.cr2, address)?;
    }
    Ok(gpr)
}

/// Goes to ring 3 with I/O privilege and these further flags; the next instruction runs there.
fn ring_3(a: &mut CodeAssembler, flags: i32) -> Result<(), IcedError> {
    let mut there = a.create_label();
    a.push(i32::from(USER_DATA))?;
    a.push(0x3_7000)?;
    a.push(0x3002 | flags)?;
    a.push(i32::from(USER_CODE))?;
    a.lea(rax, qword_ptr(there))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut there)?;
    // An instruction can carry one label only, and the caller's next one may have its own.
    a.nop()
}

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

pub(crate) fn divide_error(engine: &dyn Hypervisor) -> Outcome {
    let zero = |a: &mut CodeAssembler| {
        a.mov(eax, 1)?;
        a.xor(edx, edx)?;
        a.xor(ecx, ecx)
    };
    expect(&Machine::new(engine, 1)?, fault(0, 0), zero, |a| a.div(ecx))?;
    // The quotient does not fit.
    let large = |a: &mut CodeAssembler| {
        a.mov(edx, 1)?;
        a.mov(ecx, 1)
    };
    expect(&Machine::new(engine, 1)?, fault(0, 0), large, |a| a.idiv(ecx))?;
    Ok(())
}

pub(crate) fn invalid_opcode(engine: &dyn Hypervisor) -> Outcome {
    expect(&Machine::new(engine, 1)?, fault(6, 0), nothing, |a| a.ud2())?;
    // LOCK is allowed with few instructions: here `lock nop`.
    expect(&Machine::new(engine, 1)?, fault(6, 0), nothing, |a| a.db(&[0xf0, 0x90]))?;
    Ok(())
}

pub(crate) fn breakpoint(engine: &dyn Hypervisor) -> Outcome {
    let expected = Expected { vector: 3, error: 0, saved: Saved::Behind, address: None };
    expect(&Machine::new(engine, 1)?, expected, nothing, |a| a.int3())?;
    expect(&Machine::new(engine, 1)?, expected, |a| ring_3(a, 0), |a| a.int3())?;
    Ok(())
}

pub(crate) fn general_protection(engine: &dyn Hypervisor) -> Outcome {
    // Not write-through without caches disabled.
    let odd = |a: &mut CodeAssembler| {
        a.mov(rax, cr0)?;
        a.bts(rax, 29)
    };
    expect(&Machine::new(engine, 1)?, fault(13, 0), odd, |a| a.mov(cr0, rax))?;
    // 64-bit mode without physical address extension.
    let narrow = |a: &mut CodeAssembler| {
        a.mov(rax, cr4)?;
        a.btr(rax, 5)
    };
    expect(&Machine::new(engine, 1)?, fault(13, 0), narrow, |a| a.mov(cr4, rax))?;
    Ok(())
}

pub(crate) fn reserved_control_bit(engine: &dyn Hypervisor) -> Outcome {
    let reserved = |a: &mut CodeAssembler| {
        a.mov(rax, cr4)?;
        a.bts(rax, 31)
    };
    expect(&Machine::new(engine, 1)?, fault(13, 0), reserved, |a| a.mov(cr4, rax))?;
    Ok(())
}

pub(crate) fn bad_memory_type(engine: &dyn Hypervisor) -> Outcome {
    // An unknown memory type in the PAT.
    let unknown = |a: &mut CodeAssembler| {
        a.mov(ecx, 0x277)?;
        a.mov(eax, 0x0203)?;
        a.xor(edx, edx)
    };
    expect(&Machine::new(engine, 1)?, fault(13, 0), unknown, |a| a.wrmsr())?;
    Ok(())
}

pub(crate) fn paging_stays_on_in_long_mode(engine: &dyn Hypervisor) -> Outcome {
    let unpaged = |a: &mut CodeAssembler| {
        a.mov(rax, cr0)?;
        a.btr(rax, 31)
    };
    expect(&Machine::new(engine, 1)?, fault(13, 0), unpaged, |a| a.mov(cr0, rax))?;
    Ok(())
}

pub(crate) fn non_canonical(engine: &dyn Hypervisor) -> Outcome {
    let address = |a: &mut CodeAssembler| a.mov(rcx, NON_CANONICAL);
    expect(&Machine::new(engine, 1)?, fault(13, 0), address, |a| a.mov(rax, qword_ptr(rcx)))?;
    expect(&Machine::new(engine, 1)?, fault(13, 0), address, |a| a.mov(dword_ptr(rcx), eax))?;
    Ok(())
}

pub(crate) fn bad_selector(engine: &dyn Hypervisor) -> Outcome {
    let beyond = |a: &mut CodeAssembler| a.mov(eax, 0x1000);
    expect(&Machine::new(engine, 1)?, fault(13, 0x1000), beyond, |a| a.mov(ds, eax))?;
    // A code segment, execute-only as SS.
    let code = |a: &mut CodeAssembler| a.mov(eax, i32::from(guest::KERNEL_CODE));
    expect(&Machine::new(engine, 1)?, fault(13, guest::KERNEL_CODE.into()), code, |a| a.mov(ss, eax))?;
    Ok(())
}

pub(crate) fn segment_not_present(engine: &dyn Hypervisor) -> Outcome {
    let absent = |a: &mut CodeAssembler| a.mov(eax, i32::from(ABSENT));
    expect(&Machine::new(engine, 1)?, fault(11, ABSENT.into()), absent, |a| a.mov(ds, eax))?;
    Ok(())
}

pub(crate) fn stack_fault(engine: &dyn Hypervisor) -> Outcome {
    let frame = |a: &mut CodeAssembler| a.mov(rbp, NON_CANONICAL);
    expect(&Machine::new(engine, 1)?, fault(12, 0), frame, |a| a.mov(rax, qword_ptr(rbp)))?;
    Ok(())
}

pub(crate) fn device_not_available(engine: &dyn Hypervisor) -> Outcome {
    let switched = |a: &mut CodeAssembler| {
        a.mov(rax, cr0)?;
        a.or(eax, 8)?;
        a.mov(cr0, rax)
    };
    expect(&Machine::new(engine, 1)?, fault(7, 0), switched, |a| a.movaps(xmm0, xmm1))?;
    expect(&Machine::new(engine, 1)?, fault(7, 0), switched, |a| a.fld1())?;
    Ok(())
}

pub(crate) fn page_not_present(engine: &dyn Hypervisor) -> Outcome {
    let machine = || -> Outcome<Machine> {
        let machine = Machine::new(engine, 1)?;
        machine.write(entry(PAGE), 0)?;
        Ok(machine)
    };
    let at = PAGE + 0x123;
    expect(&machine()?, page_fault(0, at), nothing, |a| a.mov(rax, qword_ptr(at)))?;
    expect(&machine()?, page_fault(2, at), nothing, |a| a.mov(dword_ptr(at), 1))?;
    expect(&machine()?, page_fault(4, at), |a| ring_3(a, 0), |a| a.mov(rax, qword_ptr(at)))?;
    expect(&machine()?, page_fault(6, at), |a| ring_3(a, 0), |a| a.mov(qword_ptr(at), rcx))?;
    Ok(())
}

pub(crate) fn page_fault_of_read_modify_write(engine: &dyn Hypervisor) -> Outcome {
    // It faults as a write, not as the read that comes first.
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(PAGE), 0)?;
    expect(&machine, page_fault(2, PAGE), nothing, |a| a.inc(byte_ptr(PAGE)))?;
    Ok(())
}

pub(crate) fn page_write_protected(engine: &dyn Hypervisor) -> Outcome {
    let machine = || -> Outcome<Machine> {
        let machine = Machine::new(engine, 1)?;
        machine.write(entry(PAGE), PAGE | 5)?;
        Ok(machine)
    };
    let read = |a: &mut CodeAssembler| a.mov(rax, qword_ptr(PAGE));
    expect(&machine()?, page_fault(3, PAGE), read, |a| a.mov(qword_ptr(PAGE), rax))?;
    let from_ring_3 = |a: &mut CodeAssembler| {
        ring_3(a, 0)?;
        a.mov(rax, qword_ptr(PAGE))
    };
    expect(&machine()?, page_fault(7, PAGE), from_ring_3, |a| a.mov(qword_ptr(PAGE), rax))?;
    // Without CR0.WP ring 0 may write.
    let machine = machine()?;
    machine.execute(|a| {
        a.mov(rax, cr0)?;
        a.btr(rax, 16)?;
        a.mov(cr0, rax)?;
        a.mov(qword_ptr(PAGE), 5)?;
        done(a)
    })?;
    same("what was written without CR0.WP", machine.read(PAGE)?, 5)
}

pub(crate) fn page_no_execute(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(PAGE), PAGE | 7 | 1 << 63)?;
    let expected = Expected { saved: Saved::Address(PAGE), ..page_fault(0x11, PAGE) };
    let target = |a: &mut CodeAssembler| a.mov(rax, PAGE);
    expect(&machine, expected, target, |a| a.jmp(rax))?;
    Ok(())
}

pub(crate) fn page_supervisor_from_ring_3(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(PAGE), PAGE | 3)?;
    let seen_by_ring_0 = |a: &mut CodeAssembler| {
        a.mov(rax, qword_ptr(PAGE))?;
        ring_3(a, 0)
    };
    expect(&machine, page_fault(5, PAGE), seen_by_ring_0, |a| a.mov(rax, qword_ptr(PAGE)))?;
    Ok(())
}

pub(crate) fn page_fault_across_pages(engine: &dyn Hypervisor) -> Outcome {
    let machine = || -> Outcome<Machine> {
        let machine = Machine::new(engine, 1)?;
        machine.write(NEXT - 8, 0x1122_3344_5566_7788)?;
        machine.write(entry(NEXT), 0)?;
        Ok(machine)
    };
    expect(&machine()?, page_fault(0, NEXT), nothing, |a| a.mov(rax, qword_ptr(NEXT - 4)))?;
    let machine = machine()?;
    expect(&machine, page_fault(2, NEXT), |a| a.xor(eax, eax), |a| a.mov(qword_ptr(NEXT - 4), rax))?;
    same("the bytes before the absent page", machine.read(NEXT - 8)?, 0x1122_3344_5566_7788)
}

pub(crate) fn single_step(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // The handler counts, notes where it was raised and DR6, and ends stepping.
    machine.load(HANDLERS + 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.inc(qword_ptr(DATA))?;
        a.mov(rax, qword_ptr(rsp))?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(DATA + 16), rax)?;
        a.and(dword_ptr(rsp + 16), !0x100)?;
        a.iretq()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut behind = a.create_label();
        a.lea(rbx, qword_ptr(behind))?;
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.inc(ecx)?;
        a.set_label(&mut behind)?;
        a.inc(ecx)?;
        done(a)
    })?;
    same("the number of traps", machine.read(DATA)?, 1)?;
    same("where the trap was", machine.read(DATA + 8)?, cpu.reg(3)?)?;
    same("DR6.BS", machine.read(DATA + 16)? >> 14 & 1, 1)?;
    same("what ran", cpu.reg(1)?, 2)
}

pub(crate) fn simd_exception(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(DATA, 0x1d80)?;
    let unmasked = |a: &mut CodeAssembler| {
        a.ldmxcsr(dword_ptr(DATA))?;
        a.mov(eax, 1)?;
        a.cvtsi2ss(xmm0, eax)?;
        a.xorps(xmm1, xmm1)
    };
    expect(&machine, fault(19, 0), unmasked, |a| a.divss(xmm0, xmm1))?;
    Ok(())
}

pub(crate) fn alignment_check(engine: &dyn Hypervisor) -> Outcome {
    expect(
        &Machine::new(engine, 1)?,
        fault(17, 0),
        |a| ring_3(a, 0x4_0000),
        |a| a.mov(eax, dword_ptr(DATA + 1)),
    )?;
    Ok(())
}

pub(crate) fn privileged_in_ring_3(engine: &dyn Hypervisor) -> Outcome {
    let user = |a: &mut CodeAssembler| ring_3(a, 0);
    expect(&Machine::new(engine, 1)?, fault(13, 0), user, |a| a.hlt())?;
    expect(&Machine::new(engine, 1)?, fault(13, 0), user, |a| a.mov(rax, cr0))?;
    expect(&Machine::new(engine, 1)?, fault(13, 0), user, |a| a.rdmsr())?;
    // A gate that only ring 0 may use.
    expect(&Machine::new(engine, 1)?, fault(13, 0x81 * 8 + 2), user, |a| a.int(0x81))?;
    Ok(())
}

pub(crate) fn software_interrupt_from_ring_3(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(HANDLERS + 0x80 * 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.mov(rbx, qword_ptr(rsp))?;
        a.mov(rsi, qword_ptr(rsp + 8))?;
        a.mov(rdi, qword_ptr(rsp + 24))?;
        a.mov(r8, rsp)?;
        a.mov(r9d, cs)?;
        a.iretq()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut behind = a.create_label();
        a.lea(r14, qword_ptr(behind))?;
        ring_3(a, 0)?;
        a.int(0x80)?;
        a.set_label(&mut behind)?;
        a.mov(r10d, cs)?;
        done(a)
    })?;
    let (saved, behind) = (cpu.reg(3)?, cpu.reg(14)?);
    same("the saved RIP", saved, behind)?;
    same("the saved CS", cpu.reg(6)?, USER_CODE.into())?;
    same("the saved RSP", cpu.reg(7)?, 0x3_7000)?;
    same("RSP in the handler", cpu.reg(8)?, guest::RSP0 - 40)?;
    same("CS in the handler", cpu.reg(9)?, guest::KERNEL_CODE.into())?;
    same("CS after the return", cpu.reg(10)?, USER_CODE.into())
}

pub(crate) fn double_fault_stack(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // The gate of general protection is none: its delivery fails with another one.
    machine.write(IDT + 13 * 16, 0)?;
    machine.load(HANDLERS + 8 * 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.mov(rbx, rsp)?;
        a.pop(rsi)?;
        done(a)
    })?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, NON_CANONICAL)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.ud2()
    })?;
    same("RSP in the handler", cpu.reg(3)?, guest::IST1 - 48)?;
    same("the error code", cpu.reg(6)?, 0)
}

pub(crate) fn triple_fault(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| a.ud2())?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.change_system(|system| system.idt_limit = 0)?;
    same("the halt", cpu.run()?, Halt::TripleFault)
}

pub(crate) fn fault_keeps_registers(engine: &dyn Hypervisor) -> Outcome {
    // PUSH of what cannot be read leaves RSP alone.
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(NEXT), 0)?;
    let gpr = expect(&machine, page_fault(0, NEXT), |a| a.mov(rbx, rsp), |a| a.push(qword_ptr(NEXT)))?;
    same("rsp", gpr.regs.get(4), gpr.regs.get(3))?;
    // A repeated move that runs into an absent page stands at the element that failed.
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(NEXT), 0)?;
    let forward = |a: &mut CodeAssembler| {
        a.cld()?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, NEXT - 5)?;
        a.mov(ecx, 100)
    };
    let gpr = expect(&machine, page_fault(2, NEXT), forward, |a| a.rep().movsb())?;
    let reg = |number: usize| gpr.regs.get(number).copied().unwrap_or_default();
    same("rcx, rsi and rdi", (reg(1), reg(6), reg(7)), (95, DATA + 5, NEXT))
}

pub(crate) fn fault_keeps_flags(engine: &dyn Hypervisor) -> Outcome {
    // A read-modify-write that cannot be written leaves the flags alone.
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(PAGE), PAGE | 5)?;
    machine.write(PAGE, u64::MAX)?;
    expect(&machine, page_fault(3, PAGE), |a| a.stc(), |a| a.add(dword_ptr(PAGE), 0))?;
    ensure(machine.read(RECORD + 0x28)? & 1 == 1, "The carry flag was changed by an ADD that faulted")
}
