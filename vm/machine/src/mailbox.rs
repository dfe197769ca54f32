//! The multiprocessor wake-up mailbox (ACPI 6.4 §5.2.12.19) as an MMIO page.
//!
//! Layout: u16 command, u16 reserved, u32 APIC id, u64 wake-up vector. Writing command 1 starts the processor; the command
//! then reads as 0, which is the acknowledgement that the guest spins for.

use std::sync::{Arc, Mutex, PoisonError};

use hv::Vm;

use crate::events::GuestEvent;
use crate::pci::RestoreError;

/// Bytes of the mailbox that mean something; the rest of the page reads as zeros.
const LEN: usize = 16;
const WAKE_UP: u16 = 1;

/// The mailbox's state, as a snapshot holds it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MailboxState {
    /// Its 16 bytes that mean something. The command is 0: a wake-up is done when its write is.
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
}

static REFUSED: GuestEvent = GuestEvent::new("wake-up of a processor refused");

pub(crate) struct Mailbox {
    vm: Arc<dyn Vm>,
    bytes: Mutex<[u8; LEN]>,
}

impl Mailbox {
    pub(crate) fn new(vm: Arc<dyn Vm>) -> Self {
        Self { vm, bytes: Mutex::new([0; LEN]) }
    }

    pub(crate) fn save(&self) -> MailboxState {
        MailboxState { bytes: self.bytes.lock().unwrap_or_else(PoisonError::into_inner).to_vec() }
    }

    /// Wakes nobody: which processors run is their own state.
    pub(crate) fn restore(&self, state: &MailboxState) -> Result<(), RestoreError> {
        let bytes = state.bytes.as_slice().try_into();
        let bytes = bytes.map_err(|_| RestoreError::Mismatch("the mailbox has another size".to_owned()))?;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        Ok(())
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        for (value, at) in data.iter().zip(offset as usize..) {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = *value;
            }
        }
        let [c0, c1, _, _, a0, a1, a2, a3, vector @ ..] = *bytes;
        if offset >= 2 || u16::from_le_bytes([c0, c1]) != WAKE_UP {
            return;
        }
        let (id, entry) = (u32::from_le_bytes([a0, a1, a2, a3]), u64::from_le_bytes(vector));
        if let Err(error) = self.vm.wake_ap(id, entry) {
            REFUSED.note(|| format!("APIC id {id}, entry {entry:#x}: {error}"));
        }
        bytes[..2].fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_fake::FakeVm;

    #[test]
    fn command_one_wakes_and_reads_back_zero() {
        let vm = Arc::new(FakeVm::default());
        let mailbox = Mailbox::new(vm.clone());
        mailbox.write(4, &1u32.to_le_bytes());
        mailbox.write(8, &0x9a100u64.to_le_bytes());
        assert!(vm.woken().is_empty());
        mailbox.write(0, &1u16.to_le_bytes());
        assert_eq!(vm.woken(), [(1, 0x9a100)]);
        let mut command = [9; 2];
        mailbox.read(0, &mut command);
        assert_eq!(command, [0, 0]);
    }

    #[test]
    fn any_access_is_defined() {
        let mailbox = Mailbox::new(Arc::new(FakeVm::default()));
        for offset in 0..4096 + 8 {
            for len in 0..=8 {
                let mut data = [0xaa; 8];
                mailbox.write(offset, &data[..len]);
                mailbox.read(offset, &mut data[..len]);
            }
        }
    }
}
