//! Unpacking what a guest sends, beneath an open folder and nowhere else.
//!
//! Every name is taken apart here: what is absolute, goes up, or does not begin with what was asked for ends the copy. Each
//! folder on the way is opened beneath the given one without following a link (`openat2`), also one that was there before
//! or that the guest exchanges meanwhile in a shared folder. Files are written under a name of ours and renamed, so that
//! nothing is ever written through what was there, and they replace files and links to files only: never a device, a pipe
//! or a socket, by whatever name. Set-id bits, owners, devices and hard links are not taken over. Long
//! names are bounded, and memory does not grow with the archive.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use tar::{Archive, Entry, EntryType};

use super::{CopyError, failed};
use crate::sys;

/// The longest name and link, in bytes: what the kernel takes.
const LONGEST_NAME: u64 = 4096;

/// Most names of left out things that are kept to be told.
const MOST_LEFT_OUT: usize = 100;

/// Bytes that are copied at once.
const PIECE: usize = 256 << 10;

/// So many zeros in a row, where a block begins, become a hole in the file.
const BLOCK: usize = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What has been unpacked so far.
#[derive(Debug, Default)]
pub struct Done {
    /// Files that are there as wholes.
    pub files: u64,
    /// The names of what was left out: neither files nor folders nor links.
    pub left_out: Vec<String>,
}

/// Unpacks an archive of `from` (one name, or `.` for what is in a folder) into `folder`, where it is called `to` (`.` for the
/// folder itself). `done` is counted up as it goes on, so that it tells how far a copy came that ended early.
pub fn unpack(
    archive: impl Read,
    folder: BorrowedFd<'_>,
    from: &[u8],
    to: &[u8],
    done: &mut Done,
) -> Result<(), CopyError> {
    let mut unpacker = Unpacker { folder, from, to, open: Vec::new(), done };
    let mut archive = Archive::new(archive);
    // As they are in the archive: the crate would read names of any length into memory.
    let entries = archive.entries().map_err(CopyError::Archive)?.raw(true);
    let (mut long_name, mut long_link) = (None, None);
    for entry in entries {
        let mut entry = entry.map_err(CopyError::Archive)?;
        match entry.header().entry_type() {
            EntryType::GNULongName => long_name = Some(long(&mut entry)?),
            EntryType::GNULongLink => long_link = Some(long(&mut entry)?),
            kind => unpacker.take(kind, &mut entry, long_name.take(), long_link.take())?,
        }
    }
    while unpacker.close()? {}
    Ok(())
}

/// A long name, which comes as the content of an entry of its own.
fn long<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, CopyError> {
    let mut name = Vec::new();
    entry.by_ref().take(LONGEST_NAME + 1).read_to_end(&mut name).map_err(CopyError::Archive)?;
    if name.len() as u64 > LONGEST_NAME {
        return Err(CopyError::NotAsked("a name that is too long".into()));
    }
    if name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

struct Unpacker<'u> {
    folder: BorrowedFd<'u>,
    from: &'u [u8],
    to: &'u [u8],
    /// The folders that the archive is in at the moment, outermost first, whose modes and times are still to be set.
    open: Vec<OpenFolder>,
    done: &'u mut Done,
}

struct OpenFolder {
    path: Vec<u8>,
    handle: OwnedFd,
    mode: Mode,
    times: Timestamps,
}

impl Unpacker<'_> {
    fn take<R: Read>(
        &mut self,
        kind: EntryType,
        entry: &mut Entry<'_, R>,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<(), CopyError> {
        let given = long_name.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = self.place(&given)?;
        while self.open.last().is_some_and(|folder| !lies_in(&path, &folder.path)) {
            self.close()?;
        }
        let header = entry.header();
        let mode = sys::mode(header.mode().map_err(CopyError::Archive)? & 0o777);
        let seconds = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        if path.is_empty() {
            // The given folder itself, which stays as it is.
            return if kind.is_dir() { Ok(()) } else { Err(not_asked(&given)) };
        }
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
            None => (&b""[..], &path[..]),
        };
        let above = self.enter(above)?;
        match kind {
            EntryType::Directory => {
                let handle = make_folder(above.as_fd(), name).map_err(|e| failed("cannot make", &path, e))?;
                if let Some(handle) = handle {
                    self.open.push(OpenFolder { path, handle, mode, times });
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => {
                write_file(above.as_fd(), name, &path, entry, mode, &times)?;
                self.done.files += 1;
                Ok(())
            }
            EntryType::Symlink => {
                let target = long_link.or_else(|| entry.link_name_bytes().map(std::borrow::Cow::into_owned));
                let target = target.ok_or_else(|| not_asked(&given))?;
                make_link(above.as_fd(), name, &path, &target)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if self.done.left_out.len() < MOST_LEFT_OUT {
                    self.done.left_out.push(String::from_utf8_lossy(&given).into_owned());
                }
                Ok(())
            }
            // Not in an archive that was made as we ask for it.
            _ => Err(not_asked(&given)),
        }
    }

    /// Where an entry belongs, beneath the folder; empty for the folder itself.
    fn place(&self, given: &[u8]) -> Result<Vec<u8>, CopyError> {
        let refuse = || not_asked(given);
        if given.starts_with(b"/") || given.contains(&0) {
            return Err(refuse());
        }
        let mut parts = given.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        if self.from != b"." && parts.next() != Some(self.from) {
            return Err(refuse());
        }
        let mut path = if self.to == b"." { Vec::new() } else { self.to.to_vec() };
        for part in parts {
            if part == b".." {
                return Err(refuse());
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        if path.len() as u64 > LONGEST_NAME { Err(refuse()) } else { Ok(path) }
    }

    /// Opens a folder that is there, without following any link.
    fn enter(&self, path: &[u8]) -> Result<OwnedFd, CopyError> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        sys::open_beneath_to_read(self.folder, path).map_err(|error| failed("cannot enter", path, error))
    }

    /// Gives the innermost open folder its mode and time; false when there is none.
    fn close(&mut self) -> Result<bool, CopyError> {
        let Some(folder) = self.open.pop() else { return Ok(false) };
        rustix::fs::futimens(&folder.handle, &folder.times)
            .and_then(|()| rustix::fs::fchmod(&folder.handle, folder.mode))
            .map_err(|error| failed("cannot write", &folder.path, error))?;
        Ok(true)
    }
}

fn not_asked(name: &[u8]) -> CopyError {
    CopyError::NotAsked(String::from_utf8_lossy(name).into_owned())
}

fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Makes a folder that its owner alone may enter until it is finished; `None` if there is one, which stays as it is.
fn make_folder(above: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::mkdirat(above, name, Mode::RWXU) {
        Ok(()) => rustix::fs::openat(above, name, flags, Mode::empty()).map(Some),
        Err(rustix::io::Errno::EXIST) => rustix::fs::openat(above, name, flags, Mode::empty()).map(|_| None),
        Err(error) => Err(error),
    }
}

/// A name that nothing has yet.
fn fresh_name() -> io::Result<Vec<u8>> {
    let mut bytes = [0u8; 8];
    sys::random(&mut bytes)?;
    Ok(format!(".viv-cp-{:016x}", u64::from_ne_bytes(bytes)).into_bytes())
}

/// Whether what has this name may be replaced: nothing, a file, or a link to one of these; for a link that is copied also
/// another link.
fn replaceable(above: BorrowedFd<'_>, name: &[u8], path: &[u8], by_link: bool) -> Result<(), CopyError> {
    let kind_of = |flags| match rustix::fs::statat(above, name, flags) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    };
    let mut kind =
        kind_of(AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed("cannot look at", path, error))?;
    if kind == Some(FileType::Symlink) {
        // One that leads in a circle, or where nobody may look, leads to nothing.
        kind = kind_of(AtFlags::empty()).unwrap_or(None);
        if by_link && kind == Some(FileType::Directory) {
            return Ok(());
        }
    }
    let kind = match kind {
        None | Some(FileType::RegularFile) => return Ok(()),
        Some(FileType::Directory) => "a folder",
        Some(other) => super::place::special(other).unwrap_or("something else"),
    };
    Err(CopyError::InTheWay { name: String::from_utf8_lossy(path).into_owned(), kind })
}

fn write_file<R: Read>(
    above: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    entry: &mut Entry<'_, R>,
    mode: Mode,
    times: &Timestamps,
) -> Result<(), CopyError> {
    let fail = |error: io::Error| failed("cannot write", path, error);
    replaceable(above, name, path, false)?;
    has_room(above, path, entry.size())?;
    let fresh = fresh_name().map_err(fail)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(above, &*fresh, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| fail(error.into()))?;
    let mut file = File::from(file);
    let written = fill(&mut file, entry, path)
        // The content may have taken long.
        .and_then(|()| replaceable(above, name, path, false))
        .and_then(|()| {
            rustix::fs::futimens(&file, times)
                .and_then(|()| rustix::fs::fchmod(&file, mode))
                .and_then(|()| rustix::fs::renameat(above, &*fresh, above, name))
                .map_err(|error| fail(error.into()))
        });
    if written.is_err() {
        let _ = rustix::fs::unlinkat(above, &*fresh, AtFlags::empty());
    }
    written
}

/// Whether the host could keep a file of this size. One that only says so, or has nothing but holes, is refused as well: it would be
/// as long to copy.
fn has_room(above: BorrowedFd<'_>, path: &[u8], size: u64) -> Result<(), CopyError> {
    // Some file systems do not tell.
    let Some(all) = rustix::fs::fstatvfs(above).ok().filter(|all| all.f_blocks > 0) else { return Ok(()) };
    let room = all.f_bavail.saturating_mul(all.f_frsize);
    if size <= room {
        return Ok(());
    }
    Err(CopyError::TooLarge { name: String::from_utf8_lossy(path).into_owned(), size, room })
}

/// Copies an entry's content; says which side failed. Where there is nothing but zeros the file gets a hole.
fn fill<R: Read>(file: &mut File, entry: &mut Entry<'_, R>, path: &[u8]) -> Result<(), CopyError> {
    let fail = |error: io::Error| failed("cannot write", path, error);
    let (mut piece, mut at, size) = (vec![0u8; PIECE], 0u64, entry.size());
    while at < size {
        let wanted = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        let piece = piece.get_mut(..wanted).unwrap_or_default();
        // Whole pieces, however the archive comes: a hole is seen where its block begins.
        entry.read_exact(piece).map_err(CopyError::Archive)?;
        for block in piece.chunks(BLOCK) {
            if ZEROS.get(..block.len()) != Some(block) {
                file.write_all_at(block, at).map_err(fail)?;
            }
            at += block.len() as u64;
        }
    }
    file.set_len(size).map_err(fail)
}

/// Makes a symbolic link in the place of what is there, if that is [`replaceable`].
fn make_link(above: BorrowedFd<'_>, name: &[u8], path: &[u8], target: &[u8]) -> Result<(), CopyError> {
    let fail = |error: io::Error| failed("cannot make", path, error);
    replaceable(above, name, path, true)?;
    let fresh = fresh_name().map_err(fail)?;
    rustix::fs::symlinkat(target, above, &*fresh).map_err(|error| fail(error.into()))?;
    let moved = rustix::fs::renameat(above, &*fresh, above, name);
    if moved.is_err() {
        let _ = rustix::fs::unlinkat(above, &*fresh, AtFlags::empty());
    }
    moved.map_err(|error| fail(error.into()))
}
