//! Requests: bytes of the guest become one typed [`Operation`], or an error number, and are never looked at again.

use std::ffi::CStr;

use crate::abi::{self, falloc, fattr, opcode, open};
use crate::bytes::Fields;
use crate::{Errno, MAX_TRANSFER, Name};

/// A node that the file server told the guest of: 1 is the root, others come from lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the file system.
    pub const ROOT: NodeId = NodeId(1);
}

/// An open file or directory of the guest, as the file server named it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Who asks, in the guest's numbers. It decides who owns what is created, never what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// File system user id in the guest.
    pub uid: u32,
    /// File system group id in the guest.
    pub gid: u32,
}

/// What an open file may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Whether writing is among it.
    pub fn writes(self) -> bool {
        !matches!(self, Access::Read)
    }

    /// Whether reading is among it.
    pub fn reads(self) -> bool {
        !matches!(self, Access::Write)
    }
}

/// How a file is opened. Flags that matter to the guest's kernel only are not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags {
    /// Reading, writing or both.
    pub access: Access,
    /// Cut the file to length 0.
    pub truncate: bool,
    /// Creating must not find the file there (`O_EXCL`).
    pub exclusive: bool,
    /// Each write is durable when it returns (`O_DSYNC` or `O_SYNC`).
    pub synchronous: bool,
}

impl OpenFlags {
    fn parse(raw: u32) -> Result<OpenFlags, Errno> {
        let access = match raw & open::ACCMODE {
            0 => Access::Read,
            1 => Access::Write,
            2 => Access::ReadWrite,
            _ => return Err(Errno::INVAL),
        };
        Ok(OpenFlags {
            access,
            truncate: raw & open::TRUNC != 0,
            exclusive: raw & open::EXCL != 0,
            synchronous: raw & (open::DSYNC | open::SYNC) != 0,
        })
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The host's clock.
    Now,
    /// Seconds since 1970, and nanoseconds below a billion.
    At {
        /// Seconds since 1970, before it negative.
        seconds: i64,
        /// 0..1,000,000,000.
        nanoseconds: u32,
    },
}

/// What to change of a node; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// An open file to do it through.
    pub handle: Option<Handle>,
    /// Permission bits with set-id and sticky bits, no type: 0..=0o7777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes, at most `i64::MAX`.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last change of content.
    pub mtime: Option<SetTime>,
}

/// How a rename treats what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// An existing target is replaced.
    Replace,
    /// An existing target is an error.
    NoReplace,
    /// The two names swap.
    Exchange,
}

/// What `fallocate` does to the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallocateMode {
    /// Reserve space, growing the file unless `keep_size`.
    Allocate {
        /// The length stays.
        keep_size: bool,
    },
    /// Make a hole; the length stays.
    PunchHole,
    /// Make it read as zeros, growing the file unless `keep_size`.
    Zero {
        /// The length stays.
        keep_size: bool,
    },
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTarget {
    /// The next data at or after the offset.
    Data,
    /// The next hole at or after the offset.
    Hole,
}

/// Whether an extended attribute may or must exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Either.
    Set,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

/// One operation, all of its values checked as their types say. Offsets and offsets plus lengths fit `i64`.
#[expect(
    missing_docs,
    reason = "the fields are those of the operation of the same name in fuse(4) and its system call"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    Init { major: u32, minor: u32, max_readahead: u32, flags: u64 },
    Destroy,
    Lookup { name: Name<'a> },
    Forget { count: u64 },
    BatchForget { nodes: Vec<(NodeId, u64)> },
    GetAttr { handle: Option<Handle> },
    SetAttr { changes: SetAttributes },
    ReadLink,
    Symlink { name: Name<'a>, target: &'a CStr },
    Mknod { name: Name<'a>, mode: u32 },
    Mkdir { name: Name<'a>, mode: u32 },
    Unlink { name: Name<'a> },
    Rmdir { name: Name<'a> },
    Rename { name: Name<'a>, new_parent: NodeId, new_name: Name<'a>, mode: RenameMode },
    Link { node: NodeId, name: Name<'a> },
    Open { flags: OpenFlags },
    Create { name: Name<'a>, mode: u32, flags: OpenFlags },
    Read { handle: Handle, offset: u64, size: u32 },
    Write { handle: Handle, offset: u64, size: u32, append: bool },
    StatFs,
    Release { handle: Handle },
    Flush { handle: Handle },
    Fsync { handle: Handle, data_only: bool },
    SetXattr { name: &'a CStr, value: &'a [u8], mode: XattrMode },
    GetXattr { name: &'a CStr, size: u32 },
    ListXattr { size: u32 },
    RemoveXattr { name: &'a CStr },
    OpenDir,
    ReadDir { handle: Handle, offset: u64, size: u32, plus: bool },
    ReleaseDir { handle: Handle },
    FsyncDir { handle: Handle, data_only: bool },
    Access { mask: u32 },
    Fallocate { handle: Handle, offset: u64, length: u64, mode: FallocateMode },
    Seek { handle: Handle, offset: u64, target: SeekTarget },
    CopyFileRange { from: Handle, from_offset: u64, to_node: NodeId, to: Handle, to_offset: u64, length: u64 },
    SyncFs,
    Interrupt,
    Ioctl,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The node that the operation is about.
    pub node: NodeId,
    /// Who asks.
    pub context: Context,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What precedes every operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) len: usize,
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: NodeId,
    pub(crate) context: Context,
}

impl Header {
    /// Reads the header of 40 bytes; whether `len` is true is the caller's to check.
    pub(crate) fn parse(message: &[u8]) -> Result<Header, Errno> {
        let mut fields = Fields::new(message);
        let len = usize::try_from(fields.u32()?).map_err(|_| Errno::INVAL)?;
        let opcode = fields.u32()?;
        let unique = fields.u64()?;
        let node = NodeId(fields.u64()?);
        let context = Context { uid: fields.u32()?, gid: fields.u32()? };
        fields.take(8)?; // pid, total_extlen (no extension is negotiated), padding
        Ok(Header { len, opcode, unique, node, context })
    }

    /// Whether the guest waits for no reply.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.opcode, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT)
    }
}

impl<'a> Request<'a> {
    /// Parses one message: header and arguments, without the payload of a write. `payload` is the number of payload bytes
    /// that follow (0 unless a write).
    ///
    /// # Errors
    /// The error number to answer with: [`Errno::INVAL`] for what is malformed, [`Errno::NAMETOOLONG`] for names,
    /// [`Errno::NOSYS`] for operations that we do not speak (the guest's kernel then stops asking).
    pub fn parse(message: &'a [u8], payload: usize) -> Result<Request<'a>, Errno> {
        let header = Header::parse(message)?;
        let body = message.get(abi::IN_HEADER..).ok_or(Errno::INVAL)?;
        let operation = parse_operation(header.opcode, &mut Fields::new(body), payload)?;
        Ok(Request { node: header.node, context: header.context, operation })
    }
}

fn parse_operation<'a>(code: u32, f: &mut Fields<'a>, payload: usize) -> Result<Operation<'a>, Errno> {
    match code {
        opcode::LOOKUP | opcode::UNLINK | opcode::RMDIR | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR => {
            parse_entry(code, f)
        }
        opcode::RENAME | opcode::RENAME2 | opcode::LINK | opcode::CREATE => parse_entry(code, f),
        opcode::OPEN | opcode::READ | opcode::WRITE | opcode::RELEASE | opcode::FLUSH | opcode::FSYNC => {
            parse_file(code, f, payload)
        }
        opcode::FALLOCATE | opcode::LSEEK | opcode::COPY_FILE_RANGE => parse_file(code, f, payload),
        opcode::OPENDIR | opcode::READDIR | opcode::READDIRPLUS | opcode::RELEASEDIR | opcode::FSYNCDIR => {
            parse_directory(code, f)
        }
        opcode::SETXATTR | opcode::GETXATTR | opcode::LISTXATTR | opcode::REMOVEXATTR => parse_xattr(code, f),
        opcode::FORGET => Ok(Operation::Forget { count: f.u64()? }),
        opcode::BATCH_FORGET => parse_batch_forget(f),
        opcode::GETATTR => {
            let flags = f.u32()?;
            f.u32()?;
            let handle = Handle(f.u64()?);
            Ok(Operation::GetAttr { handle: (flags & abi::GETATTR_FH != 0).then_some(handle) })
        }
        opcode::SETATTR => parse_setattr(f),
        opcode::READLINK => Ok(Operation::ReadLink),
        opcode::ACCESS => Ok(Operation::Access { mask: f.u32()? & 0o7 }),
        opcode::STATFS => Ok(Operation::StatFs),
        opcode::SYNCFS => Ok(Operation::SyncFs),
        opcode::INTERRUPT => Ok(Operation::Interrupt),
        opcode::IOCTL => Ok(Operation::Ioctl),
        opcode::INIT => parse_init(f),
        opcode::DESTROY => Ok(Operation::Destroy),
        _ => Err(Errno::NOSYS),
    }
}

/// Operations on a directory's entries.
fn parse_entry<'a>(code: u32, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match code {
        opcode::LOOKUP => Operation::Lookup { name: name(f)? },
        opcode::UNLINK => Operation::Unlink { name: name(f)? },
        opcode::RMDIR => Operation::Rmdir { name: name(f)? },
        opcode::SYMLINK => {
            let name = name(f)?;
            let target = f.text()?;
            if target.is_empty() {
                return Err(Errno::NOENT);
            }
            if target.count_bytes() > abi::TARGET_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            Operation::Symlink { name, target }
        }
        opcode::MKNOD => {
            let mode = f.u32()?;
            f.take(12)?; // rdev (only regular files are made), umask (applied by the guest's kernel), padding
            if !matches!(mode & abi::S_IFMT, 0 | abi::S_IFREG) {
                return Err(Errno::PERM);
            }
            Operation::Mknod { mode: mode & 0o7777, name: name(f)? }
        }
        opcode::MKDIR => {
            let mode = f.u32()? & 0o7777;
            f.u32()?;
            Operation::Mkdir { mode, name: name(f)? }
        }
        opcode::RENAME => {
            let new_parent = NodeId(f.u64()?);
            Operation::Rename { new_parent, name: name(f)?, new_name: name(f)?, mode: RenameMode::Replace }
        }
        opcode::RENAME2 => {
            let new_parent = NodeId(f.u64()?);
            let mode = match f.u32()? {
                0 => RenameMode::Replace,
                abi::RENAME_NOREPLACE => RenameMode::NoReplace,
                abi::RENAME_EXCHANGE => RenameMode::Exchange,
                _ => return Err(Errno::INVAL),
            };
            f.u32()?;
            Operation::Rename { new_parent, name: name(f)?, new_name: name(f)?, mode }
        }
        opcode::LINK => Operation::Link { node: NodeId(f.u64()?), name: name(f)? },
        _ => {
            let flags = OpenFlags::parse(f.u32()?)?;
            let mode = f.u32()? & 0o7777;
            f.take(8)?; // umask (applied by the guest's kernel), open_flags
            Operation::Create { flags, mode, name: name(f)? }
        }
    })
}

/// Operations on open files.
fn parse_file<'a>(code: u32, f: &mut Fields<'a>, payload: usize) -> Result<Operation<'a>, Errno> {
    if code == opcode::OPEN {
        return Ok(Operation::Open { flags: OpenFlags::parse(f.u32()?)? });
    }
    let handle = Handle(f.u64()?);
    Ok(match code {
        opcode::READ => {
            let offset = f.u64()?;
            let size = f.u32()?.min(MAX_TRANSFER);
            range(offset, u64::from(size))?;
            Operation::Read { handle, offset, size }
        }
        opcode::WRITE => {
            let offset = f.u64()?;
            let size = f.u32()?;
            let write_flags = f.u32()?;
            f.u64()?; // lock_owner
            let flags = f.u32()?;
            f.u32()?;
            if size > MAX_TRANSFER || usize::try_from(size).is_ok_and(|size| size > payload) {
                return Err(Errno::INVAL);
            }
            range(offset, u64::from(size))?;
            // Pages written back have their place in the file, whatever the handle that the kernel picked says.
            let append = flags & open::APPEND != 0 && write_flags & abi::WRITE_CACHE == 0;
            Operation::Write { handle, offset, size, append }
        }
        opcode::RELEASE => Operation::Release { handle },
        opcode::FLUSH => Operation::Flush { handle },
        opcode::FSYNC => Operation::Fsync { handle, data_only: f.u32()? & abi::FSYNC_FDATASYNC != 0 },
        opcode::FALLOCATE => {
            let (offset, length) = (f.u64()?, f.u64()?);
            let mode = parse_fallocate_mode(f.u32()?)?;
            range(offset, length)?;
            if length == 0 {
                return Err(Errno::INVAL);
            }
            Operation::Fallocate { handle, offset, length, mode }
        }
        opcode::LSEEK => {
            let offset = f.u64()?;
            let target = match f.u32()? {
                abi::SEEK_DATA => SeekTarget::Data,
                abi::SEEK_HOLE => SeekTarget::Hole,
                _ => return Err(Errno::INVAL),
            };
            range(offset, 0).map_err(|_| Errno::NXIO)?;
            Operation::Seek { handle, offset, target }
        }
        _ => {
            let from_offset = f.u64()?;
            let (to_node, to, to_offset, length) = (NodeId(f.u64()?), Handle(f.u64()?), f.u64()?, f.u64()?);
            if f.u64()? != 0 {
                return Err(Errno::INVAL);
            }
            range(from_offset, length)?;
            range(to_offset, length)?;
            Operation::CopyFileRange { from: handle, from_offset, to_node, to, to_offset, length }
        }
    })
}

fn parse_fallocate_mode(raw: u32) -> Result<FallocateMode, Errno> {
    const PUNCH: u32 = falloc::PUNCH_HOLE | falloc::KEEP_SIZE;
    const ZERO_KEEP: u32 = falloc::ZERO_RANGE | falloc::KEEP_SIZE;
    match raw {
        0 => Ok(FallocateMode::Allocate { keep_size: false }),
        falloc::KEEP_SIZE => Ok(FallocateMode::Allocate { keep_size: true }),
        PUNCH => Ok(FallocateMode::PunchHole),
        falloc::ZERO_RANGE => Ok(FallocateMode::Zero { keep_size: false }),
        ZERO_KEEP => Ok(FallocateMode::Zero { keep_size: true }),
        _ => Err(Errno::NOTSUP),
    }
}

/// Operations on open directories.
fn parse_directory<'a>(code: u32, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    if code == opcode::OPENDIR {
        return Ok(Operation::OpenDir);
    }
    let handle = Handle(f.u64()?);
    Ok(match code {
        opcode::RELEASEDIR => Operation::ReleaseDir { handle },
        opcode::FSYNCDIR => Operation::FsyncDir { handle, data_only: f.u32()? & abi::FSYNC_FDATASYNC != 0 },
        _ => {
            let offset = f.u64()?;
            range(offset, 0)?;
            let size = f.u32()?.min(MAX_TRANSFER);
            Operation::ReadDir { handle, offset, size, plus: code == opcode::READDIRPLUS }
        }
    })
}

fn parse_xattr<'a>(code: u32, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match code {
        opcode::SETXATTR => {
            let size = f.u32()?;
            let mode = match f.u32()? {
                0 => XattrMode::Set,
                abi::XATTR_CREATE => XattrMode::Create,
                abi::XATTR_REPLACE => XattrMode::Replace,
                _ => return Err(Errno::INVAL),
            };
            let name = xattr_name(f)?;
            if size > abi::XATTR_SIZE_MAX {
                return Err(Errno::TOOBIG);
            }
            let value = f.take(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
            Operation::SetXattr { name, value, mode }
        }
        opcode::GETXATTR => {
            let size = f.u32()?.min(abi::XATTR_SIZE_MAX);
            f.u32()?;
            Operation::GetXattr { size, name: xattr_name(f)? }
        }
        opcode::LISTXATTR => Operation::ListXattr { size: f.u32()?.min(abi::XATTR_SIZE_MAX) },
        _ => Operation::RemoveXattr { name: xattr_name(f)? },
    })
}

fn parse_batch_forget<'a>(f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let count = f.u32()?;
    f.u32()?;
    let mut nodes = Vec::new();
    // The message bounds the loop, whatever the count claims: a short message is an error before it is a loop.
    for _ in 0..count {
        nodes.push((NodeId(f.u64()?), f.u64()?));
    }
    Ok(Operation::BatchForget { nodes })
}

fn parse_setattr<'a>(f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let valid = f.u32()?;
    f.u32()?;
    let has = |bit: u32| valid & bit != 0;
    let handle = Handle(f.u64()?);
    let size = f.u64()?;
    f.u64()?; // lock_owner
    let (atime, mtime) = (f.u64()?, f.u64()?);
    f.u64()?; // ctime: the host's file system sets it
    let (atime_ns, mtime_ns) = (f.u32()?, f.u32()?);
    f.u32()?;
    let mode = f.u32()? & 0o7777;
    f.u32()?;
    let (uid, gid) = (f.u32()?, f.u32()?);
    if has(fattr::SIZE) {
        range(size, 0).map_err(|_| Errno::FBIG)?;
    }
    Ok(Operation::SetAttr {
        changes: SetAttributes {
            handle: has(fattr::FH).then_some(handle),
            mode: has(fattr::MODE).then_some(mode),
            uid: has(fattr::UID).then_some(uid),
            gid: has(fattr::GID).then_some(gid),
            size: has(fattr::SIZE).then_some(size),
            atime: set_time(has(fattr::ATIME), has(fattr::ATIME_NOW), atime, atime_ns)?,
            mtime: set_time(has(fattr::MTIME), has(fattr::MTIME_NOW), mtime, mtime_ns)?,
        },
    })
}

fn set_time(valid: bool, now: bool, seconds: u64, nanoseconds: u32) -> Result<Option<SetTime>, Errno> {
    if now {
        return Ok(Some(SetTime::Now));
    }
    if !valid {
        return Ok(None);
    }
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    Ok(Some(SetTime::At { seconds: seconds.cast_signed(), nanoseconds }))
}

fn parse_init<'a>(f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let (major, minor, max_readahead, flags) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
    // Older kernels end here.
    let high = if u64::from(flags) & abi::init::INIT_EXT != 0 { f.u32()? } else { 0 };
    Ok(Operation::Init { major, minor, max_readahead, flags: u64::from(flags) | u64::from(high) << 32 })
}

fn name<'a>(f: &mut Fields<'a>) -> Result<Name<'a>, Errno> {
    Name::new(f.text()?)
}

fn xattr_name<'a>(f: &mut Fields<'a>) -> Result<&'a CStr, Errno> {
    let name = f.text()?;
    match name.count_bytes() {
        0 => Err(Errno::INVAL),
        1..=255 => Ok(name),
        _ => Err(Errno::RANGE),
    }
}

/// Refuses a range that does not fit the host's signed file offsets.
fn range(offset: u64, len: u64) -> Result<(), Errno> {
    match offset.checked_add(len) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Errno::INVAL),
    }
}
