//! Systems that sandboxes have not been brought to.

use std::io;
use std::os::fd::OwnedFd;

use doorbell::Doorbell;
use rustix::net::{AddressFamily, SocketType, socket};

/// Refuses: a bell of two processes is more than one descriptor here.
pub(crate) fn bell(_descriptor: OwnedFd) -> io::Result<Doorbell> {
    let why = format!("sandboxes are not supported on {} yet", std::env::consts::OS);
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// A socket for datagrams that never blocks.
pub(crate) fn datagram_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let made = socket(family, SocketType::DGRAM, None)?;
    rustix::io::fcntl_setfd(&made, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&made, true)?;
    Ok(made)
}
