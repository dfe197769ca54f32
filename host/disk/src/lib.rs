//! What lies behind the guest's block devices: raw files, and the sandbox's own writable disk.
//!
//! A disk is a folder that is reached through a directory descriptor: a description, `disk.json`, and its layers. Today
//! there is one layer, written in place; the description and [`Disk`] are made so that a fork can put a new layer on top of
//! frozen ones. A format is always named, never guessed from content, as a guest writes the content.
//!
//! ```text
//! disk/disk.json     {"format":"vivarium-disk","version":1,"size":68719476736,"layers":[{"file":"layer-0.raw","format":"raw"}]}
//! disk/layer-0.raw   sparse, `size` bytes
//! disk/unmade        there until a guest has made its file system on it; a disk with it is made blank when it is opened
//! ```
//!
//! The crate trusts the folder's owner and nothing in the files beyond what it checks; requests come from the device, which
//! has checked them against [`backends::BlockBackend::len`], and are checked again.
#![forbid(unsafe_code)]

mod description;
mod folder;
mod preview;
mod raw;
mod sys;

pub use description::{Description, Layer, LayerFormat};
pub use folder::{Disk, DiskError, LayerReport, Report, check, create, is_made, made, open, open_to_look};
pub use preview::Preview;
pub use raw::{RawFile, RawFileError};
