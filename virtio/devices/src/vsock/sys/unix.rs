//! Linux and macOS: any descriptor that is read and written as a stream.

use rustix::fd::OwnedFd;
use rustix::io::Result;

pub(crate) fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    rustix::io::ioctl_fionbio(fd, true)
}

pub(crate) fn read(fd: &OwnedFd, into: &mut [u8]) -> Result<usize> {
    rustix::io::read(fd, into)
}

pub(crate) fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    rustix::io::write(fd, bytes)
}
