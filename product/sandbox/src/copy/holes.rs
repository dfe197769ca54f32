//! Files with holes in an archive, in GNU tar's own format: the header has the stretches of the file that hold something, and only
//! those follow it.

use std::fs::File;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use tar::{EntryType, GnuExtSparseHeader, Header};

/// Where a stretch of a file begins, and its length in bytes.
pub(super) type Stretch = (u64, u64);

/// A file in more stretches than these is sent whole.
const MOST: usize = 10_000;

/// Stretches begin and end with an archive's blocks.
const BLOCK: u64 = 512;

/// What of a file of `size` bytes holds something: all of it where there are no holes, or where they cannot be told. After a hole at
/// the end comes an empty stretch.
pub(super) fn stretches(file: &File, size: u64) -> Vec<Stretch> {
    known(file, size).unwrap_or_else(|| vec![(0, size)])
}

fn known(file: &File, size: u64) -> Option<Vec<Stretch>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < size {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < size => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let hole = seek(file, SeekFrom::Hole(data)).ok()?.min(size);
        let is_whole = data.is_multiple_of(BLOCK) && (hole == size || hole.is_multiple_of(BLOCK));
        if !is_whole || hole <= data || found.len() >= MOST {
            return None;
        }
        found.push((data, hole - data));
        at = hole;
    }
    if at < size {
        found.push((size, 0));
    }
    (size > 0).then_some(found)
}

/// Makes a file's header one of a file with holes. Gives the blocks that follow it, before the stretches' content.
pub(super) fn describe(header: &mut Header, stretches: &[Stretch], size: u64) -> Vec<u8> {
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(stretches.iter().map(|(_, length)| length).sum());
    let mut rest = stretches.iter();
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_real_size(size);
        gnu.set_is_extended(stretches.len() > gnu.sparse.len());
        for (place, (offset, length)) in gnu.sparse.iter_mut().zip(&mut rest) {
            place.set_offset(*offset);
            place.set_length(*length);
        }
    }
    let mut blocks = Vec::new();
    while rest.len() > 0 {
        let mut block = GnuExtSparseHeader::new();
        for (place, (offset, length)) in block.sparse.iter_mut().zip(&mut rest) {
            place.set_offset(*offset);
            place.set_length(*length);
        }
        block.set_is_extended(rest.len() > 0);
        blocks.extend_from_slice(block.as_bytes());
    }
    blocks
}
