//! A guest that drives every device with garbage, in the real confined `viv vmm` with the real back ends, and what it must
//! not achieve.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sandbox::engine::Engine;
use sandbox::packet;
use sandbox::plan::{Descriptors, Disk, FromVmm, Plan, SharedFolder, Store, ToVmm};

/// The guest's memory in bytes; the guest's own source has the number, too.
const MEMORY: u64 = 96 << 20;

/// What the vmm may hold beyond it: translated code and its tables, the guest's page cache of the base, buffers.
const OVERHEAD: u64 = 256 << 20;

/// Most descriptors: the guest may have connections and files open, but only so many (`virtio_devices`' and `hostfs`' own
/// limits are below).
const MOST_DESCRIPTORS: usize = 3000;

/// Most threads: vCPU, devices, the ear; a reset must not leave one behind.
const MOST_THREADS: usize = 40;

/// How long a vmm whose shim is gone may take to end before it counts as hanging.
const UNTIL_GONE: Duration = Duration::from_secs(60);

/// Compiles the guest into `folder`.
///
/// # Errors
/// What the compiler said.
pub fn compile(folder: &Path) -> Result<PathBuf, String> {
    let program = folder.join("evil");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/evil.rs");
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "bin", "-O", "-C", "panic=abort"])
        .args(["-C", "relocation-model=static", "-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .args(["-C", "link-arg=-Wl,--image-base=0x1000000,-e,_start,--build-id=none"])
        .arg(source)
        .arg("-o")
        .arg(&program)
        .output()
        .map_err(|error| format!("rustc: {error}"))?;
    if output.status.success() { Ok(program) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// The host's files that the guest is given, and those that it must not reach.
#[derive(Debug)]
pub struct Bait {
    folder: PathBuf,
}

/// A file as it is: content, mode, time of change in nanoseconds.
type Seen = (Vec<u8>, u32, i64);

impl Bait {
    /// Lays it out in an empty folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lay(folder: &Path) -> std::io::Result<Self> {
        for name in ["rw/d", "ro/d", "disk"] {
            fs::create_dir_all(folder.join(name))?;
        }
        for name in ["rw/a", "rw/b", "ro/a", "ro/d/b", "outside"] {
            fs::write(folder.join(name), name.repeat(1000))?;
        }
        symlink("../outside", folder.join("rw/link"))?;
        symlink("../outside", folder.join("ro/link"))?;
        let pattern: Vec<u8> = (0..4u32 << 20).map(|at| (at ^ at >> 11) as u8).collect();
        fs::write(folder.join("base"), pattern)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// All that the guest must leave as it is.
    fn untouchable(&self) -> std::io::Result<Vec<Seen>> {
        ["outside", "ro/a", "ro/d/b", "base"]
            .iter()
            .map(|name| {
                let path = self.folder.join(name);
                let about = fs::metadata(&path)?;
                let changed = about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec());
                Ok((fs::read(path)?, about.mode(), changed))
            })
            .collect()
    }
}

/// What came of one guest.
#[derive(Debug)]
pub struct Outcome {
    /// Garbage actions that the guest made, as far as it said.
    pub steps: u64,
    /// Most resident bytes, descriptors and threads of the vmm.
    pub most: Usage,
    /// How it ended before its time, if it did: by its own doing.
    pub ended: Option<String>,
}

/// What a process holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident bytes.
    pub resident: u64,
    /// Descriptors; 0 where they cannot be seen (by an ordinary user, as the vmm does not let itself be looked at).
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
}

impl Usage {
    fn of(process: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        let descriptors = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        let threads = usize::try_from(field("Threads:")?).ok()?;
        Some(Self { resident: field("VmRSS:")? << 10, descriptors, threads })
    }

    fn max(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }

    fn check(self) -> Result<(), String> {
        if self.resident > MEMORY + OVERHEAD
            || self.descriptors > MOST_DESCRIPTORS
            || self.threads > MOST_THREADS
        {
            return Err(format!("the vmm grew beyond its bounds: {self:?}"));
        }
        Ok(())
    }
}

/// Runs the guest with this seed for this long, or until it has ended itself.
///
/// # Errors
/// The guest has achieved something: what.
pub fn run(viv: &Path, guest: &Path, bait: &Bait, seed: u64, time: Duration) -> Result<Outcome, String> {
    let text = |error: std::io::Error| error.to_string();
    let before = bait.untouchable().map_err(text)?;
    let (near, far) = packet::pair().map_err(text)?;
    let (console, console_in) = std::io::pipe().map_err(text)?;
    let (plan, descriptors) = plan(guest, bait, seed, console_in.into())?;
    let mut child = Command::new(viv)
        .arg("vmm")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(text)?;
    packet::send(&near, &ToVmm::Start(Box::new(plan)), &descriptors.borrowed()).map_err(text)?;
    drop(descriptors);
    let steps = Arc::new(AtomicU64::new(0));
    let counted = steps.clone();
    let ear = std::thread::spawn(move || count_steps(console, &counted));
    let log = child.stderr.take().map(|log| std::thread::spawn(move || last_words(log)));
    let line = Arc::new(near);
    let said = hear(line.clone());
    let watched = watch(&mut child, &line, time);
    // Its shim is gone.
    let _ = rustix::net::shutdown(&*line, rustix::net::Shutdown::Both);
    let ended = wait(&mut child);
    let _ = ear.join();
    let log = log.and_then(|log| log.join().ok()).unwrap_or_default();
    let (confined, why) = said.join().unwrap_or_default();
    let (most, early) = watched.map_err(|what| format!("{what}\n{log}"))?;
    let status = ended?;
    if status.signal().is_some() || log.contains("panicked") {
        return Err(format!("the vmm ended with {status}:\n{log}"));
    }
    if !confined {
        return Err(format!("the vmm was never confined: {why:?}\n{log}"));
    }
    if bait.untouchable().map_err(text)? != before {
        return Err("something was changed that the guest may not write".into());
    }
    let ended = early.then(|| why.unwrap_or_else(|| "it powered off".into()));
    Ok(Outcome { steps: steps.load(Ordering::SeqCst), most, ended })
}

fn plan(guest: &Path, bait: &Bait, seed: u64, console: OwnedFd) -> Result<(Plan, Descriptors), String> {
    let text = |error: std::io::Error| error.to_string();
    let wrong = |error: disk::DiskError| error.to_string();
    let mut descriptors = Descriptors::new();
    let kernel = descriptors.add(File::open(guest).map_err(text)?);
    let initramfs = descriptors.add(File::open(guest).map_err(text)?);
    let base = descriptors.add(File::open(bait.folder.join("base")).map_err(text)?);
    let console = descriptors.add(console);
    let folder = File::open(bait.folder.join("disk")).map_err(text)?;
    match disk::create(folder.as_fd(), 64 << 20) {
        Ok(()) | Err(disk::DiskError::Exists) => {}
        Err(error) => return Err(wrong(error)),
    }
    let opened = disk::open(folder.as_fd()).map_err(wrong)?;
    let files: std::io::Result<Vec<_>> = opened
        .layer_descriptors()
        .iter()
        .map(|layer| layer.as_fd().try_clone_to_owned().map(|layer| descriptors.add(layer)))
        .collect();
    let store = Store::Layers { description: opened.description().clone(), files: files.map_err(text)? };
    let mut share = |name: &str, read_only: bool| {
        let folder = descriptors.add(File::open(bait.folder.join(name)).map_err(text)?);
        Ok::<_, String>(SharedFolder { folder, read_only })
    };
    let shares = vec![share("rw", false)?, share("ro", true)?];
    let plan = Plan {
        engine: Engine::Soft,
        kvm: None,
        cpus: 1,
        memory: MEMORY,
        kernel,
        initramfs,
        command_line: vec![format!("seed={seed}")],
        console,
        base: Some(base),
        disks: vec![Disk { serial: "viv-disk".into(), store }],
        shares,
    };
    Ok((plan, descriptors))
}

/// Reads what the guest says, whatever it is, and keeps the last number of steps.
fn count_steps(console: std::io::PipeReader, steps: &AtomicU64) {
    let mut lines = BufReader::new(console);
    let mut line = Vec::new();
    while lines.by_ref().take(4096).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let text = String::from_utf8_lossy(&line);
        if let Some((_, number)) = text.split_once("steps ")
            && let Ok(number) = number.trim().parse()
        {
            steps.store(number, Ordering::SeqCst);
        }
        line.clear();
    }
}

/// The beginning of a log; the rest is read and dropped.
fn last_words(mut log: std::process::ChildStderr) -> String {
    let mut first = Vec::new();
    let _ = log.by_ref().take(64 << 10).read_to_end(&mut first);
    let _ = std::io::copy(&mut log, &mut std::io::sink());
    String::from_utf8_lossy(&first).into_owned()
}

/// Hears the vmm until it is gone: whether it was confined, and why it failed.
fn hear(line: Arc<OwnedFd>) -> std::thread::JoinHandle<(bool, Option<String>)> {
    std::thread::spawn(move || {
        let mut heard = (false, None);
        while let Ok(Some((message, _))) = packet::receive::<FromVmm>(&*line) {
            match message {
                FromVmm::Confined { .. } => heard.0 = true,
                FromVmm::Failed { why } => heard.1 = Some(why),
                _ => {}
            }
        }
        heard
    })
}

/// Does what a shim does meanwhile, connects to ports of the guest and talks to them, and looks at what the vmm holds.
/// Gives the most of it, and whether the guest ended before its time.
fn watch(child: &mut Child, line: &OwnedFd, time: Duration) -> Result<(Usage, bool), String> {
    let begun = Instant::now();
    let mut most = Usage::default();
    let mut streams: Vec<UnixStream> = Vec::new();
    for round in 0u32.. {
        if child.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Ok((most, true));
        }
        if begun.elapsed() >= time {
            break;
        }
        if let Some(usage) = Usage::of(child.id()) {
            most = most.max(usage);
            usage.check()?;
        }
        if let Ok((near, far)) = packet::stream_pair() {
            let _ = packet::send_now(line, &ToVmm::Connect { port: round % 6 }, &[far.as_fd()]);
            let mut near = UnixStream::from(near);
            let _ = near.set_nonblocking(true);
            let _ = near.write(&[7; 3000]);
            streams.push(near);
        }
        for stream in &mut streams {
            let _ = stream.read(&mut [0; 4096]);
        }
        // Some are dropped while bytes are under way.
        if streams.len() > 16 {
            streams.remove(round as usize % 16);
        }
        if round % 10 == 0 {
            let _ = packet::send_now(line, &ToVmm::Count, &[]);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((most, false))
}

/// Waits for the end that must come.
fn wait(child: &mut Child) -> Result<std::process::ExitStatus, String> {
    let begun = Instant::now();
    while begun.elapsed() < UNTIL_GONE {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    Err("the vmm did not end after its shim was gone".into())
}
