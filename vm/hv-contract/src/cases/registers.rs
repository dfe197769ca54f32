//! Control, model-specific and debug registers, segments, system calls, CPUID, and arithmetic of a few kinds.

use hv::Hypervisor;
use hv::state::{StateElement, StateId};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::Failure;
use crate::guest::{self, APIC, CODE, DATA, FIXUP, HANDLERS, RECORD, USER_CODE, USER_DATA, done};
use crate::machine::{Machine, Outcome, ensure, fail, same};

/// `wrmsr` of a constant.
fn write_msr(a: &mut CodeAssembler, index: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// `rdmsr` into one register.
fn read_msr(a: &mut CodeAssembler, index: u32, to: AsmRegister64) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.rdmsr()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(to, rax)
}

pub(crate) fn control_registers(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rbx, cr0)?;
        a.mov(rsi, cr3)?;
        a.mov(rdi, cr4)?;
        a.mov(rax, 0x1234_5678_9000u64)?;
        a.mov(cr2, rax)?;
        a.mov(r8, cr2)?;
        a.mov(rax, rdi)?;
        a.or(eax, 0x80)?;
        a.mov(cr4, rax)?;
        a.mov(r9, cr4)?;
        a.mov(rax, rbx)?;
        a.or(eax, 8)?;
        a.mov(cr0, rax)?;
        a.mov(r10, cr0)?;
        a.clts()?;
        a.mov(r11, cr0)?;
        done(a)
    })?;
    let boot = guest::long_mode(0);
    // KVM on AMD shows the host's CR4.MCE.
    let cr4_seen = |value: u64| value & !0x40;
    same(
        "CR0, CR3 and CR4",
        (cpu.reg(3)?, cpu.reg(6)?, cr4_seen(cpu.reg(7)?)),
        (boot.cr0, boot.cr3, boot.cr4),
    )?;
    same("CR2", cpu.reg(8)?, 0x1234_5678_9000)?;
    same("CR4 after a write", cr4_seen(cpu.reg(9)?), boot.cr4 | 0x80)?;
    same("CR0 after a write", cpu.reg(10)?, boot.cr0 | 8)?;
    same("CR0 after CLTS", cpu.reg(11)?, boot.cr0)?;
    let system = cpu.system()?;
    let got = (system.cr0, system.cr2, system.cr3, cr4_seen(system.cr4), system.efer & 0xd01);
    same(
        "the control registers in the state",
        got,
        (boot.cr0, 0x1234_5678_9000, boot.cr3, boot.cr4 | 0x80, 0xd01),
    )
}

pub(crate) fn segment_bases(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(DATA + 0x10, 0x11)?;
    machine.write(DATA + 0x110, 0x22)?;
    let mut cpu = machine.execute(|a| {
        write_msr(a, 0xc000_0100, DATA)?;
        write_msr(a, 0xc000_0101, DATA + 0x100)?;
        a.mov(ebx, 0x10)?;
        a.mov(rsi, qword_ptr(rbx).fs())?;
        a.mov(rdi, qword_ptr(rbx).gs())?;
        read_msr(a, 0xc000_0101, r8)?;
        // A null selector clears nothing that can be relied on; a flat one clears the base.
        a.mov(eax, i32::from(guest::KERNEL_DATA))?;
        a.mov(fs, eax)?;
        read_msr(a, 0xc000_0100, r9)?;
        done(a)
    })?;
    same("what FS and GS reach", (cpu.reg(6)?, cpu.reg(7)?), (0x11, 0x22))?;
    same("GS base", cpu.reg(8)?, DATA + 0x100)?;
    same("FS base after a load of FS", cpu.reg(9)?, 0)?;
    let system = cpu.system()?;
    same("GS base in the state", system.segments.get(5).map(|segment| segment.base), Some(DATA + 0x100))
}

pub(crate) fn swapgs(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(DATA, 0x11)?;
    machine.write(DATA + 0x100, 0x22)?;
    let mut cpu = machine.execute(|a| {
        write_msr(a, 0xc000_0101, DATA)?;
        write_msr(a, 0xc000_0102, DATA + 0x100)?;
        a.xor(ebx, ebx)?;
        a.mov(rsi, qword_ptr(rbx).gs())?;
        a.swapgs()?;
        a.mov(rdi, qword_ptr(rbx).gs())?;
        read_msr(a, 0xc000_0102, r8)?;
        done(a)
    })?;
    same("what GS reached before and after", (cpu.reg(6)?, cpu.reg(7)?), (0x11, 0x22))?;
    same("the kernel's GS base", cpu.reg(8)?, DATA)
}

pub(crate) fn system_call_and_return(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE + 0x800, |a| {
        a.mov(edi, cs)?;
        a.mov(r8, rcx)?;
        a.mov(r9, r11)?;
        a.pushfq()?;
        a.pop(r12)?;
        a.sysretq()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut user = a.create_label();
        let mut behind = a.create_label();
        // SYSCALL loads CS 8 and SS 0x10; SYSRET CS 0x23 and SS 0x1b. The carry and direction flags are masked.
        write_msr(a, 0xc000_0081, 0x0010_0008_0000_0000)?;
        write_msr(a, 0xc000_0082, CODE + 0x800)?;
        write_msr(a, 0xc000_0084, 0x401)?;
        a.lea(r14, qword_ptr(behind))?;
        a.lea(rax, qword_ptr(user))?;
        a.push(i32::from(USER_DATA))?;
        // SYSCALL keeps the stack pointer.
        a.push(0x3_7000)?;
        a.push(0x3403)?;
        a.push(i32::from(USER_CODE))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut user)?;
        a.syscall()?;
        a.set_label(&mut behind)?;
        a.mov(ebx, cs)?;
        a.mov(esi, ss)?;
        a.pushfq()?;
        a.pop(r13)?;
        done(a)
    })?;
    same("CS in the kernel", cpu.reg(7)?, guest::KERNEL_CODE.into())?;
    let (rcx_there, behind) = (cpu.reg(8)?, cpu.reg(14)?);
    same("RCX in the kernel", rcx_there, behind)?;
    same("R11 in the kernel", cpu.reg(9)? & 0xffff, 0x3403)?;
    same("the flags in the kernel", cpu.reg(12)? & 0x401, 0)?;
    same("CS and SS after the return", (cpu.reg(3)?, cpu.reg(6)?), (USER_CODE.into(), USER_DATA.into()))?;
    same("the flags after the return", cpu.reg(13)? & 0x401, 0x401)
}

pub(crate) fn msr_values(engine: &dyn Hypervisor) -> Outcome {
    let values: &[(u32, u64)] = &[
        (0x174, 8),
        (0x175, 0x1234_5000),
        // 32 bits wide on AMD.
        (0x176, 0xffff_1000),
        (0x277, 0x0007_0406_0007_0406),
        (0xc000_0081, 0x0010_0008_0000_0000),
        (0xc000_0082, 0xffff_ffff_8000_1000),
        (0xc000_0083, 0xffff_ffff_8000_2000),
        (0xc000_0084, 0x4_7700),
        (0xc000_0102, 0xffff_8880_0000_0000),
    ];
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        for (slot, (index, value)) in (0..).zip(values) {
            write_msr(a, *index, *value)?;
            read_msr(a, *index, rbx)?;
            a.mov(qword_ptr(DATA + slot * 8), rbx)?;
        }
        done(a)
    })?;
    for (slot, (index, value)) in (0..).zip(values) {
        same(&format!("MSR {index:#x}"), machine.read(DATA + slot * 8)?, *value)?;
    }
    let StateElement::Msrs(msrs) = cpu.vcpu.get_state(StateId::Msrs)? else {
        return fail("no MSRs in the state");
    };
    for (index, value) in values {
        let saved = msrs.msrs.iter().find(|msr| msr.index == *index).map(|msr| msr.value);
        same(&format!("MSR {index:#x} in the state"), saved, Some(*value))?;
    }
    Ok(())
}

/// Runs code that must raise #GP(0) and nothing else.
fn protection(
    engine: &dyn Hypervisor,
    raise: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        let mut resume = a.create_label();
        a.lea(rax, qword_ptr(resume))?;
        a.mov(qword_ptr(FIXUP), rax)?;
        raise(a)?;
        a.mov(al, i32::from(guest::SILENT))?;
        a.out(i32::from(guest::FAIL_PORT), al)?;
        a.set_label(&mut resume)?;
        done(a)
    })?;
    same("the exception", (machine.read(RECORD + 8)?, machine.read(RECORD + 16)?), (13, 0))
}

pub(crate) fn unknown_msr(engine: &dyn Hypervisor) -> Outcome {
    protection(engine, |a| {
        a.mov(ecx, 0xdead_0001u32)?;
        a.rdmsr()
    })?;
    protection(engine, |a| write_msr(a, 0xdead_0001, 0))
}

pub(crate) fn non_canonical_msr(engine: &dyn Hypervisor) -> Outcome {
    // LSTAR takes canonical addresses only.
    protection(engine, |a| write_msr(a, 0xc000_0082, 0x8000_0000_0000_0000))
}

pub(crate) fn debug_registers(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(eax, 0x1000)?;
        a.mov(dr0, rax)?;
        a.mov(eax, 0x2000)?;
        a.mov(dr3, rax)?;
        a.mov(eax, 0x400)?;
        a.mov(dr7, rax)?;
        a.mov(rbx, dr0)?;
        a.mov(rsi, dr3)?;
        a.mov(rdi, dr7)?;
        done(a)
    })?;
    same("DR0, DR3 and DR7", (cpu.reg(3)?, cpu.reg(6)?, cpu.reg(7)?), (0x1000, 0x2000, 0x400))?;
    let StateElement::Debug(debug) = cpu.vcpu.get_state(StateId::Debug)? else {
        return fail("no debug registers");
    };
    let saved = [debug.regs.first(), debug.regs.get(3), debug.regs.get(5)].map(Option::<&u64>::copied);
    same("the debug registers in the state", saved, [Some(0x1000), Some(0x2000), Some(0x400)])
}

pub(crate) fn extended_control_register(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        let mut absent = a.create_label();
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.xor(edi, edi)?;
        a.bt(ecx, 26)?;
        a.jnc(absent)?;
        a.mov(rax, cr4)?;
        a.bts(rax, 18)?;
        a.mov(cr4, rax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ecx, 27)?;
        a.and(ecx, 1)?;
        a.mov(r8d, ecx)?;
        a.xor(ecx, ecx)?;
        a.mov(eax, 3)?;
        a.xor(edx, edx)?;
        a.xsetbv()?;
        a.xgetbv()?;
        a.mov(ebx, eax)?;
        a.mov(edi, 1)?;
        a.set_label(&mut absent)?;
        done(a)
    })?;
    if cpu.reg(7)? == 0 {
        return Err(Failure::Skipped("the CPU has no XSAVE".into()));
    }
    same("CPUID.OSXSAVE", cpu.reg(8)?, 1)?;
    same("XCR0", cpu.reg(3)?, 3)?;
    let StateElement::Xsave(xsave) = cpu.vcpu.get_state(StateId::Xsave)? else {
        return fail("no extended state");
    };
    same("XCR0 in the state", xsave.xcr0, 3)?;
    // x87 cannot be turned off.
    protection(engine, |a| {
        a.mov(rax, cr4)?;
        a.bts(rax, 18)?;
        a.mov(cr4, rax)?;
        a.xor(ecx, ecx)?;
        a.mov(eax, 2)?;
        a.xor(edx, edx)?;
        a.xsetbv()
    })
}

pub(crate) fn cpuid(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(r8d, eax)?;
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.mov(r9d, ebx)?;
        a.mov(r10d, ecx)?;
        a.mov(r11d, edx)?;
        a.mov(eax, 0x8000_0001u32)?;
        a.cpuid()?;
        a.mov(r12d, edx)?;
        a.mov(r13d, ecx)?;
        done(a)
    })?;
    ensure(cpu.reg(8)? >= 7, "CPUID ends before leaf 7")?;
    same("the APIC id", cpu.reg(9)? >> 24, 0)?;
    // FPU, TSC, MSR, PAE, CX8, APIC, PGE, CMOV, PAT, FXSR, SSE, SSE2: what x86-64 has, and what Linux needs.
    let needed = [0, 4, 5, 6, 8, 9, 13, 15, 16, 24, 25, 26].iter().fold(0u64, |bits, bit| bits | 1 << bit);
    same("the features in EDX", cpu.reg(11)? & needed, needed)?;
    same("no VMX", cpu.reg(10)? >> 5 & 1, 0)?;
    same("no SVM", cpu.reg(13)? >> 2 & 1, 0)?;
    same("long mode, NX and SYSCALL", cpu.reg(12)? & 0x2010_0800, 0x2010_0800)
}

pub(crate) fn flags_of_arithmetic(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let flags = |a: &mut CodeAssembler, slot: u64| {
        a.pushfq()?;
        a.pop(rbx)?;
        a.mov(qword_ptr(DATA + slot * 8), rbx)
    };
    machine.execute(|a| {
        a.mov(eax, 0x7fff_ffff)?;
        a.add(eax, 1)?;
        flags(a, 0)?;
        a.xor(eax, eax)?;
        flags(a, 1)?;
        a.mov(al, 0)?;
        a.sub(al, 1)?;
        flags(a, 2)?;
        a.mov(eax, i32::MIN)?;
        a.mov(ecx, 2)?;
        a.imul_2(eax, ecx)?;
        flags(a, 3)?;
        a.stc()?;
        a.mov(eax, -1)?;
        a.adc(eax, 0)?;
        flags(a, 4)?;
        a.mov(eax, 0x8000_0001u32)?;
        a.shl(eax, 1)?;
        flags(a, 5)?;
        a.stc()?;
        a.inc(eax)?;
        flags(a, 6)?;
        done(a)
    })?;
    // Carry, parity, adjust, zero, sign, overflow where defined.
    let expected: [(u64, u64); 7] = [
        (0x8d5, 0x894),
        (0x8c5, 0x044),
        (0x8d5, 0x095),
        (0x801, 0x801),
        (0x8d5, 0x055),
        (0x8c5, 0x801),
        (0x8d5, 0x005),
    ];
    for (slot, (defined, value)) in (0..).zip(expected) {
        same(&format!("the flags of operation {slot}"), machine.read(DATA + slot * 8)? & defined, value)?;
    }
    Ok(())
}

/// String stores and system instructions leave the status flags alone, however they are done.
pub(crate) fn flags_kept_by_string_and_system_instructions(engine: &dyn Hypervisor) -> Outcome {
    const FROM: u64 = 0x10_0000;
    const TO: u64 = 0x10_2000;
    let machine = Machine::new(engine, 1)?;
    let keep = |a: &mut CodeAssembler, slot: u64| {
        a.pushfq()?;
        a.pop(qword_ptr(DATA + slot * 8))
    };
    // CF, PF, AF and SF set, ZF and OF clear; clobbers rbx only.
    let set = |a: &mut CodeAssembler| {
        a.mov(ebx, 0)?;
        a.sub(ebx, 1)
    };
    let mut cpu = machine.execute(|a| {
        // (where from the start of a page, elements): in a page, to its end, across it, none.
        for (slot, (offset, count)) in (0..).zip([(0x10u64, 3u64), (0xff0, 2), (0xff4, 4), (0x10, 0)]) {
            for (slot, moves) in [(slot * 2, false), (slot * 2 + 1, true)] {
                a.mov(rax, 0x0101_0101_0101_0101u64)?;
                a.mov(rsi, FROM + offset)?;
                a.mov(rdi, TO + offset)?;
                a.mov(rcx, count)?;
                set(a)?;
                if moves {
                    a.rep().movsq()?
                } else {
                    a.rep().stosq()?
                }
                keep(a, slot)?;
            }
        }
        // Downwards and, after CLD, upwards again.
        a.mov(rdi, TO + 0x808)?;
        a.mov(ecx, 2)?;
        a.std()?;
        set(a)?;
        a.rep().stosq()?;
        keep(a, 8)?;
        a.mov(r8, rdi)?;
        set(a)?;
        a.cld()?;
        keep(a, 9)?;
        a.mov(ecx, 2)?;
        a.rep().stosq()?;
        a.mov(r12, rdi)?;
        // PAUSE often enough for whatever is done now and then.
        for _ in 0..100 {
            a.pause()?;
        }
        set(a)?;
        a.pause()?;
        a.mov(r13, cr3)?;
        a.mov(r10, -1i64)?;
        a.mov(r14, -1i64)?;
        a.mov(r10w, ds)?;
        a.mov(r14w, ds)?;
        a.mov(r9, cr3)?;
        keep(a, 10)?;
        a.mov(r11, cr4)?;
        a.bts(r11, 16)?;
        a.mov(cr4, r11)?;
        a.mov(r11, 0xffff_8000_1234_5678u64)?;
        set(a)?;
        a.wrgsbase(r11)?;
        keep(a, 11)?;
        a.rdgsbase(r15)?;
        done(a)
    })?;
    for slot in 0..12 {
        let df = if slot == 8 { 0x400 } else { 0 };
        let flags = machine.read(DATA + slot * 8)? & 0xcd5;
        same(&format!("the flags of operation {slot}"), flags, 0x095 | df)?;
    }
    same("RDI after going down, then up", (cpu.reg(8)?, cpu.reg(12)?), (TO + 0x7f8, TO + 0x808))?;
    let selector = 0xffff_ffff_ffff_0000 | u64::from(guest::KERNEL_DATA);
    same("selectors in 16-bit registers", (cpu.reg(10)?, cpu.reg(14)?), (selector, selector))?;
    same("CR3 in two registers", (cpu.reg(13)?, cpu.reg(9)?), (guest::PML4, guest::PML4))?;
    same("the GS base", cpu.reg(15)?, 0xffff_8000_1234_5678)?;
    same("the end of the longest run", machine.read(TO + 0xff4 + 24)?, 0)?;
    same("its last element but one", machine.read(TO + 0xff4 - 4)?, 0)
}

pub(crate) fn task_priority_register(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(eax, 5)?;
        a.mov(cr8, rax)?;
        a.mov(rcx, APIC + 0x80)?;
        a.mov(ebx, dword_ptr(rcx))?;
        a.mov(dword_ptr(rcx), 0x30)?;
        a.mov(rsi, cr8)?;
        done(a)
    })?;
    same("the APIC's task priority", cpu.reg(3)?, 0x50)?;
    same("CR8", cpu.reg(6)?, 3)?;
    same("CR8 in the state", cpu.system()?.cr8, 3)
}

pub(crate) fn x87_and_sse(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(HANDLERS + 16 * 16, |a| a.ud2())?;
    machine.write(DATA, 2.5f64.to_bits())?;
    let mut cpu = machine.execute(|a| {
        a.fninit()?;
        a.fld(qword_ptr(DATA))?;
        a.fld1()?;
        a.faddp(st1, st0)?;
        a.fstp(qword_ptr(DATA + 8))?;
        a.movsd_2(xmm15, qword_ptr(DATA))?;
        a.mulsd(xmm15, qword_ptr(DATA + 8))?;
        a.movsd_2(qword_ptr(DATA + 16), xmm15)?;
        a.cvttsd2si(rbx, xmm15)?;
        done(a)
    })?;
    same("the x87 sum", f64::from_bits(machine.read(DATA + 8)?), 3.5)?;
    same("the SSE product", f64::from_bits(machine.read(DATA + 16)?), 8.75)?;
    same("the truncated product", cpu.reg(3)?, 8)
}
