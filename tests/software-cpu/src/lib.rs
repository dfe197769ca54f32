//! Debian on the software CPU, in this process and with any tuning of the translator: boots the base image of the user's
//! cache until the agent runs a script, and gives back what that said and what the engine counted.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_proto::abi::{self, cmdline, serial, slot};
use backends::{BlockBackend, ConsoleBackend, EntropySource};
use disk::RawFile;
use hv_soft::{ExecutorKind, SoftEngine};
use machine::{Exit, MachineBuilder, MachineConfig};
use sandbox::assets::newest_initramfs;
use soft_jit::Tuning;
use virtio_devices::{Block, Pmem, Rng, pci};

const MEMORY_MIB: u64 = 1024;
const DISK_BYTES: u64 = 4 << 30;

/// What a guest boots from.
#[derive(Debug)]
pub struct Files {
    kernel: PathBuf,
    initramfs: PathBuf,
    base: PathBuf,
}

impl Files {
    /// The files that the last `viv run` of this user left in the cache.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn find() -> Result<Self, String> {
        let cache = e2e::cache_home().join("vivarium");
        let none = || format!("there is no image in {} (the test e2e makes one)", cache.display());
        let store = store::Store::open(&cache).map_err(|error| error.to_string())?;
        let image = store.base().map_err(|error| error.to_string())?.ok_or_else(none)?;
        let initramfs = newest_initramfs(&cache).ok_or_else(none)?;
        Ok(Self { kernel: image.kernel.elf, initramfs, base: image.base })
    }
}

/// What a guest did.
#[derive(Debug)]
pub struct Report {
    /// Everything on its console.
    pub console: String,
    /// Why the machine ended.
    pub exit: Exit,
    counters: Vec<(String, u64)>,
}

impl Report {
    /// The script's exit code; `None` if it did not come to its end.
    pub fn code(&self) -> Option<i32> {
        let line = self.console.lines().find_map(|line| line.strip_prefix(abi::EXIT_LINE));
        line.and_then(|code| code.trim().parse().ok())
    }

    /// What the engine counted under this name.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count)
    }
}

/// Boots, runs `script` as root when the agent is there, and powers off.
///
/// # Errors
/// What the host refused, or that the guest took longer than `limit`.
pub fn run(
    files: &Files,
    tuning: Tuning,
    vcpus: u32,
    script: &str,
    limit: Duration,
) -> Result<Report, Box<dyn std::error::Error>> {
    run_with(files, tuning, vcpus, script, limit, None, Arc::new(|_| {}))
}

/// Hears what a guest says on its console, as it is said: the guest waits meanwhile.
pub type Ear = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// As [`run`], with a further disk, which has the serial [`serial::OUTPUT`], and somebody who listens.
///
/// # Errors
/// As of [`run`].
pub fn run_with(
    files: &Files,
    tuning: Tuning,
    vcpus: u32,
    script: &str,
    limit: Duration,
    output: Option<Box<dyn BlockBackend>>,
    ear: Ear,
) -> Result<Report, Box<dyn std::error::Error>> {
    let folder = tempfile::Builder::new().prefix("viv-soft-").tempdir_in("/var/tmp")?;
    let console = Arc::new(Console { said: Mutex::default(), ear });
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let words = [
        "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k random.trust_cpu=on tsc=reliable nokaslr nowatchdog".to_owned(),
        format!("{}={now} {}={} {}=off", cmdline::TIME, cmdline::SCRIPT, serial::SCRIPT, cmdline::DOCKER),
    ];
    let mut builder = MachineBuilder::new(MachineConfig {
        vcpus,
        memory_mib: MEMORY_MIB,
        kernel: File::open(&files.kernel)?,
        initramfs: Some(File::open(&files.initramfs)?),
        cmdline: words.join(" "),
        serial: console.clone(),
        generation_id: [1; 16],
    });
    let range = builder.pmem(File::open(&files.base)?)?;
    builder.device(slot::BASE, pci(Pmem::new(range.gpa, range.len)))?;
    builder.device(slot::ENTROPY, pci(Rng::new(Box::new(Random))))?;
    let disk = file(&folder.path().join("disk"), DISK_BYTES, &[])?;
    builder.device(
        slot::DISK,
        pci(Block::new(Box::new(RawFile::new(disk, DISK_BYTES, false)?), serial::DISK)),
    )?;
    let length = (script.len() as u64).next_multiple_of(4096);
    let script = file(&folder.path().join("script"), length, script.as_bytes())?;
    let script = Block::new(Box::new(RawFile::new(script, length, true)?), serial::SCRIPT);
    builder.device(slot::EXTRA[0], pci(script))?;
    if let Some(output) = output {
        builder.device(slot::EXTRA[1], pci(Block::new(output, serial::OUTPUT)))?;
    }
    let machine = builder.build(&SoftEngine::with_executor(ExecutorKind::Translator(tuning)))?;
    let handle = machine.handle();
    let (ended, end) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn({
        let handle = handle.clone();
        move || {
            if end.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                handle.stop();
            }
        }
    });
    let exit = machine.run();
    drop(ended);
    let _ = watchdog.join();
    let console = console.said.lock().unwrap_or_else(PoisonError::into_inner);
    let console = String::from_utf8_lossy(&console).replace('\r', "");
    if exit == Exit::Stopped {
        return Err(format!("the guest was not done after {limit:?}:\n{console}").into());
    }
    Ok(Report { console, exit, counters: handle.counters() })
}

fn file(path: &Path, length: u64, content: &[u8]) -> std::io::Result<OwnedFd> {
    std::fs::write(path, content)?;
    let file = File::options().read(true).write(true).open(path)?;
    file.set_len(length)?;
    Ok(file.into())
}

/// Keeps what the guest says.
struct Console {
    said: Mutex<Vec<u8>>,
    ear: Ear,
}

impl ConsoleBackend for Console {
    fn output(&self, bytes: &[u8]) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        (self.ear)(bytes);
    }
}

struct Random;

impl EntropySource for Random {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, bytes)
    }
}
