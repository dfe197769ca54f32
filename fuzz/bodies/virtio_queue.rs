//! A virtqueue whose rings and descriptors are the input.

use std::sync::Arc;

use guest_memory::{GuestRam, RangeSpec};
use hv_fake::FakeVm;
use machine::pci::Msix;
use virtio_devices::{Interrupt, NO_VECTOR, Queue, QueueState};
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 1 << 20;
const RINGS: u64 = 0x1000;
const DATA_MAX: u32 = 16 << 20;

/// The first two bytes choose size and features, the rest lies from the rings on.
pub(crate) fn drive(input: &[u8]) {
    let [choice, start, rest @ ..] = input else { return };
    let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: RAM, file: None }]).expect("the range is valid");
    let rest = &rest[..rest.len().min(0x8000)];
    ram.memory().write_slice(rest, GuestAddress(RINGS)).expect("the rings are in RAM");
    let state = QueueState {
        size: 1 << (choice & 7),
        vector: NO_VECTOR.into(),
        enabled: true,
        descriptors: RINGS,
        driver: RINGS + 0x800,
        device: RINGS + 0xc00,
        next_available: (*start).into(),
        next_used: 0,
    };
    let interrupt = Interrupt::new(Arc::new(Msix::new(Arc::new(FakeVm::default()), 1)), NO_VECTOR);
    let Ok(mut queue) = Queue::new(&state, choice & 8 != 0, &ram, interrupt) else { return };
    for _ in 0..64 {
        let Ok(Some(mut chain)) = queue.pop() else { return };
        let (readable, writable) = (chain.readable_len(), chain.writable_len());
        assert!(readable.saturating_add(writable) <= DATA_MAX);
        let mut bytes = vec![0; readable as usize + 1];
        assert_eq!(chain.reader(&ram).read(&mut bytes), readable as usize);
        let written = chain.writer(&ram).write(&bytes);
        assert_eq!(chain.written() as usize, written);
        assert!(written <= writable as usize);
        if queue.complete(chain).is_err() {
            return;
        }
    }
}
