//! The lock file: the exact packages an image is made of, as text that people can review.
//!
//! One line per thing, in the order in which packages are unpacked:
//! `deb ROLE SUITE NAME VERSION ARCH SIZE SHA256 FILENAME` and `npm NAME VERSION SIZE SHA512 PATH`.

use std::fmt::Write as _;

use fetch::Digest;

use crate::{Arch, Package};

/// The first line; a change of format changes it.
const HEADER: &str = "vivarium lock 1";

/// What a package is in the image for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Unpacked by the host into the image that the build boots, and installed.
    Stage1,
    /// Installed by the guest.
    Install,
    /// The kernel: taken apart by the host, not installed.
    Kernel,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Stage1 => "stage1",
            Self::Install => "install",
            Self::Kernel => "kernel",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Stage1, Self::Install, Self::Kernel].into_iter().find(|role| role.word() == word)
    }
}

/// A package, pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// What it is for.
    pub role: Role,
    /// The suite it came from.
    pub suite: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64`, `arm64` or `all`.
    pub arch: String,
    /// Size of the file in bytes.
    pub size: u64,
    /// What the file must be.
    pub sha256: Digest,
    /// Its path below the mirror's root.
    pub filename: String,
}

impl Locked {
    /// Pins a package of an index.
    #[must_use]
    pub fn new(package: &Package, role: Role) -> Self {
        Self {
            role,
            suite: package.suite.clone(),
            name: package.name.clone(),
            version: package.version.as_str().to_owned(),
            arch: package.arch.clone(),
            size: package.size,
            sha256: package.sha256,
            filename: package.filename.clone(),
        }
    }
}

/// A package of the npm registry, pinned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpmPackage {
    /// Its name.
    pub name: String,
    /// Its exact version.
    pub version: String,
    /// Size of the tarball in bytes.
    pub size: u64,
    /// What the tarball must be.
    pub sha512: Digest,
    /// Its path below the registry's root.
    pub path: String,
}

/// Everything an image is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// For which processor.
    pub arch: Arch,
    /// Debian's packages in the order of unpacking.
    pub packages: Vec<Locked>,
    /// The registry's.
    pub npm: Vec<NpmPackage>,
}

/// A text that is no lock file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the lock file cannot be read: {text:?}")]
pub struct LockError {
    /// Counted from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
}

impl Lock {
    /// The lock file this version of the project ships for an architecture.
    ///
    /// # Errors
    /// Never for the files as shipped (there is a test); for an architecture without one, an empty lock's error.
    pub fn shipped(arch: Arch) -> Result<Self, LockError> {
        match arch {
            Arch::X86_64 => Self::parse(include_str!("../lock/x86_64.lock")),
            Arch::Aarch64 => Err(LockError { line: 0, text: "there is no image for aarch64 yet".to_owned() }),
        }
    }

    /// Reads a lock file.
    ///
    /// # Errors
    /// Names the first line that is not understood.
    pub fn parse(text: &str) -> Result<Self, LockError> {
        let mut lock: Option<Self> = None;
        for (index, line) in text.lines().enumerate() {
            let error = || LockError { line: index + 1, text: line.to_owned() };
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            match (&mut lock, words.as_slice()) {
                (None, [.., arch]) if line.starts_with(HEADER) => {
                    let arch =
                        [Arch::X86_64, Arch::Aarch64].into_iter().find(|known| known.to_string() == *arch);
                    lock =
                        Some(Self { arch: arch.ok_or_else(error)?, packages: Vec::new(), npm: Vec::new() });
                }
                (Some(lock), ["deb", rest @ ..]) => lock.packages.push(parse_deb(rest).ok_or_else(error)?),
                (Some(lock), ["npm", rest @ ..]) => lock.npm.push(parse_npm(rest).ok_or_else(error)?),
                _ => return Err(error()),
            }
        }
        lock.ok_or(LockError { line: 0, text: "it is empty".to_owned() })
    }

    /// The digest of the lock's text: what an image made from it is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::sha256_of(self.to_string().as_bytes())
    }

    /// The kernel's package.
    #[must_use]
    pub fn kernel(&self) -> Option<&Locked> {
        self.packages.iter().find(|package| package.role == Role::Kernel)
    }
}

impl std::fmt::Display for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "# Made by `cargo run -p image-builder --example lock`; see image/debian/lock/README.md."
        )?;
        writeln!(f, "{HEADER} {}", self.arch)?;
        for p in &self.packages {
            let mut line = String::new();
            write!(line, "deb {} {} {} {} {}", p.role.word(), p.suite, p.name, p.version, p.arch)?;
            writeln!(f, "{line} {} {} {}", p.size, p.sha256.hex(), p.filename)?;
        }
        for p in &self.npm {
            writeln!(f, "npm {} {} {} {} {}", p.name, p.version, p.size, p.sha512.hex(), p.path)?;
        }
        Ok(())
    }
}

fn parse_deb(words: &[&str]) -> Option<Locked> {
    let [role, suite, name, version, arch, size, sha256, filename] = words else { return None };
    Some(Locked {
        role: Role::from_word(role)?,
        suite: (*suite).to_owned(),
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        arch: (*arch).to_owned(),
        size: size.parse().ok()?,
        sha256: Digest::from_hex(sha256).ok().filter(|digest| matches!(digest, Digest::Sha256(_)))?,
        filename: (*filename).to_owned(),
    })
}

fn parse_npm(words: &[&str]) -> Option<NpmPackage> {
    let [name, version, size, sha512, path] = words else { return None };
    Some(NpmPackage {
        name: (*name).to_owned(),
        version: (*version).to_owned(),
        size: size.parse().ok()?,
        sha512: Digest::from_hex(sha512).ok().filter(|digest| matches!(digest, Digest::Sha512(_)))?,
        path: (*path).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        let lock = Lock {
            arch: Arch::X86_64,
            packages: vec![Locked {
                role: Role::Stage1,
                suite: "trixie".to_owned(),
                name: "bash".to_owned(),
                version: "5.2.37-2+b5".to_owned(),
                arch: "amd64".to_owned(),
                size: 7,
                sha256: Digest::sha256_of(b"bash"),
                filename: "pool/main/b/bash/bash_5.2.37-2+b5_amd64.deb".to_owned(),
            }],
            npm: vec![NpmPackage {
                name: "npm".to_owned(),
                version: "11.0.0".to_owned(),
                size: 9,
                sha512: Digest::Sha512([7; 64]),
                path: "npm/-/npm-11.0.0.tgz".to_owned(),
            }],
        };
        assert_eq!(Lock::parse(&lock.to_string()).unwrap(), lock);
    }

    #[test]
    fn the_shipped_lock_is_whole() {
        let lock = Lock::shipped(Arch::X86_64).unwrap();
        assert_eq!(lock.to_string(), include_str!("../lock/x86_64.lock"));
        assert!(lock.kernel().is_some());
        let names: std::collections::BTreeSet<&str> = lock.packages.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names.len(), lock.packages.len(), "a package is pinned twice");
        for needed in ["bash", "dpkg", "docker.io", "git", "e2fsprogs", "kmod"] {
            assert!(names.contains(needed), "{needed}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = Lock::parse("vivarium lock 1 x86_64\ndeb stage1 trixie bash\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(Lock::parse("").is_err());
        assert!(Lock::parse("vivarium lock 1 vax\n").is_err());
    }
}
