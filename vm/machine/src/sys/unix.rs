//! Linux and macOS: the kernel writes to guest memory.

use std::fs::File;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Reads once from where the file stands; how many bytes came.
pub(crate) fn read_volatile<B: BitmapSlice>(
    file: &mut File,
    into: &mut VolatileSlice<'_, B>,
) -> Result<usize, VolatileMemoryError> {
    file.read_volatile(into)
}
