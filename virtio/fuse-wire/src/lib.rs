//! The FUSE protocol as a Linux guest speaks it over virtio-fs, versions 7.31 to 7.40.
//!
//! A request arrives as bytes that a hostile guest wrote. It is parsed exactly once into a typed [`Operation`]: names are
//! checked when they are parsed ([`Name`]), sizes, offsets, flags and counts are bounded, and nothing that follows looks
//! at the bytes again. A [`FileSystem`] answers the operation; [`Server`] joins the two and writes the reply.
//!
//! The crate knows neither virtqueues nor files. It trusts the [`FileSystem`] and nothing that comes from the guest: no
//! byte sequence makes it panic, allocate more than [`MAX_MESSAGE`] plus the reply's own size, or write past the reply.
//!
//! ```text
//! virtqueue ─ [IoSlice]/[IoSliceMut] ─> Server::handle ─ Operation ─> dyn FileSystem (hostfs)
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod abi;
mod bytes;
mod directory;
mod errno;
mod filesystem;
mod name;
mod reply;
mod request;
mod scatter;
mod server;

pub mod client;

pub use directory::DirectoryBuffer;
pub use errno::Errno;
pub use filesystem::{FileSystem, Result, Settings};
pub use name::Name;
pub use reply::{Attributes, Entry, FileKind, FileStatus, OpenReply, SpaceReport, Timestamp};
pub use request::{
    Access, Context, FallocateMode, Handle, NodeId, OpenFlags, Operation, RenameMode, Request, SeekTarget,
    SetAttributes, SetTime, XattrMode,
};
pub use server::{RequestHandler, RestoreError, Server};

/// The largest request in bytes that is taken, payload of a write not counted: an extended attribute's value
/// (64 KiB), its name and the headers.
pub const MAX_MESSAGE: usize = 72 * 1024;

/// The largest payload of one read or write in bytes.
pub const MAX_TRANSFER: u32 = 1024 * 1024;
