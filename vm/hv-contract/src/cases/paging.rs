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

/// Tables of a second address space: the first 2 MiB as in the first, but for PAGE.
const OTHER_TABLES: u64 = 0x11_0000;
const OTHER_PT: u64 = OTHER_TABLES + 0x3000;
const THIRD: u64 = 0x10_2000;
const NO_FLUSH: u64 = 1 << 63;

/// A machine with two address spaces and three frames, each of which holds code that answers, and data that is, its number.
fn two_spaces(engine: &dyn Hypervisor) -> Outcome<Machine> {
    let machine = Machine::new(engine, 1)?;
    for (table, next) in [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)] {
        machine.write(OTHER_TABLES + table, OTHER_TABLES + next + 7)?;
    }
    for page in (0..0x20_0000u64).step_by(4096) {
        machine.write(OTHER_PT + page / 4096 * 8, page | 7)?;
    }
    machine.write(OTHER_PT + PAGE / 4096 * 8, OTHER | 7)?;
    for (frame, number) in [(PAGE, 1), (OTHER, 2), (THIRD, 3)] {
        machine.load(frame, |a| {
            a.mov(esi, number)?;
            a.ret()
        })?;
        machine.write(frame + 0x800, number as u64)?;
    }
    Ok(machine)
}

/// What code and data at PAGE say, into a slot of DATA.
fn say(a: &mut CodeAssembler, slot: u64) -> Result<(), iced_x86::IcedError> {
    a.mov(rax, PAGE)?;
    a.call(rax)?;
    a.mov(qword_ptr(DATA + 16 * slot), rsi)?;
    a.mov(rsi, qword_ptr(PAGE + 0x800))?;
    a.mov(qword_ptr(DATA + 16 * slot + 8), rsi)
}

fn load_cr3(a: &mut CodeAssembler, value: u64) -> Result<(), iced_x86::IcedError> {
    a.mov(rax, value)?;
    a.mov(cr3, rax)
}

/// Lets PAGE lead to `frame` in the first or the other space; flushes nothing.
fn point(a: &mut CodeAssembler, other: bool, frame: u64) -> Result<(), iced_x86::IcedError> {
    let at = if other { OTHER_PT + PAGE / 4096 * 8 } else { entry(PAGE) };
    a.mov(rax, frame | 7)?;
    a.mov(qword_ptr(at), rax)
}

fn invpcid(a: &mut CodeAssembler, kind: u64, pcid: u64) -> Result<(), iced_x86::IcedError> {
    a.mov(qword_ptr(DATA + 0x800), pcid as i32)?;
    a.mov(qword_ptr(DATA + 0x808), PAGE as i32)?;
    a.mov(rax, kind)?;
    a.invpcid(rax, xmmword_ptr(DATA + 0x800))
}

/// Turns CR4.PCIDE on, or ends the guest where there are no PCIDs or no INVPCID.
fn enable_pcids(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let mut missing = a.create_label();
    let mut there = a.create_label();
    a.mov(eax, 1)?;
    a.cpuid()?;
    a.bt(ecx, 17)?;
    a.jnc(missing)?;
    a.mov(eax, 7)?;
    a.xor(ecx, ecx)?;
    a.cpuid()?;
    a.bt(ebx, 10)?;
    a.jc(there)?;
    a.set_label(&mut missing)?;
    done(a)?;
    a.set_label(&mut there)?;
    a.mov(rax, cr4)?;
    a.bts(rax, 17)?;
    a.mov(cr4, rax)?;
    a.mov(qword_ptr(DATA + 0xf00), 1)
}

fn said(machine: &Machine, expected: &[(&str, u64)]) -> Outcome {
    if machine.read(DATA + 0xf00)? == 0 {
        return Ok(());
    }
    for (slot, (when, number)) in (0..).zip(expected) {
        let got = (machine.read(DATA + 16 * slot)?, machine.read(DATA + 16 * slot + 8)?);
        same(&format!("what code and data said {when}"), got, (*number, *number))?;
    }
    Ok(())
}

pub(crate) fn two_address_spaces(engine: &dyn Hypervisor) -> Outcome {
    const A: u64 = PML4 | 1;
    const B: u64 = OTHER_TABLES | 2;
    let machine = two_spaces(engine)?;
    machine.execute(|a| {
        enable_pcids(a)?;
        load_cr3(a, A)?;
        say(a, 0)?;
        load_cr3(a, B)?;
        say(a, 1)?;
        // Back and forth without a flush: each has its own.
        load_cr3(a, A | NO_FLUSH)?;
        say(a, 2)?;
        load_cr3(a, B | NO_FLUSH)?;
        say(a, 3)?;
        // INVLPG is for the current PCID.
        point(a, true, THIRD)?;
        a.invlpg(byte_ptr(PAGE + 0x10))?;
        say(a, 4)?;
        load_cr3(a, A | NO_FLUSH)?;
        say(a, 5)?;
        // A load with a flush drops what its PCID had.
        point(a, true, OTHER)?;
        load_cr3(a, B)?;
        say(a, 6)?;
        point(a, true, THIRD)?;
        load_cr3(a, B)?;
        say(a, 7)?;
        // The same tables under another PCID.
        load_cr3(a, PML4 | 3)?;
        say(a, 8)?;
        load_cr3(a, B | NO_FLUSH)?;
        say(a, 9)?;
        done(a)
    })?;
    said(
        &machine,
        &[
            ("in the first space", 1),
            ("in the second", 2),
            ("back in the first", 1),
            ("back in the second", 2),
            ("after INVLPG", 3),
            ("in the first after INVLPG in the second", 1),
            ("after a load of CR3 with a flush", 2),
            ("after a load of the same CR3", 3),
            ("under a third PCID", 1),
            ("back in the second again", 3),
        ],
    )
}

pub(crate) fn invpcid_of_each_kind(engine: &dyn Hypervisor) -> Outcome {
    const A: u64 = PML4 | 1;
    const B: u64 = OTHER_TABLES | 2;
    let machine = two_spaces(engine)?;
    machine.execute(|a| {
        enable_pcids(a)?;
        load_cr3(a, B)?;
        say(a, 0)?;
        load_cr3(a, A)?;
        say(a, 1)?;
        // From the first space: one address of the second, then all of it.
        for (slot, kind, frame) in [(2, 0, THIRD), (3, 1, OTHER), (4, 3, THIRD), (5, 2, OTHER)] {
            point(a, true, frame)?;
            invpcid(a, kind, 2)?;
            load_cr3(a, B | NO_FLUSH)?;
            say(a, slot)?;
            load_cr3(a, A | NO_FLUSH)?;
            say(a, 20)?;
        }
        // Of the current PCID, in each way.
        for (slot, kind, frame) in [(6, 0, THIRD), (7, 1, OTHER), (8, 3, THIRD), (9, 2, PAGE)] {
            point(a, false, frame)?;
            invpcid(a, kind, 1)?;
            say(a, slot)?;
        }
        // What is global survives kinds 1 and 3 on some CPUs, and 2 on none.
        a.mov(rax, cr4)?;
        a.or(eax, 0x80)?;
        a.mov(cr4, rax)?;
        point(a, false, PAGE | 0x100)?;
        a.invlpg(byte_ptr(PAGE))?;
        say(a, 10)?;
        point(a, false, OTHER | 0x100)?;
        invpcid(a, 2, 0)?;
        say(a, 11)?;
        point(a, false, THIRD | 0x100)?;
        a.invlpg(byte_ptr(PAGE))?;
        say(a, 12)?;
        done(a)
    })?;
    said(
        &machine,
        &[
            ("in the second space", 2),
            ("in the first", 1),
            ("after INVPCID of an address of the second", 3),
            ("after INVPCID of the second", 2),
            ("after INVPCID of all that is not global", 3),
            ("after INVPCID of everything", 2),
            ("after INVPCID of an address of the current PCID", 3),
            ("after INVPCID of the current PCID", 2),
            ("after INVPCID of all that is not global, here", 3),
            ("after INVPCID of everything, here", 1),
            ("through a global page", 1),
            ("after INVPCID of everything with a global page", 2),
            ("after INVLPG of a global page", 3),
        ],
    )
}
