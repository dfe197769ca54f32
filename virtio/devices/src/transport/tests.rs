use super::*;
use crate::device::{Active, DeviceIdentity};
use crate::queue::QueueError;
use crate::testing::{Buffer, EVENT_INDEX, Guest, INDIRECT, SIZE, VERSION_1};
use proptest::prelude::*;

/// Gives back the readable bytes, reversed.
struct Mirror {
    started: u32,
}

const FEATURE: u64 = 1 << 3;

impl Device for Mirror {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 42, name: "mirror", class: [0, 0xff, 0] }
    }
    fn features(&self) -> u64 {
        FEATURE
    }
    fn queues(&self) -> Vec<u16> {
        vec![64, 32]
    }
    fn config(&self) -> Vec<u8> {
        vec![1, 2, 3, 4, 5, 6]
    }
    fn start(&mut self, _: u64) {
        self.started += 1;
    }
    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| {
            let mut bytes = vec![0; chain.readable_len() as usize];
            chain.reader(ram).read(&mut bytes);
            bytes.reverse();
            chain.writer(ram).write(&bytes);
        })
    }
    fn reset(&mut self) {
        self.started = 0;
    }
    fn save(&self) -> Result<Vec<u8>, String> {
        Ok(self.started.to_le_bytes().to_vec())
    }
    fn restore(&mut self, state: &[u8]) -> Result<(), machine::pci::RestoreError> {
        self.started = u32::from_le_bytes(state.try_into().unwrap());
        Ok(())
    }
}

fn mirror() -> Mirror {
    Mirror { started: 0 }
}

#[test]
fn the_capabilities_name_every_part() {
    let device = pci(mirror());
    assert_eq!((device.identity().vendor, device.identity().device), (0x1af4, 0x1040 + 42));
    assert_eq!(device.vectors(), 3);
    let capabilities = device.capabilities();
    let kinds: Vec<u8> = capabilities.iter().map(|capability| capability.body[1]).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    for capability in &capabilities {
        assert_eq!(usize::from(capability.body[0]), capability.body.len() + 2, "cap_len");
        assert_eq!(capability.window, capability.body[1] == 5);
    }
}

#[test]
fn a_driver_gets_its_answers() {
    let mut guest = Guest::ready(mirror());
    assert_eq!(guest.status(), 15);
    for round in 0..100u8 {
        for queue in 0..2 {
            let used = guest.request(queue, &[Buffer::Out(&[1, 2, round]), Buffer::In(2), Buffer::In(4)]);
            assert_eq!((used.len, used.data), (3, vec![round, 2, 1, 0xa5, 0xa5, 0xa5]));
        }
    }
    guest.vm.wait_for_messages(200);
    assert!(guest.vm.messages().iter().all(|msi| msi.data == 1 || msi.data == 2), "the queues' vectors");
}

#[test]
fn features_are_accepted_only_as_offered() {
    let guest = Guest::new(mirror());
    for (features, accepted) in [
        (VERSION_1, true),
        (VERSION_1 | FEATURE | INDIRECT | EVENT_INDEX, true),
        (FEATURE, false),
        (VERSION_1 | 1 << 4, false),
        (VERSION_1 | 1 << 34, false),
        (0, false),
    ] {
        guest.negotiate(features);
        assert_eq!(guest.status() & 8 != 0, accepted, "{features:#x}");
    }
}

#[test]
fn features_are_frozen_once_accepted() {
    let guest = Guest::new(mirror());
    guest.negotiate(VERSION_1);
    guest.write(0x08, &0u32.to_le_bytes());
    guest.write(0x0c, &(FEATURE as u32).to_le_bytes());
    assert_eq!(guest.read32(0x0c), 0);
}

/// CVE-2026-5747: a queue that changes after its checks.
#[test]
fn nothing_of_a_queue_changes_from_driver_ok_to_reset() {
    let mut guest = Guest::ready(mirror());
    guest.write(0x16, &0u16.to_le_bytes());
    let before: Vec<u32> = (0x18..0x38).step_by(4).map(|offset| guest.read32(offset)).collect();
    guest.write(0x18, &64u16.to_le_bytes());
    guest.write(0x1a, &2u16.to_le_bytes());
    guest.write(0x1c, &0u16.to_le_bytes());
    for offset in (0x20..0x38).step_by(4) {
        guest.write(offset, &0xdead_0000u32.to_le_bytes());
    }
    guest.write(0x20, &[0xff; 8]);
    let after: Vec<u32> = (0x18..0x38).step_by(4).map(|offset| guest.read32(offset)).collect();
    assert_eq!(before, after);
    assert_eq!(guest.request(0, &[Buffer::Out(&[1]), Buffer::In(1)]).data, [1]);
    guest.set_status(0);
    guest.write(0x16, &0u16.to_le_bytes());
    assert_eq!((guest.read16(0x18), guest.read16(0x1c), guest.read32(0x20)), (64, 0, 0), "as new");
}

#[test]
fn a_reset_device_can_be_used_again() {
    let mut guest = Guest::ready(mirror());
    guest.request(0, &[Buffer::Out(&[1]), Buffer::In(1)]);
    for _ in 0..20 {
        // With chains still in the ring.
        guest.add(0, &[Buffer::Out(&[1]), Buffer::In(1)]);
        guest.ring(0);
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
        guest.queues.fill_with(Default::default);
        guest.initialise(VERSION_1);
        guest.request(0, &[Buffer::Out(&[7, 8]), Buffer::In(2)]);
    }
}

#[test]
fn rings_outside_ram_need_a_reset() {
    for (register, address) in [
        (0x20, crate::testing::RAM),
        (0x28, u64::MAX - 1),
        (0x30, crate::testing::RAM - 8),
        (0x30, crate::testing::RAM + 0x100),
    ] {
        let guest = Guest::new(mirror());
        guest.negotiate(VERSION_1);
        guest.set_up_queue(1);
        guest.set_up_queue(0);
        guest.write(0x16, &0u16.to_le_bytes());
        guest.set_status(11);
        // Enabled queues are fixed, so configure it anew.
        guest.negotiate(VERSION_1);
        guest.set_up_queue(1);
        guest.write(0x16, &0u16.to_le_bytes());
        guest.write(0x18, &SIZE.to_le_bytes());
        let (descriptors, driver, device) = Guest::rings(0);
        for (place, value) in [(0x20, descriptors), (0x28, driver), (0x30, device)] {
            let value: u64 = if place == register { address } else { value };
            guest.write(place, &value.to_le_bytes());
        }
        guest.write(0x1c, &1u16.to_le_bytes());
        guest.set_status(15);
        assert_eq!(guest.status(), 15 | 0x40, "{register:#x} = {address:#x}");
        guest.set_status(0);
        assert_eq!(guest.status(), 0);
    }
}

#[test]
fn a_queue_between_two_requests_survives_save_and_restore() {
    let mut guest = Guest::ready(mirror());
    for round in 0..40u8 {
        guest.request(0, &[Buffer::Out(&[round, 1]), Buffer::In(2)]);
        // Two chains wait while the device is held still.
        guest.function.quiesce();
        let heads = [
            guest.add(0, &[Buffer::Out(&[round, 2]), Buffer::In(2)]),
            guest.add(0, &[Buffer::Out(&[round, 3]), Buffer::In(2)]),
        ];
        guest.ring(0);
        assert_eq!(guest.poll(0), None, "it is quiet");
        let saved = guest.function.save().unwrap();
        let mut next = Guest::with_ram(mirror(), guest.ram.clone());
        next.function.restore(&saved).unwrap();
        assert_eq!(next.function.save().unwrap(), saved);
        next.queues = guest.queues.clone();
        assert_eq!(next.status(), 15);
        next.function.resume();
        for (head, byte) in heads.into_iter().zip([2, 3]) {
            let used = next.wait(0);
            assert_eq!((used.id, used.data), (u32::from(head), vec![byte, round]));
        }
        guest = next;
    }
}

#[test]
fn foreign_states_are_refused() {
    let guest = Guest::ready(mirror());
    guest.function.quiesce();
    let saved = guest.function.save().unwrap();
    let other = Guest::new(crate::Pmem::new(0, 0x20_0000));
    assert!(other.function.restore(&saved).is_err());
    assert!(other.function.restore(&[0xff; 40]).is_err());
    assert!(other.function.restore(&[]).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let offset =
        prop_oneof![0u64..0x48, 0x0ff0u64..0x1010, 0x1ff0u64..0x2010, 0x2ff0u64..0x3110, 0u64..0x8000];
    let statuses = proptest::sample::select(vec![0u8, 1, 3, 7, 8, 11, 15, 0x40, 0x80, 0xff]);
    prop_oneof![
        (offset.clone(), proptest::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(at, data)| Step::Write(at, data)),
        (offset, 0usize..9).prop_map(|(at, len)| Step::Read(at, len)),
        statuses.prop_map(|status| Step::Write(0x14, vec![status])),
    ]
}

proptest! {
    /// Any order of any accesses: no panic, the status never shows DRIVER_OK without what must come before it, and the
    /// device works after a proper reset.
    #[test]
    fn the_status_machine_holds(steps in proptest::collection::vec(step(), 0..200)) {
        let mut guest = Guest::new(mirror());
        for step in steps {
            match step {
                Step::Write(at, data) => guest.write(at, &data),
                Step::Read(at, len) => guest.function.bar_read(at, &mut vec![0; len]),
            }
            let status = guest.status() & !0x40;
            prop_assert!(status & 4 == 0 || status & 11 == 11, "{status:#x}");
            prop_assert!(status & 8 == 0 || status & 3 == 3, "{status:#x}");
        }
        guest.initialise(VERSION_1);
        prop_assert_eq!(guest.status(), 15);
        guest.request(0, &[Buffer::Out(&[1]), Buffer::In(1)]);
    }
}
