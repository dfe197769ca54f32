//! Owners and modes that the guest sets.
//!
//! On the host every file belongs to the caller. What the guest's `chown` said is kept in the extended attribute
//! `user.vivarium.owner` as `UID:GID`, in decimal; a file without it shows as the sandbox's user. Permission bits are those of the
//! host's file, so that a mode means the same on both sides. Two things are different:
//!
//! * set-user-id and set-group-id bits are never set on the host and never shown;
//! * the caller keeps the right to read its files and to enter its directories, or the server could not serve them. Where the guest
//!   asks for a mode without it (0000, say), the attribute is `UID:GID:MODE`, octal, and is believed as long as the host's bits
//!   are those that were set with it: a later `chmod` on the host wins.
//!
//! Where the host's file system has no user attributes (or none for the kind: symbolic links), the owner is kept in memory
//! until the session ends.

use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuse_wire::FileKind;

use crate::node::lock;
use crate::sys::Identity;

/// The attribute that owners are kept in.
pub(crate) const ATTRIBUTE: &CStr = c"user.vivarium.owner";
/// Attributes of ours, hidden from the guest.
pub(crate) const OUR_PREFIX: &[u8] = b"user.vivarium.";
/// The longest value of the attribute in bytes.
pub(crate) const MAX_LEN: usize = 32;

/// Who a file belongs to in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The mode that the guest asked for, where the host's bits differ.
    pub(crate) mode: Option<u32>,
}

impl Owner {
    pub(crate) fn parse(text: &[u8]) -> Option<Owner> {
        let text = std::str::from_utf8(text).ok()?;
        let mut parts = text.split(':');
        let number = |part: Option<&str>, radix| {
            let part = part?;
            // `from_str_radix` would take a sign.
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            u32::from_str_radix(part, radix).ok()
        };
        let uid = number(parts.next(), 10)?;
        let gid = number(parts.next(), 10)?;
        let mode = match parts.next() {
            None => None,
            some => Some(number(some, 8)? & 0o1777),
        };
        parts.next().is_none().then_some(Owner { uid, gid, mode })
    }

    pub(crate) fn format(self) -> String {
        match self.mode {
            None => format!("{}:{}", self.uid, self.gid),
            Some(mode) => format!("{}:{}:{mode:o}", self.uid, self.gid),
        }
    }
}

/// The bits of a guest's mode that the host's file gets.
pub(crate) fn host_mode(kind: FileKind, mode: u32) -> u32 {
    match kind {
        FileKind::Directory => (mode & 0o1777) | 0o500,
        _ => (mode & 0o777) | 0o400,
    }
}

/// The bits of a mode that the guest may have.
pub(crate) fn guest_mode(kind: FileKind, mode: u32) -> u32 {
    if kind == FileKind::Directory { mode & 0o1777 } else { mode & 0o777 }
}

/// Owners that the host's file system cannot keep.
#[derive(Default)]
pub(crate) struct Remembered {
    owners: Mutex<HashMap<(usize, Identity), Owner>>,
    /// Spares the lock where there is none, which is nearly always.
    count: AtomicUsize,
}

/// More than this many are not remembered; the rest shows as the sandbox's user.
const MAX_REMEMBERED: usize = 1 << 18;

impl Remembered {
    pub(crate) fn get(&self, share: usize, identity: Identity) -> Option<Owner> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        lock(&self.owners).get(&(share, identity)).copied()
    }

    pub(crate) fn set(&self, share: usize, identity: Identity, owner: Option<Owner>) {
        if owner.is_none() && self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut owners = lock(&self.owners);
        match owner {
            Some(owner) if owners.len() < MAX_REMEMBERED || owners.contains_key(&(share, identity)) => {
                owners.insert((share, identity), owner);
            }
            _ => {
                owners.remove(&(share, identity));
            }
        }
        self.count.store(owners.len(), Ordering::Release);
    }

    pub(crate) fn all(&self) -> Vec<((usize, Identity), Owner)> {
        lock(&self.owners).iter().map(|(file, owner)| (*file, *owner)).collect()
    }

    pub(crate) fn clear(&self) {
        lock(&self.owners).clear();
        self.count.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_read_back_as_written() {
        for owner in [
            Owner { uid: 0, gid: 0, mode: None },
            Owner { uid: u32::MAX, gid: 7, mode: Some(0) },
            Owner { uid: 1000, gid: 1000, mode: Some(0o1777) },
        ] {
            let text = owner.format();
            assert!(text.len() <= MAX_LEN, "{text}");
            assert_eq!(Owner::parse(text.as_bytes()), Some(owner));
        }
        for bad in
            ["", ":", "1", "1:", "1:2:", "1:2:3:4", "-1:0", "+1:0", "1:2:8", "4294967296:0", "a:b", "1 :2"]
        {
            assert_eq!(Owner::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn the_caller_keeps_access_and_no_set_id_bit_reaches_the_host() {
        assert_eq!(host_mode(FileKind::Regular, 0o7000), 0o400);
        assert_eq!(host_mode(FileKind::Regular, 0o6755), 0o755);
        assert_eq!(host_mode(FileKind::Directory, 0o7000), 0o1500);
        assert_eq!(guest_mode(FileKind::Regular, 0o7777), 0o777);
    }
}
