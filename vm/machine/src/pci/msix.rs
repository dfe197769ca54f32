//! MSI-X (PCI 3.0 §6.8.2): the vector table, the pending bits and their masks.

use std::sync::{Arc, Mutex, PoisonError};

use hv::{Msi, Vm};

use crate::events::GuestEvent;

static REFUSED: GuestEvent = GuestEvent::new("interrupt message refused");

/// Bytes of a table entry: address, data, control.
const ENTRY: usize = 16;
const CONTROL_MASKED: u32 = 1;
const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

/// The state of a function's MSI-X, as a snapshot holds it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MsixState {
    /// The vector table as the guest reads it.
    #[prost(bytes = "vec", tag = "1")]
    pub table: Vec<u8>,
    /// Vectors that wait for their mask to go.
    #[prost(uint32, repeated, tag = "2")]
    pub pending: Vec<u32>,
    /// The writable bits of the capability's control word.
    #[prost(uint32, tag = "3")]
    pub control: u32,
}

struct State {
    table: Vec<[u8; ENTRY]>,
    pending: Vec<bool>,
    control: u16,
}

/// A function's MSI-X vectors.
pub struct Msix {
    vm: Arc<dyn Vm>,
    state: Mutex<State>,
}

impl Msix {
    /// Vectors whose messages go to `vm`: all masked, MSI-X off.
    pub fn new(vm: Arc<dyn Vm>, vectors: u16) -> Self {
        let mut entry = [0; ENTRY];
        entry[12] = CONTROL_MASKED as u8;
        let count = usize::from(vectors);
        Self {
            vm,
            state: Mutex::new(State { table: vec![entry; count], pending: vec![false; count], control: 0 }),
        }
    }

    /// Vectors in the table.
    pub fn vectors(&self) -> u16 {
        self.lock().table.len() as u16
    }

    /// Raises a vector: delivers its message, or marks it pending while it is masked. A vector that does not exist, or
    /// any while MSI-X is off, raises nothing.
    pub fn signal(&self, vector: u16) {
        let mut state = self.lock();
        let vector = usize::from(vector);
        if state.control & ENABLE == 0 || vector >= state.table.len() {
            return;
        }
        if state.is_masked(vector) {
            state.pending[vector] = true;
        } else {
            self.deliver(state.table[vector]);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, entry: [u8; ENTRY]) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, ..] = entry;
        let msi = Msi {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        };
        if let Err(error) = self.vm.signal_msi(msi) {
            REFUSED.note(|| format!("{:#x} <- {:#x}: {error}", msi.address, msi.data));
        }
    }

    /// Delivers what waited for a mask that is gone.
    fn flush(&self, state: &mut State) {
        if state.control & ENABLE == 0 {
            return;
        }
        for vector in 0..state.table.len() {
            if state.pending[vector] && !state.is_masked(vector) {
                state.pending[vector] = false;
                self.deliver(state.table[vector]);
            }
        }
    }

    /// The writable bits of the capability's control word.
    pub(crate) fn control(&self) -> u16 {
        self.lock().control
    }

    /// Sets the capability's control word as the driver does: bit 15 enables MSI-X, bit 14 masks every vector.
    pub fn set_control(&self, value: u16) {
        let mut state = self.lock();
        state.control = value & (ENABLE | MASK_ALL);
        self.flush(&mut state);
    }

    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            *byte = state.table.get(at / ENTRY).map_or(0, |entry| entry[at % ENTRY]);
        }
    }

    /// Writes the vector table as the driver does; any length and offset.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for (value, at) in data.iter().zip(offset as usize..) {
            if let Some(entry) = state.table.get_mut(at / ENTRY) {
                // Only the mask bit of the control word exists.
                entry[at % ENTRY] = match at % ENTRY {
                    12 => value & CONTROL_MASKED as u8,
                    13.. => 0,
                    _ => *value,
                };
            }
        }
        self.flush(&mut state);
    }

    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (byte, at) in data.iter_mut().zip(offset as usize..) {
            let bit = |bit: usize| state.pending.get(at * 8 + bit).copied().unwrap_or(false);
            *byte = (0..8).fold(0, |bits, index| bits | u8::from(bit(index)) << index);
        }
    }

    /// The state for a snapshot.
    pub fn save(&self) -> MsixState {
        let state = self.lock();
        let pending = (0u32..).zip(&state.pending).filter(|(_, pending)| **pending).map(|(vector, _)| vector);
        MsixState { table: state.table.concat(), pending: pending.collect(), control: state.control.into() }
    }

    /// Takes a saved state; `false` if it is of another size.
    pub fn restore(&self, saved: &MsixState) -> bool {
        let mut state = self.lock();
        let fits = saved.table.len() == state.table.len() * ENTRY
            && saved.pending.iter().all(|vector| (*vector as usize) < state.pending.len());
        if fits {
            let (entries, _) = saved.table.as_chunks::<ENTRY>();
            state.table.copy_from_slice(entries);
            state.pending.fill(false);
            saved.pending.iter().for_each(|vector| state.pending[*vector as usize] = true);
            state.control = saved.control as u16 & (ENABLE | MASK_ALL);
        }
        fits
    }
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msix").field("vectors", &self.vectors()).finish_non_exhaustive()
    }
}

impl State {
    fn is_masked(&self, vector: usize) -> bool {
        self.control & MASK_ALL != 0 || self.table[vector][12] & CONTROL_MASKED as u8 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_fake::FakeVm;

    fn programmed() -> (Arc<FakeVm>, Msix) {
        let vm = Arc::new(FakeVm::default());
        let msix = Msix::new(vm.clone(), 2);
        msix.write_table(16, &0xfee0_1000u64.to_le_bytes());
        msix.write_table(24, &0x41u32.to_le_bytes());
        (vm, msix)
    }

    #[test]
    fn a_masked_vector_waits() {
        let (vm, msix) = programmed();
        msix.set_control(ENABLE);
        msix.signal(1);
        assert!(vm.messages().is_empty());
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [2, 0, 0, 0, 0, 0, 0, 0]);
        msix.write_table(28, &0u32.to_le_bytes());
        assert_eq!(vm.messages(), [Msi { address: 0xfee0_1000, data: 0x41 }]);
        msix.signal(1);
        assert_eq!(vm.messages().len(), 2);
    }

    #[test]
    fn the_function_mask_and_enable_hold_everything_back() {
        let (vm, msix) = programmed();
        msix.write_table(28, &0u32.to_le_bytes());
        msix.signal(1);
        msix.set_control(ENABLE | MASK_ALL);
        msix.signal(1);
        msix.signal(7);
        assert!(vm.messages().is_empty());
        msix.set_control(ENABLE);
        assert_eq!(vm.messages().len(), 1);
    }

    #[test]
    fn state_survives_a_save() {
        let (vm, msix) = programmed();
        msix.set_control(ENABLE);
        msix.signal(1);
        let saved = msix.save();
        let other = Msix::new(vm.clone(), 2);
        assert!(other.restore(&saved));
        assert_eq!(other.save(), saved);
        assert!(!Msix::new(vm.clone(), 3).restore(&saved));
        other.write_table(28, &[0; 4]);
        assert_eq!(vm.messages().len(), 1);
    }
}
