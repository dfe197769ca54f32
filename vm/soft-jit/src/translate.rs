//! Guest code to host code, one block at a time.
//!
//! A block is a run of instructions inside one page, extended past conditional branches that are not taken. Every guest
//! instruction commits after its last memory check, so the state is exact at each site that leaves to Rust.

use iced_x86::{CpuidFeature, Encoder, Instruction, InstructionInfoFactory, Mnemonic};

use crate::block::{Emitted, Mode, Site, SiteKind, Thunk, Vectors};
use crate::decode::{
    Class, Decoded, LOOK_AHEAD, LookAhead, STATUS, classify, decode_at, decode_crossing, line_mask,
    returns_flags,
};
use crate::emit::{Asm, Mem, NOT_EQUAL, R10, R11, RCX};
use crate::layout::{JUMP_HOST, JUMP_MASK, KICK, PAGE_MASK, PC_BASE, SPILL_RCX, Space};
use crate::tuning::Tuning;

/// The source of a block.
pub(crate) struct Source<'a> {
    /// A copy of the page.
    pub(crate) page: &'a [u8; 4096],
    /// A copy of the next page, if the one instruction wanted goes on there.
    pub(crate) next: Option<&'a [u8; 4096]>,
    /// Linear address of the page: exact for CPL 0, an arbitrary page-aligned value for CPL 3.
    pub(crate) linear_page: u64,
    /// Offset of the first instruction.
    pub(crate) offset: usize,
    pub(crate) mode: Mode,
    /// Flags are live at returns.
    pub(crate) strict: bool,
}

/// Instructions behind a call in which a reader of flags is looked for.
pub(crate) const FLAG_PEEK: u32 = 6;

/// Something to be emitted behind the block, where it is not in the way.
pub(crate) enum Cold {
    /// The instruction at `at` is for the interpreter.
    Step { from: u32, at: u32, vectors: Vectors },
    /// The same; the status flags are in their slot.
    StepWithFlags { from: u32, at: u32, vectors: Vectors },
    /// `call` of the site thunk.
    Site { from: u32, kind: SiteKind },
    /// A TLB miss: (re)make the address in r10, call the refill, try again at `retry`.
    Miss { from: u32, retry: u32, kind: u32, offset: u32, vector: bool, undo: Undo },
    /// A taken branch (the instruction at `at`) to another page.
    Far { from: u32, target: u64, at: u32, live: bool },
    /// The jump of the instruction at `at` to the address in r10 missed the jump cache.
    BranchMiss { from: [u32; 2], at: u32, space: Space },
    /// A taken backward branch inside the page.
    Back { from: u32, target: u32, live: bool },
}

/// How a failed check gets the address back into r10.
#[derive(Clone, Copy)]
pub(crate) enum Undo {
    /// The tag at this `gs:[r11 + offset]` was XORed in.
    Xor(i32),
    /// rcx was spilled; r10 is intact.
    Rcx,
}

/// Translates blocks; keeps buffers between them.
pub(crate) struct Translator {
    pub(crate) encoder: Encoder,
    pub(crate) info: InstructionInfoFactory,
    pub(crate) tuning: Tuning,
    /// Whether the host runs the instructions of an extension.
    pub(crate) host_has: fn(CpuidFeature) -> bool,
}

/// One block under construction.
pub(crate) struct Builder<'a> {
    pub(crate) asm: Asm,
    pub(crate) out: Emitted,
    pub(crate) cold: Vec<Cold>,
    pub(crate) source: &'a Source<'a>,
    pub(crate) tools: &'a mut Translator,
    /// Offset of the instruction being translated.
    pub(crate) at: u32,
    /// Whether any status flag is live before the instruction being translated.
    pub(crate) live: bool,
    /// What the instruction being translated does to vector state.
    pub(crate) vectors: Vectors,
    /// The class of the instruction behind it, if it is in the block.
    pub(crate) following: Option<Class>,
}

/// The instruction (or a part of it) cannot be translated; the interpreter gets it.
#[derive(Debug)]
pub(crate) struct Unsupported;

impl Translator {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self {
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            tuning,
            host_has: soft_cpu::host_has,
        }
    }

    /// Translates the block that starts at `source.offset`.
    pub(crate) fn translate(&mut self, source: &Source<'_>) -> Emitted {
        let decoded = self.decode_block(source);
        let (live, looked_at, looked_at_next) = self.liveness(source, &decoded);
        let mut builder = Builder {
            asm: Asm::default(),
            out: Emitted { lines: looked_at, next_lines: looked_at_next, ..Emitted::default() },
            cold: Vec::new(),
            source,
            tools: self,
            at: source.offset as u32,
            live: true,
            vectors: Vectors::Used,
            following: None,
        };
        builder.run(&decoded, &live);
        builder.finish()
    }

    /// The instructions of the block, the one that ends it included.
    fn decode_block(&self, source: &Source<'_>) -> Vec<Decoded> {
        let mut decoded = Vec::new();
        let mut offset = source.offset;
        if let Some(next) = source.next {
            let instr = decode_crossing(source.page, next, offset, source.linear_page);
            decoded.extend(instr.map(|instr| self.decode_one(instr, source)));
            return decoded;
        }
        while decoded.len() < self.tuning.block_limit && offset < 4096 {
            let Some(instr) = decode_at(source.page, offset, source.linear_page) else { break };
            let item = self.decode_one(instr, source);
            decoded.push(item);
            let ends = match item.class {
                Class::Copy
                | Class::Nop
                | Class::CacheLine
                | Class::Lea
                | Class::BitString
                | Class::Push
                | Class::Pop
                | Class::Leave
                | Class::Pause
                | Class::Cli
                | Class::Cld
                | Class::ReadControl
                | Class::PushFlags
                | Class::Sti
                | Class::SwapGs
                | Class::RepString
                | Class::ReadSegment
                | Class::ReadBase
                | Class::WriteBase
                | Class::ReadTsc => false,
                Class::Branch => !self.tuning.extend,
                _ => true,
            };
            if ends {
                break;
            }
            offset += instr.len().max(1);
        }
        decoded
    }

    fn decode_one(&self, instr: Instruction, source: &Source<'_>) -> Decoded {
        let mut item = classify(instr);
        #[cfg(test)]
        if let Some((from, to)) = self.tuning.defect
            && instr.code() == from
        {
            item.instr.set_code(to);
        }
        let kernel = source.mode.space != Space::User;
        let system = self.tuning.inline_system;
        let enabled = match item.class {
            // CLI and PUSHF depend on IOPL at CPL 3; the others are privileged or depend on CR4 there.
            Class::Cli | Class::PushFlags | Class::Sti | Class::Stac | Class::Clac | Class::SwapGs => {
                system && kernel
            }
            Class::ReadBase | Class::WriteBase | Class::ReadControl => system && kernel,
            Class::ReadSegment | Class::RepString | Class::Cld => system,
            // `no_vector` stands for CR4.TSD too.
            Class::ReadTsc => system && !source.mode.no_vector && !self.tuning.slow_clock,
            // CPUID does not keep a program from running what the host lacks.
            Class::Copy => instr.cpuid_features().iter().all(|feature| (self.host_has)(*feature)),
            _ => true,
        };
        // What does something else each time cannot be done twice.
        let random = matches!(item.instr.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
        let unrepeatable = self.tuning.lockstep && (random || item.class == Class::ReadTsc);
        if (item.vector && source.mode.no_vector) || !enabled || unrepeatable {
            item.class = Class::Step;
        }
        item
    }

    /// Whether status flags are live before each instruction, and the lines that the answer depends on.
    fn liveness(&mut self, source: &Source<'_>, decoded: &[Decoded]) -> (Vec<u32>, u64, u64) {
        let mut live = vec![STATUS; decoded.len()];
        if !self.tuning.liveness {
            return (live, 0, 0);
        }
        let mut lines = 0;
        let mut behind_lines = 0;
        let mut look = |offset: i64, budget: u32| {
            let mut look = LookAhead {
                page: source.page,
                linear_page: source.linear_page,
                dead_at_return: self.tuning.flags_dead_at_return && !source.strict,
                cautious: true,
                lines: 0,
                budget,
            };
            let live = look.live_at(offset);
            lines |= look.lines;
            live
        };
        if let (Some(next), [only]) = (source.next, decoded) {
            return self.crossing_liveness(source, next, only);
        }
        let Some(last) = decoded.last() else { return (live, 0, 0) };
        let last_offset = last.instr.ip().wrapping_sub(source.linear_page) as i64;
        // For the last instruction, look-ahead knows how control flow goes on.
        let mut after = look(last_offset, LOOK_AHEAD);
        if last.class == Class::Return
            && (decoded.len() == 1 || returns_flags(source.page, last_offset as usize))
        {
            after = STATUS;
        }
        // Go's duffzero and its like: vector stores and a return, no writer of flags.
        if last.class == Class::Return
            && decoded.iter().all(|item| item.kills == 0)
            && decoded.iter().any(|item| item.vector)
        {
            after = STATUS;
        }
        if last.class == Class::Call && last_offset > 4096 - 40 {
            // What stands behind the call may be out of sight.
            after = STATUS;
        }
        if last.class == Class::Call && self.tuning.flags_dead_at_return && !source.strict {
            let mut behind = LookAhead {
                page: source.page,
                linear_page: source.linear_page,
                dead_at_return: true,
                cautious: false,
                lines: 0,
                budget: FLAG_PEEK,
            };
            after |= behind.live_at(last.instr.next_ip().wrapping_sub(source.linear_page) as i64);
            behind_lines = behind.lines;
        }
        for (index, item) in decoded.iter().enumerate().rev() {
            let before = if index + 1 == decoded.len() {
                after
            } else {
                let mut before = (after & !item.kills) | item.reads;
                if item.class == Class::Branch {
                    let target = item.instr.near_branch_target().wrapping_sub(source.linear_page) as i64;
                    before |= look(target, 12);
                }
                before
            };
            if let Some(slot) = live.get_mut(index) {
                *slot = before;
            }
            after = before;
        }
        (live, lines | behind_lines, 0)
    }

    /// The same for the one instruction that goes on in the next page.
    fn crossing_liveness(
        &self,
        source: &Source<'_>,
        next: &[u8; 4096],
        only: &Decoded,
    ) -> (Vec<u32>, u64, u64) {
        if only.class != Class::Step && only.instr.flow_control() != iced_x86::FlowControl::Next {
            return (vec![STATUS], 0, 0);
        }
        let linear_page = source.linear_page.wrapping_add(4096);
        let mut look = LookAhead {
            page: next,
            linear_page,
            dead_at_return: self.tuning.flags_dead_at_return && !source.strict,
            cautious: true,
            lines: 0,
            budget: LOOK_AHEAD,
        };
        let after = look.live_at(only.instr.next_ip().wrapping_sub(linear_page) as i64);
        (vec![(after & !only.kills) | only.reads, after], 0, look.lines)
    }
}

impl Builder<'_> {
    fn run(&mut self, decoded: &[Decoded], live: &[u32]) {
        let mut ended = false;
        let mut next = self.source.offset;
        for (index, (item, before)) in decoded.iter().zip(live).enumerate() {
            self.at = item.instr.ip().wrapping_sub(self.source.linear_page) as u32;
            self.live = *before != 0;
            self.vectors = item.vectors;
            self.following = decoded.get(index + 1).map(|item| item.class);
            let here = self.asm.here();
            self.out.map.push((here, self.at as u16));
            self.note_lines(self.at as usize, item.instr.len());
            let cold = self.cold.len();
            next = self.at as usize + item.instr.len().max(1);
            match self.lower(item) {
                Ok(end) => {
                    self.out.instructions += 1;
                    if end {
                        ended = true;
                        break;
                    }
                }
                Err(Unsupported) => {
                    self.asm.buf.truncate(here as usize);
                    self.out.thunk_calls.retain(|(at, _)| *at < here);
                    self.cold.truncate(cold);
                    self.out.step_only = (self.out.instructions == 0).then_some(item.vectors);
                    self.step_here(self.at, item.vectors);
                    ended = true;
                    break;
                }
            }
        }
        if ended {
            return;
        }
        if decoded.is_empty() {
            // The bytes at the end of the page are not a whole instruction.
            self.out.step_only = Some(Vectors::Used);
            self.out.crossing = self.source.next.is_none();
            self.note_lines(next, 4096usize.saturating_sub(next).max(1));
            self.step_here(next as u32, Vectors::Used);
        } else if next < 4096 {
            let live = live.get(decoded.len()).is_none_or(|after| *after != 0);
            self.jump_near(next as u32, live);
        } else {
            let target = self.source.linear_page.wrapping_add(next as u64);
            let live = live.get(decoded.len()).is_none_or(|after| *after != 0);
            self.jump_far(target, live, None);
        }
    }

    /// Notes that the translation depends on these bytes.
    fn note_lines(&mut self, offset: usize, len: usize) {
        if offset < 4096 {
            self.out.lines |= line_mask(offset, len.min(4096 - offset));
        }
        if offset + len > 4096 {
            self.out.next_lines |= line_mask(offset.saturating_sub(4096), offset + len - 4096.max(offset));
        }
    }

    /// Leaves for the interpreter at an offset.
    fn step_here(&mut self, at: u32, vectors: Vectors) {
        self.load_linear(R10, self.source.linear_page.wrapping_add(u64::from(at)));
        let jump = self.asm.jmp();
        let thunk = if vectors == Vectors::Untouched { Thunk::Step } else { Thunk::StepVector };
        self.out.thunk_calls.push((jump, thunk));
    }

    /// A jump to a linear address that ends the block.
    pub(crate) fn jump_to(&mut self, target: u64, live: bool) {
        let offset = target.wrapping_sub(self.source.linear_page);
        if offset >= 4096 {
            self.jump_far(target, live, Some(self.at));
        } else {
            if offset <= u64::from(self.at) {
                self.poll(offset as u32, live);
            }
            self.jump_near(offset as u32, live);
        }
    }

    /// Whether the instruction at an offset lies in the page as a whole: only then may a jump be linked to it for good.
    fn is_whole(&mut self, offset: u32) -> bool {
        let Some(instr) = decode_at(self.source.page, offset as usize, self.source.linear_page) else {
            return false;
        };
        self.out.lines |= line_mask(offset as usize, instr.len().max(1));
        true
    }

    /// A jump inside the page, to be linked later.
    fn jump_near(&mut self, target: u32, live: bool) {
        if !self.is_whole(target) {
            self.jump_far(self.source.linear_page.wrapping_add(u64::from(target)), live, None);
            return;
        }
        self.asm.align_patch(1);
        let from = self.asm.jmp();
        self.cold.push(Cold::Site { from, kind: SiteKind::Chain { patch: from, target } });
    }

    /// Leaves if the kick is set, with `target` as the next instruction.
    fn poll(&mut self, target: u32, live: bool) {
        if live {
            self.asm.store(Mem::Gs(SPILL_RCX), RCX);
            self.asm.op_mem(false, &[0x0f, 0xb6], RCX, Mem::Gs(KICK));
            let ok = self.asm.jrcxz();
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
            let from = self.asm.jmp();
            self.cold.push(Cold::Site { from, kind: SiteKind::Kick(target) });
            self.asm.link_short(ok);
            self.asm.load(RCX, Mem::Gs(SPILL_RCX));
        } else {
            self.asm.cmp_byte_gs(KICK, 0);
            let from = self.asm.jcc(NOT_EQUAL);
            self.cold.push(Cold::Site { from, kind: SiteKind::Kick(target) });
        }
    }

    /// A jump to another page, by the instruction at `by` if it is not just the next one.
    fn jump_far(&mut self, target: u64, live: bool, by: Option<u32>) {
        self.load_linear(R10, target);
        self.jump_r10_in(self.source.mode.space, live, by);
    }

    /// Loads a linear address that is given relative to this block's page.
    pub(crate) fn load_linear(&mut self, reg: u8, linear: u64) {
        if self.source.mode.space == Space::User {
            let distance = linear.wrapping_sub(self.source.linear_page) as i64;
            self.asm.load(reg, Mem::Gs(PC_BASE));
            // A target is within 2 GiB of the next instruction, which lies behind the start of the page.
            let near = distance.clamp(i32::MIN.into(), i32::MAX.into());
            for part in [near, distance.wrapping_sub(near)] {
                if part != 0 {
                    self.asm.lea(reg, Mem::at(reg, part as i32));
                }
            }
        } else {
            self.asm.constant(reg, linear);
        }
    }

    /// The instruction being translated jumps to the guest address in r10, through the jump cache.
    pub(crate) fn jump_r10(&mut self, live: bool) {
        self.jump_r10_in(self.source.mode.space, live, Some(self.at));
    }

    /// Leaves for the guest address in r10. For a jump of the instruction at `by` it is told where that is: it raises #GP
    /// if the address is not canonical. `probe` = the code there belongs to this space, and may be in its jump cache.
    fn jump_missed(&mut self, by: Option<u32>, probe: Option<Space>) {
        let thunk = match by {
            None => probe.map_or(Thunk::JumpMiss, Thunk::JumpProbe),
            Some(at) => {
                let user = self.source.mode.space == Space::User;
                let page = if user { 0 } else { self.source.linear_page };
                self.asm.constant(R11, page.wrapping_add(u64::from(at)));
                probe.map_or(Thunk::BranchMiss, Thunk::BranchProbe)
            }
        };
        let at = self.asm.jmp();
        self.out.thunk_calls.push((at, thunk));
    }

    /// The same as [`Self::jump_r10`], with the code at the target belonging to this space.
    pub(crate) fn jump_r10_in(&mut self, space: Space, live: bool, by: Option<u32>) {
        if !self.tools.tuning.jump_cache {
            self.jump_missed(by, None);
            return;
        }
        if live {
            self.jump_r10_keeping_flags(space, by);
            return;
        }
        self.asm.cmp_byte_gs(KICK, 0);
        let kicked = self.asm.jcc(NOT_EQUAL);
        self.asm.rorx(R11, R10, 8);
        self.asm.op_reg(false, &[0x01], R10, R11); // add r11d, r10d
        self.asm.and32(R11, space.jump_len() as i32 - 1);
        self.asm.bytes(&[0x41, 0xc1, 0xe3, 4]); // shl r11d, 4
        self.asm.op_mem(true, &[0x3b], R10, Mem::GsR11(space.jumps())); // cmp r10, key
        let miss = self.asm.jcc(NOT_EQUAL);
        if space == Space::User {
            self.asm.alu_imm(true, 4, R10, -4096);
            self.asm.store(Mem::Gs(PC_BASE), R10);
        }
        self.asm.jmp_mem(Mem::GsR11(space.jumps() + JUMP_HOST));
        match by {
            None => {
                self.out.thunk_calls.push((kicked, Thunk::JumpMiss));
                self.out.thunk_calls.push((miss, Thunk::JumpProbe(space)));
            }
            Some(at) => self.cold.push(Cold::BranchMiss { from: [kicked, miss], at, space }),
        }
    }

    /// The same without touching flags.
    fn jump_r10_keeping_flags(&mut self, space: Space, by: Option<u32>) {
        self.asm.store(Mem::Gs(SPILL_RCX), RCX);
        self.asm.op_mem(false, &[0x0f, 0xb6], RCX, Mem::Gs(KICK));
        let quiet = self.asm.jrcxz();
        let kicked = self.asm.jmp();
        self.asm.link_short(quiet);
        self.asm.rorx(R11, R10, 8);
        self.asm.lea(R11, Mem::Sib { base: Some(R11), index: Some((R10, 1)), disp: 0 });
        self.asm.pext(R11, R11, Mem::Gs(JUMP_MASK + 8 * space as i32));
        self.asm.lea32(R11, Mem::Sib { base: None, index: Some((R11, 2)), disp: 0 });
        self.asm.load(RCX, Mem::GsR11x8(space.jumps()));
        self.asm.not(RCX);
        self.asm.lea(RCX, Mem::Sib { base: Some(RCX), index: Some((R10, 1)), disp: 1 });
        let hit = self.asm.jrcxz();
        self.asm.link_here(kicked);
        self.asm.load(RCX, Mem::Gs(SPILL_RCX));
        self.jump_missed(by, Some(space));
        self.asm.link_short(hit);
        if space == Space::User {
            self.asm.pext(RCX, R10, Mem::Gs(PAGE_MASK));
            self.asm.pdep(R10, RCX, Mem::Gs(PAGE_MASK));
            self.asm.store(Mem::Gs(PC_BASE), R10);
        }
        self.asm.load(RCX, Mem::Gs(SPILL_RCX));
        self.asm.jmp_mem(Mem::GsR11x8(space.jumps() + JUMP_HOST));
    }

    /// A conditional jump: `jcc` with this condition, taken to `target`.
    pub(crate) fn branch(&mut self, cond: u8, target: u64, live_at_target: bool) {
        let offset = target.wrapping_sub(self.source.linear_page);
        if offset >= 4096 || (offset > u64::from(self.at) && !self.is_whole(offset as u32)) {
            let from = self.asm.jcc(cond);
            self.cold.push(Cold::Far { from, target, at: self.at, live: live_at_target });
        } else if offset <= u64::from(self.at) {
            let from = self.asm.jcc(cond);
            self.cold.push(Cold::Back { from, target: offset as u32, live: live_at_target });
        } else {
            self.asm.align_patch(2);
            let from = self.asm.jcc(cond);
            self.cold.push(Cold::Site { from, kind: SiteKind::Chain { patch: from, target: offset as u32 } });
        }
    }

    fn finish(mut self) -> Emitted {
        // Cold pieces may add further ones (the chain site of a backward branch).
        let mut index = 0;
        while index < self.cold.len() {
            let Some(slot) = self.cold.get_mut(index) else { break };
            let piece = std::mem::replace(slot, Cold::Site { from: 0, kind: SiteKind::Kick(0) });
            index += 1;
            self.cold_piece(piece);
        }
        self.out.code = self.asm.buf;
        self.out
    }

    fn cold_piece(&mut self, piece: Cold) {
        match piece {
            Cold::Site { from, kind } => {
                self.asm.link_here(from);
                self.site_call(Thunk::Site, kind);
            }
            Cold::Step { from, at, vectors } => {
                self.asm.link_here(from);
                self.step_here(at, vectors);
            }
            Cold::StepWithFlags { from, at, vectors } => {
                self.asm.link_here(from);
                self.restore_flags();
                self.step_here(at, vectors);
            }
            Cold::Miss { from, retry, kind, offset, vector, undo } => {
                self.asm.link_here(from);
                match undo {
                    Undo::Xor(tag) => self.asm.op_mem(true, &[0x33], R10, Mem::GsR11(tag)),
                    Undo::Rcx => self.asm.load(RCX, Mem::Gs(SPILL_RCX)),
                }
                self.asm.constant(R11, u64::from(kind));
                self.site_call(Thunk::Refill, SiteKind::Miss { at: offset, vector });
                let back = self.asm.jmp();
                self.asm.link(back, i64::from(retry));
            }
            Cold::Far { from, target, at, live } => {
                self.asm.link_here(from);
                self.jump_far(target, live, Some(at));
            }
            Cold::BranchMiss { from, at, space } => {
                for from in from {
                    self.asm.link_here(from);
                }
                self.jump_missed(Some(at), Some(space));
            }
            Cold::Back { from, target, live } => {
                self.asm.link_here(from);
                self.poll(target, live);
                self.jump_near(target, live);
            }
        }
    }

    fn site_call(&mut self, thunk: Thunk, kind: SiteKind) {
        let at = self.asm.call();
        self.out.thunk_calls.push((at, thunk));
        self.out.sites.push(Site { ret: self.asm.here(), kind });
    }

    /// Encodes a (rewritten) guest instruction.
    pub(crate) fn encode(&mut self, instr: &Instruction) -> Result<(), Unsupported> {
        self.tools.encoder.set_buffer(std::mem::take(&mut self.asm.buf));
        let result = self.tools.encoder.encode(instr, 0);
        self.asm.buf = self.tools.encoder.take_buffer();
        result.map(|_| ()).map_err(|_| Unsupported)
    }
}
