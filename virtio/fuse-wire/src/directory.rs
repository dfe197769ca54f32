//! The buffer that a directory's listing is written into.

use crate::abi;
use crate::bytes::Encoder;
use crate::reply::{Entry, FileKind};

/// Length of `fuse_dirent` in bytes, name excluded.
const DIRENT: usize = 24;

/// Takes entries until it is full.
pub struct DirectoryBuffer {
    out: Encoder,
    capacity: usize,
    plus: bool,
}

impl DirectoryBuffer {
    pub(crate) fn new(capacity: usize, plus: bool) -> DirectoryBuffer {
        DirectoryBuffer { out: Encoder::with_capacity(capacity.min(64 * 1024)), capacity, plus }
    }

    /// Whether each entry wants its node looked up too (`READDIRPLUS`).
    pub fn wants_entries(&self) -> bool {
        self.plus
    }

    /// Whether an entry with a name of this many bytes still fits.
    pub fn fits(&self, name_len: usize) -> bool {
        let used = self.out.len();
        Self::record_len(name_len, self.plus).checked_add(used).is_some_and(|end| end <= self.capacity)
    }

    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.out.len() == 0
    }

    /// Adds an entry. `next` is the offset to go on from after it; `entry` is the looked-up node, `None` for `.`, `..` and
    /// where no lookup was wanted or it failed. Returns false, and takes nothing, if it does not fit.
    pub fn push(
        &mut self,
        inode: u64,
        next: u64,
        kind: Option<FileKind>,
        name: &[u8],
        entry: Option<&Entry>,
    ) -> bool {
        let Ok(name_len) = u32::try_from(name.len()) else { return false };
        if !self.fits(name.len()) {
            return false;
        }
        let before = self.out.len();
        if self.plus {
            match entry {
                Some(entry) => entry.encode(&mut self.out),
                // Node 0 tells the kernel that there was no lookup.
                None => {
                    self.out.zeros(Entry::LEN);
                }
            }
        }
        self.out.u64(inode).u64(next).u32(name_len).u32(kind.map_or(0, FileKind::directory_type));
        self.out.bytes(name);
        let record = self.out.len().saturating_sub(before);
        self.out.zeros(record.next_multiple_of(8).saturating_sub(record));
        true
    }

    pub(crate) fn into_vec(self) -> Vec<u8> {
        self.out.into_vec()
    }

    fn record_len(name_len: usize, plus: bool) -> usize {
        let head = if plus { DIRENT.saturating_add(Entry::LEN) } else { DIRENT };
        head.saturating_add(name_len).checked_next_multiple_of(8).unwrap_or(usize::MAX)
    }
}

// The kernel's own sizes; a change of either breaks the protocol.
const _: () = assert!(DIRENT + Entry::LEN == 152 && abi::OUT_HEADER == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_bounded() {
        let mut buffer = DirectoryBuffer::new(64, false);
        assert!(buffer.push(7, 1, Some(FileKind::Directory), b"abc", None));
        assert!(buffer.push(8, 2, Some(FileKind::Regular), b"12345678", None));
        assert!(!buffer.push(9, 3, None, b"", None));
        let bytes = buffer.into_vec();
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[16..20], 3u32.to_le_bytes());
        assert_eq!(bytes[20..24], 4u32.to_le_bytes());
        assert_eq!(&bytes[24..32], b"abc\0\0\0\0\0");
        assert_eq!(bytes[32..40], 8u64.to_le_bytes());
        assert_eq!(bytes[40..48], 2u64.to_le_bytes());
    }
}
