//! A guest that means no good: a freestanding program, booted as a kernel, that drives every virtio device and the chipset
//! with garbage from a seeded generator. Compiled by the test `evil` with `rustc` alone.
//!
//! Much of what it does is nearly right, or nothing beyond the first check would be reached: devices are initialised as
//! a driver would, requests have sound headers, chains are mostly linked; then one thing or the other is not. It counts what
//! the devices gave back, so that the test can tell an attack from a guest that never reached anything.
//!
//! The command line's words: `seed=NUMBER`; `wake=1` for a second processor, woken by the mailbox, `wake=2` by INIT and SIPI.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

global_asm!(
    ".globl _start",
    "_start:",
    "mov rax, cr4",
    "or rax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    "lea rsp, [rip + stack_end]",
    "call main",
    ".globl on_nmi",
    "on_nmi:",
    "iretq",
    // A further processor, in 64-bit mode already.
    ".globl second_start",
    "second_start:",
    "mov ax, 0x18",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    "mov rax, cr4",
    "or rax, 0x600",
    "mov cr4, rax",
    "lea rsp, [rip + second_stack_end]",
    "call second",
    ".bss",
    ".align 16",
    ".skip 65536",
    "stack_end:",
    ".skip 65536",
    "second_stack_end:",
    ".text",
);

/// Nothing here unwinds; the precompiled `core` refers to it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte as u8) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    say(b"the guest itself panicked\n");
    loop {
        unsafe { asm!("hlt") };
    }
}

// The machine, as `vm/machine`'s layout has it, and what this guest makes of its memory.
const BARS: u64 = 0xc000_0000;
const ECAM: u64 = 0xe000_0000;
const PMEM: u64 = 0x40_0000_0000;
const RAM_END: u64 = 96 << 20;
const RINGS: u64 = 32 << 20;
const BUFFERS: u64 = 48 << 20;
const BUFFERS_LEN: u64 = 32 << 20;
const SERIAL: u16 = 0x3f8;
const MAILBOX: u64 = 0xfed0_0000;
const LOCAL_APIC: u64 = 0xfee0_0000;
/// A free page below 1 MiB, for a processor's first instructions in real mode.
const TRAMPOLINE: u64 = 0x8000;
/// Where the second processor counts its rounds.
const ROUNDS: u64 = 30 << 20;
const DEVICES: u64 = 8;
const QUEUES: u64 = 4;
const SIZE: u64 = 64;

fn put8(at: u64, value: u8) {
    unsafe { (at as *mut u8).write_volatile(value) }
}
fn put16(at: u64, value: u16) {
    unsafe { (at as *mut u16).write_unaligned(value) }
}
fn put32(at: u64, value: u32) {
    unsafe { (at as *mut u32).write_unaligned(value) }
}
fn put64(at: u64, value: u64) {
    unsafe { (at as *mut u64).write_unaligned(value) }
}

// A device's register is reached by one instruction of exactly this width.
fn write(at: u64, width: u64, value: u64) {
    unsafe {
        match width {
            1 => asm!("mov [{}], {}", in(reg) at, in(reg_byte) value as u8),
            2 => asm!("mov [{}], {:x}", in(reg) at, in(reg) value),
            4 => asm!("mov [{}], {:e}", in(reg) at, in(reg) value),
            _ => asm!("mov [{}], {}", in(reg) at, in(reg) value),
        }
    }
}
fn read(at: u64, width: u64) -> u64 {
    let mut value: u64 = 0;
    unsafe {
        match width {
            1 => asm!("movzx {:e}, byte ptr [{}]", out(reg) value, in(reg) at),
            2 => asm!("movzx {:e}, word ptr [{}]", out(reg) value, in(reg) at),
            4 => asm!("mov {:e}, [{}]", out(reg) value, in(reg) at),
            _ => asm!("mov {}, [{}]", out(reg) value, in(reg) at),
        }
    }
    value
}
fn port_out(port: u16, width: u64, value: u32) {
    unsafe {
        match width {
            1 => asm!("out dx, al", in("dx") port, in("al") value as u8),
            2 => asm!("out dx, ax", in("dx") port, in("ax") value as u16),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value),
        }
    }
}
fn port_in(port: u16, width: u64) {
    unsafe {
        match width {
            1 => asm!("in al, dx", in("dx") port, out("al") _),
            2 => asm!("in ax, dx", in("dx") port, out("ax") _),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _),
        }
    }
}

/// Says something on the serial port, whatever was done to it before.
fn say(text: &[u8]) {
    for (register, value) in [(3, 3), (1, 0), (4, 0)] {
        port_out(SERIAL + register, 1, value);
    }
    text.iter().for_each(|byte| port_out(SERIAL, 1, (*byte).into()));
}
fn say_number(what: &[u8], number: u64) {
    let mut digits = [b'0'; 20];
    let mut rest = number;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    say(what);
    say(&digits);
    say(b"\n");
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
    fn of(&mut self, values: &[u64]) -> u64 {
        values[self.below(values.len() as u64) as usize]
    }
    fn width(&mut self) -> u64 {
        1 << self.below(4)
    }
    /// A number as bugs like them.
    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(64),
            2 => self.of(&[0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, !0, 1 << 63]),
            3 => self.address(),
            4 => 1 << self.below(64),
            _ => self.next() << self.below(9),
        }
    }
    /// An address: mostly a buffer, sometimes an edge or a place that is no memory.
    fn address(&mut self) -> u64 {
        match self.below(24) {
            0 => RAM_END - self.below(5000),
            1 => self.of(&[BARS, ECAM, 0xfee0_0000, 0xfed0_0000, 0xa_0000, 0xf_f000]) + self.below(8192),
            2 => self.number_of_any_size(),
            3 => PMEM + self.below(4 << 20),
            4 => RINGS + self.below(DEVICES * QUEUES) * 0x1_0000 + self.below(0x4000),
            5 => self.below(RAM_END),
            _ => BUFFERS + (self.below(BUFFERS_LEN) & !63),
        }
    }
    fn number_of_any_size(&mut self) -> u64 {
        (self.next() << 8 | self.next() & 0xff) >> self.below(64)
    }
    fn length(&mut self) -> u32 {
        match self.below(12) {
            0 => 0,
            1 => self.next() as u32,
            2 => self.below(1 << 20) as u32,
            3 => u32::MAX - self.below(3) as u32,
            4..8 => self.of(&[1, 8, 12, 16, 40, 44, 80, 104, 512, 4096, 65536]) as u32,
            _ => self.below(8192) as u32,
        }
    }
}

struct Evil {
    chance: Chance,
    /// How far each queue's driver is.
    available: [[u16; QUEUES as usize]; DEVICES as usize],
    /// The descriptor behind the last one that it used.
    free: [[u64; QUEUES as usize]; DEVICES as usize],
    /// How far the device was when it was last looked at.
    seen: [[u16; QUEUES as usize]; DEVICES as usize],
    /// Where the answer of the chain that begins at a descriptor will be.
    answers: [[[u64; SIZE as usize]; QUEUES as usize]; DEVICES as usize],
    /// Chains of each device that came back, and those of them whose answer says that what was asked was done.
    done: [u64; DEVICES as usize],
    well: [u64; DEVICES as usize],
}

impl Evil {
    fn bar(device: u64) -> u64 {
        BARS + device * (1 << 20)
    }
    fn rings(device: u64, queue: u64) -> u64 {
        RINGS + (device * QUEUES + queue) * 0x1_0000
    }

    /// What a driver does, with a step left out or wrong now and then.
    fn initialise(&mut self, device: u64) {
        let bar = Self::bar(device);
        write(ECAM + (device << 15) + 4, 2, 0x406);
        for status in [0, 1, 3] {
            write(bar + 0x14, 1, status);
        }
        for half in 0..2 {
            write(bar, 4, half);
            let offered = read(bar + 4, 4);
            let wanted = if self.chance.one_in(6) { offered & self.chance.next() } else { offered };
            write(bar + 8, 4, half);
            write(bar + 0xc, 4, if self.chance.one_in(30) { self.chance.next() } else { wanted });
        }
        if !self.chance.one_in(40) {
            write(bar + 0x14, 1, 11);
        }
        for queue in 0..QUEUES {
            self.queue(device, queue);
        }
        if !self.chance.one_in(40) {
            write(bar + 0x14, 1, 15);
        }
    }

    fn queue(&mut self, device: u64, queue: u64) {
        let (bar, rings) = (Self::bar(device), Self::rings(device, queue));
        unsafe { memset(rings as *mut u8, 0, 0x4000) };
        self.available[device as usize][queue as usize] = 0;
        self.seen[device as usize][queue as usize] = 0;
        write(bar + 0x16, 2, queue);
        let size = if self.chance.one_in(30) { self.chance.number() } else { SIZE };
        write(bar + 0x18, 2, size);
        write(bar + 0x1a, 2, if self.chance.one_in(10) { self.chance.number() } else { queue });
        for (register, offset) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
            let at = if self.chance.one_in(60) { self.chance.address() } else { rings + offset };
            write(bar + register, 4, at);
            write(bar + register + 4, 4, at >> 32);
        }
        if !self.chance.one_in(30) {
            write(bar + 0x1c, 2, 1);
        }
    }

    /// Counts what came back. Numbers that no device can have written are this guest's own garbage.
    fn look(&mut self, device: u64, queue: u64, used: u16) {
        let rings = Self::rings(device, queue);
        let seen = &mut self.seen[device as usize][queue as usize];
        let (from, count) = (*seen, used.wrapping_sub(*seen));
        *seen = used;
        if u64::from(count) > SIZE {
            return;
        }
        for at in 0..count {
            let entry = rings + 0x2004 + 8 * (u64::from(from.wrapping_add(at)) % SIZE);
            let (head, length) = (read(entry, 4), read(entry + 4, 4));
            if head >= SIZE {
                continue;
            }
            self.done[device as usize] += 1;
            let answer = self.answers[device as usize][queue as usize][head as usize];
            let well = match device {
                _ if answer == 0 => false,
                4 => read(answer, 4) == 0,
                5 => read(answer, 1) == 0,
                6 => read(answer, 4) >= 16 && read(answer + 4, 4) == 0,
                _ => length > 0,
            };
            self.well[device as usize] += u64::from(well);
        }
    }

    /// Offers a chain and rings.
    fn chain(&mut self, device: u64) {
        let queue = self.chance.below(if device == 3 { 3 } else { 2 });
        let rings = Self::rings(device, queue);
        // A broken chain costs the device until it is initialised again: most chains are whole, whatever is in them.
        let broken = self.chance.one_in(24);
        // Descriptors of a chain in flight are overwritten only to break it.
        let used = read(rings + 0x2002, 2) as u16;
        self.look(device, queue, used);
        let available = &mut self.available[device as usize][queue as usize];
        if !broken && (8..0x8000).contains(&available.wrapping_sub(used)) {
            return;
        }
        let slot = u64::from(*available);
        let jump = if broken && self.chance.one_in(9) { self.chance.next() as u16 } else { 1 };
        *available = available.wrapping_add(jump);
        let index = *available;
        let count = 1 + self.chance.below(6);
        let mut readable = self.chance.below(count + 1);
        // What the device fills, and what it has no answer to.
        if device == 2 || (queue == 0 && matches!(device, 1 | 3 | 7)) {
            readable = 0;
        } else if matches!(device, 1 | 3 | 7) {
            readable = count;
        }
        let next_free = &mut self.free[device as usize][queue as usize];
        let first = *next_free;
        *next_free = (first + count) % SIZE;
        let mut answer = 0;
        for at in 0..count {
            let mut address = BUFFERS + (self.chance.below(BUFFERS_LEN - (2 << 20)) & !63);
            let mut length = self.chance.of(&[1, 12, 16, 44, 80, 104, 512, 4096, 4096, 65536]) as u32;
            if at == 0 && readable > 0 {
                length = self.header(device, address);
            }
            // The status byte of a disk.
            if device == 5 && at + 1 == count && !self.chance.one_in(9) {
                length = 1;
            }
            let link = if at + 1 < count { 1 } else { 0 };
            let mut flags = link | if at >= readable { 2 } else { 0 };
            let mut next = (first + at + 1) % SIZE;
            if at + 1 == count && self.chance.one_in(9) {
                flags = 4;
                (address, length) = self.indirect(broken, at >= readable);
            }
            if broken && self.chance.one_in(2) {
                match self.chance.below(4) {
                    0 => address = self.chance.address(),
                    1 => length = self.chance.length(),
                    2 => flags ^= 1 << self.chance.below(3),
                    _ => next = self.chance.of(&[first, next, SIZE, 0xffff, 0]),
                }
            }
            self.descriptor(rings + 16 * ((first + at) % SIZE), address, length, flags, next as u16);
            // A disk's answer is its last byte, the others' is their first bytes.
            let is_answer = flags & 6 == 2 && if device == 5 { at + 1 == count } else { at == readable };
            if is_answer && !broken {
                answer = address;
                // What says that nothing was done: no length of a file's answer, no status of the others'.
                put32(answer, if device == 6 { 0 } else { !0 });
            }
        }
        self.answers[device as usize][queue as usize][first as usize % SIZE as usize] = answer;
        let head = if broken && self.chance.one_in(9) { self.chance.number() } else { first };
        put16(rings + 0x1004 + 2 * (slot % SIZE), head as u16);
        put16(rings + 0x1002, index);
        if !self.chance.one_in(8) {
            write(Self::bar(device) + 0x3000 + 4 * queue, 2, queue);
        }
    }

    fn descriptor(&mut self, at: u64, address: u64, length: u32, flags: u64, next: u16) {
        put64(at, address);
        put32(at + 8, length);
        put16(at + 12, flags as u16);
        put16(at + 14, next);
    }

    /// A table of descriptors elsewhere, and its length.
    fn indirect(&mut self, broken: bool, writable: bool) -> (u64, u32) {
        let table = BUFFERS + (self.chance.below(BUFFERS_LEN - (2 << 20)) & !15);
        let count = 1 + self.chance.below(8);
        for entry in 0..count {
            let mut address = BUFFERS + (self.chance.below(BUFFERS_LEN - (2 << 20)) & !63);
            let mut length = self.chance.below(8192) as u32;
            let mut next = entry + 1;
            let mut flags = u64::from(next < count) | if writable { 2 } else { 0 };
            if broken {
                (address, length) = (self.chance.address(), self.chance.length());
                flags ^= 1 << self.chance.below(3);
                next = self.chance.below(40);
            }
            self.descriptor(table + 16 * entry, address, length, flags, next as u16);
        }
        let length = if broken { 16 * self.chance.below(40) + self.chance.below(2) } else { 16 * count };
        (table, length as u32)
    }

    /// The beginning of a request as this device understands it; gives its length.
    fn header(&mut self, device: u64, at: u64) -> u32 {
        match device {
            5 => {
                put32(at, self.chance.of(&[0, 0, 1, 1, 4, 8, 11, 13, 14, 77]) as u32);
                put64(at + 8, if self.chance.one_in(5) { self.chance.number() } else { self.chance.below(1 << 15) });
                // Discard and zeroes: a segment lies behind it.
                put64(at + 16, self.chance.below(1 << 16));
                put32(at + 24, self.chance.length());
                put32(at + 28, self.chance.below(3) as u32);
                if self.chance.one_in(4) { 32 } else { 16 }
            }
            3 => self.packet(at),
            6 => self.request(at),
            4 => {
                put32(at, self.chance.below(3) as u32);
                4
            }
            _ => {
                for word in 0..16 {
                    put64(at + 8 * word, self.chance.next());
                }
                self.chance.length() % 4096
            }
        }
    }

    /// A vsock packet; half of the time an answer to one that came.
    fn packet(&mut self, at: u64) -> u32 {
        put64(at, 3);
        put64(at + 8, 2);
        put32(at + 16, self.chance.below(6) as u32);
        put32(at + 20, self.chance.of(&[1024, 1025, 1, 2, 0x8000_0000]) as u32);
        if self.chance.one_in(2) {
            // Whatever lies in a buffer of the receive queue has the host's port at 16 and ours at 20.
            let came = unsafe { (Self::rings(3, 0) as *const u64).add(2 * self.chance.below(SIZE) as usize).read() };
            if came > BUFFERS && came < BUFFERS + BUFFERS_LEN {
                put32(at + 16, read(came + 20, 4) as u32);
                put32(at + 20, read(came + 16, 4) as u32);
            }
        }
        put32(at + 24, if self.chance.one_in(3) { self.chance.length() } else { 0 });
        put16(at + 28, if self.chance.one_in(20) { self.chance.next() as u16 } else { 1 });
        put16(at + 30, self.chance.below(9) as u16);
        put32(at + 32, self.chance.below(4) as u32);
        put32(at + 36, self.chance.of(&[0, 4096, 1 << 18, 0xffff_ffff]) as u32);
        put32(at + 40, self.chance.number() as u32);
        if self.chance.one_in(12) {
            put64(at + 8 * self.chance.below(5), self.chance.number());
        }
        44 + if self.chance.one_in(3) { self.chance.below(4096) as u32 } else { 0 }
    }

    /// A FUSE request.
    fn request(&mut self, at: u64) -> u32 {
        for word in 5..20 {
            put64(at + 8 * word, if self.chance.one_in(3) { self.chance.number() } else { self.chance.below(9) });
        }
        let mut length = 40 + self.chance.of(&[0, 4, 8, 16, 24, 32, 40, 64, 88, 128]);
        let opcode = if self.chance.one_in(8) { 26 } else { self.chance.below(54) };
        if opcode == 26 {
            put32(at + 40, 7);
            put32(at + 44, 38);
            put64(at + 48, 1 << 20 | 0x7fff_ffff << 32);
            length = 104;
        }
        // A name, or two of them.
        let names: [&[u8]; 10] =
            [b"a\0", b"b\0", b"..\0", b".\0", b"a/b\0", b"\0", b"link\0", b"d\0", b"0\0a\0", b"user.x\0v"];
        let name = names[self.chance.below(10) as usize];
        if opcode != 26 && !self.chance.one_in(4) {
            name.iter().enumerate().for_each(|(i, byte)| put8(at + length + i as u64, *byte));
            length += name.len() as u64;
        }
        put32(at, if self.chance.one_in(20) { self.chance.number() as u32 } else { length as u32 });
        put32(at + 4, opcode as u32);
        put64(at + 8, self.chance.next());
        put64(at + 16, if self.chance.one_in(4) { self.chance.number() } else { self.chance.below(6) });
        put64(at + 24, 0);
        length as u32
    }

    fn configuration(&mut self) {
        let slot = if self.chance.one_in(4) { self.chance.below(32) } else { self.chance.below(DEVICES) };
        let offset = if self.chance.one_in(9) { self.chance.below(4096) } else { self.chance.below(256) };
        let (width, value) = (1 << self.chance.below(3), self.chance.number());
        match self.chance.below(4) {
            0 => write(ECAM + self.chance.below(256 << 20), width, value),
            1 => write(ECAM + (slot << 15) + offset, width, value),
            2 => {
                port_out(0xcf8, 4, (1 << 31 | slot << 11 | offset & 0xfc) as u32);
                port_out(0xcfc + (offset & 3) as u16, width, value as u32);
            }
            _ => {
                read(ECAM + (slot << 15) + offset, width);
            }
        }
    }

    fn ports(&mut self) {
        let known = [0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0x3f8, 0x3f9, 0x3fa];
        let port = if self.chance.one_in(3) { self.chance.below(0x1_0000) } else { self.chance.of(&known) };
        // What ends the machine is left to chance alone, and rare.
        if (0x600..0x603).contains(&port) && !self.chance.one_in(200) {
            return;
        }
        let (width, value) = (1 << self.chance.below(3), self.chance.number() as u32);
        if self.chance.one_in(2) {
            port_out(port as u16, width, value);
        } else {
            port_in(port as u16, width);
        }
    }

    /// Places that are no device's, or no virtio device's.
    fn elsewhere(&mut self) {
        let base = self.chance.of(&[0xfec0_0000, 0xfed0_0000, 0xfee0_0000, BARS, BARS + (20 << 20), 0xff00_0000]);
        let at = base + self.chance.below(0x4000);
        let width = self.chance.width();
        // The interrupt command register could send this processor an INIT, and the rest would be silence.
        if base == 0xfee0_0000 && at & 0xff0 == 0x300 && !self.chance.one_in(500) {
            return;
        }
        if self.chance.one_in(2) {
            write(at, width, self.chance.number());
        } else {
            read(at, width);
        }
    }

    fn step(&mut self) {
        let device = 1 + self.chance.below(DEVICES - 1);
        let offset = if self.chance.one_in(3) { self.chance.below(0x40) } else { self.chance.below(0x8000) };
        // One that gave up, or was switched off, is of no use until it is begun again.
        if self.chance.one_in(8) && read(Self::bar(device) + 0x14, 1) != 15 {
            return self.initialise(device);
        }
        match self.chance.below(256) {
            0 | 1 => self.initialise(device),
            2 => write(Self::bar(device) + 0x14, 1, 0),
            3..6 => write(Self::bar(device) + offset, self.chance.width(), self.chance.number()),
            6..9 => {
                read(Self::bar(device) + offset, self.chance.width());
            }
            9..11 => self.configuration(),
            11..13 => self.ports(),
            13 => self.elsewhere(),
            14 => {
                let rings = Self::rings(device, self.chance.below(QUEUES));
                put64(rings + (self.chance.below(0x3000) & !7), self.chance.number());
            }
            15 => write(Self::bar(device) + 0x3000 + self.chance.below(64), 2, self.chance.number()),
            _ => self.chain(device),
        }
    }
}

/// What a further processor does: it changes what lies in the rings and in requests that are under way, rings bells and reads
/// registers, while the first one drives the devices.
#[unsafe(no_mangle)]
extern "C" fn second() -> ! {
    let mut chance = Chance((word(b"eed=") + 1).wrapping_mul(0xd134_2543_de82_ef95) | 1);
    loop {
        put64(ROUNDS, read(ROUNDS, 8) + 1);
        let device = 1 + chance.below(DEVICES - 1);
        let queue = chance.below(QUEUES);
        let (bar, rings) = (Evil::bar(device), Evil::rings(device, queue));
        match chance.below(64) {
            0 => put64(rings + (chance.below(0x3000) & !7), chance.number()),
            1 if chance.one_in(200) => write(bar + 0x14, 1, 0),
            1 => write(bar + chance.below(0x40), chance.width(), chance.number()),
            2..8 => {
                let at = unsafe { (rings as *const u64).add(2 * chance.below(SIZE) as usize).read() };
                if (BUFFERS..BUFFERS + BUFFERS_LEN - 4096).contains(&at) {
                    put32(at + (chance.below(128) & !3), chance.number() as u32);
                }
            }
            8..24 => {
                read(bar + chance.below(0x40), chance.width());
            }
            24..40 => write(bar + 0x3000 + 4 * queue, 2, queue),
            _ => (0..64).for_each(|_| unsafe { asm!("pause") }),
        }
    }
}

/// Wakes the second processor: by the mailbox of a machine whose firmware did the rest, or as a PC's is woken.
fn wake(how: u64) {
    unsafe extern "C" {
        fn second_start();
    }
    let entry = second_start as *const () as u64;
    if how == 1 {
        write(MAILBOX + 4, 4, 1);
        write(MAILBOX + 8, 8, entry);
        write(MAILBOX, 2, 1);
        return;
    }
    let mut at = TRAMPOLINE;
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            put8(at, *byte);
            at += 1;
        }
    };
    put(&[0xfa, 0x31, 0xc0, 0x8e, 0xd8]); // cli; xor ax, ax; mov ds, ax
    put(&[0x0f, 0x01, 0x16, 0xf0, 0x8f]); // lgdt [0x8ff0]
    put(&[0x66, 0xb8, 0x20, 0, 0, 0, 0x0f, 0x22, 0xe0]); // cr4 = PAE
    put(&[0x66, 0xb8, 0, 0x10, 0, 0, 0x0f, 0x22, 0xd8]); // cr3 = the boot's page tables
    put(&[0x66, 0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0, 9, 0, 0, 0x0f, 0x30]); // EFER |= LME, NXE
    put(&[0x66, 0xb8, 0x33, 0, 5, 0x80, 0x0f, 0x22, 0xc0]); // cr0 = PG, AM, WP, NE, ET, MP, PE
    put(&[0x66, 0xea]); // jmp 0x10:entry
    put(&(entry as u32).to_le_bytes());
    put(&[0x10, 0]);
    put16(TRAMPOLINE + 0xff0, 5 * 8 - 1); // the boot's descriptor table
    put32(TRAMPOLINE + 0xff2, 0x7000);
    write(LOCAL_APIC + 0xf0, 4, 0x1ff); // switched on
    for command in [0x4500, 0x4600 | TRAMPOLINE >> 12, 0x4600 | TRAMPOLINE >> 12] {
        write(LOCAL_APIC + 0x310, 4, 1 << 24);
        write(LOCAL_APIC + 0x300, 4, command);
        (0..100_000).for_each(|_| unsafe { asm!("pause") });
    }
}

/// An interrupt that cannot be masked is taken and forgotten; anything else than that is this guest's own mistake and ends it.
fn accept_nmi() {
    unsafe extern "C" {
        fn on_nmi();
    }
    let (at, table) = (on_nmi as *const () as u64, 0x1f0_0000);
    unsafe { memset(table as *mut u8, 0, 4096) };
    put64(table + 32, (at & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48);
    put64(table + 40, at >> 32);
    put16(table - 16, 4095);
    put64(table - 14, table);
    unsafe { asm!("lidt [{}]", in(reg) table - 16) };
}

/// The number of the command line's word that ends with these four letters; 0 without it.
fn word(name: &[u8; 4]) -> u64 {
    let mut number = 0u64;
    let mut at = 0x2_0000;
    while read(at, 4) != u32::from_le_bytes(*name).into() {
        if at >= 0x2_0800 {
            return 0;
        }
        at += 1;
    }
    at += 4;
    loop {
        match read(at, 1) {
            digit @ 0x30..=0x39 => number = number.wrapping_mul(10).wrapping_add(digit - 0x30),
            _ => return number,
        }
        at += 1;
    }
}

#[unsafe(no_mangle)]
extern "C" fn main() -> ! {
    accept_nmi();
    let seed = word(b"eed=");
    say_number(b"seed ", seed);
    let chance = Chance((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut evil = Evil {
        chance,
        available: Default::default(),
        free: Default::default(),
        seen: Default::default(),
        answers: [[[0; SIZE as usize]; QUEUES as usize]; DEVICES as usize],
        done: Default::default(),
        well: Default::default(),
    };
    (1..DEVICES).for_each(|device| evil.initialise(device));
    match word(b"ake=") {
        0 => {}
        how => wake(how),
    }
    let mut steps = 0;
    loop {
        evil.step();
        steps += 1;
        if steps % 4096 == 0 || u64::is_power_of_two(steps) {
            say_number(b"steps ", steps);
            say_number(b"rounds ", read(ROUNDS, 8));
            for device in 1..DEVICES {
                let digit = b'0' + device as u8;
                say_number(&[b'd', b'o', b'n', b'e', digit, b' '], evil.done[device as usize]);
                say_number(&[b'w', b'e', b'l', b'l', digit, b' '], evil.well[device as usize]);
            }
        }
    }
}
