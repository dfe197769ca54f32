//! The run loop of one vCPU: finds or makes blocks, enters them, and does what they leave for Rust.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, PoisonError};

use iced_x86::{Code, Decoder, Instruction};
use soft_cpu::cpu::{cr, flag, reg, sreg};
use soft_cpu::{Access, Cpu, Env, Executor, Exit, Page, Step, translate};

use crate::block::{Mode, ONE_PAGE, Site, SiteKind, Vectors};
use crate::host;
use crate::jit::{Jit, Place, vcpu_bit};
use crate::layout::{
    EXIT_BRANCH, EXIT_JUMP, EXIT_SIGNAL, EXIT_SITE, EXIT_STEP, EXIT_STEP_VECTOR, Head, LEAVING, Space,
    head_of,
};
use crate::lockstep::{self, Left, LockStep};
use crate::shared::{BlockId, Shared, VcpuRef, clear_jumps, fill_jump, find_jump};
use crate::tlb::{self, RunContext, StoreQueue, TlbState, space_of};

/// Runs guest code of one vCPU by translation. Lives on the vCPU's thread.
pub struct JitVcpu {
    jit: Arc<Jit>,
    cpu: *mut Cpu,
    stack: host::Stack,
    tlb: TlbState,
    no_vector: bool,
    counts: Counts,
    /// In lock-step mode.
    lockstep: Option<Box<LockStep>>,
}

#[derive(Debug, Default)]
struct Counts {
    entries: u64,
    steps: u64,
    misses: u64,
    lookups: u64,
    exits: [u64; 5],
    by_name: BTreeMap<String, u64>,
}

/// What to do next.
enum Next {
    /// Enter this host address.
    Enter(u64),
    /// The same in lock-step, with the block that is there.
    EnterInStep(u64, BlockId),
    /// Interpret one instruction.
    Step(Vectors),
}

impl JitVcpu {
    /// An executor for one vCPU of the VM that `jit` belongs to.
    ///
    /// # Errors
    /// When the host gives no memory for the private stack.
    pub fn new(jit: &Arc<Jit>) -> std::io::Result<Self> {
        Ok(Self {
            jit: jit.clone(),
            cpu: std::ptr::null_mut(),
            stack: host::Stack::new()?,
            tlb: TlbState::default(),
            no_vector: false,
            counts: Counts::default(),
            lockstep: jit.tuning.lockstep.then(Box::default),
        })
    }

    /// Reports the stores that page walks of refills made to pages with code.
    fn report_pending(&self, context: &mut RunContext<'_>) {
        if !context.pending.is_empty() {
            self.report(&mut self.jit.lock(), context.pending.drain(..));
        }
    }

    fn report(&self, shared: &mut Shared, stores: impl Iterator<Item = (u64, u64)>) {
        for (gpa, len) in stores {
            shared.stored(gpa, len);
        }
        self.jit.unmark(shared);
    }

    /// Translates a code address with the lock held: stores of the walk to pages with code are queued, because to report
    /// them takes the lock.
    fn translate_locked(&self, context: &RunContext<'_>, shared: &mut Shared, linear: u64) -> Option<Page> {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &*self.cpu };
        let queue = StoreQueue::default();
        let env = Env { watch: &queue, ..context.env };
        let page = translate(state, &env, linear, Access::exec(state));
        let stores = queue.take();
        if !stores.is_empty() {
            self.report(shared, stores.into_iter());
        }
        page.ok()
    }

    fn head(&self) -> *mut Head {
        head_of(self.cpu)
    }

    /// First use with this Cpu: fills in the head and clears the tables.
    fn attach(&mut self, cpu: *mut Cpu) {
        if self.cpu == cpu {
            return;
        }
        self.detach();
        self.cpu = cpu;
        let head = self.head();
        // SAFETY: the head belongs to this executor alone while it is attached.
        unsafe {
            (*head).host_stack = self.stack.top();
            (*head).refill = tlb::refill_from_thunk as *const () as u64;
            (*head).this = cpu as u64;
            for space in Space::ALL {
                (*head).index_mask[space as usize] = (space.tlb_len() as u64 - 1) << 12;
                (*head).jump_mask[space as usize] = space.jump_len() as u64 - 1;
            }
            (*head).page_mask = !0xfff;
            (*head).bit_mask = [63, 31];
            (*head).host_mxcsr = 0x1f80;
        }
        tlb::clear_all(cpu, &mut self.tlb);
        self.jit.lock().vcpus.push(VcpuRef(cpu));
    }

    fn detach(&mut self) {
        if !self.cpu.is_null() {
            let cpu = self.cpu;
            self.jit.lock().vcpus.retain(|vcpu| vcpu.0 != cpu);
            self.cpu = std::ptr::null_mut();
        }
    }

    fn run_loop(&mut self, context: &mut RunContext<'_>) -> Exit {
        let cpu = self.cpu;
        loop {
            self.report_pending(context);
            if let Some(why) = self.jit.failure() {
                return Exit::Crashed(why);
            }
            // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
            let state = unsafe { &mut *cpu };
            if state.kick.load(Ordering::SeqCst) != 0 {
                return Exit::Kicked;
            }
            if let Some(lockstep) = &mut self.lockstep {
                lockstep.take_turn(&self.jit.turns);
            }
            if !state.tlb_events.is_empty() {
                let events = std::mem::take(&mut state.tlb_events);
                tlb::apply(cpu, &mut context.tlb, &events, state.pcid());
                state.tlb_events = events;
                state.tlb_events.clear();
            }
            let epoch = self.jit.epoch.load(Ordering::SeqCst);
            let next = if wants_single_step(state) { Next::Step(Vectors::Used) } else { self.find(context) };
            match next {
                Next::Enter(host) => {
                    if self.enter(host, epoch)
                        && let Some(exit) = self.after(context).unwrap_or_else(|why| Some(Exit::Crashed(why)))
                    {
                        return exit;
                    }
                }
                Next::EnterInStep(host, id) => {
                    let exit = match self.enter_in_step(context, host, id, epoch) {
                        Ok(Some(Left::Step(vectors))) => self.step(context, vectors),
                        Ok(_) => None,
                        Err(why) => Some(Exit::Crashed(why)),
                    };
                    if let Some(exit) = exit {
                        return exit;
                    }
                }
                Next::Step(vectors) => {
                    if let Some(exit) = self.step(context, vectors) {
                        return exit;
                    }
                }
            }
        }
    }

    /// Runs the block `id` at `host` twice: by the interpreter, dry, and for real.
    fn enter_in_step(
        &mut self,
        context: &mut RunContext<'_>,
        host: u64,
        id: BlockId,
        epoch: u64,
    ) -> Result<Option<Left>, String> {
        let jit = self.jit.clone();
        self.save_vectors();
        {
            let shared = jit.lock();
            let Some(lockstep) = self.lockstep.as_deref_mut() else { return Ok(None) };
            let Some(block) = shared.block(id).filter(|_| jit.epoch.load(Ordering::SeqCst) == epoch) else {
                return Ok(None);
            };
            lockstep.choose(id, block.offsets());
        }
        if let Some(lockstep) = self.lockstep.as_deref_mut() {
            // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
            lockstep.rehearse(unsafe { &mut *self.cpu }, &context.env, &jit.turns);
        }
        if !self.enter(host, epoch) {
            return Ok(None);
        }
        let left = self.leave(context)?;
        self.save_vectors();
        let Some(lockstep) = self.lockstep.as_deref_mut() else { return Ok(Some(left)) };
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let cpu = unsafe { &*self.cpu };
        let in_use = |id| jit.epoch.load(Ordering::SeqCst) == epoch && jit.lock().is_alive(id);
        lockstep
            .compare(cpu, &context.env, &jit.turns, left, !jit.tuning.liveness, in_use)
            .map_err(|difference| difference.text + &self.code_at(context, difference.rip))?;
        Ok(Some(left))
    }

    /// The code at a linear address in words.
    fn code_at(&self, context: &RunContext<'_>, rip: u64) -> String {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &*self.cpu };
        let bytes = code_bytes(state, context, rip);
        lockstep::describe(bytes.as_deref().unwrap_or_default(), rip, self.jit.tuning.block_limit)
    }

    /// Brings the guest's vector state into `cpu.xsave`.
    fn save_vectors(&mut self) {
        // SAFETY: the head belongs to this executor; the address is the thunk of that name, a System V function without
        // arguments that needs `gs`, which `run` has set.
        unsafe {
            if (*self.head()).vectors_live != 0 {
                let save: extern "sysv64" fn() = std::mem::transmute(self.jit.save_vectors as *const ());
                save();
            }
        }
    }

    fn step(&mut self, context: &mut RunContext<'_>, vectors: Vectors) -> Option<Exit> {
        if vectors == Vectors::Used {
            self.save_vectors();
        }
        self.counts.steps += 1;
        if self.jit.tuning.count {
            self.count_step(context);
        }
        if self.lockstep.is_some() {
            return self.step_in_step(context);
        }
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &mut *self.cpu };
        exit_of(soft_cpu::exec::step(state, &context.env))
    }

    /// Interprets one instruction for real, with an eye on the flags it reads.
    #[cold]
    fn step_in_step(&mut self, context: &RunContext<'_>) -> Option<Exit> {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &mut *self.cpu };
        let lockstep = self.lockstep.as_deref_mut()?;
        let instr = code_bytes(state, context, state.rip)
            .map(|bytes| Decoder::with_ip(64, &bytes, state.rip, 0).decode())
            .filter(|instr| !instr.is_invalid());
        if let Err(why) = lockstep.before_step(state, instr.as_ref()) {
            return Some(Exit::Crashed(why));
        }
        let step = soft_cpu::exec::step(state, &context.env);
        lockstep.after_step(state, instr.as_ref());
        exit_of(step)
    }

    /// Counts the instruction that is about to be interpreted by its name.
    #[cold]
    fn count_step(&mut self, context: &RunContext<'_>) {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &*self.cpu };
        let Some(bytes) = code_bytes(state, context, state.rip) else { return };
        let instr = Decoder::with_ip(64, &bytes, 0, 0).decode();
        *self
            .counts
            .by_name
            .entry(format!("interpreted {:?} cpl{}", instr.code(), state.cpl))
            .or_insert(0) += 1;
    }

    /// The translation of the code at RIP.
    fn find(&mut self, context: &mut RunContext<'_>) -> Next {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &*self.cpu };
        let space = space_of(state);
        let no_vector = vector_may_fault(state);
        if no_vector != self.no_vector {
            self.no_vector = no_vector;
            for space in Space::ALL {
                clear_jumps(self.cpu, space);
            }
        }
        if self.lockstep.is_none()
            && let Some(host) = find_jump(self.cpu, space, state.rip)
        {
            return Next::Enter(host);
        }
        let jit = self.jit.clone();
        let mut shared = jit.lock();
        let Some(id) = self.lookup(context, &mut shared, Mode { space, no_vector }) else {
            return Next::Step(Vectors::Used);
        };
        let Some(block) = shared.block(id) else { return Next::Step(Vectors::Used) };
        let host = shared.cache.address(block.at);
        if self.lockstep.is_some() {
            // The jump cache stays empty: every jump comes here.
            return block.step_only.map_or(Next::EnterInStep(host, id), Next::Step);
        }
        let pages = if block.key.next == ONE_PAGE { 1 } else { 2 };
        tlb::note_code(self.cpu, &mut context.tlb, space, state.rip, pages);
        fill_jump(self.cpu, space, state.rip, host);
        if let Some(vectors) = block.step_only {
            return Next::Step(vectors);
        }
        Next::Enter(host)
    }

    fn lookup(&mut self, context: &mut RunContext<'_>, shared: &mut Shared, mode: Mode) -> Option<BlockId> {
        self.counts.lookups += 1;
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &*self.cpu };
        if !soft_cpu::paging::is_canonical(state.rip) {
            return None;
        }
        let page = self.translate_locked(context, shared, state.rip)?;
        if page.host.is_null() {
            return None;
        }
        tlb::note_page(self.cpu, &mut context.tlb, mode.space, (state.rip, state.rip), &page);
        let mut place =
            Place { gpa: page.gpa | (state.rip & 0xfff), host: page.host, rip: state.rip, next: None };
        let id = self.jit.block_for(shared, self.cpu, &place, mode)?;
        if !shared.block(id)?.crossing {
            return self.settle_flag_calls(context, shared, id);
        }
        let linear = (state.rip | 0xfff).wrapping_add(1);
        if !soft_cpu::paging::is_canonical(linear) {
            return None;
        }
        let page = self.translate_locked(context, shared, linear)?;
        if page.host.is_null() {
            return None;
        }
        tlb::note_page(self.cpu, &mut context.tlb, mode.space, (state.rip, linear), &page);
        place.next = Some((page.gpa, page.host));
        let id = self.jit.block_for(shared, self.cpu, &place, mode)?;
        self.settle_flag_calls(context, shared, id)
    }

    /// Sees to it that routines which the block calls for their effect on flags, or lack of it, keep them at their return.
    /// `None` = interpret this time: the routine's page is not there yet, or its translations were just dropped.
    fn settle_flag_calls(
        &self,
        context: &RunContext<'_>,
        shared: &mut Shared,
        id: BlockId,
    ) -> Option<BlockId> {
        if shared.flag_calls.is_empty() {
            return Some(id);
        }
        for target in std::mem::take(&mut shared.flag_calls) {
            match self.translate_locked(context, shared, target) {
                Some(page) => shared.make_strict(page.gpa),
                None => shared.discard(id),
            }
            // Such routines are short, but may go on in the next page.
            let end = target.wrapping_add(0x200);
            if end & !0xfff != target & !0xfff
                && let Some(page) = self.translate_locked(context, shared, end)
            {
                shared.make_strict(page.gpa);
            }
        }
        self.jit.unmark(shared);
        shared.is_alive(id).then_some(id)
    }

    /// Runs translated code from `host` (found in `epoch`) until it leaves; false if another vCPU has stopped all others
    /// or a unit was reused meanwhile.
    fn enter(&mut self, host: u64, epoch: u64) -> bool {
        let head = self.head();
        // SAFETY: the head belongs to this executor; `in_guest` is atomic.
        unsafe {
            (*head).in_guest.store(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if self.jit.stop.load(Ordering::SeqCst) != 0 || self.jit.epoch.load(Ordering::SeqCst) != epoch {
                (*head).in_guest.store(0, Ordering::SeqCst);
                drop(self.jit.lock());
                return false;
            }
            (*head).pc_base = (*self.cpu).rip & !0xfff;
            (*head).entry = host;
            self.counts.entries += 1;
            // SAFETY: the address is the enter thunk, which keeps the System V ABI; gs is set by `run`; `host` is the
            // entry of a block that was found under the lock, and its unit cannot be reused while `in_guest` is set.
            let enter: extern "sysv64" fn() = std::mem::transmute(self.jit.enter_address() as *const ());
            enter();
            // Until the site is looked up its block must stay known: see `Jit::resolve_exits`.
            let pending = matches!((*head).exit_code, EXIT_SITE | EXIT_SIGNAL);
            (*head).in_guest.store(if pending { LEAVING } else { 0 }, Ordering::SeqCst);
        }
        true
    }

    /// Handles the exit that was just made; the error is a defect.
    fn after(&mut self, context: &mut RunContext<'_>) -> Result<Option<Exit>, String> {
        match self.leave(context)? {
            Left::Jump => Ok(None),
            Left::Step(vectors) => Ok(self.step(context, vectors)),
        }
    }

    /// A jump that left for a target which is no address raises #GP itself (Intel SDM 2, JMP, CALL, RET, Jcc): undoes it for
    /// the interpreter, which will say so. False if the target is an address.
    fn is_back_at_branch(&mut self, context: &RunContext<'_>) -> bool {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here. The head belongs to this executor.
        let (state, from, page) = unsafe {
            let head = self.head();
            (&mut *self.cpu, (*head).exit_site, (*head).pc_base)
        };
        if soft_cpu::paging::is_canonical(state.rip) {
            return false;
        }
        let from = if space_of(state) == Space::User { page.wrapping_add(from) } else { from };
        let Some(bytes) = code_bytes(state, context, from) else { return false };
        let Some(change) = stack_change(&Decoder::with_ip(64, &bytes, from, 0).decode()) else {
            return false;
        };
        state.rip = from;
        let rsp = &mut state.gpr[reg::RSP];
        *rsp = rsp.wrapping_sub(change);
        true
    }

    /// Finds out where the exit that was just made leads, and links jumps.
    fn leave(&mut self, context: &mut RunContext<'_>) -> Result<Left, String> {
        // SAFETY: the head belongs to this executor; while `in_guest` is LEAVING, its exit code belongs to whoever holds the
        // lock.
        let (pending, code) = unsafe {
            let head = self.head();
            if host::bus_error() {
                (*head).in_guest.store(0, Ordering::SeqCst);
                return Err("The host could not read a page of guest memory (SIGBUS)".to_owned());
            }
            let pending = (*head).in_guest.load(Ordering::SeqCst) == LEAVING;
            (pending, if pending { 0 } else { (*head).exit_code })
        };
        if code == EXIT_STEP || code == EXIT_STEP_VECTOR {
            self.counts.exits[3] += 1;
            let vectors = if code == EXIT_STEP { Vectors::Untouched } else { Vectors::Used };
            return Ok(Left::Step(vectors));
        }
        if code == EXIT_BRANCH && self.is_back_at_branch(context) {
            return Ok(Left::Step(Vectors::Used));
        }
        if code == EXIT_JUMP || code == EXIT_BRANCH {
            self.counts.exits[0] += 1;
            if self.jit.tuning.count {
                // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
                let state = unsafe { &*self.cpu };
                let name = format!("missed jump to {:#x} {:?}", state.rip, space_of(state));
                *self.counts.by_name.entry(name).or_insert(0) += 1;
            }
            return Ok(Left::Jump);
        }
        if !pending {
            return Err(format!("Translated code left with code {code}"));
        }
        self.leave_block(context)
    }

    /// The same for an exit whose block has to be looked up.
    fn leave_block(&mut self, context: &mut RunContext<'_>) -> Result<Left, String> {
        let jit = self.jit.clone();
        let mut shared = jit.lock();
        // SAFETY: the head belongs to this executor, and to whoever holds the lock while `in_guest` is LEAVING.
        let (code, address, pc_base) = unsafe {
            let head = self.head();
            (*head).in_guest.store(0, Ordering::SeqCst);
            ((*head).exit_code, (*head).exit_site, (*head).pc_base)
        };
        if code == EXIT_JUMP {
            return Ok(Left::Jump);
        }
        if code == EXIT_STEP_VECTOR {
            return Ok(Left::Step(Vectors::Used));
        }
        let offset = shared.cache.offset(address);
        let lookup = if code == EXIT_SIGNAL { offset.map(|offset| offset + 1) } else { offset };
        let found = lookup.and_then(|lookup| shared.block_at(lookup));
        let (Some(offset), Some(id)) = (offset, found) else {
            return Err(format!("Translated code left at {address:#x}, which is in no block"));
        };
        let Some(block) = shared.block(id) else {
            return Err("A block has vanished".to_owned());
        };
        let user = block.key.mode.space == Space::User;
        let page = if user { pc_base } else { block.key.rip & !0xfff };
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &mut *self.cpu };
        match code {
            EXIT_SITE => {}
            EXIT_SIGNAL => {
                let Some(guest) = block.guest_offset(offset) else {
                    return Err(format!("No instruction is known at {address:#x}"));
                };
                state.rip = page.wrapping_add(u64::from(guest));
                return Ok(Left::Step(Vectors::Used));
            }
            other => return Err(format!("Translated code left with code {other}")),
        }
        let Some(site) = block.site(offset).copied() else {
            return Err(format!("No exit is known at {address:#x}"));
        };
        Ok(self.leave_site(context, &mut shared, id, page, site))
    }

    /// The same for the exit at a site of the block `id`, whose code is of the linear page `page`.
    fn leave_site(
        &mut self,
        context: &mut RunContext<'_>,
        shared: &mut Shared,
        id: BlockId,
        page: u64,
        site: Site,
    ) -> Left {
        // SAFETY: the vCPU's own thread; no other reference to the Cpu is alive here.
        let state = unsafe { &mut *self.cpu };
        match site.kind {
            SiteKind::Chain { patch, target } => {
                self.counts.exits[1] += 1;
                state.rip = page.wrapping_add(u64::from(target));
                if self.jit.tuning.chain && self.lockstep.is_none() {
                    self.link(context, shared, id, site.ret, patch);
                }
                Left::Jump
            }
            SiteKind::Kick(target) => {
                self.counts.exits[2] += 1;
                state.rip = page.wrapping_add(u64::from(target));
                Left::Jump
            }
            SiteKind::Miss { at, vector } => {
                self.counts.misses += 1;
                state.rip = page.wrapping_add(u64::from(at));
                Left::Step(if vector { Vectors::Used } else { Vectors::Untouched })
            }
        }
    }

    /// Links the jump at `patch` of the block `id` to the block at RIP, if that lies in the same frame.
    fn link(&mut self, context: &mut RunContext<'_>, shared: &mut Shared, id: BlockId, ret: u32, patch: u32) {
        let Some(key) = shared.block(id).map(|block| block.key) else { return };
        let evicted = shared.stats.evicted_units;
        if let Some(to) = self.lookup(context, shared, key.mode)
            && evicted == shared.stats.evicted_units
            // The page may have another frame by now, and other processes may share this one.
            && shared.block(to).is_some_and(|to| {
                to.key.next == ONE_PAGE && !to.crossing && to.key.gpa & !0xfff == key.gpa & !0xfff
            })
        {
            shared.link(id, ret, patch, to);
        }
    }
}

/// How much a near jump, call or return has changed RSP when it is done.
fn stack_change(instr: &Instruction) -> Option<u64> {
    match instr.code() {
        Code::Retnq => Some(8),
        Code::Retnq_imm16 => Some(8 + u64::from(instr.immediate16())),
        Code::Call_rm64 | Code::Call_rel32_64 => Some(8u64.wrapping_neg()),
        _ if instr.is_jmp_near_indirect() || instr.is_jmp_short_or_near() => Some(0),
        _ if instr.is_jcc_short_or_near() => Some(0),
        _ => None,
    }
}

/// What the result of an interpreted instruction means for the run loop.
fn exit_of(step: Step) -> Option<Exit> {
    match step {
        Step::Done => None,
        Step::Halt => Some(Exit::Halt),
        Step::Shutdown => Some(Exit::Shutdown),
    }
}

/// A copy of the code at a linear address, up to the end of its page.
fn code_bytes(state: &Cpu, context: &RunContext<'_>, rip: u64) -> Option<Vec<u8>> {
    let page = translate(state, &context.env, rip, Access::exec(state)).ok()?;
    if page.host.is_null() {
        return None;
    }
    let offset = (rip & 0xfff) as usize;
    let mut bytes = vec![0; (4096 - offset).min(256)];
    // SAFETY: the host page is mapped and the copy stays inside it; guest memory may change meanwhile, which matters only
    // to what is counted and reported.
    unsafe { std::ptr::copy_nonoverlapping(page.host.add(offset), bytes.as_mut_ptr(), bytes.len()) };
    Some(bytes)
}

/// States that translated code does not handle: not 64-bit mode, a trap after each instruction, the shadow of STI or
/// MOV SS.
fn wants_single_step(cpu: &Cpu) -> bool {
    let long = cpu.efer & cr::EFER_LMA != 0 && cpu.seg[sreg::CS].attributes & (1 << 13) != 0;
    !long || cpu.rflags & flag::TF != 0 || cpu.shadow != 0 || cpu.dr7 & 0xff != 0 || !matches!(cpu.cpl, 0 | 3)
}

/// Whether an x87, SSE or AVX instruction could raise #NM or #UD on the guest where the host would run it, or RDTSC #GP.
fn vector_may_fault(cpu: &Cpu) -> bool {
    cpu.cr4 & cr::CR4_TSD != 0
        || cpu.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0
        || cpu.cr4 & (cr::CR4_OSFXSR | cr::CR4_OSXSAVE | cr::CR4_OSXMMEXCPT)
            != cr::CR4_OSFXSR | cr::CR4_OSXSAVE | cr::CR4_OSXMMEXCPT
        || cpu.xcr0 & 7 != 7
}

impl Executor for JitVcpu {
    fn run(&mut self, cpu: &mut Cpu, env: &Env<'_>) -> Exit {
        let cpu: *mut Cpu = cpu;
        self.attach(cpu);
        host::set_gs_base(cpu as u64);
        host::handle_faults(self.jit.code_range.clone(), self.jit.signal_thunk);
        // SAFETY: the vCPU's own live Cpu.
        let bit = vcpu_bit(unsafe { (*cpu).index });
        let jit = self.jit.clone();
        let mut context = RunContext {
            env: *env,
            writers: &jit.writers,
            tlb: std::mem::take(&mut self.tlb),
            bit,
            pending: Vec::new(),
        };
        // SAFETY: the head belongs to this executor.
        unsafe { (*self.head()).context = (&raw mut context) as u64 };
        let exit = self.run_loop(&mut context);
        if let Some(lockstep) = &mut self.lockstep {
            lockstep.end_turn(&jit.turns);
        }
        self.report_pending(&mut context);
        self.save_vectors();
        // SAFETY: as above.
        unsafe { (*self.head()).context = 0 };
        self.tlb = context.tlb;
        exit
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let mut counters = vec![
            ("exits by jump".to_owned(), self.counts.exits[0]),
            ("exits by unlinked jump".to_owned(), self.counts.exits[1]),
            ("exits by kick".to_owned(), self.counts.exits[2]),
            ("exits for an instruction".to_owned(), self.counts.exits[3]),
            ("entries into translated code".to_owned(), self.counts.entries),
            ("interpreted instructions".to_owned(), self.counts.steps),
            ("accesses left to the interpreter".to_owned(), self.counts.misses),
            ("block look-ups".to_owned(), self.counts.lookups),
            ("TLB refills".to_owned(), self.tlb.refills),
            ("TLB flushes".to_owned(), self.tlb.flushes),
            ("TLB flushes of all entries".to_owned(), self.tlb.full_flushes),
        ];
        counters.extend(tlb::EVENTS.into_iter().map(str::to_owned).zip(self.tlb.events));
        if let Some(lockstep) = &self.lockstep {
            counters.extend(lockstep.counters());
        }
        counters.extend(self.counts.by_name.iter().map(|(name, count)| (name.clone(), *count)));
        counters
    }

    fn invalidate(&mut self, cpu: &mut Cpu) {
        let cpu: *mut Cpu = cpu;
        self.attach(cpu);
        tlb::clear_all(cpu, &mut self.tlb);
    }
}

impl Drop for JitVcpu {
    fn drop(&mut self) {
        let mut totals = self.jit.totals.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in self.counters() {
            *totals.entry(name).or_insert(0) += count;
        }
        drop(totals);
        self.detach();
    }
}

impl std::fmt::Debug for JitVcpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JitVcpu").field("counts", &self.counts).finish_non_exhaustive()
    }
}
