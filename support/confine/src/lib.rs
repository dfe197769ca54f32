//! Takes from a process what its role does not need, before anything hostile can speak to it.
//!
//! A role is a table of what it may do ([`Role`]); what differs from sandbox to sandbox is given as [`Grants`]: descriptors
//! of the directories that it may reach. Everything else was opened before. There is no way back and no switch: where a
//! layer that the host offers cannot be put in place, [`confine`] fails and the caller must end.
//!
//! On Linux the layers are: no new privileges, no dumps and no tracing by others of the same user, resource limits,
//! close-on-exec, Landlock (files beneath the granted directories only, no TCP, no signals and no abstract sockets
//! outwards) and a seccomp filter that kills the process at the first system call outside of the role's table.
//!
//! What is trusted: the kernel, and the code that ran before the call.
#![cfg_attr(
    target_os = "linux",
    expect(
        unsafe_code,
        reason = "system calls that no safe crate offers: prctl, close_range, and the hostile probes"
    )
)]

#[cfg(all(feature = "hostile-hook", not(debug_assertions)))]
compile_error!("the feature hostile-hook is for tests and is not built into a release");

#[cfg(target_os = "linux")]
mod attempts;
#[cfg(feature = "hostile-hook")]
pub mod hostile;
mod sys;
mod table;

use std::os::fd::{BorrowedFd, RawFd};

#[cfg(target_os = "linux")]
pub use attempts::{ATTEMPTS, Attempt, End};
pub use table::{Call, Shown, When};

/// What a process is for; each has its own table of what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the virtual machine: vCPUs, device workers, the file server. It opens files beneath the granted directories
    /// and nowhere else; it cannot make a socket, start a program, trace or signal another process, or map memory that
    /// can be executed. `ioctl` reaches KVM's vCPU and VM calls only.
    Vmm,
    /// The vmm's parent, once it has started it: it listens for clients, keeps the logs, and ends the vmm. It opens and
    /// writes files beneath the sandbox's folder only; it cannot start a program, make a connection, or signal another
    /// process than the vmm.
    Shim,
    /// Starts the gateway, and starts it again when it dies, which a confined shim cannot: it forks, waits and kills. What
    /// a gateway may do it must be able to do as well, because its child can only lose more. It hears its shim alone.
    Keeper,
    /// A sandbox's network: it makes TCP and UDP connections, serves listeners that were handed over, and reads frames
    /// from memory that it was given. It opens no file, binds no address, starts nothing and signals nobody. A keeper's
    /// child becomes one by [`Keeper::fork`] alone.
    Gateway,
}

/// How a granted directory may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Files beneath it may be read, directories listed.
    ReadOnly,
    /// Files beneath it may be made, changed and removed, too; nothing may be run, and no device node made.
    ReadWrite,
}

/// What a process gets beyond its role.
#[derive(Clone, Debug, Default)]
pub struct Grants<'a> {
    /// Directories, or single files, and how they may be used. `O_PATH` descriptors will do.
    pub directories: Vec<(BorrowedFd<'a>, Access)>,
    /// Descriptors above 2 that may survive an `execve`; every other one gets close-on-exec.
    pub inherited: Vec<RawFd>,
    /// Most descriptors that the process may hold at once; `None` leaves the limit.
    pub most_descriptors: Option<u64>,
    /// The one process that a shim may kill: its vmm, by its id.
    pub child: Option<u32>,
}

/// What was put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One short phrase per layer, strongest first, for `viv diagnose`.
    pub layers: Vec<String>,
    /// The Landlock version in use; `None` where the kernel has none.
    pub landlock: Option<u32>,
    /// System calls that the filter lets through; 0 for a role without one.
    pub system_calls: usize,
}

/// Why the process is not confined. The caller must not go on.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// This program cannot confine a process on this system yet.
    #[error("Processes cannot be confined on {0} yet, and nothing runs unconfined")]
    Unsupported(&'static str),
    /// Threads that exist already cannot be bound by Landlock on this kernel.
    #[error("The process has {0} threads; it must be confined while it has one")]
    Threads(usize),
    /// The kernel refused a layer.
    #[error("The kernel refused {layer}")]
    Refused {
        /// What was asked of it.
        layer: &'static str,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
    /// Landlock is there, but does not do what is needed.
    #[error("Landlock could not be put in place")]
    Landlock(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The filter could not be made or installed.
    #[error("The system call filter could not be put in place")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Confines the calling process to its role, for good. Call it while the process has one thread: threads that are
/// started later inherit everything.
///
/// # Errors
/// A layer that the kernel offers could not be put in place. Some layers may be in place already; the process is of no
/// use any more.
pub fn confine(role: Role, grants: &Grants<'_>) -> Result<Report, ConfineError> {
    sys::confine(role, grants)
}

/// The right to fork, which a process has that is confined as [`Role::Keeper`]: it has one thread, and its table lets it
/// make no other, so that nothing is held by a thread that the child does not have.
#[derive(Debug)]
pub struct Keeper(());

/// Who returns from [`Keeper::fork`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The keeper; its new child has this process id.
    Keeper(u32),
    /// The child, confined as [`Role::Gateway`]. It ends with its keeper.
    Child,
}

/// Confines the calling process as [`Role::Keeper`], without any grants.
///
/// # Errors
/// As [`confine`]; and the process has a second thread.
pub fn become_keeper() -> Result<(Keeper, Report), ConfineError> {
    sys::become_keeper().map(|report| (Keeper(()), report))
}

impl Keeper {
    /// Makes a child that is confined as [`Role::Gateway`] before this returns in it; one that cannot be ends.
    ///
    /// # Errors
    /// The host has no room for another process.
    pub fn fork(&self) -> Result<Forked, ConfineError> {
        sys::fork()
    }
}

/// The part of [`confine`] that no process of ours minds, for a role that still has something to start or to open: no new
/// privileges, no tracing by others of the same user, no core dumps. What it starts inherits the first and the last.
///
/// # Errors
/// The kernel refused one of them.
pub fn harden() -> Result<(), ConfineError> {
    sys::harden()
}

/// The version of Landlock that this kernel offers; `None` where it has none, and where there is no Landlock.
#[must_use]
pub fn landlock() -> Option<u32> {
    sys::landlock()
}

/// Keeps every descriptor above 2 that this process holds now from the programs that it starts: what its own caller left
/// open, too, which no flag of ours is on.
///
/// # Errors
/// If the host cannot do that; a role cannot be confined there either.
pub fn keep_descriptors() -> std::io::Result<()> {
    sys::keep_descriptors()
}

/// The system calls that a role may make, each with its reason and how it is shown to be needed.
#[must_use]
pub fn table(role: Role) -> &'static [Call] {
    sys::table(role)
}
