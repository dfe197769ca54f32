//! Two vCPUs: starting the second, locked operations, interrupts between them, order of stores, changed code and pages.

use hv::Hypervisor;
use hv::state::StateElement;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use super::interrupts::await_interrupt;
use super::paging::entry;
use crate::Failure;
use crate::guest::{self, AP_CODE, APIC, CODE, DATA, GDT, GDT_LIMIT, HANDLERS, IDT, PML4, done, enable_apic};
use crate::machine::{Access, Machine, Outcome, same};

/// Where the AP starts in real mode: page 0x10.
const TRAMPOLINE: u64 = 0x1_0000;
const LONG_MODE: u64 = TRAMPOLINE + 0x100;
/// How often the two vCPUs collide; few, because an engine may emulate.
const ROUNDS: i32 = 2000;

/// Real mode to long mode in one step, then a far jump to [`LONG_MODE`].
#[rustfmt::skip]
const REAL_MODE: &[u8] = &[
    0xfa,                                           // cli
    0x8c, 0xc8,                                     // mov ax, cs
    0x8e, 0xd8,                                     // mov ds, ax
    0x66, 0x0f, 0x01, 0x16, 0x80, 0x00,             // lgdt [0x80]
    0x0f, 0x20, 0xe0,                               // mov eax, cr4
    0x66, 0x0d, 0x20, 0x06, 0x00, 0x00,             // or eax, 0x620
    0x0f, 0x22, 0xe0,                               // mov cr4, eax
    0x66, 0xb8, 0x00, 0x30, 0x00, 0x00,             // mov eax, PML4
    0x0f, 0x22, 0xd8,                               // mov cr3, eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,             // mov ecx, EFER
    0x0f, 0x32,                                     // rdmsr
    0x66, 0x0d, 0x01, 0x09, 0x00, 0x00,             // or eax, NXE | LME | SCE
    0x0f, 0x30,                                     // wrmsr
    0x66, 0xb8, 0x33, 0x00, 0x05, 0x80,             // mov eax, PG | AM | WP | NE | ET | MP | PE
    0x0f, 0x22, 0xc0,                               // mov cr0, eax
    0x66, 0xea, 0x00, 0x01, 0x01, 0x00, 0x08, 0x00, // jmp 8:LONG_MODE
];
const _: () = assert!(PML4 == 0x3000 && guest::KERNEL_CODE == 8);

/// Makes the start by INIT and SIPI possible.
fn install_trampoline(machine: &Machine) -> Outcome {
    let memory = machine.ram.memory();
    memory.write_slice(REAL_MODE, GuestAddress(TRAMPOLINE))?;
    memory.write_slice(&(GDT_LIMIT as u16).to_le_bytes(), GuestAddress(TRAMPOLINE + 0x80))?;
    memory.write_slice(&(GDT as u32).to_le_bytes(), GuestAddress(TRAMPOLINE + 0x82))?;
    memory.write_slice(&0xfffu16.to_le_bytes(), GuestAddress(TRAMPOLINE + 0x90))?;
    memory.write_slice(&IDT.to_le_bytes(), GuestAddress(TRAMPOLINE + 0x92))?;
    machine.load(LONG_MODE, |a| {
        a.mov(eax, i32::from(guest::KERNEL_DATA))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(rsp, guest::stack_top(1))?;
        a.lidt(tbyte_ptr(TRAMPOLINE + 0x90))?;
        a.mov(rax, AP_CODE)?;
        a.jmp(rax)
    })
}

/// Guest code for vCPU 0 that starts vCPU 1, in the way that the engine has.
fn start_ap(a: &mut CodeAssembler, sipi: bool) -> Result<(), IcedError> {
    enable_apic(a)?;
    if !sipi {
        return a.out(0x13, al);
    }
    a.mov(rcx, APIC + 0x300)?;
    a.mov(dword_ptr(rcx + 0x10), 1 << 24)?;
    a.mov(dword_ptr(rcx), 0x4500)?;
    // Engines take SIPI as soon as INIT is done; a real CPU wants 10 ms, which a guest of ours need not wait.
    a.mov(dword_ptr(rcx + 0x10), 1 << 24)?;
    a.mov(dword_ptr(rcx), 0x4600 | (TRAMPOLINE >> 12) as i32)
}

/// Runs `bsp` on vCPU 0 and `ap` on vCPU 1, both to their ends.
fn pair(
    engine: &dyn Hypervisor,
    prepare: impl FnOnce(&Machine) -> Outcome,
    bsp: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ap: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Outcome<Machine> {
    let machine = Machine::new(engine, 2)?;
    prepare(&machine)?;
    let sipi = machine.has_sipi();
    if sipi {
        install_trampoline(&machine)?;
    } else {
        let vm = machine.vm.clone();
        machine.on_access(move |access| {
            if matches!(access, Access::PortWrite { port: 0x13, .. }) {
                // An AP that does not start fails the case by itself.
                let _ = vm.wake_ap(1, AP_CODE);
            }
        });
    }
    machine.load(CODE, |a| {
        start_ap(a, sipi)?;
        bsp(a)?;
        done(a)
    })?;
    machine.load(AP_CODE, |a| {
        ap(a)?;
        done(a)
    })?;
    let run_ap = || -> Outcome {
        let mut cpu = machine.bind(1)?;
        if !sipi {
            // The mailbox starts it in long mode with the paging that it was given here.
            cpu.vcpu.set_state(&StateElement::System(guest::long_mode(1)))?;
            cpu.vcpu.set_state(&StateElement::Gpr(guest::registers(1, 0)))?;
        }
        let result = cpu.finish();
        if result.is_err() {
            machine.stop(0);
        }
        result
    };
    let (first, second) = std::thread::scope(|scope| {
        let ap = scope.spawn(run_ap);
        // Most times the AP waits for its start by then, as in a machine; the cases hold if it does not.
        std::thread::sleep(std::time::Duration::from_millis(10));
        let first = machine.boot(0, CODE).and_then(|mut cpu| cpu.finish());
        if first.is_err() {
            machine.stop(1);
        }
        (first, ap.join().unwrap_or_else(|_| Err(Failure::Failed("The AP's thread panicked".into()))))
    });
    match (first, second) {
        (Ok(()), Ok(())) => Ok(machine),
        (Err(Failure::Failed(bsp)), Err(Failure::Failed(ap))) => {
            Err(Failure::Failed(format!("vCPU 0: {bsp}; vCPU 1: {ap}")))
        }
        (Err(one), _) | (_, Err(one)) => Err(one),
    }
}

fn unprepared(_: &Machine) -> Outcome {
    Ok(())
}

/// Spins until the 64-bit value at `at` is `value`.
fn await_value(a: &mut CodeAssembler, at: u64, value: i32) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.pause()?;
    a.cmp(qword_ptr(at), value)?;
    a.jne(here)
}

/// Waits until both vCPUs are here.
fn meet(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lock().inc(qword_ptr(DATA + 0xf00))?;
    await_value(a, DATA + 0xf00, 2)
}

pub(crate) fn start_of_a_second_cpu(engine: &dyn Hypervisor) -> Outcome {
    let machine = pair(
        engine,
        unprepared,
        |a| await_value(a, DATA, 7),
        |a| {
            // Interrupts are off.
            a.pushfq()?;
            a.pop(rax)?;
            a.mov(qword_ptr(DATA + 8), rax)?;
            a.mov(eax, cs)?;
            a.mov(qword_ptr(DATA + 16), rax)?;
            a.mov(qword_ptr(DATA), 7)
        },
    )?;
    same("the interrupt flag of the AP", machine.read(DATA + 8)? & 0x200, 0)?;
    same("CS of the AP", machine.read(DATA + 16)?, guest::KERNEL_CODE.into())
}

pub(crate) fn apic_ids(engine: &dyn Hypervisor) -> Outcome {
    let ids = |a: &mut CodeAssembler, at: u64| {
        a.mov(eax, 1)?;
        a.cpuid()?;
        a.shr(ebx, 24)?;
        a.mov(dword_ptr(at), ebx)?;
        a.mov(rcx, APIC + 0x20)?;
        a.mov(eax, dword_ptr(rcx))?;
        a.shr(eax, 24)?;
        a.mov(dword_ptr(at + 4), eax)?;
        meet(a)
    };
    let machine = pair(engine, unprepared, |a| ids(a, DATA), |a| ids(a, DATA + 8))?;
    same("CPUID's and the APIC's id of vCPU 0", machine.read(DATA)?, 0)?;
    same("CPUID's and the APIC's id of vCPU 1", machine.read(DATA + 8)?, 0x1_0000_0001)
}

pub(crate) fn locked_add(engine: &dyn Hypervisor) -> Outcome {
    // Several forms and sizes, one of them across two cache lines.
    let add = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        meet(a)?;
        a.mov(ecx, ROUNDS)?;
        a.mov(rdi, DATA)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(rdi))?;
        a.lock().add(dword_ptr(rdi + 8), 3)?;
        a.mov(eax, 2)?;
        a.lock().xadd(word_ptr(rdi + 16), ax)?;
        a.lock().sub(qword_ptr(rdi + 0x3c), 1)?;
        a.dec(ecx)?;
        a.jnz(again)
    };
    let machine = pair(engine, unprepared, add, add)?;
    let total = 2 * ROUNDS as u64;
    same("the 64-bit sum", machine.read(DATA)?, total)?;
    same("the 32-bit sum", machine.read(DATA + 8)?, 3 * total)?;
    same("the 16-bit sum", machine.read(DATA + 16)?, (2 * total) & 0xffff)?;
    same("the sum across two cache lines", machine.read(DATA + 0x3c)?, total.wrapping_neg())
}

pub(crate) fn compare_exchange(engine: &dyn Hypervisor) -> Outcome {
    let add = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        let mut retry = a.create_label();
        let mut wide = a.create_label();
        meet(a)?;
        a.mov(r8d, ROUNDS)?;
        a.mov(rdi, DATA)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.set_label(&mut retry)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lock().cmpxchg(qword_ptr(rdi), rbx)?;
        a.jne(retry)?;
        a.mov(rax, qword_ptr(rdi + 16))?;
        a.mov(rdx, qword_ptr(rdi + 24))?;
        a.set_label(&mut wide)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lea(rcx, qword_ptr(rdx + 2))?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi + 16))?;
        a.jne(wide)?;
        a.dec(r8d)?;
        a.jnz(again)
    };
    let machine = pair(engine, unprepared, add, add)?;
    let total = 2 * ROUNDS as u64;
    same("the sum by CMPXCHG", machine.read(DATA)?, total)?;
    same("the sums by CMPXCHG16B", (machine.read(DATA + 16)?, machine.read(DATA + 24)?), (total, 2 * total))
}

pub(crate) fn exchange_lock(engine: &dyn Hypervisor) -> Outcome {
    let add = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        let mut taken = a.create_label();
        meet(a)?;
        a.mov(ecx, ROUNDS)?;
        a.mov(rdi, DATA)?;
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.xchg(dword_ptr(rdi), eax)?;
        a.test(eax, eax)?;
        a.jz(taken)?;
        a.pause()?;
        a.jmp(again)?;
        a.set_label(&mut taken)?;
        // Not atomic by itself.
        a.mov(rax, qword_ptr(rdi + 8))?;
        a.inc(rax)?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.mov(dword_ptr(rdi), 0)?;
        a.dec(ecx)?;
        a.jnz(again)
    };
    let machine = pair(engine, unprepared, add, add)?;
    same("the sum under the lock", machine.read(DATA + 8)?, 2 * ROUNDS as u64)
}

/// Sends a fixed interrupt to the APIC with this id.
fn send(a: &mut CodeAssembler, to: i32, vector: i32) -> Result<(), IcedError> {
    a.mov(rcx, APIC + 0x300)?;
    a.mov(dword_ptr(rcx + 0x10), to << 24)?;
    a.mov(dword_ptr(rcx), vector)
}

/// Each vCPU in turn sends the other an interrupt, and waits for the answer with `wait` (vector, how many by then).
fn ping_pong(
    engine: &dyn Hypervisor,
    rounds: i32,
    wait: impl Fn(&mut CodeAssembler, u64, i32) -> Result<(), IcedError>,
) -> Outcome {
    let machine = pair(
        engine,
        unprepared,
        |a| {
            a.sti()?;
            meet(a)?;
            for count in 1..=rounds {
                send(a, 1, 0x45)?;
                wait(a, 0x46, count)?;
            }
            a.cli()
        },
        |a| {
            enable_apic(a)?;
            a.sti()?;
            meet(a)?;
            for count in 1..=rounds {
                wait(a, 0x45, count)?;
                send(a, 0, 0x46)?;
            }
            a.cli()
        },
    )?;
    same("the counts", (machine.interrupts(0x45)?, machine.interrupts(0x46)?), (rounds as u64, rounds as u64))
}

pub(crate) fn interrupt_between_cpus(engine: &dyn Hypervisor) -> Outcome {
    // Each in turn sends the other an interrupt while that one spins or halts.
    ping_pong(engine, 20, await_interrupt)
}

pub(crate) fn halted_cpu_is_woken_by_the_other(engine: &dyn Hypervisor) -> Outcome {
    // Each halts with interrupts off until then, so that no wake-up can come between the check and HLT.
    let wait = |a: &mut CodeAssembler, vector: u64, count: i32| {
        let mut again = a.create_label();
        let mut over = a.create_label();
        a.set_label(&mut again)?;
        a.cli()?;
        a.cmp(qword_ptr(guest::IRQ_COUNTS + vector * 8), count)?;
        a.jae(over)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.set_label(&mut over)?;
        a.sti()
    };
    ping_pong(engine, 50, wait)
}

pub(crate) fn timers_wake_both_cpus(engine: &dyn Hypervisor) -> Outcome {
    let sleep = |a: &mut CodeAssembler, vector: u64| {
        for count in 1..=10 {
            let mut again = a.create_label();
            let mut over = a.create_label();
            a.mov(rcx, APIC + 0x300)?;
            a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
            a.mov(dword_ptr(rcx + 0x20), vector as i32)?;
            a.mov(dword_ptr(rcx + 0x80), 100_000)?;
            a.set_label(&mut again)?;
            a.cli()?;
            a.cmp(qword_ptr(guest::IRQ_COUNTS + vector * 8), count)?;
            a.jae(over)?;
            a.sti()?;
            a.hlt()?;
            a.jmp(again)?;
            a.set_label(&mut over)?;
            a.nop()?;
        }
        Ok(())
    };
    let machine = pair(
        engine,
        unprepared,
        |a| {
            meet(a)?;
            sleep(a, 0x50)
        },
        |a| {
            enable_apic(a)?;
            meet(a)?;
            sleep(a, 0x51)
        },
    )?;
    same("the counts", (machine.interrupts(0x50)?, machine.interrupts(0x51)?), (10, 10))
}

pub(crate) fn one_runs_while_the_other_was_never_started(engine: &dyn Hypervisor) -> Outcome {
    // vCPU 1 has a thread that waits for its start; vCPU 0 halts and is woken by its timer all the same.
    let machine = Machine::new(engine, 2)?;
    machine.load(CODE, |a| {
        enable_apic(a)?;
        a.mov(rcx, APIC + 0x300)?;
        a.mov(dword_ptr(rcx + 0xe0), 0xb)?;
        a.mov(dword_ptr(rcx + 0x20), 0x50)?;
        a.mov(dword_ptr(rcx + 0x80), 100_000)?;
        a.sti()?;
        a.hlt()?;
        await_interrupt(a, 0x50, 1)?;
        a.cli()?;
        done(a)
    })?;
    std::thread::scope(|scope| {
        let (bound, wait) = std::sync::mpsc::channel();
        let waiting = scope.spawn({
            let machine = &machine;
            move || -> Outcome {
                let mut cpu = machine.bind(1)?;
                // Nobody waits any more when vCPU 0 has failed already.
                let _ = bound.send(());
                same("the halt of the AP", cpu.run()?, hv::Halt::Stopped)
            }
        });
        let _ = wait.recv();
        let first = machine.boot(0, CODE).and_then(|mut cpu| cpu.finish());
        machine.stop(1);
        first.and(waiting.join().unwrap_or_else(|_| Err(Failure::Failed("The AP's thread panicked".into()))))
    })
}

pub(crate) fn stores_are_seen_in_order(engine: &dyn Hypervisor) -> Outcome {
    // One writes a value, then a flag; the other waits for the flag and must find the value.
    let machine = pair(
        engine,
        unprepared,
        |a| {
            let mut again = a.create_label();
            let mut wait = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            a.inc(rcx)?;
            a.mov(qword_ptr(DATA), rcx)?;
            a.mov(qword_ptr(DATA + 0x80), rcx)?;
            a.set_label(&mut wait)?;
            a.cmp(qword_ptr(DATA + 0x100), rcx)?;
            a.jne(wait)?;
            a.cmp(ecx, ROUNDS)?;
            a.jne(again)
        },
        |a| {
            let mut again = a.create_label();
            let mut wait = a.create_label();
            let mut right = a.create_label();
            a.xor(ecx, ecx)?;
            a.set_label(&mut again)?;
            a.inc(rcx)?;
            a.set_label(&mut wait)?;
            a.cmp(qword_ptr(DATA + 0x80), rcx)?;
            a.jne(wait)?;
            a.cmp(qword_ptr(DATA), rcx)?;
            a.je(right)?;
            a.inc(qword_ptr(DATA + 0x180))?;
            a.set_label(&mut right)?;
            a.mov(qword_ptr(DATA + 0x100), rcx)?;
            a.cmp(ecx, ROUNDS)?;
            a.jne(again)
        },
    )?;
    same("how often the flag came before the value", machine.read(DATA + 0x180)?, 0)
}

/// The litmus test SB: each vCPU stores to its own place and then reads the other's. With a fence between the two, at least
/// one of them sees the other's store (Intel SDM 3A 10.2.2 and 10.2.5).
pub(crate) fn fences_order_a_store_and_a_load(engine: &dyn Hypervisor) -> Outcome {
    const MEETINGS: [u64; 2] = [DATA + 0x40, DATA + 0x48];
    const LATE: [u64; 2] = [DATA + 0x80, DATA + 0x88];
    const VIOLATIONS: u64 = DATA + 0xc0;
    const TURNS: u64 = DATA + 0xc8;
    // Each tells the other how far it is: two meetings a round, which is in RBX.
    let meet_again = |a: &mut CodeAssembler, cpu: usize, meeting: i32| {
        let mut here = a.create_label();
        a.lea(rax, qword_ptr(rbx * 2 + meeting))?;
        a.mov(qword_ptr(MEETINGS[cpu]), rax)?;
        a.set_label(&mut here)?;
        a.pause()?;
        a.cmp(qword_ptr(MEETINGS[1 - cpu]), rax)?;
        a.jb(here)
    };
    let turns = |a: &mut CodeAssembler, cpu: usize, locked: bool| {
        let (mine, other) = (DATA + 8 * cpu as u64, DATA + 8 * (1 - cpu as u64));
        let mut again = a.create_label();
        a.mov(ebx, 1)?;
        a.set_label(&mut again)?;
        meet_again(a, cpu, -1)?;
        a.xor(ecx, ecx)?;
        a.mov(rdx, rbx)?;
        if locked {
            a.xchg(qword_ptr(mine), rdx)?;
        } else {
            a.mov(qword_ptr(mine), rbx)?;
            a.mfence()?;
        }
        // What is below this round was stored before it.
        a.cmp(qword_ptr(other), rbx)?;
        a.setb(cl)?;
        a.mov(qword_ptr(LATE[cpu]), rcx)?;
        meet_again(a, cpu, 0)?;
        if cpu == 0 {
            a.mov(rax, qword_ptr(LATE[0]))?;
            a.and(rax, qword_ptr(LATE[1]))?;
            a.add(qword_ptr(VIOLATIONS), rax)?;
            a.inc(qword_ptr(TURNS))?;
        }
        a.inc(rbx)?;
        a.cmp(rbx, ROUNDS)?;
        a.jbe(again)
    };
    for locked in [false, true] {
        let machine = pair(engine, unprepared, |a| turns(a, 0, locked), |a| turns(a, 1, locked))?;
        same("rounds in which neither saw the other's store", machine.read(VIOLATIONS)?, 0)?;
        same("rounds", machine.read(TURNS)?, ROUNDS as u64)?;
    }
    Ok(())
}

pub(crate) fn code_changed_by_another_cpu(engine: &dyn Hypervisor) -> Outcome {
    const FUNCTION: u64 = 0x10_0000;
    pair(
        engine,
        |machine| {
            machine.load(FUNCTION, |a| {
                a.mov(ebx, 1)?;
                a.ret()
            })
        },
        |a| {
            meet(a)?;
            await_value(a, DATA + 8, 1)?;
            a.mov(byte_ptr(FUNCTION + 1), 2)?;
            await_value(a, DATA + 8, 2)
        },
        |a| {
            let mut again = a.create_label();
            meet(a)?;
            a.mov(rsi, FUNCTION)?;
            a.set_label(&mut again)?;
            // CPUID serializes, as code that another CPU changes asks for (Intel SDM 3A §9.1.3).
            a.xor(eax, eax)?;
            a.cpuid()?;
            a.call(rsi)?;
            a.mov(dword_ptr(DATA + 8), ebx)?;
            a.cmp(ebx, 2)?;
            a.jne(again)
        },
    )?;
    Ok(())
}

pub(crate) fn page_change_with_shootdown(engine: &dyn Hypervisor) -> Outcome {
    const PAGE: u64 = 0x10_0000;
    let machine = pair(
        engine,
        |machine| {
            machine.write(PAGE, 1)?;
            machine.write(PAGE + 0x1000, 2)?;
            // The handler of 0x47 forgets the page and says so.
            machine.load(HANDLERS + 0x47 * 16, |a| a.jmp(CODE + 0x1000))?;
            machine.load(CODE + 0x1000, |a| {
                a.push(rcx)?;
                a.invlpg(byte_ptr(PAGE))?;
                a.mov(qword_ptr(DATA + 16), 1)?;
                a.mov(rcx, APIC + 0xb0)?;
                a.mov(dword_ptr(rcx), 0)?;
                a.pop(rcx)?;
                a.iretq()
            })
        },
        |a| {
            meet(a)?;
            await_value(a, DATA + 8, 1)?;
            a.mov(rax, (PAGE + 0x1000) | 7)?;
            a.mov(rcx, entry(PAGE))?;
            a.mov(qword_ptr(rcx), rax)?;
            a.mov(rcx, APIC + 0x300)?;
            a.mov(dword_ptr(rcx + 0x10), 1 << 24)?;
            a.mov(dword_ptr(rcx), 0x47)?;
            await_value(a, DATA + 16, 1)?;
            a.mov(qword_ptr(DATA + 24), 1)
        },
        |a| {
            enable_apic(a)?;
            a.sti()?;
            meet(a)?;
            a.mov(rax, qword_ptr(PAGE))?;
            a.mov(qword_ptr(DATA + 8), rax)?;
            await_value(a, DATA + 24, 1)?;
            a.mov(rax, qword_ptr(PAGE))?;
            a.mov(qword_ptr(DATA), rax)?;
            a.cli()
        },
    )?;
    same("what the AP read afterwards", machine.read(DATA)?, 2)
}
