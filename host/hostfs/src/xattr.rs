//! Extended attributes: `user.*` and nothing else, our own hidden. Capabilities, labels and ACLs of the host are the host's.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse_wire::{Errno, FileKind, NodeId, Result, XattrMode};

use crate::HostFs;
use crate::node::Node;
use crate::owner::OUR_PREFIX;
use crate::sys;

/// The longest value in Linux, in bytes.
const VALUE_MAX: usize = 65536;

/// Whether the guest may have an attribute of this name.
fn allowed(name: &[u8]) -> bool {
    name.starts_with(b"user.") && name.len() > 5 && !name.starts_with(OUR_PREFIX)
}

impl HostFs {
    /// The node, if it is of a kind that can have attributes.
    fn attribute_holder(&self, id: NodeId, name: &CStr) -> Result<Arc<Node>> {
        if !allowed(name.to_bytes()) || id == NodeId::ROOT {
            return Err(Errno::NOTSUP);
        }
        let node = self.node(id)?;
        match node.identity.kind {
            FileKind::Regular | FileKind::Directory => Ok(node),
            _ => Err(Errno::PERM),
        }
    }

    fn holder_to_change(&self, id: NodeId, name: &CStr) -> Result<Arc<Node>> {
        if id == NodeId::ROOT {
            return Err(Errno::ROFS);
        }
        self.writable(self.node(id)?.share)?;
        self.attribute_holder(id, name)
    }

    fn with_descriptor<T>(
        &self,
        node: &Arc<Node>,
        action: impl FnOnce(Arc<OwnedFd>) -> Result<T>,
    ) -> Result<T> {
        let _names = self.names_stay();
        action(self.any_descriptor(node)?)
    }

    pub(crate) fn get_xattr(&self, id: NodeId, name: &CStr) -> Result<Vec<u8>> {
        let node = match self.attribute_holder(id, name) {
            Err(Errno::PERM) => return Err(Errno::NODATA),
            other => other?,
        };
        self.with_descriptor(&node, |fd| sys::get_xattr(fd.as_fd(), name, VALUE_MAX))
    }

    pub(crate) fn set_xattr(&self, id: NodeId, name: &CStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let node = self.holder_to_change(id, name)?;
        self.with_descriptor(&node, |fd| {
            self.lifted(&[fd.as_fd()], 0o200, || sys::set_xattr(fd.as_fd(), name, value, mode))
        })
    }

    pub(crate) fn remove_xattr(&self, id: NodeId, name: &CStr) -> Result<()> {
        let node = self.holder_to_change(id, name)?;
        self.with_descriptor(&node, |fd| {
            self.lifted(&[fd.as_fd()], 0o200, || sys::remove_xattr(fd.as_fd(), name))
        })
    }

    pub(crate) fn list_xattr(&self, id: NodeId) -> Result<Vec<u8>> {
        if id == NodeId::ROOT {
            return Ok(Vec::new());
        }
        let node = self.node(id)?;
        if !matches!(node.identity.kind, FileKind::Regular | FileKind::Directory) {
            return Ok(Vec::new());
        }
        let names = match self.with_descriptor(&node, |fd| sys::list_xattr(fd.as_fd())) {
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            other => other?,
        };
        let shown = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| allowed(name.strip_suffix(b"\0").unwrap_or(name)));
        Ok(shown.flatten().copied().collect())
    }
}
