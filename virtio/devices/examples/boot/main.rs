//! Boots a kernel by hand: `boot --engine kvm --kernel vmlinux.elf --initrd x --cmdline … --disk FILE --share DIR`.
//! A tool for bringing guests up, not the product.

mod agent;

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use backends::{BlockBackend, ConsoleBackend, EntropySource};
use clap::Parser;
use hv::Hypervisor;
use machine::{MachineBuilder, MachineConfig};
use virtio_devices::{Block, Console, Fs, Pmem, Rng, Vsock, VsockHost};

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value = "kvm")]
    engine: String,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: Option<PathBuf>,
    #[arg(long, default_value = "console=ttyS0 earlyprintk=ttyS0 panic=-1")]
    cmdline: String,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Block devices, writable, in slots from 9 on: PATH or PATH=SERIAL.
    #[arg(long)]
    disk: Vec<String>,
    /// A persistent memory range in slot 4; a multiple of 2 MiB long.
    #[arg(long)]
    pmem: Option<PathBuf>,
    /// A folder to share under the tag "vivarium".
    #[arg(long)]
    share: Option<PathBuf>,
    /// Dials this port of the guest and prints what comes back.
    #[arg(long)]
    dial: Option<u32>,
    /// Runs this in the guest through its agent, then stops.
    #[arg(long)]
    exec: Option<String>,
    /// Pauses, saves the devices and goes on, every so many milliseconds.
    #[arg(long)]
    shake: Option<u64>,
    /// Stops after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
}

/// Writes to standard output.
struct Stdout;

impl ConsoleBackend for Stdout {
    fn output(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

/// A plain file as a disk, and whether it is read-only.
struct Plain(File, bool);

impl BlockBackend for Plain {
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |metadata| metadata.len())
    }
    fn read_only(&self) -> bool {
        self.1
    }
    fn read(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> std::io::Result<()> {
        for buffer in buffers {
            self.0.read_exact_at(buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }
    fn write(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> std::io::Result<()> {
        for buffer in buffers {
            self.0.write_all_at(buffer, offset)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }
    fn flush(&self) -> std::io::Result<()> {
        self.0.sync_data()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        Ok(fallocate(&self.0, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.discard(offset, len)
    }
}

struct Random;

impl EntropySource for Random {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        std::io::Read::read_exact(&mut File::open("/dev/urandom")?, bytes)
    }
}

/// Plugs in what the arguments name; gives the host's ends.
fn plug(builder: &mut MachineBuilder, arguments: &Arguments) -> anyhow::Result<VsockHost> {
    let (console, _input) = Console::new(Arc::new(Stdout))?;
    builder.device(1, virtio_devices::pci(console))?;
    builder.device(2, virtio_devices::pci(Rng::new(Box::new(Random))))?;
    let (vsock, host) = Vsock::new(3)?;
    builder.device(3, virtio_devices::pci(vsock))?;
    if let Some(path) = &arguments.pmem {
        let range = builder.pmem(File::open(path)?)?;
        builder.device(4, virtio_devices::pci(Pmem::new(range.gpa, range.len)))?;
    }
    if let Some(path) = &arguments.share {
        let share = hostfs::Share::open(path, false)?;
        let files = hostfs::HostFs::new(vec![share], hostfs::Options::default());
        let server = fuse_wire::Server::new(files);
        builder.device(6, virtio_devices::pci(Fs::new("vivarium", Arc::new(server))))?;
    }
    for (slot, disk) in (9..).zip(&arguments.disk) {
        let (path, serial) = disk.split_once('=').unwrap_or((disk, "disk"));
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("Cannot open {path}"))?;
        builder.device(
            slot,
            virtio_devices::pci(Block::new(Box::new(Plain(file, serial == "viv-base")), serial)),
        )?;
    }
    Ok(host)
}

/// Prints what a port of the guest sends, dialling again until something does.
fn dial(host: VsockHost, port: u32) {
    std::thread::spawn(move || {
        loop {
            let Ok((mut near, far)) = UnixStream::pair() else { return };
            host.connect(far.into(), port);
            let count = std::io::copy(&mut near, &mut std::io::stderr());
            eprintln!("[the connection ended: {count:?}]");
            if !matches!(count, Ok(0)) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    });
}

fn engine(name: &str) -> anyhow::Result<Box<dyn Hypervisor>> {
    Ok(match name {
        "kvm" => Box::new(hv_kvm::KvmEngine::new()),
        "soft" => Box::new(hv_soft::SoftEngine::new()),
        _ => bail!("There is no engine {name}"),
    })
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("Cannot open {}", path.display()));
    let config = MachineConfig {
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        kernel: open(&arguments.kernel)?,
        initramfs: arguments.initrd.as_ref().map(open).transpose()?,
        cmdline: arguments.cmdline.clone(),
        serial: Arc::new(Stdout),
        generation_id: [1; 16],
    };
    let mut builder = MachineBuilder::new(config);
    let host = plug(&mut builder, &arguments)?;
    let started = std::time::Instant::now();
    let machine = builder.build(&*engine(&arguments.engine)?)?;
    eprintln!("built in {:?}", started.elapsed());
    let handle = machine.handle();
    if let Some(seconds) = arguments.seconds {
        let handle = handle.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_secs(seconds));
            handle.pause();
            for vcpu in 0..handle.vcpus() {
                eprintln!("vCPU {vcpu}: {:x?}", handle.vcpu_state(vcpu));
            }
            handle.stop();
        });
    }
    if let Some(interval) = arguments.shake {
        let handle = handle.clone();
        std::thread::spawn(move || {
            let mut count = 0;
            while handle.pause() {
                match handle.save_devices() {
                    Ok(state) if count == 0 => eprintln!("{} PCI devices can be saved", state.slots.len()),
                    Ok(_) => {}
                    Err(error) => eprintln!("{error}"),
                }
                for vcpu in 0..handle.vcpus() {
                    if !matches!(handle.vcpu_state(vcpu), Some(Ok(_)) | None) {
                        eprintln!("vCPU {vcpu} cannot be saved");
                    }
                }
                handle.resume();
                count += 1;
                std::thread::sleep(std::time::Duration::from_millis(interval));
            }
            eprintln!("paused {count} times");
        });
    }
    if let Some(command) = arguments.exec {
        let handle = handle.clone();
        std::thread::spawn(move || {
            if let Err(error) = agent::run(&host, &command) {
                eprintln!("{error:#}");
            }
            handle.stop();
        });
    } else if let Some(port) = arguments.dial {
        dial(host, port);
    }
    let exit = machine.run();
    eprintln!("{exit:?} after {:?}", started.elapsed());
    for (name, count) in handle.counters() {
        eprintln!("{name}: {count}");
    }
    Ok(())
}
