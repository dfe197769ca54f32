//! What each system says of free space, and how it brings files to the disk.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::sync_tree;

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::{free_bytes, sync_folder};

#[cfg(not(target_os = "linux"))]
mod each;
#[cfg(not(target_os = "linux"))]
pub(crate) use each::sync_tree;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::{free_bytes, sync_folder};
