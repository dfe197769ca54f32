//! Any bytes as a packet between a shim and its gateway. What is understood can be said again, a descriptor that nobody asked
//! for is closed, and what is secret is not shown.

use std::os::fd::{AsFd, OwnedFd};

use gateway::control::{FromGateway, ToGateway};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Receives the bytes as one kind of word.
fn hear<T: Serialize + DeserializeOwned + std::fmt::Debug>(bytes: &[u8]) {
    let (near, far) = packet::pair().expect("a socket");
    let (kept, passed): (OwnedFd, OwnedFd) = packet::stream_pair().expect("a socket");
    let rights = [passed.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&rights)));
    let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(&near, &[std::io::IoSlice::new(bytes)], &mut ancillary, flags);
    drop(passed);
    if sent.is_err() {
        // Longer than a packet can be.
        return;
    }
    if let Ok(Some((word, descriptors))) = packet::receive_large::<T>(&far) {
        assert!(descriptors.len() <= 1);
        let said = format!("{word:?}");
        assert!(!said.contains("hunter2"), "{said}");
        packet::send_large_now(&near, &word, &[]).expect("what was understood can be said");
        let (again, none) = packet::receive_large::<T>(&far).expect("and heard").expect("again");
        assert_eq!(format!("{again:?}"), said);
        assert!(none.is_empty());
    }
    let mut byte = [0];
    let left = rustix::net::recv(&kept, &mut byte, rustix::net::RecvFlags::DONTWAIT);
    assert_eq!(left.map(|(_, count)| count), Ok(0), "the passed end is closed");
}

/// The first byte says which side hears.
pub(crate) fn run(data: &[u8]) {
    let Some((side, bytes)) = data.split_first() else { return };
    if side & 1 == 0 { hear::<ToGateway>(bytes) } else { hear::<FromGateway>(bytes) }
}
