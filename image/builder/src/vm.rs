//! The machine that runs a build: what is asked of it. Who has one (a real machine, or QEMU in development) implements this.

use std::path::PathBuf;

use crate::{BuildError, Kernel};

/// Serial numbers of the disks, as the guest's agent knows them (`agent_proto::abi::serial`).
pub mod serial {
    /// The read-only EROFS image that becomes the root.
    pub const BASE: &str = "viv-base";
    /// The blank disk for the root's upper layer.
    pub const DISK: &str = "viv-disk";
    /// The script to run.
    pub const SCRIPT: &str = "viv-script";
    /// The packages.
    pub const INPUT: &str = "viv-input";
    /// Where the result is written to.
    pub const OUTPUT: &str = "viv-output";
}

/// A virtio-blk disk of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its serial number, by which the guest finds it.
    pub serial: &'static str,
    /// The raw file behind it; may be sparse.
    pub file: PathBuf,
    /// Whether the guest may write to it.
    pub read_only: bool,
}

/// What to boot.
#[derive(Debug, Clone)]
pub struct Boot<'a> {
    /// The kernel and its modules; the initial file system is made by the implementor (agent and the modules it needs).
    pub kernel: &'a Kernel,
    /// Parameters for the agent; the implementor adds the console, the time, and what its machine needs.
    pub cmdline: String,
    /// The disks.
    pub disks: Vec<Disk>,
    /// How much memory the build needs, in MiB.
    pub memory_mib: u32,
    /// How many processors are of use to it.
    pub cpus: u32,
}

/// Why a machine did not run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmError {
    /// The host's disk became full.
    NoRoom,
    /// Anything else, as a sentence for the user.
    Other(String),
}

impl From<VmError> for BuildError {
    fn from(error: VmError) -> Self {
        match error {
            VmError::NoRoom => Self::NoRoom,
            VmError::Other(why) => Self::Machine(why),
        }
    }
}

/// Somebody who can run a guest.
pub trait BuilderVm {
    /// Boots, hands over every line the guest writes to its first serial port, and returns when the guest has powered itself off.
    ///
    /// # Errors
    /// The machine could not be started or died.
    fn run(&self, boot: &Boot<'_>, line: &mut dyn FnMut(&str)) -> Result<(), VmError>;
}
