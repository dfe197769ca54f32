//! What a file server must be able to do: one method an operation, values already checked.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};

use crate::{
    Attributes, Context, DirectoryBuffer, Entry, Errno, FallocateMode, Handle, Name, NodeId, OpenFlags,
    OpenReply, RenameMode, RestoreError, SeekTarget, SetAttributes, SpaceReport, XattrMode,
};

/// An operation's outcome.
pub type Result<T> = std::result::Result<T, Errno>;

/// What the file server wants of the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Offer `READDIRPLUS`; of use only with entry timeouts above 0.
    pub readdirplus: bool,
}

/// A file server. Called from several threads at once.
///
/// Node ids, handles and offsets are the guest's claims: each is looked up, never trusted. An [`Entry`] that is returned
/// counts as one lookup, given back by [`FileSystem::forget`]. A handle belongs to the node it was opened on; another node
/// beside it in a request may be ignored.
#[expect(
    clippy::missing_errors_doc,
    reason = "every operation fails with the error number of its system call; what else there is, each says"
)]
pub trait FileSystem: Send + Sync {
    /// A new session starts: forget every node and handle of the one before.
    fn init(&self) -> Settings;

    /// The session ends: close every handle.
    fn destroy(&self);

    /// Finds an entry of a directory and counts a lookup of its node.
    fn lookup(&self, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Gives back `count` lookups. Unknown nodes and counts too large are ignored.
    fn forget(&self, node: NodeId, count: u64);

    /// Attributes of a node, through an open handle if the guest names one.
    fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Attributes>;

    /// Changes attributes and returns the new ones.
    fn setattr(&self, node: NodeId, changes: &SetAttributes) -> Result<Attributes>;

    /// The target of a symbolic link, as data.
    fn readlink(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Makes a symbolic link.
    fn symlink(&self, cx: &Context, parent: NodeId, name: Name<'_>, target: &CStr) -> Result<Entry>;

    /// Makes an empty regular file; `mode` has no type bits.
    fn mknod(&self, cx: &Context, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry>;

    /// Makes a directory; `mode` has no type bits.
    fn mkdir(&self, cx: &Context, parent: NodeId, name: Name<'_>, mode: u32) -> Result<Entry>;

    /// Removes an entry that is no directory.
    fn unlink(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, parent: NodeId, name: Name<'_>) -> Result<()>;

    /// Renames an entry.
    fn rename(
        &self,
        parent: NodeId,
        name: Name<'_>,
        new_parent: NodeId,
        new_name: Name<'_>,
        mode: RenameMode,
    ) -> Result<()>;

    /// Makes a hard link to a node.
    fn link(&self, node: NodeId, parent: NodeId, name: Name<'_>) -> Result<Entry>;

    /// Opens a regular file.
    fn open(&self, node: NodeId, flags: OpenFlags) -> Result<OpenReply>;

    /// Makes a regular file and opens it; without `exclusive`, opens what is there.
    fn create(
        &self,
        cx: &Context,
        parent: NodeId,
        name: Name<'_>,
        mode: u32,
        flags: OpenFlags,
    ) -> Result<(Entry, OpenReply)>;

    /// Reads into the buffers in order; short only at the end of the file. Returns the number of bytes.
    fn read(&self, handle: Handle, offset: u64, into: &mut [IoSliceMut<'_>]) -> Result<usize>;

    /// Writes the buffers in order, at the file's end if `append`. Returns the number of bytes.
    fn write(&self, handle: Handle, offset: u64, append: bool, from: &[IoSlice<'_>]) -> Result<usize>;

    /// Space of the file system that a node is on.
    fn statfs(&self, node: NodeId) -> Result<SpaceReport>;

    /// Closes a handle.
    fn release(&self, handle: Handle) -> Result<()>;

    /// A descriptor of the open file was closed in the guest; errors of earlier writes may be told.
    fn flush(&self, handle: Handle) -> Result<()>;

    /// Makes a file durable.
    fn fsync(&self, handle: Handle, data_only: bool) -> Result<()>;

    /// Sets an extended attribute.
    fn setxattr(&self, node: NodeId, name: &CStr, value: &[u8], mode: XattrMode) -> Result<()>;

    /// An extended attribute's value. The caller cuts nothing: what is longer than 64 KiB does not exist in Linux.
    fn getxattr(&self, node: NodeId, name: &CStr) -> Result<Vec<u8>>;

    /// Names of extended attributes, each with its NUL.
    fn listxattr(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Removes an extended attribute.
    fn removexattr(&self, node: NodeId, name: &CStr) -> Result<()>;

    /// Opens a directory.
    fn opendir(&self, node: NodeId) -> Result<OpenReply>;

    /// Lists a directory from `offset` on, a value that an earlier entry brought (0: from the start), until the buffer is
    /// full or the directory ends.
    fn readdir(&self, handle: Handle, offset: u64, into: &mut DirectoryBuffer) -> Result<()>;

    /// Closes a directory.
    fn releasedir(&self, handle: Handle) -> Result<()>;

    /// Makes a directory durable.
    fn fsyncdir(&self, handle: Handle, data_only: bool) -> Result<()>;

    /// Whether access is granted; `mask` has the bits of `access(2)`. Not asked under `default_permissions`.
    fn access(&self, node: NodeId, mask: u32) -> Result<()>;

    /// Reserves, zeroes or frees a range of a file. The range is not empty.
    fn fallocate(&self, handle: Handle, offset: u64, length: u64, mode: FallocateMode) -> Result<()>;

    /// Finds data or a hole. [`Errno::NXIO`] if there is none.
    fn seek(&self, handle: Handle, offset: u64, target: SeekTarget) -> Result<u64>;

    /// Copies within the host. Returns the number of bytes.
    fn copy_file_range(
        &self,
        from: Handle,
        from_offset: u64,
        to: Handle,
        to_offset: u64,
        length: u64,
    ) -> Result<usize>;

    /// Makes the file system that a node is on durable.
    fn syncfs(&self, node: NodeId) -> Result<()>;

    /// The session's state, to go on with in another process. No other operation runs meanwhile.
    fn save(&self) -> Vec<u8>;

    /// Goes on with a saved session. What was open is opened again; what cannot be is stale.
    fn restore(&self, state: &[u8]) -> std::result::Result<(), RestoreError>;
}
