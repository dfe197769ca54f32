//! The host's file system calls, relative to a directory descriptor and never following a symbolic link.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::SYSTEM_CALLS;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;
