//! The software TLB: filling and clearing. [`refill`] is the one place where the address of guest memory gets into a
//! table that translated code uses.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use soft_cpu::cpu::flag;
use soft_cpu::paging::is_canonical;
use soft_cpu::{Access, CodeWatch, Cpu, Env, Page, RamMap, TlbEvent, translate};

use crate::layout::{Space, empty_tag, head_of, tlb_of};
use crate::lower::KIND_WRITE;
use crate::shared::{QuickHash, clear_jumps, forget_jump};

/// Which vCPUs may hold a write tag for each page of RAM.
#[derive(Debug)]
pub(crate) struct Writers {
    ranges: Vec<(u64, Vec<AtomicU8>)>,
}

impl Writers {
    pub(crate) fn new(ram: &RamMap) -> Self {
        let ranges = ram
            .ranges()
            .map(|(gpa, len)| (gpa, (0..len.div_ceil(4096)).map(|_| AtomicU8::new(0)).collect()))
            .collect();
        Self { ranges }
    }

    /// The vCPUs (bit 7 stands for all from 7 on) that may hold a write tag for the page.
    pub(crate) fn page(&self, gpa: u64) -> Option<&AtomicU8> {
        self.ranges.iter().find_map(|(start, pages)| pages.get((gpa.checked_sub(*start)? / 4096) as usize))
    }
}

type QuickSet = std::collections::HashSet<u64, std::hash::BuildHasherDefault<QuickHash>>;

/// What a vCPU remembers about its tables.
#[derive(Debug, Default)]
pub(crate) struct TlbState {
    /// The CPL 3 table or the AC table was filled since it was cleared.
    pub(crate) user_used: bool,
    /// What of the CPL 0 tables does not come from global pages.
    private: Private,
    /// 1 GiB regions of which pieces of large pages were entered, as data or as code.
    large: Vec<u64>,
    /// Linear pages from which code was entered in a jump cache: of CPL 3, of CPL 0.
    code_pages: [QuickSet; 2],
    pub(crate) refills: u64,
    pub(crate) flushes: u64,
    pub(crate) full_flushes: u64,
    /// What instructions did to translations, by [`EVENTS`].
    pub(crate) events: [u64; EVENTS.len()],
}

/// Places of translations of CPL 0 that a change of address space makes stale. A kernel has few of them.
#[derive(Debug, Default)]
struct Private {
    /// In the TLB.
    data: Vec<u16>,
    /// Addresses in the jump caches.
    code: Vec<u64>,
    /// There were too many to keep count.
    all: bool,
}

/// Places of each kind above which a change of address space drops everything.
const MAX_PRIVATE: usize = 256;

impl Private {
    fn note_data(&mut self, index: usize) {
        self.all |= self.data.len() >= MAX_PRIVATE;
        if !self.all {
            self.data.push(index as u16);
        }
    }

    fn note_code(&mut self, rip: u64) {
        self.all |= self.code.len() >= MAX_PRIVATE;
        if !self.all {
            self.code.push(rip);
        }
    }
}

/// Names of [`TlbState::events`].
pub(crate) const EVENTS: [&str; 6] = [
    "flushes of everything asked for",
    "flushes of all PCIDs asked for",
    "flushes of one PCID asked for",
    "CR3 loads with a flush",
    "CR3 loads without one",
    "flushes of one page asked for",
];

/// Regions, and pages of code for each privilege, above which everything is dropped: the guest chooses the addresses.
const MAX_LARGE: usize = 64;
const MAX_CODE_PAGES: usize = 1 << 15;

/// Keeps the stores of a page walk to pages with code (gpa, bytes) where reporting them at once could wait for ever: with
/// the translator's lock held, or while this vCPU counts as being in translated code.
#[derive(Debug, Default)]
pub(crate) struct StoreQueue(Mutex<Vec<(u64, u64)>>);

impl StoreQueue {
    pub(crate) fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl CodeWatch for StoreQueue {
    fn stored(&self, gpa: u64, len: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((gpa, len));
    }
}

/// What the refill thunk's Rust side gets at.
pub(crate) struct RunContext<'a> {
    pub(crate) env: Env<'a>,
    pub(crate) writers: &'a Writers,
    pub(crate) tlb: TlbState,
    pub(crate) bit: u8,
    /// Stores that refills made to pages with code; the run loop reports them.
    pub(crate) pending: Vec<(u64, u64)>,
}

/// Called by the refill thunk: 1 = the entry is filled, try again; 0 = this access is for the interpreter.
pub(crate) extern "sysv64" fn refill_from_thunk(linear: u64, kind: u64, cpu: *mut Cpu) -> u64 {
    // SAFETY: the thunk runs on a vCPU thread whose run loop put its live context into the head; the run loop is
    // suspended in the call that entered translated code and holds no reference to it.
    let context = unsafe {
        let context = (*head_of(cpu)).context as *mut RunContext<'_>;
        if context.is_null() {
            return 0;
        }
        &mut *context
    };
    u64::from(refill(cpu, context, linear, kind as u32))
}

/// Enters the translation that an access of the current privilege needs. `kind` is its size and [`KIND_WRITE`].
pub(crate) fn refill(cpu: *mut Cpu, context: &mut RunContext<'_>, linear: u64, kind: u32) -> bool {
    let size = u64::from(kind & 0xff);
    let write = kind & KIND_WRITE != 0;
    if (linear & 0xfff) + size > 4096 || !is_canonical(linear) {
        return false;
    }
    // SAFETY: the vCPU's own thread; nothing else borrows the Cpu during the call.
    let state = unsafe { &*cpu };
    let space = space_of(state);
    let access = if write { Access::write(state) } else { Access::read(state) };
    let queue = StoreQueue::default();
    let page = translate(state, &Env { watch: &queue, ..context.env }, linear, access);
    let stores = queue.take();
    if !stores.is_empty() {
        context.pending.extend(stores);
        state.kick.store(1, Ordering::SeqCst);
    }
    let Ok(page) = page else { return false };
    if page.host.is_null() {
        return false;
    }
    let mut writable = page.writable && page.ram_writable;
    if writable {
        writable = claim_write(context, page.gpa);
    }
    if write && !writable {
        return false;
    }
    note_large(cpu, &mut context.tlb, linear, &page);
    let index = (linear >> 12) as usize & (space.tlb_len() - 1);
    match space {
        Space::Kernel if !page.global => context.tlb.private.note_data(index),
        Space::Kernel => {}
        Space::User | Space::KernelAc => context.tlb.user_used = true,
    }
    context.tlb.refills += 1;
    let tag = linear & !0xfff;
    let host = page.host as u64;
    // SAFETY: index is below the table's length; the table belongs to this thread's vCPU.
    unsafe {
        let entry = tlb_of(cpu, space).add(index);
        set(&raw mut (*entry).read, tag);
        set(&raw mut (*entry).write, if writable { tag } else { empty_tag(index) });
        set(&raw mut (*entry).host, host);
        set(&raw mut (*entry).delta, host.wrapping_sub(tag));
    }
    true
}

/// Writes a field of an entry, which another thread may look at or clear while this one is out of translated code.
///
/// # Safety
/// The field is one of a live vCPU's table, and no translated code of that vCPU runs meanwhile.
unsafe fn set(field: *mut u64, value: u64) {
    // SAFETY: by the contract the field is valid and aligned, and nothing but atomics like this one touches it meanwhile.
    unsafe { AtomicU64::from_ptr(field) }.store(value, Ordering::Relaxed);
}

/// Registers this vCPU as a writer of a page; false if the page must not be written without a check.
fn claim_write(context: &RunContext<'_>, gpa: u64) -> bool {
    let (Some(flags), Some(writers)) = (context.env.ram.page_flags(gpa), context.writers.page(gpa)) else {
        return false;
    };
    if flags.load(Ordering::SeqCst) != 0 {
        return false;
    }
    if writers.load(Ordering::Relaxed) & context.bit == 0 {
        writers.fetch_or(context.bit, Ordering::SeqCst);
    }
    // Whoever marks the page sets the flag first and looks at the writers afterwards.
    std::sync::atomic::fence(Ordering::SeqCst);
    flags.load(Ordering::SeqCst) == 0
}

/// The tables that code of the CPU's present mode uses.
pub(crate) fn space_of(cpu: &Cpu) -> Space {
    if cpu.cpl == 3 {
        Space::User
    } else if cpu.rflags & flag::AC != 0 {
        Space::KernelAc
    } else {
        Space::Kernel
    }
}

/// Makes every entry of a space unmatchable.
pub(crate) fn clear_space(cpu: *mut Cpu, space: Space) {
    for index in 0..space.tlb_len() {
        clear_entry(cpu, space, index);
    }
}

/// Makes an entry of a space unmatchable; `index` is below its length.
fn clear_entry(cpu: *mut Cpu, space: Space, index: usize) {
    debug_assert!(index < space.tlb_len());
    let tag = empty_tag(index);
    // SAFETY: index is below the table's length; only the owner (or a thread that has stopped it) calls this.
    unsafe {
        let entry = tlb_of(cpu, space).add(index);
        set(&raw mut (*entry).read, tag);
        set(&raw mut (*entry).write, tag);
    }
}

/// Removes the write tags of the page at host address `host`. The owner must be out of translated code.
pub(crate) fn drop_write_tags(cpu: *mut Cpu, host: u64) {
    for space in Space::ALL {
        let base = tlb_of(cpu, space);
        for index in 0..space.tlb_len() {
            // SAFETY: index is below the table's length; the owner is stopped or is the caller.
            unsafe {
                let entry = base.add(index);
                if AtomicU64::from_ptr(&raw mut (*entry).host).load(Ordering::Relaxed) == host {
                    set(&raw mut (*entry).write, empty_tag(index));
                }
            }
        }
    }
}

/// Drops everything.
pub(crate) fn clear_all(cpu: *mut Cpu, tlb: &mut TlbState) {
    for space in Space::ALL {
        clear_space(cpu, space);
        clear_jumps(cpu, space);
    }
    tlb.user_used = false;
    tlb.private = Private::default();
    tlb.large.clear();
    tlb.code_pages.iter_mut().for_each(QuickSet::clear);
    tlb.flushes += 1;
    tlb.full_flushes += 1;
}

/// Drops what a change of address space makes stale.
fn clear_private(cpu: *mut Cpu, tlb: &mut TlbState) {
    if tlb.private.all {
        clear_all(cpu, tlb);
        return;
    }
    for index in tlb.private.data.drain(..) {
        clear_entry(cpu, Space::Kernel, index.into());
    }
    for rip in tlb.private.code.drain(..) {
        forget_jump(cpu, Space::Kernel, rip);
        forget_jump(cpu, Space::KernelAc, rip);
    }
    clear_user(cpu, tlb);
}

fn clear_user(cpu: *mut Cpu, tlb: &mut TlbState) {
    if tlb.user_used {
        clear_space(cpu, Space::User);
        clear_space(cpu, Space::KernelAc);
        tlb.user_used = false;
        tlb.flushes += 1;
    }
    let [user, _] = &mut tlb.code_pages;
    if !user.is_empty() {
        user.clear();
        clear_jumps(cpu, Space::User);
    }
}

/// Notes that code on `count` pages from `linear` on is about to be entered in a jump cache.
pub(crate) fn note_code(cpu: *mut Cpu, tlb: &mut TlbState, space: Space, linear: u64, count: u64) {
    let set = usize::from(space != Space::User);
    if tlb.code_pages.get(set).is_some_and(|pages| pages.len() >= MAX_CODE_PAGES) {
        // What the caller noted of the pages is needed still.
        let (private, large) = (std::mem::take(&mut tlb.private), std::mem::take(&mut tlb.large));
        clear_all(cpu, tlb);
        (tlb.private, tlb.large) = (private, large);
    }
    if let Some(pages) = tlb.code_pages.get_mut(set) {
        pages.extend((0..count).map(|page| (linear >> 12).wrapping_add(page) & (u64::MAX >> 12)));
    }
}

/// Notes what flushes must know of the page at `linear` when code at `rip` that lies there, in part or as a whole, is
/// about to be entered in a jump cache.
pub(crate) fn note_page(
    cpu: *mut Cpu,
    tlb: &mut TlbState,
    space: Space,
    (rip, linear): (u64, u64),
    page: &Page,
) {
    note_large(cpu, tlb, linear, page);
    if space != Space::User && !page.global {
        tlb.private.note_code(rip);
    }
}

fn note_large(cpu: *mut Cpu, tlb: &mut TlbState, linear: u64, page: &Page) {
    if page.page_size > 4096 && !tlb.large.contains(&(linear >> 30)) {
        if tlb.large.len() >= MAX_LARGE {
            let private = std::mem::take(&mut tlb.private);
            clear_all(cpu, tlb);
            tlb.private = private;
            // An instruction that goes on in this page began in the one before.
            tlb.large.push(linear.wrapping_sub(1) >> 30);
        }
        tlb.large.push(linear >> 30);
    }
}

fn clear_page(cpu: *mut Cpu, tlb: &mut TlbState, linear: u64) {
    if tlb.large.contains(&(linear >> 30)) {
        // The page may be a large one, of which any table may hold any piece.
        clear_all(cpu, tlb);
        return;
    }
    for space in Space::ALL {
        clear_entry(cpu, space, (linear >> 12) as usize & (space.tlb_len() - 1));
    }
    let [user, kernel] = &mut tlb.code_pages;
    if user.contains(&(linear >> 12)) {
        user.clear();
        clear_jumps(cpu, Space::User);
    }
    if kernel.contains(&(linear >> 12)) {
        kernel.clear();
        clear_jumps(cpu, Space::Kernel);
        clear_jumps(cpu, Space::KernelAc);
    }
}

/// Follows what instructions did to translations.
pub(crate) fn apply(cpu: *mut Cpu, tlb: &mut TlbState, events: &[TlbEvent], current: u16) {
    for event in events {
        let kind = match *event {
            TlbEvent::All => 0,
            TlbEvent::NonGlobal => 1,
            TlbEvent::Pcid(_) => 2,
            TlbEvent::Cr3 { flush: true, .. } => 3,
            TlbEvent::Cr3 { flush: false, .. } => 4,
            TlbEvent::Page { .. } => 5,
        };
        if let Some(count) = tlb.events.get_mut(kind) {
            *count += 1;
        }
        match *event {
            TlbEvent::All | TlbEvent::NonGlobal => clear_all(cpu, tlb),
            TlbEvent::Pcid(pcid) => {
                if pcid == current {
                    clear_private(cpu, tlb);
                }
            }
            TlbEvent::Cr3 { .. } => clear_private(cpu, tlb),
            TlbEvent::Page { linear, .. } => clear_page(cpu, tlb, linear),
        }
    }
}
