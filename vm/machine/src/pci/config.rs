//! A type-0 configuration header with capabilities (PCI 3.0 §6.1).

use std::sync::Arc;

use super::{BAR_BYTES, Capability, Identity, MSIX_PENDING, MSIX_TABLE, Msix};

/// Bytes of the header and capabilities; ECAM offers 4096, of which the rest is zero (no extended capability).
const LEN: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const ID_VENDOR: u8 = 0x09;
const ID_MSIX: u8 = 0x11;

/// An access through virtio's configuration window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowAccess {
    pub(super) offset: u64,
    pub(super) len: usize,
}

pub(super) struct Config {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bar: u32,
    /// Offset of the MSI-X capability.
    msix_at: Option<usize>,
    msix: Option<Arc<Msix>>,
    /// Offset of the window capability.
    window_at: Option<usize>,
}

impl Config {
    /// A header without BAR, capabilities or interrupts: the host bridge.
    pub(super) fn bridge(identity: Identity) -> Self {
        let mut config =
            Self { bytes: [0; LEN], writable: [0; LEN], bar: 0, msix_at: None, msix: None, window_at: None };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        config.put(0x08, &[identity.revision, interface, sub, base]);
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config
    }

    /// A function with BAR 0 at `bar`, MSI-X and these capabilities, which must fit.
    pub(super) fn function(
        identity: Identity,
        bar: u32,
        msix: Arc<Msix>,
        capabilities: &[Capability],
    ) -> Self {
        let mut config = Self::bridge(identity);
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        config.writable[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
        config.bytes[STATUS] = STATUS_CAPABILITIES;
        config.bar = bar;
        config.put(BAR0, &bar.to_le_bytes());
        let size = !(BAR_BYTES as u32 - 1);
        config.writable[BAR0..BAR0 + 4].copy_from_slice(&size.to_le_bytes());

        let mut link = CAPABILITIES;
        let mut at = FIRST_CAPABILITY;
        let mut add = |config: &mut Self, id: u8, body: &[u8]| {
            config.bytes[link] = at as u8;
            config.put(at, &[id, 0]);
            config.put(at + 2, body);
            let place = at;
            link = at + 1;
            at = (at + 2 + body.len()).next_multiple_of(4);
            place
        };
        let mut body = (msix.vectors() - 1).to_le_bytes().to_vec();
        body.extend((MSIX_TABLE as u32).to_le_bytes());
        body.extend((MSIX_PENDING as u32).to_le_bytes());
        config.msix_at = Some(add(&mut config, ID_MSIX, &body));
        config.msix = Some(msix);
        for capability in capabilities {
            let place = add(&mut config, ID_VENDOR, &capability.body);
            if capability.window {
                config.window_at = Some(place);
                config.writable[place + 4] = 0xff;
                config.writable[place + 8..place + 16].fill(0xff);
            }
        }
        config
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn byte(&self, at: usize) -> u8 {
        if let (Some(place), Some(msix)) = (self.msix_at, &self.msix)
            && at == place + 3
        {
            return self.bytes[at] | (msix.control() >> 8) as u8;
        }
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// Reads any bytes.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
    }

    /// Writes any bytes; what cannot be written stays.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        for (value, at) in data.iter().zip(offset..) {
            if self.msix_at.is_some_and(|place| at == place + 3)
                && let Some(msix) = &self.msix
            {
                msix.set_control(u16::from(*value) << 8);
                continue;
            }
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else { return };
            *byte = (*byte & !mask) | (value & mask);
        }
    }

    /// Whether BAR 0 answers at its place.
    pub(super) fn answers(&self) -> bool {
        let [b0, b1, b2, b3] = [0, 1, 2, 3].map(|at| self.bytes[BAR0 + at]);
        self.bytes[COMMAND] & COMMAND_MEMORY as u8 != 0 && u32::from_le_bytes([b0, b1, b2, b3]) == self.bar
    }

    /// The access to BAR 0 that reading or writing `offset..offset + len` means, if it touches the window's data.
    pub(super) fn window(&self, offset: usize, len: usize) -> Option<WindowAccess> {
        let place = self.window_at?;
        let data = place + 16;
        if offset >= data + 4 || offset + len <= data || self.bytes[place + 4] != 0 {
            return None;
        }
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| self.bytes[place + at + byte]));
        let access = WindowAccess { offset: word(8).into(), len: word(12) as usize };
        matches!(access.len, 1 | 2 | 4).then_some(access).filter(|access| {
            access.offset + access.len as u64 <= BAR_BYTES && access.offset % access.len as u64 == 0
        })
    }

    /// The window's data bytes.
    pub(super) fn window_data(&mut self) -> Option<&mut [u8]> {
        let data = self.window_at? + 16;
        self.bytes.get_mut(data..data + 4)
    }

    /// What the guest has written, for a snapshot.
    pub(super) fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes what [`Config::save`] gave, as far as the guest can write it; `false` if it is another device's.
    pub(super) fn restore(&mut self, saved: &[u8]) -> bool {
        let same = saved.len() == LEN
            && (0..LEN).all(|at| {
                let data = self.window_at.is_some_and(|place| (place + 16..place + 20).contains(&at));
                data || (saved[at] ^ self.bytes[at]) & !self.writable[at] == 0
            });
        if same {
            self.bytes.copy_from_slice(saved);
        }
        same
    }
}
