//! Exceptions as values, and their delivery through the IDT.

/// Exception vectors (Intel SDM 3A §6.3.1).
pub mod vector {
    /// Divide error.
    pub const DE: u8 = 0;
    /// Debug.
    pub const DB: u8 = 1;
    /// Breakpoint.
    pub const BP: u8 = 3;
    /// Overflow.
    pub const OF: u8 = 4;
    /// Invalid opcode.
    pub const UD: u8 = 6;
    /// Device not available.
    pub const NM: u8 = 7;
    /// Double fault.
    pub const DF: u8 = 8;
    /// Invalid TSS.
    pub const TS: u8 = 10;
    /// Segment not present.
    pub const NP: u8 = 11;
    /// Stack fault.
    pub const SS: u8 = 12;
    /// General protection.
    pub const GP: u8 = 13;
    /// Page fault.
    pub const PF: u8 = 14;
    /// x87 floating-point error.
    pub const MF: u8 = 16;
    /// Alignment check.
    pub const AC: u8 = 17;
    /// SIMD floating-point error.
    pub const XM: u8 = 19;
}

/// An exception that an instruction raised. RIP is still that of the instruction for faults, already past it for traps
/// (#BP, #OF, #DB after a step).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// See [`vector`].
    pub vector: u8,
    /// The error code that is pushed, for vectors that have one.
    pub error: Option<u32>,
    /// For #PF, the address that goes to CR2.
    pub cr2: u64,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, cr2: 0 }
    }
    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }
    /// #NM.
    pub const fn nm() -> Self {
        Self::plain(vector::NM)
    }
    /// #GP with an error code (0, or a selector).
    pub const fn gp(error: u32) -> Self {
        Self { vector: vector::GP, error: Some(error), cr2: 0 }
    }
    /// #SS with an error code.
    pub const fn ss(error: u32) -> Self {
        Self { vector: vector::SS, error: Some(error), cr2: 0 }
    }
    /// #NP of a selector.
    pub const fn np(error: u32) -> Self {
        Self { vector: vector::NP, error: Some(error), cr2: 0 }
    }
    /// #TS of a selector.
    pub const fn ts(error: u32) -> Self {
        Self { vector: vector::TS, error: Some(error), cr2: 0 }
    }
    /// #PF at a linear address.
    pub const fn pf(linear: u64, error: u32) -> Self {
        Self { vector: vector::PF, error: Some(error), cr2: linear }
    }
}
