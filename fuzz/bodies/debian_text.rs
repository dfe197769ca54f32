//! Any bytes as a package index, a dependency field and a lock file: what is read is sound, and can be resolved or refused.

use debian::{Arch, Lock, PackageIndex, Resolver, Version, Wanted, parse_relations};

/// One input: the text.
pub(crate) fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for dependency in parse_relations(&text).iter().flatten() {
        assert!(!dependency.name.is_empty());
    }
    if let Ok(lock) = Lock::parse(&text) {
        assert_eq!(Lock::parse(&lock.to_string()).as_ref(), Ok(&lock));
    }
    let mut index = PackageIndex::default();
    if index.add(data, "test", Arch::X86_64).is_err() {
        return;
    }
    let names: Vec<&str> = index.iter().map(|package| package.name.as_str()).collect();
    for package in index.iter() {
        assert!(!package.filename.starts_with('/') && !package.filename.split('/').any(|part| part == ".."));
        // An order: what compares equal to itself, and turns round when its sides do.
        let other = Version::new(names.first().copied().unwrap_or_default());
        assert_eq!(package.version.cmp(&other), other.cmp(&package.version).reverse());
    }
    if let Ok(resolution) =
        Resolver::new(&index).resolve(&Wanted { roots: &names, essential: true, without: &[] })
    {
        assert!(resolution.packages.len() >= names.len());
    }
}
