//! Why calls are in a table that a recorded run may not make. Each reason is shown by a test of its own, or is an argument.

/// Shown by `confined`'s case `can::abort`.
pub(super) const ABORT: &str = "a process that aborts (out of memory, a panic within a panic) ends with SIGABRT and its last words in the log";

/// Shown by `confined`'s case `can::go_on_after_a_stop`.
pub(super) const RESTART: &str =
    "a wait with a timeout goes on by it after the process was stopped, as when a host is suspended";

/// An argument.
pub(super) const CLOCK: &str = "made where the vDSO has no clock: on hosts without a stable time-stamp counter each look at the clock is one";

/// An argument.
pub(super) const BRK: &str =
    "the allocator's first arena grows by it, when the first thread needs more than it had before";

/// An argument.
pub(super) const MREMAP: &str =
    "the allocator grows a buffer of more than 128 KiB by it: a long packet, a long line";

/// An argument. In the vmm of the KVM engine it is made at the first kick.
pub(super) const HANDLER: &str =
    "the return of a handler: KVM's kick of a vCPU, or a fault of translated code";

/// An argument; most recorded runs have it.
pub(super) const SLEEP: &str =
    "a machine that ends, or measures its clock, sleeps a moment if another thread is not there yet";

/// An argument; most recorded runs have it.
pub(super) const YIELD: &str = "a vCPU that waits for another one, as at a guest's PAUSE, lets it go first";

/// An argument: no guest makes KVM fail at will.
pub(super) const INTERNAL_ERROR: &str =
    "where KVM gives up on an instruction, the sentence that ends the machine says where it stood";

/// Shown by `confined` itself, which is such a build. No release has the line.
#[cfg(debug_assertions)]
pub(super) const DEBUG: &str =
    "with debug assertions the standard library looks whether what it closes is open";
