//! The archive on the network: mirrors, suites, and the way from a signature to a package index.

use std::io::BufReader;
use std::time::SystemTime;

use fetch::{Cache, Client, FetchError, Item, Outcome, Progress};

use crate::{Arch, Keyring, Locked, PackageIndex, Release, ReleaseError};

/// Larger than any `InRelease` there has been.
const RELEASE_LIMIT: u64 = 8 << 20;

/// Why the archive is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The release file is not right.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The release file names no index for this architecture, or the mirror lacks it.
    #[error("{suite} has no package index for {arch}")]
    NoIndex {
        /// The suite.
        suite: String,
        /// The architecture.
        arch: Arch,
    },
    /// An index cannot be read.
    #[error("the package index of {suite} cannot be read")]
    Index {
        /// The suite.
        suite: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Where the archive is taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    /// Debian's own, unless `VIV_DEBIAN_MIRROR` names another. The security archive is taken from beside it
    /// (`…/debian-security`), unless `VIV_DEBIAN_SECURITY_MIRROR` says where.
    #[must_use]
    pub fn from_environment() -> Self {
        let setting = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(setting("VIV_DEBIAN_MIRROR"), setting("VIV_DEBIAN_SECURITY_MIRROR"))
    }

    /// Debian's own for what is not given.
    #[must_use]
    pub fn new(main: Option<String>, security: Option<String>) -> Self {
        let main = main.unwrap_or_else(|| "http://deb.debian.org/debian".to_owned());
        let main = main.trim_end_matches('/').to_owned();
        let security = security.unwrap_or_else(|| format!("{main}-security"));
        Self { security: security.trim_end_matches('/').to_owned(), main }
    }

    /// The addresses.
    #[must_use]
    pub fn servers(self) -> Vec<String> {
        vec![self.main, self.security]
    }
}

/// A suite the image takes packages from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suite {
    /// Its codename.
    pub name: &'static str,
    security: bool,
}

impl Suite {
    /// The suites, later ones winning where versions are equal.
    pub const ALL: [Self; 3] = [
        Self { name: "trixie", security: false },
        Self { name: "trixie-updates", security: false },
        Self { name: "trixie-security", security: true },
    ];
}

/// Debian's archive: where it is, whose word counts, and where downloads are kept.
#[derive(Debug, Clone)]
pub struct Archive {
    client: Client,
    cache: Cache,
    keyring: Keyring,
    mirrors: Mirrors,
}

impl Archive {
    /// Puts the parts together.
    #[must_use]
    pub const fn new(client: Client, cache: Cache, keyring: Keyring, mirrors: Mirrors) -> Self {
        Self { client, cache, keyring, mirrors }
    }

    /// The download for a pinned package.
    #[must_use]
    pub fn item(&self, package: &Locked) -> Item {
        Item {
            urls: vec![format!("{}/{}", self.root(&package.suite), package.filename)],
            digest: package.sha256,
            size: package.size,
            name: package.name.clone(),
        }
    }

    /// Follows the chain from the signed release files to what the suites have now.
    ///
    /// # Errors
    /// If a release file or an index cannot be had or believed.
    pub fn current_index(&self, arch: Arch, progress: &dyn Progress) -> Result<PackageIndex, ArchiveError> {
        let mut index = PackageIndex::default();
        for suite in Suite::ALL {
            let release = self.release(suite)?;
            let path = format!("main/binary-{}/Packages.xz", arch.debian());
            let no_index = || ArchiveError::NoIndex { suite: suite.name.to_owned(), arch };
            let (digest, size) = release.file(&path).ok_or_else(no_index)?;
            let folder = format!("{}/dists/{}", self.root(suite.name), suite.name);
            let plain = format!("{folder}/{path}");
            let parent = path.trim_end_matches("Packages.xz");
            let by_hash = format!("{folder}/{parent}by-hash/SHA256/{}", digest.hex());
            let urls = if release.by_hash { vec![by_hash, plain] } else { vec![plain] };
            let item = Item { urls, digest, size, name: suite.name.to_owned() };
            let outcomes = self.cache.fetch_all(&self.client, &[item], "Debian package lists", progress)?;
            let Some(Outcome::Ready(file)) = outcomes.first() else { return Err(no_index()) };
            let unreadable = |source| ArchiveError::Index { suite: suite.name.to_owned(), source };
            let file = std::fs::File::open(file).map_err(unreadable)?;
            let text = lzma_rust2::XzReader::new(BufReader::new(file), true);
            index.add(BufReader::with_capacity(1 << 16, text), suite.name, arch).map_err(unreadable)?;
        }
        Ok(index)
    }

    fn release(&self, suite: Suite) -> Result<Release, ArchiveError> {
        let url = format!("{}/dists/{}/InRelease", self.root(suite.name), suite.name);
        let bytes = self.client.get(&url, RELEASE_LIMIT)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| ReleaseError::Malformed("it is no UTF-8 text".to_owned()))?;
        Ok(Release::verify(&text, suite.name, &self.keyring, SystemTime::now())?)
    }

    fn root(&self, suite: &str) -> &str {
        let security = Suite::ALL.into_iter().any(|known| known.security && known.name == suite);
        if security { &self.mirrors.security } else { &self.mirrors.main }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_security_archive_is_beside_the_mirror() {
        let mirrors = Mirrors::new(Some("https://example.org/debian/".to_owned()), None);
        assert_eq!(
            mirrors,
            Mirrors::new(
                Some("https://example.org/debian".to_owned()),
                Some("https://example.org/debian-security/".to_owned())
            )
        );
    }
}
