//! Any bytes as a packet between two processes of a sandbox. What is understood can be said again, a descriptor that nobody asked
//! for is closed, and what is secret is not shown.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Receives the bytes as one kind of word, with a descriptor beside them; what was understood is sent and received again.
pub(crate) fn hear<T: Debug>(
    bytes: &[u8],
    receive: impl Fn(&OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>>,
    send: impl Fn(&OwnedFd, &T) -> io::Result<()>,
) {
    let (near, far) = packet::pair().expect("a socket");
    let (kept, passed): (OwnedFd, OwnedFd) = packet::stream_pair().expect("a socket");
    let rights = [passed.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&rights)));
    let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(&near, &[io::IoSlice::new(bytes)], &mut ancillary, flags);
    drop(passed);
    if sent.is_err() {
        // Longer than a packet can be.
        return;
    }
    if let Ok(Some((word, descriptors))) = receive(&far) {
        assert!(descriptors.len() <= 1);
        let said = format!("{word:?}");
        assert!(!said.contains("hunter2"), "{said}");
        send(&near, &word).expect("what was understood can be said");
        let (again, none) = receive(&far).expect("and heard").expect("again");
        assert_eq!(format!("{again:?}"), said);
        assert!(none.is_empty());
    }
    let mut byte = [0];
    let left = rustix::net::recv(&kept, &mut byte, rustix::net::RecvFlags::DONTWAIT);
    assert_eq!(left.map(|(_, count)| count), Ok(0), "the passed end is closed");
}
