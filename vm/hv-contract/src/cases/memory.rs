//! The dirty log, read-only memory, and code that changes.

use std::sync::Arc;

use hv::Hypervisor;
use iced_x86::code_asm::*;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::{self, CODE, DATA, READ_ONLY, done};
use crate::machine::{Access, Machine, Outcome, ensure, pattern_value, same};

/// Whether the page of `gpa` is marked in the log of the RAM that starts at 0.
fn marked(log: &[u64], gpa: u64) -> bool {
    let page = gpa / 4096;
    log.get((page / 64) as usize).is_some_and(|word| word >> (page % 64) & 1 == 1)
}

// A log may also name pages that were only read: KVM may map a page writable when it is first read.
pub(crate) fn dirty_log_of_vcpu_writes(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(CODE, |a| {
        a.mov(qword_ptr(DATA), 1)?;
        // Across two pages.
        a.mov(rcx, 0x20_1ffcu64)?;
        a.mov(qword_ptr(rcx), 1)?;
        a.out(i32::from(guest::DONE_PORT), al)?;
        a.mov(qword_ptr(DATA + 0x1000), 1)?;
        done(a)
    })?;
    let mut cpu = machine.boot(0, CODE)?;
    machine.vm.log_dirty(true)?;
    machine.vm.take_dirty(0)?;
    cpu.finish()?;
    let log = machine.vm.take_dirty(0)?;
    same("the length of the log", log.len() as u64, guest::RAM / 4096 / 64)?;
    for (gpa, expected) in [(DATA, true), (0x20_1000, true), (0x20_2000, true), (DATA + 0x1000, false)] {
        same(&format!("the mark of page {gpa:#x}"), marked(&log, gpa), expected)?;
    }
    // Taking it cleared it; what is written next is logged again, the same page included.
    cpu.finish()?;
    let log = machine.vm.take_dirty(0)?;
    same("the mark of the page written first", marked(&log, DATA), false)?;
    same("the mark of the page written then", marked(&log, DATA + 0x1000), true)
}

pub(crate) fn dirty_log_of_device_writes(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let ram = machine.ram.clone();
    machine.on_access(move |access| {
        if matches!(access, Access::PortWrite { port: 0x10, .. }) {
            // A failure shows in the log.
            let _ = ram.memory().write_slice(&[1; 8], GuestAddress(0x20_3ffc));
        }
    });
    machine.vm.log_dirty(true)?;
    machine.vm.take_dirty(0)?;
    machine.execute(|a| {
        a.out(0x10, al)?;
        a.mov(qword_ptr(DATA), 1)?;
        done(a)
    })?;
    let log = machine.vm.take_dirty(0)?;
    ensure(marked(&log, 0x20_3000) && marked(&log, 0x20_4000), "A device's write is not in the log")?;
    ensure(marked(&log, DATA), "A vCPU's write is not in the log")?;
    same("an untouched page's mark", marked(&log, 0x20_5000), false)
}

pub(crate) fn dirty_log_off(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.vm.log_dirty(true)?;
    machine.vm.log_dirty(false)?;
    machine.execute(|a| {
        a.mov(qword_ptr(DATA), 1)?;
        done(a)
    })?;
    machine.vm.log_dirty(true)?;
    let log = machine.vm.take_dirty(0)?;
    same("the mark of a page written while it was off", marked(&log, DATA), false)?;
    ensure(machine.vm.take_dirty(0x1234_5000).is_err(), "There is a log for a range that does not exist")
}

pub(crate) fn read_only_reads(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // It can be run from, too: put code into the range from the host's side.
    let code = guest::assemble(READ_ONLY + 0x2000, |a| {
        a.mov(ebx, 77)?;
        a.ret()
    })?;
    machine.ram.memory().write_slice(&code, GuestAddress(READ_ONLY + 0x2000))?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, READ_ONLY)?;
        a.mov(rsi, qword_ptr(rcx + 0x1ffc))?;
        a.mov(rdi, qword_ptr(rcx + 0xffc))?;
        a.lea(rax, qword_ptr(rcx + 0x2000))?;
        a.call(rax)?;
        done(a)
    })?;
    same("what was read across pages", cpu.reg(7)?, pattern_value(READ_ONLY + 0xffc, 8))?;
    same("what the code there did", cpu.reg(3)?, 77)?;
    same("what reached the bus", machine.accesses(), vec![])
}

pub(crate) fn read_only_drops_writes(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, READ_ONLY)?;
        a.mov(byte_ptr(rcx), 0)?;
        a.mov(qword_ptr(rcx + 8), 0)?;
        a.mov(qword_ptr(rcx + 0xffc), 0)?;
        a.mov(rax, qword_ptr(rcx))?;
        a.mov(rbx, qword_ptr(rcx + 8))?;
        a.mov(rsi, qword_ptr(rcx + 0xffc))?;
        done(a)
    })?;
    same("the first word", cpu.reg(0)?, pattern_value(READ_ONLY, 8))?;
    same("the second word", cpu.reg(3)?, pattern_value(READ_ONLY + 8, 8))?;
    same("the word across pages", cpu.reg(6)?, pattern_value(READ_ONLY + 0xffc, 8))?;
    same("the host's view", machine.read(READ_ONLY)?, pattern_value(READ_ONLY, 8))?;
    same("what reached the bus", machine.accesses(), vec![])
}

pub(crate) fn code_changes_itself(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // A function `mov ebx, n; ret` whose n the caller raises before each of 5 calls; then the caller changes an
    // instruction just ahead of itself.
    machine.load(guest::AP_CODE, |a| {
        a.mov(ebx, 0)?;
        a.ret()
    })?;
    let mut cpu = machine.execute(|a| {
        let mut again = a.create_label();
        let mut ahead = a.create_label();
        a.mov(rcx, guest::AP_CODE)?;
        a.xor(esi, esi)?;
        a.mov(edi, 5)?;
        a.set_label(&mut again)?;
        a.inc(dword_ptr(rcx + 1))?;
        a.call(rcx)?;
        a.add(esi, ebx)?;
        a.dec(edi)?;
        a.jnz(again)?;
        a.lea(rdx, qword_ptr(ahead))?;
        a.mov(byte_ptr(rdx + 2), 9)?;
        a.jmp(ahead)?;
        a.set_label(&mut ahead)?;
        a.mov(r8d, 1)?;
        done(a)
    })?;
    same("the sum", cpu.reg(6)?, 1 + 2 + 3 + 4 + 5)?;
    same("the changed instruction's effect", cpu.reg(8)?, 9)
}

pub(crate) fn device_changes_code(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.load(guest::AP_CODE, |a| {
        a.mov(ebx, 1)?;
        a.ret()
    })?;
    let changed = Arc::new(guest::assemble(guest::AP_CODE, |a| {
        a.mov(ebx, 40)?;
        a.ret()
    })?);
    let ram = machine.ram.clone();
    machine.on_access(move |access| {
        if matches!(access, Access::PortWrite { port: 0x10, .. }) {
            // A failure shows in the sum.
            let _ = ram.memory().write_slice(&changed, GuestAddress(guest::AP_CODE));
        }
    });
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, guest::AP_CODE)?;
        a.call(rcx)?;
        a.mov(esi, ebx)?;
        a.call(rcx)?;
        a.add(esi, ebx)?;
        a.out(0x10, al)?;
        a.call(rcx)?;
        a.add(esi, ebx)?;
        done(a)
    })?;
    same("the sum", cpu.reg(6)?, 42)
}
