//! What each system does with a disk's files.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::{access, open_beneath, punch_hole, read_at, sync, write_at};

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub(crate) use macos::{access, open_beneath, punch_hole, read_at, sync, write_at};

/// What a descriptor is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Reading,
    ReadingAndWriting,
    /// Writing alone, or naming the file alone.
    Other,
}
