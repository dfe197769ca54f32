//! The common configuration registers (virtio 1.3 §4.1.4.3) and the status state machine (§2.1, §3.1).

use machine::GuestEvent;

use crate::queue::{NO_VECTOR, QueueState};

/// Bytes of the common configuration structure.
pub(super) const LEN: usize = 64;

/// Status bits (virtio 1.3 §2.1).
pub(super) mod status {
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    pub(crate) const DRIVER: u8 = 2;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 0x40;
    pub(crate) const FAILED: u8 = 0x80;
}

/// Feature bits of the transport (virtio 1.3 §6).
pub(crate) const RING_INDIRECT_DESC: u64 = 1 << 28;
pub(crate) const RING_EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;

static IGNORED: GuestEvent = GuestEvent::new("virtio register write ignored");

/// What the driver set, in wire form for snapshots.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Registers {
    #[prost(uint32, tag = "1")]
    pub(super) device_feature_select: u32,
    #[prost(uint32, tag = "2")]
    pub(super) driver_feature_select: u32,
    #[prost(fixed64, tag = "3")]
    pub(super) driver_features: u64,
    #[prost(uint32, tag = "4")]
    pub(super) config_vector: u32,
    #[prost(uint32, tag = "5")]
    pub(super) status: u32,
    #[prost(uint32, tag = "6")]
    pub(super) queue_select: u32,
    #[prost(message, repeated, tag = "7")]
    pub(super) queues: Vec<QueueState>,
}

/// What a write to the registers asks the device to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Take the queues into use.
    Start,
    /// Forget everything.
    Reset,
}

/// What the device offers, fixed for its life.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    pub(super) features: u64,
    pub(super) queue_sizes: Vec<u16>,
    pub(super) vectors: u16,
}

impl Registers {
    pub(super) fn new(offer: &Offer) -> Self {
        let queue = |size: &u16| QueueState {
            size: u32::from(*size),
            vector: NO_VECTOR.into(),
            ..QueueState::default()
        };
        Self {
            config_vector: NO_VECTOR.into(),
            queues: offer.queue_sizes.iter().map(queue).collect(),
            ..Self::default()
        }
    }

    pub(super) fn has(&self, bits: u8) -> bool {
        self.status & u32::from(bits) == u32::from(bits)
    }

    fn queue(&self) -> Option<&QueueState> {
        self.queues.get(self.queue_select as usize)
    }

    /// The registers as the driver reads them.
    pub(super) fn image(&self, offer: &Offer, needs_reset: bool, generation: u8) -> [u8; LEN] {
        let window = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut fields = Vec::with_capacity(LEN);
        fields.extend(self.device_feature_select.to_le_bytes());
        fields.extend(window(offer.features, self.device_feature_select).to_le_bytes());
        fields.extend(self.driver_feature_select.to_le_bytes());
        fields.extend(window(self.driver_features, self.driver_feature_select).to_le_bytes());
        fields.extend((self.config_vector as u16).to_le_bytes());
        fields.extend((offer.queue_sizes.len() as u16).to_le_bytes());
        fields.push(self.status as u8 | if needs_reset { status::NEEDS_RESET } else { 0 });
        fields.push(generation); // config_generation
        fields.extend((self.queue_select as u16).to_le_bytes());
        // A queue that does not exist has size 0 (§4.1.4.3.1).
        let none = QueueState { vector: NO_VECTOR.into(), ..QueueState::default() };
        let queue = self.queue().unwrap_or(&none);
        fields.extend((queue.size as u16).to_le_bytes());
        fields.extend((queue.vector as u16).to_le_bytes());
        fields.extend(u16::from(queue.enabled).to_le_bytes());
        fields.extend((self.queue_select as u16).to_le_bytes()); // queue_notify_off
        fields.extend(queue.descriptors.to_le_bytes());
        fields.extend(queue.driver.to_le_bytes());
        fields.extend(queue.device.to_le_bytes());
        fields.resize(LEN, 0);
        fields.try_into().unwrap_or([0; LEN])
    }

    /// A write of `data` at `offset`. Only whole registers can be written; 64-bit ones also by halves (§4.1.3.1).
    pub(super) fn write(&mut self, offer: &Offer, offset: u64, data: &[u8]) -> Action {
        let value = match *data {
            [a] => u64::from(a),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            _ => return ignored(offset, data),
        };
        let done = match (offset, data.len()) {
            (0x00, 4) => {
                self.device_feature_select = value as u32;
                true
            }
            (0x08, 4) => {
                self.driver_feature_select = value as u32;
                true
            }
            (0x0c, 4) => self.set_driver_features(value as u32),
            (0x10, 2) => self.set_config_vector(offer, value as u16),
            (0x14, 1) => return self.set_status(offer, value as u8),
            (0x16, 2) => {
                self.queue_select = value as u32;
                true
            }
            _ => self.write_queue(offer, offset, data.len(), value),
        };
        if done { Action::Nothing } else { ignored(offset, data) }
    }

    fn set_driver_features(&mut self, value: u32) -> bool {
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK) {
            return false;
        }
        let (keep, set) = match self.driver_feature_select {
            0 => (0xffff_ffff_0000_0000, u64::from(value)),
            1 => (0xffff_ffff, u64::from(value) << 32),
            // Bits that this device does not know cannot be kept; that the driver wants them shows in FEATURES_OK.
            _ => return value == 0,
        };
        self.driver_features = self.driver_features & keep | set;
        true
    }

    fn set_config_vector(&mut self, offer: &Offer, vector: u16) -> bool {
        if self.has(status::DRIVER_OK) {
            return false;
        }
        self.config_vector = valid_vector(offer, vector).into();
        true
    }

    fn set_status(&mut self, offer: &Offer, value: u8) -> Action {
        if value == 0 {
            *self = Self::new(offer);
            return Action::Reset;
        }
        let value = value & !status::NEEDS_RESET;
        let old = self.status as u8;
        let new = value & !old;
        // A driver never clears a bit, and sets them in order (§3.1.1).
        let in_order = value & old == old
            && (new & status::DRIVER == 0 || value & status::ACKNOWLEDGE != 0)
            && (new & status::FEATURES_OK == 0 || value & status::DRIVER != 0)
            && (new & status::DRIVER_OK == 0 || old & status::FEATURES_OK != 0)
            && value & !(0x0f | status::FAILED) == 0;
        if !in_order || old & status::FAILED != 0 {
            return ignored(0x14, &[value]);
        }
        let mut accepted = value;
        if new & status::FEATURES_OK != 0 && !self.features_are_fine(offer) {
            accepted &= !status::FEATURES_OK;
        }
        self.status = accepted.into();
        if new & status::DRIVER_OK != 0 { Action::Start } else { Action::Nothing }
    }

    fn features_are_fine(&self, offer: &Offer) -> bool {
        self.driver_features & !offer.features == 0 && self.driver_features & VERSION_1 != 0
    }

    fn write_queue(&mut self, offer: &Offer, offset: u64, len: usize, value: u64) -> bool {
        // From DRIVER_OK to reset the configuration is what the device was started with.
        let frozen = self.has(status::DRIVER_OK) || !self.has(status::DRIVER);
        let index = self.queue_select as usize;
        let (Some(queue), Some(largest)) = (self.queues.get_mut(index), offer.queue_sizes.get(index)) else {
            return false;
        };
        if frozen || queue.enabled {
            return false;
        }
        let low = |old: u64| old & 0xffff_ffff_0000_0000 | value;
        let high = |old: u64| old & 0xffff_ffff | value << 32;
        match (offset, len) {
            (0x18, 2) if value != 0 && (value as u16).is_power_of_two() && value as u16 <= *largest => {
                queue.size = value as u32;
            }
            (0x1a, 2) => queue.vector = valid_vector(offer, value as u16).into(),
            (0x1c, 2) if value == 1 => queue.enabled = true,
            (0x20, 4) => queue.descriptors = low(queue.descriptors),
            (0x24, 4) => queue.descriptors = high(queue.descriptors),
            (0x28, 4) => queue.driver = low(queue.driver),
            (0x2c, 4) => queue.driver = high(queue.driver),
            (0x30, 4) => queue.device = low(queue.device),
            (0x34, 4) => queue.device = high(queue.device),
            (0x20, 8) => queue.descriptors = value,
            (0x28, 8) => queue.driver = value,
            (0x30, 8) => queue.device = value,
            _ => return false,
        }
        true
    }
}

/// A vector that does not exist reads back as none (§4.1.5.1.2.1).
fn valid_vector(offer: &Offer, vector: u16) -> u16 {
    if vector < offer.vectors { vector } else { NO_VECTOR }
}

fn ignored(offset: u64, data: &[u8]) -> Action {
    IGNORED.note(|| format!("{data:x?} at {offset:#x}"));
    Action::Nothing
}
