//! More code than the cache holds, on two vCPUs at once.

use std::sync::Barrier;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, byte_ptr, dword_ptr, ecx, qword_ptr, r12, rbp, rbx, rcx, rdi, rsi};
use soft_cpu::Exit;
use soft_cpu::cpu::reg;

use crate::Tuning;
use crate::bare_guest::{Guest, Shared};
use crate::block::{Emitted, Key, Mode, ONE_PAGE};
use crate::layout::Space;

const MAKE: u64 = 0x1000;
const CALL: u64 = 0x2000;
/// Routines of 64 bytes each.
const ROUTINES: u64 = 0x10_0000;
const COUNT: u64 = 0x5000;
const END: u64 = ROUTINES + 64 * COUNT;
/// Steps in a routine.
const STEPS: u64 = 5;

/// Writes the routines: each does `rax = 3 * rax + n` [`STEPS`] times, with numbers that go on from ecx.
fn make(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.mov(rdi, ROUTINES)?;
    a.set_label(&mut next)?;
    for step in 0..STEPS {
        a.mov(dword_ptr(rdi + 8 * step), 0x4084_8d48)?; // lea rax, [rax + 2 * rax + n]
        a.mov(dword_ptr(rdi + 8 * step + 4), ecx)?;
        a.inc(ecx)?;
    }
    a.mov(byte_ptr(rdi + 8 * STEPS), 0xc3)?; // ret
    a.add(rdi, 64)?;
    a.cmp(rdi, END as i32)?;
    a.jb(next)?;
    a.hlt()
}

/// Calls all routines rbp times, from rbx on by steps of r12, and counts the calls in memory at rsi.
fn call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut next = a.create_label();
    a.set_label(&mut again)?;
    a.mov(rdi, rbx)?;
    a.mov(ecx, COUNT as i32)?;
    a.set_label(&mut next)?;
    a.call(rdi)?;
    a.add(rdi, r12)?;
    a.inc(qword_ptr(rsi))?;
    a.dec(rcx)?;
    a.jne(next)?;
    a.dec(rbp)?;
    a.jne(again)?;
    a.hlt()
}

fn assemble(at: u64, write: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    write(&mut a).unwrap();
    a.assemble(at).unwrap()
}

fn run(guest: &mut Guest, rip: u64) {
    let mut exit = guest.run(rip);
    while exit == Exit::Kicked {
        exit = guest.go_on();
    }
    assert_eq!(exit, Exit::Halt);
}

/// What [`call`] leaves in rax, where the numbers start with `first`.
fn expected(first: u64, passes: u64, backward: bool) -> u64 {
    let mut value = 1u64;
    for _ in 0..passes {
        for index in 0..COUNT {
            let routine = if backward { COUNT - 1 - index } else { index };
            for step in 0..STEPS {
                value = value.wrapping_mul(3).wrapping_add(first + routine * STEPS + step);
            }
        }
    }
    value
}

/// Two vCPUs call all routines, one from the first on and one from the last; then one of them writes others in their place,
/// and both call those.
fn both_call_all(tuning: Tuning) -> u64 {
    const PASSES: u64 = 2;
    let vm = Shared::new(0, 0x80_0000, 2, Tuning { cache_bytes: 0, ..tuning });
    vm.write(MAKE, &assemble(MAKE, make));
    vm.write(CALL, &assemble(CALL, call));
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        for index in 0..2u32 {
            let (vm, barrier) = (&vm, &barrier);
            scope.spawn(move || {
                let backward = index == 1;
                let mut guest = vm.vcpu(index);
                guest.cpu.gpr[reg::RSP] = 0x8000 + 0x4000 * u64::from(index);
                for (maker, first) in [(0, 7), (1, 0x0010_0000)] {
                    if maker == index {
                        guest.cpu.gpr[reg::RCX] = first;
                        run(&mut guest, MAKE);
                    }
                    barrier.wait();
                    let counter = 0x8000 + 0x4000 * u64::from(index) + 0x100;
                    vm.write(counter, &[0; 8]);
                    guest.cpu.gpr[reg::RAX] = 1;
                    guest.cpu.gpr[reg::RBX] = if backward { END - 64 } else { ROUTINES };
                    guest.cpu.gpr[12] = if backward { 64u64.wrapping_neg() } else { 64 };
                    guest.cpu.gpr[reg::RBP] = PASSES;
                    guest.cpu.gpr[reg::RSI] = counter;
                    run(&mut guest, CALL);
                    assert_eq!(u64::from_le_bytes(vm.read(counter)), PASSES * COUNT);
                    assert_eq!(guest.cpu.gpr[reg::RAX], expected(first, PASSES, backward), "vCPU {index}");
                    barrier.wait();
                }
            });
        }
    });
    let counters = vm.jit.counters();
    counters.into_iter().find(|(name, _)| name == "evicted cache units").map_or(0, |(_, count)| count)
}

#[test]
fn units_are_evicted_while_both_vcpus_run() {
    for tuning in [Tuning::default(), Tuning::plain(), Tuning { lockstep: true, ..Tuning::default() }] {
        let evicted = both_call_all(tuning);
        eprintln!("{evicted} units evicted");
        // Each pass of each vCPU over either set fills the cache more than once.
        assert!(evicted >= 32, "{evicted} units evicted with {tuning:?}");
    }
}

#[test]
fn a_block_that_ends_with_its_unit_is_found() {
    let guest = Guest::new(Tuning { cache_bytes: 0, ..Tuning::default() });
    let mut shared = guest.vm.jit.lock();
    let mode = Mode { space: Space::User, no_vector: false };
    let mut place = |gpa, len| {
        let mut emitted = Emitted { code: vec![0xcc; len], ..Emitted::default() };
        shared.place(Key { gpa, rip: 0, mode, next: ONE_PAGE }, &mut emitted)
    };
    let last = place(0x1000, 256 << 10).unwrap();
    assert!(place(0x2000, 16).is_none(), "the unit is full");
    shared.reuse_next_unit();
    let mut emitted = Emitted { code: vec![0xcc; 16], ..Emitted::default() };
    let next = shared.place(Key { gpa: 0x2000, rip: 0, mode, next: ONE_PAGE }, &mut emitted).unwrap();
    // The return address of a call at the end of the block.
    let end = shared.block(last).unwrap().at + (256 << 10);
    assert_eq!(shared.block(next).unwrap().at, end);
    assert_eq!(shared.block_at(end), Some(last));
    assert_eq!(shared.block_at(end + 1), Some(next));
}
