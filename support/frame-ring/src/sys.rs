//! What belongs to one system.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub(crate) use linux::memory;

#[cfg(not(target_os = "linux"))]
mod none;

#[cfg(not(target_os = "linux"))]
pub(crate) use none::memory;
