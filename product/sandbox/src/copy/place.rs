//! Where on the host a copy begins or ends. A guest makes what links it likes in the folders that it may write, so none of
//! those is followed, whoever named the path.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType};

use crate::sys;
use crate::workspace::Share;

/// Most links that are followed one after another, as the kernel has it.
const MOST_LINKS: usize = 40;

/// What is to be copied from the host: a name in an open folder.
#[derive(Debug)]
pub struct Source {
    /// The folder around it.
    pub folder: OwnedFd,
    /// Its name there.
    pub name: OsString,
    /// Whether it is a folder itself.
    pub is_folder: bool,
    /// What it is, where that is nothing that is copied: "a device".
    pub special: Option<&'static str>,
}

/// Opens a folder. Links are followed as everywhere, but for those in a folder that a guest may write.
pub fn open_folder(path: &Path, shares: &[Share]) -> io::Result<OwnedFd> {
    let path = without_links(path, shares)?;
    let Some(share) = writable(&path, shares) else {
        return Ok(sys::open_plain_to_read(&path)?);
    };
    // Everything from here on is the guest's to change, now and between two looks.
    let base = sys::open_plain_to_read(&share.path)?;
    let rest = path.strip_prefix(&share.path).unwrap_or(Path::new(""));
    if rest.as_os_str().is_empty() {
        return Ok(base);
    }
    Ok(sys::open_beneath_to_read(&base, rest)?)
}

fn writable<'s>(path: &Path, shares: &'s [Share]) -> Option<&'s Share> {
    shares.iter().find(|share| !share.read_only && path.starts_with(&share.path))
}

/// The path with every link in it replaced by where it leads, as far as no guest can have made it.
fn without_links(path: &Path, shares: &[Share]) -> io::Result<PathBuf> {
    let reversed = |path: &Path| {
        let parts: Vec<OsString> = path.components().map(|part| part.as_os_str().to_owned()).collect();
        parts.into_iter().rev().collect::<Vec<_>>()
    };
    let mut left = reversed(&std::path::absolute(path)?);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => {
                at.pop();
            }
            Some(Component::RootDir) => at = "/".into(),
            Some(Component::Normal(name)) => {
                let next = at.join(name);
                match if writable(&at, shares).is_none() { std::fs::read_link(&next).ok() } else { None } {
                    Some(_) if links >= MOST_LINKS => return Err(rustix::io::Errno::LOOP.into()),
                    Some(target) => {
                        links += 1;
                        left.extend(reversed(&target));
                    }
                    None => at = next,
                }
            }
            _ => {}
        }
    }
    Ok(at)
}

/// Finds what a path of the host names. A link at its end is meant itself.
pub fn source(path: &Path, shares: &[Share]) -> io::Result<Source> {
    let whole: PathBuf = if path.file_name().is_some() { path.to_owned() } else { path.canonicalize()? };
    let (Some(name), Some(folder)) = (whole.file_name(), whole.parent()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the root of the file system"));
    };
    let folder = open_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }, shares)?;
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_folder = kind == FileType::Directory;
    Ok(Source { folder, name: name.to_owned(), is_folder, special: special(kind) })
}

/// What is neither a file, a folder nor a link, in words.
pub(super) fn special(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile | FileType::Directory | FileType::Symlink => None,
        FileType::Fifo => Some("a pipe"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Where what is copied to `path`, which is no folder, is written: the open folder around it and its name there. A link at its
/// end is followed, as Docker has it, so that the file behind it is replaced and not the link.
pub fn target(path: &Path, shares: &[Share]) -> io::Result<(OwnedFd, OsString)> {
    let path = without_links(path, shares)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is the root of the file system"));
    };
    Ok((open_folder(folder, shares)?, name.to_owned()))
}
