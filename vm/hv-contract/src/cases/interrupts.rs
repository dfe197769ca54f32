//! Interrupts by message, their priorities and end, halting, waking and kicking.

use std::time::{Duration, Instant};

use hv::state::{RunState, StateElement, StateId};
use hv::{Halt, Hypervisor, Msi};
use iced_x86::code_asm::*;

use crate::Failure;
use crate::guest::{self, APIC, CODE, DATA, FIXUP, HANDLERS, RECORD, done, enable_apic};
use crate::machine::{Access, Cpu, Machine, Outcome, ensure, fail, same};

/// Spins until the interrupt counter of `vector` reaches `count`.
pub(crate) fn await_interrupt(
    a: &mut CodeAssembler,
    vector: u64,
    count: i32,
) -> Result<(), iced_x86::IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.pause()?;
    a.cmp(qword_ptr(guest::IRQ_COUNTS + vector * 8), count)?;
    a.jb(here)
}

/// Asks the bus for an MSI to vCPU 0.
fn ask(a: &mut CodeAssembler, vector: i32) -> Result<(), iced_x86::IcedError> {
    a.mov(al, vector)?;
    a.out(0x10, al)
}

pub(crate) fn msi_and_eoi(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        a.sti()?;
        for count in 1..=3 {
            ask(a, 0x41)?;
            await_interrupt(a, 0x41, count)?;
        }
        a.mov(rcx, APIC + 0x120)?;
        a.mov(ebx, dword_ptr(rcx))?;
        a.mov(esi, dword_ptr(rcx + 0x100))?;
        a.cli()?;
        done(a)
    })?;
    same("the count of interrupts", machine.interrupts(0x41)?, 3)?;
    same("the in-service register", cpu.reg(3)?, 0)?;
    same("the request register", cpu.reg(6)?, 0)
}

pub(crate) fn msi_waits_for_sti(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        ask(a, 0x41)?;
        a.mov(rcx, APIC + 0x220)?;
        a.mov(ebx, dword_ptr(rcx))?;
        a.mov(rsi, qword_ptr(guest::IRQ_COUNTS + 0x41 * 8))?;
        a.sti()?;
        await_interrupt(a, 0x41, 1)?;
        a.cli()?;
        done(a)
    })?;
    same("the request register while interrupts were off", cpu.reg(3)?, 2)?;
    same("the count while interrupts were off", cpu.reg(6)?, 0)?;
    same("the count", machine.interrupts(0x41)?, 1)
}

pub(crate) fn task_priority_holds_back(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        a.mov(ebx, 5)?;
        a.mov(cr8, rbx)?;
        a.sti()?;
        ask(a, 0x41)?;
        ask(a, 0x61)?;
        await_interrupt(a, 0x61, 1)?;
        a.mov(rsi, qword_ptr(guest::IRQ_COUNTS + 0x41 * 8))?;
        a.xor(ebx, ebx)?;
        a.mov(cr8, rbx)?;
        await_interrupt(a, 0x41, 1)?;
        a.cli()?;
        done(a)
    })?;
    same("the count of the held one", cpu.reg(6)?, 0)?;
    same("its count afterwards", machine.interrupts(0x41)?, 1)
}

pub(crate) fn nested_priorities(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    // The handler of 0x51 allows interrupts, asks for a lower and a higher one and notes which came before its end.
    machine.load(HANDLERS + 0x51 * 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.push(rax)?;
        a.sti()?;
        ask(a, 0x41)?;
        ask(a, 0x61)?;
        await_interrupt(a, 0x61, 1)?;
        a.mov(rbx, qword_ptr(guest::IRQ_COUNTS + 0x41 * 8))?;
        a.cli()?;
        a.mov(rcx, APIC + 0xb0)?;
        a.mov(dword_ptr(rcx), 0)?;
        a.pop(rax)?;
        a.iretq()
    })?;
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        a.sti()?;
        ask(a, 0x51)?;
        await_interrupt(a, 0x41, 1)?;
        a.cli()?;
        done(a)
    })?;
    same("the lower one's count inside the handler", cpu.reg(3)?, 0)?;
    same("the higher one's count", machine.interrupts(0x61)?, 1)
}

pub(crate) fn self_ipi(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        enable_apic(a)?;
        a.sti()?;
        a.mov(rcx, APIC + 0x300)?;
        a.mov(dword_ptr(rcx), 0x4_0043)?;
        await_interrupt(a, 0x43, 1)?;
        // The same by physical destination: APIC id 0.
        a.mov(dword_ptr(rcx + 0x10), 0)?;
        a.mov(dword_ptr(rcx), 0x44)?;
        await_interrupt(a, 0x44, 1)?;
        a.cli()?;
        done(a)
    })?;
    same("the count", (machine.interrupts(0x43)?, machine.interrupts(0x44)?), (1, 1))
}

pub(crate) fn nmi_by_msi(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let vm = machine.vm.clone();
    machine.on_access(move |access| {
        if matches!(access, Access::PortWrite { port: 0x11, .. }) {
            // Delivery mode 4. A lost one fails the case by itself.
            let _ = vm.signal_msi(Msi { address: APIC, data: 0x400 });
        }
    });
    machine.execute(|a| {
        let mut after = a.create_label();
        let mut here = a.create_label();
        enable_apic(a)?;
        a.lea(rax, qword_ptr(after))?;
        a.mov(qword_ptr(FIXUP), rax)?;
        a.out(0x11, al)?;
        a.set_label(&mut here)?;
        a.jmp(here)?;
        a.set_label(&mut after)?;
        done(a)
    })?;
    same("the vector", machine.read(RECORD + 8)?, 2)
}

/// Waits on another thread until vCPU 0's guest wrote to port 0x12, then a little, then calls `then`.
fn when_ready(machine: &Machine, cpu: &mut Cpu<'_>, then: impl FnOnce() + Send) -> Outcome<Halt> {
    let (ready, wait) = std::sync::mpsc::channel();
    machine.on_access(move |access| {
        if matches!(access, Access::PortWrite { port: 0x12, .. }) {
            // Nobody waits any more when the case has failed already.
            let _ = ready.send(());
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(crate::LIMIT).is_ok() {
                // Enough for the guest to get past the write; the case holds whether it did or not.
                std::thread::sleep(Duration::from_millis(20));
                then();
            }
        });
        cpu.run()
    })
}

fn run_state(cpu: &mut Cpu<'_>) -> Outcome<RunState> {
    match cpu.vcpu.get_state(StateId::Run)? {
        StateElement::Run(run) => {
            RunState::try_from(run.state).map_err(|error| Failure::Failed(error.to_string()))
        }
        other => fail(format!("The run state is {other:?}")),
    }
}

pub(crate) fn halt_and_wake(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.out(0x12, al)?;
        a.sti()?;
        a.hlt()?;
        a.mov(rbx, qword_ptr(guest::IRQ_COUNTS + 0x42 * 8))?;
        a.cli()?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    let halt = when_ready(&machine, &mut cpu, || {
        let _ = machine.vm.signal_msi(Msi { address: APIC, data: 0x42 });
    })?;
    same("the halt", halt, Halt::Stopped)?;
    same("the count after HLT", cpu.reg(3)?, 1)
}

pub(crate) fn sti_shadow_reaches_hlt(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    // With an interrupt waiting, STI;HLT must halt first and be woken by it: the interrupt comes after HLT, not before.
    machine.load(HANDLERS + 0x42 * 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.mov(rbx, qword_ptr(rsp))?;
        a.mov(rcx, APIC + 0xb0)?;
        a.mov(dword_ptr(rcx), 0)?;
        a.iretq()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut after = a.create_label();
        enable_apic(a)?;
        a.lea(rsi, qword_ptr(after))?;
        ask(a, 0x42)?;
        a.sti()?;
        a.hlt()?;
        a.set_label(&mut after)?;
        a.cli()?;
        done(a)
    })?;
    let (returned_to, after_hlt) = (cpu.reg(3)?, cpu.reg(6)?);
    same("where the interrupt returned to", returned_to, after_hlt)
}

pub(crate) fn halt_until_the_timer(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        enable_apic(a)?;
        a.mov(rcx, APIC + 0x300)?;
        a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
        a.mov(dword_ptr(rcx + 0x20), 0x50)?;
        for count in 1..=10 {
            let mut again = a.create_label();
            let mut over = a.create_label();
            a.mov(dword_ptr(rcx + 0x80), 50_000)?;
            a.set_label(&mut again)?;
            a.cli()?;
            a.cmp(qword_ptr(guest::IRQ_COUNTS + 0x50 * 8), count)?;
            a.jae(over)?;
            a.sti()?;
            a.hlt()?;
            a.jmp(again)?;
            a.set_label(&mut over)?;
            a.nop()?;
        }
        done(a)
    })?;
    same("the count", machine.interrupts(0x50)?, 10)
}

pub(crate) fn a_timer_that_has_run_out_stays_so(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        a.mov(rcx, APIC + 0x300)?;
        a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
        a.mov(dword_ptr(rcx + 0x20), 0x50)?;
        a.mov(dword_ptr(rcx + 0x80), 100_000)?;
        a.sti()?;
        await_interrupt(a, 0x50, 1)?;
        // Its divisor and its vector once more, and no count.
        a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
        a.mov(dword_ptr(rcx + 0x20), 0x50)?;
        a.mov(ebx, dword_ptr(rcx + 0x90))?;
        a.mov(rdx, 200_000u64)?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.dec(rdx)?;
        a.jnz(here)?;
        a.cli()?;
        done(a)
    })?;
    same("the current count", cpu.reg(3)?, 0)?;
    same("the interrupts", machine.interrupts(0x50)?, 1)
}

pub(crate) fn x2apic(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(HANDLERS + 0x42 * 16, |a| a.jmp(CODE + 0x800))?;
    machine.load(CODE + 0x800, |a| {
        a.lock().inc(qword_ptr(guest::IRQ_COUNTS + 0x42 * 8))?;
        a.push(rax)?;
        a.push(rcx)?;
        a.push(rdx)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.mov(ecx, 0x80b)?;
        a.wrmsr()?;
        a.pop(rdx)?;
        a.pop(rcx)?;
        a.pop(rax)?;
        a.iretq()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut absent = a.create_label();
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.xor(edi, edi)?;
        a.bt(ecx, 21)?;
        a.jnc(absent)?;
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0xc00)?;
        a.wrmsr()?;
        a.mov(ecx, 0x80f)?;
        a.mov(eax, 0x1ff)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.sti()?;
        a.mov(ecx, 0x83f)?;
        a.mov(eax, 0x42)?;
        a.wrmsr()?;
        await_interrupt(a, 0x42, 1)?;
        a.mov(ecx, 0x83f)?;
        a.mov(eax, 0x42)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        await_interrupt(a, 0x42, 2)?;
        a.cli()?;
        a.mov(ecx, 0x802)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.mov(edi, 1)?;
        a.set_label(&mut absent)?;
        done(a)
    })?;
    if cpu.reg(7)? == 0 {
        return Err(Failure::Skipped("the CPU has no x2APIC".into()));
    }
    same("the APIC id", cpu.reg(3)?, 0)?;
    same("the count", machine.interrupts(0x42)?, 2)
}

pub(crate) fn kick_while_running(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        let mut here = a.create_label();
        a.out(0x12, al)?;
        a.set_label(&mut here)?;
        a.inc(qword_ptr(DATA))?;
        a.jmp(here)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    let stop_in_the_loop = || {
        let begun = Instant::now();
        while machine.read(DATA).is_ok_and(|value| value == 0) && begun.elapsed() < crate::LIMIT {
            std::thread::yield_now();
        }
        machine.stop(0);
    };
    let halt = when_ready(&machine, &mut cpu, stop_in_the_loop)?;
    same("the halt", halt, Halt::Stopped)?;
    let rip = cpu.gpr()?.rip;
    ensure((CODE..CODE + 0x20).contains(&rip), "RIP is not in the loop")?;
    same("the run state", run_state(&mut cpu)?, RunState::Running)?;
    // It goes on where it was.
    let before = machine.read(DATA)?;
    ensure(before > 0, "The loop did not run")?;
    machine.write(DATA, 0)?;
    std::thread::scope(|scope| {
        scope.spawn(stop_in_the_loop);
        same("the second halt", cpu.run()?, Halt::Stopped)
    })
}

pub(crate) fn kick_while_halted(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        a.out(0x12, al)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    let mut halt = when_ready(&machine, &mut cpu, || machine.stop(0))?;
    // Where the host had no time for it, it has not got so far: it goes on.
    for _ in 0..100 {
        if halt != Halt::Stopped || run_state(&mut cpu)? == RunState::Halted || cpu.gpr()?.rip >= CODE + 4 {
            break;
        }
        halt = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                machine.stop(0);
            });
            cpu.run()
        })?;
    }
    same("the halt", halt, Halt::Stopped)?;
    same("the run state", run_state(&mut cpu)?, RunState::Halted)?;
    // OUT is two bytes, STI and HLT one each: RIP is behind HLT.
    same("rip", cpu.gpr()?.rip, CODE + 4)
}

pub(crate) fn stop_before_run(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        a.inc(qword_ptr(DATA))?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    machine.stop(0);
    same("the halt", cpu.run()?, Halt::Stopped)?;
    same("rip", cpu.gpr()?.rip, CODE)?;
    same("what ran", machine.read(DATA)?, 0)?;
    cpu.finish()?;
    same("what ran then", machine.read(DATA)?, 1)
}
