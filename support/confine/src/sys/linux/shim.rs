//! The system calls of the role shim, from the moment when its vmm runs and its socket listens. What is not listed kills
//! the process, and with it the vmm.
//!
//! No call here starts a program, makes a socket that could be connected or bound, traces, mounts, or changes a credential.
//! The one process that can be killed is the vmm.

use libc as c;

use super::process::THREAD;
use super::rare;
use crate::table::Shown::Recorded;
use crate::table::When::{Always, KillsChild, OneOf, OwnProcess, With};
use crate::table::{Call, call};

/// The role's own lines.
pub(super) const TABLE: &[Call] = &[
    // Clients, the vmm, the guest's agent.
    call!(SYS_ppoll, Always, Recorded, "the loop: everything that it waits for"),
    call!(SYS_accept4, Always, Recorded, "a client has come"),
    call!(SYS_recvmsg, Always, Recorded, "what clients and the vmm say; descriptors are closed unread"),
    call!(SYS_sendmsg, Always, Recorded, "answers to clients, orders to the vmm, with a connection's end"),
    call!(SYS_sendto, Always, Recorded, "the steward's words to the agent; the handler of SIGTERM"),
    call!(SYS_recvfrom, Always, Recorded, "the agent's answers; the handler's word"),
    call!(
        SYS_socketpair,
        OneOf(0, &[c::AF_UNIX as u64]),
        Recorded,
        "a connection to a port of the guest: one end for the vmm, the other for the client"
    ),
    call!(
        SYS_read,
        Always,
        Recorded,
        "the vmm's log and the guest's console; the steward's bell; the disk's description; jumps of the host's clock"
    ),
    call!(SYS_write, Always, Recorded, "logs, the state's file, the steward's bell"),
    call!(SYS_close, Always, Recorded, "clients that went"),
    call!(SYS_pipe2, Always, Recorded, "the steward's bell"),
    // Files, which Landlock holds beneath the sandbox's folder.
    call!(SYS_open, Always, Recorded, "the sandbox's folder"),
    call!(
        SYS_openat,
        Always,
        Recorded,
        "logs, the state's file; what the C library looks for is refused by Landlock"
    ),
    call!(SYS_openat2, Always, Recorded, "the disk's description, beneath its folder"),
    call!(SYS_newfstatat, Always, Recorded, "the disk's description"),
    call!(SYS_statx, Always, Recorded, "the length of a log"),
    call!(SYS_fsync, Always, Recorded, "the state's file and its folder"),
    call!(SYS_rename, Always, Recorded, "the state's file replaces the old one, a full log moves"),
    call!(SYS_unlink, Always, Recorded, "the control socket, at the end"),
    call!(SYS_unlinkat, Always, Recorded, "the mark of a disk that is not made yet"),
    call!(SYS_readlink, Always, Recorded, "/etc/localtime: the time zone for the guest"),
    // The vmm.
    call!(
        SYS_kill,
        KillsChild,
        Recorded,
        "the vmm, when it is to end and does not: SIGKILL and nothing else"
    ),
    call!(SYS_wait4, Always, Recorded, "the vmm's end"),
    // The network: a gateway that is started again gets fresh memory for frames, and what is longer than a packet.
    call!(
        SYS_memfd_create,
        OneOf(1, &[(c::MFD_CLOEXEC | c::MFD_ALLOW_SEALING) as u64]),
        rare::MEMORY,
        "memory for another process: frames, a long word; nothing of it can be executed"
    ),
    call!(SYS_ftruncate, Always, rare::RING, "the length of the memory for frames"),
    call!(
        SYS_fcntl,
        OneOf(1, &[c::F_ADD_SEALS as u64, c::F_GET_SEALS as u64]),
        rare::MEMORY,
        "that memory stays as it is"
    ),
    call!(SYS_lseek, Always, rare::MEMORY, "a long word of the gateway is read from its beginning"),
    call!(SYS_getdents64, Always, rare::LIST, "the rules files of kits, when the policy has changed"),
    // Time, memory, threads: what the other roles have, too, is in `process`.
    call!(SYS_futex, Always, Recorded, "locks, the steward's orders"),
    call!(
        SYS_clock_nanosleep,
        Always,
        Recorded,
        "steward: between two attempts to reach an agent that does not listen yet"
    ),
    call!(SYS_restart_syscall, Always, rare::RESTART, "the kernel, on a thread's behalf"),
    call!(SYS_getrandom, Always, Recorded, "steward: entropy for the guest; seeds of hash tables"),
    call!(SYS_mremap, Always, rare::MREMAP, "allocator"),
    call!(SYS_clone, With(0, THREAD), Recorded, "pthread_create: the steward"),
    call!(SYS_rt_sigaction, Always, Recorded, "a thread's end; abort"),
    call!(SYS_rt_sigreturn, Always, Recorded, "the end of SIGTERM's handler"),
    call!(SYS_getpid, Always, Recorded, "the name of a new file; abort"),
    call!(SYS_tgkill, OwnProcess(0), rare::ABORT, "abort: only its own threads"),
];
