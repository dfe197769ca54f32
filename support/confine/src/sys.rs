//! What confines a process on each system.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub(crate) use linux::{become_keeper, confine, fork, harden, keep_descriptors, landlock, table};

#[cfg(not(target_os = "linux"))]
mod none;

#[cfg(not(target_os = "linux"))]
pub(crate) use none::{become_keeper, confine, fork, harden, keep_descriptors, landlock, table};
