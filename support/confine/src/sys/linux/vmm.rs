//! The system calls of the role vmm, the virtual machine monitor. What is not listed kills the process.
//!
//! No call here makes a socket, a pipe or an eventfd, starts or traces a process, changes a credential, mounts, or maps
//! memory that can be executed. Whatever a device needs of those is made before the process is confined.

use libc as c;

use super::process::THREAD;
use super::rare;
use crate::table::Shown::{Recorded, RecordedOn};
use crate::table::When::{Always, BothZero, OneOf, OwnProcess, Refused, With, Without};
use crate::table::{Call, call};

/// The role's own lines.
pub(super) const TABLE: &[Call] = &[
    // Descriptors that it was given or that the file server opened.
    call!(SYS_read, Always, Recorded, "vsock: a host stream; doorbell: its eventfd; machine: its timers"),
    call!(
        SYS_write,
        Always,
        Recorded,
        "vsock: a host stream; console: the shim's pipe; doorbell; the log on stderr"
    ),
    call!(SYS_preadv, Always, Recorded, "disk: a guest's read; file server: READ"),
    call!(SYS_pwritev, Always, Recorded, "disk: a guest's write"),
    call!(
        SYS_pwritev2,
        Always,
        Recorded,
        "file server: WRITE, with RWF_APPEND or RWF_DSYNC where the guest asks for it"
    ),
    call!(SYS_lseek, Always, Recorded, "file server: LSEEK (data and holes), and the place in a directory"),
    call!(SYS_close, Always, Recorded, "file server: RELEASE and FORGET; vsock: the end of a connection"),
    call!(
        SYS_fcntl,
        OneOf(1, &[c::F_DUPFD_CLOEXEC as u64]),
        Recorded,
        "copies of descriptors; F_SETOWN and its kin would direct signals at others"
    ),
    // The disk: sizes, holes, order of writes.
    call!(SYS_fsync, Always, Recorded, "file server: FSYNC"),
    call!(SYS_fdatasync, Always, Recorded, "disk: a guest's flush; file server: FSYNC of data only"),
    call!(SYS_ftruncate, Always, Recorded, "file server: SETATTR of a size"),
    call!(SYS_fallocate, Always, Recorded, "disk: discard and zeroes; file server: FALLOCATE"),
    // The file server, beneath the descriptors of its shares; Landlock holds it there.
    call!(
        SYS_openat2,
        Always,
        Recorded,
        "file server: every look-up and open, beneath its directory and without links"
    ),
    call!(SYS_statx, Always, Recorded, "file server: LOOKUP and GETATTR"),
    call!(SYS_getdents64, Always, Recorded, "file server: READDIR"),
    call!(SYS_readlinkat, Always, Recorded, "file server: READLINK"),
    call!(SYS_symlinkat, Always, Recorded, "file server: SYMLINK"),
    call!(SYS_linkat, Always, Recorded, "file server: LINK"),
    call!(SYS_mkdirat, Always, Recorded, "file server: MKDIR"),
    call!(SYS_unlinkat, Always, Recorded, "file server: UNLINK and RMDIR"),
    call!(SYS_renameat2, Always, Recorded, "file server: RENAME, also without replacing and as an exchange"),
    call!(
        SYS_fchmod,
        Without(1, c::S_ISUID as u64),
        Recorded,
        "file server: SETATTR of a mode, of a descriptor only; never set-user-id, with which a root's vmm could arm a file"
    ),
    call!(
        SYS_utimensat,
        BothZero(3, 1),
        Recorded,
        "file server: SETATTR of times, of a descriptor only (no path, no flags): no Landlock right covers times"
    ),
    call!(SYS_fgetxattr, Always, Recorded, "file server: GETXATTR"),
    call!(SYS_fsetxattr, Always, Recorded, "file server: SETXATTR"),
    call!(SYS_flistxattr, Always, Recorded, "file server: LISTXATTR"),
    call!(SYS_fremovexattr, Always, Recorded, "file server: REMOVEXATTR"),
    call!(SYS_syncfs, Always, Recorded, "file server: SYNCFS, the guest's sync"),
    call!(
        SYS_fstatfs,
        Always,
        Recorded,
        "file server: STATFS, and whether a file is the kernel's own control"
    ),
    call!(SYS_copy_file_range, Always, Recorded, "file server: COPY_FILE_RANGE"),
    call!(
        SYS_openat,
        Refused,
        Recorded,
        "the C library's allocator looks for the list of CPUs, and goes by the affinity without it"
    ),
    // Waiting and waking.
    call!(SYS_epoll_ctl, Always, Recorded, "vsock: a new connection"),
    call!(SYS_epoll_pwait, Always, Recorded, "vsock and the other devices' threads"),
    call!(SYS_futex, Always, Recorded, "locks, conditions, a halted vCPU"),
    call!(
        SYS_clock_nanosleep,
        Always,
        rare::SLEEP,
        "machine: vCPUs that are to end are kicked once more; a disk that waits for room on the host"
    ),
    call!(SYS_restart_syscall, Always, rare::RESTART, "the kernel, on a thread's behalf"),
    // Sockets that exist already: the shim's, and those that it passes on.
    call!(SYS_recvmsg, Always, Recorded, "the shim's orders, with descriptors"),
    call!(SYS_sendmsg, Always, Recorded, "answers to the shim"),
    call!(SYS_shutdown, Always, Recorded, "vsock: the guest has closed one direction of a connection"),
    call!(
        SYS_ioctl,
        OneOf(1, &[c::FIONBIO]),
        Recorded,
        "vsock: a stream that the shim passed on must not be waited for"
    ),
    // Memory and threads: what the other roles have, too, is in `process`. The soft engine maps its code cache before.
    call!(SYS_mremap, Always, Recorded, "allocator: a long buffer that grows"),
    call!(SYS_clone, With(0, THREAD), Recorded, "pthread_create: vCPUs, devices, the ear for the shim"),
    call!(SYS_rt_sigaction, Always, Recorded, "engines: the handler of guest faults and of kicks; abort"),
    call!(SYS_rt_sigreturn, Always, rare::HANDLER, "engines"),
    call!(SYS_sched_yield, Always, rare::YIELD, "soft engine; locks of the standard library"),
    call!(SYS_getpid, Always, rare::ABORT, "abort, and KVM's kick"),
    call!(SYS_tgkill, OwnProcess(0), rare::ABORT, "abort, and KVM's kick: only its own threads"),
    call!(
        SYS_arch_prctl,
        OneOf(0, &[ARCH_SET_GS]),
        RecordedOn("soft"),
        "soft engine: the pointer to a vCPU's state"
    ),
    call!(SYS_getrandom, Always, Recorded, "virtio-rng"),
    call!(SYS_ioctl, OneOf(1, KVM), RecordedOn("kvm"), "KVM engine: a VM and vCPUs that exist"),
    call!(SYS_ioctl, OneOf(1, &[KVM_GET_REGS]), rare::INTERNAL_ERROR, "KVM engine"),
];

/// `arch_prctl(2)`'s request that sets the base of GS.
const ARCH_SET_GS: u64 = 0x1001;

/// KVM's requests while the guest runs. Those that read and set more of a vCPU's state come with snapshots.
const KVM: &[u64] = &[
    0x0000_ae80, // KVM_RUN
    0x4138_ae84, // KVM_SET_SREGS: a vCPU's start, on its own thread
    0x4090_ae82, // KVM_SET_REGS: the same
    0x4020_aea5, // KVM_SIGNAL_MSI: a device's interrupt
    0x4040_ae79, // KVM_IOEVENTFD: a queue's bell, while its driver is there
];

/// `KVM_GET_REGS`.
const KVM_GET_REGS: u64 = 0x8090_ae81;
