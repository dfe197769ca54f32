//! Split virtqueues (virtio 1.3 §2.7): the only place that touches `virtio-queue`.
//!
//! A [`Queue`] is made from a validated copy of what the driver configured and keeps that copy until it is stopped, so
//! nothing the guest writes later can move its rings. Devices see [`Queue::pop`] → [`Chain`] → [`Queue::complete`].

mod chain;

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use guest_memory::GuestRam;
use machine::GuestEvent;
use machine::pci::Msix;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

pub use chain::{Chain, ChainError, Reader, Writer};

/// "No vector" (virtio 1.3 §4.1.5.1.3).
pub const NO_VECTOR: u16 = 0xffff;

static BROKEN: GuestEvent = GuestEvent::new("broken virtqueue");

/// What a driver configured for a queue, and how far the device has come.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueueState {
    /// Entries; a power of two.
    #[prost(uint32, tag = "1")]
    pub size: u32,
    /// MSI-X vector or [`NO_VECTOR`].
    #[prost(uint32, tag = "2")]
    pub vector: u32,
    /// The driver enabled it.
    #[prost(bool, tag = "3")]
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    #[prost(fixed64, tag = "4")]
    pub descriptors: u64,
    /// Guest-physical address of the driver area (available ring).
    #[prost(fixed64, tag = "5")]
    pub driver: u64,
    /// Guest-physical address of the device area (used ring).
    #[prost(fixed64, tag = "6")]
    pub device: u64,
    /// Next entry of the available ring to be taken.
    #[prost(uint32, tag = "7")]
    pub next_available: u32,
    /// Next entry of the used ring to be filled.
    #[prost(uint32, tag = "8")]
    pub next_used: u32,
}

/// Why a queue cannot be used (any more). The device then needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Size, alignment or place of the rings is impossible.
    #[error("The queue's rings are misplaced")]
    BadRings,
    /// The available index ran ahead, or an index points outside the table.
    #[error("A ring index is out of bounds")]
    BadIndex,
    /// A descriptor chain breaks the rules.
    #[error("A descriptor chain is broken")]
    BadChain(#[from] ChainError),
    /// The rings cannot be reached.
    #[error("The rings cannot be reached")]
    Memory,
}

/// How a queue tells the driver of used buffers.
#[derive(Clone, Debug)]
pub struct Interrupt {
    msix: Arc<Msix>,
    vector: u16,
}

impl Interrupt {
    /// Raises `vector` of `msix`; nothing for [`NO_VECTOR`].
    pub fn new(msix: Arc<Msix>, vector: u16) -> Self {
        Self { msix, vector }
    }

    /// Raises the interrupt.
    pub fn raise(&self) {
        if self.vector != NO_VECTOR {
            self.msix.signal(self.vector);
        }
    }
}

/// A queue in use.
#[derive(Debug)]
pub struct Queue {
    inner: virtio_queue::Queue,
    ram: GuestRam,
    interrupt: Interrupt,
    vector: u16,
    event_index: bool,
    /// The driver was told not to ring while the device is at work.
    silenced: bool,
}

impl Queue {
    /// Takes a queue into use as its driver configured it, or as a snapshot left it.
    pub fn new(
        state: &QueueState,
        event_index: bool,
        ram: &GuestRam,
        interrupt: Interrupt,
    ) -> Result<Self, QueueError> {
        let size = u16::try_from(state.size).map_err(|_| QueueError::BadRings)?;
        let bad = |_| QueueError::BadRings;
        let mut inner = virtio_queue::Queue::new(size).map_err(bad)?;
        let entries = u64::from(size);
        let table = entries.saturating_mul(16);
        let driver_area = entries.saturating_mul(2).saturating_add(6);
        let device_area = entries.saturating_mul(8).saturating_add(6);
        // All three in RAM: a read-only range would make the rings' content outlive the guest's writes to it.
        let in_ram = ram.is_writable(state.descriptors, table)
            && ram.is_writable(state.driver, driver_area)
            && ram.is_writable(state.device, device_area);
        if !in_ram {
            return Err(QueueError::BadRings);
        }
        inner.try_set_size(size).map_err(bad)?;
        inner.try_set_desc_table_address(GuestAddress(state.descriptors)).map_err(bad)?;
        inner.try_set_avail_ring_address(GuestAddress(state.driver)).map_err(bad)?;
        inner.try_set_used_ring_address(GuestAddress(state.device)).map_err(bad)?;
        inner.set_next_avail(u16::try_from(state.next_available).map_err(|_| QueueError::BadRings)?);
        inner.set_next_used(u16::try_from(state.next_used).map_err(|_| QueueError::BadRings)?);
        inner.set_event_idx(event_index);
        inner.set_ready(true);
        let vector = interrupt.vector;
        Ok(Self { inner, ram: ram.clone(), interrupt, vector, event_index, silenced: false })
    }

    /// What the driver configured, and how far the device has come.
    pub fn state(&self) -> QueueState {
        QueueState {
            size: self.inner.size().into(),
            vector: self.vector.into(),
            enabled: true,
            descriptors: self.inner.desc_table(),
            driver: self.inner.avail_ring(),
            device: self.inner.used_ring(),
            next_available: self.inner.next_avail().into(),
            next_used: self.inner.next_used().into(),
        }
    }

    /// Takes the next chain the driver made available; `None` when there is none, and the driver will ring for the next.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        loop {
            let memory = self.ram.memory();
            let head = self.inner.iter(memory).map_err(queue_error)?.next().map(|chain| chain.head_index());
            if let Some(head) = head {
                if !self.silenced {
                    self.inner.disable_notification(memory).map_err(queue_error)?;
                    self.silenced = true;
                }
                if head >= self.inner.size() {
                    return Err(QueueError::BadIndex);
                }
                return Ok(Some(Chain::walk(&self.ram, self.inner.desc_table(), self.inner.size(), head)?));
            }
            self.silenced = false;
            if !self.inner.enable_notification(memory).map_err(queue_error)? {
                return Ok(None);
            }
        }
    }

    /// Whether the driver has made a chain available that was not taken. Does not ask to be rung.
    pub fn has_work(&self) -> bool {
        let available = self.inner.avail_idx(self.ram.memory(), Ordering::Acquire);
        available.is_ok_and(|index| index.0 != self.inner.next_avail())
    }

    /// Puts the last popped chain back; it comes first again. Only before anything was completed after it. Of several chains the
    /// last one goes back first.
    pub fn put_back(&mut self, _chain: Chain) {
        self.inner.go_to_previous_position();
    }

    /// Gives a chain back to the driver with the number of bytes its [`Writer`] wrote, and interrupts if asked to.
    pub fn complete(&mut self, chain: Chain) -> Result<(), QueueError> {
        let memory = self.ram.memory();
        self.inner.add_used(memory, chain.head(), chain.written()).map_err(queue_error)?;
        if self.inner.needs_notification(memory).map_err(queue_error)? {
            self.interrupt.raise();
        }
        Ok(())
    }

    /// Gives several chains back at once: the driver sees all of them or none, as it must with the buffers of one network frame.
    pub fn complete_together(&mut self, chains: &[Chain]) -> Result<(), QueueError> {
        let memory = self.ram.memory();
        let old = self.inner.next_used();
        let mut next = old;
        let at = |offset: u64| GuestAddress(self.inner.used_ring().saturating_add(offset));
        for chain in chains {
            let slot = u64::from(next.checked_rem(self.inner.size()).unwrap_or(0));
            let element = u64::from(chain.head()) | u64::from(chain.written()) << 32;
            let place = at(slot.saturating_mul(8).saturating_add(4));
            memory.write_obj(element.to_le(), place).map_err(|_| QueueError::Memory)?;
            next = next.wrapping_add(1);
        }
        memory.store(next.to_le(), at(2), Ordering::Release).map_err(|_| QueueError::Memory)?;
        self.inner.set_next_used(next);
        if self.is_awaited(old, next)? {
            self.interrupt.raise();
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt when the used index goes from `old` to `new` (virtio 1.3 §2.7.7.2).
    fn is_awaited(&self, old: u16, new: u16) -> Result<bool, QueueError> {
        if !self.event_index {
            return Ok(true);
        }
        // The index is written before the driver's wish is read; the driver does the same the other way round.
        fence(Ordering::SeqCst);
        let offset = u64::from(self.inner.size()).saturating_mul(2).saturating_add(4);
        let place = GuestAddress(self.inner.avail_ring().saturating_add(offset));
        let event: u16 = self.ram.memory().load(place, Ordering::Relaxed).map_err(|_| QueueError::Memory)?;
        let beyond = new.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
        Ok(beyond < new.wrapping_sub(old))
    }

    /// The memory in which the queue's chains lie.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

fn queue_error(error: virtio_queue::Error) -> QueueError {
    use virtio_queue::Error;
    match error {
        Error::InvalidAvailRingIndex | Error::InvalidDescriptorIndex => QueueError::BadIndex,
        Error::GuestMemory(_) | Error::AddressOverflow => QueueError::Memory,
        _ => QueueError::BadRings,
    }
}

/// Notes that a device's queue broke.
pub(crate) fn note_broken(device: &'static str, error: QueueError) {
    BROKEN.note(|| {
        format!(
            "{device}: {error}{}",
            match error {
                QueueError::BadChain(cause) => format!(": {cause}"),
                _ => String::new(),
            }
        )
    });
}

#[cfg(test)]
mod tests;
