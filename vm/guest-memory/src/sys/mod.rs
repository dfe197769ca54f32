//! What each system can map guest memory with: a `Ram` that pieces are mapped of, and private mappings of files.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{Ram, map_file};

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub(crate) use macos::{Ram, map_file};

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::{Ram, map_file};
