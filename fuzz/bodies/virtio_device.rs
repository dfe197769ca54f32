//! Every virtio device behind its transport, driven by a driver whose steps are the input.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Result};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use backends::{BlockBackend, ConsoleBackend, EntropySource};
use doorbell::Doorbell;
use frame_ring::{Link, MAX_FRAME, MEMORY, Side};
use guest_memory::{GuestRam, RangeSpec};
use hv::Vm;
use hv_fake::FakeVm;
use machine::pci::{DeviceContext, Msix, PciDevice, PciFunction};
use virtio_devices::{Block, Console, ConsoleInput, Fs, Net, NetHost, Pmem, Rng, Vsock, VsockHost};
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 4 << 20;
const DISK: u64 = 64 << 10;
const SIZE: u16 = 16;
const BUFFERS: u64 = 0x20_0000;

/// Stands behind every device: a disk of zeros, a screen for nobody, a file server without files.
struct Nothing;

impl BlockBackend for Nothing {
    fn len(&self) -> u64 {
        DISK
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        assert!(offset + len <= DISK);
        buffers.iter_mut().for_each(|buffer| buffer.fill(0));
        Ok(())
    }
    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        assert!(offset + len <= DISK);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset + len <= DISK);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        assert!(offset + len <= DISK);
        Ok(())
    }
}

impl ConsoleBackend for Nothing {
    fn output(&self, _bytes: &[u8]) {}
}

impl EntropySource for Nothing {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(4);
        Ok(())
    }
}

impl fuse_wire::RequestHandler for Nothing {
    fn handle(&self, request: &[IoSlice<'_>], reply: &mut [IoSliceMut<'_>]) -> usize {
        let len = request.iter().map(|slice| slice.len()).sum::<usize>();
        len.min(reply.iter().map(|slice| slice.len()).sum())
    }
    fn reset(&self) {}
}

/// The host's ends.
#[derive(Default)]
struct Host {
    input: Option<ConsoleInput>,
    vsock: Option<VsockHost>,
    streams: Vec<UnixStream>,
    network: Option<Network>,
}

/// The far end of a network card.
struct Network {
    card: NetHost,
    bell: Doorbell,
    link: Link,
    memory: File,
}

impl Network {
    fn new(card: NetHost, bell: Doorbell) -> Self {
        let (link, memory) = Self::connect(&card, &bell);
        Self { card, bell, link, memory }
    }

    /// Gives the card a new link: the far end of it, and its memory.
    fn connect(card: &NetHost, bell: &Doorbell) -> (Link, File) {
        let memory = frame_ring::memory().expect("there is memory");
        let far_bell = Doorbell::new().expect("there are descriptors");
        let clone = || memory.try_clone().expect("there are descriptors");
        let near = Link::from_parts(clone(), Side::Guest, bell.clone(), far_bell.clone());
        card.connect(Box::new(near.expect("it is a link")));
        let link = Link::from_parts(clone(), Side::Network, far_bell, bell.clone()).expect("it is a link");
        (link, memory.into())
    }

    /// Receives and sends, writes over the rings, goes and comes.
    fn step(&mut self, input: &mut Input<'_>) -> Option<()> {
        let what = input.byte()?;
        match what % 8 {
            0 | 1 => {
                let mut buffer = vec![0; MAX_FRAME];
                while let Ok(Some(len)) = self.link.receive(&mut buffer) {
                    assert!((26..=MAX_FRAME).contains(&len));
                    if what & 8 != 0 {
                        let _ = self.link.send(&[&buffer[..len]]);
                    }
                }
            }
            2..=4 => {
                let len = 12 + usize::from(input.word()?);
                let mut frame = input.take(12).to_vec();
                frame.resize(len, what);
                let _ = self.link.send(&[&frame]);
            }
            5 => {
                // The words and the first length of either ring, and any other place.
                let places = [0, 128, 256, 384, 512, 640, 768, 896, 4096, MEMORY / 2 + 2048];
                let at = match places.get(usize::from(input.byte()?)) {
                    Some(at) => *at,
                    None => u64::from(input.word()?) << 5,
                };
                let len = 1 + usize::from(what >> 4);
                self.memory.write_all_at(input.take(len), at % (MEMORY - 16)).expect("it is in the memory");
                self.bell.ring();
            }
            6 => self.card.disconnect(),
            _ => (self.link, self.memory) = Self::connect(&self.card, &self.bell),
        }
        Some(())
    }
}

fn device(choice: u8, host: &mut Host) -> Box<dyn PciDevice> {
    match choice % 7 {
        0 => virtio_devices::pci(Block::new(Box::new(Nothing), "fuzz")),
        1 => virtio_devices::pci(Rng::new(Box::new(Nothing))),
        2 => virtio_devices::pci(Pmem::new(1 << 40, 2 << 20)),
        3 => {
            let (console, input) = Console::new(Arc::new(Nothing)).expect("there are descriptors");
            host.input = Some(input);
            virtio_devices::pci(console)
        }
        4 => {
            let (vsock, handle) = Vsock::new(3).expect("there are descriptors");
            handle.listen(1, || Some(UnixStream::pair().ok()?.0.into()));
            host.vsock = Some(handle);
            virtio_devices::pci(vsock)
        }
        5 => virtio_devices::pci(Fs::new("fuzz", Arc::new(Nothing))),
        _ => {
            let bell = Doorbell::new().expect("there are descriptors");
            let (card, handle) = Net::new([2; 6], 1500, bell.clone(), || ());
            host.network = Some(Network::new(handle, bell));
            virtio_devices::pci(card)
        }
    }
}

fn attach(device: Box<dyn PciDevice>, ram: &GuestRam, vm: &Arc<FakeVm>) -> Arc<dyn PciFunction> {
    let interrupts = Arc::new(Msix::new(vm.clone() as Arc<dyn Vm>, device.vectors()));
    interrupts.set_control(1 << 15);
    let context = DeviceContext { ram: ram.clone(), interrupts, vm: vm.clone(), bar: 0xc010_0000 };
    device.attach(context).expect("there are descriptors")
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }
    fn word(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

struct Driver {
    ram: GuestRam,
    function: Arc<dyn PciFunction>,
    available: [u16; 3],
    descriptors: [u16; 3],
    buffer: u64,
    /// The low half of what it negotiates.
    features: u32,
}

impl Driver {
    fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.ram.memory().write_slice(bytes, GuestAddress(at % (RAM - 0x1_0000)));
    }

    fn rings(queue: u16) -> u64 {
        0x1_0000 * (u64::from(queue) + 1)
    }

    /// What a driver does until DRIVER_OK.
    fn initialise(&mut self) {
        let write = |offset: u64, bytes: &[u8]| self.function.bar_write(offset, bytes);
        [0, 1, 3].iter().for_each(|status| write(0x14, &[*status]));
        for (half, features) in [(0u32, self.features), (1, 1)] {
            write(0x08, &half.to_le_bytes());
            write(0x0c, &features.to_le_bytes());
        }
        write(0x14, &[11]);
        for queue in 0..3u16 {
            self.put(Self::rings(queue), &[0; 0x3000]);
            write(0x16, &queue.to_le_bytes());
            write(0x18, &SIZE.to_le_bytes());
            write(0x1a, &queue.to_le_bytes());
            for (register, offset) in [(0x20, 0), (0x28, 0x1000), (0x30, 0x2000)] {
                write(register, &(Self::rings(queue) + offset).to_le_bytes());
            }
            write(0x1c, &1u16.to_le_bytes());
        }
        write(0x14, &[15]);
        (self.available, self.descriptors) = Default::default();
    }

    /// Offers a chain of up to four buffers with flags, lengths and content from the input, and rings.
    fn chain(&mut self, input: &mut Input<'_>) -> Option<()> {
        let queue = u16::from(input.byte()? % 3);
        let count = u16::from(input.byte()? % 4) + 1;
        let first = self.descriptors[usize::from(queue)];
        for index in 0..count {
            let (flags, len) = (u16::from(input.byte()?), input.word()?);
            let content = input.take(usize::from(len).min(64));
            self.put(self.buffer, content);
            let at = Self::rings(queue) + 16 * u64::from((first + index) % SIZE);
            self.put(at, &self.buffer.to_le_bytes());
            self.put(at + 8, &u32::from(len).to_le_bytes());
            // Mostly sound chains: the low bits add to what the place in the chain asks for.
            let next = u16::from(index + 1 < count);
            self.put(at + 12, &(next ^ (flags & 7)).to_le_bytes());
            self.put(at + 14, &((first + index + 1) % SIZE).to_le_bytes());
            self.buffer = BUFFERS + (self.buffer + u64::from(len) - BUFFERS) % 0x10_0000;
        }
        let slot = self.available[usize::from(queue)];
        self.put(Self::rings(queue) + 0x1004 + 2 * u64::from(slot % SIZE), &(first % SIZE).to_le_bytes());
        self.put(Self::rings(queue) + 0x1002, &slot.wrapping_add(1).to_le_bytes());
        self.available[usize::from(queue)] = slot.wrapping_add(1);
        self.descriptors[usize::from(queue)] = (first + count) % SIZE;
        self.function.bar_write(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
        Some(())
    }
}

/// The first byte chooses the device, then come steps.
pub(crate) fn drive(input: &[u8]) {
    let mut input = Input(input);
    let Some(choice) = input.byte() else { return };
    let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: RAM, file: None }]).expect("the range is valid");
    let vm = Arc::new(FakeVm::default());
    let mut host = Host::default();
    let function = attach(device(choice, &mut host), &ram, &vm);
    let (available, descriptors) = Default::default();
    // Event index and indirect tables; a network card's own, too, without which little of it is reached.
    let features = 0x3000_0000 | if host.network.is_some() { 0x0001_b9ab } else { 0 };
    let mut driver = Driver { ram: ram.clone(), function, available, descriptors, buffer: BUFFERS, features };
    while let Some(step) = input.byte() {
        if run(step, &mut input, &mut driver, &mut host, choice, &vm).is_none() {
            break;
        }
    }
    // Until nothing is in flight.
    driver.function.quiesce();
    driver.function.resume();
    driver.function.shut_down();
    // A new driver finds a working device.
    let mut last = Host::default();
    let function = attach(device(choice, &mut last), &ram, &vm);
    driver.function = function;
    driver.initialise();
    let mut status = [0];
    driver.function.bar_read(0x14, &mut status);
    assert_eq!(status[0] & 15, 15);
    driver.function.shut_down();
}

fn run(
    step: u8,
    input: &mut Input<'_>,
    driver: &mut Driver,
    host: &mut Host,
    choice: u8,
    vm: &Arc<FakeVm>,
) -> Option<()> {
    match step % 8 {
        0 => driver.initialise(),
        1 | 2 => driver.chain(input)?,
        3 => {
            let (offset, len) = (input.word()?, input.byte()? % 9);
            driver.function.bar_write(u64::from(offset) % 0x8000, input.take(len.into()));
        }
        4 => {
            let (offset, len) = (input.word()?, input.byte()? % 9);
            driver.function.bar_read(u64::from(offset) % 0x8000, &mut vec![0; len.into()]);
        }
        5 => {
            let at = u64::from(input.word()?) << 6;
            let len = usize::from(input.byte()?);
            driver.put(at, input.take(len));
        }
        6 => {
            if let Some(network) = &mut host.network {
                return network.step(input);
            }
            let content = input.byte()?;
            if let Some(console) = &host.input {
                console.write(&[content; 100]);
            }
            if let Some(vsock) = &host.vsock
                && let Ok((near, far)) = UnixStream::pair()
            {
                vsock.connect(far.into(), content.into());
                let _ = std::io::Write::write_all(&mut &near, &[content; 100]);
                // Every second one is closed at once.
                host.streams.extend((content & 1 == 0).then_some(near));
            }
        }
        _ => {
            // Moves to a new device between two requests, as a snapshot does.
            driver.function.quiesce();
            // A file system in use has no saved form.
            let Ok(saved) = driver.function.save() else {
                driver.function.resume();
                return Some(());
            };
            driver.function.shut_down();
            *host = Host::default();
            driver.function = attach(device(choice, host), &driver.ram, vm);
            driver.function.restore(&saved).expect("a device takes its own state");
            driver.function.resume();
            assert!(driver.function.restore(input.take(40)).is_err() || input.0.is_empty());
        }
    }
    Some(())
}
