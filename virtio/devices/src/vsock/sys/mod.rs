//! The host's end of a connection: a stream socket.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(super) use unix::{read, set_nonblocking, write};

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(super) use windows::{read, set_nonblocking, write};
