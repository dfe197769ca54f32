//! What is known of the registers at one place of a block: just enough to tell an address that was checked from any other.
//!
//! A value is known only by the instructions that a check consists of, each in its place; whatever else writes a register
//! makes it unknown. At places that are reached from two sides only what both sides know is known.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::slot::{self, Slot};
use crate::layout::Space;

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing.
    Any,
    /// r10: a copy of rdi or rsi, then its offset in the page, then the end of a string there.
    Copy(Register),
    Offset(Register),
    End(Register, u32),
    /// r10: an address with the tag that r11 selects XORed in.
    Tagged {
        write: bool,
        fits: Option<u32>,
    },
    /// The same, seen to be at most 4096 - `size`: the address is in the tag's page, and `size` bytes from there.
    Within(Reach),
    /// r10: an address in the page of the entry that r11 selects, by the check that keeps flags.
    Matched(Reach),
    /// r11: the distance from that entry's page to the host's.
    Delta(Reach),
    /// A host address.
    Host(Reach),
    /// r11: r10 rotated to the right.
    Rotated(u8),
    /// r11: a multiple of `step` up to `max`. `of_r10`: the entry that belongs to r10's page; `hit`: a jump cache entry seen to have the
    /// key in r10.
    Bounded {
        step: u64,
        max: u64,
        of_r10: bool,
        hit: bool,
    },
    /// rcx: a tag, its complement, the distance of r10's access from it, and the page part of that.
    Tag {
        write: bool,
    },
    NotTag {
        write: bool,
    },
    Distance(Reach),
    Pages(Reach),
    /// rcx: the key of a jump cache entry, its complement, its difference from r10.
    Key,
    NotKey,
    Difference,
}

/// What a host address may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) write: bool,
    /// Bytes from there that may be touched.
    pub(super) size: u64,
    /// rcx elements of this size lie in the page, too.
    pub(super) fits: Option<u32>,
}

/// What the instruction before compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Nothing,
    /// r10 or rcx with a constant.
    With(Register, u64),
    /// r10 with the key that r11 selects.
    Key,
}

/// What is known at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) r10: Value,
    pub(super) r11: Value,
    pub(super) rcx: Value,
    pub(super) rdi: Value,
    pub(super) rsi: Value,
    /// The scratch slot.
    temp: Value,
    /// rcx is at most this. It and `fits` are of the value that rcx had before `away`.
    count: Option<u64>,
    /// rcx elements of these sizes from rdi and rsi lie in a page.
    fits: [Option<u32>; 2],
    compared: Compared,
    /// The spill slot has what rcx has, or had: a check may use rcx meanwhile.
    spilled: bool,
    away: bool,
    /// Flags on the private stack.
    pub(super) pushed: u32,
}

impl State {
    /// A block's start.
    pub(super) fn unknown() -> Self {
        Self {
            r10: Value::Any,
            r11: Value::Any,
            rcx: Value::Any,
            rdi: Value::Any,
            rsi: Value::Any,
            temp: Value::Any,
            count: None,
            fits: [None; 2],
            compared: Compared::Nothing,
            spilled: false,
            away: false,
            pushed: 0,
        }
    }

    /// What a place can rely on that is jumped to from behind: the checks begin anew there.
    pub(super) fn at_retry(mut self) -> Self {
        (self.r10, self.r11, self.rcx) = (Value::Any, Value::Any, Value::Any);
        self.compared = Compared::Nothing;
        self
    }

    /// What is known if either is.
    pub(super) fn meet(mut self, mut other: Self) -> Self {
        let spilled = self.spilled && other.spilled;
        if self.away != other.away || self.away && !spilled {
            self.forget_count();
            other.forget_count();
        }
        let value = |a: Value, b: Value| if a == b { a } else { Value::Any };
        let known = |a: Option<u32>, b: Option<u32>| if a == b { a } else { None };
        Self {
            r10: value(self.r10, other.r10),
            r11: value(self.r11, other.r11),
            rcx: value(self.rcx, other.rcx),
            rdi: value(self.rdi, other.rdi),
            rsi: value(self.rsi, other.rsi),
            temp: value(self.temp, other.temp),
            count: if self.count == other.count { self.count } else { None },
            fits: [known(self.fits[0], other.fits[0]), known(self.fits[1], other.fits[1])],
            compared: Compared::Nothing,
            spilled: spilled && self.spilled,
            away: self.away,
            pushed: self.pushed.max(other.pushed),
        }
    }

    /// The host address in a register, if there is one.
    pub(super) fn host(&self, register: Register) -> Option<Reach> {
        let value = match register {
            Register::R10 => self.r10,
            Register::RDI => self.rdi,
            Register::RSI => self.rsi,
            _ => return None,
        };
        if let Value::Host(reach) = value { Some(reach) } else { None }
    }

    /// The values of r11 as an offset, if they have a bound: (step, largest).
    pub(super) fn bound(&self) -> Option<(u64, u64)> {
        if let Value::Bounded { step, max, .. } = self.r11 { Some((step, max)) } else { None }
    }

    /// Whether r11 selects a jump cache entry that was seen to be the one of r10.
    pub(super) fn is_hit(&self) -> bool {
        matches!(self.r11, Value::Bounded { hit: true, .. })
    }

    /// Elements of which size lie in the page that r10 points into, as many as rcx says.
    fn fits_here(&self) -> Option<u32> {
        match self.r10 {
            Value::Copy(Register::RDI) => self.fits[0],
            Value::Copy(Register::RSI) => self.fits[1],
            _ => None,
        }
    }

    /// Whether rcx is the count that is known, and not lent to a check.
    pub(super) fn counts(&self) -> bool {
        !self.away
    }

    fn is_index(&self) -> bool {
        matches!(self.r11, Value::Bounded { of_r10: true, .. })
    }

    /// What is known behind a conditional jump: (where it leads, where it does not).
    pub(super) fn branch(mut self, mnemonic: Mnemonic) -> (Self, Self) {
        let compared = std::mem::replace(&mut self.compared, Compared::Nothing);
        let (mut taken, mut passed) = (self, self);
        match (mnemonic, compared) {
            (Mnemonic::Ja, Compared::With(Register::RCX, limit)) => {
                if self.away {
                    passed.forget_count();
                }
                passed.count = Some(limit);
            }
            (Mnemonic::Ja, Compared::With(Register::R10, limit)) => match self.r10 {
                Value::Tagged { write, fits } if limit < 4096 => {
                    passed.r10 = Value::Within(Reach { write, size: 4096 - limit, fits });
                }
                Value::End(Register::RDI, size) if limit <= 4096 => passed.fits[0] = Some(size),
                Value::End(Register::RSI, size) if limit <= 4096 => passed.fits[1] = Some(size),
                _ => {}
            },
            (Mnemonic::Jne, Compared::Key) => passed.hit(),
            (Mnemonic::Jrcxz, _) => match self.rcx {
                Value::Pages(reach) if self.is_index() => taken.r10 = Value::Matched(reach),
                Value::Difference => taken.hit(),
                _ => {}
            },
            _ => {}
        }
        (taken, passed)
    }

    fn hit(&mut self) {
        if let Value::Bounded { hit, .. } = &mut self.r11 {
            *hit = true;
        }
    }

    /// What is known behind an instruction that goes on with the next one.
    pub(super) fn after(self, instr: &Instruction, space: Space, info: &mut InstructionInfoFactory) -> Self {
        let mut next = self;
        next.compared = Compared::Nothing;
        for used in info.info(instr).used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None) {
                next.written(used.register().full_register());
            }
        }
        self.made(&mut next, instr, space);
        next
    }

    /// What a subroutine of ours leaves: the guest's registers, and neither address nor index.
    pub(super) fn after_thunk(mut self) -> Self {
        self.written(Register::R10);
        self.written(Register::R11);
        self.compared = Compared::Nothing;
        self
    }

    /// Forgets what was known of rcx as a count.
    fn forget_count(&mut self) {
        (self.count, self.fits) = (None, [None; 2]);
        (self.spilled, self.away) = (false, false);
        for value in
            [&mut self.r10, &mut self.r11, &mut self.rcx, &mut self.rdi, &mut self.rsi, &mut self.temp]
        {
            match value {
                Value::Tagged { fits, .. } => *fits = None,
                Value::Within(reach)
                | Value::Matched(reach)
                | Value::Delta(reach)
                | Value::Host(reach)
                | Value::Distance(reach)
                | Value::Pages(reach) => reach.fits = None,
                Value::End(..) => *value = Value::Any,
                _ => {}
            }
        }
    }

    /// What a store to the spill slot means; `of_rcx`: rcx is what is stored.
    fn spill(&mut self, of_rcx: bool) {
        if self.away {
            self.forget_count();
        }
        self.spilled = of_rcx;
    }

    /// Forgets what a write to a register makes untrue.
    fn written(&mut self, register: Register) {
        match register {
            Register::R10 => {
                self.r10 = Value::Any;
                match &mut self.r11 {
                    Value::Bounded { of_r10, .. } => *of_r10 = false,
                    other => *other = Value::Any,
                }
                self.rcx = Value::Any;
            }
            Register::R11 => {
                self.r11 = Value::Any;
                if matches!(self.r10, Value::Tagged { .. } | Value::Within(_) | Value::Matched(_)) {
                    self.r10 = Value::Any;
                }
                self.rcx = Value::Any;
            }
            Register::RCX => {
                self.rcx = Value::Any;
                if let Value::End(..) = self.r10 {
                    self.r10 = Value::Any;
                }
                if self.spilled {
                    self.away = true;
                } else {
                    self.forget_count();
                }
            }
            Register::RDI | Register::RSI => {
                let first = register == Register::RDI;
                *if first { &mut self.rdi } else { &mut self.rsi } = Value::Any;
                self.fits[usize::from(!first)] = None;
                if let Value::Copy(side) | Value::Offset(side) | Value::End(side, _) = self.r10
                    && side == register
                {
                    self.r10 = Value::Any;
                }
            }
            _ => {}
        }
    }

    /// Adds to `next` what the instruction is known to make of this state.
    fn made(self, next: &mut Self, instr: &Instruction, space: Space) {
        use Mnemonic as M;
        use Register as R;
        let register =
            |op| if instr.op_kind(op) == OpKind::Register { instr.op_register(op) } else { R::None };
        let (first, second) = (register(0), register(1));
        let immediate = |op: u32| match instr.op_kind(op) {
            OpKind::Register | OpKind::Memory | OpKind::NearBranch64 => None,
            _ => Some(instr.immediate(op)),
        };
        let slot = Slot::of(instr);
        match (instr.mnemonic(), first) {
            (M::Mov, R::R10) if matches!(second, R::RDI | R::RSI) => next.r10 = Value::Copy(second),
            (M::Mov, R::R11) if slot == Some(Slot::Temp) => next.r11 = self.temp,
            (M::Mov, R::R11) if slot == Some(Slot::Delta(space)) => {
                if let (Value::Matched(reach), true) = (self.r10, self.is_index()) {
                    next.r11 = Value::Delta(reach);
                }
            }
            (M::Mov, R::RCX) if slot == Some(Slot::Spill) => {
                // Back from where the check had put it; else rcx has what nobody knows.
                if self.spilled { next.away = false } else { next.forget_count() }
            }
            (M::Mov, R::None) if slot == Some(Slot::Spill) => next.spill(second == R::RCX),
            (M::Mov, R::RCX) => {
                next.rcx = match slot {
                    Some(Slot::Tag { space: of, write }) if of == space && self.is_index() => {
                        Value::Tag { write }
                    }
                    Some(Slot::Key(_)) => Value::Key,
                    _ => Value::Any,
                };
            }
            (M::Mov, R::None) if slot == Some(Slot::Temp) => {
                next.temp = if second == R::R10 { self.r10 } else { Value::Any };
            }
            (M::Rorx, R::R11) if second == R::R10 => {
                next.r11 =
                    Value::Rotated(immediate(2).and_then(|count| u8::try_from(count).ok()).unwrap_or(0));
            }
            (M::And, R::R11D) => {
                if let Some(mask @ 1..0x8000_0000) = immediate(1) {
                    let of_r10 = self.r11 == Value::Rotated(7) && mask == (space.tlb_len() as u64 - 1) * 32;
                    next.r11 = bounded(1 << mask.trailing_zeros(), mask, of_r10);
                }
            }
            (M::Shl, R::R11D) => {
                next.r11 =
                    self.scaled(immediate(1).filter(|count| *count < 8).map_or(0, |count| 1 << count), false)
            }
            (M::And, R::R10D) if immediate(1) == Some(0xfff) => {
                if let Value::Copy(side) = self.r10 {
                    next.r10 = Value::Offset(side);
                }
            }
            (M::Pext, R::R11) => {
                let max = slot.and_then(Slot::largest);
                let index = slot == Some(Slot::IndexMask(space)) && second == R::R10;
                next.r11 = max.map_or(Value::Any, |max| bounded(1, max, index));
            }
            (M::Pext, R::RCX) if slot == Some(Slot::PageMask) && second == R::RCX => {
                if let Value::Distance(reach) = self.rcx {
                    next.rcx = Value::Pages(reach);
                }
            }
            (M::Not, R::RCX) => {
                next.rcx = match self.rcx {
                    Value::Tag { write } => Value::NotTag { write },
                    Value::Key => Value::NotKey,
                    _ => Value::Any,
                };
            }
            (M::Lea, _) => self.made_by_lea(next, instr),
            (M::Xor, R::R10) => {
                if let (Some(Slot::Tag { space: of, write }), true) = (slot, self.is_index())
                    && of == space
                    && !matches!(self.r10, Value::Tagged { .. })
                {
                    let fits = self.fits_here();
                    next.r11 = self.r11;
                    next.r10 = Value::Tagged { write, fits };
                }
            }
            (M::Add, R::R10) if slot == Some(Slot::Host(space)) => {
                if let Value::Within(reach) = self.r10 {
                    next.r10 = Value::Host(reach);
                }
            }
            (M::Cmp, R::R10 | R::RCX) => {
                next.compared = match (immediate(1), slot) {
                    (Some(limit), _) => Compared::With(first, limit),
                    (None, Some(Slot::Key(_))) if first == R::R10 => Compared::Key,
                    _ => Compared::Nothing,
                };
            }
            (M::Xchg, _) => {
                for (to, from) in [(first, second), (second, first)] {
                    let value = self.value(from);
                    if let Some(place) = next.place(to) {
                        // An index belongs to the register that it is in.
                        *place = if matches!(value, Value::Host(_)) { value } else { Value::Any };
                    }
                }
            }
            _ => {}
        }
    }

    fn made_by_lea(self, next: &mut Self, instr: &Instruction) {
        use Register as R;
        let (base, index, scale) = (instr.memory_base(), instr.memory_index(), instr.memory_index_scale());
        let distance = instr.memory_displacement64();
        match (instr.op0_register(), base, index) {
            (R::R11D, R::None, R::R11) if distance == 0 => {
                next.r11 = self.scaled(u64::from(scale), self.is_index())
            }
            (R::R10, R::R10, R::RCX) if distance == 0 => {
                if let (Value::Offset(side), Some(count), false) = (self.r10, self.count, self.away)
                    && count.saturating_mul(scale.into()) <= 4096
                {
                    next.r10 = Value::End(side, scale);
                }
            }
            (R::RCX, R::RCX, R::R10) if scale == 1 => {
                next.rcx = match (self.rcx, distance) {
                    (Value::NotTag { write }, 1..=64) => {
                        Value::Distance(Reach { write, size: distance, fits: self.fits_here() })
                    }
                    (Value::NotKey, 1) => Value::Difference,
                    _ => Value::Any,
                };
            }
            (R::R10, R::R10, R::R11) if scale == 1 && distance == 0 => {
                if let Value::Delta(reach) = self.r11 {
                    next.r10 = Value::Host(reach);
                }
            }
            _ => {}
        }
    }

    /// r11 times a small number; whether that still belongs to r10's page.
    fn scaled(self, factor: u64, of_r10: bool) -> Value {
        match self.r11 {
            Value::Bounded { step, max, .. } if factor != 0 => {
                Value::Bounded { step: step * factor, max: max * factor, of_r10, hit: false }
            }
            _ => Value::Any,
        }
    }

    fn value(&self, register: Register) -> Value {
        let mut copy = *self;
        copy.place(register).map_or(Value::Any, |value| *value)
    }

    fn place(&mut self, register: Register) -> Option<&mut Value> {
        match register {
            Register::R10 => Some(&mut self.r10),
            Register::R11 => Some(&mut self.r11),
            Register::RDI => Some(&mut self.rdi),
            Register::RSI => Some(&mut self.rsi),
            _ => None,
        }
    }
}

fn bounded(step: u64, max: u64, of_r10: bool) -> Value {
    Value::Bounded { step, max, of_r10, hit: false }
}

/// Whether r11, times what the operand scales it by, selects whole entries of a table and none behind its end.
pub(super) fn selects(state: &State, instr: &Instruction, slot: Slot) -> bool {
    let scale = if instr.memory_index() == Register::R11 { u64::from(instr.memory_index_scale()) } else { 1 };
    let Some((entry, entries)) = slot::table(slot) else { return false };
    state.bound().is_some_and(|(step, max)| {
        (step * scale).is_multiple_of(entry) && max * scale <= entry * (entries - 1)
    })
}
