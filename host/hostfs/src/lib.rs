//! The contained file server: folders of the host for one sandbox, and nothing else of the host.
//!
//! Above the shares is a synthetic read-only directory in which they hang by index ("0", "1", …). A share is a descriptor
//! that the parent process opened; whether it may be written is decided here, for every operation.
//!
//! # What keeps a hostile guest inside
//! * A name is one component, checked at parse ([`fuse_wire::Name`]). Nothing here ever sees `..` or a path of the guest.
//! * A name is resolved beneath a directory descriptor of its share, with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS |
//!   RESOLVE_NO_MAGICLINKS)` or a call that does not follow links. Symbolic links are data for the guest to follow in its own tree.
//! * A node that is reached by name again must be the same file (device, inode, birth), else it is stale.
//! * Only regular files and directories are opened. Devices, pipes and sockets are shown without their numbers and never opened;
//!   none is made.
//! * Set-id bits are neither shown nor made, and go from a host's file that the guest opens for writing. Of the extended
//!   attributes only `user.*` exist.
//! * Hard links and renames stay within a share. Nodes, handles, descriptors and listings are bounded.
//!
//! # Races
//! Steps of one operation that go by name (look, open, look again) exclude the guest's own renames and removals by a lock, so
//! a guest cannot race itself. Others on the host (the user, a sandbox with the same folder) can: an operation may then hit
//! another file of the share or fail as stale, but never leave the share, as no call follows links. A directory that is moved out of the share while
//! it is in use stays reachable until its descriptor is closed, as with a process's working directory; the
//! process's Landlock rules close that gap.
//!
//! # Threads
//! All is `&self`; operations on open files take no lock of the server.
#![forbid(unsafe_code)]

mod attributes;
mod durable;
mod entries;
mod files;
mod handle;
mod listing;
mod node;
mod owner;
mod resolve;
mod saved;
mod server;
mod share;
mod sys;
mod xattr;

pub use server::{HostFs, Options};
pub use share::{Share, ShareError};
pub use sys::SYSTEM_CALLS;
