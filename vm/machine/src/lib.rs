//! One virtual machine: its layout, boot, ACPI tables, PCI bus, few fixed devices, and the run loop over any engine.
//!
//! [`MachineBuilder`] takes kernel, memory and devices; [`Machine::run`] runs the guest to its end; [`MachineHandle`]
//! pauses, saves and stops it from other threads. The guest is hostile: every access that leaves RAM has a defined result
//! (module `platform`), and what only a broken guest does is counted ([`GuestEvent`]).

mod acpi;
mod boot;
mod control;
mod events;
pub mod layout;
mod machine;
mod mailbox;
pub mod pci;
mod platform;
mod power;
mod serial;
mod sys;

pub use boot::BootError;
pub use control::Exit;
pub use events::GuestEvent;
pub use machine::{BuildError, Machine, MachineBuilder, MachineConfig, MachineHandle, PmemRange};
pub use mailbox::MailboxState;
pub use pci::SlotError;
pub use platform::{DEVICES_VERSION, DevicesState};
pub use serial::SerialState;
