//! The initial RAM disk of a sandbox: the agent as `/init`, and the few kernel modules that it needs to reach its root.
//!
//! The archive depends on nothing but its input (no times, no owners, no host files), so that the same agent and kernel give the same
//! bytes and a cached machine stays valid. The modules come from the kernel's verified package; their dependencies are read from the modules
//! themselves, because the package has no `modules.dep` (that is made when it is installed).
//!
//! Layout: `/init`, `/dev/console`, `/modules/NAME.ko`, and `/modules/order`, whose lines are a virtio device id in decimal (or `*`) and
//! the modules to load when such a device is there, in the order to load them.

mod cpio;
mod modinfo;
mod modules;

pub use modinfo::without_signature;
pub use modules::{Modules, normal_name};

use cpio::Archive;

/// Why the initial RAM disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A folder or file could not be read.
    #[error("Cannot read {path}")]
    Read {
        /// What was to be read.
        path: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel package lacks a module that the guest needs.
    #[error("The kernel package has no module {0}")]
    MissingModule(String),
    /// A module's compressed data is broken.
    #[error("The kernel module {name} cannot be unpacked")]
    Unpack {
        /// The module.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A module is not an ELF object with module information.
    #[error("The kernel module {0} is not a kernel module")]
    NotAModule(String),
    /// Modules need each other in a circle.
    #[error("The kernel module {0} needs itself")]
    Circle(String),
    /// The archive's format has no room for a file of this size.
    #[error("{0} is too large for an initial RAM disk")]
    TooLarge(String),
}

/// The modules that the guest loads before it has its root, by the virtio device (virtio 1.3 §5) that calls for them.
pub const WANTED: &[(Option<u32>, &[&str])] = &[
    (Some(19), &["vmw_vsock_virtio_transport"]),
    (Some(2), &["virtio_blk"]),
    (Some(27), &["nd_pmem", "virtio_pmem"]),
    (Some(4), &["virtio_rng"]),
    (Some(1), &["virtio_net"]),
    (None, &["erofs", "overlay"]),
];

/// Makes the archive (cpio "newc", not compressed: the kernel would only have to unpack it again).
///
/// `agent` is the static guest agent's ELF file.
///
/// # Errors
/// [`InitramfsError`]; `MissingModule` when a module is neither in `modules` nor built into the kernel.
pub fn build(agent: &[u8], modules: &Modules) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::new();
    archive.directory("dev");
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.directory("modules");

    let mut order = String::new();
    let mut done = std::collections::BTreeMap::new();
    for (device, names) in WANTED {
        let in_order = modules.closure(names, &mut done)?;
        order.push_str(&device.map_or_else(|| "*".to_owned(), |id| id.to_string()));
        for name in in_order {
            order.push(' ');
            order.push_str(&name);
        }
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes())?;
    for (name, bytes) in &done {
        archive.file(&format!("modules/{name}.ko"), 0o644, without_signature(bytes))?;
    }
    archive.file("init", 0o755, agent)?;
    Ok(archive.finish())
}

#[cfg(test)]
mod tests;
