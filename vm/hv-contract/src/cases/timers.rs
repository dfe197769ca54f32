//! The time-stamp counter and the local APIC's timer. Nothing here depends on how fast they run.

use hv::Hypervisor;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::interrupts::await_interrupt;
use crate::Failure;
use crate::guest::{APIC, done, enable_apic};
use crate::machine::{Machine, Outcome, ensure, same};

const VECTOR: u64 = 0x50;

pub(crate) fn tsc_runs(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        read_tsc(a, rbx)?;
        for _ in 0..10 {
            a.nop()?;
        }
        read_tsc(a, rsi)?;
        done(a)
    })?;
    let (first, second) = (cpu.reg(3)?, cpu.reg(6)?);
    ensure(second > first, "The time-stamp counter stands still or runs backwards")
}

fn read_tsc(a: &mut CodeAssembler, to: AsmRegister64) -> Result<(), IcedError> {
    a.lfence()?;
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(to, rax)
}

pub(crate) fn tsc_can_be_set(engine: &dyn Hypervisor) -> Outcome {
    // Twice, so that a counter which ignores the write cannot be right by chance.
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        for (high, kept) in [(0x100, rbx), (0x40_0000, rsi)] {
            a.mov(ecx, 0x10)?;
            a.xor(eax, eax)?;
            a.mov(edx, high)?;
            a.wrmsr()?;
            read_tsc(a, kept)?;
        }
        done(a)
    })?;
    for (register, set) in [(3, 1u64 << 40), (6, 1 << 54)] {
        let value = cpu.reg(register)?;
        // An hour at 4 GHz.
        let late = 1 << 44;
        ensure((set..set + late).contains(&value), &format!("The counter reads {value:#x} after {set:#x}"))?;
    }
    Ok(())
}

pub(crate) fn tsc_aux(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        let mut absent = a.create_label();
        a.mov(eax, 0x8000_0001u32)?;
        a.cpuid()?;
        a.xor(edi, edi)?;
        a.bt(edx, 27)?;
        a.jnc(absent)?;
        a.mov(ecx, 0xc000_0103u32)?;
        a.mov(eax, 0x1005)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdtscp()?;
        a.mov(ebx, ecx)?;
        a.mov(edi, 1)?;
        a.set_label(&mut absent)?;
        done(a)
    })?;
    if cpu.reg(7)? == 0 {
        return Err(Failure::Skipped("the CPU has no RDTSCP".into()));
    }
    same("ECX after RDTSCP", cpu.reg(3)?, 0x1005)
}

/// Arms the APIC timer: divide by 1, this mode (0 one-shot, 1 periodic, 2 deadline), this count.
fn arm(a: &mut CodeAssembler, mode: i32, count: i32) -> Result<(), IcedError> {
    enable_apic(a)?;
    a.mov(rcx, APIC + 0x300)?;
    a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
    a.mov(dword_ptr(rcx + 0x20), mode << 17 | VECTOR as i32)?;
    if count > 0 { a.mov(dword_ptr(rcx + 0x80), count) } else { Ok(()) }
}

pub(crate) fn apic_one_shot(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.sti()?;
        arm(a, 0, 100_000)?;
        await_interrupt(a, VECTOR, 1)?;
        a.mov(rcx, APIC + 0x390)?;
        a.mov(ebx, dword_ptr(rcx))?;
        // Masked, it does not come again.
        a.mov(dword_ptr(rcx - 0x70), 0x1_0000)?;
        a.mov(dword_ptr(rcx - 0x10), 1000)?;
        // Halting until another, later interrupt leaves time for a wrong one.
        a.mov(dword_ptr(rcx - 0x70), 0x51)?;
        a.mov(dword_ptr(rcx - 0x10), 100_000)?;
        await_interrupt(a, 0x51, 1)?;
        a.cli()?;
        done(a)
    })?;
    same("the current count after the end", cpu.reg(3)?, 0)?;
    same("the count of interrupts", machine.interrupts(VECTOR)?, 1)
}

pub(crate) fn apic_periodic(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        a.sti()?;
        // Long enough that an engine's lower bound on the period does not matter.
        arm(a, 1, 1_000_000)?;
        await_interrupt(a, VECTOR, 3)?;
        a.mov(rcx, APIC + 0x380)?;
        a.mov(dword_ptr(rcx), 0)?;
        a.cli()?;
        done(a)
    })?;
    ensure(machine.interrupts(VECTOR)? >= 3, "The periodic timer stopped")
}

pub(crate) fn apic_deadline(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        let mut absent = a.create_label();
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.xor(edi, edi)?;
        a.bt(ecx, 24)?;
        a.jnc(absent)?;
        a.sti()?;
        arm(a, 2, 0)?;
        a.rdtsc()?;
        a.shl(rdx, 32)?;
        a.or(rax, rdx)?;
        a.add(rax, 200_000)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        await_interrupt(a, VECTOR, 1)?;
        a.mov(ecx, 0x6e0)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.or(ebx, edx)?;
        a.mov(edi, 1)?;
        a.cli()?;
        a.set_label(&mut absent)?;
        done(a)
    })?;
    if cpu.reg(7)? == 0 {
        return Err(Failure::Skipped("the CPU has no TSC-deadline timer".into()));
    }
    same("the deadline after it passed", cpu.reg(3)?, 0)
}
