//! Accesses that leave RAM: ports and MMIO of every size, alignment and form.

use std::sync::{Arc, Mutex, PoisonError};

use doorbell::Doorbell;
use hv::Hypervisor;
use iced_x86::code_asm::*;

use crate::Failure;
use crate::guest::{self, DATA, MMIO, done};
use crate::machine::{Access, Machine, Outcome, fail, pattern, pattern_value, same};

pub(crate) fn port_sizes(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.out(0x21, al)?;
        a.out(0x22, ax)?;
        a.out(0x23, eax)?;
        a.mov(edx, 0x1234)?;
        a.out(dx, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.mov(rax, -1i64 as u64)?;
        a.in_(al, dx)?;
        a.mov(rbx, rax)?;
        a.mov(rax, -1i64 as u64)?;
        a.in_(ax, 0x40)?;
        a.mov(rsi, rax)?;
        a.mov(rax, -1i64 as u64)?;
        a.in_(eax, dx)?;
        a.mov(rdi, rax)?;
        done(a)
    })?;
    let low = [0x11, 0x22, 0x33, 0x44];
    let write = |port, len: usize| Access::PortWrite { port, data: low[..len].to_vec() };
    let expected = [
        write(0x21, 1),
        write(0x22, 2),
        write(0x23, 4),
        write(0x1234, 1),
        write(0x1234, 2),
        write(0x1234, 4),
        Access::PortRead { port: 0x1234, len: 1 },
        Access::PortRead { port: 0x40, len: 2 },
        Access::PortRead { port: 0x1234, len: 4 },
    ];
    same("the list of accesses", machine.accesses(), expected.to_vec())?;
    let ones = u64::MAX;
    same("rax after IN AL", cpu.reg(3)?, ones & !0xff | u64::from(pattern(0x1234)))?;
    same("rax after IN AX", cpu.reg(6)?, ones & !0xffff | pattern_value(0x40, 2))?;
    same("rax after IN EAX", cpu.reg(7)?, pattern_value(0x1234, 4))
}

pub(crate) fn port_strings(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(DATA, 0x0807_0605_0403_0201)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rsi, DATA)?;
        a.mov(edx, 0x60)?;
        a.mov(ecx, 3)?;
        a.cld()?;
        a.rep().outsb()?;
        a.outsw()?;
        a.mov(rdi, DATA + 0x100)?;
        a.mov(ecx, 2)?;
        a.rep().insd()?;
        done(a)
    })?;
    let write = |data: &[u8]| Access::PortWrite { port: 0x60, data: data.to_vec() };
    let read = || Access::PortRead { port: 0x60, len: 4 };
    let expected = vec![write(&[1]), write(&[2]), write(&[3]), write(&[4, 5]), read(), read()];
    same("the list of accesses", machine.accesses(), expected)?;
    let value = pattern_value(0x60, 4);
    same("what INS stored", machine.read(DATA + 0x100)?, value | value << 32)?;
    same("rsi", cpu.reg(6)?, DATA + 5)?;
    same("rdi", cpu.reg(7)?, DATA + 0x108)?;
    same("rcx", cpu.reg(1)?, 0)
}

pub(crate) fn mmio_reads(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, MMIO)?;
        a.mov(rax, -1i64 as u64)?;
        a.mov(rbx, rax)?;
        a.mov(rdx, rax)?;
        a.mov(al, byte_ptr(rcx + 0x11))?;
        a.mov(bx, word_ptr(rcx + 0x22))?;
        a.mov(edx, dword_ptr(rcx + 0x34))?;
        a.mov(rsi, qword_ptr(rcx + 0x48))?;
        done(a)
    })?;
    let read = |offset, len| Access::MmioRead { at: MMIO + offset, len };
    same(
        "the list of accesses",
        machine.accesses(),
        vec![read(0x11, 1), read(0x22, 2), read(0x34, 4), read(0x48, 8)],
    )?;
    let ones = u64::MAX;
    same("rax after an 8-bit read", cpu.reg(0)?, ones & !0xff | pattern_value(MMIO + 0x11, 1))?;
    same("rbx after a 16-bit read", cpu.reg(3)?, ones & !0xffff | pattern_value(MMIO + 0x22, 2))?;
    same("rdx after a 32-bit read", cpu.reg(2)?, pattern_value(MMIO + 0x34, 4))?;
    same("rsi after a 64-bit read", cpu.reg(6)?, pattern_value(MMIO + 0x48, 8))
}

pub(crate) fn mmio_writes(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.execute(|a| {
        a.mov(rcx, MMIO)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(byte_ptr(rcx + 1), al)?;
        a.mov(byte_ptr(rcx + 3), ah)?;
        a.mov(word_ptr(rcx + 4), ax)?;
        a.mov(dword_ptr(rcx + 8), eax)?;
        a.mov(qword_ptr(rcx + 16), rax)?;
        a.mov(dword_ptr(rcx + 24), 0x0a0b_0c0d)?;
        a.mov(qword_ptr(rcx + 32), -2)?;
        a.mov(r11, rcx)?;
        a.mov(r9, 0x1122_3344u64)?;
        a.mov(dword_ptr(r11 + 40), r9d)?;
        done(a)
    })?;
    let bytes = 0x8877_6655_4433_2211u64.to_le_bytes();
    let write = |offset, data: &[u8]| Access::MmioWrite { at: MMIO + offset, data: data.to_vec() };
    let expected = vec![
        write(1, &bytes[..1]),
        write(3, &bytes[1..2]),
        write(4, &bytes[..2]),
        write(8, &bytes[..4]),
        write(16, &bytes),
        write(24, &[0x0d, 0x0c, 0x0b, 0x0a]),
        write(32, &(-2i64).to_le_bytes()),
        write(40, &[0x44, 0x33, 0x22, 0x11]),
    ];
    same("the list of accesses", machine.accesses(), expected)
}

pub(crate) fn mmio_read_extends(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // A byte whose pattern has its top bit set.
    let at = (MMIO..).find(|at| pattern(*at) & 0x80 != 0 && pattern(at + 1) & 0x80 != 0).unwrap_or(MMIO);
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, at)?;
        a.movzx(eax, byte_ptr(rcx))?;
        a.movsx(rbx, byte_ptr(rcx))?;
        a.movzx(edx, word_ptr(rcx))?;
        a.movsx(esi, word_ptr(rcx))?;
        a.movsxd(rdi, dword_ptr(rcx))?;
        done(a)
    })?;
    same("MOVZX of a byte", cpu.reg(0)?, pattern_value(at, 1))?;
    same("MOVSX of a byte", cpu.reg(3)?, pattern(at) as i8 as i64 as u64)?;
    same("MOVZX of a word", cpu.reg(2)?, pattern_value(at, 2))?;
    same("MOVSX of a word", cpu.reg(6)?, u64::from(pattern_value(at, 2) as u16 as i16 as i32 as u32))?;
    same("MOVSXD", cpu.reg(7)?, pattern_value(at, 4) as u32 as i32 as i64 as u64)
}

/// Checks that the accesses of one kind cover `[at, at + len)` once each, in rising order, whatever their sizes; gives
/// the bytes written.
fn covers(accesses: &[Access], write: bool, at: u64, len: u64) -> Outcome<Vec<u8>> {
    let mut next = at;
    let mut bytes = Vec::new();
    for access in accesses {
        let (start, size) = match access {
            Access::MmioRead { at, len } if !write => (*at, *len),
            Access::MmioWrite { at, data } if write => {
                bytes.extend_from_slice(data);
                (*at, data.len())
            }
            _ => continue,
        };
        if start != next || size > 8 {
            return fail(format!("Bytes are touched out of order or twice: {accesses:x?}"));
        }
        next += size as u64;
    }
    same("the end of what was touched", next, at + len)?;
    Ok(bytes)
}

/// Reads and writes 2, 4 and 8 bytes at `at`; the `ram` first bytes of them lie in RAM.
fn access_at(engine: &dyn Hypervisor, at: u64, ram: u64) -> Outcome {
    for len in [2u64, 4, 8].into_iter().filter(|len| *len > ram) {
        let machine = Machine::new(engine, 1)?;
        if ram > 0 {
            machine.write(guest::RAM - 8, 0x7766_5544_3322_1100)?;
        }
        let mut cpu = machine.execute(|a| {
            a.mov(rcx, at)?;
            a.mov(rax, 0x8877_6655_4433_2211u64)?;
            a.xor(ebx, ebx)?;
            match len {
                2 => a.mov(bx, word_ptr(rcx))?,
                4 => a.mov(ebx, dword_ptr(rcx))?,
                _ => a.mov(rbx, qword_ptr(rcx))?,
            }
            match len {
                2 => a.mov(word_ptr(rcx), ax)?,
                4 => a.mov(dword_ptr(rcx), eax)?,
                _ => a.mov(qword_ptr(rcx), rax)?,
            }
            done(a)
        })?;
        let accesses = machine.accesses();
        covers(&accesses, false, at + ram, len - ram)?;
        let written = covers(&accesses, true, at + ram, len - ram)?;
        let data = 0x8877_6655_4433_2211u64.to_le_bytes();
        let (in_ram, beyond) = data[..len as usize].split_at(ram as usize);
        same("what the bus was given", written, beyond.to_vec())?;
        let old = 0x7766_5544_3322_1100u64.to_le_bytes();
        let tail = &old[8 - ram as usize..];
        let expected = (0..len).fold(0u64, |value, index| {
            let byte = tail.get(index as usize).copied().unwrap_or_else(|| pattern(at + index));
            value | u64::from(byte) << (8 * index)
        });
        same("what was read", cpu.reg(3)?, expected)?;
        if ram > 0 {
            let bytes = machine.read(guest::RAM - 8)?.to_le_bytes();
            same("what reached RAM", &bytes[8 - ram as usize..], in_ram)?;
        }
    }
    Ok(())
}

pub(crate) fn mmio_unaligned(engine: &dyn Hypervisor) -> Outcome {
    (1..8).try_for_each(|offset| access_at(engine, MMIO + 0x100 + offset, 0))
}

pub(crate) fn mmio_across_pages(engine: &dyn Hypervisor) -> Outcome {
    (1..8).try_for_each(|before| access_at(engine, MMIO + 0x1000 - before, 0))
}

pub(crate) fn mmio_across_the_end_of_ram(engine: &dyn Hypervisor) -> Outcome {
    [1, 2, 3, 5, 7].into_iter().try_for_each(|before| access_at(engine, guest::RAM - before, before))
}

pub(crate) fn mmio_read_modify_write(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let mut cpu = machine.execute(|a| {
        a.mov(rcx, MMIO)?;
        a.or(dword_ptr(rcx), 0x0f)?;
        a.mov(eax, 1)?;
        a.add(qword_ptr(rcx + 8), rax)?;
        a.mov(ebx, 0x55)?;
        a.xchg(byte_ptr(rcx + 16), bl)?;
        a.cmp(word_ptr(rcx + 18), pattern_value(MMIO + 18, 2) as i32 as i16 as i32)?;
        a.sete(dl)?;
        a.test(dword_ptr(rcx + 20), 0)?;
        a.setz(dh)?;
        a.add(eax, dword_ptr(rcx + 24))?;
        done(a)
    })?;
    let read = |offset, len| Access::MmioRead { at: MMIO + offset, len };
    let write = |offset, value: u64, len: usize| Access::MmioWrite {
        at: MMIO + offset,
        data: value.to_le_bytes()[..len].to_vec(),
    };
    let expected = vec![
        read(0, 4),
        write(0, pattern_value(MMIO, 4) | 0x0f, 4),
        read(8, 8),
        write(8, pattern_value(MMIO + 8, 8).wrapping_add(1), 8),
        read(16, 1),
        write(16, 0x55, 1),
        read(18, 2),
        read(20, 4),
        read(24, 4),
    ];
    same("the list of accesses", machine.accesses(), expected)?;
    same("what XCHG read", cpu.reg(3)?, pattern_value(MMIO + 16, 1))?;
    same("the results of CMP and TEST", cpu.reg(2)? & 0xffff, 0x0101)?;
    same("the sum", cpu.reg(0)?, u64::from((pattern_value(MMIO + 24, 4) as u32).wrapping_add(1)))
}

pub(crate) fn mmio_strings(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    machine.write(DATA, 0x0807_0605_0403_0201)?;
    machine.execute(|a| {
        a.cld()?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, MMIO + 0x10)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(rsi, MMIO + 0x20)?;
        a.mov(rdi, DATA + 0x100)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(rdi, MMIO + 0x30)?;
        a.mov(eax, 0x5a)?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        done(a)
    })?;
    let accesses = machine.accesses();
    let read: Vec<_> =
        accesses.iter().filter(|access| matches!(access, Access::MmioRead { .. })).cloned().collect();
    covers(&read, false, MMIO + 0x20, 8)?;
    same("what MOVS stored", machine.read(DATA + 0x100)?, pattern_value(MMIO + 0x20, 8))?;
    let in_range = |at: u64, len: u64| -> Vec<_> {
        let inside = |access: &&Access| matches!(access, Access::MmioWrite { at: to, .. } if (at..at + len).contains(to));
        accesses.iter().filter(inside).cloned().collect()
    };
    same("what MOVS gave", covers(&in_range(MMIO + 0x10, 8), true, MMIO + 0x10, 8)?, (1..=8).collect())?;
    same("what STOS gave", covers(&in_range(MMIO + 0x30, 3), true, MMIO + 0x30, 3)?, vec![0x5a; 3])
}

pub(crate) fn mmio_from_ring_3(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    // The gate of vector 0x80 is open to ring 3; its handler ends the guest.
    machine.load(guest::AP_CODE, |a| {
        let mut here = a.create_label();
        a.mov(rcx, MMIO)?;
        a.mov(eax, dword_ptr(rcx + 4))?;
        a.mov(dword_ptr(rcx + 8), eax)?;
        a.int(0x80)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    })?;
    let handler = guest::HANDLERS + 0x80 * 16;
    machine.load(handler, |a| a.jmp(guest::CODE + 0x800))?;
    machine.load(guest::CODE + 0x800, done)?;
    let mut cpu = machine.execute(|a| {
        a.push(i32::from(guest::USER_DATA))?;
        a.push(guest::DATA as i32)?;
        a.push(2)?;
        a.push(i32::from(guest::USER_CODE))?;
        a.push(guest::AP_CODE as i32)?;
        a.iretq()
    })?;
    let value = pattern_value(MMIO + 4, 4);
    same("eax", cpu.reg(0)?, value)?;
    let data = value.to_le_bytes()[..4].to_vec();
    let expected = vec![Access::MmioRead { at: MMIO + 4, len: 4 }, Access::MmioWrite { at: MMIO + 8, data }];
    same("the list of accesses", machine.accesses(), expected)
}

pub(crate) fn doorbell(engine: &dyn Hypervisor) -> Outcome {
    let machine = Machine::new(engine, 1)?;
    let Some(doorbells) = machine.vm.doorbells() else {
        return Err(Failure::Skipped("the engine has no doorbells".into()));
    };
    let bell = Doorbell::new()?;
    doorbells.register(MMIO + 0x80, &bell)?;
    let (answers, answering) = (Arc::new(Mutex::new(Vec::new())), bell.clone());
    let noted = answers.clone();
    machine.on_access(move |access| {
        if matches!(access, Access::PortWrite { .. }) {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(answering.answer());
        }
    });
    machine.execute(|a| {
        a.mov(rcx, MMIO)?;
        a.mov(dword_ptr(rcx + 0x80), 7)?;
        a.out(0x40, al)?;
        a.mov(word_ptr(rcx + 0x80), 8)?;
        a.out(0x40, al)?;
        a.mov(dword_ptr(rcx + 0x84), 9)?;
        a.out(0x40, al)?;
        done(a)
    })?;
    let answers = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    same("whether the bell had rung", answers, vec![true, true, false])?;
    let mut seen = machine.accesses();
    seen.retain(|access| !matches!(access, Access::PortWrite { .. }));
    let missed = Access::MmioWrite { at: MMIO + 0x84, data: vec![9, 0, 0, 0] };
    same("what reached the bus", seen, vec![missed])?;
    Ok(doorbells.unregister(MMIO + 0x80, &bell)?)
}
