//! Messages with file descriptors between the processes of one sandbox: JSON in packets of a `SOCK_SEQPACKET` socket,
//! descriptors beside them (`SCM_RIGHTS`).
//!
//! Both ends belong to the same user on the same host; the vmm's end is nevertheless treated as hostile by the shim
//! (a guest may have taken the vmm over): packets are bounded, and descriptors that were not expected are closed.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys;

/// Bytes in the longest packet.
const LONGEST: usize = 128 << 10;

/// Most descriptors in one packet.
const MOST_DESCRIPTORS: usize = 200;

/// Two connected packet sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    sys::packet_pair()
}

/// Two connected byte streams, for one connection to a port of the guest.
pub fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (near, far) = UnixStream::pair()?;
    Ok((near.into(), far.into()))
}

/// Sends one message with descriptors. Waits while the other side does not read.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_with(socket, message, descriptors, sys::SEND)
}

/// [`send`] for who must not wait for the other side: [`io::ErrorKind::WouldBlock`] when that does not read.
pub fn send_now<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_with(socket, message, descriptors, sys::SEND | SendFlags::DONTWAIT)
}

fn send_with<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > LONGEST || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(&bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives one message with its descriptors; `None` when the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0u8; LONGEST];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket.as_fd(), &mut slices, &mut ancillary, sys::RECEIVE) {
            Ok(got) => break got,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    };
    // Taken out first, so that they are closed whatever the message is.
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is cut off"));
    }
    let text = bytes.get(..got.bytes).unwrap_or_default();
    Ok(Some((serde_json::from_slice(text)?, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel_with_their_message() {
        let (a, b) = pair().unwrap();
        let (near, far) = stream_pair().unwrap();
        send(&a, &("port", 7), &[far.as_fd()]).unwrap();
        send(&a, &("next", 8), &[]).unwrap();
        drop(far);
        let (message, mut descriptors) = receive::<(String, u32)>(&b).unwrap().unwrap();
        assert_eq!((message.0.as_str(), message.1, descriptors.len()), ("port", 7, 1));
        let mut stream = std::os::unix::net::UnixStream::from(descriptors.remove(0));
        stream.write_all(b"hello").unwrap();
        drop(stream);
        let mut text = String::new();
        std::os::unix::net::UnixStream::from(near).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        let (_, descriptors) = receive::<(String, u32)>(&b).unwrap().unwrap();
        assert!(descriptors.is_empty());
        drop(a);
        assert!(receive::<(String, u32)>(&b).unwrap().is_none());
    }

    #[test]
    fn a_side_that_does_not_read_stops_nobody() {
        let (a, _b) = pair().unwrap();
        let message = "x".repeat(1 << 10);
        let error = (0..100_000).find_map(|_| send_now(&a, &message, &[]).err());
        assert_eq!(error.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn nonsense_is_an_error_and_leaks_no_descriptor() {
        let (a, b) = pair().unwrap();
        let (near, far) = stream_pair().unwrap();
        send(&a, &"not what is expected", &[far.as_fd()]).unwrap();
        drop(far);
        assert!(receive::<u32>(&b).is_err());
        let mut rest = Vec::new();
        // The passed end is closed: reading sees the end instead of waiting for ever.
        std::os::unix::net::UnixStream::from(near).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
    }
}
