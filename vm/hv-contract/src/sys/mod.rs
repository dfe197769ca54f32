//! A file without a name, for a range of memory to be backed by.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::nameless_file;

#[cfg(not(target_os = "linux"))]
pub(crate) use tempfile::tempfile as nameless_file;
