//! EROFS images, written and read: the form in which a root file system is shared by all sandboxes.
//!
//! The writer makes the plainest image the kernel knows: uncompressed, regular files in whole blocks of their own (so that
//! `dax=always` maps them straight from the host's page cache), the same bytes for the same input. It streams: file
//! contents go to disk as they come, only names and metadata stay in memory.
//!
//! Input comes from package files and from a guest. It is checked for everything the format cannot express; nothing in
//! it reaches a file system of the host, so a hostile path can at worst spoil its own image.
//!
//! The format: `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h` of Linux 6.12.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod format;
mod reader;
mod tar;
mod tree;
mod writer;

pub use reader::{Found, Image};
pub use tar::{Entry, Kind, TarReader};
pub use tree::{Device, Metadata};
pub use writer::{FileWriter, Summary, Writer};

/// What can go wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// Reading the input or writing the image failed.
    #[error("the image cannot be read or written")]
    Io(#[from] std::io::Error),
    /// A path that cannot be in the image, and why.
    #[error("{path:?} cannot be put into the image: {reason}")]
    Path {
        /// The path.
        path: String,
        /// Why not.
        reason: &'static str,
    },
    /// The image would not fit the format's 32-bit block numbers, or a table its field.
    #[error("the image is too large: {0}")]
    TooLarge(&'static str),
    /// A tar archive that cannot be read.
    #[error("the archive is damaged: {0}")]
    Tar(&'static str),
    /// An image that cannot be read.
    #[error("the image is damaged: {0}")]
    Image(&'static str),
}
