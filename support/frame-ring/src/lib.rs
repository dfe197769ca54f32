//! A link for network frames between two processes: two rings of bytes in one shared memory, each with one sender and one
//! receiver, and a bell for each side.
//!
//! Neither side trusts the other, as either process may be taken over. The memory can neither shrink nor grow, so that reaching
//! it never faults. What a side needs to know of its own progress it keeps for itself; what the other side says is read once and
//! checked against that. A frame is copied out before anyone looks into it. What cannot be closes the link for good.
//!
//! A ring is [`CAPACITY`] bytes of records, which wrap at its end: a length of four bytes, the frame, and padding to eight. Nobody
//! is woken who is awake: how, [`signal`] says.
//!
//! A link is never repaired. When one side's process was started again both get new [`memory`]; the bells may stay. Frames that
//! were in flight are lost, as on any network.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic)
)]

mod link;
mod memory;
mod signal;
mod sys;

#[cfg(test)]
mod tests;

pub use backends::{InFlight, LinkError, MAX_FRAME, MIN_FRAME, Sent};
pub use link::Link;
pub use memory::{MEMORY, Pair, Side, memory, pair};
pub use signal::CAPACITY;
