//! The places of the vCPU's state that blocks may name, and what they may do with each. Whatever is not listed here (host
//! addresses that only Rust and the thunks use, above all) is out of their reach.

use iced_x86::{Instruction, Register};
use soft_cpu::cpu::sreg;

use crate::layout::{
    BIT_MASK, FLAGS, INDEX_MASK, IRQ_WINDOW, JUMP_HOST, JUMP_MASK, JumpEntry, KERNEL_GS_BASE, KICK,
    PAGE_MASK, PAUSES, PC_BASE, RFLAGS, SPILL_RCX, Space, TAG_READ, TAG_WRITE, TEMP, TLB_DELTA, TLB_HOST,
    TSC_AUX, TSC_OFFSET, TlbEntry, control, gpr, seg_base, selector,
};

/// A place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Of the guest's own state, or scratch: read and written.
    Own,
    /// The scratch slot that may hold a host address for a while.
    Temp,
    /// Keeps rcx during a check.
    Spill,
    /// RFLAGS without the status flags.
    Flags,
    /// Keeps the status flags, from the private stack and to it.
    Status,
    /// Counts PAUSE.
    Pauses,
    /// Only read: the kick, selectors, control registers, the clock.
    Input,
    /// Selects the bits of an index.
    IndexMask(Space),
    JumpMask(Space),
    /// The bits of an address that name its page.
    PageMask,
    /// Selects a bit of 64 or 32.
    BitMask(u64),
    /// Of a TLB entry: a tag, the host's page, the distance to it.
    Tag {
        space: Space,
        write: bool,
    },
    Host(Space),
    Delta(Space),
    /// Of a jump cache entry.
    Key(Space),
    Target(Space),
}

impl Slot {
    /// The place that the `gs` operand of an instruction names; of a table, the field.
    pub(super) fn of(instr: &Instruction) -> Option<Self> {
        if instr.memory_segment() != Register::GS {
            return None;
        }
        let at = i32::try_from(instr.memory_displacement64()).ok()?;
        match (instr.memory_base(), instr.memory_index()) {
            (Register::None, Register::None) => Self::constant(at),
            (Register::R11, Register::None) | (Register::None, Register::R11) => Self::field(at),
            _ => None,
        }
    }

    fn constant(at: i32) -> Option<Self> {
        let own = (0..16).map(gpr).chain([seg_base(sreg::FS), seg_base(sreg::GS)]);
        let inputs = [sreg::ES, sreg::CS, sreg::SS, sreg::DS, sreg::FS, sreg::GS].map(selector);
        match at {
            TEMP => return Some(Self::Temp),
            SPILL_RCX => return Some(Self::Spill),
            RFLAGS => return Some(Self::Flags),
            FLAGS => return Some(Self::Status),
            PAUSES => return Some(Self::Pauses),
            PAGE_MASK => return Some(Self::PageMask),
            PC_BASE | KERNEL_GS_BASE => return Some(Self::Own),
            KICK | IRQ_WINDOW | TSC_OFFSET | TSC_AUX => return Some(Self::Input),
            _ if at == BIT_MASK => return Some(Self::BitMask(63)),
            _ if at == BIT_MASK + 8 => return Some(Self::BitMask(31)),
            _ => {}
        }
        for space in Space::ALL {
            if at == INDEX_MASK + 8 * space as i32 {
                return Some(Self::IndexMask(space));
            }
            if at == JUMP_MASK + 8 * space as i32 {
                return Some(Self::JumpMask(space));
            }
        }
        if own.into_iter().any(|own| own == at) {
            return Some(Self::Own);
        }
        let inputs = inputs.into_iter().chain((0..=4).filter_map(control));
        inputs.into_iter().any(|input| input == at).then_some(Self::Input)
    }

    fn field(at: i32) -> Option<Self> {
        Space::ALL.into_iter().find_map(|space| {
            let fields = [
                (space.tlb() + TAG_READ, Self::Tag { space, write: false }),
                (space.tlb() + TAG_WRITE, Self::Tag { space, write: true }),
                (space.tlb() + TLB_HOST, Self::Host(space)),
                (space.tlb() + TLB_DELTA, Self::Delta(space)),
                (space.jumps(), Self::Key(space)),
                (space.jumps() + JUMP_HOST, Self::Target(space)),
            ];
            fields.into_iter().find(|(field, _)| *field == at).map(|(_, slot)| slot)
        })
    }

    /// The largest value that PEXT with this mask gives.
    pub(super) fn largest(self) -> Option<u64> {
        match self {
            Self::IndexMask(space) => Some(space.tlb_len() as u64 - 1),
            Self::JumpMask(space) => Some(space.jump_len() as u64 - 1),
            Self::BitMask(largest) => Some(largest),
            _ => None,
        }
    }
}

/// Bytes of an entry of the table that a field belongs to, and how many entries it has.
pub(super) fn table(slot: Slot) -> Option<(u64, u64)> {
    match slot {
        Slot::Tag { space, .. } | Slot::Host(space) | Slot::Delta(space) => {
            Some((size_of::<TlbEntry>() as u64, space.tlb_len() as u64))
        }
        Slot::Key(space) | Slot::Target(space) => {
            Some((size_of::<JumpEntry>() as u64, space.jump_len() as u64))
        }
        _ => None,
    }
}
