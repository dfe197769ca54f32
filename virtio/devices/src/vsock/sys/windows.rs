//! Windows: a socket, which is no file there.

use rustix::fd::OwnedFd;
use rustix::io::Result;
use rustix::net::{RecvFlags, SendFlags};

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true)
}

pub(crate) fn read(fd: &OwnedFd, into: &mut [u8]) -> Result<usize> {
    rustix::net::recv(fd, into, RecvFlags::empty()).map(|(count, _)| count)
}

pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    rustix::net::send(fd, bytes, SendFlags::empty())
}
