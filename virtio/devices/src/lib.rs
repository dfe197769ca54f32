//! Virtio devices (virtio 1.3) behind the modern PCI transport.
//!
//! The guest's kernel is hostile: every register, ring index, descriptor and request is checked before it is used, guest
//! memory is reached only through `vm-memory`'s volatile copies, and what only a broken driver does is counted. Devices
//! never name a host file or socket; what lies behind them are the traits of `backends` and `fuse-wire`.
//!
//! ```text
//! vCPU ─ registers ─> transport ─ start/reset ─> worker thread ─ chains ─> device ─ trait ─> back end
//!        notify ───────────────── bell ────────────┘
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::panic)
)]

mod block;
mod console;
mod device;
mod entropy;
mod fs;
mod net;
mod pmem;
mod queue;
mod transport;
mod vsock;
mod worker;

#[cfg(test)]
mod small_tests;
#[cfg(test)]
mod testing;

pub use block::Block;
pub use console::{Console, ConsoleInput};
pub use device::{Active, Device, DeviceIdentity, FIRST_TOKEN};
pub use entropy::Rng;
pub use fs::Fs;
pub use net::{Net, NetHost};
pub use pmem::Pmem;
pub use queue::{Chain, ChainError, Interrupt, NO_VECTOR, Queue, QueueError, QueueState, Reader, Writer};
pub use transport::pci;
pub use vsock::{Vsock, VsockHost};
