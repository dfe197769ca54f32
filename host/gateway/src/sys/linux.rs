//! eventfd, and sockets that are made as they are wanted.

use std::io;
use std::os::fd::OwnedFd;

use doorbell::Doorbell;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The bell that another process made.
pub(crate) fn bell(descriptor: OwnedFd) -> io::Result<Doorbell> {
    Ok(Doorbell::from(descriptor))
}

/// A socket for datagrams that never blocks.
pub(crate) fn datagram_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    Ok(socket_with(family, SocketType::DGRAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}
