//! What a machine boots from: kernel, initramfs and base image, all from the cache, all made again when they are gone.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::places::Places;

/// The folder of initramfs archives in the cache.
const INITRAMFS: &str = "initramfs";

/// The files of one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assets {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk with the agent.
    pub initramfs: PathBuf,
    /// The read-only base; none for a machine that has no root but what its disks say.
    pub base: Option<PathBuf>,
}

/// The initramfs in this cache that was made last, if there is one: for who boots what `viv` boots and has no agent to make one of.
pub fn newest_initramfs(cache: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(cache.join(INITRAMFS)).into_iter().flatten().flatten();
    // Not one that is being written, nor what is left of one.
    let files = files.filter(|entry| is_archive(&entry.path()));
    let dated = files.filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())));
    dated.max().map(|(_, path)| path)
}

/// All of them but that: each is for another version's agent, and made again when it is wanted.
pub(crate) fn old_initramfs(cache: &Path) -> Vec<PathBuf> {
    let newest = newest_initramfs(cache);
    let files = fs::read_dir(cache.join(INITRAMFS)).into_iter().flatten().flatten();
    let files = files.filter(|entry| is_archive(&entry.path()) || is_left(entry));
    files.map(|entry| entry.path()).filter(|path| Some(path) != newest.as_ref()).collect()
}

/// Whether a file of that folder is whole, by its name: it gets that last.
fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "cpio")
}

/// Whether a piece of an archive was left by a process that was killed while it wrote it: nobody takes an hour for that.
fn is_left(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|meta| meta.modified()).ok();
    written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age.as_secs() >= 3600)
}

/// The initramfs for this agent and this kernel, made if it is not in the cache or not as it was made. `modules` is the
/// kernel's folder of modules, `release` its name.
pub fn initramfs(places: &Places, agent: &[u8], modules: &Path, release: &str) -> Result<PathBuf> {
    let mut hash = Sha256::new();
    // Two lengths, so that no two pairs give the same bytes.
    hash.update((release.len() as u64).to_le_bytes());
    hash.update(release);
    hash.update(agent);
    let key = short_hex(hash);
    let folder = places.cache.join(INITRAMFS);
    if let Some(path) = kept(&folder, &key) {
        return Ok(path);
    }
    let failed = |error: initramfs::InitramfsError| Error::SetUp {
        why: format!("the guest's first files cannot be put together: {}", crate::engine::sentence(&error)),
        hint: Some(format!("delete {} and run again", places.cache.display())),
    };
    let modules = initramfs::Modules::from_dir(modules).map_err(failed)?;
    let archive = initramfs::build(agent, &modules).map_err(failed)?;
    fs::create_dir_all(&folder).map_err(|source| Error::file("cannot make the folder", &folder, source))?;
    let path = folder.join(name(&key, &archive));
    files::write_whole(&path, &archive)?;
    Ok(path)
}

/// The archive that was made for this key and still is what it was. Its name says so, and some megabytes are read in a few
/// milliseconds. A damaged one is deleted.
fn kept(folder: &Path, key: &str) -> Option<PathBuf> {
    let mine = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        is_archive(path) && name.is_some_and(|name| name.starts_with(&format!("{key}-")))
    };
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(mine);
    files.into_iter().find(|path| {
        let intact = fs::read(path)
            .is_ok_and(|bytes| path.file_name().is_some_and(|found| found == name(key, &bytes).as_str()));
        if !intact {
            tracing::warn!(path = %path.display(), "A damaged file of the cache is made again");
            let _ = fs::remove_file(path);
        }
        intact
    })
}

fn name(key: &str, archive: &[u8]) -> String {
    format!("{key}-{}.cpio", short_hex(Sha256::new_with_prefix(archive)))
}

/// The first half of a digest.
fn short_hex(hash: Sha256) -> String {
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_piece_of_an_archive_is_no_archive() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join(INITRAMFS);
        fs::create_dir(&folder).unwrap();
        let whole = folder.join(name("k", b"archive"));
        fs::write(&whole, b"archive").unwrap();
        let (left, begun) = (folder.join("k-0.cpio.new-1"), folder.join("k-0.cpio.new-2"));
        for piece in [&left, &begun] {
            fs::write(piece, b"arch").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
        File::options().write(true).open(&left).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(newest_initramfs(cache.path()), Some(whole.clone()));
        assert_eq!(old_initramfs(cache.path()), [left]);
        assert_eq!(kept(&folder, "k"), Some(whole));
        assert!(begun.exists(), "somebody writes it");
    }

    #[test]
    fn an_archive_is_believed_by_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let whole = b"archive".as_slice();
        let path = folder.path().join(name("k", whole));
        assert_eq!(kept(folder.path(), "k"), None);
        for damaged in [b"archivf".as_slice(), b"", b"archive "] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(kept(folder.path(), "k"), None);
            assert!(!path.exists(), "it is deleted, so that it is no obstacle");
        }
        fs::write(&path, whole).unwrap();
        assert_eq!(kept(folder.path(), "k"), Some(path));
        assert_eq!(kept(folder.path(), "other"), None);
    }
}
