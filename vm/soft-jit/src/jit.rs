//! The translator of a VM and its vCPUs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::WriteObserver;
use soft_cpu::env::page_flag;
use soft_cpu::{CodeWatch, Cpu, RamMap};

use crate::block::{Key, Mode, ONE_PAGE, SiteKind, Thunk};
use crate::cache::{CacheError, CodeCache};
use crate::layout::{EXIT_JUMP, EXIT_SIGNAL, EXIT_SITE, EXIT_STEP_VECTOR, LEAVING, head_of};
use crate::lockstep::Turns;
use crate::shared::{BlockId, Shared};
use crate::tlb::{Writers, drop_write_tags};
use crate::translate::{Source, Translator};
use crate::tuning::Tuning;

/// The translations of one VM, shared by its vCPUs.
pub struct Jit {
    shared: Mutex<Shared>,
    pub(crate) ram: Arc<RamMap>,
    pub(crate) writers: Writers,
    pub(crate) tuning: Tuning,
    /// Not zero while a vCPU waits for all others to be out of translated code.
    pub(crate) stop: AtomicU32,
    /// Units reused so far: a host address found before a change must not be entered after it.
    pub(crate) epoch: AtomicU64,
    /// The verifier refused a block: a defect, after which no more code is run.
    pub(crate) broken: Mutex<Option<String>>,
    is_broken: AtomicBool,
    enter: u64,
    pub(crate) signal_thunk: u64,
    pub(crate) save_vectors: u64,
    pub(crate) code_range: std::ops::Range<u64>,
    pub(crate) totals: Mutex<BTreeMap<String, u64>>,
    /// For lock-step mode.
    pub(crate) turns: Turns,
}

impl Jit {
    /// A translator for the VM whose memory this is. Register the result with
    /// [`GuestRam::observe`](guest_memory::GuestRam::observe) (it implements [`WriteObserver`]) and give it as
    /// [`Env::watch`](soft_cpu::Env).
    ///
    /// # Errors
    /// [`CacheError`] when the host gives no executable memory.
    pub fn new(ram: Arc<RamMap>, tuning: Tuning) -> Result<Arc<Self>, CacheError> {
        let cache = CodeCache::new(tuning.cache_bytes)?;
        let enter = cache.address(cache.thunk(Thunk::Enter));
        let signal_thunk = cache.address(cache.thunk(Thunk::Signal));
        let save_vectors = cache.address(cache.thunk(Thunk::SaveVectors));
        let code_range = cache.range();
        let writers = Writers::new(&ram);
        Ok(Arc::new(Self {
            shared: Mutex::new(Shared::new(cache, Translator::new(tuning))),
            ram,
            writers,
            tuning,
            stop: AtomicU32::new(0),
            epoch: AtomicU64::new(0),
            broken: Mutex::new(None),
            is_broken: AtomicBool::new(false),
            enter,
            signal_thunk,
            save_vectors,
            code_range,
            totals: Mutex::new(BTreeMap::new()),
            turns: Turns::default(),
        }))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of the thunk that enters translated code.
    pub(crate) fn enter_address(&self) -> u64 {
        self.enter
    }

    pub(crate) fn failure(&self) -> Option<String> {
        if !self.is_broken.load(Ordering::Relaxed) {
            return None;
        }
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn fail(&self, why: String) {
        self.is_broken.store(true, Ordering::SeqCst);
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// The block for the code at a place, translated if need be. `me` is the calling vCPU.
    pub(crate) fn block_for(
        &self,
        shared: &mut Shared,
        me: *mut Cpu,
        place: &Place,
        mode: Mode,
    ) -> Option<BlockId> {
        let user = mode.space == crate::layout::Space::User;
        let next = place.next.map_or(ONE_PAGE, |(gpa, _)| gpa);
        let key = Key { gpa: place.gpa, rip: if user { 0 } else { place.rip }, mode, next };
        if let Some(id) = shared.find(&key) {
            return Some(id);
        }
        self.protect_place(shared, me, place)?;
        let page = copy_page(place.host);
        let next_page = place.next.map(|(_, host)| copy_page(host));
        let source = Source {
            page: &page,
            next: next_page.as_deref(),
            linear_page: place.rip & !0xfff,
            offset: (place.gpa & 0xfff) as usize,
            mode,
            strict: (user && !self.tuning.flags_dead_at_user_return)
                || shared.strict_pages.contains(&(place.gpa & !0xfff)),
        };
        let mut emitted = shared.translator.translate(&source);
        if self.tuning.verify
            && let Err(why) = crate::verify::verify(&emitted, mode)
        {
            self.fail(format!(
                "The verifier refused the block at {:#x} (physical {:#x}): {why}",
                place.rip, place.gpa
            ));
            return None;
        }
        loop {
            if let Some(id) = shared.place(key, &mut emitted) {
                shared.flag_calls = std::mem::take(&mut emitted.flag_calls);
                self.unmark(shared);
                return Some(id);
            }
            self.stop_others(shared, me, |shared| {
                self.epoch.fetch_add(1, Ordering::SeqCst);
                resolve_exits(shared, me);
                shared.reuse_next_unit();
            });
            // The page may have lost its mark with its last block.
            self.unmark(shared);
            self.protect_place(shared, me, place)?;
        }
    }

    fn protect_place(&self, shared: &mut Shared, me: *mut Cpu, place: &Place) -> Option<()> {
        self.protect(shared, me, place.gpa, place.host as u64)?;
        if let Some((gpa, host)) = place.next {
            self.protect(shared, me, gpa, host as u64)?;
        }
        Some(())
    }

    /// Marks a page as holding code, so that stores to it are seen.
    fn protect(&self, shared: &mut Shared, me: *mut Cpu, gpa: u64, host: u64) -> Option<()> {
        let flags = self.ram.page_flags(gpa)?;
        if flags.fetch_or(page_flag::CODE, Ordering::SeqCst) & page_flag::CODE != 0 {
            return Some(());
        }
        let Some(writers) = self.writers.page(gpa) else { return Some(()) };
        let mask = writers.load(Ordering::SeqCst);
        if mask == 0 {
            return Some(());
        }
        // SAFETY: `me` is the calling thread's live vCPU.
        let mine = vcpu_bit(unsafe { (*me).index });
        if mask == mine && mine != 0x80 {
            drop_write_tags(me, host);
        } else {
            self.stop_others(shared, me, |shared| {
                for vcpu in &shared.vcpus {
                    drop_write_tags(vcpu.0, host);
                }
            });
        }
        writers.store(0, Ordering::SeqCst);
        Some(())
    }

    /// Pages without translations may be written freely again.
    pub(crate) fn unmark(&self, shared: &mut Shared) {
        for gpa in shared.freed_pages.drain(..) {
            if let Some(flags) = self.ram.page_flags(gpa) {
                flags.fetch_and(!page_flag::CODE, Ordering::SeqCst);
            }
        }
    }

    /// Does `work` while no other vCPU is in translated code. They leave at their next poll and cannot enter again before
    /// the work is done; a vCPU that waits for the lock is out.
    fn stop_others(&self, shared: &mut Shared, me: *mut Cpu, work: impl FnOnce(&mut Shared)) {
        self.stop.fetch_add(1, Ordering::SeqCst);
        for vcpu in shared.vcpus.iter().filter(|vcpu| vcpu.0 != me) {
            let mut spins = 0u32;
            loop {
                // SAFETY: registered vCPUs are alive; both fields are atomic.
                let inside = unsafe { (*head_of(vcpu.0)).in_guest.load(Ordering::SeqCst) };
                if inside != 1 {
                    break;
                }
                if spins == 0 {
                    // SAFETY: as above.
                    unsafe { (*vcpu.0).kick.store(1, Ordering::SeqCst) };
                }
                spins += 1;
                if spins > 100 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
        work(shared);
        self.stop.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counters of the whole VM.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let shared = self.lock();
        let stats = &shared.stats;
        let mut counters = vec![
            ("translated blocks".to_owned(), stats.blocks),
            ("translated instructions".to_owned(), stats.instructions),
            ("translated bytes".to_owned(), stats.bytes),
            ("linked jumps".to_owned(), stats.links),
            ("invalidated blocks".to_owned(), stats.killed),
            ("stores to code pages".to_owned(), stats.stores),
            ("evicted cache units".to_owned(), stats.evicted_units),
        ];
        drop(shared);
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        counters.extend(totals.iter().map(|(name, count)| (name.clone(), *count)));
        counters
    }
}

/// Looks up the exit sites of vCPUs that have left translated code and wait for the lock to do so themselves: their blocks
/// are about to go.
fn resolve_exits(shared: &mut Shared, me: *mut Cpu) {
    for vcpu in shared.vcpus.iter().filter(|vcpu| vcpu.0 != me) {
        let head = head_of(vcpu.0);
        // SAFETY: registered vCPUs are alive; while `in_guest` is LEAVING the owner waits for the lock that the caller
        // holds and touches neither its head nor its registers.
        unsafe {
            if (*head).in_guest.load(Ordering::SeqCst) != LEAVING {
                continue;
            }
            let Some(offset) = shared.cache.offset((*head).exit_site) else { continue };
            if !matches!((*head).exit_code, EXIT_SITE | EXIT_SIGNAL) {
                continue;
            }
            let signal = (*head).exit_code == EXIT_SIGNAL;
            let found = shared.block_at(offset + usize::from(signal)).and_then(|id| shared.block(id));
            let Some(block) = found else { continue };
            let user = block.key.mode.space == crate::layout::Space::User;
            let page = if user { (*head).pc_base } else { block.key.rip & !0xfff };
            let (at, code) = if signal {
                let Some(at) = block.guest_offset(offset) else { continue };
                (at, EXIT_STEP_VECTOR)
            } else {
                match block.site(offset).map(|site| site.kind) {
                    Some(SiteKind::Chain { target, .. } | SiteKind::Kick(target)) => (target, EXIT_JUMP),
                    Some(SiteKind::Miss { at, .. }) => (at, EXIT_STEP_VECTOR),
                    None => continue,
                }
            };
            (*vcpu.0).rip = page.wrapping_add(u64::from(at));
            (*head).exit_code = code;
        }
    }
}

/// Where code lies.
pub(crate) struct Place {
    /// Guest-physical address of the first byte.
    pub(crate) gpa: u64,
    /// Host address of its page.
    pub(crate) host: *const u8,
    /// Linear address of the first byte.
    pub(crate) rip: u64,
    /// Guest-physical and host address of the next page, for an instruction that goes on there.
    pub(crate) next: Option<(u64, *const u8)>,
}

fn copy_page(host: *const u8) -> Box<[u8; 4096]> {
    let mut page = Box::new([0u8; 4096]);
    // SAFETY: `host` is the page-aligned host address of a page of guest memory (from the page walk). The guest may change
    // it meanwhile: whatever is read is translated as it was read, and a change is reported to `stored` because the page
    // is marked.
    unsafe { std::ptr::copy_nonoverlapping(host, page.as_mut_ptr(), page.len()) };
    page
}

/// The bit of a vCPU in the writers of a page.
pub(crate) fn vcpu_bit(index: u32) -> u8 {
    1 << index.min(7)
}

impl std::fmt::Debug for Jit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jit").field("tuning", &self.tuning).finish_non_exhaustive()
    }
}

impl CodeWatch for Jit {
    fn stored(&self, gpa: u64, len: u64) {
        let mut shared = self.lock();
        shared.stored(gpa, len);
        self.unmark(&mut shared);
    }
}

impl WriteObserver for Jit {
    fn written(&self, gpa: u64, len: u64) {
        self.turns.device_stores.fetch_add(1, Ordering::SeqCst);
        // Whoever makes a page code sets its flag first and reads it afterwards; here it is the other way round.
        fence(Ordering::SeqCst);
        let mut at = gpa;
        let mut left = len;
        while left > 0 {
            let piece = left.min(4096 - (at & 0xfff));
            if self
                .ram
                .page_flags(at)
                .is_some_and(|flags| flags.load(Ordering::SeqCst) & page_flag::CODE != 0)
            {
                self.stored(at, piece);
            }
            at = at.wrapping_add(piece);
            left -= piece;
        }
    }
}
