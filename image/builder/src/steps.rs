//! What the guest does during a build, and how much of the whole each part is: for the time that is left.

use std::collections::HashMap;

use debian::Role;

use crate::Package;

/// Shares are tenths of a second of one run on the software CPU (2 cores, busy): only what they are to each other counts.
const UNPACK: u64 = 15;
/// For each MB of a package.
const UNPACK_MB: u64 = 8;
const CONFIGURE: u64 = 8;
/// What takes far longer than the rest of its kind.
const SLOW: [(&str, u64); 7] = [
    ("configuring ca-certificates", 1200),
    ("configuring python3-pip", 330),
    ("configuring docker.io", 260),
    ("configuring apt", 140),
    ("running triggers", 600),
    ("indexing modules", 180),
    ("packing", 480),
];

/// The shares of a build's steps.
#[derive(Debug)]
pub(crate) struct Steps {
    /// By package: what it is to unpack it.
    unpack: HashMap<String, u64>,
}

impl Steps {
    pub(crate) fn of(packages: &[Package]) -> Self {
        let installed = packages.iter().filter(|package| package.role != Role::Kernel);
        let unpack = installed.map(|package| {
            let bytes = std::fs::metadata(&package.file).map_or(0, |meta| meta.len());
            (package.name.clone(), UNPACK.saturating_add(bytes.saturating_mul(UNPACK_MB) / 1_000_000))
        });
        Self { unpack: unpack.collect() }
    }

    /// The share of what the guest says that it begins; none of what is not known.
    pub(crate) fn share(&self, what: &str) -> u64 {
        if let Some((_, share)) = SLOW.iter().find(|(slow, _)| *slow == what) {
            return *share;
        }
        match what.split_once(' ') {
            Some(("unpacking", package)) => self.unpack.get(package).copied().unwrap_or(0),
            Some(("configuring", package)) if self.unpack.contains_key(package) => CONFIGURE,
            _ => 0,
        }
    }

    /// All of them together.
    pub(crate) fn total(&self) -> u64 {
        let of_packages =
            self.unpack.iter().map(|(name, share)| share + self.share(&format!("configuring {name}")));
        let of_the_rest = SLOW.iter().filter(|(what, _)| !what.starts_with("configuring "));
        of_packages.sum::<u64>() + of_the_rest.map(|(_, share)| share).sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_that_is_done_are_the_whole() {
        let package = |name: &str, role| Package { name: name.to_owned(), role, file: "/dev/null".into() };
        let packages = [
            package("libc6", Role::Stage1),
            package("ca-certificates", Role::Install),
            package("linux-image", Role::Kernel),
        ];
        let steps = Steps::of(&packages);
        let said = [
            "unpacking libc6",
            "configuring libc6",
            "unpacking ca-certificates",
            "configuring ca-certificates",
            "running triggers",
            "indexing modules",
            "packing",
            "something else",
            "unpacking unknown",
        ];
        assert_eq!(said.iter().map(|what| steps.share(what)).sum::<u64>(), steps.total());
        assert!(steps.share("configuring ca-certificates") > 100 * steps.share("configuring libc6"));
    }
}
