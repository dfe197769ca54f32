//! Attributes: what the guest is shown of a file, and what it may change.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fuse_wire::{
    Access, Attributes, Context, Entry, Errno, FileKind, FileStatus, Handle, NodeId, Result, SetAttributes,
    SetTime, SpaceReport, Timestamp, XattrMode,
};

use crate::HostFs;
use crate::node::Node;
use crate::owner::{self, Owner};
use crate::sys::{self, OpenFor, Stat};

impl HostFs {
    pub(crate) fn default_owner(&self) -> Owner {
        Owner { uid: self.options.owner.0, gid: self.options.owner.1, mode: None }
    }

    pub(crate) fn get_attributes(&self, id: NodeId, handle: Option<Handle>) -> Result<Attributes> {
        if id == NodeId::ROOT {
            return Ok(self.root_attributes());
        }
        let node = self.node(id)?;
        let _names = self.names_stay();
        let open = handle.and_then(|handle| self.handles.file(handle).ok()).filter(|file| file.node.id == id);
        let stat = match open {
            Some(file) => sys::stat_of(file.fd.as_fd())?,
            None => self.stat(&node)?,
        };
        Ok(self.attributes(&node, &stat))
    }

    /// The attributes of the directory above the shares.
    pub(crate) fn root_attributes(&self) -> Attributes {
        let links = u32::try_from(self.shares.len()).unwrap_or(u32::MAX).saturating_add(2);
        let status = FileStatus {
            inode: NodeId::ROOT.0,
            size: 0,
            blocks: 0,
            atime: Timestamp::default(),
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            kind: FileKind::Directory,
            permissions: 0o555,
            links,
            uid: 0,
            gid: 0,
            block_size: 4096,
        };
        Attributes { status, valid: Duration::from_secs(3600) }
    }

    pub(crate) fn entry(&self, node: &Arc<Node>, stat: &Stat) -> Entry {
        Entry {
            node: node.id,
            generation: 0, // node ids are never used again
            name_valid: self.options.name_valid,
            attributes: self.attributes(node, stat),
        }
    }

    pub(crate) fn attributes(&self, node: &Arc<Node>, stat: &Stat) -> Attributes {
        let owner = self.owner(node, stat);
        let (atime, mtime) = node.state().times.as_deref().copied().unwrap_or((stat.atime, stat.mtime));
        let status = FileStatus {
            inode: self.inode_number(stat.identity.device, stat.identity.inode),
            size: stat.size,
            blocks: stat.blocks,
            atime,
            mtime,
            ctime: stat.ctime,
            kind: stat.identity.kind,
            permissions: self.shown_mode(stat, owner),
            links: stat.links,
            uid: owner.uid,
            gid: owner.gid,
            block_size: stat.block_size,
        };
        Attributes { status, valid: self.options.attributes_valid }
    }

    /// The mode that the guest sees. Where the file is another user's on the host, the owner's bits say what the caller may do,
    /// as the guest takes the sandbox's user for the owner.
    fn shown_mode(&self, stat: &Stat, owner: Owner) -> u32 {
        let kind = stat.identity.kind;
        if kind == FileKind::Symlink {
            return 0o777;
        }
        let mode = owner::guest_mode(kind, stat.mode);
        if let Some(wanted) = owner.mode
            && owner::host_mode(kind, wanted) == mode
        {
            return wanted;
        }
        let (user, groups) = &self.caller;
        if *user == 0 || *user == stat.uid {
            return mode;
        }
        let theirs = if groups.contains(&stat.gid) { mode >> 3 } else { mode } & 0o7;
        mode & !0o700 | theirs << 6
    }

    /// Who the node belongs to in the guest.
    pub(crate) fn owner(&self, node: &Arc<Node>, stat: &Stat) -> Owner {
        self.owner_through(node, stat, || self.any_descriptor(node))
    }

    /// Notes the owner of what was just found as `name` in `directory`, which spares finding it again.
    pub(crate) fn note_owner(&self, node: &Arc<Node>, stat: &Stat, directory: BorrowedFd<'_>, name: &CStr) {
        self.owner_through(node, stat, || {
            sys::open_entry(directory, name, OpenFor::Reading, false).map(Arc::new)
        });
    }

    fn owner_through(
        &self,
        node: &Arc<Node>,
        stat: &Stat,
        open: impl FnOnce() -> Result<Arc<OwnedFd>>,
    ) -> Owner {
        if let Some(owner) = self.remembered.get(node.share, node.identity) {
            return owner;
        }
        if !matches!(node.identity.kind, FileKind::Regular | FileKind::Directory) {
            return self.default_owner();
        }
        if let Some((read_at, owner)) = node.state().owner
            && read_at == stat.ctime
        {
            return owner;
        }
        // A file that the caller may not read has no attribute that it could have set.
        let stored = open()
            .and_then(|fd| sys::get_xattr(fd.as_fd(), owner::ATTRIBUTE, owner::MAX_LEN))
            .ok()
            .and_then(|text| Owner::parse(&text));
        let owner = stored.unwrap_or_else(|| self.default_owner());
        node.state().owner = Some((stat.ctime, owner));
        owner
    }

    /// Keeps an owner with the file, or in memory where the file cannot have it.
    fn store_owner(&self, node: &Arc<Node>, fd: Option<BorrowedFd<'_>>, owner: Owner) -> Result<()> {
        node.state().owner = None;
        let plain = owner == self.default_owner();
        let stored = match fd {
            None => Err(Errno::NOTSUP),
            Some(fd) if plain => {
                match self.lifted(&[fd], 0o200, || sys::remove_xattr(fd, owner::ATTRIBUTE)) {
                    Err(Errno::NODATA) => Ok(()),
                    other => other,
                }
            }
            Some(fd) => self.lifted(&[fd], 0o200, || {
                sys::set_xattr(fd, owner::ATTRIBUTE, owner.format().as_bytes(), XattrMode::Set)
            }),
        };
        match stored {
            Ok(()) => self.remembered.set(node.share, node.identity, None),
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => return Err(errno),
            Err(_) => self.remembered.set(node.share, node.identity, (!plain).then_some(owner)),
        }
        Ok(())
    }

    /// Gives a file that was just made its owner and the bits that this process's umask took.
    pub(crate) fn adopt(
        &self,
        cx: &Context,
        node: &Arc<Node>,
        fd: Option<BorrowedFd<'_>>,
        mode: u32,
        stat: &Stat,
    ) -> Result<Stat> {
        let kind = node.identity.kind;
        let host = owner::host_mode(kind, mode);
        let wanted = owner::guest_mode(kind, mode);
        let owner =
            Owner { uid: cx.uid, gid: cx.gid, mode: (fd.is_some() && host != wanted).then_some(wanted) };
        let mut changed = false;
        if let Some(fd) = fd
            && stat.mode & !KEPT_BIT != host
        {
            sys::set_mode(fd, host | kept_bit(stat))?;
            changed = true;
        }
        if owner != self.default_owner() {
            self.store_owner(node, fd, owner)?;
            changed = true;
        }
        let stat = match fd {
            Some(fd) if changed => sys::stat_of(fd)?,
            _ => *stat,
        };
        if fd.is_some() && self.remembered.get(node.share, node.identity).is_none() {
            node.state().owner = Some((stat.ctime, owner));
        }
        Ok(stat)
    }

    pub(crate) fn set_attributes(&self, id: NodeId, changes: &SetAttributes) -> Result<Attributes> {
        if id == NodeId::ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.node(id)?;
        self.writable(node.share)?;
        let _names = self.names_stay();
        if let Some(size) = changes.size {
            self.resize(&node, changes.handle, size)?;
        }
        if changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some() {
            self.change_owner(&node, changes)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.change_times(&node, changes)?;
        }
        let stat = self.stat(&node)?;
        Ok(self.attributes(&node, &stat))
    }

    pub(crate) fn resize(&self, node: &Arc<Node>, handle: Option<Handle>, size: u64) -> Result<()> {
        let open = handle.and_then(|handle| self.handles.file(handle).ok());
        let fd = match open.filter(|file| file.node.id == node.id && file.fd_access.writes()) {
            Some(file) => Arc::clone(&file.fd),
            None => self.open_regular(node, Access::Write, false)?.0,
        };
        drop_set_id(fd.as_fd())?;
        sys::set_length(fd.as_fd(), size)
    }

    fn change_owner(&self, node: &Arc<Node>, changes: &SetAttributes) -> Result<()> {
        let stat = self.stat(node)?;
        let kind = node.identity.kind;
        let before = self.owner(node, &stat);
        let shown = self.shown_mode(&stat, before);
        let mut after = Owner {
            uid: changes.uid.unwrap_or(before.uid),
            gid: changes.gid.unwrap_or(before.gid),
            // One that the host has overruled since is not kept.
            mode: before.mode.filter(|mode| *mode == shown && *mode != stat.mode & 0o1777),
        };
        if !matches!(kind, FileKind::Regular | FileKind::Directory) {
            // Links and special files have no attributes, and no mode that means something to the host.
            return if changes.mode.is_some() {
                Err(Errno::NOTSUP)
            } else {
                self.store_owner(node, None, after)
            };
        }
        let fd = self.any_descriptor(node)?;
        if let Some(mode) = changes.mode {
            let wanted = owner::guest_mode(kind, mode);
            let host = owner::host_mode(kind, wanted);
            if wanted != shown || stat.mode & !KEPT_BIT != host {
                sys::set_mode(fd.as_fd(), host | kept_bit(&stat))?;
            }
            after.mode = (host != wanted).then_some(wanted);
        }
        if after != before {
            self.store_owner(node, Some(fd.as_fd()), after)?;
        }
        Ok(())
    }

    fn change_times(&self, node: &Arc<Node>, changes: &SetAttributes) -> Result<()> {
        if !matches!(node.identity.kind, FileKind::Regular | FileKind::Directory) {
            // Never opened, and by name times cannot be set: they last as long as the guest keeps the node.
            let stat = self.stat(node)?;
            let mut state = node.state();
            let (atime, mtime) = state.times.as_deref().copied().unwrap_or((stat.atime, stat.mtime));
            let times = (moment(changes.atime, atime), moment(changes.mtime, mtime));
            state.times = Some(Box::new(times));
            return Ok(());
        }
        let fd = self.any_descriptor(node)?;
        sys::set_times(fd.as_fd(), changes.atime, changes.mtime)
    }

    pub(crate) fn space(&self, id: NodeId) -> Result<SpaceReport> {
        if id == NodeId::ROOT {
            return Ok(SpaceReport {
                fragment_size: 4096,
                block_size: 4096,
                name_max: 255,
                ..SpaceReport::default()
            });
        }
        let node = self.node(id)?;
        let share = self.shares.get(node.share).ok_or(Errno::STALE)?;
        sys::space(share.fd.as_fd())
    }

    /// All shares at once: what is not durable yet is not known by share.
    pub(crate) fn sync_file_systems(&self, id: NodeId) -> Result<()> {
        if id != NodeId::ROOT {
            self.node(id)?;
        }
        self.durable.make(self.options.sync_pause, || {
            for (share, root) in self.shares.iter().zip(&self.roots) {
                if !share.read_only {
                    let fd = self.any_descriptor(root)?;
                    sys::sync_file_system(fd.as_fd())?;
                }
            }
            Ok(())
        })
    }
}

/// The time that is wanted; `old` where none is.
fn moment(wanted: Option<SetTime>, old: Timestamp) -> Timestamp {
    match wanted {
        None => old,
        Some(SetTime::Now) => sys::now(),
        Some(SetTime::At { seconds, nanoseconds }) => Timestamp { seconds, nanoseconds },
    }
}

/// Set-group-id: on a directory it says which group new files get, which is the host's policy and gives nobody a right.
const KEPT_BIT: u32 = 0o2000;

fn kept_bit(stat: &Stat) -> u32 {
    if stat.identity.kind == FileKind::Directory { stat.mode & KEPT_BIT } else { 0 }
}

/// Takes set-id bits off a file of the host before the guest changes its content: the kernel does so only for ordinary users.
pub(crate) fn drop_set_id(fd: BorrowedFd<'_>) -> Result<()> {
    let stat = sys::stat_of(fd)?;
    if stat.mode & 0o6000 == 0 {
        return Ok(());
    }
    sys::set_mode(fd, stat.mode & 0o1777)
}
