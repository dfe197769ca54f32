use super::*;
use crate::pci::Capability;
use guest_memory::{GuestRam, RangeSpec};
use hv_fake::FakeVm;
use proptest::prelude::*;

/// A function whose part of the BAR is bytes.
struct Bytes(Mutex<Vec<u8>>);

struct BytesDevice;

impl PciDevice for BytesDevice {
    fn identity(&self) -> Identity {
        Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        }
    }
    fn capabilities(&self) -> Vec<Capability> {
        vec![
            Capability { body: vec![16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0], window: false },
            Capability { body: [vec![20, 5], vec![0; 16]].concat(), window: true },
        ]
    }
    fn vectors(&self) -> u16 {
        3
    }
    fn attach(self: Box<Self>, _: DeviceContext) -> std::io::Result<Arc<dyn PciFunction>> {
        Ok(Arc::new(Bytes(Mutex::new(vec![0; MSIX_TABLE as usize + 8]))))
    }
}

impl PciFunction for Bytes {
    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        data.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..data.len()]);
    }
    fn bar_write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
    }
    fn quiesce(&self) {}
    fn resume(&self) {}
    fn save(&self) -> Result<Vec<u8>, SaveError> {
        Ok(self.0.lock().unwrap().clone())
    }
    fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        *self.0.lock().unwrap() = state.to_vec();
        Ok(())
    }
    fn shut_down(&self) {}
}

const SLOT: u64 = 3;
const AT: u64 = SLOT * 8 * FUNCTION_BYTES;
const BAR: u64 = SLOT * layout::PCI_SLOT_BYTES;

fn bus() -> PciBus {
    let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x1000, file: None }]).unwrap();
    let vm: Arc<dyn Vm> = Arc::new(FakeVm::default());
    PciBus::new([(SLOT as u8, Box::new(BytesDevice) as Box<dyn PciDevice>)].into(), &ram, &vm).unwrap()
}

fn read32(bus: &PciBus, offset: u64) -> u32 {
    let mut data = [0; 4];
    bus.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// The capabilities' offsets by following the chain.
fn capabilities(bus: &PciBus) -> Vec<(u8, u64)> {
    let mut at = u64::from(read32(bus, AT + 0x34) & 0xff);
    let mut found = Vec::new();
    while at != 0 {
        let word = read32(bus, AT + at);
        found.push((word as u8, at));
        at = u64::from(word >> 8 & 0xff);
    }
    found
}

#[test]
fn only_plugged_functions_answer() {
    let bus = bus();
    assert_eq!(read32(&bus, 0), 0x0008_1b36);
    assert_eq!(read32(&bus, AT), 0x1042_1af4);
    assert_eq!(read32(&bus, AT + FUNCTION_BYTES), u32::MAX, "another function of the slot");
    assert_eq!(read32(&bus, 8 * FUNCTION_BYTES), u32::MAX, "an empty slot");
    assert_eq!(read32(&bus, AT + 0x100000), u32::MAX, "another bus");
    assert_eq!(read32(&bus, AT + 0x100), 0, "no extended capability");
    assert_eq!(capabilities(&bus).iter().map(|found| found.0).collect::<Vec<_>>(), [0x11, 9, 9]);
}

#[test]
fn the_bar_is_sized_as_the_specification_says() {
    let bus = bus();
    let bar = AT + BAR0_OFFSET;
    let place = read32(&bus, bar);
    assert_eq!(u64::from(place), layout::bar_address(SLOT as u8));
    bus.config_write(bar, &u32::MAX.to_le_bytes());
    assert_eq!(!(read32(&bus, bar) & !0xf), BAR_BYTES as u32 - 1);
    bus.config_write(bar, &place.to_le_bytes());
    bus.config_write(bar + 4, &u32::MAX.to_le_bytes());
    assert_eq!((read32(&bus, bar), read32(&bus, bar + 4)), (place, 0));
}

const BAR0_OFFSET: u64 = 0x10;

#[test]
fn the_bar_answers_only_while_decoding_is_on_at_its_place() {
    let bus = bus();
    let mut data = [0; 2];
    bus.memory_read(BAR, &mut data);
    assert_eq!(data, [0xff; 2]);
    bus.config_write(AT + 4, &[2]);
    bus.memory_write(BAR + 0x10, &[1, 2]);
    bus.memory_read(BAR + 0x10, &mut data);
    assert_eq!(data, [1, 2]);
    bus.config_write(AT + 0x10, &0xd000_0000u32.to_le_bytes());
    bus.memory_read(BAR + 0x10, &mut data);
    assert_eq!(data, [0xff; 2], "moved away");
}

#[test]
fn the_window_reaches_the_bar() {
    let bus = bus();
    let (_, window) = capabilities(&bus)[2];
    bus.config_write(AT + window + 8, &0x20u32.to_le_bytes());
    bus.config_write(AT + window + 12, &2u32.to_le_bytes());
    bus.config_write(AT + window + 16, &[7, 8]);
    bus.config_write(AT + 4, &[2]);
    let mut data = [0; 4];
    bus.memory_read(BAR + 0x20, &mut data);
    assert_eq!(data, [7, 8, 0, 0]);
    assert_eq!(read32(&bus, AT + window + 16) & 0xffff, 0x0807);
}

#[test]
fn a_saved_bus_is_restored() {
    let (bus, other) = (bus(), bus());
    bus.config_write(AT + 4, &[6]);
    bus.memory_write(BAR + 0x20, &[9]);
    bus.memory_write(BAR + MSIX_TABLE, &[5; 12]);
    let saved = bus.save().unwrap();
    other.restore(&saved).unwrap();
    assert_eq!(other.save().unwrap(), saved);
    let mut foreign = saved.clone();
    foreign[0].config[0] ^= 1;
    assert!(other.restore(&foreign).is_err());
    assert!(other.restore(&[]).is_err());
}

proptest! {
    #[test]
    fn any_access_is_defined(
        accesses in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..0x4_0000, proptest::collection::vec(any::<u8>(), 0..9)), 0..64),
    ) {
        let bus = bus();
        bus.config_write(AT + 4, &[2]);
        for (write, config, offset, mut data) in accesses {
            match (write, config) {
                (true, true) => bus.config_write(AT + offset % 0x1010, &data),
                (true, false) => bus.memory_write(BAR + offset, &data),
                (false, true) => bus.config_read(AT + offset % 0x1010, &mut data),
                (false, false) => bus.memory_read(BAR + offset, &mut data),
            }
        }
    }
}
