//! Puts the kernel into memory, by architecture.

#[cfg(target_arch = "x86_64")]
#[path = "kernel/x86_64.rs"]
mod arch;
#[cfg(not(target_arch = "x86_64"))]
#[path = "kernel/none.rs"]
mod arch;

pub(super) use arch::load;

/// Where the kernel lies, in guest-physical addresses.
pub(super) struct Loaded {
    /// Its first instruction.
    pub(super) entry: u64,
    /// The first byte after it.
    pub(super) end: u64,
}
