//! The device on the bus: register file, notifications, start and reset, saved state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell::Doorbell;
use guest_memory::GuestRam;
use machine::pci::{DeviceContext, Msix, PciFunction, RestoreError, SaveError};
use prost::Message;

use super::registers::{
    Action, LEN, Offer, RING_EVENT_IDX, RING_INDIRECT_DESC, Registers, VERSION_1, status,
};
use super::{COMMON, DEVICE, DEVICE_LEN, MAX_QUEUES, NOTIFY, NOTIFY_STRIDE};
use crate::device::{Device, DeviceIdentity};
use crate::queue::{Interrupt, NO_VECTOR, Queue, QueueError, note_broken};
use crate::worker::Worker;

/// The version of [`Saved`].
const SAVED_VERSION: u32 = 1;

/// A device's state in a snapshot.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    device_id: u32,
    #[prost(message, optional, tag = "3")]
    registers: Option<Registers>,
    #[prost(bool, tag = "4")]
    needs_reset: bool,
    #[prost(bytes = "vec", tag = "5")]
    device: Vec<u8>,
}

pub(super) struct Function {
    identity: DeviceIdentity,
    offer: Offer,
    registers: Mutex<Registers>,
    worker: Worker,
    ram: GuestRam,
    msix: Arc<Msix>,
}

impl Function {
    pub(super) fn new(device: Box<dyn Device>, context: &DeviceContext) -> std::io::Result<Self> {
        let mut queue_sizes = device.queues();
        queue_sizes.truncate(MAX_QUEUES);
        let offer = Offer {
            features: device.features() | VERSION_1 | RING_INDIRECT_DESC | RING_EVENT_IDX,
            queue_sizes,
            vectors: context.interrupts.vectors(),
        };
        Ok(Self {
            identity: device.identity(),
            registers: Mutex::new(Registers::new(&offer)),
            offer,
            worker: Worker::new(device, &context.ram, &context.interrupts)?,
            ram: context.ram.clone(),
            msix: context.interrupts.clone(),
        })
    }

    pub(super) fn bells(&self) -> &[Doorbell] {
        self.worker.bells()
    }

    fn locked(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queues as configured, checked and ready to be used.
    fn queues(&self, registers: &Registers) -> Result<Vec<Option<Queue>>, QueueError> {
        let event_index = registers.driver_features & RING_EVENT_IDX != 0;
        let sizes = registers.queues.iter().zip(&self.offer.queue_sizes);
        sizes
            .map(|(state, largest)| {
                if !state.enabled {
                    return Ok(None);
                }
                if state.size > u32::from(*largest) {
                    return Err(QueueError::BadRings);
                }
                let vector = u16::try_from(state.vector).unwrap_or(NO_VECTOR);
                let interrupt = Interrupt::new(self.msix.clone(), vector);
                Queue::new(state, event_index, &self.ram, interrupt).map(Some)
            })
            .collect()
    }

    fn start(&self, registers: &Registers) {
        match self.queues(registers) {
            Ok(queues) => {
                self.worker.start(queues, registers.driver_features, config_vector(registers));
                self.bells().iter().for_each(Doorbell::ring);
            }
            Err(error) => {
                note_broken(self.identity.name, error);
                self.worker.fail();
            }
        }
    }

    fn write_common(&self, offset: u64, data: &[u8]) {
        let mut registers = self.locked();
        match registers.write(&self.offer, offset, data) {
            Action::Nothing => {}
            Action::Start => self.start(&registers),
            Action::Reset => self.worker.reset(),
        }
    }

    fn notify(&self, offset: u64) {
        let queue = usize::try_from(offset.checked_div(NOTIFY_STRIDE).unwrap_or(0)).ok();
        if let Some(bell) = queue.and_then(|queue| self.bells().get(queue)) {
            bell.ring();
        }
    }
}

fn config_vector(registers: &Registers) -> u16 {
    u16::try_from(registers.config_vector).unwrap_or(NO_VECTOR)
}

/// Fills `data` with what lies at `offset` of `source`; zeros behind its end.
fn copy(source: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| source.get(offset..)).unwrap_or(&[]);
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = rest.get(index).copied().unwrap_or(0);
    }
}

impl PciFunction for Function {
    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            COMMON..0x40 => {
                let generation = self.worker.config(|_, generation| generation);
                let image: [u8; LEN] =
                    self.locked().image(&self.offer, self.worker.needs_reset(), generation);
                copy(&image, offset, data);
            }
            DEVICE.. if offset < DEVICE.saturating_add(DEVICE_LEN) => {
                self.worker.config(|config, _| copy(config, offset.saturating_sub(DEVICE), data));
            }
            // The ISR too: with MSI-X it is not used (§4.1.4.5).
            _ => data.fill(0),
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..0x40 => self.write_common(offset, data),
            NOTIFY.. => self.notify(offset.saturating_sub(NOTIFY)),
            _ => {}
        }
    }

    fn quiesce(&self) {
        self.worker.quiesce();
    }

    fn resume(&self) {
        self.worker.resume();
    }

    fn save(&self) -> Result<Vec<u8>, SaveError> {
        let mut registers = self.locked().clone();
        let device = self.worker.with(|cell| {
            for (state, queue) in registers.queues.iter_mut().zip(&cell.queues) {
                if let Some(queue) = queue {
                    *state = queue.state();
                }
            }
            cell.device.save()
        });
        let device = device.map_err(|reason| SaveError { device: self.identity.name, reason })?;
        let saved = Saved {
            version: SAVED_VERSION,
            device_id: self.identity.id.into(),
            registers: Some(registers),
            needs_reset: self.worker.needs_reset(),
            device,
        };
        Ok(saved.encode_to_vec())
    }

    fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        let mismatch = |what: &str| RestoreError::Mismatch(format!("{}: {what}", self.identity.name));
        let saved = Saved::decode(state).map_err(RestoreError::Decode)?;
        if saved.version != SAVED_VERSION || saved.device_id != u32::from(self.identity.id) {
            return Err(mismatch("another device or version"));
        }
        let registers = saved.registers.ok_or_else(|| mismatch("no registers"))?;
        let fits = registers.queues.len() == self.offer.queue_sizes.len()
            && registers.driver_features & !self.offer.features == 0;
        if !fits {
            return Err(mismatch("other queues or features"));
        }
        self.worker.quiesce();
        self.worker.set_needs_reset(saved.needs_reset);
        if registers.has(status::DRIVER_OK) && !saved.needs_reset {
            let queues = self.queues(&registers).map_err(|_| mismatch("impossible queues"))?;
            self.worker.start(queues, registers.driver_features, config_vector(&registers));
        }
        self.worker.restore(&saved.device)?;
        if saved.needs_reset {
            self.worker.fail();
        }
        *self.locked() = registers;
        Ok(())
    }

    fn shut_down(&self) {
        self.worker.shut_down();
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function").field("identity", &self.identity).finish_non_exhaustive()
    }
}
