//! What is written down about an image, for people and for later versions.

use std::path::Path;

use debian::Lock;
use serde::{Deserialize, Serialize};

use crate::seal::{Look, Seal};

/// The schema of [`Record`] that this version writes and reads.
pub(crate) const SCHEMA: u32 = 1;

/// A pinned package that had left the archive, and what was taken instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// The package.
    pub name: String,
    /// The version in the lock file; `None` if the package is new.
    pub pinned: Option<String>,
    /// The suite's current version; `None` if the package is not needed any more.
    pub taken: Option<String>,
}

/// A part of the set-up that made an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The step, by the name that its progress has.
    pub step: String,
    /// How long it took; what an earlier attempt had downloaded is not in it.
    pub milliseconds: u64,
}

/// `image.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which fields there are.
    pub schema: u32,
    /// What the image is known by.
    pub key: String,
    /// `x86_64`, …
    pub arch: String,
    /// The kernel's release.
    pub kernel: String,
    /// Size of the base image in bytes.
    pub base_bytes: u64,
    /// Size of the uncompressed kernel in bytes; `None` in records of the first versions.
    #[serde(default)]
    pub kernel_bytes: Option<u64>,
    /// Its files as they were made; none in records of the first versions.
    #[serde(default)]
    pub seals: Vec<Seal>,
    /// The key that the image would have with nothing replaced, if that is another one.
    #[serde(default)]
    pub pinned: Option<String>,
    /// Packages that are not as the lock file has them.
    pub replaced: Vec<Replaced>,
    /// The parts of the set-up that made it, in their order; none in records of the first versions.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Every package in it, `name version`.
    pub packages: Vec<String>,
}

impl Record {
    /// Reads the record of an image's folder, if there is one that this version understands.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read(folder.join("image.json")).ok()?;
        serde_json::from_slice(&text).ok().filter(|record: &Self| record.schema == SCHEMA)
    }
}

impl Record {
    /// Whether the files that were sealed are as they were made. One that only has another time gets that into the record.
    pub(crate) fn is_intact(&mut self, folder: &Path) -> bool {
        let mut touched = false;
        for seal in &mut self.seals {
            match seal.look(folder) {
                Look::Intact => {}
                Look::Touched(modified) => {
                    seal.modified = modified;
                    touched = true;
                }
                Look::Damaged => return false,
            }
        }
        if touched {
            // Not written, the files are read again the next time.
            let _ = self.rewrite(folder);
        }
        true
    }

    fn rewrite(&self, folder: &Path) -> std::io::Result<()> {
        let new = folder.join(format!(".image.json.{}", std::process::id()));
        // On the disk before it has the name: an image without a record is made again.
        crate::base::write_synced(&new, &serde_json::to_vec_pretty(self)?).map_err(std::io::Error::other)?;
        std::fs::rename(&new, folder.join("image.json"))
    }
}

/// How two locks differ.
pub(crate) fn differences(pinned: &Lock, taken: &Lock) -> Vec<Replaced> {
    let version = |lock: &Lock, name: &str| {
        lock.packages.iter().find(|package| package.name == name).map(|package| package.version.clone())
    };
    let mut names: Vec<&str> =
        pinned.packages.iter().chain(&taken.packages).map(|package| package.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| Replaced {
            name: name.to_owned(),
            pinned: version(pinned, name),
            taken: version(taken, name),
        })
        .filter(|replaced| replaced.pinned != replaced.taken)
        .collect()
}

/// One line for the user.
pub(crate) fn describe(replaced: &[Replaced]) -> String {
    const SHOWN: usize = 3;
    let one = |replaced: &Replaced| match (&replaced.pinned, &replaced.taken) {
        (Some(pinned), Some(taken)) => format!("{} {pinned} → {taken}", replaced.name),
        (None, Some(taken)) => format!("{} {taken} (new)", replaced.name),
        (_, None) => format!("{} (gone)", replaced.name),
    };
    let shown: Vec<String> = replaced.iter().take(SHOWN).map(one).collect();
    let more = replaced.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!(
        "Some pinned package versions have left Debian's archive; taking its current ones: {}{more}",
        shown.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use debian::{Arch, Locked, Role};

    fn lock(packages: &[(&str, &str)]) -> Lock {
        let package = |(name, version): &(&str, &str)| Locked {
            role: Role::Install,
            suite: "trixie".to_owned(),
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            arch: "all".to_owned(),
            size: 1,
            sha256: fetch::Digest::sha256_of(name.as_bytes()),
            filename: String::new(),
        };
        Lock { arch: Arch::X86_64, packages: packages.iter().map(package).collect(), npm: Vec::new() }
    }

    #[test]
    fn differences_are_named_in_one_line() {
        let replaced = differences(
            &lock(&[("a", "1"), ("b", "1"), ("old", "1")]),
            &lock(&[("a", "1"), ("b", "2"), ("new", "3")]),
        );
        let line = describe(&replaced);
        assert!(line.ends_with("b 1 → 2, new 3 (new), old (gone)"), "{line}");
        assert_eq!(differences(&lock(&[("a", "1")]), &lock(&[("a", "1")])), []);
    }
}
