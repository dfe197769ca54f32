//! What all vCPUs of a VM share: the block map, the pages that code came from, and the code cache.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use soft_cpu::Cpu;

use crate::block::{Emitted, Key, ONE_PAGE, Site, Vectors};
use crate::cache::CodeCache;
use crate::layout::{JUMP_WAYS, JumpEntry, Space, empty_key, jump_index, jumps_of};
use crate::translate::Translator;

/// A multiplicative hash: keys are addresses chosen by the guest, and a guest that makes them collide slows down itself.
#[derive(Default)]
pub(crate) struct QuickHash(u64);

impl Hasher for QuickHash {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

pub(crate) type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHash>>;

/// Number of a block in [`Shared::blocks`].
pub(crate) type BlockId = u32;

/// A jump that was linked to a block.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Cache offset of the rel32.
    patch: usize,
    /// Cache offset of the stub it led to before.
    stub: usize,
}

/// A placed translation.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) key: Key,
    /// Cache offset.
    pub(crate) at: usize,
    pub(crate) sites: Box<[Site]>,
    pub(crate) map: Box<[(u32, u16)]>,
    /// Instructions translated; the map may have one more.
    instructions: u32,
    lines: u64,
    next_lines: u64,
    pub(crate) step_only: Option<Vectors>,
    /// See [`Emitted::crossing`].
    pub(crate) crossing: bool,
    dead: bool,
    links: Vec<Link>,
}

impl Block {
    /// The lines of a page that the block depends on.
    fn lines_in(&self, page: u64) -> u64 {
        let first = if self.key.gpa & !0xfff == page { self.lines } else { 0 };
        let next =
            if self.key.next != ONE_PAGE && self.key.next & !0xfff == page { self.next_lines } else { 0 };
        first | next
    }

    /// Offsets in the page of the instructions that were translated.
    pub(crate) fn offsets(&self) -> impl Iterator<Item = u16> {
        self.map.iter().take(self.instructions as usize).map(|(_, guest)| *guest)
    }

    fn pages(&self) -> [Option<u64>; 2] {
        [Some(self.key.gpa & !0xfff), (self.key.next != ONE_PAGE).then_some(self.key.next & !0xfff)]
    }

    /// The site whose call returns to `offset` in the cache.
    pub(crate) fn site(&self, offset: usize) -> Option<&Site> {
        let ret = offset.checked_sub(self.at)? as u32;
        let index = self.sites.binary_search_by_key(&ret, |site| site.ret).ok()?;
        self.sites.get(index)
    }

    /// The guest offset of the instruction whose code holds the cache offset.
    pub(crate) fn guest_offset(&self, offset: usize) -> Option<u32> {
        let host = offset.checked_sub(self.at)? as u32;
        let index = self.map.partition_point(|(start, _)| *start <= host).checked_sub(1)?;
        self.map.get(index).map(|(_, guest)| u32::from(*guest))
    }
}

/// A page that has translations.
#[derive(Debug, Default)]
struct CodePage {
    blocks: Vec<BlockId>,
    lines: u64,
    /// Stores that hit no line with code.
    misses: u32,
}

/// Stores to the code-free lines of a code page before its translations are dropped so that it can be written freely.
const MISSES_BEFORE_DROP: u32 = 16;

/// What the translator counted.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) blocks: u64,
    pub(crate) instructions: u64,
    pub(crate) bytes: u64,
    pub(crate) killed: u64,
    pub(crate) evicted_units: u64,
    pub(crate) links: u64,
    pub(crate) stores: u64,
}

/// A registered vCPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VcpuRef(pub(crate) *mut Cpu);
// SAFETY: a vCPU is taken off the list before its Cpu dies. Through it other threads touch
// * at any time, atomically: `kick`, the head's `in_guest`, keys of the jump caches;
// * while `in_guest` is not 1, atomically: the tags and hosts of the TLBs (`tlb::drop_write_tags`). The owner may be writing
//   them itself, atomically as well; translated code, which is not bound to that, does not run;
// * while `in_guest` is LEAVING and with the lock on `Shared` held: the rest of the head, and `rip` (`jit::resolve_exits`). The
//   owner touches neither until it has that lock.
unsafe impl Send for VcpuRef {}

pub(crate) struct Shared {
    pub(crate) cache: CodeCache,
    pub(crate) translator: Translator,
    blocks: Vec<Option<Block>>,
    free: Vec<BlockId>,
    map: QuickMap<Key, BlockId>,
    pages: QuickMap<u64, CodePage>,
    /// Blocks of each unit in the order of their addresses, dead ones included.
    units: Vec<Vec<BlockId>>,
    pub(crate) vcpus: Vec<VcpuRef>,
    pub(crate) stats: Stats,
    /// Pages whose code takes flags as live at returns.
    pub(crate) strict_pages: std::collections::HashSet<u64, BuildHasherDefault<QuickHash>>,
    /// See [`Emitted::flag_calls`]; of the block translated last.
    pub(crate) flag_calls: Vec<u64>,
    /// Pages that lost their last translation; the owner of the page flags clears their mark.
    pub(crate) freed_pages: Vec<u64>,
}

impl Shared {
    pub(crate) fn new(cache: CodeCache, translator: Translator) -> Self {
        let units = (0..cache.units()).map(|_| Vec::new()).collect();
        Self {
            cache,
            translator,
            blocks: Vec::new(),
            free: Vec::new(),
            map: QuickMap::default(),
            pages: QuickMap::default(),
            units,
            vcpus: Vec::new(),
            stats: Stats::default(),
            strict_pages: std::collections::HashSet::default(),
            flag_calls: Vec::new(),
            freed_pages: Vec::new(),
        }
    }

    pub(crate) fn find(&self, key: &Key) -> Option<BlockId> {
        self.map.get(key).copied()
    }

    pub(crate) fn block(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize)?.as_ref()
    }

    /// Number of blocks placed in a unit, dead ones included.
    #[cfg(test)]
    pub(crate) fn blocks_of(&self, unit: usize) -> usize {
        self.units[unit].len()
    }

    /// The block whose code ends at a cache offset or holds the byte before it, as it does before a call's return address.
    pub(crate) fn block_at(&self, offset: usize) -> Option<BlockId> {
        let unit = self.units.get(self.cache.unit_of(offset.checked_sub(1)?))?;
        let index = unit
            .partition_point(|id| self.block(*id).is_some_and(|block| block.at < offset))
            .checked_sub(1)?;
        unit.get(index).copied()
    }

    /// Places a translation; `None` if the unit is full and must be advanced first.
    pub(crate) fn place(&mut self, key: Key, emitted: &mut Emitted) -> Option<BlockId> {
        let (unit, most) = self.cache.current_unit();
        if self.units.get(unit).is_some_and(|blocks| blocks.len() >= most) {
            return None;
        }
        let at = self.cache.allocate(emitted.code.len())?;
        for (hole, thunk) in &emitted.thunk_calls {
            let target = self.cache.thunk(*thunk) as i64 - at as i64;
            let relative = (target - (i64::from(*hole) + 4)) as i32;
            let hole = *hole as usize;
            if let Some(bytes) = emitted.code.get_mut(hole..hole + 4) {
                bytes.copy_from_slice(&relative.to_le_bytes());
            }
        }
        self.cache.write(at, &emitted.code);
        self.stats.blocks += 1;
        self.stats.instructions += u64::from(emitted.instructions);
        self.stats.bytes += emitted.code.len() as u64;
        let block = Block {
            key,
            at,
            sites: std::mem::take(&mut emitted.sites).into(),
            map: std::mem::take(&mut emitted.map).into(),
            instructions: emitted.instructions,
            lines: emitted.lines,
            next_lines: emitted.next_lines,
            step_only: emitted.step_only,
            crossing: emitted.crossing,
            dead: false,
            links: Vec::new(),
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.blocks.push(None);
            (self.blocks.len() - 1) as BlockId
        });
        if let Some(slot) = self.blocks.get_mut(id as usize) {
            *slot = Some(block);
        }
        let unit = self.cache.unit_of(at);
        if let Some(unit) = self.units.get_mut(unit) {
            unit.push(id);
        }
        self.map.insert(key, id);
        let page = self.pages.entry(key.gpa & !0xfff).or_default();
        page.blocks.push(id);
        page.lines |= emitted.lines;
        if key.next != ONE_PAGE {
            let page = self.pages.entry(key.next & !0xfff).or_default();
            page.blocks.push(id);
            page.lines |= emitted.next_lines;
        }
        Some(id)
    }

    /// Lets the jump at `patch` (block-relative) of `from` lead to `to`.
    pub(crate) fn link(&mut self, from: BlockId, ret: u32, patch: u32, to: BlockId) {
        let (Some(source), Some(target)) = (self.block(from), self.block(to)) else { return };
        if source.dead || target.dead {
            return;
        }
        let link = Link { patch: source.at + patch as usize, stub: source.at + ret as usize - 5 };
        self.cache.patch(link.patch, target.at);
        self.stats.links += 1;
        if let Some(Some(target)) = self.blocks.get_mut(to as usize) {
            target.links.push(link);
        }
    }

    /// Makes the code of a page take flags as live at returns, from its next translation on.
    pub(crate) fn make_strict(&mut self, page: u64) {
        if self.strict_pages.insert(page) && self.pages.contains_key(&page) {
            self.stored(page, 4096);
        }
    }

    /// Takes a block out of use altogether.
    pub(crate) fn discard(&mut self, id: BlockId) {
        self.kill(id);
        self.leave_pages(id, None);
        for vcpu in &self.vcpus {
            clear_jumps(vcpu.0, Space::User);
        }
    }

    /// Whether a block is in use.
    pub(crate) fn is_alive(&self, id: BlockId) -> bool {
        self.block(id).is_some_and(|block| !block.dead)
    }

    /// Takes a block out of use. Its code stays until its unit is reused: a vCPU may be in it.
    fn kill(&mut self, id: BlockId) {
        let Some(Some(block)) = self.blocks.get_mut(id as usize) else { return };
        if block.dead {
            return;
        }
        block.dead = true;
        let links = std::mem::take(&mut block.links);
        let key = block.key;
        for link in links {
            self.cache.patch(link.patch, link.stub);
        }
        if self.map.get(&key) == Some(&id) {
            self.map.remove(&key);
        }
        self.stats.killed += 1;
        if key.mode.space != Space::User {
            for vcpu in &self.vcpus {
                forget_jump(vcpu.0, key.mode.space, key.rip);
            }
        }
    }

    /// Bytes of a page with code changed: drops the translations that were made from them. Returns whether the page has
    /// none left.
    pub(crate) fn stored(&mut self, gpa: u64, len: u64) {
        self.stats.stores += 1;
        let page_gpa = gpa & !0xfff;
        let Some(page) = self.pages.get_mut(&page_gpa) else {
            self.freed_pages.push(page_gpa);
            return;
        };
        let mut lines = crate::decode::line_mask((gpa & 0xfff) as usize, len as usize);
        if page.lines & lines == 0 {
            page.misses += 1;
            if page.misses < MISSES_BEFORE_DROP {
                return;
            }
            lines = u64::MAX;
        }
        let ids = std::mem::take(&mut page.blocks);
        let (hit, kept): (Vec<_>, Vec<_>) = ids
            .into_iter()
            .partition(|id| self.block(*id).is_some_and(|block| block.lines_in(page_gpa) & lines != 0));
        let user =
            hit.iter().any(|id| self.block(*id).is_some_and(|block| block.key.mode.space == Space::User));
        for id in hit {
            self.kill(id);
            self.leave_pages(id, Some(page_gpa));
        }
        if user {
            for vcpu in &self.vcpus {
                clear_jumps(vcpu.0, Space::User);
            }
        }
        let lines = kept
            .iter()
            .filter_map(|id| self.block(*id))
            .fold(0, |lines, block| lines | block.lines_in(page_gpa));
        if kept.is_empty() {
            self.pages.remove(&page_gpa);
            self.freed_pages.push(page_gpa);
        } else if let Some(page) = self.pages.get_mut(&page_gpa) {
            page.blocks = kept;
            page.lines = lines;
        }
    }

    /// Takes a block off the lists of its pages, except `keep`, whose list the caller rebuilds.
    fn leave_pages(&mut self, id: BlockId, keep: Option<u64>) {
        let Some(pages) = self.block(id).map(Block::pages) else { return };
        for gpa in pages.into_iter().flatten().filter(|gpa| Some(*gpa) != keep) {
            if let Some(page) = self.pages.get_mut(&gpa) {
                page.blocks.retain(|other| *other != id);
                if page.blocks.is_empty() {
                    self.pages.remove(&gpa);
                    self.freed_pages.push(gpa);
                }
            }
        }
    }

    /// Takes all dead blocks off the list of a page.
    fn drop_dead(&mut self, gpa: u64) {
        let Some(page) = self.pages.get_mut(&gpa) else { return };
        let blocks = &self.blocks;
        let alive =
            |id: &BlockId| blocks.get(*id as usize).and_then(Option::as_ref).is_some_and(|block| !block.dead);
        page.blocks.retain(alive);
        if page.blocks.is_empty() {
            self.pages.remove(&gpa);
            self.freed_pages.push(gpa);
        }
    }

    /// Empties the unit that comes next and goes to it. Every vCPU must be out of translated code.
    pub(crate) fn reuse_next_unit(&mut self) {
        let unit = self.cache.next_unit();
        let ids = self.units.get_mut(unit).map(std::mem::take).unwrap_or_default();
        self.stats.evicted_units += u64::from(!ids.is_empty());
        let mut pages = Vec::new();
        for id in &ids {
            self.kill(*id);
            pages.extend(self.block(*id).into_iter().flat_map(Block::pages).flatten());
        }
        pages.sort_unstable();
        pages.dedup();
        for gpa in pages {
            self.drop_dead(gpa);
        }
        for id in &ids {
            if let Some(slot) = self.blocks.get_mut(*id as usize) {
                *slot = None;
            }
            self.free.push(*id);
        }
        let cache = &self.cache;
        for block in self.blocks.iter_mut().flatten() {
            block.links.retain(|link| cache.unit_of(link.patch) != unit);
        }
        for vcpu in &self.vcpus {
            for space in Space::ALL {
                clear_jumps(vcpu.0, space);
            }
        }
        self.cache.advance();
    }
}

fn key_of(entry: *mut JumpEntry) -> &'static AtomicU64 {
    // SAFETY: callers pass entries of a live vCPU's jump cache; the reference does not outlive the call that made it.
    unsafe { AtomicU64::from_ptr(&raw mut (*entry).rip) }
}

/// Makes all entries of a jump cache unmatchable. May be called for another thread's vCPU.
pub(crate) fn clear_jumps(cpu: *mut Cpu, space: Space) {
    let base = jumps_of(cpu, space);
    for index in 0..space.jump_len() {
        // SAFETY: index < jump_len, the table's length.
        key_of(unsafe { base.add(index) }).store(empty_key(index), Ordering::Relaxed);
    }
}

/// The slots that may have an address, its own first.
fn jump_slots(space: Space, rip: u64) -> impl Iterator<Item = usize> {
    let own = jump_index(space, rip);
    (0..JUMP_WAYS).map(move |way| own ^ way)
}

/// Makes the entry of one address unmatchable.
pub(crate) fn forget_jump(cpu: *mut Cpu, space: Space, rip: u64) {
    for index in jump_slots(space, rip) {
        // SAFETY: slots are below the table's length, a multiple of JUMP_WAYS.
        let key = key_of(unsafe { jumps_of(cpu, space).add(index) });
        let _ = key.compare_exchange(rip, empty_key(index), Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// Enters an address that [`find_jump`] does not find. Only the vCPU's own thread calls this, with the lock on [`Shared`]
/// held, so that nobody else writes keys meanwhile.
pub(crate) fn fill_jump(cpu: *mut Cpu, space: Space, rip: u64, host: u64) {
    let own = jump_index(space, rip);
    // SAFETY: slots are below the table's length; the entries belong to the calling thread's vCPU.
    unsafe {
        let old = jumps_of(cpu, space).add(own);
        let old_rip = key_of(old).load(Ordering::Relaxed);
        if old_rip != empty_key(own) {
            // What is in its way goes to another slot, if need be in another's place.
            let others = || (1..JUMP_WAYS).map(|way| own ^ way);
            let is_empty = |index: &usize| {
                key_of(jumps_of(cpu, space).add(*index)).load(Ordering::Relaxed) == empty_key(*index)
            };
            let victim = 1 + (rip >> 4) as usize % (JUMP_WAYS - 1);
            let slot = others().find(is_empty).unwrap_or(own ^ victim);
            set_jump(cpu, space, slot, old_rip, (*old).host);
        }
        set_jump(cpu, space, own, rip, host);
    }
}

/// # Safety
/// `slot` is below the table's length, and the caller is the vCPU's thread with the lock on [`Shared`] held.
unsafe fn set_jump(cpu: *mut Cpu, space: Space, slot: usize, rip: u64, host: u64) {
    // SAFETY: as the caller says.
    unsafe {
        let entry = jumps_of(cpu, space).add(slot);
        key_of(entry).store(empty_key(slot), Ordering::SeqCst);
        (*entry).host = host;
        key_of(entry).store(rip, Ordering::SeqCst);
    }
}

/// The host address of a block, if the jump cache has it.
pub(crate) fn find_jump(cpu: *mut Cpu, space: Space, rip: u64) -> Option<u64> {
    jump_slots(space, rip).find_map(|index| {
        // SAFETY: slots are below the table's length; the entries belong to the calling thread's vCPU.
        unsafe {
            let entry = jumps_of(cpu, space).add(index);
            (key_of(entry).load(Ordering::Relaxed) == rip).then(|| (*entry).host)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_share_a_place_in_the_jump_cache_are_found_until_forgotten() {
        let mut cpu = Cpu::new(0);
        let cpu: *mut Cpu = &raw mut *cpu;
        for space in Space::ALL {
            clear_jumps(cpu, space);
            let own = jump_index(space, 0);
            let rips: Vec<u64> =
                (0..1u64 << 24).filter(|rip| jump_index(space, *rip) == own).take(2 * JUMP_WAYS).collect();
            assert_eq!(rips.len(), 2 * JUMP_WAYS);
            for (count, rip) in rips.iter().enumerate() {
                assert_eq!(find_jump(cpu, space, *rip), None, "{space:?}");
                fill_jump(cpu, space, *rip, 1000 + rip);
                let found: Vec<u64> = rips.iter().filter_map(|rip| find_jump(cpu, space, *rip)).collect();
                assert_eq!(found.len(), (count + 1).min(JUMP_WAYS));
                assert_eq!(find_jump(cpu, space, *rip), Some(1000 + rip));
            }
            let kept: Vec<u64> =
                rips.into_iter().filter(|rip| find_jump(cpu, space, *rip).is_some()).collect();
            for rip in kept {
                assert_eq!(find_jump(cpu, space, rip), Some(1000 + rip));
                forget_jump(cpu, space, rip);
                assert_eq!(find_jump(cpu, space, rip), None);
            }
        }
    }
}
