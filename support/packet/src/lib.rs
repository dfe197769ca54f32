//! Messages with file descriptors between the processes of one sandbox: JSON in packets of a `SOCK_SEQPACKET` socket,
//! descriptors beside them (`SCM_RIGHTS`).
//!
//! Both ends belong to the same user on the same host; the vmm's end is nevertheless treated as hostile by the shim
//! (a guest may have taken the vmm over): packets are bounded, and descriptors that were not expected are closed.
//!
//! A message that may be longer than a packet goes by [`send_large`] and [`receive_large`]: what does not fit is handed
//! over in a sealed memory file.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod sys;

/// Bytes in the longest packet.
const LONGEST: usize = 128 << 10;

/// Bytes in the longest message that goes by [`send_large`].
pub const LARGEST: u64 = 32 << 20;

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
    send_bytes(socket, &serde_json::to_vec(message)?, descriptors, flags)
}

fn send_bytes(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    if bytes.len() > LONGEST || descriptors.len() > MOST_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(descriptors.len()))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Instead of a message that is longer than a packet: the first descriptor is a sealed memory file that holds it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Elsewhere {
    /// Bytes in the file.
    in_memory_file: u64,
}

/// [`send`] for a message of up to [`LARGEST`] bytes; the other side takes it by [`receive_large`].
pub fn send_large<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_either(socket, message, descriptors, sys::SEND)
}

/// [`send_large`] for who must not wait for the other side.
pub fn send_large_now<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    send_either(socket, message, descriptors, sys::SEND | SendFlags::DONTWAIT)
}

fn send_either<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() <= LONGEST {
        return send_bytes(socket, &bytes, descriptors, flags);
    }
    let in_memory_file = bytes.len() as u64;
    if in_memory_file > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a message is too long"));
    }
    let mut file = sys::memory_file()?;
    file.write_all(&bytes)?;
    sys::seal(&file)?;
    let all: Vec<_> = std::iter::once(file.as_fd()).chain(descriptors.iter().copied()).collect();
    send_with(socket, &Elsewhere { in_memory_file }, &all, flags)
}

/// Receives one message that was sent by [`send_large`], with its descriptors; `None` when the other side is gone.
pub fn receive_large<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let Some((bytes, mut descriptors)) = receive_bytes(socket)? else { return Ok(None) };
    let Ok(Elsewhere { in_memory_file }) = serde_json::from_slice(&bytes) else {
        return Ok(Some((serde_json::from_slice(&bytes)?, descriptors)));
    };
    if descriptors.is_empty() || in_memory_file > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message in a file without the file"));
    }
    let mut file = File::from(descriptors.remove(0));
    if !sys::sealed(&file) || file.metadata()?.len() != in_memory_file {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message in a file that may change"));
    }
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(Some((serde_json::from_slice(&bytes)?, descriptors)))
}

/// Receives one message with its descriptors; `None` when the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match receive_bytes(socket)? {
        Some((bytes, descriptors)) => Ok(Some((serde_json::from_slice(&bytes)?, descriptors))),
        None => Ok(None),
    }
}

/// One packet's bytes and descriptors.
fn receive_bytes(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
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
    bytes.truncate(got.bytes);
    Ok(Some((bytes, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_longer_than_a_packet_arrives_whole() {
        let (a, b) = pair().unwrap();
        let (near, _far) = stream_pair().unwrap();
        for length in [3, LONGEST - 2, LONGEST - 1, 1 << 20] {
            let word = "x".repeat(length);
            send_large(&a, &word, &[near.as_fd()]).unwrap();
            let (heard, descriptors) = receive_large::<String>(&b).unwrap().unwrap();
            assert!(heard == word && descriptors.len() == 1, "{length}");
        }
        let error = send_large(&a, &"x".repeat(LARGEST as usize), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_file_that_may_change_is_refused() {
        let (a, b) = pair().unwrap();
        let mut file = sys::memory_file().unwrap();
        file.write_all(b"17").unwrap();
        let word = Elsewhere { in_memory_file: 2 };
        send(&a, &word, &[file.as_fd()]).unwrap();
        assert_eq!(receive_large::<u32>(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
        sys::seal(&file).unwrap();
        send(&a, &word, &[file.as_fd()]).unwrap();
        assert_eq!(receive_large::<u32>(&b).unwrap().unwrap().0, 17);
        send(&a, &Elsewhere { in_memory_file: 3 }, &[file.as_fd()]).unwrap();
        assert!(receive_large::<u32>(&b).is_err());
        send(&a, &word, &[]).unwrap();
        assert!(receive_large::<u32>(&b).is_err());
    }
}
