//! The interpreter's view of linear memory: a small software TLB over [`translate`], page-crossing accesses, MMIO.

use std::sync::atomic::{AtomicU8, Ordering, fence};

use crate::apic;
use crate::cpu::{Cpu, TlbEvent, cr, flag};
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::overlay::Overlay;
use crate::paging::{Access, Page, is_canonical, translate};
use crate::rawmem;

const ENTRIES: usize = 512;
/// Never equal to a page address.
const EMPTY: u64 = 1;

/// One page of data in [`Tlb`].
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    read: u64,
    write: u64,
    host: *mut u8,
    gpa: u64,
    flags: *const AtomicU8,
    global: bool,
}

const EMPTY_ENTRY: Entry = Entry {
    read: EMPTY,
    write: EMPTY,
    host: std::ptr::null_mut(),
    gpa: 0,
    flags: std::ptr::null(),
    global: false,
};

#[derive(Clone, Copy)]
pub(crate) struct CodeEntry {
    pub(crate) page: u64,
    pub(crate) host: *const u8,
    pub(crate) gpa: u64,
    global: bool,
}

const CODE_ENTRIES: usize = 128;
const EMPTY_CODE: CodeEntry = CodeEntry { page: EMPTY, host: std::ptr::null(), gpa: 0, global: false };

/// Translations of data: for CPL 3, supervisor with AC=0, supervisor with AC=1.
pub(crate) type DataTlb = Box<[[Entry; ENTRIES]; 3]>;

/// A table without entries.
pub(crate) fn empty_data() -> DataTlb {
    Box::new([[EMPTY_ENTRY; ENTRIES]; 3])
}

/// TLBs: data, and code for CPL 3 and supervisor.
pub(crate) struct Tlb {
    pub(crate) data: DataTlb,
    code: Box<[[CodeEntry; CODE_ENTRIES]; 2]>,
    /// Where entries were made since they were last dropped, and perhaps more: most flushes find a few.
    filled: Vec<u16>,
}

/// Places above this number in [`Tlb::filled`] are those of code.
const DATA_PLACES: usize = 3 * ENTRIES;
/// Length of [`Tlb::filled`] at which what was since replaced or dropped is taken off.
const MAX_FILLED: usize = 4 * ENTRIES;

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { data: empty_data(), code: Box::new([[EMPTY_CODE; CODE_ENTRIES]; 2]), filled: Vec::new() }
    }

    fn set_data(&mut self, table: usize, index: usize, entry: Entry) {
        self.data[table][index] = entry;
        self.note_filled(table * ENTRIES + index);
    }

    fn set_code(&mut self, table: usize, index: usize, entry: CodeEntry) {
        self.code[table][index] = entry;
        self.note_filled(DATA_PLACES + table * CODE_ENTRIES + index);
    }

    fn note_filled(&mut self, place: usize) {
        if self.filled.len() >= MAX_FILLED {
            self.filled.sort_unstable();
            self.filled.dedup();
        }
        self.filled.push(place as u16);
    }

    /// Drops the entries for which the answer (to tag and whether it is global) is yes.
    fn drop_entries(&mut self, stale: impl Fn(u64, bool) -> bool) {
        let (data, code) = (self.data.as_flattened_mut(), self.code.as_flattened_mut());
        self.filled.retain(|place| {
            let place = usize::from(*place);
            if let Some(entry) = data.get_mut(place) {
                let keep = !stale(entry.read, entry.global);
                if !keep {
                    *entry = EMPTY_ENTRY;
                }
                return keep;
            }
            let Some(entry) = code.get_mut(place - DATA_PLACES) else { return false };
            let keep = !stale(entry.page, entry.global);
            if !keep {
                *entry = EMPTY_CODE;
            }
            keep
        });
    }

    pub(crate) fn clear(&mut self) {
        self.drop_entries(|_, _| true);
    }

    fn clear_local(&mut self) {
        self.drop_entries(|_, global| !global);
    }

    fn clear_page(&mut self, linear: u64) {
        // Large pages are entered as 4 KiB pieces and INVLPG must drop all of them.
        self.drop_entries(|page, _| page & !0x3fff_ffff == linear & !0x3fff_ffff);
    }

    /// Applies what an instruction did to translations. This TLB has no PCIDs: every CR3 load drops local entries.
    pub(crate) fn apply(&mut self, event: TlbEvent) {
        match event {
            TlbEvent::All => self.clear(),
            TlbEvent::NonGlobal | TlbEvent::Pcid(_) | TlbEvent::Cr3 { .. } => self.clear_local(),
            TlbEvent::Page { linear, .. } => self.clear_page(linear),
        }
    }
}

/// What a linear address of a write leads to.
pub(crate) enum Target {
    /// Guest memory within one page.
    Host { ptr: *mut u8, gpa: u64 },
    /// A page whose writes are dropped.
    Dropped { ptr: *const u8 },
    /// A device.
    Mmio { gpa: u64 },
    /// Guest memory that a dry run must leave as it is.
    Dry { ptr: *const u8, gpa: u64 },
    /// Two pages; bytes in the first.
    Split { first: SplitPart, second: SplitPart, at: u8 },
}

#[derive(Clone, Copy)]
pub(crate) struct SplitPart {
    page: Page,
    offset: u64,
}

impl SplitPart {
    fn read(&self, cpu: &mut Cpu, env: &Env<'_>, data: &mut [u8]) {
        let gpa = self.page.gpa + self.offset;
        if self.page.host.is_null() {
            return mmio_read(cpu, env, gpa, data);
        }
        let overlay = &mut cpu.interp.overlay;
        for (index, byte) in data.iter_mut().enumerate() {
            // SAFETY: the part lies inside the page behind `host`.
            *byte = unsafe { rawmem::load(self.page.host.add(self.offset as usize + index), 1) } as u8;
            if let Some(overlay) = overlay {
                *byte = overlay.read(gpa + index as u64, u64::from(*byte), 1) as u8;
            }
        }
    }

    fn write(&self, cpu: &mut Cpu, env: &Env<'_>, data: &[u8]) {
        let gpa = self.page.gpa + self.offset;
        if self.page.host.is_null() {
            return mmio_write(cpu, env, gpa, data);
        }
        if let Some(overlay) = &mut cpu.interp.overlay {
            return self.write_dry(env, overlay, data);
        }
        if !self.page.ram_writable {
            return;
        }
        for (index, byte) in data.iter().enumerate() {
            // SAFETY: the part lies inside the writable page behind `host`.
            unsafe { rawmem::store(self.page.host.add(self.offset as usize + index), u64::from(*byte), 1) };
        }
        env.note_store(gpa, data.len() as u64);
    }

    fn write_dry(&self, env: &Env<'_>, overlay: &mut Overlay, data: &[u8]) {
        let gpa = self.page.gpa + self.offset;
        if !may_store_dry(env, &self.page) {
            overlay.refuse();
        }
        for (index, byte) in data.iter().enumerate() {
            // SAFETY: the part lies inside the page behind `host`.
            let old = unsafe { rawmem::load(self.page.host.add(self.offset as usize + index), 1) };
            overlay.write(gpa + index as u64, old, u64::from(*byte), 1);
        }
    }
}

/// Whether a dry run may go on after a store to this page: a store that is dropped, logged or hits code is left to the
/// interpreter by translated code.
fn may_store_dry(env: &Env<'_>, page: &Page) -> bool {
    page.ram_writable && env.ram.page_flags(page.gpa).is_some_and(|flags| flags.load(Ordering::SeqCst) == 0)
}

/// Reads a device, in naturally aligned pieces of at most 8 bytes.
fn mmio_read(cpu: &mut Cpu, env: &Env<'_>, gpa: u64, data: &mut [u8]) {
    if let Some(overlay) = &mut cpu.interp.overlay {
        data.fill(0);
        return overlay.refuse();
    }
    if let Some(offset) = apic::page_offset(cpu, gpa) {
        let value = apic::mmio_read(cpu, env, offset);
        let bytes = value.to_le_bytes();
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get((offset & 3) as usize + index).copied().unwrap_or(0);
        }
        return;
    }
    let mut at = 0;
    while at < data.len() {
        let piece = piece_len(data.len() - at);
        env.io.mmio_read(gpa + at as u64, &mut data[at..at + piece]);
        at += piece;
    }
}

fn mmio_write(cpu: &mut Cpu, env: &Env<'_>, gpa: u64, data: &[u8]) {
    if let Some(overlay) = &mut cpu.interp.overlay {
        return overlay.refuse();
    }
    if let Some(offset) = apic::page_offset(cpu, gpa) {
        let mut bytes = [0; 4];
        let len = data.len().min(4);
        bytes[..len].copy_from_slice(&data[..len]);
        return apic::mmio_write(cpu, env, offset, u32::from_le_bytes(bytes));
    }
    let mut at = 0;
    while at < data.len() {
        let piece = piece_len(data.len() - at);
        env.io.mmio_write(gpa + at as u64, &data[at..at + piece]);
        at += piece;
    }
}

const fn piece_len(left: usize) -> usize {
    match left {
        8.. => 8,
        4..8 => 4,
        2..4 => 2,
        _ => 1,
    }
}

/// #GP or #SS of a non-canonical address.
#[cold]
pub(crate) fn non_canonical(stack: bool) -> Exception {
    if stack { Exception::ss(0) } else { Exception::gp(0) }
}

#[inline(always)]
fn table(cpu: &Cpu) -> usize {
    table_of(cpu.cpl, cpu.rflags)
}

/// #AC of an unaligned access in ring 3 with EFLAGS.AC and CR0.AM.
#[inline(always)]
fn check_alignment(cpu: &Cpu, linear: u64, size: u8) -> Result<(), Exception> {
    if cpu.cpl == 3 && cpu.rflags & flag::AC != 0 {
        return aligned_or_ac(cpu, linear, size);
    }
    Ok(())
}

#[cold]
fn aligned_or_ac(cpu: &Cpu, linear: u64, size: u8) -> Result<(), Exception> {
    if cpu.cr0 & cr::CR0_AM != 0 && linear & (u64::from(size) - 1) != 0 {
        return Err(Exception { vector: vector::AC, error: Some(0), cr2: 0 });
    }
    Ok(())
}

#[cold]
fn walk(cpu: &Cpu, env: &Env<'_>, linear: u64, access: Access, stack: bool) -> Result<Page, Exception> {
    if !is_canonical(linear) {
        return Err(non_canonical(stack));
    }
    translate(cpu, env, linear, access).map_err(|fault| Exception::pf(linear, fault.error_code))
}

#[cold]
fn fill(cpu: &mut Cpu, env: &Env<'_>, linear: u64, write: bool, stack: bool) -> Result<Page, Exception> {
    let access = if write { Access::write(cpu) } else { Access::read(cpu) };
    let page = walk(cpu, env, linear, access, stack)?;
    if !page.host.is_null()
        // In a dry run every access comes this way: that is how it gets to the overlay.
        && cpu.interp.overlay.is_none()
        && let Some(flags) = env.ram.page_flags(page.gpa)
    {
        let index = (linear >> 12) as usize % ENTRIES;
        let tag = linear & !0xfff;
        let entry = Entry {
            read: tag,
            write: if page.writable && page.ram_writable { tag } else { EMPTY },
            host: page.host,
            gpa: page.gpa,
            flags,
            global: page.global,
        };
        cpu.interp.tlb.set_data(table_of(cpu.cpl, cpu.rflags), index, entry);
    }
    Ok(page)
}

const fn table_of(cpl: u8, rflags: u64) -> usize {
    if cpl == 3 {
        0
    } else if rflags & flag::AC == 0 {
        1
    } else {
        2
    }
}

/// Reads `size` (1, 2, 4, 8) bytes at a linear address. `stack` selects #SS for a non-canonical one.
#[inline(always)]
pub(crate) fn read(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    size: u8,
    stack: bool,
) -> Result<u64, Exception> {
    check_alignment(cpu, linear, size)?;
    let offset = linear & 0xfff;
    if offset + u64::from(size) <= 4096 {
        let entry = &cpu.interp.tlb.data[table(cpu)][(linear >> 12) as usize % ENTRIES];
        if entry.read == linear & !0xfff {
            // SAFETY: a filled entry's host page is mapped as long as guest memory is; the access stays inside it.
            return Ok(unsafe { rawmem::load(entry.host.add(offset as usize), size) });
        }
    }
    read_slow(cpu, env, linear, size, stack)
}

#[cold]
fn read_slow(cpu: &mut Cpu, env: &Env<'_>, linear: u64, size: u8, stack: bool) -> Result<u64, Exception> {
    let mut bytes = [0; 8];
    let offset = linear & 0xfff;
    if offset + u64::from(size) <= 4096 {
        let page = fill(cpu, env, linear, false, stack)?;
        if page.host.is_null() {
            mmio_read(cpu, env, page.gpa + offset, &mut bytes[..size as usize]);
            return Ok(u64::from_le_bytes(bytes));
        }
        // SAFETY: the access stays inside the page that the walk found.
        let value = unsafe { rawmem::load(page.host.add(offset as usize), size) };
        return Ok(match &mut cpu.interp.overlay {
            Some(overlay) => overlay.read(page.gpa + offset, value, size),
            None => value,
        });
    }
    read_bytes(cpu, env, linear, &mut bytes[..size as usize], stack)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Reads any number of bytes up to a page (may cross one border); all faults come before the first device read.
pub(crate) fn read_bytes(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    data: &mut [u8],
    stack: bool,
) -> Result<(), Exception> {
    let access = Access::read(cpu);
    gather(cpu, env, linear, data, access, stack)
}

fn gather(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    data: &mut [u8],
    access: Access,
    stack: bool,
) -> Result<(), Exception> {
    let (first, second, at) = split(cpu, env, linear, data.len() as u64, access, stack)?;
    let (low, high) = data.split_at_mut(at);
    first.read(cpu, env, low);
    if let Some(second) = second {
        second.read(cpu, env, high);
    }
    Ok(())
}

fn split(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    len: u64,
    access: Access,
    stack: bool,
) -> Result<(SplitPart, Option<SplitPart>, usize), Exception> {
    let offset = linear & 0xfff;
    let page = walk(cpu, env, linear, access, stack)?;
    let first = SplitPart { page, offset };
    let at = (4096 - offset).min(len);
    if at == len {
        return Ok((first, None, at as usize));
    }
    let page = walk(cpu, env, (linear | 0xfff).wrapping_add(1), access, stack)?;
    Ok((first, Some(SplitPart { page, offset: 0 }), at as usize))
}

/// Writes any number of bytes up to a page (may cross one border); all faults come before the first byte is written.
pub(crate) fn write_bytes(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    data: &[u8],
    stack: bool,
) -> Result<(), Exception> {
    let access = Access::write(cpu);
    let (first, second, at) = split(cpu, env, linear, data.len() as u64, access, stack)?;
    first.write(cpu, env, &data[..at]);
    if let Some(second) = second {
        second.write(cpu, env, &data[at..]);
    }
    Ok(())
}

/// Checks that `len` bytes (at most a page) can be written, without writing.
pub(crate) fn probe_write(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    len: u64,
    stack: bool,
) -> Result<(), Exception> {
    let access = Access::write(cpu);
    split(cpu, env, linear, len, access, stack).map(|_| ())
}

/// Writes the low `size` (1, 2, 4, 8) bytes of `value`.
#[inline(always)]
pub(crate) fn write(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    value: u64,
    size: u8,
    stack: bool,
) -> Result<(), Exception> {
    check_alignment(cpu, linear, size)?;
    let offset = linear & 0xfff;
    if offset + u64::from(size) <= 4096 {
        let entry = &cpu.interp.tlb.data[table(cpu)][(linear >> 12) as usize % ENTRIES];
        if entry.write == linear & !0xfff {
            // SAFETY: a filled entry's host page and flag byte live as long as guest memory; the access stays inside.
            let flags = unsafe {
                rawmem::store(entry.host.add(offset as usize), value, size);
                // See `Env::note_store`.
                fence(Ordering::SeqCst);
                (*entry.flags).load(Ordering::SeqCst)
            };
            if flags != 0 {
                let gpa = entry.gpa + offset;
                env.stored(gpa, u64::from(size));
            }
            return Ok(());
        }
    }
    let target = target(cpu, env, linear, size, stack)?;
    target.store(cpu, env, value, size);
    Ok(())
}

/// Finds where a write (or read-modify-write) of `size` bytes goes; faults as a write does.
pub(crate) fn target(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    size: u8,
    stack: bool,
) -> Result<Target, Exception> {
    check_alignment(cpu, linear, size)?;
    let offset = linear & 0xfff;
    if offset + u64::from(size) > 4096 {
        let access = Access::write(cpu);
        let (first, second, at) = split(cpu, env, linear, u64::from(size), access, stack)?;
        let second = second.unwrap_or(first);
        return Ok(Target::Split { first, second, at: at as u8 });
    }
    let entry = cpu.interp.tlb.data[table(cpu)][(linear >> 12) as usize % ENTRIES];
    if entry.write == linear & !0xfff {
        // SAFETY: as in `write`.
        let ptr = unsafe { entry.host.add(offset as usize) };
        return Ok(Target::Host { ptr, gpa: entry.gpa + offset });
    }
    let page = fill(cpu, env, linear, true, stack)?;
    let gpa = page.gpa + offset;
    if page.host.is_null() {
        return Ok(Target::Mmio { gpa });
    }
    // SAFETY: the offset stays inside the page.
    let ptr = unsafe { page.host.add(offset as usize) };
    if let Some(overlay) = &mut cpu.interp.overlay {
        if !may_store_dry(env, &page) {
            overlay.refuse();
        }
        return Ok(Target::Dry { ptr, gpa });
    }
    if !page.ram_writable {
        return Ok(Target::Dropped { ptr });
    }
    Ok(Target::Host { ptr, gpa })
}

impl Target {
    /// The old value.
    pub(crate) fn load(&self, cpu: &mut Cpu, env: &Env<'_>, size: u8) -> u64 {
        let mut bytes = [0; 8];
        match self {
            // SAFETY: the pointer was made for an access of this size inside one page.
            Self::Host { ptr, .. } => return unsafe { rawmem::load(*ptr, size) },
            // SAFETY: as above.
            Self::Dropped { ptr } => return unsafe { rawmem::load(*ptr, size) },
            Self::Dry { ptr, gpa } => {
                // SAFETY: as above.
                let value = unsafe { rawmem::load(*ptr, size) };
                return match &mut cpu.interp.overlay {
                    Some(overlay) => overlay.read(*gpa, value, size),
                    None => value,
                };
            }
            Self::Mmio { gpa } => mmio_read(cpu, env, *gpa, &mut bytes[..size as usize]),
            Self::Split { first, second, at } => {
                let (low, high) = bytes[..size as usize].split_at_mut(*at as usize);
                first.read(cpu, env, low);
                second.read(cpu, env, high);
            }
        }
        u64::from_le_bytes(bytes)
    }

    /// Stores a value.
    pub(crate) fn store(&self, cpu: &mut Cpu, env: &Env<'_>, value: u64, size: u8) {
        let bytes = value.to_le_bytes();
        match self {
            Self::Host { ptr, gpa } => {
                // SAFETY: the pointer was made for a write of this size inside one page.
                unsafe { rawmem::store(*ptr, value, size) };
                env.note_store(*gpa, u64::from(size));
            }
            Self::Dropped { .. } => {}
            Self::Dry { ptr, gpa } => {
                // SAFETY: the pointer was made for an access of this size inside one page.
                let old = unsafe { rawmem::load(*ptr, size) };
                if let Some(overlay) = &mut cpu.interp.overlay {
                    overlay.write(*gpa, old, value, size);
                }
            }
            Self::Mmio { gpa } => mmio_write(cpu, env, *gpa, &bytes[..size as usize]),
            Self::Split { first, second, at } => {
                first.write(cpu, env, &bytes[..*at as usize]);
                second.write(cpu, env, &bytes[*at as usize..size as usize]);
            }
        }
    }

    /// Replaces the value by `f(old)`, atomically if `lock`; `f` may be called several times. Returns the old value.
    #[inline(always)]
    pub(crate) fn update(
        &self,
        cpu: &mut Cpu,
        env: &Env<'_>,
        size: u8,
        lock: bool,
        mut f: impl FnMut(u64) -> u64,
    ) -> u64 {
        if lock && let Self::Host { ptr, gpa } = self {
            // SAFETY: the pointer was made for a write of this size inside one page.
            let mut old = unsafe { rawmem::load(*ptr, size) };
            loop {
                let new = f(old);
                // SAFETY: as above.
                let seen = unsafe { rawmem::compare_exchange(*ptr, old, new, size) };
                if seen == old {
                    break;
                }
                old = seen;
            }
            env.note_store(*gpa, u64::from(size));
            return old;
        }
        let old = self.load(cpu, env, size);
        let new = f(old);
        self.store(cpu, env, new, size);
        old
    }
}

/// An implicit supervisor read (descriptor tables, TSS).
pub(crate) fn system_read(cpu: &mut Cpu, env: &Env<'_>, linear: u64, size: u8) -> Result<u64, Exception> {
    let mut bytes = [0; 8];
    gather(cpu, env, linear, &mut bytes[..size as usize], Access::implicit(false), false)?;
    Ok(u64::from_le_bytes(bytes))
}

/// An implicit supervisor write (stack of a delivery, descriptor bits).
pub(crate) fn system_write(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    data: &[u8],
    stack: bool,
) -> Result<(), Exception> {
    let (first, second, at) = split(cpu, env, linear, data.len() as u64, Access::implicit(true), stack)?;
    first.write(cpu, env, &data[..at]);
    if let Some(second) = second {
        second.write(cpu, env, &data[at..]);
    }
    Ok(())
}

/// Finds the host page of the code at a linear address.
#[inline(always)]
pub(crate) fn code_page(cpu: &mut Cpu, env: &Env<'_>, linear: u64) -> Result<CodeEntry, Exception> {
    let entry = cpu.interp.tlb.code[usize::from(cpu.cpl != 3)][(linear >> 12) as usize % CODE_ENTRIES];
    if entry.page == linear & !0xfff {
        return Ok(entry);
    }
    code_fill(cpu, env, linear)
}

#[cold]
fn code_fill(cpu: &mut Cpu, env: &Env<'_>, linear: u64) -> Result<CodeEntry, Exception> {
    let page = walk(cpu, env, linear, Access::exec(cpu), false)?;
    if page.host.is_null() {
        // Code in a device or a hole: nothing sensible can be fetched.
        return Err(Exception::gp(0));
    }
    let entry = CodeEntry { page: linear & !0xfff, host: page.host, gpa: page.gpa, global: page.global };
    cpu.interp.tlb.set_code(usize::from(cpu.cpl != 3), (linear >> 12) as usize % CODE_ENTRIES, entry);
    Ok(entry)
}

/// A run of `len` bytes inside one page of RAM as (host pointer, gpa); `None` for devices and dropped writes.
pub(crate) fn page_run(
    cpu: &mut Cpu,
    env: &Env<'_>,
    linear: u64,
    len: u64,
    write: bool,
) -> Result<Option<(*mut u8, u64)>, Exception> {
    debug_assert!((linear & 0xfff) + len <= 4096);
    if write {
        return Ok(match target(cpu, env, linear, 1, false)? {
            Target::Host { ptr, gpa } => Some((ptr, gpa)),
            _ => None,
        });
    }
    let entry = cpu.interp.tlb.data[table(cpu)][(linear >> 12) as usize % ENTRIES];
    let offset = linear & 0xfff;
    let (host, gpa) = if entry.read == linear & !0xfff {
        (entry.host, entry.gpa)
    } else {
        let page = fill(cpu, env, linear, false, false)?;
        (page.host, page.gpa)
    };
    if host.is_null() {
        return Ok(None);
    }
    // SAFETY: the offset stays inside the page.
    Ok(Some((unsafe { host.add(offset as usize) }, gpa + offset)))
}
