//! State: what is set is what the guest sees, what is read can be set again, and a stopped guest goes on in another VM.

use std::time::Duration;

use hv::state::{Apic, Gpr, Run, StateElement, StateId, System};
use hv::{Halt, Hypervisor, Msi};
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use super::interrupts::await_interrupt;
use crate::guest::{self, APIC, CODE, DATA, DONE_PORT, done, enable_apic};
use crate::machine::{Cpu, Machine, Outcome, ensure, fail, same};

/// Ends the run; the next one goes on behind it.
fn rest(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.out(i32::from(DONE_PORT), al)
}

/// Everything that the engine keeps of a vCPU, in the order in which it must be set.
fn save(cpu: &mut Cpu<'_>) -> Outcome<Vec<StateElement>> {
    let mut elements = Vec::new();
    for id in cpu.vcpu.state_ids() {
        let element = cpu.vcpu.get_state(*id)?;
        same("the id of an element", element.id(), *id)?;
        elements.push(element);
    }
    Ok(elements)
}

fn restore(cpu: &mut Cpu<'_>, elements: &[StateElement]) -> Outcome {
    for element in elements {
        cpu.vcpu.set_state(element)?;
    }
    Ok(())
}

/// A new VM with this VM's memory; its vCPU 0 gets the state, which passes through its encoding.
fn moved(engine: &dyn Hypervisor, from: &Machine) -> Outcome<Machine> {
    let to = Machine::new(engine, 1)?;
    let mut bytes = vec![0; guest::RAM as usize];
    from.ram.memory().read_slice(&mut bytes, GuestAddress(0))?;
    to.ram.memory().write_slice(&bytes, GuestAddress(0))?;
    Ok(to)
}

fn through_encoding(elements: Vec<StateElement>) -> Outcome<Vec<StateElement>> {
    let mut decoded = Vec::new();
    for element in elements {
        match element.encode().decode() {
            Some(again) => decoded.push(again?),
            None => return fail(format!("The id of {:?} is not known when decoded", element.id())),
        }
    }
    Ok(decoded)
}

/// Moves vCPU 0 into a new VM and continues there with `then`.
fn move_to_new_vm(
    engine: &dyn Hypervisor,
    from: &Machine,
    cpu: &mut Cpu<'_>,
    then: impl FnOnce(&Machine, &mut Cpu<'_>) -> Outcome,
) -> Outcome {
    let elements = through_encoding(save(cpu)?)?;
    let to = moved(engine, from)?;
    let mut cpu = to.bind(0)?;
    restore(&mut cpu, &elements)?;
    then(&to, &mut cpu)
}

/// An element without what time changes by itself.
fn timeless(element: StateElement) -> StateElement {
    match element {
        StateElement::Msrs(mut msrs) => {
            // The time-stamp counter and its adjustment.
            msrs.msrs.retain(|msr| !matches!(msr.index, 0x10 | 0x3b));
            StateElement::Msrs(msrs)
        }
        other => other,
    }
}

pub(crate) fn every_element_round_trips(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.mov(ebx, 0x1234)?;
        a.cvtsi2sd(xmm3, rbx)?;
        a.fld1()?;
        rest(a)?;
        a.mov(esi, ebx)?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.finish()?;
    for id in StateId::ALL {
        ensure(cpu.vcpu.state_ids().contains(id), &format!("The engine keeps no {id:?} state"))?;
    }
    let first = save(&mut cpu)?;
    restore(&mut cpu, &first)?;
    let second = save(&mut cpu)?;
    for (before, after) in first.into_iter().zip(second) {
        let (before, after) = (timeless(before), timeless(after));
        if before != after {
            return fail(format!("{:?} is not what was set: {before:x?}, then {after:x?}", before.id()));
        }
    }
    cpu.finish()?;
    same("rsi", cpu.reg(6)?, 0x1234)
}

pub(crate) fn elements_encode(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        enable_apic(a)?;
        done(a)
    })?;
    let elements = save(&mut cpu)?;
    let again = through_encoding(elements.clone())?;
    ensure(elements == again, "An element is not the same after its encoding")
}

pub(crate) fn registers_are_what_the_guest_sees(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let registers = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    machine.load(CODE, |a| {
        for (slot, register) in (0..).zip(registers) {
            a.mov(qword_ptr(DATA + slot * 8), register)?;
        }
        for (value, register) in (0..).zip(registers) {
            a.mov(register, 0x1111_1111_1111_1111u64 * value)?;
        }
        a.stc()?;
        a.std()?;
        rest(a)?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    let regs: Vec<u64> = (0..16).map(|index| 0xa5a5_0000_0000_0000 + index * 0x0101_0101).collect();
    cpu.vcpu.set_state(&StateElement::Gpr(Gpr { regs: regs.clone(), rip: CODE, rflags: 2 }))?;
    cpu.finish()?;
    for (slot, value) in (0..).zip(regs) {
        same(&format!("register {slot} as the guest saw it"), machine.read(DATA + slot * 8)?, value)?;
    }
    let gpr = cpu.gpr()?;
    for (number, value) in (0..).zip(gpr.regs) {
        same(&format!("register {number} as the guest set it"), value, 0x1111_1111_1111_1111 * number)?;
    }
    same("the carry and direction flags", gpr.rflags & 0x401, 0x401)
}

pub(crate) fn bad_elements_are_refused(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, done)?;
    let mut cpu = machine.boot(0, CODE)?;
    let bad = [
        StateElement::Gpr(Gpr { regs: vec![0; 3], rip: 0, rflags: 2 }),
        StateElement::System(System::default()),
        StateElement::Apic(Apic { registers: vec![0; 10] }),
        StateElement::Run(Run { state: 99 }),
    ];
    for element in bad {
        ensure(cpu.vcpu.set_state(&element).is_err(), &format!("A bad {:?} was accepted", element.id()))?;
    }
    cpu.finish()
}

const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

pub(crate) fn running_guest_moves(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // rsi = rsi * multiplier + increment, in a register and in memory, until DATA is set; rbx counts.
    machine.load(CODE, |a| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.xor(esi, esi)?;
        a.mov(rdi, MULTIPLIER)?;
        a.mov(r8, INCREMENT)?;
        a.set_label(&mut again)?;
        a.imul_2(rsi, rdi)?;
        a.add(rsi, r8)?;
        a.mov(rax, qword_ptr(DATA + 8))?;
        a.imul_2(rax, rdi)?;
        a.add(rax, r8)?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        a.inc(rbx)?;
        a.cmp(qword_ptr(DATA), 0)?;
        a.je(again)?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    interrupt(&machine, &mut cpu)?;
    let rounds = cpu.reg(3)?;
    ensure(rounds > 0, "The guest did not run")?;
    move_to_new_vm(engine, &machine, &mut cpu, |machine, cpu| {
        interrupt(machine, cpu)?;
        ensure(cpu.reg(3)? > rounds, "The guest did not go on")?;
        move_to_new_vm(engine, machine, cpu, |machine, cpu| {
            machine.write(DATA, 1)?;
            cpu.finish()?;
            let mut expected = 0u64;
            for _ in 0..cpu.reg(3)? {
                expected = expected.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
            }
            same("the number in the register", cpu.reg(6)?, expected)?;
            same("the number in memory", machine.read(DATA + 8)?, expected)
        })
    })
}

/// Runs until the guest made some progress (at [`DATA`] + 8), then stops it somewhere.
fn interrupt(machine: &Machine, cpu: &mut Cpu<'_>) -> Outcome {
    let before = machine.read(DATA + 8)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while machine.read(DATA + 8).is_ok_and(|value| value == before) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(2));
            machine.stop(0);
        });
        same("the halt", cpu.run()?, Halt::Stopped)
    })
}

pub(crate) fn halted_guest_moves(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.sti()?;
        a.inc(qword_ptr(DATA + 8))?;
        a.hlt()?;
        a.mov(ebx, 7)?;
        a.cli()?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while machine.read(DATA + 8).is_ok_and(|value| value == 0) {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            machine.stop(0);
        });
        same("the halt", cpu.run()?, Halt::Stopped)
    })?;
    move_to_new_vm(engine, &machine, &mut cpu, |machine, cpu| {
        // Before anything wakes it, it must still be waiting.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                machine.stop(0);
            });
            same("the halt in the new VM", cpu.run()?, Halt::Stopped)
        })?;
        ensure(cpu.reg(3)? != 7, "The guest did not wait for an interrupt")?;
        machine.vm.signal_msi(Msi { address: APIC, data: 0x42 })?;
        cpu.finish()?;
        same("rbx", cpu.reg(3)?, 7)?;
        same("the count of interrupts", machine.interrupts(0x42)?, 1)
    })
}

pub(crate) fn pending_interrupt_moves(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.port_10_signals();
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.mov(al, 0x41)?;
        a.out(0x10, al)?;
        rest(a)?;
        a.sti()?;
        await_interrupt(a, 0x41, 1)?;
        a.cli()?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.finish()?;
    same("the count before the move", machine.interrupts(0x41)?, 0)?;
    move_to_new_vm(engine, &machine, &mut cpu, |machine, cpu| {
        cpu.finish()?;
        same("the count", machine.interrupts(0x41)?, 1)
    })
}

pub(crate) fn apic_timer_moves(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.mov(rcx, APIC + 0x300)?;
        a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
        a.mov(dword_ptr(rcx + 0x20), 0x50)?;
        a.mov(dword_ptr(rcx + 0x80), 0x2000_0000)?;
        rest(a)?;
        a.sti()?;
        await_interrupt(a, 0x50, 1)?;
        a.cli()?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.finish()?;
    move_to_new_vm(engine, &machine, &mut cpu, |machine, cpu| {
        cpu.finish()?;
        same("the count", machine.interrupts(0x50)?, 1)
    })
}

pub(crate) fn sse_registers_move(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let registers = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ];
    for slot in 0..32 {
        machine.write(DATA + slot * 8, 0x0123_4567_89ab_cdefu64.rotate_left(slot as u32))?;
    }
    machine.write(DATA + 0x800, 0x1fa0)?;
    machine.load(CODE, |a| {
        for (slot, register) in (0..).zip(registers) {
            a.movdqu(register, xmmword_ptr(DATA + slot * 16))?;
        }
        a.ldmxcsr(dword_ptr(DATA + 0x800))?;
        rest(a)?;
        for (slot, register) in (0..).zip(registers) {
            a.movdqu(xmmword_ptr(DATA + 0x400 + slot * 16), register)?;
        }
        a.stmxcsr(dword_ptr(DATA + 0x808))?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    cpu.finish()?;
    move_to_new_vm(engine, &machine, &mut cpu, |machine, cpu| {
        cpu.finish()?;
        for slot in 0..32 {
            let (before, after) = (machine.read(DATA + slot * 8)?, machine.read(DATA + 0x400 + slot * 8)?);
            same(&format!("half {} of XMM{}", slot % 2, slot / 2), after, before)?;
        }
        same("MXCSR", machine.read(DATA + 0x808)?, 0x1fa0)
    })
}
