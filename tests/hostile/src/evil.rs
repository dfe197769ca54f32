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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::far::Far;
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

/// What the second half of a long run may hold beyond what its beginning held: a leak grows by more than this in some minutes,
/// as each of thousands of requests a second would add to it.
const MOST_GROWTH: u64 = 8 << 20;

/// From which length on a run is looked at for growth: before, caches fill.
pub const LONG_ENOUGH: Duration = Duration::from_secs(120);

/// The devices by their slots; 0 is the host bridge, which has no queues.
pub const DEVICES: [&str; 8] = ["bridge", "console", "random", "vsock", "base", "disk", "files", "net"];

/// How long a vmm whose shim is gone may take to end before it counts as hanging.
const UNTIL_GONE: Duration = Duration::from_secs(60);

/// Compiles the guest into `folder`, for KVM without SSE: a KVM that emulates kernel code has none of it.
///
/// # Errors
/// What the compiler said.
pub fn compile(folder: &Path, engine: Engine) -> Result<PathBuf, String> {
    let without: &[&str] = match engine {
        Engine::Kvm => &["-C", "target-feature=-sse,-sse2"],
        Engine::Soft => &[],
    };
    let program = folder.join("evil");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/evil.rs");
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "--crate-type", "bin", "-O", "-C", "panic=abort"])
        .args(["-C", "relocation-model=static", "-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .args(["-C", "link-arg=-Wl,--image-base=0x1000000,-e,_start,--build-id=none"])
        .args(without)
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

/// The machine that a guest gets.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    /// The engine.
    pub engine: Engine,
    /// vCPUs, one or two. The second one changes rings and requests while the first one has them under way.
    pub cpus: u32,
}

impl Form {
    /// The guest's command line.
    fn words(self, seed: u64) -> String {
        let wake = match (self.cpus, self.engine) {
            (1, _) => 0,
            (_, Engine::Soft) => 1,
            (_, Engine::Kvm) => 2,
        };
        format!("seed={seed} wake={wake}")
    }
}

/// What a guest counted, as far as it said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Garbage actions.
    pub steps: u64,
    /// What the second vCPU did.
    pub rounds: u64,
    /// Chains that each device gave back.
    pub done: [u64; DEVICES.len()],
    /// Those of them whose answer says that what was asked was done.
    pub well: [u64; DEVICES.len()],
}

impl Counted {
    /// Both together.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.steps += other.steps;
        self.rounds += other.rounds;
        let sums = self.done.iter_mut().chain(&mut self.well);
        sums.zip(other.done.iter().chain(&other.well)).for_each(|(sum, more)| *sum += more);
        self
    }

    /// Takes in a line of the guest's, if it is one of these.
    fn hear(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace().rev();
        let (Some(number), Some(what)) = (words.next().and_then(|word| word.parse().ok()), words.next())
        else {
            return;
        };
        // Whatever else the guest has put on the port may stand right before.
        let kind = |name: &str| what.rsplit_once(name).map(|(_, rest)| rest.parse().unwrap_or(usize::MAX));
        let count = if what.ends_with("steps") {
            Some(&mut self.steps)
        } else if what.ends_with("rounds") {
            Some(&mut self.rounds)
        } else if let Some(device) = kind("done") {
            self.done.get_mut(device)
        } else {
            kind("well").and_then(|device| self.well.get_mut(device))
        };
        if let Some(count) = count {
            *count = number;
        }
    }
}

/// What came of one guest.
#[derive(Debug)]
pub struct Outcome {
    /// What it counted.
    pub counted: Counted,
    /// Most resident bytes, descriptors and threads of the vmm.
    pub most: Usage,
    /// How long it ran.
    pub time: Duration,
    /// How it ended before its time, if it did: by its own doing.
    pub ended: Option<String>,
}

/// What came of a run.
#[derive(Debug)]
pub enum Ran {
    /// The guest ran, and achieved nothing.
    Held(Outcome),
    /// There is no such machine on this host: why.
    NoMachine(String),
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

/// Fails if the last quarter of a run holds more than its second quarter did.
fn check_growth(samples: &[(Duration, Usage)]) -> Result<(), String> {
    let Some((length, _)) = samples.last().filter(|(length, _)| *length >= LONG_ENOUGH) else {
        return Ok(());
    };
    let most = |from: u32, until: u32| {
        let within = |at: &Duration| *at >= *length * from / 4 && *at <= *length * until / 4;
        samples
            .iter()
            .filter(|(at, _)| within(at))
            .fold(Usage::default(), |most, (_, usage)| most.max(*usage))
    };
    let (early, late) = (most(1, 2), most(3, 4));
    if late.resident > early.resident + MOST_GROWTH || late.threads > early.threads + 2 {
        return Err(format!("the vmm grew while it ran: from {early:?} to {late:?} in {length:?}"));
    }
    Ok(())
}

/// Runs the guest with this seed for this long, or until it has ended itself.
///
/// # Errors
/// The guest has achieved something: what.
pub fn run(
    viv: &Path,
    guest: &Path,
    bait: &Bait,
    (form, seed): (Form, u64),
    time: Duration,
) -> Result<Ran, String> {
    let text = |error: std::io::Error| error.to_string();
    let before = bait.untouchable().map_err(text)?;
    let (near, far) = packet::pair().map_err(text)?;
    let (console, console_in) = std::io::pipe().map_err(text)?;
    let (plan, descriptors, far_end) = plan(guest, bait, (form, seed), console_in.into())?;
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
    let counted = Arc::new(Mutex::new(Counted::default()));
    let heard = counted.clone();
    let ear = std::thread::spawn(move || listen(console, &heard));
    let log = child.stderr.take().map(|log| std::thread::spawn(move || words(log)));
    let line = Arc::new(near);
    let said = hear(line.clone());
    let watched = watch(&mut child, &line, far_end, time);
    // Its shim is gone.
    let _ = rustix::net::shutdown(&*line, rustix::net::Shutdown::Both);
    let ended = wait(&mut child);
    let _ = ear.join();
    let (log, panicked) = log.and_then(|log| log.join().ok()).unwrap_or_default();
    let (confined, why) = said.join().unwrap_or_default();
    let (samples, early) = watched.map_err(|what| format!("{what}\n{log}"))?;
    let status = ended?;
    if status.signal().is_some() || panicked {
        return Err(format!("the vmm ended with {status}:\n{log}"));
    }
    match why {
        Some(why) if !confined && form.engine == Engine::Kvm => return Ok(Ran::NoMachine(why)),
        _ if !confined => return Err(format!("the vmm was never confined: {why:?}\n{log}")),
        _ => {}
    }
    check_growth(&samples)?;
    if bait.untouchable().map_err(text)? != before {
        return Err("something was changed that the guest may not write".into());
    }
    let counted = *counted.lock().unwrap_or_else(PoisonError::into_inner);
    let most = samples.iter().fold(Usage::default(), |most, (_, usage)| most.max(*usage));
    let time = samples.last().map_or(Duration::ZERO, |(at, _)| *at);
    let ended = early.then(|| why.unwrap_or_else(|| "it powered off".into()));
    Ok(Ran::Held(Outcome { counted, most, time, ended }))
}

fn plan(
    guest: &Path,
    bait: &Bait,
    (form, seed): (Form, u64),
    console: OwnedFd,
) -> Result<(Plan, Descriptors, Far), String> {
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
    let (far, network) = Far::new(&mut descriptors).map_err(text)?;
    let kvm = match form.engine {
        Engine::Soft => None,
        Engine::Kvm => {
            let device = File::options().read(true).write(true).open("/dev/kvm").map_err(text)?;
            Some(descriptors.add(device))
        }
    };
    let plan = Plan {
        engine: form.engine,
        kvm,
        cpus: form.cpus,
        memory: MEMORY,
        kernel,
        initramfs,
        command_line: vec![form.words(seed)],
        console,
        base: Some(base),
        disks: vec![Disk { serial: "viv-disk".into(), store }],
        shares,
        network: Some(network),
    };
    Ok((plan, descriptors, far))
}

/// Reads what the guest says, whatever it is, and keeps its last numbers.
fn listen(console: std::io::PipeReader, counted: &Mutex<Counted>) {
    let mut lines = BufReader::new(console);
    let mut line = Vec::new();
    while lines.by_ref().take(4096).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        counted.lock().unwrap_or_else(PoisonError::into_inner).hear(&String::from_utf8_lossy(&line));
        line.clear();
    }
}

/// The beginning of a log, and whether anything panicked in all of it: a device's thread that does is caught and only logged.
fn words(log: impl std::io::Read) -> (String, bool) {
    let mut lines = BufReader::new(log);
    let (mut first, mut panicked) = (String::new(), false);
    let mut line = Vec::new();
    while lines.by_ref().take(4096).read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let text = String::from_utf8_lossy(&line);
        let panics = text.contains("panicked");
        panicked |= panics;
        if first.len() < 64 << 10 || panics {
            first.push_str(&text);
        }
        line.clear();
    }
    (first, panicked)
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

/// What the vmm held, and when.
type Samples = Vec<(Duration, Usage)>;

/// Does what a shim does meanwhile, connects to ports of the guest and talks to them, and looks at what the vmm holds.
/// Gives all that it saw, and whether the guest ended before its time.
fn watch(child: &mut Child, line: &OwnedFd, mut far: Far, time: Duration) -> Result<(Samples, bool), String> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    let mut streams: Vec<UnixStream> = Vec::new();
    for round in 0u32.. {
        if child.try_wait().map_err(|error| error.to_string())?.is_some() {
            return Ok((samples, true));
        }
        if begun.elapsed() >= time {
            break;
        }
        if let Some(usage) = Usage::of(child.id()) {
            samples.push((begun.elapsed(), usage));
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
        far.round(round, line).map_err(|error| error.to_string())?;
        if round % 10 == 0 {
            let _ = packet::send_now(line, &ToVmm::Count, &[]);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok((samples, false))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_that_goes_on_counts() {
        let run = |resident: fn(u64) -> u64, threads: fn(u64) -> usize| {
            let usage = |at| Usage { resident: resident(at) << 20, threads: threads(at), descriptors: 0 };
            let samples: Vec<_> = (0..600).map(|at| (Duration::from_secs(at), usage(at))).collect();
            check_growth(&samples)
        };
        assert!(run(|at| 100 + at.min(100), |_| 9).is_ok());
        assert!(run(|at| 100 + at % 50, |_| 9).is_ok());
        assert!(run(|at| 100 + at / 20, |_| 9).is_err());
        assert!(run(|_| 100, |at| 9 + at as usize / 60).is_err());
        let short =
            [0, 60].map(|at| (Duration::from_secs(at), Usage { resident: at << 30, ..Usage::default() }));
        assert!(check_growth(&short).is_ok());
    }

    #[test]
    fn a_panic_anywhere_in_a_log_is_found() {
        let noise = "a guest's nonsense\n".repeat(10_000);
        let log = format!("{noise}thread 'disk' panicked at here\n{noise}");
        let (kept, panicked) = words(log.as_bytes());
        assert!(panicked && kept.contains("panicked") && kept.len() < 80_000);
        assert!(!words(noise.as_bytes()).1);
    }

    #[test]
    fn a_guests_numbers_are_kept_by_device() {
        let mut counted = Counted::default();
        for line in
            ["\x07xsteps 0008192\n", "done5 17", "\x1bwell6 3", "well5 2", "done9 1", "nonsense", "done5 x"]
        {
            counted.hear(line);
        }
        let mut expected = Counted { steps: 8192, ..Counted::default() };
        (expected.done[5], expected.well[5], expected.well[6]) = (17, 2, 3);
        assert_eq!(counted, expected);
        assert_eq!(counted.and(&expected).done[5], 34);
    }
}
