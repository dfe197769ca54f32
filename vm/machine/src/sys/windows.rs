//! Windows: `vm-memory` reads no files there, so the bytes are copied once more.

use std::fs::File;
use std::io::Read;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{VolatileMemoryError, VolatileSlice};

/// Most bytes of one read.
const PIECE: usize = 1 << 20;

/// Reads once from where the file stands; how many bytes came.
pub(crate) fn read_volatile<B: BitmapSlice>(
    file: &mut File,
    into: &mut VolatileSlice<'_, B>,
) -> Result<usize, VolatileMemoryError> {
    let mut piece = vec![0; into.len().min(PIECE)];
    let count = file.read(&mut piece).map_err(VolatileMemoryError::IOError)?;
    piece.truncate(count);
    into.copy_from(&piece);
    Ok(count)
}
