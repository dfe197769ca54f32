//! A machine for one job: it boots, runs a script from a disk, and powers off. How the base image is made.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::assemble::{self, Shape};
use crate::assets::Assets;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::plan::{Descriptors, Disk, FromVmm, Store};

/// Longest line that is taken from the guest's console.
const LONGEST_LINE: u64 = 8 << 10;

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
}

/// Runs the job and gives every line of its console to `line`. Ends when the guest has powered off.
pub fn run(job: &Job<'_>, line: &mut dyn FnMut(&str)) -> Result<()> {
    run_with(job, Descriptors::new(), Vec::new(), line)
}

/// As [`run`], with further disks, which are among the descriptors.
pub(crate) fn run_with(
    job: &Job<'_>,
    mut descriptors: Descriptors,
    mut disks: Vec<Disk>,
    line: &mut dyn FnMut(&str),
) -> Result<()> {
    for disk in job.disks {
        let file = open(&disk.file, disk.read_only)?;
        let length = file.metadata().map_err(|source| Error::file("cannot open", &disk.file, source))?.len();
        let store =
            Store::Raw { file: descriptors.add(file), length, read_only: disk.read_only, durable: false };
        disks.push(Disk { serial: disk.serial.clone(), store });
    }
    let shape = Shape { engine: job.engine, cpus: job.cpus, memory: job.memory, words: job.words.clone() };
    let (mut vmm, console) = assemble::start(shape, job.assets, disks, Vec::new(), descriptors)?;
    let mut console = BufReader::new(console);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match console.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => {
                let text = String::from_utf8_lossy(&bytes);
                let text = text.trim_end_matches(['\r', '\n']);
                tracing::debug!(console = text);
                line(text);
            }
        }
    }
    let mut failure = None;
    while let Ok(Some(message)) = vmm.line().receive() {
        if let FromVmm::Failed { why } = message {
            failure = Some(why);
        }
    }
    match failure.or_else(|| vmm.wait().map(|ending| ending.reason)) {
        Some(why) => Err(Error::NotStarted { why, hint: None }),
        None => Ok(()),
    }
}

fn open(path: &Path, read_only: bool) -> Result<File> {
    let opened = File::options().read(true).write(!read_only).open(path);
    opened.map_err(|source| Error::file("cannot open", path, source))
}
