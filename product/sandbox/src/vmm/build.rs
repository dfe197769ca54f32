//! From a plan to a machine with its devices.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent_proto::abi::{FS_TAG, GUEST_CID, serial, slot};
use backends::{BlockBackend, ConsoleBackend, EntropySource};
use disk::{Disk, Preview, RawFile};
use hv::Hypervisor;
use machine::pci::PciDevice;
use machine::{Machine, MachineBuilder, MachineConfig, layout};
use virtio_devices::{Block, Console, Fs, Pmem, Rng, Vsock, VsockHost, pci};

use super::network::Network;
use super::patient::{Impatient, Patient, Waiting};
use crate::engine::{Engine, sentence};
use crate::plan::{Plan, Received, Slot, Store};

/// A machine that is ready to run, and the way into its vsock device.
pub(super) struct Built {
    pub(super) machine: Machine,
    pub(super) vsock: VsockHost,
    pub(super) network: Option<Network>,
    /// The shared folders and whether each may only be read: all of the host's files that the process needs to reach.
    pub(super) shares: Vec<(OwnedFd, bool)>,
}

/// Builds the machine of a plan.
pub(super) fn build(plan: &Plan, mut received: Received, waiting: &Waiting) -> Result<Built, String> {
    let console = Arc::new(PipeConsole::new(file(&mut received, plan.console)?)?);
    let config = MachineConfig {
        vcpus: plan.cpus,
        memory_mib: plan.memory >> 20,
        kernel: file(&mut received, plan.kernel)?,
        initramfs: Some(file(&mut received, plan.initramfs)?),
        cmdline: plan.command_line.join(" "),
        serial: console.clone(),
        generation_id: random()?,
    };
    let mut builder = MachineBuilder::new(config);
    let plug = |builder: &mut MachineBuilder, at: u8, device: Box<dyn PciDevice>| {
        builder.device(at, device).map_err(|error| sentence(&error))
    };
    if let Some(base) = plan.base {
        let base = file(&mut received, base)?;
        let device = base_device(&mut builder, base)?;
        plug(&mut builder, slot::BASE, device)?;
    }
    let (console, _input) = Console::new(console).map_err(|error| sentence(&error))?;
    plug(&mut builder, slot::CONSOLE, pci(console))?;
    plug(&mut builder, slot::ENTROPY, pci(Rng::new(Box::new(HostRandom))))?;
    let (vsock, host) = Vsock::new(GUEST_CID.into()).map_err(|error| sentence(&error))?;
    plug(&mut builder, slot::VSOCK, pci(vsock))?;
    let network = match &plan.network {
        Some(plan) => {
            let (device, network) = Network::new(plan, &mut received, waiting.control().clone())?;
            plug(&mut builder, slot::NET, pci(device))?;
            Some(network)
        }
        None => None,
    };
    let mut extra = slot::EXTRA.into_iter();
    for disk in &plan.disks {
        let at = if disk.serial == serial::DISK { Some(slot::DISK) } else { extra.next() };
        let at = at.ok_or("the machine has no room for so many disks")?;
        let backend = block(&disk.store, &mut received, waiting)?;
        plug(&mut builder, at, pci(Block::new(backend, &disk.serial)))?;
    }
    let mut granted = Vec::with_capacity(plan.shares.len());
    if !plan.shares.is_empty() {
        plug(&mut builder, slot::FS, pci(shares(plan, &mut received, &mut granted)?))?;
    }
    let engine = engine(plan, &mut received)?;
    let machine = builder.build(&*engine).map_err(|error| sentence(&error))?;
    Ok(Built { machine, vsock: host, network, shares: granted })
}

pub(super) fn take(received: &mut Received, slot: Slot) -> Result<OwnedFd, String> {
    received.take(slot).ok_or_else(|| "a descriptor of the plan is missing".to_owned())
}

fn file(received: &mut Received, slot: Slot) -> Result<File, String> {
    take(received, slot).map(File::from)
}

fn engine(plan: &Plan, received: &mut Received) -> Result<Box<dyn Hypervisor>, String> {
    match plan.engine {
        Engine::Kvm => {
            let device = take(received, plan.kvm.ok_or("there is no descriptor of /dev/kvm")?)?;
            crate::sys::kvm(device).map_err(|error| sentence(&error))
        }
        Engine::Soft => crate::sys::soft().map_err(|error| sentence(&error)),
    }
}

/// The base as persistent memory, which all guests read from the host's page cache; as a disk when its length does not
/// allow that.
fn base_device(builder: &mut MachineBuilder, base: File) -> Result<Box<dyn PciDevice>, String> {
    let length = base.metadata().map_err(|error| sentence(&error))?.len();
    if length > 0 && length.is_multiple_of(layout::PMEM_ALIGN) {
        let range = builder.pmem(base).map_err(|error| sentence(&error))?;
        return Ok(pci(Pmem::new(range.gpa, range.len)));
    }
    let disk = RawFile::new(base, length, true).map_err(|error| sentence(&error))?;
    Ok(pci(Block::new(Box::new(disk), serial::BASE)))
}

fn block(store: &Store, received: &mut Received, waiting: &Waiting) -> Result<Box<dyn BlockBackend>, String> {
    match store {
        Store::Raw { file: at, length, read_only, durable } => {
            let disk =
                RawFile::new(take(received, *at)?, *length, *read_only).map_err(|error| sentence(&error))?;
            Ok(if *durable {
                Box::new(disk)
            } else {
                Box::new(Impatient::new(Scratch(disk), waiting.clone()))
            })
        }
        Store::Layers { description, files } => {
            let files = files.iter().map(|at| take(received, *at)).collect::<Result<Vec<_>, _>>()?;
            let disk = Disk::from_parts(description.clone(), files).map_err(|error| sentence(&error))?;
            Ok(Box::new(Patient::new(disk, waiting.clone())))
        }
        Store::Preview { layer, scratch, size } => {
            let (layer, scratch) = (take(received, *layer)?, take(received, *scratch)?);
            let preview = Preview::new(layer, scratch, *size).map_err(|error| sentence(&error))?;
            Ok(Box::new(Impatient::new(preview, waiting.clone())))
        }
    }
}

fn shares(plan: &Plan, received: &mut Received, granted: &mut Vec<(OwnedFd, bool)>) -> Result<Fs, String> {
    let mut shares = Vec::with_capacity(plan.shares.len());
    for share in &plan.shares {
        let folder = take(received, share.folder)?;
        granted.push((folder.try_clone().map_err(|error| sentence(&error))?, share.read_only));
        shares.push(hostfs::Share::new(folder, share.read_only).map_err(|error| sentence(&error))?);
    }
    let server = hostfs::HostFs::new(shares, hostfs::Options::default());
    Ok(Fs::new(FS_TAG, Arc::new(fuse_wire::Server::new(server))))
}

fn random() -> Result<[u8; 16], String> {
    let mut bytes = [0u8; 16];
    HostRandom.fill(&mut bytes).map_err(|error| sentence(&error))?;
    Ok(bytes)
}

/// The host kernel's random numbers.
struct HostRandom;

impl EntropySource for HostRandom {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = crate::sys::random(rest)?;
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        Ok(())
    }
}

/// A disk whose content is thrown away when anything goes wrong, so that nothing has to be made durable.
struct Scratch(RawFile);

impl BlockBackend for Scratch {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn read(&self, offset: u64, buffers: &mut [io::IoSliceMut<'_>]) -> io::Result<()> {
        self.0.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<()> {
        self.0.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, len)
    }
}

/// The guest's console as a pipe to the shim. What the pipe has no room for is lost: the guest must not be able to wait
/// for the host, nor the host to keep all that a guest says.
struct PipeConsole(File);

impl PipeConsole {
    fn new(pipe: File) -> Result<Self, String> {
        let flags = rustix::fs::fcntl_getfl(&pipe).map_err(|error| sentence(&error))?;
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|error| sentence(&error))?;
        Ok(Self(pipe))
    }
}

impl ConsoleBackend for PipeConsole {
    fn output(&self, bytes: &[u8]) {
        let _ = io::Write::write(&mut &self.0, bytes);
    }
}
