//! What a file server answers, and how it is written.

use std::time::Duration;

use crate::bytes::Encoder;
use crate::{Handle, NodeId, abi};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe; it pipes between processes of the guest only.
    Fifo,
    /// A socket's name; nobody of the guest can reach the host through it.
    Socket,
    /// A character device, its number withheld.
    CharDevice,
    /// A block device, its number withheld.
    BlockDevice,
}

impl FileKind {
    /// The type bits of a mode.
    pub fn mode_bits(self) -> u32 {
        match self {
            FileKind::Fifo => 0o010000,
            FileKind::CharDevice => 0o020000,
            FileKind::Directory => 0o040000,
            FileKind::BlockDevice => 0o060000,
            FileKind::Regular => 0o100000,
            FileKind::Symlink => 0o120000,
            FileKind::Socket => 0o140000,
        }
    }

    /// The kind that a mode's type bits name.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Some(match mode & abi::S_IFMT {
            0o010000 => FileKind::Fifo,
            0o020000 => FileKind::CharDevice,
            0o040000 => FileKind::Directory,
            0o060000 => FileKind::BlockDevice,
            0o100000 => FileKind::Regular,
            0o120000 => FileKind::Symlink,
            0o140000 => FileKind::Socket,
            _ => return None,
        })
    }

    /// `d_type` of a directory entry.
    pub(crate) fn directory_type(self) -> u32 {
        self.mode_bits() >> 12
    }
}

/// A point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// 0..1,000,000,000.
    pub nanoseconds: u32,
}

/// Attributes of a node as the guest shall see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// What `stat` shows as inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Space used, in blocks of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of anything.
    pub ctime: Timestamp,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, 0..=0o7777.
    pub permissions: u32,
    /// Number of names.
    pub links: u32,
    /// Owner in the guest.
    pub uid: u32,
    /// Group in the guest.
    pub gid: u32,
    /// Preferred size of transfers in bytes.
    pub block_size: u32,
}

impl FileStatus {
    fn encode(&self, out: &mut Encoder) {
        out.u64(self.inode).u64(self.size).u64(self.blocks);
        for time in [self.atime, self.mtime, self.ctime] {
            out.u64(time.seconds.cast_unsigned());
        }
        for time in [self.atime, self.mtime, self.ctime] {
            out.u32(time.nanoseconds);
        }
        out.u32(self.kind.mode_bits() | (self.permissions & 0o7777));
        out.u32(self.links).u32(self.uid).u32(self.gid);
        out.u32(0); // rdev: no device of the host has a number in the guest
        out.u32(self.block_size).u32(0);
    }
}

/// Attributes and how long the guest may believe them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The attributes.
    pub status: FileStatus,
    /// How long they hold.
    pub valid: Duration,
}

impl Attributes {
    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u64(self.valid.as_secs()).u32(self.valid.subsec_nanos()).u32(0);
        self.status.encode(out);
    }
}

/// A directory's entry: the node behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node, looked up once more.
    pub node: NodeId,
    /// Tells uses of the same node id apart.
    pub generation: u64,
    /// How long the name means this node.
    pub name_valid: Duration,
    /// The node's attributes.
    pub attributes: Attributes,
}

impl Entry {
    /// Length of `fuse_entry_out` in bytes.
    pub(crate) const LEN: usize = 128;

    pub(crate) fn encode(&self, out: &mut Encoder) {
        let attributes = &self.attributes;
        out.u64(self.node.0).u64(self.generation);
        out.u64(self.name_valid.as_secs()).u64(attributes.valid.as_secs());
        out.u32(self.name_valid.subsec_nanos()).u32(attributes.valid.subsec_nanos());
        attributes.status.encode(out);
    }
}

/// An opened file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReply {
    /// How later requests name it.
    pub handle: Handle,
    /// The guest may keep the pages that it has cached of the file.
    pub keep_cache: bool,
}

impl OpenReply {
    pub(crate) fn encode(&self, out: &mut Encoder) {
        let flags = if self.keep_cache { abi::FOPEN_KEEP_CACHE } else { 0 };
        out.u64(self.handle.0).u32(flags).u32(0);
    }
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceReport {
    /// Unit of the block counts in bytes.
    pub fragment_size: u32,
    /// Preferred size of transfers in bytes.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Blocks free to an ordinary user.
    pub available: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

impl SpaceReport {
    pub(crate) fn encode(&self, out: &mut Encoder) {
        out.u64(self.blocks).u64(self.free).u64(self.available).u64(self.files).u64(self.files_free);
        out.u32(self.block_size).u32(self.name_max).u32(self.fragment_size).zeros(28);
    }
}
