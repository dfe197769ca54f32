//! Looks for a value in everything that a guest has: its memory, its disk, and what the host keeps of it.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use e2e::Verdict;
use memchr::memmem::Finder;
use rustix::fs::SeekFrom as Part;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use serde_json::Value;

use crate::Net;

/// Read at a time, in bytes.
const PIECE: usize = 4 << 20;

/// The forms in which a value may lie somewhere: as it is, and in base64 at each offset within the three bytes of a group.
pub fn forms(value: &str) -> Vec<Vec<u8>> {
    let mut all = vec![value.as_bytes().to_vec(), value.chars().rev().collect::<String>().into_bytes()];
    for offset in 0..3 {
        let text = STANDARD_NO_PAD.encode(format!("{}{value}", "\0".repeat(offset)));
        // Without the characters that hold bits of what stands before and after.
        let first = (offset * 8).div_ceil(6);
        let last = (offset + value.len()) * 8 / 6;
        all.push(text.get(first..last).unwrap_or_default().as_bytes().to_vec());
    }
    all
}

/// Where a sandbox's data lie on this host.
#[derive(Debug)]
pub struct Places {
    /// The guest's memory and the frames between it and the gateway, as the vmm has them.
    pub memory: Vec<PathBuf>,
    /// The disk, logs, records: all files of its folder.
    pub files: Vec<PathBuf>,
    /// What the paths of the memory lead to.
    _held: Vec<OwnedFd>,
}

/// Most descriptors of a vmm that are looked at.
const DESCRIPTORS: i32 = 4096;

impl Places {
    /// Those of a running sandbox.
    pub fn of(net: &Net, name: &str) -> Result<Self, Verdict> {
        let inspected: Value = serde_json::from_str(&net.viv_ok(&["inspect", name])?)?;
        let vmm = inspected["processes"]["vmm"].as_i64().and_then(|vmm| Pid::from_raw(vmm.try_into().ok()?));
        let vmm = vmm.ok_or_else(|| Verdict::Wrong(format!("{name} has no vmm: {inspected}")))?;
        // Its folder in /proc is closed even to this namespace's own root.
        let vmm = rustix::process::pidfd_open(vmm, PidfdFlags::empty())?;
        let (mut memory, mut held) = (Vec::new(), Vec::new());
        for number in 0..DESCRIPTORS {
            let descriptor = match rustix::process::pidfd_getfd(&vmm, number, PidfdGetfdFlags::empty()) {
                Err(Errno::BADF) => continue,
                descriptor => descriptor?,
            };
            let path = PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
            if std::fs::read_link(&path)?.to_string_lossy().starts_with("/memfd:") {
                memory.push(path);
                held.push(descriptor);
            }
        }
        let mut files = Vec::new();
        collect(&net.world.folder(name)?, &mut files)?;
        Ok(Self { memory, files, _held: held })
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The first of these forms that is in one of the files, and in which one; holes are passed over.
pub fn find(files: &[PathBuf], forms: &[Vec<u8>]) -> Result<Option<String>, Verdict> {
    let finders: Vec<Finder<'_>> = forms.iter().map(Finder::new).collect();
    let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
    for path in files {
        let mut file = File::open(path).map_err(|error| at(path, &error))?;
        if let Some(form) = find_in(&mut file, &finders, longest).map_err(|error| at(path, &error))? {
            return Ok(Some(format!("form {form} in {}", path.display())));
        }
    }
    Ok(None)
}

fn at(path: &Path, error: &std::io::Error) -> Verdict {
    Verdict::Wrong(format!("{}: {error}", path.display()))
}

fn find_in(file: &mut File, finders: &[Finder<'_>], longest: usize) -> std::io::Result<Option<usize>> {
    let mut position = 0;
    loop {
        let data = match rustix::fs::seek(&*file, Part::Data(position)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(&*file, Part::Hole(data))?;
        file.seek(SeekFrom::Start(data))?;
        if let Some(form) = find_between(file, hole.saturating_sub(data), finders, longest)? {
            return Ok(Some(form));
        }
        position = hole;
    }
}

/// Within the next `length` bytes; what lies across two pieces is found, too.
fn find_between(
    file: &mut File,
    mut length: u64,
    finders: &[Finder<'_>],
    longest: usize,
) -> std::io::Result<Option<usize>> {
    let mut window = Vec::new();
    while length > 0 {
        let kept = window.len().min(longest.saturating_sub(1));
        window.drain(..window.len() - kept);
        let wanted = length.min(PIECE as u64);
        let read = file.by_ref().take(wanted).read_to_end(&mut window);
        let count = match read {
            Ok(count) => count as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(form) = finders.iter().position(|finder| finder.find(&window).is_some()) {
            return Ok(Some(form));
        }
        if count == 0 {
            break;
        }
        length -= count;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_value_is_found_in_every_form_and_across_pieces() {
        let value = "tok-5f3a9c-viv";
        let mut contents = vec![value.as_bytes().to_vec()];
        for user in ["", "u", "us", "use"] {
            contents.push(STANDARD_NO_PAD.encode(format!("{user}{value}:more")).into_bytes());
        }
        for content in contents {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.as_file_mut().seek(SeekFrom::Start(PIECE as u64 * 2 - 5)).unwrap();
            file.write_all(&content).unwrap();
            let paths = [file.path().to_owned()];
            assert!(find(&paths, &forms(value)).unwrap().is_some(), "{}", String::from_utf8_lossy(&content));
            assert!(find(&paths, &forms("tok-5f3b9c-viv")).unwrap().is_none());
        }
    }
}
