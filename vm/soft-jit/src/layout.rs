//! Where translated code finds things: offsets from the `gs` base, which is the address of the vCPU's [`Cpu`].
//!
//! The translator's own part is the [`JitArea`](soft_cpu::cpu::JitArea) at the end of `Cpu`: a head of scratch slots and
//! pointers, then the software TLBs and the jump caches.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

use soft_cpu::Cpu;
use soft_cpu::cpu::{JIT_AREA_BYTES, Segment};

/// One software TLB entry. A tag is the linear address of a page; see [`empty_tag`] for entries that match nothing.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// Matches reads.
    pub(crate) read: u64,
    /// Matches writes (and read-modify-writes).
    pub(crate) write: u64,
    /// Host address of the page.
    pub(crate) host: u64,
    /// `host - linear page`, for the form of the check that keeps flags.
    pub(crate) delta: u64,
}

/// One jump cache entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct JumpEntry {
    /// Guest linear address of the block.
    pub(crate) rip: u64,
    /// Host address of its translation.
    pub(crate) host: u64,
}

/// The first page of the area.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Head {
    /// Linear address of the page that CPL 3 code is running from.
    pub(crate) pc_base: u64,
    /// Keeps rcx during a check that preserves flags.
    pub(crate) spill_rcx: u64,
    /// A value held across a check, or a jump target held across a push.
    pub(crate) temp: u64,
    /// Rust's stack pointer while translated code runs.
    pub(crate) rust_rsp: u64,
    /// Top of the private host stack.
    pub(crate) host_stack: u64,
    /// Host address to enter.
    pub(crate) entry: u64,
    /// Why translated code was left; one of the `EXIT_` values.
    pub(crate) exit_code: u64,
    /// Host return address of the exit site, or for [`EXIT_BRANCH`] the guest address of the instruction.
    pub(crate) exit_site: u64,
    /// `extern "sysv64" fn(*mut Cpu, linear, kind) -> u64`: the refill.
    pub(crate) refill: u64,
    /// Selects the index bits of the CPL 3, CPL 0 and CPL 0 with AC tables.
    pub(crate) index_mask: [u64; 3],
    /// The same for the jump caches.
    pub(crate) jump_mask: [u64; 3],
    /// `!0xfff`.
    pub(crate) page_mask: u64,
    /// 63 and 31, for bit strings.
    pub(crate) bit_mask: [u64; 2],
    /// MXCSR that Rust code runs with.
    pub(crate) host_mxcsr: u64,
    /// What the running thread put here for the refill: a `*const RunContext`.
    pub(crate) context: u64,
    /// The address of the Cpu itself.
    pub(crate) this: u64,
    /// 1 while the thread may be in translated code; see also [`LEAVING`].
    pub(crate) in_guest: AtomicU32,
    pub(crate) pad: u32,
    /// Registers saved by the refill thunk.
    pub(crate) saved: [u64; 16],
    /// The guest's vector registers while Rust runs.
    pub(crate) saved_ymm: [[u64; 4]; 16],
    /// 1 while the guest's x87 state is in the host's registers and its vector state in `saved_ymm` and `guest_mxcsr`; 0
    /// when all of it is in `cpu.xsave`.
    pub(crate) vectors_live: u64,
    /// The guest's MXCSR while Rust runs.
    pub(crate) guest_mxcsr: u64,
    /// The lowest byte counts PAUSE in steps of 4; where it wraps the interpreter gets one, which yields the host's core.
    pub(crate) pauses: u64,
    /// Keeps status flags across tests of an instruction that does not write them.
    pub(crate) flags: u64,
    /// Keeps what the probe of a jump cache has to pass on.
    pub(crate) by: u64,
}

/// Translated code reached a site that wants Rust; `exit_site` tells which.
pub(crate) const EXIT_SITE: u64 = 1;
/// A jump missed the jump cache (or saw a kick); `cpu.rip` is the target.
pub(crate) const EXIT_JUMP: u64 = 2;
/// The same, and `exit_site` tells which instruction jumped: its linear address, at CPL 3 its offset in the page.
pub(crate) const EXIT_BRANCH: u64 = 6;
/// The instruction at `cpu.rip` is for the interpreter and does not touch vector state.
pub(crate) const EXIT_STEP: u64 = 4;
/// The same, and it may.
pub(crate) const EXIT_STEP_VECTOR: u64 = 5;
/// A host signal interrupted translated code; `exit_site` is the host address.
pub(crate) const EXIT_SIGNAL: u64 = 3;

/// Value of [`Head::in_guest`]: out of translated code, but the exit site is still to be looked up.
pub(crate) const LEAVING: u32 = 2;

/// Which set of tables code of a privilege uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// CPL 3.
    User = 0,
    /// CPL 0, EFLAGS.AC clear.
    Kernel = 1,
    /// CPL 0, EFLAGS.AC set.
    KernelAc = 2,
}

impl Space {
    pub(crate) const ALL: [Self; 3] = [Self::User, Self::Kernel, Self::KernelAc];

    /// Entries in the software TLB.
    pub(crate) const fn tlb_len(self) -> usize {
        [1024, 4096, 256][self as usize]
    }

    /// Entries in the jump cache.
    pub(crate) const fn jump_len(self) -> usize {
        [4096, 32768, 256][self as usize]
    }

    /// Offset of the TLB from the start of the JIT area.
    pub(crate) const fn tlb_area(self) -> usize {
        let entry = size_of::<TlbEntry>();
        HEAD_BYTES + [0, 1024 * entry, (1024 + 4096) * entry][self as usize]
    }

    /// Offset of the jump cache from the start of the JIT area.
    pub(crate) const fn jump_area(self) -> usize {
        let entry = size_of::<JumpEntry>();
        Self::KernelAc.tlb_area()
            + Self::KernelAc.tlb_len() * size_of::<TlbEntry>()
            + [0, 4096 * entry, (4096 + 32768) * entry][self as usize]
    }

    /// `gs` offset of the TLB.
    pub(crate) const fn tlb(self) -> i32 {
        (JIT + self.tlb_area()) as i32
    }

    /// `gs` offset of the jump cache.
    pub(crate) const fn jumps(self) -> i32 {
        (JIT + self.jump_area()) as i32
    }
}

const HEAD_BYTES: usize = 4096;
const JIT: usize = offset_of!(Cpu, jit);
const _: () = assert!(size_of::<Head>() <= HEAD_BYTES);
const _: () = assert!(Space::KernelAc.jump_area() + 256 * size_of::<JumpEntry>() <= JIT_AREA_BYTES);
const _: () = assert!(size_of::<TlbEntry>() == 32 && size_of::<JumpEntry>() == 16);

/// Offsets inside a [`TlbEntry`].
pub(crate) const TAG_READ: i32 = offset_of!(TlbEntry, read) as i32;
pub(crate) const TAG_WRITE: i32 = offset_of!(TlbEntry, write) as i32;
pub(crate) const TLB_HOST: i32 = offset_of!(TlbEntry, host) as i32;
pub(crate) const TLB_DELTA: i32 = offset_of!(TlbEntry, delta) as i32;
/// Offset of [`JumpEntry::host`].
pub(crate) const JUMP_HOST: i32 = offset_of!(JumpEntry, host) as i32;

/// `gs` offset of a guest register's slot.
pub(crate) const fn gpr(register: u8) -> i32 {
    (offset_of!(Cpu, gpr) + 8 * register as usize) as i32
}

pub(crate) const RIP: i32 = offset_of!(Cpu, rip) as i32;
pub(crate) const RFLAGS: i32 = offset_of!(Cpu, rflags) as i32;
pub(crate) const KICK: i32 = offset_of!(Cpu, kick) as i32;
pub(crate) const IRQ_WINDOW: i32 = offset_of!(Cpu, irq_window) as i32;
pub(crate) const KERNEL_GS_BASE: i32 = offset_of!(Cpu, kernel_gs_base) as i32;
pub(crate) const TSC_OFFSET: i32 = offset_of!(Cpu, tsc_offset) as i32;
pub(crate) const TSC_AUX: i32 = offset_of!(Cpu, tsc_aux) as i32;
pub(crate) const XSAVE: i32 = offset_of!(Cpu, xsave) as i32;

/// `gs` offset of a control register that is kept in the state block.
pub(crate) const fn control(number: u32) -> Option<i32> {
    match number {
        0 => Some(offset_of!(Cpu, cr0) as i32),
        2 => Some(offset_of!(Cpu, cr2) as i32),
        3 => Some(offset_of!(Cpu, cr3) as i32),
        4 => Some(offset_of!(Cpu, cr4) as i32),
        _ => None,
    }
}

/// `gs` offset of a segment's base.
pub(crate) const fn seg_base(segment: usize) -> i32 {
    (offset_of!(Cpu, seg) + segment * size_of::<Segment>() + offset_of!(Segment, base)) as i32
}

/// `gs` offset of a segment's selector.
pub(crate) const fn selector(segment: usize) -> i32 {
    (offset_of!(Cpu, seg) + segment * size_of::<Segment>() + offset_of!(Segment, selector)) as i32
}

/// `gs` offset of a field of [`Head`].
pub(crate) const fn head(offset: usize) -> i32 {
    (JIT + offset) as i32
}

macro_rules! head_slots {
    ($($name:ident = $field:ident),* $(,)?) => {
        $(pub(crate) const $name: i32 = head(offset_of!(Head, $field));)*
    };
}
head_slots!(
    PC_BASE = pc_base,
    SPILL_RCX = spill_rcx,
    TEMP = temp,
    RUST_RSP = rust_rsp,
    HOST_STACK = host_stack,
    ENTRY = entry,
    EXIT_CODE = exit_code,
    EXIT_SITE_SLOT = exit_site,
    REFILL = refill,
    INDEX_MASK = index_mask,
    JUMP_MASK = jump_mask,
    PAGE_MASK = page_mask,
    BIT_MASK = bit_mask,
    HOST_MXCSR = host_mxcsr,
    THIS = this,
    SAVED = saved,
    SAVED_YMM = saved_ymm,
    VECTORS_LIVE = vectors_live,
    GUEST_MXCSR = guest_mxcsr,
    PAUSES = pauses,
    FLAGS = flags,
    BY = by,
);

/// The tag of entry `index` that no access can match: an access to the page it names looks into another entry, and so does
/// one that ends in that page (which is why bit 1 of the index is flipped, not bit 0).
pub(crate) const fn empty_tag(index: usize) -> u64 {
    ((index ^ 2) as u64) << 12
}

/// Slots that are looked at for one address: its own, where blocks look in line, and the others of the same 64 bytes.
pub(crate) const JUMP_WAYS: usize = 4;

/// The jump cache slot of a linear address.
pub(crate) const fn jump_index(space: Space, rip: u64) -> usize {
    (rip.wrapping_add(rip >> 8) as usize) & (space.jump_len() - 1)
}

/// The key of slot `index` that no jump can match: its own slot and the ones around it are others.
pub(crate) const fn empty_key(index: usize) -> u64 {
    if index < JUMP_WAYS { JUMP_WAYS as u64 } else { 0 }
}

/// The head of a CPU's area.
pub(crate) fn head_of(cpu: *mut Cpu) -> *mut Head {
    // SAFETY: `cpu` points to a live Cpu; only the address of its last field is taken.
    unsafe { (&raw mut (*cpu).jit).cast() }
}

/// The TLB of a space.
pub(crate) fn tlb_of(cpu: *mut Cpu, space: Space) -> *mut TlbEntry {
    // SAFETY: the offset lies inside the area (asserted above).
    unsafe { (&raw mut (*cpu).jit).cast::<u8>().add(space.tlb_area()).cast() }
}

/// The jump cache of a space.
pub(crate) fn jumps_of(cpu: *mut Cpu, space: Space) -> *mut JumpEntry {
    // SAFETY: the offset lies inside the area (asserted above).
    unsafe { (&raw mut (*cpu).jit).cast::<u8>().add(space.jump_area()).cast() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_entries_match_nothing() {
        for space in Space::ALL {
            let len = space.tlb_len() as u64;
            for index in 0..len {
                let tag_page = empty_tag(index as usize) >> 12;
                // Pages that look into this entry, and the page after each of them, differ from the tag's page modulo
                // the table size, hence altogether.
                assert_ne!(tag_page % len, index);
                assert_ne!(tag_page % len, (index + 1) % len);
            }
            for index in 0..space.jump_len() {
                assert_ne!(jump_index(space, empty_key(index)) / JUMP_WAYS, index / JUMP_WAYS);
            }
        }
    }
}
