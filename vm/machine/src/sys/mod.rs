//! How a system reads a file into guest memory.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::read_volatile;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::read_volatile;
