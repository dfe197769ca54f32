//! What one translation is: its bytes, where it came from, and the sites from which it leaves to Rust.

use crate::layout::Space;

/// How code is translated, besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Mode {
    /// Privilege and EFLAGS.AC.
    pub(crate) space: Space,
    /// x87, SSE and AVX instructions are left to the interpreter (CR0.TS, CR0.EM, CR4.OSFXSR, XCR0 may make them fault).
    pub(crate) no_vector: bool,
}

/// What a translation is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Guest-physical address of the first byte.
    pub(crate) gpa: u64,
    /// Linear address for CPL 0 (it is baked in), 0 for CPL 3 (which is position-independent by page).
    pub(crate) rip: u64,
    pub(crate) mode: Mode,
    /// For an instruction that goes on in the next page, that page's guest-physical address; else [`ONE_PAGE`].
    pub(crate) next: u64,
}

/// [`Key::next`] of blocks that lie in one page.
pub(crate) const ONE_PAGE: u64 = u64::MAX;

/// Why a site leaves. Offsets are from the linear page of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SiteKind {
    /// A direct jump inside the page, not yet linked: the rel32 at `patch` (offset in the block) may lead to the target.
    Chain { patch: u32, target: u32 },
    /// The kick was seen before a jump to this offset.
    Kick(u32),
    /// A memory access of the instruction at this offset missed the TLB.
    Miss {
        /// Where the instruction is.
        at: u32,
        /// It uses x87 or vector registers.
        vector: bool,
    },
}

/// A call in the block's cold part that leads to a thunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site {
    /// Offset of the byte after the call.
    pub(crate) ret: u32,
    pub(crate) kind: SiteKind,
}

/// A finished translation before it is placed.
#[derive(Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) code: Vec<u8>,
    /// In rising order of `ret`.
    pub(crate) sites: Vec<Site>,
    /// (host offset, guest offset in page) of each instruction, rising.
    pub(crate) map: Vec<(u32, u16)>,
    /// Calls and jumps to thunks: (place of the rel32, thunk).
    pub(crate) thunk_calls: Vec<(u32, Thunk)>,
    /// Lines of the page that the translation depends on.
    pub(crate) lines: u64,
    /// Lines of the next page that it depends on.
    pub(crate) next_lines: u64,
    /// The first instruction is for the interpreter: there is no use in entering.
    pub(crate) step_only: Option<Vectors>,
    /// The first instruction goes on in the next page, whose bytes were not given.
    pub(crate) crossing: bool,
    /// Linear addresses of routines that are called where flags are read right after the return (Go's `duffzero` keeps
    /// them for its callers): code there must take flags as live at returns.
    pub(crate) flag_calls: Vec<u64>,
    /// Guest instructions translated.
    pub(crate) instructions: u32,
}

/// Whether an interpreted instruction may touch x87, SSE or AVX state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// It certainly does not.
    Untouched,
    /// It may.
    Used,
}

/// Shared pieces of code at the start of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Thunk {
    /// From Rust into translated code.
    Enter,
    /// From a site to Rust.
    Site,
    /// From a jump to `r10` that missed.
    JumpMiss,
    /// The same, by the instruction at `r11` (CPL 3: that offset in the page).
    BranchMiss,
    /// From a jump to `r10`, code of this space, that missed its own place in the jump cache: looks at the places around
    /// it, then does as [`Self::JumpMiss`]. Keeps flags.
    JumpProbe(Space),
    /// The same for [`Self::BranchMiss`].
    BranchProbe(Space),
    /// The instruction at `r10` is for the interpreter and does not touch vector state.
    Step,
    /// The same, and it may.
    StepVector,
    /// Called from Rust: brings the guest's x87 and vector state from the registers into `cpu.xsave`.
    SaveVectors,
    /// Refill of a TLB entry for address `r10`, kind `r11d`; returns, or leaves as from a site.
    Refill,
    /// Where a signal handler sends an interrupted block.
    Signal,
}

impl Thunk {
    pub(crate) const ALL: [Self; 15] = [
        Self::Enter,
        Self::Site,
        Self::JumpMiss,
        Self::BranchMiss,
        Self::JumpProbe(Space::User),
        Self::JumpProbe(Space::Kernel),
        Self::JumpProbe(Space::KernelAc),
        Self::BranchProbe(Space::User),
        Self::BranchProbe(Space::Kernel),
        Self::BranchProbe(Space::KernelAc),
        Self::Step,
        Self::StepVector,
        Self::SaveVectors,
        Self::Refill,
        Self::Signal,
    ];
}
