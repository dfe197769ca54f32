//! From a sandbox's spec to a running vmm: everything that is opened by a path is opened here, in the shim.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_proto::abi::{cmdline, serial};
use rustix::fs::{Mode, OFlags};

use crate::assets::Assets;
use crate::engine::{self, Engine};
use crate::error::{self, Error, Result};
use crate::folder::Sandbox;
use crate::launch::Vmm;
use crate::network::{Handover, Network};
use crate::places::Places;
use crate::plan::{self, Descriptors, Disk, Plan, SharedFolder, Slot, Store};
use crate::shim::Machine;
use crate::spec::{Networking, Spec};
use crate::{naming, workspace};

/// Words of every guest's command line. Early messages come over the serial port, until the virtio console is there: then the
/// kernel leaves the port alone, and everything else comes over `hvc0`, panics too. A panic ends the machine.
const COMMAND_LINE: &[&str] = &[
    // In this order: the port's console speaks from its own word on.
    "quiet",
    "loglevel=4",
    "earlycon=uart8250,io,0x3f8",
    "console=hvc0",
    "panic=-1",
    "reboot=k",
    "random.trust_cpu=on",
    "tsc=reliable",
    "nokaslr",
];

/// How long a shim that was killed may still hold its lock, and its vmm the disk.
pub(crate) const DYING: Duration = Duration::from_secs(15);

/// Starts the vmm of a sandbox.
pub fn machine(sandbox: &Sandbox, places: &Places, assets: &Assets, handover: Handover) -> Result<Machine> {
    let spec = &sandbox.spec;
    let asked = spec.engine.as_deref().and_then(Engine::from_name);
    let choice = engine::choose(asked, places)?;
    tracing::info!(engine = choice.engine.name(), why = %choice.why, "The engine is chosen");
    let mut descriptors = Descriptors::new();
    let disk = disk(sandbox, &mut descriptors)?;
    let shares = shares(spec, places, &mut descriptors)?;
    let mut words = vec![format!("{}={}", cmdline::HOSTNAME, naming::host_name(&spec.name))];
    if disk::is_made(disk_folder(sandbox)?.as_fd()).map_err(|error| unusable(sandbox, &error))? {
        words.push(format!("{}=made", cmdline::DISK));
    }
    // Last: what can go wrong before has no process to end.
    let (network, card) = match spec.network {
        Networking::None => (None, None),
        Networking::Gateway => {
            let (network, card) = Network::start(sandbox, places, handover, &mut descriptors)?;
            (Some(network), Some(card))
        }
    };
    let shape = Shape { engine: choice.engine, cpus: spec.cpus, memory: spec.memory, words, network: card };
    let (vmm, console) = start(shape, assets, vec![disk], shares, descriptors)?;
    Ok(Machine { vmm, console, engine: choice.engine.name().into(), network })
}

/// What a machine is besides its devices.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) engine: Engine,
    pub(crate) cpus: u32,
    pub(crate) memory: u64,
    /// Further words of the command line.
    pub(crate) words: Vec<String>,
    /// The network card's far end.
    pub(crate) network: Option<plan::Network>,
}

/// Opens what every machine has and starts its vmm. Gives the reading end of its console, too.
pub(crate) fn start(
    shape: Shape,
    assets: &Assets,
    disks: Vec<Disk>,
    shares: Vec<SharedFolder>,
    mut descriptors: Descriptors,
) -> Result<(Vmm, std::io::PipeReader)> {
    let mut open = |path: &Path| -> Result<Slot> { Ok(descriptors.add(open_read(path)?)) };
    let kernel = open(&assets.kernel)?;
    let initramfs = open(&assets.initramfs)?;
    let base = assets.base.as_deref().map(open).transpose()?;
    let (console, console_in) = std::io::pipe().map_err(|error| Error::host("cannot make a pipe", error))?;
    let console_in = descriptors.add(console_in);
    let kvm = (shape.engine == Engine::Kvm)
        .then(|| open_kvm().map(|device| descriptors.add(device)))
        .transpose()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut command_line: Vec<String> = COMMAND_LINE.iter().map(|word| (*word).to_owned()).collect();
    command_line.push(format!("{}={}.{:09}", cmdline::TIME, now.as_secs(), now.subsec_nanos()));
    command_line.extend(shape.words);
    let plan = Plan {
        engine: shape.engine,
        kvm,
        cpus: shape.cpus,
        memory: shape.memory,
        kernel,
        initramfs,
        command_line,
        console: console_in,
        base,
        disks,
        shares,
        network: shape.network,
    };
    let vmm = Vmm::start(plan, &descriptors)?;
    Ok((vmm, console))
}

fn open_read(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::file("cannot open", path, source))
}

fn open_kvm() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/kvm", flags, Mode::empty())
        .map_err(|error| Error::file("cannot open", "/dev/kvm", error))
}

pub(crate) fn disk_folder(sandbox: &Sandbox) -> Result<OwnedFd> {
    let path = sandbox.disk_folder();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| Error::file("cannot open", &path, error))
}

/// Notes that the guest is ready, and with it its disk: until then a disk is made blank at each start.
pub(crate) fn disk_is_made(sandbox: &Sandbox) -> Result<()> {
    disk::made(disk_folder(sandbox)?.as_fd()).map_err(|error| unusable(sandbox, &error))
}

/// The sandbox's writable disk, made on first use.
fn disk(sandbox: &Sandbox, descriptors: &mut Descriptors) -> Result<Disk> {
    let folder = disk_folder(sandbox)?;
    match disk::create(folder.as_fd(), sandbox.spec.disk) {
        Ok(()) | Err(disk::DiskError::Exists) => {}
        Err(error) => return Err(unusable(sandbox, &error)),
    }
    let disk = patiently(|| disk::open(folder.as_fd())).map_err(|error| unusable(sandbox, &error))?;
    let fail = |error: rustix::io::Errno| Error::host("cannot hand the disk on", error);
    let files: Result<Vec<Slot>> = disk
        .layer_descriptors()
        .iter()
        .map(|layer| Ok(descriptors.add(rustix::io::fcntl_dupfd_cloexec(layer, 3).map_err(fail)?)))
        .collect();
    let store = Store::Layers { description: disk.description().clone(), files: files? };
    Ok(Disk { serial: serial::DISK.into(), store })
}

/// Opens a disk. A vmm whose shim was killed ends with it, but it takes a moment until the kernel has given back a large
/// guest's memory; until then the disk is in use.
pub(crate) fn patiently<T>(open: impl Fn() -> Result<T, disk::DiskError>) -> Result<T, disk::DiskError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(disk::DiskError::InUse) if begun.elapsed() < DYING => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

fn unusable(sandbox: &Sandbox, error: &disk::DiskError) -> Error {
    let why = format!("its disk cannot be used: {}", engine::sentence(error));
    let hint = match error {
        // It is the host that is in want, and the disk is sound.
        disk::DiskError::Io(_, source) if error::is_full(source) => error::room_hint(source).into(),
        _ => format!(
            "viv check {} says more; the disk is left as it is in {}",
            sandbox.spec.name,
            sandbox.disk_folder().display()
        ),
    };
    Error::NotStarted { why, hint: Some(hint) }
}

/// The shared folders, in the order of the spec: their numbers are their names in the guest.
fn shares(spec: &Spec, places: &Places, descriptors: &mut Descriptors) -> Result<Vec<SharedFolder>> {
    let folders = workspace::open_all(&spec.shares, places, &spec.name)?;
    let shared = folders
        .into_iter()
        .zip(&spec.shares)
        .map(|(folder, share)| SharedFolder { folder: descriptors.add(folder), read_only: share.read_only });
    Ok(shared.collect())
}
