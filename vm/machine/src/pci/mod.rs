//! PCI: one root bus behind ECAM, type-0 functions with one 32-bit memory BAR, MSI-X only.
//!
//! A BAR's place is fixed by [`crate::layout`]: the guest may size it and switch it off, but a function answers at its own
//! place only. So doorbells are registered once and no mapping ever moves. Capabilities, MSI-X table and pending bits are
//! kept here; a [`PciFunction`] sees only its own part of the BAR.

mod bus;
mod config;
mod msix;

use std::sync::Arc;

use guest_memory::GuestRam;
use hv::Vm;

pub(crate) use bus::PciBus;
pub use bus::{SlotError, SlotState};
pub use msix::{Msix, MsixState};

/// Bytes of BAR 0.
pub const BAR_BYTES: u64 = 0x1_0000;
/// Where the MSI-X table starts in BAR 0; everything before belongs to the function.
pub const MSIX_TABLE: u64 = 0x8000;
/// Where the MSI-X pending bits start.
pub const MSIX_PENDING: u64 = 0xc000;
/// Most MSI-X vectors of a function.
pub const MAX_VECTORS: u16 = 256;

/// What the configuration header says about a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface as in bytes 0x0b, 0x0a, 0x09.
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// A vendor-specific capability (id 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// The bytes after id and next pointer.
    pub body: Vec<u8>,
    /// Whether the body is virtio's configuration access window (virtio 1.3 §4.1.4.9): its `bar`, `offset` and `length`
    /// fields can be written, and its last four bytes reach the BAR.
    pub window: bool,
}

/// A device before it is plugged in.
pub trait PciDevice: Send {
    /// What the configuration header says.
    fn identity(&self) -> Identity;
    /// Vendor-specific capabilities.
    fn capabilities(&self) -> Vec<Capability>;
    /// MSI-X vectors, at most [`MAX_VECTORS`].
    fn vectors(&self) -> u16;
    /// Plugs it in. Starts no thread: the process may confine itself before the first guest instruction. Fails when the
    /// process is out of descriptors.
    fn attach(self: Box<Self>, context: DeviceContext) -> std::io::Result<Arc<dyn PciFunction>>;
}

/// What a device may use of the machine.
#[derive(Clone)]
pub struct DeviceContext {
    /// Guest memory, for DMA.
    pub ram: GuestRam,
    /// The function's interrupts.
    pub interrupts: Arc<Msix>,
    /// The VM, for its doorbells.
    pub vm: Arc<dyn Vm>,
    /// Guest-physical address of BAR 0.
    pub bar: u64,
}

impl std::fmt::Debug for DeviceContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceContext").field("bar", &self.bar).finish_non_exhaustive()
    }
}

/// A device that is plugged in. Called from vCPU threads, several at once.
pub trait PciFunction: Send + Sync {
    /// Reads from the function's part of BAR 0 (`offset < MSIX_TABLE`); any length and alignment.
    fn bar_read(&self, offset: u64, data: &mut [u8]);
    /// Writes to it.
    fn bar_write(&self, offset: u64, data: &[u8]);
    /// Stops between two requests until [`PciFunction::resume`]; returns when nothing is in flight. The vCPUs are paused.
    fn quiesce(&self);
    /// Goes on after [`PciFunction::quiesce`].
    fn resume(&self);
    /// The function's state; only while it is quiet.
    fn save(&self) -> Result<Vec<u8>, SaveError>;
    /// Replaces the state of a freshly attached function, which stays quiet until [`PciFunction::resume`].
    fn restore(&self, state: &[u8]) -> Result<(), RestoreError>;
    /// Ends the function's threads; the machine is gone.
    fn shut_down(&self);
}

/// Why a device could not be saved.
#[derive(Debug, thiserror::Error)]
#[error("The {device} device cannot be saved: {reason}")]
pub struct SaveError {
    /// The device.
    pub device: &'static str,
    /// One clause that names the cause.
    pub reason: String,
}

/// Why a device's saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It cannot be decoded.
    #[error("The saved device state cannot be decoded")]
    Decode(#[source] prost::DecodeError),
    /// It belongs to another device, version or configuration.
    #[error("The saved device state does not fit: {0}")]
    Mismatch(String),
}
