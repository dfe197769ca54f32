//! An independent look at emitted bytes: whatever the translator thought, code that is about to become executable must
//! only do what a block may do.
//!
//! Knows nothing of guest instructions. It checks, instruction by instruction, that
//! * the vCPU's state is reached only through `gs`, at the places and in the ways of [`slot`]; its tables through an r11
//!   that was masked to their size;
//! * other memory is reached only through a register that holds a host address from one of the two forms of check, for
//!   no more bytes and no other access than that check was for ([`state`]);
//! * the private stack is used for flags alone, pushed before they are popped;
//! * jumps stay in the block, go to thunks, or through a jump cache entry whose key was compared; nothing runs off the end;
//! * nothing is there that could enter the host kernel or change what `gs` means.
//!
//! What is emitted is trusted for the rest: that the address is the one that the guest's instruction means.

mod slot;
mod state;

use std::collections::HashMap;

use iced_x86::{
    Decoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use crate::block::{Emitted, Mode, Thunk};
use crate::layout::Space;
use slot::Slot;
use state::{State, Value, selects};

/// Checks a translation before it is placed.
pub(crate) fn verify(emitted: &Emitted, mode: Mode) -> Result<(), String> {
    let instrs: Vec<Instruction> = Decoder::with_ip(64, &emitted.code, 0, 0).into_iter().collect();
    let mut block = Block {
        space: mode.space,
        thunks: &emitted.thunk_calls,
        info: InstructionInfoFactory::new(),
        states: Vec::new(),
        retries: HashMap::new(),
        again: true,
    };
    for instr in &instrs {
        if let Some(target) = block.local_target(instr)
            && target as u64 <= instr.ip()
        {
            block.retries.insert(target, None);
        }
    }
    // Less is known with each pass, so this ends; most blocks take one.
    while std::mem::take(&mut block.again) {
        block.pass(&instrs, &emitted.code)?;
    }
    let starts = |target: &usize| instrs.binary_search_by_key(&(*target as u64), Instruction::ip).is_ok();
    let jumped =
        block.states.iter().enumerate().filter(|(_, state)| state.is_some()).map(|(target, _)| target);
    match jumped.chain(block.retries.keys().copied()).find(|target| !starts(target)) {
        Some(target) => Err(format!("a jump to {target:#x}, where no instruction starts")),
        None => Ok(()),
    }
}

/// A block that is looked at.
struct Block<'e> {
    space: Space,
    thunks: &'e [(u32, Thunk)],
    info: InstructionInfoFactory,
    /// What is known where jumps lead that were seen in this pass.
    states: Vec<Option<State>>,
    /// Places that are jumped to from behind, with what is taken as known there at most.
    retries: HashMap<usize, Option<State>>,
    /// A jump back knew less than was taken as known: everything has to be looked at again.
    again: bool,
}

impl Block<'_> {
    /// The thunk that a call or jump leads to.
    fn thunk(&self, instr: &Instruction) -> Option<Thunk> {
        let hole = (instr.next_ip().wrapping_sub(4)) as u32;
        self.thunks.iter().find(|(at, _)| *at == hole).map(|(_, thunk)| *thunk)
    }

    /// Where in the block a jump leads.
    fn local_target(&self, instr: &Instruction) -> Option<usize> {
        let is_jump =
            matches!(instr.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
        (is_jump && self.thunk(instr).is_none()).then(|| instr.near_branch_target() as usize)
    }

    fn pass(&mut self, instrs: &[Instruction], code: &[u8]) -> Result<(), String> {
        self.states = vec![None; code.len() + 1];
        let mut state = Some(State::unknown());
        for instr in instrs {
            let at = instr.ip() as usize;
            state = self.step(instr, state).map_err(|what| {
                let bytes = code.get(at..at + instr.len()).unwrap_or_default();
                format!("{what}: {:?} at {at:#x} ({bytes:02x?})", instr.code())
            })?;
        }
        if state.is_some() { Err("the block runs off its end".into()) } else { Ok(()) }
    }

    /// Looks at one instruction, before which this is known, and says what is known behind it; nothing gets behind it where
    /// there is no state.
    fn step(&mut self, instr: &Instruction, before: Option<State>) -> Result<Option<State>, &'static str> {
        let at = instr.ip() as usize;
        let jumped = self.states.get(at).copied().flatten();
        let state = match (before, jumped) {
            (Some(a), Some(b)) => a.meet(b),
            (Some(known), None) | (None, Some(known)) => known,
            // Nothing leads here; it is checked as if anything did.
            (None, None) => State::unknown(),
        };
        let state = match self.retries.get_mut(&at) {
            None => state,
            Some(retry) => {
                let state = retry.map_or(state.at_retry(), |known| known.meet(state.at_retry()));
                *retry.insert(state)
            }
        };
        if instr.is_invalid() {
            return Err("not an instruction");
        }
        if instr.is_string_instruction() {
            self.string(instr, &state)?;
        } else {
            permitted(instr)?;
            self.memory(instr, &state)?;
        }
        self.flow(instr, state)
    }

    fn flow(&mut self, instr: &Instruction, state: State) -> Result<Option<State>, &'static str> {
        let thunk = self.thunk(instr);
        let mut after = state.after(instr, self.space, &mut self.info);
        match instr.mnemonic() {
            Mnemonic::Pushfq | Mnemonic::Push => after.pushed += 1,
            Mnemonic::Popfq | Mnemonic::Pop => {
                after.pushed = after.pushed.checked_sub(1).ok_or("a pop of what was not pushed")?;
            }
            _ => {}
        }
        if instr.flow_control() != FlowControl::Next && state.pushed != 0 {
            return Err("a transfer with flags on the private stack");
        }
        match instr.flow_control() {
            FlowControl::Next => Ok(Some(after)),
            FlowControl::Call => match thunk {
                Some(Thunk::Refill) => Ok(Some(state.after_thunk())),
                Some(_) => Ok(None),
                None => Err("a call that leads to no thunk"),
            },
            FlowControl::ConditionalBranch => {
                let (taken, passed) = state.branch(instr.mnemonic());
                if thunk.is_none() {
                    self.jump(instr, taken)?;
                }
                Ok(Some(passed))
            }
            FlowControl::UnconditionalBranch => {
                if thunk.is_none() {
                    self.jump(instr, after)?;
                }
                Ok(None)
            }
            // Looked at as an access.
            FlowControl::IndirectBranch if instr.op0_kind() == OpKind::Memory => Ok(None),
            FlowControl::IndirectBranch => Err("an indirect jump not through a table"),
            _ => Err("a transfer that blocks do not make"),
        }
    }

    /// Notes what is known where a jump in the block leads.
    fn jump(&mut self, instr: &Instruction, state: State) -> Result<(), &'static str> {
        let target = instr.near_branch_target() as usize;
        if target as u64 <= instr.ip()
            && let Some(Some(known)) = self.retries.get_mut(&target)
        {
            let both = known.meet(state.at_retry());
            self.again |= both != *known;
            *known = both;
            return Ok(());
        }
        let known = self.states.get_mut(target).ok_or("a jump out of the block")?;
        *known = Some(known.map_or(state, |known| known.meet(state)));
        Ok(())
    }

    /// `rep movs`, `rep stos` between checked addresses, for as many elements as lie in their pages.
    fn string(&mut self, instr: &Instruction, state: &State) -> Result<(), &'static str> {
        let moves = match instr.mnemonic() {
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => true,
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => false,
            _ => return Err("a string instruction that blocks do not use"),
        };
        let size = u32::try_from(instr.memory_size().size()).unwrap_or(0);
        let fits = |register, write: bool| {
            state.host(register).is_some_and(|reach| reach.fits == Some(size) && (reach.write || !write))
        };
        let plain = instr.has_rep_prefix() && instr.segment_prefix() == Register::None;
        if plain && state.counts() && fits(Register::RDI, true) && (!moves || fits(Register::RSI, false)) {
            Ok(())
        } else {
            Err("a string instruction out of place")
        }
    }

    fn memory(&mut self, instr: &Instruction, state: &State) -> Result<(), &'static str> {
        let operands: Vec<u32> =
            (0..instr.op_count()).filter(|op| instr.op_kind(*op) == OpKind::Memory).collect();
        let Some(operand) = operands.first() else { return Ok(()) };
        if matches!(instr.mnemonic(), Mnemonic::Lea | Mnemonic::Nop) {
            return Ok(());
        }
        let access = self.info.info(instr).op_access(*operand);
        let write = !matches!(access, OpAccess::Read | OpAccess::CondRead);
        if instr.memory_segment() == Register::GS {
            return self.own_state(instr, state, write);
        }
        if instr.memory_segment() == Register::FS {
            return Err("fs");
        }
        let base = instr.memory_base();
        let plain = instr.memory_index() == Register::None && instr.memory_displacement64() == 0;
        let reach = state.host(base).filter(|_| plain).ok_or("memory not reached through a check")?;
        let size = instr.memory_size().size() as u64;
        if size == 0 || size > reach.size {
            return Err("more bytes than were checked");
        }
        if write && !reach.write {
            return Err("a write to what was checked for reading");
        }
        let far = matches!(instr.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && instr.op1_kind() == OpKind::Register;
        let bits = state.bound().map(|(_, largest)| largest);
        if far
            && (instr.op1_register().full_register() != Register::R11
                || bits.is_none_or(|bits| bits >= 8 * size))
        {
            return Err("a bit outside of what was checked");
        }
        Ok(())
    }

    /// An operand in the vCPU's state.
    fn own_state(&self, instr: &Instruction, state: &State, write: bool) -> Result<(), &'static str> {
        let slot = Slot::of(instr).ok_or("state that blocks have no business in")?;
        if slot::table(slot).is_some() && !selects(state, instr, slot) {
            return Err("a table at an index without a bound");
        }
        let size = instr.memory_size().size();
        if size == 0 || size > 8 {
            return Err("an operand larger than a slot");
        }
        let target = instr.op0_register();
        let allowed = match (slot, instr.mnemonic()) {
            (Slot::Own | Slot::Temp | Slot::Spill, Mnemonic::Mov | Mnemonic::Or) if !write => true,
            (Slot::Own | Slot::Temp | Slot::Spill, Mnemonic::Mov) => true,
            (Slot::Flags, Mnemonic::Mov | Mnemonic::Test) => !write,
            (Slot::Flags, Mnemonic::And | Mnemonic::Or) => changes_one_flag(instr),
            // What is popped there can only be flags that were pushed, so that is what is pushed from there.
            (Slot::Status, Mnemonic::Push | Mnemonic::Pop) => size == 8,
            (Slot::Pauses, Mnemonic::Add) => size == 1,
            (Slot::Input, Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Cmp) => !write,
            (Slot::IndexMask(_) | Slot::JumpMask(_) | Slot::PageMask | Slot::BitMask(_), mnemonic) => {
                matches!(mnemonic, Mnemonic::Pext | Mnemonic::Pdep)
            }
            (Slot::Tag { space, .. }, Mnemonic::Xor) => space == self.space && target == Register::R10,
            (Slot::Tag { space, .. }, Mnemonic::Mov) => {
                space == self.space && !write && target == Register::RCX
            }
            // What these make is good for nothing but an address, so the check has to be there.
            (Slot::Host(space), Mnemonic::Add) => {
                space == self.space && target == Register::R10 && matches!(state.r10, Value::Within(_))
            }
            (Slot::Delta(space), Mnemonic::Mov) => {
                space == self.space && target == Register::R11 && matches!(state.r10, Value::Matched(_))
            }
            (Slot::Key(space), Mnemonic::Cmp | Mnemonic::Mov) => self.may_enter(space) && !write,
            (Slot::Target(space), Mnemonic::Jmp) => self.may_enter(space) && state.is_hit(),
            _ => false,
        };
        if allowed { Ok(()) } else { Err("a use of the vCPU's state that blocks do not make") }
    }

    /// Whether code may jump to code of a space: STAC and CLAC lead from one of the kernel's to the other.
    fn may_enter(&self, space: Space) -> bool {
        (space == Space::User) == (self.space == Space::User)
    }
}

/// RFLAGS in memory: IF and AC are set and cleared, and DF is cleared, one at a time.
fn changes_one_flag(instr: &Instruction) -> bool {
    const IF: u32 = 0x200;
    const DF: u32 = 0x400;
    const AC: u32 = 0x4_0000;
    let value = instr.immediate32();
    instr.op1_kind() == OpKind::Immediate32
        && match instr.mnemonic() {
            Mnemonic::Or => value == IF || value == AC,
            _ => value == !IF || value == !DF || value == !AC,
        }
}

fn permitted(instr: &Instruction) -> Result<(), &'static str> {
    use Mnemonic as M;
    if instr.is_privileged() {
        return Err("privileged");
    }
    if !matches!(instr.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX) {
        return Err("an encoding that is hidden from the guest");
    }
    match instr.mnemonic() {
        M::Syscall
        | M::Sysenter
        | M::Int
        | M::Int3
        | M::Into
        | M::Cpuid
        | M::Wrfsbase
        | M::Wrgsbase
        | M::Rdfsbase
        | M::Rdgsbase
        | M::Wrpkru
        | M::Rdpkru
        | M::Xgetbv
        | M::Xsave
        | M::Xsave64
        | M::Xsavec
        | M::Xsaveopt
        | M::Xrstor
        | M::Xrstor64
        | M::Fxsave
        | M::Fxrstor
        | M::Std
        | M::Xbegin
        | M::Vmcall
        | M::Vmmcall
        | M::Enclu
        | M::Rdtscp
        | M::Rdpid
        | M::Sgdt
        | M::Sidt
        | M::Sldt
        | M::Str
        | M::Smsw
        | M::Lar
        | M::Lsl
        | M::Verr
        | M::Verw
        | M::Maskmovdqu
        | M::Maskmovq
        | M::Vmaskmovdqu
        | M::Xlatb
        | M::Loop
        | M::Loope
        | M::Loopne
        | M::Jcxz
        | M::Jecxz
        | M::Enter
        | M::Leave => return Err("never allowed"),
        _ => {}
    }
    let plain_stack = match instr.mnemonic() {
        M::Pushf | M::Pushfd | M::Popf | M::Popfd => false,
        // Of memory: the one slot that may be.
        M::Push => instr.op0_kind() == OpKind::Memory && instr.memory_segment() == Register::GS,
        M::Pop if instr.op0_kind() == OpKind::Memory => instr.memory_segment() == Register::GS,
        M::Pop => instr.op0_register() == Register::R11,
        _ => true,
    };
    if !plain_stack {
        return Err("a push or pop that blocks do not make");
    }
    for op in 0..instr.op_count() {
        let kind = instr.op_kind(op);
        let is_named = matches!(kind, OpKind::Register | OpKind::Memory | OpKind::NearBranch64);
        if !is_named && !soft_cpu::is_immediate(kind) {
            return Err("memory that is not named");
        }
        if instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_segment_register() {
            return Err("a segment register");
        }
        if instr.op_kind(op) == OpKind::Register && instr.op_register(op).full_register() == Register::RSP {
            return Err("the private stack's pointer");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
