//! What the host and the guest agent say to each other, and the table of the guest's ABI.
//!
//! A connection is one byte stream (vsock in a sandbox, a socket pair in tests). It carries length-prefixed frames
//! ([`frame`]); the first is a [`Hello`](messages::Hello) that names a *generation* and a purpose. A control connection then carries
//! requests, replies and events; a session connection carries one process: its input, output, signals and exit.
//!
//! Neither side trusts the other: every length is bounded before memory is set aside for it, every frame of an unknown
//! kind ends the connection (unless it is marked as one that may be skipped), unknown fields are skipped. Whoever is newer adapts:
//! the generation in use is the lower of the two, so an agent that has been running for a month never has to
//! understand anything that was invented since.

pub mod abi;
pub mod client;
pub mod error;
pub mod frame;
pub mod messages;
pub mod pieces;

pub use error::ProtoError;
