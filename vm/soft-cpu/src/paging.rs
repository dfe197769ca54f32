//! The page walk (Intel SDM 3A chapter 4, 4-level paging) on guest memory shared with other vCPUs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::{Cpu, cr, flag};
use crate::env::Env;

/// Guest-physical address bits.
pub const GPA_BITS: u32 = 46;
const ADDRESS: u64 = ((1 << GPA_BITS) - 1) & !0xfff;
const RESERVED: u64 = ((1 << 52) - 1) & !((1 << GPA_BITS) - 1);

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Writes (a read-modify-write is a write).
    pub write: bool,
    /// Fetches code.
    pub exec: bool,
    /// Made at CPL 3 and not implicit.
    pub user: bool,
    /// A supervisor access that EFLAGS.AC does not exempt from SMAP (descriptor tables, TSS, stack of a delivery).
    pub implicit: bool,
}

impl Access {
    /// An explicit data read at the CPU's privilege.
    pub fn read(cpu: &Cpu) -> Self {
        Self { write: false, exec: false, user: cpu.cpl == 3, implicit: false }
    }
    /// An explicit data write at the CPU's privilege.
    pub fn write(cpu: &Cpu) -> Self {
        Self { write: true, ..Self::read(cpu) }
    }
    /// A code fetch at the CPU's privilege.
    pub fn exec(cpu: &Cpu) -> Self {
        Self { exec: true, ..Self::read(cpu) }
    }
    /// An implicit supervisor access.
    pub const fn implicit(write: bool) -> Self {
        Self { write, exec: false, user: false, implicit: true }
    }
}

/// A translation of one 4 KiB page (a piece of a larger one when `page_size` says so).
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Guest-physical address of the 4 KiB page.
    pub gpa: u64,
    /// Host address of the 4 KiB page; null for MMIO and holes.
    pub host: *mut u8,
    /// Writes by this access's privilege are allowed by the tables (CR0.WP included) and D is set: a write needs no new
    /// walk. Says nothing of [`crate::env::page_flag`]s or read-only RAM.
    pub writable: bool,
    /// Guest writes reach the memory at `host` (false for MMIO and read-only RAM).
    pub ram_writable: bool,
    /// U is set at every level.
    pub user: bool,
    /// A global translation.
    pub global: bool,
    /// Bytes in the page that maps it: 4 KiB, 2 MiB or 1 GiB.
    pub page_size: u64,
    /// Code may not be fetched from it.
    pub nx: bool,
}

/// A page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    /// The error code (Intel SDM 3A §4.7).
    pub error_code: u32,
}

/// Whether a linear address is canonical (48 bits).
#[inline]
pub const fn is_canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

/// An entry, and whether it can be written.
fn entry_at<'a>(env: &Env<'a>, gpa: u64) -> Option<(&'a AtomicU64, bool)> {
    let span = env.ram.lookup(gpa & !7)?;
    if span.len < 8 {
        return None;
    }
    // SAFETY: the span holds 8 bytes at an 8-aligned address (ranges are page-aligned) and lives as long as the map.
    Some((unsafe { AtomicU64::from_ptr(span.host.cast()) }, span.writable))
}

/// Sets `bits` in the entry if it still reads `old`; false = it changed under us, walk again. Tables in read-only memory
/// stay as they are, as in a ROM.
fn set_bits(env: &Env<'_>, gpa: u64, (entry, writable): (&AtomicU64, bool), old: u64, bits: u64) -> bool {
    if old & bits == bits || !writable {
        return true;
    }
    let done = entry.compare_exchange(old, old | bits, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if done && env.ram.page_flags(gpa).is_some_and(|flags| flags.load(Ordering::SeqCst) != 0) {
        env.stored(gpa & !7, 8);
    }
    done
}

/// Walks the guest's page tables for one access, sets A and D, and says what is there. `linear` must be canonical; the
/// caller checks (that fault is #GP or #SS, not #PF). In a dry run, bits for data are not set and the entries are those
/// that the dry run sees.
pub fn translate(cpu: &Cpu, env: &Env<'_>, linear: u64, access: Access) -> Result<Page, PageFault> {
    if cpu.cr0 & cr::CR0_PG == 0 {
        return Ok(finish(env, linear & !0xfff, W | U, true, 1 << 12));
    }
    loop {
        if let Some(result) = walk(cpu, env, linear, access) {
            return result;
        }
    }
}

fn finish(env: &Env<'_>, gpa: u64, rights: u64, writable: bool, page_size: u64) -> Page {
    let span = env.ram.lookup(gpa);
    Page {
        gpa,
        host: span.map_or(std::ptr::null_mut(), |span| span.host),
        writable,
        ram_writable: span.is_some_and(|span| span.writable),
        user: rights & U != 0,
        global: rights & G != 0,
        page_size,
        nx: rights & NX != 0,
    }
}

/// One walk; `None` when an entry changed while its A or D bit was to be set.
fn walk(cpu: &Cpu, env: &Env<'_>, linear: u64, access: Access) -> Option<Result<Page, PageFault>> {
    let nxe = cpu.efer & cr::EFER_NXE != 0;
    let fault = |bits: u32| {
        let fetch = access.exec && (nxe || cpu.cr4 & cr::CR4_SMEP != 0);
        let code = bits | u32::from(access.write) << 1 | u32::from(access.user) << 2 | u32::from(fetch) << 4;
        Some(Err(PageFault { error_code: code }))
    };
    let dry = if access.exec { None } else { cpu.interp.overlay.as_deref() };
    let set = |at, entry, value, bits| match dry {
        None => set_bits(env, at, entry, value, bits),
        Some(overlay) => {
            if value & bits != bits {
                overlay.note_entry(at);
            }
            true
        }
    };
    let mut table = cpu.cr3 & ADDRESS;
    let mut rights = W | U;
    for level in (0..4u32).rev() {
        let shift = 12 + 9 * level;
        let at = table + ((linear >> shift) & 0x1ff) * 8;
        // A table outside RAM reads as all ones on hardware; that is a reserved-bit fault here.
        let Some(entry) = entry_at(env, at) else { return fault(1 | 8) };
        let value = entry.0.load(Ordering::SeqCst);
        let value = dry.map_or(value, |overlay| overlay.peek(at, value));
        if value & P == 0 {
            return fault(0);
        }
        let leaf = level == 0 || (value & PS != 0 && level < 3);
        let mut reserved = RESERVED;
        if !nxe {
            reserved |= NX;
        }
        if level == 3 {
            reserved |= PS;
        }
        if leaf && level > 0 {
            reserved |= ((1 << shift) - 1) & !0x1fff;
        }
        if value & reserved != 0 {
            return fault(1 | 8);
        }
        rights = (rights & value & (W | U)) | ((rights | value) & NX);
        if !leaf {
            if !set(at, entry, value, A) {
                return None;
            }
            table = value & ADDRESS;
            continue;
        }
        if cpu.cr4 & cr::CR4_PGE != 0 {
            rights |= value & G;
        }
        if !allowed(cpu, rights, access) {
            return fault(1);
        }
        let bits = if access.write { A | D } else { A };
        if !set(at, entry, value, bits) {
            return None;
        }
        let size = 1u64 << shift;
        let gpa = (value & ADDRESS & !(size - 1)) | (linear & (size - 1) & !0xfff);
        let dirty = (value | bits) & D != 0;
        let may_write = allowed(cpu, rights, Access { write: true, exec: false, ..access });
        return Some(Ok(finish(env, gpa, rights, dirty && may_write, size)));
    }
    None
}

/// Whether the combined rights of all levels permit the access (Intel SDM 3A §4.6.1).
fn allowed(cpu: &Cpu, rights: u64, access: Access) -> bool {
    let user_page = rights & U != 0;
    if access.user && !user_page {
        return false;
    }
    if access.exec {
        return rights & NX == 0 && (access.user || !user_page || cpu.cr4 & cr::CR4_SMEP == 0);
    }
    if !access.user
        && user_page
        && cpu.cr4 & cr::CR4_SMAP != 0
        && (access.implicit || cpu.rflags & flag::AC == 0)
    {
        return false;
    }
    !access.write || rights & W != 0 || (!access.user && cpu.cr0 & cr::CR0_WP == 0)
}
