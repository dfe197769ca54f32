//! Systems that sandboxes have not been brought to.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags};

/// For every message that is sent. Rust's runtime ignores `SIGPIPE`.
pub(crate) const SEND: SendFlags = SendFlags::empty();
/// For every message that is received.
pub(crate) const RECEIVE: RecvFlags = RecvFlags::empty();

fn unsupported() -> io::Error {
    let why = format!("sandboxes are not supported on {} yet", std::env::consts::OS);
    io::Error::new(io::ErrorKind::Unsupported, why)
}

/// Refuses: macOS has no packets between Unix sockets that tell of the other side's end.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn memory_file() -> io::Result<File> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn seal(_file: &File) -> io::Result<()> {
    Err(unsupported())
}

/// None is.
pub(crate) fn sealed(_file: &File) -> bool {
    false
}
