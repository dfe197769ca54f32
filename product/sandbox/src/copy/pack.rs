//! An archive of the host's files. Each folder is entered through its descriptor and no link is followed, so that a guest
//! that changes a shared folder meanwhile gets nothing from elsewhere.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use tar::{Builder, EntryType, Header};

use super::holes::{self, Stretch};
use super::{CopyError, Source, failed, join, read_untold};
use crate::sys;

/// Up to this size, in bytes, a file has what is read of it, whatever it says: those of `/proc` say 0, those of `/sys` a page.
const MADE_UP: u64 = 4096;

/// Writes what `source` names to `out`, called `name` there; `.` means only what is in it. Gives the names of what was left
/// out: neither files nor folders nor links.
pub fn pack(source: &Source, name: &OsStr, out: impl Write) -> Result<Vec<String>, CopyError> {
    let mut packer = Packer { builder: Builder::new(out), left_out: Vec::new() };
    packer.add(source.folder.as_fd(), &source.name, name)?;
    packer.builder.finish().map_err(CopyError::Broken)?;
    Ok(packer.left_out)
}

/// An archive of one file with this content; `mtime` is in seconds since 1970.
pub fn pack_content(name: &OsStr, mode: u32, mtime: u64, content: &[u8]) -> Result<Vec<u8>, CopyError> {
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode & 0o777);
    header.set_mtime(mtime);
    header.set_size(content.len() as u64);
    builder.append_data(&mut header, name, content).map_err(CopyError::Broken)?;
    builder.into_inner().map_err(CopyError::Broken)
}

struct Packer<W: Write> {
    builder: Builder<W>,
    left_out: Vec<String>,
}

impl<W: Write> Packer<W> {
    fn add(&mut self, folder: BorrowedFd<'_>, name: &OsStr, called: &OsStr) -> Result<(), CopyError> {
        let fail = |error: rustix::io::Errno| failed("cannot read", called.as_bytes(), error);
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = rustix::fs::openat(folder, name, flags | OFlags::DIRECTORY, Mode::empty())
                    .map_err(fail)?;
                self.add_folder(inner.as_fd(), &stat, called)
            }
            FileType::RegularFile => {
                // It may have become something else since: a pipe would be waited for.
                let flags = flags | OFlags::NONBLOCK;
                let file = rustix::fs::openat(folder, name, flags, Mode::empty()).map_err(fail)?;
                self.add_file(File::from(file), called)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new()).map_err(fail)?;
                let mut header = header(EntryType::Symlink, &stat, 0);
                self.builder
                    .append_link(&mut header, called, OsStr::from_bytes(target.to_bytes()))
                    .map_err(CopyError::Broken)
            }
            _ => {
                self.left_out.push(called.to_string_lossy().into_owned());
                Ok(())
            }
        }
    }

    fn add_folder(&mut self, folder: BorrowedFd<'_>, stat: &Stat, called: &OsStr) -> Result<(), CopyError> {
        let fail = |error: rustix::io::Errno| failed("cannot read", called.as_bytes(), error);
        let contents_only = called == ".";
        if !contents_only {
            let mut header = header(EntryType::Directory, stat, 0);
            self.builder.append_data(&mut header, called, io::empty()).map_err(CopyError::Broken)?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let above = if contents_only { &b""[..] } else { called.as_bytes() };
            self.add(folder, OsStr::from_bytes(&name), &join(above, &name))?;
        }
        Ok(())
    }

    fn add_file(&mut self, file: File, called: &OsStr) -> Result<(), CopyError> {
        let stat =
            rustix::fs::fstat(&file).map_err(|error| failed("cannot read", called.as_bytes(), error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.left_out.push(called.to_string_lossy().into_owned());
            return Ok(());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size <= MADE_UP {
            let content = read_untold(file, called.as_bytes())?;
            let mut header = header(EntryType::Regular, &stat, content.len() as u64);
            return self.builder.append_data(&mut header, called, &*content).map_err(CopyError::Broken);
        }
        let mut header = header(EntryType::Regular, &stat, size);
        let stretches = holes::stretches(&file, size);
        let has_holes = stretches != [(0, size)];
        let map = if has_holes { holes::describe(&mut header, &stretches, size) } else { Vec::new() };
        let mut content = Exactly { file, left: stretches.into(), failed: None };
        let written = self.builder.append_data(&mut header, called, (&*map).chain(&mut content));
        match content.failed.take() {
            Some(error) => Err(failed("cannot read", called.as_bytes(), error)),
            None => written.map_err(CopyError::Broken),
        }
    }
}

fn header(kind: EntryType, stat: &Stat, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    // No set-id bits: with -u root the guest would get a program that makes everybody root.
    header.set_mode(sys::permissions(stat) & 0o777);
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header
}

/// As many bytes of a file's stretches as the header says, whatever becomes of the file meanwhile: zeros where it was cut.
struct Exactly {
    file: File,
    left: VecDeque<Stretch>,
    failed: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.left.front().is_some_and(|(_, length)| *length == 0) {
            self.left.pop_front();
        }
        let Some((at, left)) = self.left.front_mut() else { return Ok(0) };
        let room = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
        let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else { return Ok(0) };
        let count = match self.file.read_at(bytes, *at) {
            Ok(0) => {
                bytes.fill(0);
                room
            }
            Ok(count) => count,
            Err(error) => {
                self.failed = Some(io::Error::from(error.kind()));
                return Err(error);
            }
        };
        *at += count as u64;
        *left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
pub(super) fn tests_exactly(file: File, left: u64) -> impl Read {
    Exactly { file, left: [(0, left)].into(), failed: None }
}
