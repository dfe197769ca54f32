//! Verified downloads: why a byte from the network can be used at all.
//!
//! Everything the image is made of comes through here: a file is asked for by its digest, lands in a content-addressed
//! folder and is handed out only after its bytes have been hashed, in this process, just now. So neither the network,
//! nor the mirror, nor an older damaged copy on disk is trusted; only the digest the caller brings is.
//!
//! An interrupted download leaves its partial file behind and goes on from there next time.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod cache;
mod client;
mod digest;
mod lock;
mod progress;

pub use cache::{Cache, Item, Outcome};
pub use client::Client;
pub use digest::{Digest, DigestError};
pub use lock::FileLock;
pub use progress::{Meter, Progress, Silent, Unit, Update};

/// What can go wrong with a download.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The server could not be reached, or the transfer broke off too often.
    #[error("cannot download {url}: {reason}")]
    Network {
        /// What was asked for.
        url: String,
        /// The last failure, in words.
        reason: String,
    },
    /// The server says that there is no such file (404 or 410).
    #[error("{url} is not there any more")]
    Gone {
        /// What was asked for.
        url: String,
    },
    /// Every attempt brought bytes other than the ones promised.
    #[error("{url} is not the file that was promised: expected {expected}")]
    Tampered {
        /// What was asked for.
        url: String,
        /// The digest it should have had.
        expected: Digest,
    },
    /// The answer is larger than anything sensible.
    #[error("{url} is larger than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// A file in the cache could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried: "create", "write", …
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}
