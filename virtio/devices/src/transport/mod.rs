//! The PCI transport (virtio 1.3 §4.1): modern only, MSI-X only.
//!
//! It owns the device's status, its features and the queues' configuration, checks every register access, and freezes
//! the configuration from DRIVER_OK to reset: what a device works with is a validated copy (see [`crate::queue`]).

mod function;
mod registers;

use std::sync::Arc;

use hv::Vm;
use machine::pci::{Capability, DeviceContext, Identity, PciDevice, PciFunction};

use crate::device::Device;

/// Where the parts lie in BAR 0.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const DEVICE_LEN: u64 = 0x1000;
const NOTIFY: u64 = 0x3000;
/// Bytes between two queues' notification addresses.
const NOTIFY_STRIDE: u64 = 4;
/// Most queues of a device.
const MAX_QUEUES: usize = 64;

/// Red Hat's vendor id, under which virtio devices go.
const VENDOR: u16 = 0x1af4;

/// Makes a virtio device a PCI device: `builder.device(slot, virtio_devices::pci(device))`.
pub fn pci(device: impl Device) -> Box<dyn PciDevice> {
    Box::new(VirtioPci { device: Box::new(device) })
}

struct VirtioPci {
    device: Box<dyn Device>,
}

impl VirtioPci {
    fn queues(&self) -> usize {
        self.device.queues().len().min(MAX_QUEUES)
    }
}

/// `struct virtio_pci_cap` (virtio 1.3 §4.1.4) without its first two bytes.
fn capability(kind: u8, offset: u64, len: u64, extra: &[u8]) -> Vec<u8> {
    let size = 16u8.saturating_add(u8::try_from(extra.len()).unwrap_or(0));
    let mut body = vec![size, kind, 0, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(extra);
    body
}

impl PciDevice for VirtioPci {
    fn identity(&self) -> Identity {
        let identity = self.device.identity();
        Identity {
            vendor: VENDOR,
            device: identity.id.saturating_add(0x1040),
            revision: 1,
            class: identity.class,
            subsystem_vendor: VENDOR,
            subsystem: identity.id.saturating_add(0x40),
        }
    }

    fn capabilities(&self) -> Vec<Capability> {
        let notify_len = (self.queues() as u64).saturating_mul(NOTIFY_STRIDE);
        let stride = (NOTIFY_STRIDE as u32).to_le_bytes();
        let part = |body| Capability { body, window: false };
        vec![
            part(capability(1, COMMON, registers::LEN as u64, &[])),
            part(capability(2, NOTIFY, notify_len, &stride)),
            part(capability(3, ISR, 1, &[])),
            part(capability(4, DEVICE, DEVICE_LEN, &[])),
            Capability { body: capability(5, 0, 0, &[0; 4]), window: true },
        ]
    }

    fn vectors(&self) -> u16 {
        // One for each queue and one for the configuration.
        u16::try_from(self.queues()).unwrap_or(0).saturating_add(1)
    }

    fn attach(self: Box<Self>, context: DeviceContext) -> std::io::Result<Arc<dyn PciFunction>> {
        let function = function::Function::new(self.device, &context)?;
        register_doorbells(&*context.vm, context.bar, &function)?;
        Ok(Arc::new(function))
    }
}

/// Lets the engine ring the queues' bells itself, where it can. They stay for the life of the machine: the BAR cannot move,
/// and a ring before DRIVER_OK finds nobody.
fn register_doorbells(vm: &dyn Vm, bar: u64, function: &function::Function) -> std::io::Result<()> {
    let Some(doorbells) = vm.doorbells() else { return Ok(()) };
    let mut gpa = bar.saturating_add(NOTIFY);
    for bell in function.bells() {
        doorbells.register(gpa, bell).map_err(std::io::Error::other)?;
        gpa = gpa.saturating_add(NOTIFY_STRIDE);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
