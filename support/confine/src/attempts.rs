//! What code that took a process over would try, and how each attempt must end. The code that makes them is in
//! `hostile`, which only tests build; this list is what other crates' tests compare with.

use libc as c;

use crate::Role;

/// How an attempt must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The filter kills the process (SIGSYS).
    Killed,
    /// The call answers this error.
    Refused(i32),
}

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// Its name.
    pub name: &'static str,
    vmm: End,
    shim: End,
    /// Of a gateway, and of the keeper that it comes from.
    gateway: End,
    /// The errors by which it may fail in a free process, too, because of its user or its host. Without one it must
    /// succeed for everybody.
    pub lacking: &'static [i32],
}

impl Attempt {
    /// How it must end in a process of this role.
    #[must_use]
    pub fn end(&self, role: Role) -> End {
        match role {
            Role::Vmm => self.vmm,
            Role::Shim => self.shim,
            Role::Keeper | Role::Gateway => self.gateway,
        }
    }
}

/// One that kills, and succeeds for everybody in a free process.
const fn killed(name: &'static str) -> Attempt {
    Attempt { name, vmm: End::Killed, shim: End::Killed, gateway: End::Killed, lacking: &[] }
}

/// One that kills, and that a free process may not be able to make, either.
const fn killed_unless(name: &'static str, lacking: &'static [i32]) -> Attempt {
    Attempt { name, vmm: End::Killed, shim: End::Killed, gateway: End::Killed, lacking }
}

/// One that Landlock refuses, and a gateway's filter.
const fn denied(name: &'static str) -> Attempt {
    let end = End::Refused(c::EACCES);
    Attempt { name, vmm: end, shim: end, gateway: End::Killed, lacking: &[] }
}

/// Every attempt.
pub const ATTEMPTS: &[Attempt] = &[
    // Files: Landlock's part. `openat2`'s flags lie in memory, so that the filter lets it through.
    denied("open-passwd"),
    // A vmm's filter answers this one; its shim opens files so.
    Attempt {
        name: "open-passwd-by-openat",
        vmm: End::Refused(c::ENOSYS),
        shim: End::Refused(c::EACCES),
        gateway: End::Killed,
        lacking: &[],
    },
    denied("open-ssh-folder"),
    denied("open-own-memory"),
    denied("create-a-file"),
    denied("list-root"),
    // Everything else is the filter's.
    killed("device-ioctl"),
    killed("touch-by-path"),
    killed("touch-by-empty-path"),
    killed("chmod-by-path"),
    killed("set-user-id"),
    killed("pipe-node"),
    killed_unless("device-node", &[c::EPERM]),
    killed_unless("chroot", &[c::EPERM]),
    // A gateway's are never waited for, which this one is.
    killed("socket-inet"),
    killed_unless("socket-raw", &[c::EPERM]),
    killed("bind"),
    killed("socket-unix"),
    killed("socket-netlink"),
    killed_unless("socket-vsock", &[c::EAFNOSUPPORT]),
    killed("execve"),
    killed("fork"),
    killed("trace-me"),
    // A free process may do these three to a stranger where the host lets it (`kernel.yama.ptrace_scope`, capabilities).
    killed_unless("ptrace", &[c::EPERM]),
    killed_unless("read-parents-memory", &[c::EPERM]),
    killed("kill-parent"),
    killed("tgkill-parent"),
    killed("pidfd-of-parent"),
    killed("change-user"),
    killed_unless("unshare", &[c::EPERM, c::ENOSPC]),
    killed("unshare-descriptors"),
    killed("map-writable-and-executable"),
    killed("map-executable"),
    killed("make-executable"),
    killed("memory-file"),
    killed_unless("io-uring", &[c::EPERM, c::ENOSYS, c::ENOMEM]),
    // Where there are no terminals, or there is no /dev/kvm, there is no descriptor of one.
    killed_unless("terminal-ioctl", &[c::EPERM, c::EIO, c::EBADF]),
    killed_unless("kvm-create-vm", &[c::EBADF]),
];
