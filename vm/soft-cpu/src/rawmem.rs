//! Single loads, stores and locked operations on host addresses of guest memory. Assembly, because other vCPUs change the
//! same bytes at any time and x86 gives each of these instructions a meaning at any alignment.

use std::arch::asm;

/// Loads `size` (1, 2, 4, 8) bytes.
///
/// # Safety
/// `[ptr, ptr + size)` must be mapped readable.
#[inline(always)]
pub(crate) unsafe fn load(ptr: *const u8, size: u8) -> u64 {
    let value: u64;
    // SAFETY: the caller says the bytes are mapped; the instructions only read them.
    unsafe {
        match size {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) ptr, options(nostack, preserves_flags, readonly))
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) ptr, options(nostack, preserves_flags, readonly))
            }
            4 => {
                asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) ptr, options(nostack, preserves_flags, readonly))
            }
            _ => {
                asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) ptr, options(nostack, preserves_flags, readonly))
            }
        }
    }
    value
}

/// Stores the low `size` (1, 2, 4, 8) bytes of `value`.
///
/// # Safety
/// `[ptr, ptr + size)` must be mapped writable guest memory.
#[inline(always)]
pub(crate) unsafe fn store(ptr: *mut u8, value: u64, size: u8) {
    // SAFETY: the caller says the bytes are mapped; the instructions only write them.
    unsafe {
        match size {
            1 => {
                asm!("mov byte ptr [{1}], {0}", in(reg_byte) value as u8, in(reg) ptr, options(nostack, preserves_flags))
            }
            2 => {
                asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) ptr, options(nostack, preserves_flags))
            }
            4 => {
                asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) ptr, options(nostack, preserves_flags))
            }
            _ => {
                asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) ptr, options(nostack, preserves_flags))
            }
        }
    }
}

/// `lock cmpxchg`: returns what was there; equal to `old` when `new` was stored.
///
/// # Safety
/// `[ptr, ptr + size)` must be mapped writable guest memory.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(ptr: *mut u8, old: u64, new: u64, size: u8) -> u64 {
    let mut value = old;
    // SAFETY: the caller says the bytes are mapped; rax is declared, flags are clobbered by default.
    unsafe {
        match size {
            1 => {
                asm!("lock cmpxchg byte ptr [{1}], {0}", in(reg_byte) new as u8, in(reg) ptr, inout("rax") value, options(nostack))
            }
            2 => {
                asm!("lock cmpxchg word ptr [{1}], {0:x}", in(reg) new, in(reg) ptr, inout("rax") value, options(nostack))
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{1}], {0:e}", in(reg) new, in(reg) ptr, inout("rax") value, options(nostack))
            }
            _ => {
                asm!("lock cmpxchg qword ptr [{1}], {0}", in(reg) new, in(reg) ptr, inout("rax") value, options(nostack))
            }
        }
    }
    value & crate::alu::mask(size)
}

/// `lock cmpxchg16b` on (low, high) pairs; returns what was there.
///
/// # Safety
/// `[ptr, ptr + 16)` must be mapped writable guest memory and 16-byte aligned; the host must have CX16 (x86-64-v2).
pub(crate) unsafe fn compare_exchange16(ptr: *mut u8, old: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    let (mut low, mut high) = old;
    // SAFETY: as the caller says; rbx is reserved by the compiler and is swapped in and out.
    unsafe {
        asm!(
            "xchg {b}, rbx",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {b}",
            b = inout(reg) new.0 => _,
            p = in(reg) ptr,
            in("rcx") new.1,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    (low, high)
}
