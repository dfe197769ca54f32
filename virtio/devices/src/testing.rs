//! A guest driver in Rust: drives a device through its registers and rings, as Linux does, with a fake VM below.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_memory::{GuestRam, RangeSpec};
use hv::Vm;
use hv_fake::FakeVm;
use machine::pci::{DeviceContext, Msix, PciFunction};
use vm_memory::{Bytes, GuestAddress};

use crate::device::Device;
use crate::transport::pci;

/// Guest RAM of every test machine in bytes.
pub(crate) const RAM: u64 = 64 << 20;
/// Where the rings of queue 0 lie; each queue has 64 KiB.
const RINGS: u64 = 0x10_0000;
/// Where buffers are handed out from.
const BUFFERS: u64 = 0x100_0000;
/// Entries of every queue that the driver sets up.
pub(crate) const SIZE: u16 = 16;

pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const EVENT_INDEX: u64 = 1 << 29;
pub(crate) const INDIRECT: u64 = 1 << 28;

/// A buffer of a chain.
pub(crate) enum Buffer<'a> {
    Out(&'a [u8]),
    In(u32),
}

/// A chain that the device gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) id: u32,
    pub(crate) len: u32,
    /// The writable buffers, whole.
    pub(crate) data: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct DriverQueue {
    next_free: u16,
    next_available: u16,
    next_used: u16,
    /// Writable buffers by head.
    writable: std::collections::HashMap<u32, Vec<(u64, u32)>>,
}

impl DriverQueue {
    /// Whether the device has chains with writable buffers.
    pub(crate) fn is_offering(&self) -> bool {
        self.writable.values().any(|buffers| !buffers.is_empty())
    }
}

/// A machine with one device and its driver.
pub(crate) struct Guest {
    pub(crate) ram: GuestRam,
    pub(crate) vm: Arc<FakeVm>,
    pub(crate) function: Arc<dyn PciFunction>,
    pub(crate) queues: Vec<DriverQueue>,
    next_buffer: u64,
}

pub(crate) fn ram() -> GuestRam {
    let read_only = tempfile::tempfile().unwrap();
    read_only.set_len(0x1000).unwrap();
    GuestRam::new(vec![
        RangeSpec { gpa: 0, len: RAM, file: None },
        RangeSpec { gpa: RAM, len: 0x1000, file: Some(read_only) },
    ])
    .unwrap()
}

impl Guest {
    /// A machine whose driver has not touched the device.
    pub(crate) fn new(device: impl Device) -> Self {
        Self::with_ram(device, ram())
    }

    pub(crate) fn with_ram(device: impl Device, ram: GuestRam) -> Self {
        let vm = Arc::new(FakeVm::default());
        let queues = device.queues().len();
        let device = pci(device);
        let interrupts = Arc::new(Msix::new(vm.clone() as Arc<dyn Vm>, device.vectors()));
        for vector in 0..u64::from(device.vectors()) {
            interrupts
                .write_table(vector * 16, &[0xfee0_0000u64.to_le_bytes(), vector.to_le_bytes()].concat());
        }
        interrupts.set_control(1 << 15);
        let context = DeviceContext { ram: ram.clone(), interrupts, vm: vm.clone(), bar: 0xc010_0000 };
        let function = device.attach(context).unwrap();
        Self { ram, vm, function, queues: vec![DriverQueue::default(); queues], next_buffer: BUFFERS }
    }

    /// A machine whose driver is ready.
    pub(crate) fn ready(device: impl Device) -> Self {
        let guest = Self::new(device);
        guest.initialise(VERSION_1 | EVENT_INDEX | INDIRECT);
        guest
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(offset, data);
    }

    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn read16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.function.bar_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub(crate) fn status(&self) -> u8 {
        let mut data = [0];
        self.function.bar_read(0x14, &mut data);
        data[0]
    }

    pub(crate) fn set_status(&self, status: u8) {
        self.write(0x14, &[status]);
    }

    pub(crate) fn rings(queue: u16) -> (u64, u64, u64) {
        let base = RINGS + u64::from(queue) * 0x1_0000;
        (base, base + 0x4000, base + 0x8000)
    }

    /// Reset, features, FEATURES_OK.
    pub(crate) fn negotiate(&self, features: u64) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        for half in 0..2u32 {
            self.write(0x08, &half.to_le_bytes());
            self.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        self.set_status(11);
    }

    pub(crate) fn set_up_queue(&self, queue: u16) {
        let (descriptors, driver, device) = Self::rings(queue);
        self.ram.memory().write_slice(&[0; 0x1_0000], GuestAddress(descriptors)).unwrap();
        self.write(0x16, &queue.to_le_bytes());
        self.write(0x18, &SIZE.to_le_bytes());
        self.write(0x1a, &(queue + 1).to_le_bytes());
        for (register, address) in [(0x20, descriptors), (0x28, driver), (0x30, device)] {
            self.write(register, &(address as u32).to_le_bytes());
            self.write(register + 4, &((address >> 32) as u32).to_le_bytes());
        }
        self.write(0x1c, &1u16.to_le_bytes());
    }

    /// Everything a driver does until DRIVER_OK.
    pub(crate) fn initialise(&self, features: u64) {
        self.negotiate(features);
        self.write(0x10, &0u16.to_le_bytes());
        (0..self.queues.len() as u16).for_each(|queue| self.set_up_queue(queue));
        self.set_status(15);
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.ram.memory().write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.ram.memory().read_obj(GuestAddress(at)).unwrap()
    }

    pub(crate) fn descriptor(&self, table: u64, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let place = table + 16 * u64::from(index);
        self.put(place, at);
        self.put(place + 8, len);
        self.put(place + 12, flags);
        self.put(place + 14, next);
    }

    /// Makes a chain available without ringing; gives its head.
    pub(crate) fn add(&mut self, queue: u16, buffers: &[Buffer<'_>]) -> u16 {
        let (table, ..) = Self::rings(queue);
        let first = self.queues[usize::from(queue)].next_free;
        let mut writable = Vec::new();
        for (offset, buffer) in (0..).zip(buffers) {
            let index = (first + offset) % SIZE;
            let (len, mut flags) = match buffer {
                Buffer::Out(data) => {
                    self.ram.memory().write_slice(data, GuestAddress(self.next_buffer)).unwrap();
                    (data.len() as u32, 0)
                }
                Buffer::In(len) => {
                    // Rubbish, so that what the device leaves alone shows.
                    self.ram
                        .memory()
                        .write_slice(&vec![0xa5; *len as usize], GuestAddress(self.next_buffer))
                        .unwrap();
                    writable.push((self.next_buffer, *len));
                    (*len, 2)
                }
            };
            flags |= u16::from(usize::from(offset) + 1 < buffers.len());
            self.descriptor(table, index, self.next_buffer, len, flags, (index + 1) % SIZE);
            self.next_buffer += u64::from(len);
        }
        if self.next_buffer > RAM - (8 << 20) {
            self.next_buffer = BUFFERS;
        }
        let state = &mut self.queues[usize::from(queue)];
        state.next_free = (first + buffers.len() as u16) % SIZE;
        state.writable.insert(first.into(), writable);
        self.make_available(queue, first);
        first
    }

    /// Puts a head into the available ring.
    pub(crate) fn make_available(&mut self, queue: u16, head: u16) {
        let (_, driver, _) = Self::rings(queue);
        let slot = self.queues[usize::from(queue)].next_available;
        self.put(driver + 4 + 2 * u64::from(slot % SIZE), head);
        self.queues[usize::from(queue)].next_available = slot.wrapping_add(1);
        // Ask for an interrupt after every chain.
        let wanted = self.queues[usize::from(queue)].next_used;
        self.put(driver + 4 + 2 * u64::from(SIZE), wanted);
        self.put(driver + 2, slot.wrapping_add(1));
    }

    pub(crate) fn ring(&self, queue: u16) {
        self.write(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// The next chain that the device gave back, if it has.
    pub(crate) fn poll(&mut self, queue: u16) -> Option<Used> {
        let (_, _, device) = Self::rings(queue);
        let next = self.queues[usize::from(queue)].next_used;
        let index: u16 = self.get(device + 2);
        if index == next {
            return None;
        }
        let slot = device + 4 + 8 * u64::from(next % SIZE);
        let (id, len): (u32, u32) = (self.get(slot), self.get(slot + 4));
        let state = &mut self.queues[usize::from(queue)];
        state.next_used = next.wrapping_add(1);
        let mut data = Vec::new();
        for (at, len) in state.writable.remove(&id).unwrap_or_default() {
            let mut bytes = vec![0; len as usize];
            self.ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            data.extend(bytes);
        }
        assert!(len as usize <= data.len(), "the device says it wrote more than there is");
        Some(Used { id, len, data })
    }

    /// Waits until the device gives a chain back.
    pub(crate) fn wait(&mut self, queue: u16) -> Used {
        let start = Instant::now();
        loop {
            if let Some(used) = self.poll(queue) {
                return used;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the device did not answer");
            assert_eq!(self.status() & 0x40, 0, "the device needs a reset");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The same driver with `device` in place of its own, restored from it and still quiet. The driver's own device is left
    /// quiet for good.
    pub(crate) fn moved_to(&self, device: impl Device) -> Self {
        self.function.quiesce();
        let saved = self.function.save().unwrap();
        let mut next = Self::with_ram(device, self.ram.clone());
        next.function.restore(&saved).unwrap();
        assert_eq!(next.function.save().unwrap(), saved, "what was restored is what was saved");
        next.queues = self.queues.clone();
        next.next_buffer = self.next_buffer;
        assert_eq!(next.status(), self.status());
        next
    }

    /// Adds a chain, rings and waits.
    pub(crate) fn request(&mut self, queue: u16, buffers: &[Buffer<'_>]) -> Used {
        let head = self.add(queue, buffers);
        self.ring(queue);
        let used = self.wait(queue);
        assert_eq!(used.id, u32::from(head));
        used
    }

    /// Waits until the device says it needs a reset.
    pub(crate) fn wait_for_needs_reset(&self) {
        let start = Instant::now();
        while self.status() & 0x40 == 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "the device accepts it");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.function.shut_down();
    }
}
