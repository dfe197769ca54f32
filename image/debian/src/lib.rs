//! Debian as a source of packages: which archive, which versions, and why their bytes can be believed.
//!
//! The chain of trust: the archive keys shipped in `keys/` sign a suite's `InRelease`; it holds the digest of the package
//! index; the index holds the digest of every package. The lock file shipped in `lock/` is the end of that chain as it was
//! when the lock was made, so that in the usual case only packages are downloaded; where a pinned version has left the
//! archive, the chain is followed again to the suite's current one.
//!
//! Everything read here comes from the network or a mirror: parsers return errors, never panic, and hold no more of the
//! input than they need.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod archive;
mod control;
mod deb;
mod lock;
mod release;
mod resolve;
mod version;

pub use archive::{Archive, ArchiveError, Mirrors, Suite};
pub use control::{Dependency, Package, PackageIndex, Paragraphs, Relation, parse_relations};
pub use deb::{Deb, DebError, Member, Patch, repack_plain};
pub use lock::{Lock, LockError, Locked, NpmPackage, Role};
pub use release::{Keyring, Release, ReleaseError};
pub use resolve::{Resolution, ResolveError, Resolver, Wanted};
pub use version::Version;

/// The processor architectures that images exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arch {
    /// x86-64; Debian says `amd64`.
    X86_64,
    /// 64-bit Arm; Debian says `arm64`.
    Aarch64,
}

impl Arch {
    /// Debian's word for it.
    #[must_use]
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}
