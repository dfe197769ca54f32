//! The system calls of the role gateway, which is a sandbox's network, and of the role keeper, which starts it. What is not
//! listed kills the process; the sandbox has no network then until its keeper has started another gateway.
//!
//! No call of a gateway opens a file, starts a program, a process or a thread, binds an address, makes a socket of another family than IPv4
//! and IPv6 or of another kind than TCP and UDP, signals, traces, mounts, or changes a credential. Where it connects to is decided by its own
//! policy: no filter sees an address.

use libc as c;

use super::rare;
use crate::table::Shown::Recorded;
use crate::table::When::{Always, OneOf, OwnProcess, Pairs};
use crate::table::{Call, call};

const FLAGS: u64 = (c::SOCK_NONBLOCK | c::SOCK_CLOEXEC) as u64;
const STREAM: u64 = c::SOCK_STREAM as u64 | FLAGS;
const DATAGRAM: u64 = c::SOCK_DGRAM as u64 | FLAGS;
const IPV4: u64 = c::AF_INET as u64;
const IPV6: u64 = c::AF_INET6 as u64;

/// A gateway's own lines.
pub(super) const TABLE: &[Call] = &[
    // Connections to the outside, and clients of published ports.
    call!(
        SYS_socket,
        Pairs(0, 1, &[(IPV4, STREAM), (IPV4, DATAGRAM), (IPV6, STREAM), (IPV6, DATAGRAM)]),
        rare::IPV6,
        "upstream: TCP and UDP, of either family; no raw, packet or netlink socket, also for root"
    ),
    call!(SYS_connect, Always, Recorded, "upstream: each connection, and each name server's datagram socket"),
    call!(
        SYS_accept4,
        Always,
        rare::PUBLISHED,
        "published ports: a client has come to a listener that the user bound"
    ),
    call!(SYS_sendto, Always, Recorded, "upstream: bytes and datagrams"),
    call!(SYS_recvfrom, Always, Recorded, "upstream: bytes and datagrams"),
    call!(SYS_sendmsg, Always, Recorded, "what the shim is told"),
    call!(SYS_recvmsg, Always, Recorded, "what the shim says, with the ring's descriptors and listeners"),
    call!(SYS_writev, Always, rare::PIECES, "upstream: what is in several pieces"),
    call!(SYS_readv, Always, rare::PIECES, "upstream: into several pieces"),
    call!(SYS_read, Always, Recorded, "the ring's bells; upstream"),
    call!(SYS_write, Always, Recorded, "the ring's bells; upstream; the log on stderr"),
    call!(SYS_shutdown, Always, Recorded, "upstream: the guest has closed its direction of a connection"),
    call!(SYS_close, Always, Recorded, "connections that have ended"),
    call!(
        SYS_getsockopt,
        OneOf(1, &[c::SOL_SOCKET as u64]),
        Recorded,
        "upstream: how a connection attempt ended"
    ),
    call!(SYS_setsockopt, Always, Recorded, "upstream: no delay, keep-alive"),
    call!(SYS_getsockname, Always, rare::NAMES, "upstream, published ports: the own address"),
    call!(SYS_getpeername, Always, rare::NAMES, "upstream: the address of the other side"),
    call!(
        SYS_ioctl,
        OneOf(1, &[c::FIONBIO]),
        Recorded,
        "a socket that was handed over must not be waited for"
    ),
    call!(
        SYS_fcntl,
        OneOf(1, &[c::F_GETFL as u64, c::F_SETFL as u64, c::F_DUPFD_CLOEXEC as u64]),
        Recorded,
        "copies of descriptors; a handed-over socket is made not to wait"
    ),
    call!(
        SYS_memfd_create,
        OneOf(1, &[(c::MFD_CLOEXEC | c::MFD_ALLOW_SEALING) as u64]),
        rare::MEMORY,
        "memory for the shim: a word that is longer than a packet; nothing of it can be executed"
    ),
    call!(
        SYS_fcntl,
        OneOf(1, &[c::F_ADD_SEALS as u64, c::F_GET_SEALS as u64]),
        rare::MEMORY,
        "that memory stays as it is"
    ),
    call!(SYS_lseek, Always, rare::MEMORY, "a long word of the shim is read from its beginning"),
    call!(SYS_fstat, Always, Recorded, "the length of the ring's memory"),
    call!(
        SYS_newfstatat,
        OneOf(3, &[c::AT_EMPTY_PATH as u64]),
        Recorded,
        "the same, as newer C libraries do it"
    ),
    call!(
        SYS_statx,
        OneOf(2, &[c::AT_EMPTY_PATH as u64]),
        Recorded,
        "the same, as the standard library does it"
    ),
    // The loop.
    call!(SYS_epoll_create1, Always, Recorded, "the loop"),
    call!(SYS_epoll_ctl, Always, Recorded, "the loop: what is waited for"),
    call!(SYS_epoll_wait, Always, Recorded, "the loop"),
    call!(SYS_epoll_pwait, Always, Recorded, "the loop"),
    call!(SYS_ppoll, Always, Recorded, "the first words, before there is a loop"),
    call!(SYS_eventfd2, Always, Recorded, "the loop: its own bell"),
    call!(SYS_futex, Always, Recorded, "locks"),
    call!(SYS_getrandom, Always, Recorded, "TLS, sequence numbers, ids of questions, seeds of hash tables"),
    call!(SYS_mremap, Always, rare::MREMAP, "allocator: a buffer that grows"),
    call!(SYS_sched_yield, Always, rare::YIELD, "locks of the standard library"),
    call!(SYS_getpid, Always, rare::ABORT, "abort"),
    call!(SYS_tgkill, OwnProcess(0), rare::ABORT, "abort: only its own threads"),
];

/// Flags of the C library's `fork`: what a thread has is not shared.
const FORK: u64 = (c::CLONE_CHILD_SETTID | c::CLONE_CHILD_CLEARTID | c::SIGCHLD) as u64;

/// `seccomp(2)`'s operation that installs a filter.
const SET_MODE_FILTER: u64 = 1;

/// A keeper's lines beyond its child's.
pub(super) const KEEPER: &[Call] = &[
    call!(SYS_clone, OneOf(0, &[FORK]), Recorded, "a new gateway; no threads"),
    call!(SYS_wait4, Always, Recorded, "a gateway's end"),
    call!(
        SYS_pipe2,
        Always,
        Recorded,
        "which a gateway's end closes: to wait for that and for the shim at once"
    ),
    call!(
        SYS_kill,
        OneOf(1, &[c::SIGKILL as u64]),
        rare::HUNG,
        "a gateway that does not answer; Landlock lets it reach its children only"
    ),
    call!(SYS_getppid, Always, Recorded, "the child: whether its keeper still lives"),
    call!(
        SYS_prctl,
        OneOf(0, &[c::PR_SET_PDEATHSIG as u64, c::PR_SET_NO_NEW_PRIVS as u64]),
        Recorded,
        "the child: it ends with its keeper; a part of the next line"
    ),
    call!(SYS_seccomp, OneOf(0, &[SET_MODE_FILTER]), Recorded, "the child: the smaller table of a gateway"),
];
