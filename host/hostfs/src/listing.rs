//! Listing directories.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use fuse_wire::{DirectoryBuffer, Errno, FileKind, Handle, NodeId, OpenReply, Result};

use crate::HostFs;
use crate::handle::{HostDirectory, OpenDirectory};
use crate::node::lock;
use crate::sys;

impl HostFs {
    pub(crate) fn open_directory_handle(&self, id: NodeId) -> Result<OpenReply> {
        let slot = self.handles.reserve()?;
        let host = if id == NodeId::ROOT {
            None
        } else {
            let node = self.node(id)?;
            let _names = self.names_stay();
            let directory = self.directory(&node)?;
            let fd = sys::open_directory(directory.as_fd(), c".")?;
            Some(HostDirectory { node, fd: Mutex::new(fd) })
        };
        let handle = slot.fill_directory(OpenDirectory { host });
        Ok(OpenReply { handle, keep_cache: false })
    }

    pub(crate) fn list(&self, handle: Handle, offset: u64, into: &mut DirectoryBuffer) -> Result<()> {
        let directory = self.handles.directory(handle)?;
        let Some(host) = &directory.host else { return self.list_root(offset, into) };
        let device = host.node.identity.device;
        let is_share_root = host.node.place().is_none();
        let _names = self.names_stay();
        let fd = lock(&host.fd);
        let mut full = false;
        sys::list(fd.as_fd(), offset, |entry| {
            let name = entry.name.to_bytes();
            if !into.fits(name.len()) {
                full = true;
                return false;
            }
            let own = name == b"." || name == b"..";
            // What is above a share is the root of the guest's mount, not the host's folder.
            let inode = if is_share_root && name == b".." {
                NodeId::ROOT.0
            } else {
                self.inode_number(device, entry.inode)
            };
            let looked_up =
                (into.wants_entries() && !own).then(|| self.look(&host.node, entry.name).ok()).flatten();
            into.push(inode, entry.next, entry.kind, name, looked_up.as_ref())
        })?;
        // The kernel takes an empty answer for the directory's end.
        if full && into.is_empty() { Err(Errno::INVAL) } else { Ok(()) }
    }

    /// The directory above the shares: `.`, `..`, then the shares by index; offsets count them from 1.
    fn list_root(&self, offset: u64, into: &mut DirectoryBuffer) -> Result<()> {
        let names =
            [".", ".."].map(String::from).into_iter().chain((0..self.roots.len()).map(|n| n.to_string()));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, name) in names.enumerate().skip(skip) {
            let next = index as u64 + 1;
            let pushed = match index.checked_sub(2).and_then(|share| self.roots.get(share)) {
                None => into.push(NodeId::ROOT.0, next, Some(FileKind::Directory), name.as_bytes(), None),
                Some(root) => {
                    let stat = self.stat(root)?;
                    let inode = self.inode_number(stat.identity.device, stat.identity.inode);
                    let entry = into.wants_entries().then(|| self.entry(root, &stat));
                    into.push(inode, next, Some(stat.identity.kind), name.as_bytes(), entry.as_ref())
                }
            };
            if !pushed {
                return if into.is_empty() { Err(Errno::INVAL) } else { Ok(()) };
            }
        }
        Ok(())
    }

    pub(crate) fn sync_directory(&self, handle: Handle, data_only: bool) -> Result<()> {
        let directory: Arc<OpenDirectory> = self.handles.directory(handle)?;
        match &directory.host {
            Some(host) => sys::sync(lock(&host.fd).as_fd(), data_only),
            None => Ok(()),
        }
    }
}
