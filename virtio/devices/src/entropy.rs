//! virtio-rng (virtio 1.3 §5.4): fills the driver's buffers from the host's random source.

use backends::EntropySource;
use machine::GuestEvent;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::QueueError;

const QUEUE_SIZE: u16 = 16;
/// Most bytes given for one request: a guest that asks for megabytes at a time only burns the host's time.
const AT_ONCE: usize = 4096;

static NO_ENTROPY: GuestEvent = GuestEvent::new("the host gave no random bytes");

/// A source of random bytes.
pub struct Rng {
    source: Box<dyn EntropySource>,
}

impl Rng {
    /// A device over `source`.
    pub fn new(source: Box<dyn EntropySource>) -> Self {
        Self { source }
    }
}

impl Device for Rng {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 4, name: "virtio-rng", class: [0, 0xff, 0] }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| {
            let mut bytes = [0; AT_ONCE];
            let len = AT_ONCE.min(chain.writable_len() as usize);
            let Some(bytes) = bytes.get_mut(..len) else { return };
            match self.source.fill(bytes) {
                Ok(()) => {
                    chain.writer(ram).write(bytes);
                }
                Err(error) => NO_ENTROPY.note(|| error.to_string()),
            }
        })
    }

    fn reset(&mut self) {}
}
