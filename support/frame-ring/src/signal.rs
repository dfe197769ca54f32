//! Who may use which bytes of a ring, and who has to be woken.
//!
//! Four words of shared memory belong to a ring. `Head` counts the bytes that were ever sent, `Tail` those that were ever received,
//! both modulo 2³²; only the sender writes the one and only the receiver the other. Each side keeps its own count for itself and
//! never reads it back. The two others say that a side sleeps, or is about to:
//!
//! ```text
//! sender                                   receiver
//! 1. Head = …            (release)         1. ReceiverWaits = 1
//! 2. fence               (seq. consistent) 2. fence
//! 3. ReceiverWaits != 0? then 0, and ring  3. Head has moved? then go on; else sleep until the bell
//! ```
//!
//! Fences are totally ordered. If the sender's comes first, the receiver's look at `Head` in step 3 sees what was sent; if the receiver's
//! does, the sender's look in step 3 sees that it waits. So it never sleeps beside a frame. A receiver that is at work leaves its word
//! 0, and the sender makes no system call. For room it is the same with the roles exchanged, only that the receiver rings when
//! half of the ring is free: a sender that is far ahead is woken once for half a megabyte and not for each frame. No wake-up is
//! lost by that: a sender that waits lacks room for one frame, so more than half of the ring is used, and the receiver, which looks
//! after each frame, still has to come past the middle.
//!
//! The words for sleeping have two writers. The waker clears them before it rings, so a sleeper that set its word again in between
//! still hears the bell, and looks. The other side may write to its words what it likes: it costs this side a useless ring, or
//! itself a wake-up.

use std::sync::atomic::Ordering;

use backends::LinkError;

/// Bytes of the ring in each direction; a power of two.
pub const CAPACITY: u32 = 1 << 20;
/// With so many bytes used, or fewer, a sender that waits for room is woken.
const ROOM_AGAIN: u32 = CAPACITY / 2;
/// Records start at multiples of this, so that a length never wraps.
pub(crate) const ALIGN: u32 = 8;

/// A word of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Head,
    Tail,
    ReceiverWaits,
    SenderWaits,
}

/// The words of a ring. A trait so that the tests can put a model of memory in their place.
pub(crate) trait Words {
    fn load(&self, word: Word, order: Ordering) -> u32;
    fn store(&self, word: Word, value: u32, order: Ordering);
    /// A sequentially consistent fence.
    fn fence(&self);
}

/// The sender's side of a ring.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    head: u32,
    /// As last seen.
    tail: u32,
}

impl Sender {
    /// Where the next record starts, counted from the first one ever.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Where the oldest record starts that the receiver has not taken, as far as it says.
    pub(crate) fn tail(&self, words: &impl Words) -> Result<u32, LinkError> {
        let tail = words.load(Word::Tail, Ordering::Acquire);
        // It moves forward, and not beyond what was sent.
        if tail.wrapping_sub(self.tail) > self.used() || !tail.is_multiple_of(ALIGN) {
            return Err(LinkError("the receiver's index is impossible"));
        }
        Ok(tail)
    }

    /// Whether there is room for `space` bytes. If not, the receiver will ring.
    pub(crate) fn reserve(&mut self, words: &impl Words, space: u32) -> Result<bool, LinkError> {
        if self.room() >= space {
            return Ok(true);
        }
        self.look(words)?;
        if self.room() >= space {
            return Ok(true);
        }
        words.store(Word::SenderWaits, 1, Ordering::Relaxed);
        words.fence();
        self.look(words)?;
        if self.room() < space {
            return Ok(false);
        }
        words.store(Word::SenderWaits, 0, Ordering::Relaxed);
        Ok(true)
    }

    /// Hands `space` bytes, reserved and filled before, to the receiver; whether it has to be woken.
    pub(crate) fn commit(&mut self, words: &impl Words, space: u32) -> bool {
        self.head = self.head.wrapping_add(space);
        words.store(Word::Head, self.head, Ordering::Release);
        words.fence();
        let wake = words.load(Word::ReceiverWaits, Ordering::Relaxed) != 0;
        if wake {
            words.store(Word::ReceiverWaits, 0, Ordering::Relaxed);
        }
        wake
    }

    fn used(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }

    fn room(&self) -> u32 {
        CAPACITY.saturating_sub(self.used())
    }

    fn look(&mut self, words: &impl Words) -> Result<(), LinkError> {
        self.tail = self.tail(words)?;
        Ok(())
    }
}

/// The receiver's side of a ring.
#[derive(Debug, Default)]
pub(crate) struct Receiver {
    tail: u32,
    /// As last seen.
    head: u32,
}

impl Receiver {
    /// Where the next record starts, counted from the first one ever.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// How many bytes there are to be received, at least. If there are none, the sender will ring.
    pub(crate) fn available(&mut self, words: &impl Words) -> Result<u32, LinkError> {
        if self.used() > 0 {
            return Ok(self.used());
        }
        self.look(words)?;
        if self.used() > 0 {
            return Ok(self.used());
        }
        words.store(Word::ReceiverWaits, 1, Ordering::Relaxed);
        words.fence();
        self.look(words)?;
        if self.used() > 0 {
            words.store(Word::ReceiverWaits, 0, Ordering::Relaxed);
        }
        Ok(self.used())
    }

    /// Where the sender's records end.
    pub(crate) fn head(&self, words: &impl Words) -> Result<u32, LinkError> {
        let head = words.load(Word::Head, Ordering::Acquire);
        let used = head.wrapping_sub(self.tail);
        // It moves forward, and no more is used than there is.
        if used > CAPACITY || used < self.used() || !head.is_multiple_of(ALIGN) {
            return Err(LinkError("the sender's index is impossible"));
        }
        Ok(head)
    }

    /// Gives `space` bytes back that were received; whether the sender has to be woken.
    pub(crate) fn release(&mut self, words: &impl Words, space: u32) -> bool {
        self.tail = self.tail.wrapping_add(space);
        words.store(Word::Tail, self.tail, Ordering::Release);
        words.fence();
        if words.load(Word::SenderWaits, Ordering::Relaxed) == 0 {
            return false;
        }
        // Not checked, as nothing but the wake-up depends on it.
        let used = words.load(Word::Head, Ordering::Relaxed).wrapping_sub(self.tail);
        let wake = used <= ROOM_AGAIN;
        if wake {
            words.store(Word::SenderWaits, 0, Ordering::Relaxed);
        }
        wake
    }

    fn used(&self) -> u32 {
        self.head.wrapping_sub(self.tail)
    }

    fn look(&mut self, words: &impl Words) -> Result<(), LinkError> {
        self.head = self.head(words)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
