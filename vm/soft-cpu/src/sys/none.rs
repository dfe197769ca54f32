//! Systems that the software CPU has not been brought to.

use std::io;

/// Refuses: instructions that need the host's units are then unknown to the CPU.
pub(crate) fn map_twice(_bytes: usize) -> io::Result<(*mut u8, *const u8)> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "executable memory is not supported on this system yet"))
}

/// Nothing: [`map_twice`] gives none.
///
/// # Safety
/// As for every system.
pub(crate) unsafe fn unmap_both(_writable: *mut u8, _executable: *const u8, _bytes: usize) {}
