//! The small traits between a virtio device and what lies behind it on the host.
//!
//! A device never names a file, socket or clock of the host; a back end never sees a virtqueue. Both know only this
//! crate, and the product joins them.

use std::io;

use vm_memory::VolatileSlice;

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

/// Most bytes of a frame on a link, its header included: room for Ethernet with two VLAN tags and an IPv6 packet of 65,535 bytes beside
/// its own header.
pub const MAX_FRAME: usize = 66 << 10;
/// Fewest bytes of a frame: its header of 12 and Ethernet's of 14.
pub const MIN_FRAME: usize = 12 + 14;

/// Whether a frame was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way.
    Taken,
    /// There is no room for it; the far end rings when there is.
    Full,
}

/// Whether a frame was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was taken.
    Taken,
    /// It was left where it is.
    Left,
    /// There is none; the far end rings when there is.
    Nothing,
}

/// The far end of a link did what it must not; the link is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The link is broken: {0}")]
pub struct LinkError(pub &'static str);

/// Copies of the frames that were on a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Sent from here, and not yet taken by the far end.
    pub sent: Vec<Vec<u8>>,
    /// Sent from there, and not yet received.
    pub received: Vec<Vec<u8>>,
}

/// A network card's link: frames, whole and in order, in both directions. A frame is a `virtio_net_hdr_v1` of 12 bytes (virtio
/// 1.3 §5.1.6) and an Ethernet frame. The far end is another process and is not trusted; it rings a bell that the link was
/// made with.
pub trait FrameLink: Send {
    /// Sends a frame of `len` bytes. `fill` is given its memory in order, in one or two pieces, if there is room.
    ///
    /// # Errors
    /// The link is broken, or the length is impossible.
    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&VolatileSlice<'_>)) -> Result<Sent, LinkError>;

    /// Shows the next frame to `take`, in order in two pieces of which one may be empty. It stays there if `take` says `false`.
    /// The far end may change its bytes at any time: read each once.
    ///
    /// # Errors
    /// The link is broken.
    fn receive(
        &mut self,
        take: &mut dyn FnMut(&[VolatileSlice<'_>; 2]) -> bool,
    ) -> Result<Received, LinkError>;

    /// The frames that are on the link, which stay there.
    ///
    /// # Errors
    /// The link is broken.
    fn in_flight(&self) -> Result<InFlight, LinkError>;
}
