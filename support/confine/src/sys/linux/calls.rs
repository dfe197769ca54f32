//! The system calls of each role, with the reason for each. What is not listed kills the process.
//!
//! A line is there because code of this role makes the call after it was confined; take it out together with that code.

use libc as c;

/// One system call that is let through.
pub(super) struct Call {
    pub(super) number: c::c_long,
    pub(super) when: When,
}

/// With which arguments.
#[derive(Clone, Copy)]
pub(super) enum When {
    /// Any.
    Always,
    /// The argument has one of these values (32 bits of it are looked at).
    OneOf(u8, &'static [u64]),
    /// None of these bits is set in the argument.
    Without(u8, u64),
    /// All of these bits are set in the argument.
    With(u8, u64),
    /// The argument is this process's id.
    OwnProcess(u8),
    /// Both arguments are zero.
    BothZero(u8, u8),
}

const fn any(number: c::c_long) -> Call {
    Call { number, when: When::Always }
}

const fn only(number: c::c_long, when: When) -> Call {
    Call { number, when }
}

/// The virtual machine monitor. No call here makes a socket, starts or traces a process, changes a credential, mounts,
/// or maps memory that can be executed.
pub(super) const VMM: &[Call] = &[
    // Reading and writing descriptors that it was given or that the file server opened.
    any(c::SYS_read),
    any(c::SYS_write),
    any(c::SYS_readv),
    any(c::SYS_writev),
    any(c::SYS_pread64),
    any(c::SYS_pwrite64),
    any(c::SYS_preadv),
    any(c::SYS_pwritev),
    any(c::SYS_preadv2),
    any(c::SYS_pwritev2),
    any(c::SYS_lseek),
    any(c::SYS_close),
    any(c::SYS_dup),
    // Non-blocking mode and copies of descriptors; F_SETOWN and its kin would direct signals at others.
    only(
        c::SYS_fcntl,
        When::OneOf(
            1,
            &[
                c::F_GETFD as u64,
                c::F_SETFD as u64,
                c::F_GETFL as u64,
                c::F_SETFL as u64,
                c::F_DUPFD_CLOEXEC as u64,
                c::F_OFD_SETLK as u64,
                c::F_OFD_SETLKW as u64,
                c::F_OFD_GETLK as u64,
                1034, // F_GET_SEALS
            ],
        ),
    ),
    any(c::SYS_flock),
    // The disk: sizes, holes, order of writes.
    any(c::SYS_fsync),
    any(c::SYS_fdatasync),
    any(c::SYS_sync_file_range),
    any(c::SYS_ftruncate),
    any(c::SYS_fallocate),
    any(c::SYS_fadvise64),
    any(c::SYS_fstat),
    any(c::SYS_statx),
    // The file server, beneath the descriptors of its shares; Landlock holds it there. `openat` is for the C library,
    // whose attempts (locale, CPU list) Landlock refuses.
    any(c::SYS_openat2),
    any(c::SYS_openat),
    any(c::SYS_newfstatat),
    any(c::SYS_getdents64),
    any(c::SYS_readlinkat),
    any(c::SYS_symlinkat),
    any(c::SYS_linkat),
    any(c::SYS_mkdirat),
    any(c::SYS_unlinkat),
    any(c::SYS_renameat2),
    any(c::SYS_fchmod),
    // Of descriptors only (no path, no flags): no Landlock right covers times, and with a path any file could be named.
    only(c::SYS_utimensat, When::BothZero(3, 1)),
    any(c::SYS_fgetxattr),
    any(c::SYS_fsetxattr),
    any(c::SYS_flistxattr),
    any(c::SYS_fremovexattr),
    any(c::SYS_syncfs),
    any(c::SYS_fstatfs),
    any(c::SYS_copy_file_range),
    // Waiting and waking.
    any(c::SYS_poll),
    any(c::SYS_ppoll),
    any(c::SYS_epoll_create1),
    any(c::SYS_epoll_ctl),
    any(c::SYS_epoll_wait),
    any(c::SYS_epoll_pwait),
    any(c::SYS_epoll_pwait2),
    any(c::SYS_eventfd2),
    any(c::SYS_timerfd_create),
    any(c::SYS_timerfd_settime),
    any(c::SYS_timerfd_gettime),
    any(c::SYS_pipe2),
    any(c::SYS_futex),
    any(c::SYS_nanosleep),
    any(c::SYS_clock_nanosleep),
    any(c::SYS_clock_gettime),
    any(c::SYS_clock_getres),
    any(c::SYS_gettimeofday),
    any(c::SYS_time),
    any(c::SYS_restart_syscall),
    // Sockets that exist already: the shim's, and those that it passes on.
    any(c::SYS_recvmsg),
    any(c::SYS_sendmsg),
    any(c::SYS_recvfrom),
    any(c::SYS_sendto),
    any(c::SYS_shutdown),
    any(c::SYS_getsockopt),
    only(c::SYS_setsockopt, When::OneOf(1, &[c::SOL_SOCKET as u64])),
    // Memory, none of it executable: the soft engine maps its code cache before.
    only(c::SYS_mmap, When::Without(2, c::PROT_EXEC as u64)),
    only(c::SYS_mprotect, When::Without(2, c::PROT_EXEC as u64)),
    any(c::SYS_munmap),
    any(c::SYS_mremap),
    any(c::SYS_madvise),
    any(c::SYS_brk),
    any(c::SYS_membarrier),
    // Threads of this process. `clone3` hides its flags in memory: it is answered with ENOSYS (see `filter`), so that
    // the C library falls back to `clone`.
    any(c::SYS_clone3),
    only(c::SYS_clone, When::With(0, (c::CLONE_VM | c::CLONE_THREAD | c::CLONE_SIGHAND) as u64)),
    any(c::SYS_set_robust_list),
    any(c::SYS_rseq),
    any(c::SYS_set_tid_address),
    any(c::SYS_sigaltstack),
    any(c::SYS_rt_sigaction),
    any(c::SYS_rt_sigprocmask),
    any(c::SYS_rt_sigreturn),
    any(c::SYS_sched_yield),
    any(c::SYS_sched_getaffinity),
    any(c::SYS_getcpu),
    any(c::SYS_exit),
    any(c::SYS_exit_group),
    any(c::SYS_gettid),
    any(c::SYS_getpid),
    // Kicks of vCPU threads, and abort.
    only(c::SYS_tgkill, When::OwnProcess(0)),
    // The soft engine's thread pointer.
    only(c::SYS_arch_prctl, When::OneOf(0, &[0x1001 /* ARCH_SET_GS */, 0x1004 /* ARCH_GET_GS */])),
    // Names of threads and of anonymous memory.
    only(c::SYS_prctl, When::OneOf(0, &[c::PR_SET_NAME as u64, c::PR_GET_NAME as u64, c::PR_SET_VMA as u64])),
    // Own limits, for reading.
    only(c::SYS_prlimit64, When::BothZero(0, 2)),
    // Numbers about the machine and the process.
    any(c::SYS_getrandom),
    any(c::SYS_uname),
    any(c::SYS_sysinfo),
    any(c::SYS_getrusage),
    any(c::SYS_getuid),
    any(c::SYS_geteuid),
    any(c::SYS_getgid),
    any(c::SYS_getegid),
    only(c::SYS_ioctl, When::OneOf(1, IOCTLS)),
];

/// The `ioctl` requests of the vmm: KVM's on VMs and vCPUs that exist, and two on descriptors.
const IOCTLS: &[u64] = &[
    0x0000_ae80, // KVM_RUN
    0x8090_ae81, // KVM_GET_REGS
    0x4090_ae82, // KVM_SET_REGS
    0x8138_ae83, // KVM_GET_SREGS
    0x4138_ae84, // KVM_SET_SREGS
    0xc008_ae88, // KVM_GET_MSRS
    0x4008_ae89, // KVM_SET_MSRS
    0x8400_ae8e, // KVM_GET_LAPIC
    0x4400_ae8f, // KVM_SET_LAPIC
    0x8004_ae98, // KVM_GET_MP_STATE
    0x4004_ae99, // KVM_SET_MP_STATE
    0x8040_ae9f, // KVM_GET_VCPU_EVENTS
    0x4040_aea0, // KVM_SET_VCPU_EVENTS
    0x8080_aea1, // KVM_GET_DEBUGREGS
    0x4080_aea2, // KVM_SET_DEBUGREGS
    0x9000_aea4, // KVM_GET_XSAVE
    0x5000_aea5, // KVM_SET_XSAVE
    0x8188_aea6, // KVM_GET_XCRS
    0x4188_aea7, // KVM_SET_XCRS
    0x4020_ae46, // KVM_SET_USER_MEMORY_REGION: the dirty log is a flag of the slot
    0x4010_ae42, // KVM_GET_DIRTY_LOG
    0x4020_aea5, // KVM_SIGNAL_MSI
    0x4040_ae79, // KVM_IOEVENTFD
    0x8030_ae7c, // KVM_GET_CLOCK
    0x4030_ae7b, // KVM_SET_CLOCK
    0x5421,      // FIONBIO
    0x541b,      // FIONREAD
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_makes_sockets_or_processes() {
        let forbidden = [
            c::SYS_socket,
            c::SYS_connect,
            c::SYS_bind,
            c::SYS_accept4,
            c::SYS_execve,
            c::SYS_execveat,
            c::SYS_fork,
            c::SYS_vfork,
            c::SYS_ptrace,
            c::SYS_process_vm_readv,
            c::SYS_process_vm_writev,
            c::SYS_kill,
            c::SYS_tkill,
            c::SYS_pidfd_send_signal,
            c::SYS_unshare,
            c::SYS_setns,
            c::SYS_mount,
            c::SYS_bpf,
            c::SYS_io_uring_setup,
            c::SYS_userfaultfd,
            c::SYS_open_by_handle_at,
            c::SYS_personality,
            c::SYS_setuid,
        ];
        assert!(VMM.iter().all(|call| !forbidden.contains(&call.number)));
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut numbers: Vec<_> = VMM.iter().map(|call| call.number).collect();
        numbers.sort_unstable();
        assert!(numbers.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn every_request_is_kvms_or_a_descriptors() {
        assert!(
            IOCTLS.iter().all(|request| request >> 8 & 0xff == 0xae || matches!(request, 0x5421 | 0x541b))
        );
    }
}
