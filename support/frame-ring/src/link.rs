//! One side of a link.

use std::io;
use std::os::fd::OwnedFd;

use backends::{FrameLink, InFlight, LinkError, MAX_FRAME, MIN_FRAME, Received, Sent};
use doorbell::Doorbell;
use vm_memory::VolatileSlice;

use crate::memory::{Mapping, Ring, Side};
use crate::signal::{ALIGN, Receiver, Sender};

/// Bytes of a record's length.
const LENGTH: u32 = 4;

const _: () = assert!(
    MAX_FRAME + 16 < crate::CAPACITY as usize / 2,
    "a sender without room is woken at half of the ring"
);

/// One side of a link. Dropped, it unmaps the memory; the other side does not notice.
#[derive(Debug)]
pub struct Link {
    mapping: Mapping,
    side: Side,
    mine: Doorbell,
    theirs: Doorbell,
    sender: Sender,
    receiver: Receiver,
    broken: Option<LinkError>,
}

impl Link {
    /// A side of the link in `memory`, which nobody has been this side of before. `mine` is rung for this side, `theirs` for the other.
    ///
    /// # Errors
    /// The memory is none of a link's, or cannot be mapped.
    pub fn from_parts(memory: OwnedFd, side: Side, mine: Doorbell, theirs: Doorbell) -> io::Result<Self> {
        Ok(Self {
            mapping: Mapping::new(memory)?,
            side,
            mine,
            theirs,
            sender: Sender::default(),
            receiver: Receiver::default(),
            broken: None,
        })
    }

    /// The bell that the other side rings: after [`Sent::Full`] when half of the ring is free again, and after a receive that found
    /// nothing when there is something. It stays rung until it is answered, which is to be done before looking.
    pub fn bell(&self) -> &Doorbell {
        &self.mine
    }

    /// Sends a frame, header and all, given in pieces.
    ///
    /// # Errors
    /// The link is broken, or the frame's length is impossible.
    pub fn send(&mut self, pieces: &[&[u8]]) -> Result<Sent, LinkError> {
        let len = pieces.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.len()));
        let mut left = pieces.iter().map(|piece| &piece[..]);
        let mut current: &[u8] = &[];
        FrameLink::send(self, len, &mut |target| {
            let mut at = 0;
            while let Some(room) = target.offset(at).ok().filter(|room| !room.is_empty()) {
                if current.is_empty() {
                    let Some(next) = left.next() else { break };
                    current = next;
                    continue;
                }
                let (now, rest) = current.split_at(current.len().min(room.len()));
                room.copy_from(now);
                at = at.saturating_add(now.len());
                current = rest;
            }
        })
    }

    /// Copies the next frame into `buffer` and gives its length; `None` if there is none.
    ///
    /// # Errors
    /// The link is broken, or the buffer is shorter than the frame, which is lost; with [`MAX_FRAME`] bytes it never is.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, LinkError> {
        let mut copied = None;
        let received = FrameLink::receive(self, &mut |pieces| {
            let [first, second] = pieces;
            copied = buffer.split_at_mut_checked(first.len()).and_then(|(front, back)| {
                let back = back.get_mut(..second.len())?;
                Some(first.copy_to(front).saturating_add(second.copy_to(back)))
            });
            true
        })?;
        match received {
            Received::Nothing => Ok(None),
            _ if copied.is_none() => Err(LinkError("a buffer that is too short")),
            _ => Ok(copied),
        }
    }

    fn usable(&self) -> Result<(), LinkError> {
        self.broken.map_or(Ok(()), Err)
    }

    /// Remembers an error, as the link is of no use after it.
    fn close<T>(&mut self, result: Result<T, LinkError>) -> Result<T, LinkError> {
        self.broken = self.broken.or(result.as_ref().err().copied());
        result
    }

    fn try_send(&mut self, len: usize, fill: &mut dyn FnMut(&VolatileSlice<'_>)) -> Result<Sent, LinkError> {
        let ring = self.mapping.ring_from(self.side);
        let length = u32::try_from(len).unwrap_or(u32::MAX);
        let space = space(length);
        if !self.sender.reserve(&ring, space)? {
            return Ok(Sent::Full);
        }
        let at = self.sender.head();
        ring.set_length(at, length)?;
        for piece in ring.pieces(at.wrapping_add(LENGTH), len)?.iter().filter(|piece| !piece.is_empty()) {
            fill(piece);
        }
        if self.sender.commit(&ring, space) {
            self.theirs.ring();
        }
        Ok(Sent::Taken)
    }

    fn try_receive(
        &mut self,
        take: &mut dyn FnMut(&[VolatileSlice<'_>; 2]) -> bool,
    ) -> Result<Received, LinkError> {
        let ring = self.mapping.ring_from(self.side.other());
        let available = self.receiver.available(&ring)?;
        if available == 0 {
            return Ok(Received::Nothing);
        }
        let (space, frame) = record(&ring, self.receiver.tail(), available)?;
        if !take(&frame) {
            return Ok(Received::Left);
        }
        if self.receiver.release(&ring, space) {
            self.theirs.ring();
        }
        Ok(Received::Taken)
    }

    fn copies(&self) -> Result<InFlight, LinkError> {
        let (out, back) = (self.mapping.ring_from(self.side), self.mapping.ring_from(self.side.other()));
        let tail = self.sender.tail(&out)?;
        let available = self.receiver.head(&back)?.wrapping_sub(self.receiver.tail());
        Ok(InFlight {
            sent: frames(&out, tail, self.sender.head().wrapping_sub(tail))?,
            received: frames(&back, self.receiver.tail(), available)?,
        })
    }
}

impl FrameLink for Link {
    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&VolatileSlice<'_>)) -> Result<Sent, LinkError> {
        self.usable()?;
        // The caller's mistake, which breaks nothing.
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) {
            return Err(LinkError("a frame of impossible length"));
        }
        let result = self.try_send(len, fill);
        self.close(result)
    }

    fn receive(
        &mut self,
        take: &mut dyn FnMut(&[VolatileSlice<'_>; 2]) -> bool,
    ) -> Result<Received, LinkError> {
        self.usable()?;
        let result = self.try_receive(take);
        self.close(result)
    }

    fn in_flight(&self) -> Result<InFlight, LinkError> {
        self.usable()?;
        self.copies()
    }
}

/// Bytes that a frame of this length takes.
fn space(length: u32) -> u32 {
    length.saturating_add(LENGTH).checked_next_multiple_of(ALIGN).unwrap_or(u32::MAX)
}

/// The record at `at`, of which there are `available` bytes at most: what it takes, and its frame.
fn record<'a>(ring: &Ring<'a>, at: u32, available: u32) -> Result<(u32, [VolatileSlice<'a>; 2]), LinkError> {
    let length = ring.length(at)?;
    let (space, len) = (space(length), length as usize);
    if !(MIN_FRAME..=MAX_FRAME).contains(&len) || space > available {
        return Err(LinkError("a frame of impossible length"));
    }
    Ok((space, ring.pieces(at.wrapping_add(LENGTH), len)?))
}

/// Copies of all frames in `available` bytes from `at`.
fn frames(ring: &Ring<'_>, mut at: u32, mut available: u32) -> Result<Vec<Vec<u8>>, LinkError> {
    let mut frames = Vec::new();
    while available > 0 {
        let (space, [first, second]) = record(ring, at, available)?;
        let mut frame = vec![0; first.len().saturating_add(second.len())];
        let (front, back) = frame.split_at_mut(first.len());
        first.copy_to(front);
        second.copy_to(back);
        frames.push(frame);
        at = at.wrapping_add(space);
        available = available.saturating_sub(space);
    }
    Ok(frames)
}
