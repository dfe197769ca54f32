//! The server's state, and each operation of the wire handed to its room.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use fuse_wire::{
    Attributes, Context, DirectoryBuffer, Entry, Errno, FallocateMode, FileSystem, Handle, Name, NodeId,
    OpenFlags, OpenReply, RenameMode, RestoreError, Result, SeekTarget, SetAttributes, Settings, SpaceReport,
    XattrMode,
};

use crate::durable::Durable;
use crate::handle::Handles;
use crate::node::{Descriptors, NODE_BYTES, Node, Nodes, lock};
use crate::owner::Remembered;
use crate::share::Share;
use crate::sys;

/// Limits and appearance.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// User and group in the guest that files of the host belong to.
    pub owner: (u32, u32),
    /// How long the guest may believe what a name means. Zero: a change on the host is seen by the next open.
    pub name_valid: Duration,
    /// How long the guest may believe attributes, where it holds the file and does not go by name.
    pub attributes_valid: Duration,
    /// Most bytes that nodes may take in memory, half a KiB each and their names; the guest's kernel gives back what it does not
    /// use.
    pub max_node_bytes: usize,
    /// Most open files and directories.
    pub max_handles: usize,
    /// Most descriptors kept open to name directories.
    pub max_directories: usize,
    /// Between two times that the guest's `sync` becomes one of the host's whole file system.
    pub sync_pause: Duration,
}

impl Default for Options {
    /// The sandbox's user 1000:1000, and limits that fit this process's descriptor limit (call it after that was raised).
    fn default() -> Options {
        let budget = sys::descriptor_limit().saturating_sub(256).clamp(64, 64 * 1024);
        Options {
            owner: (1000, 1000),
            name_valid: Duration::ZERO,
            attributes_valid: Duration::from_secs(1),
            // 700,000 files of a usual tree at once.
            max_node_bytes: 384 << 20,
            max_handles: budget / 4 * 3,
            max_directories: (budget / 4).min(4096),
            sync_pause: Duration::from_millis(100),
        }
    }
}

/// The file server.
pub struct HostFs {
    pub(crate) options: Options,
    pub(crate) shares: Vec<Share>,
    pub(crate) roots: Vec<Arc<Node>>,
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    pub(crate) descriptors: Descriptors,
    pub(crate) remembered: Remembered,
    pub(crate) durable: Durable,
    /// Held by writers while names change, by readers while one operation uses a name more than once.
    namespace: RwLock<()>,
    /// Held while a file of the caller's has more permission bits than its own; see [`HostFs::lifted`].
    pub(crate) lift: Mutex<()>,
    /// Devices in order of appearance, to keep inode numbers of different ones apart.
    devices: Mutex<Vec<(u32, u32)>>,
    /// Effective user and groups of this process.
    pub(crate) caller: (u32, Vec<u32>),
}

impl HostFs {
    /// A server for these shares, named "0", "1", … in its root.
    pub fn new(shares: Vec<Share>, options: Options) -> HostFs {
        let nodes = Nodes::new(options.max_node_bytes.saturating_add(shares.len() * NODE_BYTES));
        let roots: Vec<Arc<Node>> = shares
            .iter()
            .enumerate()
            .map(|(index, share)| nodes.add_root(index, &share.stat, Arc::clone(&share.fd)))
            .collect();
        let server = HostFs {
            options,
            roots,
            nodes,
            handles: Handles::new(options.max_handles),
            descriptors: Descriptors::new(options.max_directories),
            remembered: Remembered::default(),
            durable: Durable::default(),
            namespace: RwLock::default(),
            lift: Mutex::default(),
            devices: Mutex::default(),
            caller: sys::credentials(),
            shares,
        };
        for share in &server.shares {
            // In the shares' order, so that inode numbers are the same in the next session.
            server.inode_number(share.stat.identity.device, 0);
        }
        server
    }

    /// How many nodes and handles the guest holds, for diagnosis.
    pub fn load(&self) -> (usize, usize) {
        (self.nodes.alive(), self.handles.count())
    }

    /// How often the host was asked to make a whole file system durable, for diagnosis.
    pub fn syncs(&self) -> u64 {
        self.durable.count()
    }

    /// Hands on the outcome of something that may have changed what is in a share.
    fn changed<T>(&self, outcome: Result<T>) -> Result<T> {
        self.durable.note_change();
        outcome
    }

    /// Excludes changes of names by the guest.
    pub(crate) fn names_stay(&self) -> RwLockReadGuard<'_, ()> {
        self.namespace.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Excludes all that goes by name.
    pub(crate) fn names_change(&self) -> RwLockWriteGuard<'_, ()> {
        self.namespace.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses where the share may not be written.
    pub(crate) fn writable(&self, share: usize) -> Result<()> {
        match self.shares.get(share) {
            Some(share) if !share.read_only => Ok(()),
            Some(_) => Err(Errno::ROFS),
            None => Err(Errno::STALE),
        }
    }

    /// What `stat` shows in the guest: the host's number, apart from those of other devices, as the guest sees a single one.
    pub(crate) fn inode_number(&self, device: (u32, u32), inode: u64) -> u64 {
        const SHIFT: u32 = 48;
        let mut devices = lock(&self.devices);
        let index = devices.iter().position(|known| *known == device).unwrap_or_else(|| {
            if devices.len() < 1 << 12 {
                devices.push(device);
            }
            devices.len() - 1
        });
        // Larger numbers are rare and spread widely; folded, two of them meeting is unlikely and harmless.
        inode ^ ((index as u64) << SHIFT)
    }

    pub(crate) fn forget_session(&self) {
        self.handles.clear();
        self.descriptors.clear();
        self.nodes.clear();
        self.remembered.clear();
    }
}

impl FileSystem for HostFs {
    fn init(&self) -> Settings {
        self.forget_session();
        // With names that hold for no time, looking up while listing is wasted.
        Settings { readdirplus: !self.options.name_valid.is_zero() }
    }

    fn destroy(&self) {
        self.forget_session();
    }

    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.lookup_entry(parent, name)
    }

    fn forget(&self, node: NodeId, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attributes> {
        self.get_attributes(node, handle)
    }

    fn setattr(&self, node: NodeId, changes: &SetAttributes) -> Result<Attributes> {
        self.changed(self.set_attributes(node, changes))
    }

    fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        self.read_link(node)
    }

    fn symlink(&self, cx: &Context, parent: NodeId, name: Name<'_>, target: &CStr) -> Result<Entry> {
        self.changed(self.make_symlink(cx, parent, name, target))
    }

    fn mknod(&self, cx: &Context, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        self.changed(self.make_file(cx, parent, name, mode))
    }

    fn mkdir(&self, cx: &Context, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry> {
        self.changed(self.make_directory(cx, parent, name, mode))
    }

    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.changed(self.remove(parent, name, false))
    }

    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()> {
        self.changed(self.remove(parent, name, true))
    }

    fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        to: NodeId,
        new: Name<'_>,
        mode: RenameMode,
    ) -> Result<()> {
        self.changed(self.rename_entry((parent, name), (to, new), mode))
    }

    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry> {
        self.changed(self.make_link(node, parent, name))
    }

    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<OpenReply> {
        let opened = self.open_file(node, flags);
        if flags.truncate { self.changed(opened) } else { opened }
    }

    fn create(
        &self,
        cx: &Context,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Entry, OpenReply)> {
        self.changed(self.create_file(cx, parent, name, mode, flags))
    }

    fn read(&self, handle: Handle, offset: u64, into: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.read_file(handle, offset, into)
    }

    fn write(&self, handle: Handle, offset: u64, append: bool, from: &[IoSlice<'_>]) -> Result<usize> {
        self.changed(self.write_file(handle, offset, append, from))
    }

    fn statfs(&self, node: NodeId) -> Result<SpaceReport> {
        self.space(node)
    }

    fn release(&self, handle: Handle) -> Result<()> {
        self.handles.close(handle)
    }

    fn flush(&self, _handle: Handle) -> Result<()> {
        // Every write was the host's own, so closing has nothing left to tell. Said once, the guest's kernel stops asking, which
        // saves a request for each file that is closed.
        Err(Errno::NOSYS)
    }

    fn fsync(&self, handle: Handle, data_only: bool) -> Result<()> {
        let file = self.handles.file(handle)?;
        sys::sync(sys::borrow(&file.fd), data_only)
    }

    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.changed(self.set_xattr(node, name, value, mode))
    }

    fn getxattr(&self, node: NodeId, name: &CStr) -> Result<Vec<u8>> {
        self.get_xattr(node, name)
    }

    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>> {
        self.list_xattr(node)
    }

    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()> {
        self.changed(self.remove_xattr(node, name))
    }

    fn opendir(&self, node: NodeId) -> Result<OpenReply> {
        self.open_directory_handle(node)
    }

    fn readdir(&self, handle: Handle, offset: u64, into: &mut DirectoryBuffer) -> Result<()> {
        self.list(handle, offset, into)
    }

    fn releasedir(&self, handle: Handle) -> Result<()> {
        self.handles.close(handle)
    }

    fn fsyncdir(&self, handle: Handle, data_only: bool) -> Result<()> {
        self.sync_directory(handle, data_only)
    }

    fn access(&self, _node: NodeId, _mask: u32) -> Result<()> {
        // The guest's kernel decides by the modes that we show (virtio-fs mounts with `default_permissions`).
        Err(Errno::NOSYS)
    }

    fn fallocate(&self, handle: Handle, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
        let file = self.writable_file(handle)?;
        self.changed(sys::allocate(sys::borrow(&file.fd), offset, length, mode))
    }

    fn seek(&self, handle: Handle, offset: u64, target: SeekTarget) -> Result<u64> {
        let file = self.handles.file(handle)?;
        sys::seek(sys::borrow(&file.fd), offset, target)
    }

    fn copy_file_range(&self, from: Handle, at: u64, to: Handle, to_at: u64, length: u64) -> Result<usize> {
        self.changed(self.copy_range((from, at), (to, to_at), length))
    }

    fn syncfs(&self, node: NodeId) -> Result<()> {
        self.sync_file_systems(node)
    }

    fn save(&self) -> Vec<u8> {
        self.saved()
    }

    fn restore(&self, state: &[u8]) -> std::result::Result<(), RestoreError> {
        // What the session before wrote may not be durable yet.
        self.durable.note_change();
        self.go_on(state)
    }
}
