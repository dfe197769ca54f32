//! The engine library of the product: sandboxes as folders, the shim that owns a running one, and the vmm role that is
//! the virtual machine itself.
//!
//! Three processes share this crate (DESIGN §1): a *client* (`viv run`, `viv ls`…) that comes and goes, one *shim* for
//! each running sandbox, and the confined *vmm* below it. Nothing here prints: the command line does that.

pub mod assemble;
pub mod assets;
pub mod build_vm;
pub mod check;
pub mod client;
mod clock;
pub mod control;
pub mod copy;
mod deadline;
mod ending;
pub mod engine;
mod environment;
mod error;
pub mod escape;
mod files;
pub mod folder;
mod guest_log;
pub mod host;
mod host_clock;
mod hostile;
pub mod images;
pub mod launch;
pub mod logs;
pub mod naming;
pub mod needs;
pub mod network;
pub mod places;
pub mod plan;
mod room;
pub mod shim;
pub mod spec;
mod steward;
mod sys;
pub mod vmm;
pub mod workspace;

pub use ::packet;
pub use error::{Error, Result};
