//! A machine for one job: it boots, runs a script from a disk, and powers off. How the base image is made.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::assemble::{self, Shape};
use crate::assets::Assets;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::launch::is_readable;
use crate::plan::{self, Descriptors, Disk, FromVmm, Store};

/// Longest line that is taken from the guest's console or the vmm's log; the rest is the next one.
const LONGEST_LINE: usize = 8 << 10;

/// A disk of such a machine: a file of plain sectors.
#[derive(Clone, Debug)]
pub struct JobDisk {
    /// Its serial in the guest.
    pub serial: String,
    /// The file.
    pub file: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// The guest's side of a link to a network: the parts that `frame_ring::pair` makes, kept by the caller.
#[derive(Clone, Copy, Debug)]
pub struct JobLink<'j> {
    /// The rings.
    pub memory: BorrowedFd<'j>,
    /// Rung by the network for the guest.
    pub bell: BorrowedFd<'j>,
    /// Rung by the guest for the network.
    pub far_bell: BorrowedFd<'j>,
}

/// The job.
#[derive(Clone, Debug)]
pub struct Job<'j> {
    /// What it boots from.
    pub assets: &'j Assets,
    /// Its disks.
    pub disks: &'j [JobDisk],
    /// Further words of the kernel's command line.
    pub words: Vec<String>,
    /// The engine.
    pub engine: Engine,
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Its network; without one it has no network card.
    pub link: Option<JobLink<'j>>,
}

/// Runs the job and gives every line of its console to `line`. Ends when the guest has powered off.
pub fn run(job: &Job<'_>, line: &mut dyn FnMut(&str)) -> Result<()> {
    run_with(job, Descriptors::new(), Vec::new(), None, line)
}

/// As [`run`], with further disks, which are among the descriptors. A job that is not done after `patience` is ended.
pub(crate) fn run_with(
    job: &Job<'_>,
    mut descriptors: Descriptors,
    mut disks: Vec<Disk>,
    patience: Option<Duration>,
    line: &mut dyn FnMut(&str),
) -> Result<()> {
    for disk in job.disks {
        let file = open(&disk.file, disk.read_only)?;
        let length = file.metadata().map_err(|source| Error::file("cannot open", &disk.file, source))?.len();
        let store =
            Store::Raw { file: descriptors.add(file), length, read_only: disk.read_only, durable: false };
        disks.push(Disk { serial: disk.serial.clone(), store });
    }
    let network = job.link.map(|link| card(link, &mut descriptors)).transpose()?;
    let shape =
        Shape { engine: job.engine, cpus: job.cpus, memory: job.memory, words: job.words.clone(), network };
    let (mut vmm, console) = assemble::start(shape, job.assets, disks, Vec::new(), descriptors)?;
    if !listen(console.as_fd(), vmm.errors(), patience.map(|time| Instant::now() + time), line) {
        vmm.kill();
        let minutes = patience.unwrap_or_default().as_secs().div_ceil(60);
        return Err(Error::NotStarted {
            why: format!("the machine was not done within {minutes} minutes"),
            hint: None,
        });
    }
    let (mut failure, mut full) = (None, false);
    while let Ok(Some(message)) = vmm.line().receive() {
        match message {
            FromVmm::Failed { why } => failure = Some(why),
            FromVmm::HostFull => full = true,
            _ => {}
        }
    }
    if full {
        // Whatever came of it in the guest has this cause.
        let source = std::io::Error::from(ErrorKind::StorageFull);
        return Err(Error::host("the host has no room for what the machine writes", source));
    }
    match failure.or_else(|| vmm.wait().map(|ending| ending.reason)) {
        Some(why) => Err(Error::NotStarted { why, hint: None }),
        None => Ok(()),
    }
}

/// The card at this end of a link.
fn card(link: JobLink<'_>, descriptors: &mut Descriptors) -> Result<plan::Network> {
    let mut add = |part: BorrowedFd<'_>| {
        let copy = part.try_clone_to_owned();
        Ok(descriptors.add(copy.map_err(|error| Error::host("cannot hand the network's link on", error))?))
    };
    Ok(plan::Network { memory: add(link.memory)?, bell: add(link.bell)?, far_bell: add(link.far_bell)? })
}

/// Gives the console's lines to `line` and the vmm's to the log, until the console's end; false when it was too late before that. Both
/// are read as they come: neither may wait for the other.
fn listen(
    console: BorrowedFd<'_>,
    errors: BorrowedFd<'_>,
    until: Option<Instant>,
    line: &mut dyn FnMut(&str),
) -> bool {
    let (mut said, mut logged) = (Lines::default(), Lines::default());
    let mut log = |text: &str| tracing::info!(vmm = text);
    let mut heard = |text: &str| {
        tracing::debug!(console = text);
        line(text);
    };
    let mut errors = Some(errors);
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return false;
        }
        let time = left.and_then(|left| Timespec::try_from(left).ok());
        let mut polled: Vec<PollFd<'_>> = std::iter::once(console)
            .chain(errors)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        if poll(&mut polled, time.as_ref()).is_err() {
            continue;
        }
        let ready = |index: usize| polled.get(index).is_some_and(|one| !one.revents().is_empty());
        if let Some(log_end) = errors.filter(|_| ready(1))
            && !logged.read(log_end, &mut log)
        {
            errors = None;
        }
        if ready(0) && !said.read(console, &mut heard) {
            // What the vmm has said before its end is in its pipe.
            while let Some(log_end) = errors.filter(|log_end| is_readable(*log_end)) {
                errors = errors.filter(|_| logged.read(log_end, &mut log));
            }
            return true;
        }
    }
}

/// Lines of a pipe, as they become whole.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    /// Reads once; false at the end, when the last line has been given, too.
    fn read(&mut self, from: BorrowedFd<'_>, line: &mut dyn FnMut(&str)) -> bool {
        let mut bytes = [0; 16 << 10];
        let count = match rustix::io::read(from, &mut bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
            Err(_) => 0,
        };
        for byte in bytes.get(..count).unwrap_or_default() {
            self.0.push(*byte);
            if *byte == b'\n' || self.0.len() == LONGEST_LINE {
                self.give(line);
            }
        }
        if count == 0 && !self.0.is_empty() {
            self.give(line);
        }
        count > 0
    }

    fn give(&mut self, line: &mut dyn FnMut(&str)) {
        line(String::from_utf8_lossy(&self.0).trim_end_matches(['\r', '\n']));
        self.0.clear();
    }
}

fn open(path: &Path, read_only: bool) -> Result<File> {
    let opened = File::options().read(true).write(!read_only).open(path);
    opened.map_err(|source| Error::file("cannot open", path, source))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_of_any_length_is_read_beside_the_console() {
        let (console, mut said) = std::io::pipe().unwrap();
        let (errors, mut logged) = std::io::pipe().unwrap();
        let vmm = std::thread::spawn(move || {
            said.write_all(b"first\r\nsec").unwrap();
            // More than a pipe holds: this waits for who reads it.
            logged.write_all(&vec![b'x'; 1 << 20]).unwrap();
            said.write_all(b"ond\n").unwrap();
            said.write_all(&vec![b'y'; LONGEST_LINE + 1]).unwrap();
        });
        let mut lines = Vec::new();
        assert!(listen(console.as_fd(), errors.as_fd(), None, &mut |line| lines.push(line.to_owned())));
        vmm.join().unwrap();
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [5, 6, LONGEST_LINE, 1]);
        assert_eq!(lines[..2], ["first", "second"]);
    }

    #[test]
    fn a_job_that_is_never_done_is_not_waited_for() {
        let (console, mut said) = std::io::pipe().unwrap();
        let (errors, logged) = std::io::pipe().unwrap();
        drop(logged);
        said.write_all(b"busy\n").unwrap();
        let mut lines = 0;
        let until = Instant::now() + Duration::from_secs(1);
        assert!(!listen(console.as_fd(), errors.as_fd(), Some(until), &mut |_| lines += 1));
        assert_eq!(lines, 1);
        drop(said);
    }
}
