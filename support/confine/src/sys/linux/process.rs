//! The system calls that every role needs to be a process with threads at all: what the standard library, the allocator and
//! the C library make for whatever code runs on them. A role's table is its own lines and these.

use libc as c;

use super::rare;
use crate::table::Shown::Recorded;
use crate::table::When::{Always, OneOf, Refused, Without};
use crate::table::{Call, call};

/// Flags that every new thread has and no new process; each role's `clone` wants them.
pub(super) const THREAD: u64 = (c::CLONE_VM | c::CLONE_THREAD | c::CLONE_SIGHAND) as u64;

/// The lines that all roles share.
pub(super) const TABLE: &[Call] = &[
    #[cfg(debug_assertions)]
    call!(SYS_fcntl, OneOf(1, &[c::F_GETFD as u64]), rare::DEBUG, "standard library, in builds for tests"),
    // Time.
    call!(SYS_clock_gettime, Always, rare::CLOCK, "the clock"),
    // Memory, none of it executable.
    call!(SYS_mmap, Without(2, c::PROT_EXEC as u64), Recorded, "allocator, stacks of threads"),
    call!(SYS_mprotect, Without(2, c::PROT_EXEC as u64), Recorded, "allocator, guard pages of stacks"),
    call!(SYS_munmap, Always, Recorded, "allocator, stacks of threads"),
    call!(SYS_madvise, Always, Recorded, "the stack of a thread that ends is given back"),
    call!(SYS_brk, Always, rare::BRK, "allocator"),
    // Threads of this process. `clone3` hides its flags in memory: without it the C library falls back to `clone`.
    call!(SYS_clone3, Refused, Recorded, "pthread_create's first attempt"),
    call!(SYS_set_robust_list, Always, Recorded, "a thread's start"),
    call!(SYS_rseq, Always, Recorded, "a thread's start"),
    call!(SYS_sigaltstack, Always, Recorded, "a thread's start and end: the stack for reporting an overflow"),
    call!(
        SYS_sched_getaffinity,
        Always,
        Recorded,
        "a thread's start (its stack's bounds), the allocator's arenas"
    ),
    call!(SYS_prctl, OneOf(0, &[c::PR_SET_NAME as u64]), Recorded, "a thread's name"),
    call!(SYS_gettid, Always, Recorded, "a thread's start; abort"),
    call!(SYS_rt_sigprocmask, Always, Recorded, "a thread's start and end; abort"),
    call!(SYS_exit, Always, Recorded, "a thread's end"),
    call!(SYS_exit_group, Always, Recorded, "the end"),
];
