//! The base image: made of Debian's packages by the host as far as bytes go, and by a guest where programs have to run.
//!
//! The host unpacks the essential packages into an EROFS image of their files ("stage 1"), puts all packages on a second
//! disk, boots stage 1 and has its dpkg install everything on a blank disk laid over it. The guest writes the result as a tar
//! archive to an output disk; the host turns that, with Node.js and npm added, into the base image.
//!
//! Trust: packages were verified by whoever downloaded them ([`fetch`], [`debian`]). The guest runs Debian's maintainer
//! scripts with no network and nothing of the host but these disks; what it writes is parsed as hostile input.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod build;
mod contents;
mod kernel;
mod npm;
mod packages;
mod steps;
mod vm;

pub use build::{Inputs, Output, Package, build};
pub use contents::make_lock;
pub use kernel::Kernel;
pub use npm::npm_registry;
pub use vm::{Boot, BuilderVm, Disk, VmError, serial};

/// Counted up whenever the same lock file would give a different image.
pub const VERSION: u32 = 2;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A package is damaged in spite of its digest.
    #[error(transparent)]
    Package(#[from] debian::DebError),
    /// An image could not be written.
    #[error(transparent)]
    Image(#[from] erofs::ErofsError),
    /// The kernel's package is not as expected.
    #[error("the kernel cannot be used: {0}")]
    Kernel(&'static str),
    /// The host's disk became full.
    #[error("the host's disk is full: there is no room to make the base image")]
    NoRoom,
    /// The machine could not be run.
    #[error("the machine that makes the base image did not run: {0}")]
    Machine(String),
    /// The build inside it failed.
    #[error("making the base image failed ({what}): {}", last_words(log))]
    Guest {
        /// What it was doing.
        what: String,
        /// The last lines of its console.
        log: String,
    },
    /// The result is not a whole system.
    #[error("the base image that was made lacks {0}")]
    Incomplete(String),
    /// A file of the host could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// The last line that says something, bounded.
fn last_words(log: &str) -> String {
    const MOST: usize = 200;
    let line =
        log.lines().rev().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("VIV-EXIT"));
    let words: String = line.unwrap_or("it said nothing").chars().filter(|char| !char.is_control()).collect();
    words.chars().take(MOST).collect()
}

pub(crate) fn io_error(
    what: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(std::io::Error) -> BuildError {
    let path = path.to_owned();
    move |source| BuildError::File { what, path, source }
}
