//! The root bus: finds the function that an ECAM or BAR access is for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hv::Vm;

use super::config::Config;
use super::{
    BAR_BYTES, DeviceContext, Identity, MAX_VECTORS, MSIX_PENDING, MSIX_TABLE, Msix, MsixState, PciDevice,
    PciFunction, RestoreError, SaveError,
};
use crate::layout;

/// The host bridge: a plain PCI Express host bridge without anything in it.
const BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [6, 0, 0],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Bytes of configuration space that one function has in ECAM.
const FUNCTION_BYTES: u64 = 4096;

/// Why a device cannot be plugged into a slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The number is 0 (the host bridge) or too large.
    #[error("PCI slot {0} does not exist")]
    Missing(u8),
    /// Another device is there.
    #[error("PCI slot {0} is taken")]
    Taken(u8),
    /// The device asks for no or too many vectors.
    #[error("The device in PCI slot {0} asks for {1} interrupt vectors")]
    Vectors(u8, u16),
    /// The host refused what the device needs.
    #[error("The device in PCI slot {0} cannot be set up")]
    Attach(u8, #[source] std::io::Error),
}

/// One slot's state, as a snapshot holds it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SlotState {
    /// The slot.
    #[prost(uint32, tag = "1")]
    pub slot: u32,
    /// The configuration header and capabilities.
    #[prost(bytes = "vec", tag = "2")]
    pub config: Vec<u8>,
    /// MSI-X.
    #[prost(message, optional, tag = "3")]
    pub msix: Option<MsixState>,
    /// The function's own state.
    #[prost(bytes = "vec", tag = "4")]
    pub function: Vec<u8>,
}

struct Slot {
    config: Mutex<Config>,
    msix: Arc<Msix>,
    function: Arc<dyn PciFunction>,
}

pub(crate) struct PciBus {
    bridge: Mutex<Config>,
    slots: Vec<Option<Slot>>,
}

fn locked(config: &Mutex<Config>) -> std::sync::MutexGuard<'_, Config> {
    config.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PciBus {
    /// Plugs the devices in.
    pub(crate) fn new(
        devices: BTreeMap<u8, Box<dyn PciDevice>>,
        ram: &guest_memory::GuestRam,
        vm: &Arc<dyn Vm>,
    ) -> Result<Self, SlotError> {
        let mut slots: Vec<_> = (0..layout::PCI_SLOTS).map(|_| None).collect();
        for (slot, device) in devices {
            let place =
                slots.get_mut(usize::from(slot)).filter(|_| slot != 0).ok_or(SlotError::Missing(slot))?;
            let (identity, capabilities, vectors) =
                (device.identity(), device.capabilities(), device.vectors());
            if vectors == 0 || vectors > MAX_VECTORS {
                return Err(SlotError::Vectors(slot, vectors));
            }
            let msix = Arc::new(Msix::new(vm.clone(), vectors));
            let bar = layout::bar_address(slot);
            let config = Config::function(identity, bar as u32, msix.clone(), &capabilities);
            let context = DeviceContext { ram: ram.clone(), interrupts: msix.clone(), vm: vm.clone(), bar };
            let function = device.attach(context).map_err(|error| SlotError::Attach(slot, error))?;
            *place = Some(Slot { config: Mutex::new(config), msix, function });
        }
        Ok(Self { bridge: Mutex::new(Config::bridge(BRIDGE)), slots })
    }

    pub(crate) fn functions(&self) -> impl Iterator<Item = &Arc<dyn PciFunction>> {
        self.slots.iter().flatten().map(|slot| &slot.function)
    }

    fn slot(&self, slot: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    /// Reads configuration space at an offset into ECAM. What does not exist reads as ones.
    pub(crate) fn config_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // Bus, device and function in one number: anything but functions 0 of bus 0 is empty.
        let (function, register) = (offset / FUNCTION_BYTES, (offset % FUNCTION_BYTES) as usize);
        let len = data.len().min(FUNCTION_BYTES as usize - register);
        let data = &mut data[..len];
        if function == 0 {
            return locked(&self.bridge).read(register, data);
        }
        let Some(slot) = self.slot(function / 8).filter(|_| function % 8 == 0) else { return };
        let window = locked(&slot.config).window(register, len);
        if let Some(access) = window {
            let mut value = [0; 4];
            slot.bar_read(access.offset, &mut value[..access.len]);
            if let Some(window) = locked(&slot.config).window_data() {
                window.copy_from_slice(&value);
            }
        }
        locked(&slot.config).read(register, data);
    }

    /// Writes configuration space.
    pub(crate) fn config_write(&self, offset: u64, data: &[u8]) {
        let (function, register) = (offset / FUNCTION_BYTES, (offset % FUNCTION_BYTES) as usize);
        let data = &data[..data.len().min(FUNCTION_BYTES as usize - register)];
        let Some(slot) = self.slot(function / 8).filter(|_| function % 8 == 0 && function != 0) else {
            return;
        };
        let mut config = locked(&slot.config);
        if let Some(access) = config.window(register, data.len()) {
            let len = access.len.min(data.len());
            drop(config);
            return slot.bar_write(access.offset, &data[..len]);
        }
        config.write(register, data);
    }

    /// Reads the 32-bit window. What does not answer reads as ones.
    pub(crate) fn memory_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let (slot, at) = (offset / layout::PCI_SLOT_BYTES, offset % layout::PCI_SLOT_BYTES);
        let Some(slot) = self.slot(slot).filter(|_| at < BAR_BYTES) else { return };
        if locked(&slot.config).answers() {
            slot.bar_read(at, data);
        }
    }

    /// Writes the 32-bit window.
    pub(crate) fn memory_write(&self, offset: u64, data: &[u8]) {
        let (slot, at) = (offset / layout::PCI_SLOT_BYTES, offset % layout::PCI_SLOT_BYTES);
        let Some(slot) = self.slot(slot).filter(|_| at < BAR_BYTES) else { return };
        if locked(&slot.config).answers() {
            slot.bar_write(at, data);
        }
    }

    /// The state of every slot; the functions are quiet.
    pub(crate) fn save(&self) -> Result<Vec<SlotState>, SaveError> {
        let slots = (0u32..).zip(&self.slots).filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        slots
            .map(|(number, slot)| {
                Ok(SlotState {
                    slot: number,
                    config: locked(&slot.config).save(),
                    msix: Some(slot.msix.save()),
                    function: slot.function.save()?,
                })
            })
            .collect()
    }

    /// Takes saved states; the bus must have the same devices.
    pub(crate) fn restore(&self, states: &[SlotState]) -> Result<(), RestoreError> {
        let present = (0u32..).zip(&self.slots).filter(|(_, slot)| slot.is_some()).map(|(number, _)| number);
        if !present.eq(states.iter().map(|state| state.slot)) {
            return Err(RestoreError::Mismatch("the machine has other PCI slots".to_owned()));
        }
        for (state, slot) in states.iter().zip(self.slots.iter().flatten()) {
            let fits = locked(&slot.config).restore(&state.config)
                && state.msix.as_ref().is_some_and(|msix| slot.msix.restore(msix));
            if !fits {
                return Err(RestoreError::Mismatch(format!("another device is in PCI slot {}", state.slot)));
            }
            slot.function.restore(&state.function)?;
        }
        Ok(())
    }
}

impl Slot {
    fn bar_read(&self, offset: u64, data: &mut [u8]) {
        match offset {
            MSIX_PENDING.. => self.msix.read_pending(offset - MSIX_PENDING, data),
            MSIX_TABLE.. => self.msix.read_table(offset - MSIX_TABLE, data),
            _ => self.function.bar_read(offset, data),
        }
    }

    fn bar_write(&self, offset: u64, data: &[u8]) {
        match offset {
            MSIX_PENDING.. => {}
            MSIX_TABLE.. => self.msix.write_table(offset - MSIX_TABLE, data),
            _ => self.function.bar_write(offset, data),
        }
    }
}

#[cfg(test)]
mod tests;
