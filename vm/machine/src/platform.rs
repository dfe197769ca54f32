//! Where every access that leaves RAM goes. Any size, offset and alignment has a defined result: what does not exist reads
//! as ones and ignores writes.

use std::sync::Arc;

use hv::CpuIo;

use crate::control::{Control, Exit};
use crate::events::GuestEvent;
use crate::layout;
use crate::mailbox::{Mailbox, MailboxState};
use crate::pci::{PciBus, RestoreError, SaveError, SlotState};
use crate::power::{self, PowerRequest};
use crate::serial::{Serial, SerialState};

static UNKNOWN_MEMORY: GuestEvent = GuestEvent::new("access to an address without a device");

pub(crate) struct Platform {
    pub(crate) pci: PciBus,
    pub(crate) serial: Serial,
    /// Only on engines that start processors through it.
    pub(crate) mailbox: Option<Mailbox>,
    pub(crate) control: Arc<Control>,
}

/// The version of [`DevicesState`] that is written today.
pub const DEVICES_VERSION: u32 = 1;

/// The state of everything in a machine besides its vCPUs and memory, as a snapshot holds it. The power registers have none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DevicesState {
    /// [`DEVICES_VERSION`]; a newer one is refused.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Every PCI slot.
    #[prost(message, repeated, tag = "2")]
    pub slots: Vec<SlotState>,
    /// The serial port.
    #[prost(message, optional, tag = "3")]
    pub serial: Option<SerialState>,
    /// The wake-up mailbox, on engines that start processors through it.
    #[prost(message, optional, tag = "4")]
    pub mailbox: Option<MailboxState>,
}

impl Platform {
    /// The state of all devices, which are quiet.
    pub(crate) fn save(&self) -> Result<DevicesState, SaveError> {
        Ok(DevicesState {
            version: DEVICES_VERSION,
            slots: self.pci.save()?,
            serial: Some(self.serial.save()),
            mailbox: self.mailbox.as_ref().map(Mailbox::save),
        })
    }

    /// Takes a saved state; the machine must have the same devices. After an error it must not be run.
    pub(crate) fn restore(&self, state: &DevicesState) -> Result<(), RestoreError> {
        let mismatch = |what: &str| Err(RestoreError::Mismatch(what.to_owned()));
        if state.version != DEVICES_VERSION {
            return mismatch("another version");
        }
        match (&self.mailbox, &state.mailbox) {
            (Some(mailbox), Some(state)) => mailbox.restore(state)?,
            (None, None) => {}
            _ => return mismatch("processors are started in another way"),
        }
        let Some(serial) = &state.serial else { return mismatch("no serial port") };
        self.serial.restore(serial)?;
        self.pci.restore(&state.slots)
    }
}

enum Place {
    PciWindow(u64),
    Ecam(u64),
    Mailbox(u64),
    Nothing,
}

fn within(gpa: u64, start: u64, len: u64) -> Option<u64> {
    gpa.checked_sub(start).filter(|offset| *offset < len)
}

fn place(gpa: u64) -> Place {
    if let Some(offset) = within(gpa, layout::PCI_WINDOW_32, layout::PCI_WINDOW_32_LEN) {
        Place::PciWindow(offset)
    } else if let Some(offset) = within(gpa, layout::ECAM, layout::ECAM_LEN) {
        Place::Ecam(offset)
    } else if let Some(offset) = within(gpa, layout::MAILBOX, 0x1000) {
        Place::Mailbox(offset)
    } else {
        Place::Nothing
    }
}

impl CpuIo for Platform {
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match (place(gpa), &self.mailbox) {
            (Place::PciWindow(offset), _) => self.pci.memory_read(offset, data),
            (Place::Ecam(offset), _) => self.pci.config_read(offset, data),
            (Place::Mailbox(offset), Some(mailbox)) => mailbox.read(offset, data),
            _ => {
                UNKNOWN_MEMORY.note(|| format!("read of {} bytes at {gpa:#x}", data.len()));
                data.fill(0xff);
            }
        }
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match (place(gpa), &self.mailbox) {
            (Place::PciWindow(offset), _) => self.pci.memory_write(offset, data),
            (Place::Ecam(offset), _) => self.pci.config_write(offset, data),
            (Place::Mailbox(offset), Some(mailbox)) => mailbox.write(offset, data),
            _ => UNKNOWN_MEMORY.note(|| format!("write of {} bytes at {gpa:#x}", data.len())),
        }
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) {
        if let Some(offset) = serial_register(port) {
            return self.serial.read(offset, data);
        }
        for (byte, port) in data.iter_mut().zip(port..=u16::MAX) {
            *byte = power::read(port);
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        if let Some(offset) = serial_register(port) {
            return self.serial.write(offset, data);
        }
        for (byte, port) in data.iter().zip(port..=u16::MAX) {
            match power::written(port, *byte) {
                Some(PowerRequest::Off) => self.control.end(Exit::PowerOff),
                Some(PowerRequest::Reset) => self.control.end(Exit::Reset),
                None => {}
            }
        }
    }
}

fn serial_register(port: u16) -> Option<u16> {
    port.checked_sub(layout::SERIAL_PORT).filter(|offset| *offset < layout::SERIAL_PORTS)
}
