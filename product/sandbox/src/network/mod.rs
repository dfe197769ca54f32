//! A sandbox's network, as far as its shim is concerned: the process beside the vmm that is its only way out, started and started again,
//! what it must know, and what it tells.
//!
//! ```text
//! guest ── virtio-net (vmm) ── frame ring ── gateway ── upstream
//!                                              │ one packet socket: policy, secrets, ports / records, questions
//!                                            shim ── files: policy, ports, log
//! ```
//! Without a gateway there is no network: nothing else of ours can make a connection. It is tried again after a pause that grows.

pub mod authority;
pub(crate) mod grants;
mod handover;
pub mod hints;
pub mod keeper;
pub mod log;
pub mod policy_files;
pub mod ports;
mod questions;
pub mod settings;
mod standing;
mod supervise;
mod surroundings;

pub use gateway::control::SecretText;
pub use handover::{Handover, Secrets};
pub(crate) use supervise::{Network, Source};
pub use surroundings::{ClientProxies, own_addresses, proxies};

/// The hidden role's name on the command line of `viv`.
pub const GATEWAY_ROLE: &str = "gateway";

/// What a guest is told when it is set up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guest {
    /// Roots to trust beside its own, in DER; ours is the first.
    pub(crate) certificates: Vec<Vec<u8>>,
    /// Variables of its sessions.
    pub(crate) variables: Vec<(String, String)>,
}
