//! What the page walk does and what the translation caches may keep.

use hv::Hypervisor;
use iced_x86::code_asm::*;

use crate::guest::{DATA, PDS, PML4, PT, done};
use crate::machine::{Machine, Outcome, ensure, same};

/// Where the entry of this page below 2 MiB lies.
pub(crate) fn entry(gpa: u64) -> u64 {
    PT + gpa / 4096 * 8
}

/// A page below 2 MiB that nothing else uses.
const PAGE: u64 = 0x10_0000;
const OTHER: u64 = 0x10_1000;

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

pub(crate) fn accessed_and_dirty(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        a.mov(rax, qword_ptr(PAGE))?;
        a.mov(qword_ptr(OTHER), rax)?;
        done(a)
    })?;
    let bits = |gpa| machine.read(entry(gpa)).map(|value| value & (ACCESSED | DIRTY));
    same("the entry of the page read", bits(PAGE)?, ACCESSED)?;
    same("the entry of the page written", bits(OTHER)?, ACCESSED | DIRTY)?;
    same("the entry of an untouched page", bits(OTHER + 0x1000)?, 0)?;
    ensure(machine.read(PML4)? & ACCESSED != 0, "The top entry was not marked accessed")?;
    // A page that was read first and written later becomes dirty, too.
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        a.mov(rax, qword_ptr(PAGE))?;
        a.mov(rbx, qword_ptr(entry(PAGE)))?;
        a.mov(qword_ptr(PAGE), rbx)?;
        done(a)
    })?;
    same("the entry before the write", machine.read(PAGE)? & DIRTY, 0)?;
    same("the entry after the write", machine.read(entry(PAGE))? & DIRTY, DIRTY)
}

pub(crate) fn large_page(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // The second 2 MiB of RAM, seen through the large page at 1 GiB.
    machine.write(PDS + 0x1000, 0x20_0000 | 0x87)?;
    machine.write(0x20_0000 + 0x1_2345, 0x1122_3344_5566_7788)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, 0x4000_0000u64)?;
        a.mov(rax, qword_ptr(rcx + 0x1_2345))?;
        a.mov(rbx, rax)?;
        a.mov(qword_ptr(rcx + 0x1f_fff8), rax)?;
        done(a)
    })?;
    same("what was read through it", cpu.reg(3)?, 0x1122_3344_5566_7788)?;
    same("what was written through it", machine.read(0x3f_fff8)?, 0x1122_3344_5566_7788)?;
    same("its marks", machine.read(PDS + 0x1000)? & (ACCESSED | DIRTY), ACCESSED | DIRTY)
}

/// Reads PAGE, points it at OTHER's frame, flushes in the given way, reads again.
fn remap(
    engine: &dyn Hypervisor,
    global: bool,
    flush: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> Outcome<(u64, u64)> {
    let machine = Machine::new(engine, 1)?;
    machine.write(PAGE, 1)?;
    machine.write(OTHER, 2)?;
    let bits = if global { 0x107 } else { 7 };
    machine.write(entry(PAGE), PAGE | bits)?;
    let mut cpu = machine.execute(|a| {
        if global {
            a.mov(rax, cr4)?;
            a.or(eax, 0x80)?;
            a.mov(cr4, rax)?;
        }
        a.mov(rbx, qword_ptr(PAGE))?;
        a.mov(rax, OTHER | bits)?;
        a.mov(rcx, entry(PAGE))?;
        a.mov(qword_ptr(rcx), rax)?;
        flush(a)?;
        a.mov(rsi, qword_ptr(PAGE))?;
        done(a)
    })?;
    Ok((cpu.reg(3)?, cpu.reg(6)?))
}

pub(crate) fn invlpg(engine: &dyn Hypervisor) -> Outcome {
    let seen = remap(engine, false, |a| a.invlpg(byte_ptr(PAGE)))?;
    same("what was read before and after INVLPG", seen, (1, 2))?;
    let seen = remap(engine, true, |a| a.invlpg(byte_ptr(PAGE + 0x123)))?;
    same("what was read before and after INVLPG of a global page", seen, (1, 2))
}

pub(crate) fn cr3_switch(engine: &dyn Hypervisor) -> Outcome {
    let seen = remap(engine, false, |a| {
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)
    })?;
    same("what was read before and after MOV CR3", seen, (1, 2))
}

pub(crate) fn global_pages_survive_cr3(engine: &dyn Hypervisor) -> Outcome {
    // A CPU may drop a global translation at any time, so only this can be asked: after a toggle of CR4.PGE it is gone.
    let seen = remap(engine, true, |a| {
        a.mov(rax, cr4)?;
        a.xor(eax, 0x80)?;
        a.mov(cr4, rax)?;
        a.xor(eax, 0x80)?;
        a.mov(cr4, rax)
    })?;
    same("what was read before and after the toggle", seen, (1, 2))
}

pub(crate) fn two_addresses_of_one_page(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(entry(OTHER), PAGE | 7)?;
    let mut cpu = machine.execute(|a| {
        a.mov(dword_ptr(PAGE), 5)?;
        a.mov(eax, dword_ptr(OTHER))?;
        a.mov(ebx, eax)?;
        a.inc(dword_ptr(OTHER))?;
        a.mov(esi, dword_ptr(PAGE))?;
        a.mov(qword_ptr(DATA), rsi)?;
        done(a)
    })?;
    same("what was read through the other address", (cpu.reg(3)?, cpu.reg(6)?), (5, 6))
}

/// Calls the code at `linear`, lets `entry` read `after` instead of `before`, executes INVLPG for `flushed`, calls again.
fn remap_code(
    engine: &dyn Hypervisor,
    linear: u64,
    frames: (u64, u64),
    (entry, before, after): (u64, u64, u64),
    flushed: u64,
) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(entry, before)?;
    for (frame, answer) in [(frames.0, 1), (frames.1, 2)] {
        machine.load(frame, |a| {
            a.mov(esi, answer)?;
            a.ret()
        })?;
    }
    let mut cpu = machine.execute(|a| {
        a.mov(rax, linear)?;
        a.call(rax)?;
        a.mov(rbx, rsi)?;
        a.mov(rdx, after)?;
        a.mov(rcx, entry)?;
        a.mov(qword_ptr(rcx), rdx)?;
        a.mov(rdx, flushed)?;
        a.invlpg(byte_ptr(rdx))?;
        a.call(rax)?;
        done(a)
    })?;
    same("what the code said before and after INVLPG", (cpu.reg(3)?, cpu.reg(6)?), (1, 2))
}

pub(crate) fn code_of_a_remapped_page(engine: &dyn Hypervisor) -> Outcome {
    remap_code(engine, PAGE, (PAGE, OTHER), (entry(PAGE), PAGE | 7, OTHER | 7), PAGE + 0x123)
}

pub(crate) fn code_of_a_remapped_large_page(engine: &dyn Hypervisor) -> Outcome {
    // The second GiB begins with a large page that leads to 2 MiB itself; one INVLPG anywhere in it is enough.
    const LARGE: u64 = 0x4000_0000;
    let entry = PDS + 0x1000;
    remap_code(engine, LARGE + PAGE, (0x20_0000 + PAGE, PAGE), (entry, 0x20_0087, 0x87), LARGE + 0x1_2345)
}
