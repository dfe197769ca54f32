//! What the shim and the vmm say to each other.
//!
//! The vmm starts with an empty environment and one descriptor, a packet socket as its standard input. The first packet is
//! a [`Plan`] with every descriptor that the machine needs; the vmm opens nothing by a path.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::engine::Engine;

/// Which of the descriptors beside a [`Plan`] is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot(u32);

/// The machine to build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The engine.
    pub engine: Engine,
    /// `/dev/kvm`, with that engine.
    pub kvm: Option<Slot>,
    /// vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// The uncompressed kernel.
    pub kernel: Slot,
    /// The initramfs.
    pub initramfs: Slot,
    /// Words added to the kernel's command line.
    pub command_line: Vec<String>,
    /// Where the console's output goes: the writing end of a pipe.
    pub console: Slot,
    /// The base image.
    pub base: Option<Slot>,
    /// Block devices beside the base.
    pub disks: Vec<Disk>,
    /// Shared folders; none means no virtio-fs device.
    pub shares: Vec<SharedFolder>,
    /// The link to the network; none means no network card.
    pub network: Option<Network>,
}

/// The guest's side of a link to the network: what `frame_ring::pair` made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The rings.
    pub memory: Slot,
    /// Rung by the network for the guest.
    pub bell: Slot,
    /// Rung by the guest for the network.
    pub far_bell: Slot,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its serial in the guest, at most 20 bytes.
    pub serial: String,
    /// What it is made of.
    pub store: Store,
}

/// What a block device is made of. Never guessed from the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// A file of plain sectors.
    Raw {
        /// The file.
        file: Slot,
        /// Its length in bytes.
        length: u64,
        /// Whether writes are refused.
        read_only: bool,
        /// Whether the guest's flushes reach the host's disk. Not for what is thrown away when anything goes wrong.
        durable: bool,
    },
    /// The layered store, oldest layer first; the last one is written to.
    Layers {
        /// What the disk consists of.
        description: disk::Description,
        /// The layers' files.
        files: Vec<Slot>,
    },
    /// A sandbox's disk to look at: what is written is thrown away.
    Preview {
        /// The one layer.
        layer: Slot,
        /// An empty file for what is written.
        scratch: Slot,
        /// Bytes of the disk.
        size: u64,
    },
}

/// A folder of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedFolder {
    /// The folder, opened with `O_PATH`.
    pub folder: Slot,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// What the vmm is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToVmm {
    /// Build and run this machine. Comes once, with all descriptors.
    Start(Box<Plan>),
    /// Connect the stream that comes along to a vsock port of the guest.
    Connect {
        /// The port.
        port: u32,
    },
    /// Say what the engine counted.
    Count,
    /// The network was started again: link up, with the new memory that comes along and the same bells.
    Network,
    /// The network is gone: no carrier until there is another.
    NetworkDown,
}

/// What the guest's disks have written and do just now; tells a guest that goes down slowly from one that never will.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskWork {
    /// Writes, flushes and discards that the host has done.
    pub done: u64,
    /// Whether the host is at one now; a flush of much can take it minutes.
    pub busy: bool,
}

/// What the vmm tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromVmm {
    /// No guest instruction has run yet, and from here on the vmm is confined in these ways.
    Confined {
        /// In the words of `viv diagnose`.
        layers: Vec<String>,
    },
    /// What the engine counted.
    Counted {
        /// By name.
        counters: Vec<(String, u64)>,
        /// What its disks do.
        disks: DiskWork,
    },
    /// The machine could not be built or crashed.
    Failed {
        /// One sentence.
        why: String,
    },
    /// The host has no room for what the guest writes. From a disk that waits for room: at each attempt, and nothing when there is room.
    HostFull,
    /// The network broke its link, which was given up: no carrier until there is another.
    NetworkBroken,
    /// The guest powered off, or the vmm was told to end.
    PoweredOff,
    /// The guest reset its machine, which ends a sandbox as well: a reboot, or the end of a kernel panic.
    Reset,
}

/// Collects the descriptors for a plan.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one and says which it is.
    pub fn add(&mut self, descriptor: impl Into<OwnedFd>) -> Slot {
        self.0.push(descriptor.into());
        Slot(u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX))
    }

    /// All, in order, to be sent.
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(AsFd::as_fd).collect()
    }
}

/// The descriptors as the vmm got them; each is taken once.
#[derive(Debug)]
pub struct Received(Vec<Option<OwnedFd>>);

impl Received {
    /// All of them.
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// The one that is meant; `None` when it is missing or taken already.
    pub fn take(&mut self, slot: Slot) -> Option<OwnedFd> {
        self.0.get_mut(usize::try_from(slot.0).ok()?)?.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_gives_its_descriptor_once() {
        let mut all = Descriptors::new();
        let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        let (first, second) = (all.add(a), all.add(b));
        assert_ne!(first, second);
        let mut received = Received::new(all.0);
        assert!(received.take(second).is_some());
        assert!(received.take(second).is_none());
        assert!(received.take(first).is_some());
        assert!(received.take(Slot(9)).is_none());
    }
}
