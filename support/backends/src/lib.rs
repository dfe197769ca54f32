//! The small traits between a virtio device and what lies behind it on the host.
//!
//! A device never names a file, socket or clock of the host; a back end never sees a virtqueue. Both know only this
//! crate, and the product joins them.

use std::io;

/// What a block device stores its sectors in. Offsets and lengths are bytes; callers keep them inside
/// [`BlockBackend::len`]. Called from one worker thread at a time, but shared for quiesce and length.
pub trait BlockBackend: Send + Sync {
    /// Size in bytes; fixed for the life of the back end.
    fn len(&self) -> u64;

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Fills the buffers in order from `offset`. Unwritten ranges read as zeros.
    fn read(&self, offset: u64, buffers: &mut [io::IoSliceMut<'_>]) -> io::Result<()>;

    /// Writes the buffers in order at `offset`.
    fn write(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()>;

    /// Makes everything written before durable.
    fn flush(&self) -> io::Result<()>;

    /// Gives the range's space back, where the back end can: a hint, which takes no space. What the range reads as afterwards, until
    /// it is written again, is not said (virtio 1.3 §5.2.6.2).
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeros, and gives its space back where the back end can; elsewhere it may take as much as a write.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// Where a console's output goes and its input comes from.
pub trait ConsoleBackend: Send + Sync {
    /// Takes output of the guest. Must not block for long and must bound what it keeps.
    fn output(&self, bytes: &[u8]);
}

/// A source of random bytes for the guest.
pub trait EntropySource: Send + Sync {
    /// Fills the buffer.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;
}
