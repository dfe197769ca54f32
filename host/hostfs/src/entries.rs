//! Operations on names: look up, make, remove, rename, link.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use fuse_wire::{Context, Entry, Errno, FileKind, Name, NodeId, OpenFlags, OpenReply, RenameMode, Result};

use crate::HostFs;
use crate::handle::OpenFile;
use crate::node::Node;
use crate::owner;
use crate::resolve::open_for;
use crate::sys::{self, OpenFor};

impl HostFs {
    /// The directory in which a name is to be made or removed.
    fn parent_to_change(&self, parent: NodeId) -> Result<Arc<Node>> {
        if parent == NodeId::ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.node(parent)?;
        self.writable(node.share)?;
        Ok(node)
    }

    pub(crate) fn lookup_entry(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        if parent == NodeId::ROOT {
            return self.lookup_share(name);
        }
        let parent = self.node(parent)?;
        let _names = self.names_stay();
        self.look(&parent, name.as_c_str())
    }

    /// Finds a name and counts a lookup of its node. Names must not change meanwhile.
    pub(crate) fn look(&self, parent: &Arc<Node>, name: &CStr) -> Result<Entry> {
        let directory = self.directory(parent)?;
        let stat = sys::stat_at(directory.as_fd(), name)?;
        // Something is mounted here. Nodes are looked at again by their device, so that only entering one is to be guarded.
        if stat.identity.device != parent.identity.device
            && sys::is_kernel_interface(directory.as_fd(), name)?
        {
            return Err(Errno::ACCESS);
        }
        let node = self.nodes.enter(parent, name, stat.identity)?;
        self.note_owner(&node, &stat, directory.as_fd(), name);
        Ok(self.entry(&node, &stat))
    }

    fn lookup_share(&self, name: Name<'_>) -> Result<Entry> {
        let text = std::str::from_utf8(name.as_bytes()).map_err(|_| Errno::NOENT)?;
        let index: usize = text.parse().map_err(|_| Errno::NOENT)?;
        if index.to_string() != text {
            return Err(Errno::NOENT); // "+1", "01"
        }
        let root = self.roots.get(index).ok_or(Errno::NOENT)?;
        let stat = self.stat_root(root)?;
        Ok(self.entry(root, &stat))
    }

    fn stat_root(&self, root: &Arc<Node>) -> Result<sys::Stat> {
        let fd = root.descriptor().ok_or(Errno::STALE)?;
        sys::stat_of(fd.as_fd())
    }

    pub(crate) fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        if id == NodeId::ROOT {
            return Err(Errno::INVAL);
        }
        let node = self.node(id)?;
        if node.identity.kind != FileKind::Symlink {
            return Err(Errno::INVAL);
        }
        let _names = self.names_stay();
        match self.whereabouts(&node) {
            Ok((directory, name, _)) => sys::read_link(directory.as_fd(), &name),
            // Removed, and still held by the guest: the descriptor names it.
            Err(errno) => sys::read_link(node.descriptor().ok_or(errno)?.as_fd(), c""),
        }
    }

    pub(crate) fn make_symlink(
        &self,
        cx: &Context,
        parent: NodeId,
        name: Name<'_>,
        target: &CStr,
    ) -> Result<Entry> {
        let parent = self.parent_to_change(parent)?;
        let _names = self.names_stay();
        let directory = self.directory(&parent)?;
        let name = name.as_c_str();
        self.in_directories(&[directory.as_fd()], || sys::make_symlink(directory.as_fd(), name, target))?;
        let stat = sys::stat_at(directory.as_fd(), name)?;
        let node = self.nodes.enter(&parent, name, stat.identity)?;
        let stat = self.adopted(&node, self.adopt(cx, &node, None, 0o777, &stat))?;
        Ok(self.entry(&node, &stat))
    }

    pub(crate) fn make_directory(
        &self,
        cx: &Context,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
    ) -> Result<Entry> {
        let parent = self.parent_to_change(parent)?;
        let _names = self.names_stay();
        let directory = self.directory(&parent)?;
        let name = name.as_c_str();
        let host = owner::host_mode(FileKind::Directory, mode);
        self.in_directories(&[directory.as_fd()], || sys::make_directory(directory.as_fd(), name, host))?;
        let fd = sys::open_directory(directory.as_fd(), name)?;
        let stat = sys::stat_of(fd.as_fd())?;
        let node = self.nodes.enter(&parent, name, stat.identity)?;
        let stat = self.adopted(&node, self.adopt(cx, &node, Some(fd.as_fd()), mode, &stat))?;
        Ok(self.entry(&node, &stat))
    }

    pub(crate) fn make_file(&self, cx: &Context, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        let parent = self.parent_to_change(parent)?;
        let _names = self.names_stay();
        let (node, stat, _) =
            self.make_regular(cx, &parent, name.as_c_str(), mode, OpenFor::Writing, false)?;
        Ok(self.entry(&node, &stat))
    }

    /// Makes and opens a regular file that was not there.
    fn make_regular(
        &self,
        cx: &Context,
        parent: &Arc<Node>,
        name: &CStr,
        mode: u32,
        how: OpenFor,
        synchronous: bool,
    ) -> Result<(Arc<Node>, sys::Stat, OwnedFd)> {
        let directory = self.directory(parent)?;
        let host = owner::host_mode(FileKind::Regular, mode);
        let fd = self.in_directories(&[directory.as_fd()], || {
            sys::create_entry(directory.as_fd(), name, how, synchronous, host)
        })?;
        let stat = sys::stat_of(fd.as_fd())?;
        let node = self.nodes.enter(parent, name, stat.identity)?;
        let stat = self.adopted(&node, self.adopt(cx, &node, Some(fd.as_fd()), mode, &stat))?;
        Ok((node, stat, fd))
    }

    /// Takes the lookup back if what was made could not be finished.
    fn adopted(&self, node: &Arc<Node>, outcome: Result<sys::Stat>) -> Result<sys::Stat> {
        outcome.inspect_err(|_| self.nodes.forget(node.id, 1))
    }

    pub(crate) fn create_file(
        &self,
        cx: &Context,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Entry, OpenReply)> {
        let parent = self.parent_to_change(parent)?;
        let slot = self.handles.reserve()?;
        let name = name.as_c_str();
        {
            let _names = self.names_stay();
            let made = self.make_regular(cx, &parent, name, mode, open_for(flags.access), flags.synchronous);
            match made {
                Err(Errno::EXIST) if !flags.exclusive => {}
                Err(errno) => return Err(errno),
                Ok((node, stat, fd)) => {
                    let entry = self.entry(&node, &stat);
                    let (access, fd) = (flags.access, Arc::new(fd));
                    let handle = slot.fill_file(OpenFile {
                        node,
                        fd,
                        access,
                        fd_access: access,
                        synchronous: flags.synchronous,
                    });
                    return Ok((entry, OpenReply { handle, keep_cache: false }));
                }
            }
        }
        // Somebody on the host was faster; then it is an open.
        drop(slot);
        let entry = {
            let _names = self.names_stay();
            self.look(&parent, name)?
        };
        let open = self.open_file(entry.node, flags).inspect_err(|_| self.nodes.forget(entry.node, 1))?;
        Ok((entry, open))
    }

    pub(crate) fn remove(&self, parent: NodeId, name: Name<'_>, is_directory: bool) -> Result<()> {
        let parent = self.parent_to_change(parent)?;
        let _names = self.names_change();
        let directory = self.directory(&parent)?;
        let name = name.as_c_str();
        self.keep_reachable(&parent, &directory, name);
        self.in_directories(&[directory.as_fd()], || sys::unlink(directory.as_fd(), name, is_directory))
    }

    /// Before a name goes: opens a descriptor on its file if the guest holds it, so that it can go on using it.
    fn keep_reachable(&self, parent: &Arc<Node>, directory: &OwnedFd, name: &CStr) {
        let Ok(stat) = sys::stat_at(directory.as_fd(), name) else { return };
        let Some(node) = self.nodes.find(parent.share, stat.identity) else { return };
        if node.descriptor().is_some() {
            return;
        }
        let Ok(fd) = sys::open_entry(directory.as_fd(), name, OpenFor::Naming, false) else { return };
        if sys::stat_of(fd.as_fd()).is_ok_and(|stat| stat.identity == node.identity) {
            self.descriptors.keep(&node, Arc::new(fd));
        }
    }

    pub(crate) fn rename_entry(
        &self,
        from: (NodeId, Name<'_>),
        to: (NodeId, Name<'_>),
        mode: RenameMode,
    ) -> Result<()> {
        let (old_parent, new_parent) = (self.parent_to_change(from.0)?, self.parent_to_change(to.0)?);
        if old_parent.share != new_parent.share {
            return Err(Errno::XDEV);
        }
        let (old, new) = (from.1.as_c_str(), to.1.as_c_str());
        self.nodes.room_for_name(old, new)?;
        if mode == RenameMode::Exchange {
            self.nodes.room_for_name(new, old)?;
        }
        let _names = self.names_change();
        let (old_dir, new_dir) = (self.directory(&old_parent)?, self.directory(&new_parent)?);
        let moved = sys::stat_at(old_dir.as_fd(), old)?;
        let replaced = sys::stat_at(new_dir.as_fd(), new).ok();
        if mode == RenameMode::Replace {
            self.keep_reachable(&new_parent, &new_dir, new);
        }
        self.in_directories(&[old_dir.as_fd(), new_dir.as_fd()], || {
            sys::rename((old_dir.as_fd(), old), (new_dir.as_fd(), new), mode)
        })?;
        let share = old_parent.share;
        // Renaming one of two hard links over the other does nothing at all.
        if replaced.is_some_and(|replaced| replaced.identity == moved.identity) {
            return Ok(());
        }
        if let Some(node) = self.nodes.find(share, moved.identity)
            && node.place().is_some()
        {
            node.set_place(&new_parent, new);
        }
        if mode == RenameMode::Exchange
            && let Some(node) = replaced.and_then(|replaced| self.nodes.find(share, replaced.identity))
            && node.place().is_some()
        {
            node.set_place(&old_parent, old);
        }
        Ok(())
    }

    pub(crate) fn make_link(&self, id: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        let parent = self.parent_to_change(parent)?;
        if id == NodeId::ROOT {
            return Err(Errno::PERM);
        }
        let node = self.node(id)?;
        if node.share != parent.share {
            return Err(Errno::XDEV);
        }
        if node.is_directory() {
            return Err(Errno::PERM);
        }
        let _names = self.names_change();
        let (from, old, _) = self.whereabouts(&node)?;
        let directory = self.directory(&parent)?;
        let name = name.as_c_str();
        self.in_directories(&[directory.as_fd()], || {
            sys::link((from.as_fd(), &old), (directory.as_fd(), name))
        })?;
        self.look(&parent, name)
    }
}
