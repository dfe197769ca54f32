//! virtio-pmem (virtio 1.3 §5.19): tells the guest where a read-only range lies, and answers its flushes.
//!
//! The range is a private mapping of the base image (see `guest_memory::RangeSpec`): nothing that the guest does there
//! reaches the file, so a flush has nothing to do.

use machine::GuestEvent;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::QueueError;

const FLUSH: u32 = 0;
const QUEUE_SIZE: u16 = 16;

static BAD_REQUEST: GuestEvent = GuestEvent::new("malformed pmem request");

/// A range of persistent memory.
#[derive(Clone, Copy, Debug)]
pub struct Pmem {
    gpa: u64,
    len: u64,
}

impl Pmem {
    /// The range that `MachineBuilder::pmem` placed: first guest-physical address and length in bytes.
    pub fn new(gpa: u64, len: u64) -> Self {
        Self { gpa, len }
    }
}

impl Device for Pmem {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 27, name: "virtio-pmem", class: [5, 0x80, 0] }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_pmem_config`: start, size.
    fn config(&self) -> Vec<u8> {
        [self.gpa.to_le_bytes(), self.len.to_le_bytes()].concat()
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| {
            let known = chain.reader(ram).read_array().map(u32::from_le_bytes) == Some(FLUSH);
            if !known {
                BAD_REQUEST.note(|| "not a flush".to_owned());
            }
            // 0 for success, and what Linux takes as an I/O error otherwise (§5.19.7).
            let answer: i32 = if known { 0 } else { -1 };
            chain.writer(ram).write(&answer.to_le_bytes());
        })
    }

    fn reset(&mut self) {}
}
