//! The guest's side of the wire, for tests and fuzzers: encodes requests as the kernel does, hands them to a
//! [`RequestHandler`], splits the buffers as a virtqueue would, and checks the shape of the reply.
//!
//! Names and numbers are sent as they are given, so that a test can send what no honest kernel would.

use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};

use crate::abi::{self, opcode};
use crate::bytes::{Encoder, Fields};
use crate::{Errno, Handle, NodeId, RequestHandler};

/// A raw request: opcode, node and arguments.
#[derive(Clone, Debug)]
pub struct Call {
    /// `enum fuse_opcode`.
    pub opcode: u32,
    /// The node that it is about.
    pub node: NodeId,
    /// All that follows the header.
    pub body: Vec<u8>,
}

impl Call {
    /// A request with this body.
    pub fn new(opcode: u32, node: NodeId, body: &[u8]) -> Call {
        Call { opcode, node, body: body.to_vec() }
    }

    /// The message's bytes.
    pub fn encode(&self, unique: u64, uid: u32, gid: u32) -> Vec<u8> {
        let mut out = Encoder::default();
        let len = abi::IN_HEADER.saturating_add(self.body.len());
        out.u32(u32::try_from(len).unwrap_or(u32::MAX)).u32(self.opcode).u64(unique).u64(self.node.0);
        out.u32(uid).u32(gid).u32(1).u32(0).bytes(&self.body);
        out.into_vec()
    }
}

/// A node as a reply showed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its id; 0 in answers that name none.
    pub node: NodeId,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub size: u64,
    /// Mode with type bits.
    pub mode: u32,
    /// Number of names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number; never other than 0.
    pub rdev: u32,
    /// Seconds of the last change of content.
    pub mtime: u64,
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Inode number.
    pub inode: u64,
    /// Where to go on after it.
    pub next: u64,
    /// `d_type`.
    pub kind: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// The node looked up with it (`READDIRPLUS`).
    pub entry: Option<Seen>,
}

/// A guest's kernel, as far as a test needs one.
pub struct Client<'h> {
    handler: &'h dyn RequestHandler,
    unique: Cell<u64>,
    /// The user that asks.
    pub uid: Cell<u32>,
    /// The group that asks.
    pub gid: Cell<u32>,
    /// `open_flags` of the last open.
    pub open_flags: Cell<u32>,
    /// Flags that the server accepted at `INIT`, both halves.
    pub accepted: Cell<u64>,
}

type Result<T> = std::result::Result<T, Errno>;

impl<'h> Client<'h> {
    /// A client that has sent nothing yet.
    pub fn new(handler: &'h dyn RequestHandler) -> Client<'h> {
        Client {
            handler,
            unique: Cell::new(2),
            uid: Cell::new(1000),
            gid: Cell::new(1000),
            open_flags: Cell::new(0),
            accepted: Cell::new(0),
        }
    }

    /// A client that has had its `INIT` answered, as Linux 6.12 sends it.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn start(handler: &'h dyn RequestHandler) -> Result<Client<'h>> {
        let client = Client::new(handler);
        client.init(40)?;
        Ok(client)
    }

    /// Sends `INIT` with a minor version, offering everything.
    pub fn init(&self, minor: u32) -> Result<u32> {
        let mut out = Encoder::default();
        out.u32(abi::MAJOR).u32(minor).u32(1 << 20).u32(!(1 << 31)).u32(u32::MAX).zeros(44);
        let reply = self.call(opcode::INIT, NodeId(0), out.as_slice(), 64)?;
        let mut f = Fields::new(&reply);
        f.u32()?;
        let answered = f.u32()?;
        f.u32()?;
        let low = f.u32()?;
        f.take(16)?;
        self.accepted.set(u64::from(low) | u64::from(f.u32()?) << 32);
        Ok(answered)
    }

    /// Sends a request with room for `room` bytes of reply body.
    pub fn call(&self, opcode: u32, node: NodeId, body: &[u8], room: usize) -> Result<Vec<u8>> {
        let unique = self.unique.get();
        self.unique.set(unique.wrapping_add(2));
        let message = Call::new(opcode, node, body).encode(unique, self.uid.get(), self.gid.get());
        // As a virtqueue has it: header, arguments and payload in buffers of their own.
        let (header, rest) = message.split_at(abi::IN_HEADER.min(message.len()));
        let (args, payload) = rest.split_at(rest.len().min(abi::WRITE_IN));
        let request = [IoSlice::new(header), IoSlice::new(args), IoSlice::new(payload)];
        let mut head = [0u8; abi::OUT_HEADER];
        let mut data = vec![0u8; room];
        let at = room / 3;
        let (first, second) = data.split_at_mut(at);
        let mut reply = [IoSliceMut::new(&mut head), IoSliceMut::new(first), IoSliceMut::new(second)];
        let used = self.handler.handle(&request, &mut reply);
        let mut f = Fields::new(&head);
        let (len, error) = (f.u32()?, f.u32()?.cast_signed());
        if used == 0 || f.u64()? != unique || usize::try_from(len) != Ok(used) {
            return Err(Errno::PROTO);
        }
        if error != 0 {
            return Err(Errno::from_raw(error.saturating_neg()));
        }
        data.truncate(used.saturating_sub(abi::OUT_HEADER));
        Ok(data)
    }

    /// `LOOKUP`.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Seen> {
        entry(&mut Fields::new(&self.call(opcode::LOOKUP, parent, &text(&[name]), 128)?))
    }

    /// Looks up one name after the other.
    pub fn walk(&self, from: NodeId, path: &[&str]) -> Result<Seen> {
        let mut at = from;
        let mut seen = Err(Errno::INVAL);
        for name in path {
            let found = self.lookup(at, name.as_bytes())?;
            at = found.node;
            seen = Ok(found);
        }
        seen
    }

    /// `FORGET`. There is no reply.
    pub fn forget(&self, node: NodeId, count: u64) -> bool {
        self.call(opcode::FORGET, node, &count.to_le_bytes(), 0) == Err(Errno::PROTO)
    }

    /// `BATCH_FORGET`, claiming `claim` nodes.
    pub fn batch_forget(&self, claim: u32, nodes: &[(NodeId, u64)]) -> bool {
        let mut out = Encoder::default();
        out.u32(claim).u32(0);
        for (node, count) in nodes {
            out.u64(node.0).u64(*count);
        }
        self.call(opcode::BATCH_FORGET, NodeId(0), out.as_slice(), 0) == Err(Errno::PROTO)
    }

    /// `GETATTR`.
    pub fn getattr(&self, node: NodeId, handle: Option<Handle>) -> Result<Seen> {
        let mut out = Encoder::default();
        out.u32(u32::from(handle.is_some())).u32(0).u64(handle.map_or(0, |h| h.0));
        attributes(&self.call(opcode::GETATTR, node, out.as_slice(), 104)?)
    }

    /// `SETATTR` with raw `valid` bits and fields.
    pub fn setattr(&self, node: NodeId, set: RawSetAttr) -> Result<Seen> {
        let mut out = Encoder::default();
        out.u32(set.valid).u32(0).u64(set.handle).u64(set.size).u64(0).u64(set.atime).u64(set.mtime).u64(0);
        out.u32(set.atime_ns).u32(set.mtime_ns).u32(0).u32(set.mode).u32(0).u32(set.uid).u32(set.gid).u32(0);
        attributes(&self.call(opcode::SETATTR, node, out.as_slice(), 104)?)
    }

    /// Changes permission bits.
    pub fn chmod(&self, node: NodeId, mode: u32) -> Result<Seen> {
        self.setattr(node, RawSetAttr { valid: abi::fattr::MODE, mode, ..RawSetAttr::default() })
    }

    /// Changes owner and group.
    pub fn chown(&self, node: NodeId, uid: u32, gid: u32) -> Result<Seen> {
        let valid = abi::fattr::UID | abi::fattr::GID;
        self.setattr(node, RawSetAttr { valid, uid, gid, ..RawSetAttr::default() })
    }

    /// Changes the length, through a handle if there is one.
    pub fn truncate(&self, node: NodeId, handle: Option<Handle>, size: u64) -> Result<Seen> {
        let valid = abi::fattr::SIZE | if handle.is_some() { abi::fattr::FH } else { 0 };
        self.setattr(
            node,
            RawSetAttr { valid, size, handle: handle.map_or(0, |h| h.0), ..RawSetAttr::default() },
        )
    }

    /// `READLINK`.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        self.call(opcode::READLINK, node, &[], 4096)
    }

    /// `SYMLINK`.
    pub fn symlink(&self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Seen> {
        entry(&mut Fields::new(&self.call(opcode::SYMLINK, parent, &text(&[name, target]), 128)?))
    }

    /// `MKNOD`; `mode` with type bits.
    pub fn mknod(&self, parent: NodeId, name: &[u8], mode: u32) -> Result<Seen> {
        let mut out = Encoder::default();
        out.u32(mode).u32(0x0103).u32(0).u32(0).bytes(&text(&[name]));
        entry(&mut Fields::new(&self.call(opcode::MKNOD, parent, out.as_slice(), 128)?))
    }

    /// `MKDIR`.
    pub fn mkdir(&self, parent: NodeId, name: &[u8], mode: u32) -> Result<Seen> {
        let mut out = Encoder::default();
        out.u32(mode).u32(0).bytes(&text(&[name]));
        entry(&mut Fields::new(&self.call(opcode::MKDIR, parent, out.as_slice(), 128)?))
    }

    /// `UNLINK`.
    pub fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.call(opcode::UNLINK, parent, &text(&[name]), 0).map(drop)
    }

    /// `RMDIR`.
    pub fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        self.call(opcode::RMDIR, parent, &text(&[name]), 0).map(drop)
    }

    /// `RENAME2` with raw flags.
    pub fn rename(&self, parent: NodeId, name: &[u8], to: NodeId, new: &[u8], flags: u32) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(to.0).u32(flags).u32(0).bytes(&text(&[name, new]));
        self.call(opcode::RENAME2, parent, out.as_slice(), 0).map(drop)
    }

    /// `LINK`.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Seen> {
        let mut out = Encoder::default();
        out.u64(node.0).bytes(&text(&[name]));
        entry(&mut Fields::new(&self.call(opcode::LINK, parent, out.as_slice(), 128)?))
    }

    /// `OPEN` with Linux flags.
    pub fn open(&self, node: NodeId, flags: u32) -> Result<Handle> {
        let mut out = Encoder::default();
        out.u32(flags).u32(0);
        self.opened(&mut Fields::new(&self.call(opcode::OPEN, node, out.as_slice(), 16)?))
    }

    /// `CREATE` with Linux flags.
    pub fn create(&self, parent: NodeId, name: &[u8], mode: u32, flags: u32) -> Result<(Seen, Handle)> {
        let mut out = Encoder::default();
        out.u32(flags).u32(mode).u32(0).u32(0).bytes(&text(&[name]));
        let reply = self.call(opcode::CREATE, parent, out.as_slice(), 144)?;
        let mut f = Fields::new(&reply);
        Ok((entry(&mut f)?, self.opened(&mut f)?))
    }

    /// `READ`.
    pub fn read(&self, handle: Handle, offset: u64, size: u32) -> Result<Vec<u8>> {
        let mut out = Encoder::default();
        out.u64(handle.0).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        let room = usize::try_from(size.min(crate::MAX_TRANSFER)).map_err(|_| Errno::INVAL)?;
        self.call(opcode::READ, NodeId(0), out.as_slice(), room)
    }

    /// `WRITE`; `flags` are the open file's Linux flags.
    pub fn write(&self, handle: Handle, offset: u64, data: &[u8], flags: u32) -> Result<u32> {
        let mut out = Encoder::default();
        let size = u32::try_from(data.len()).map_err(|_| Errno::INVAL)?;
        out.u64(handle.0).u64(offset).u32(size).u32(0).u64(0).u32(flags).u32(0).bytes(data);
        let reply = self.call(opcode::WRITE, NodeId(0), out.as_slice(), 8)?;
        Fields::new(&reply).u32()
    }

    /// `RELEASE`.
    pub fn release(&self, handle: Handle) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(handle.0).zeros(16);
        self.call(opcode::RELEASE, NodeId(0), out.as_slice(), 0).map(drop)
    }

    /// `FLUSH`.
    pub fn flush(&self, handle: Handle) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(handle.0).zeros(16);
        self.call(opcode::FLUSH, NodeId(0), out.as_slice(), 0).map(drop)
    }

    /// `FSYNC`.
    pub fn fsync(&self, handle: Handle, flags: u32) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(handle.0).u32(flags).u32(0);
        self.call(opcode::FSYNC, NodeId(0), out.as_slice(), 0).map(drop)
    }

    /// `STATFS`: blocks, free blocks and longest name.
    pub fn statfs(&self, node: NodeId) -> Result<(u64, u64, u32)> {
        let reply = self.call(opcode::STATFS, node, &[], 80)?;
        let mut f = Fields::new(&reply);
        let (blocks, free) = (f.u64()?, f.u64()?);
        f.take(28)?;
        Ok((blocks, free, f.u32()?))
    }

    /// `SETXATTR`.
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let mut out = Encoder::default();
        out.u32(u32::try_from(value.len()).map_err(|_| Errno::INVAL)?).u32(flags);
        out.bytes(&text(&[name])).bytes(value);
        self.call(opcode::SETXATTR, node, out.as_slice(), 0).map(drop)
    }

    /// `GETXATTR`: the value.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let mut out = Encoder::default();
        out.u32(abi::XATTR_SIZE_MAX).u32(0).bytes(&text(&[name]));
        self.call(opcode::GETXATTR, node, out.as_slice(), 65536)
    }

    /// `LISTXATTR`: the names.
    pub fn listxattr(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let mut out = Encoder::default();
        out.u32(abi::XATTR_SIZE_MAX).u32(0);
        let reply = self.call(opcode::LISTXATTR, node, out.as_slice(), 65536)?;
        Ok(reply.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// `REMOVEXATTR`.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.call(opcode::REMOVEXATTR, node, &text(&[name]), 0).map(drop)
    }

    /// `OPENDIR`.
    pub fn opendir(&self, node: NodeId) -> Result<Handle> {
        self.opened(&mut Fields::new(&self.call(opcode::OPENDIR, node, &[0; 8], 16)?))
    }

    /// `READDIR` or `READDIRPLUS`: one buffer of entries.
    pub fn readdir(&self, handle: Handle, offset: u64, size: u32, plus: bool) -> Result<Vec<Listed>> {
        let mut out = Encoder::default();
        out.u64(handle.0).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        let code = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
        let room = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let reply = self.call(code, NodeId(0), out.as_slice(), room)?;
        let mut rest = reply.as_slice();
        let mut listed = Vec::new();
        while !rest.is_empty() {
            let mut f = Fields::new(rest);
            let seen = if plus { Some(entry(&mut f)?) } else { None };
            let (inode, next, len, kind) = (f.u64()?, f.u64()?, f.u32()?, f.u32()?);
            let len = usize::try_from(len).map_err(|_| Errno::INVAL)?;
            let name = f.take(len)?.to_vec();
            let head: usize = if plus { 152 } else { 24 };
            let record = head.saturating_add(len).next_multiple_of(8);
            rest = rest.get(record..).ok_or(Errno::PROTO)?;
            let entry = seen.filter(|seen| seen.node != NodeId(0));
            listed.push(Listed { inode, next, kind, name, entry });
        }
        Ok(listed)
    }

    /// A whole directory, read with buffers of `size` bytes.
    pub fn list(&self, node: NodeId, size: u32) -> Result<Vec<Listed>> {
        let handle = self.opendir(node)?;
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |last| last.next);
            let part = self.readdir(handle, offset, size, false)?;
            if part.is_empty() {
                break;
            }
            all.extend(part);
        }
        self.releasedir(handle)?;
        Ok(all)
    }

    /// `RELEASEDIR`.
    pub fn releasedir(&self, handle: Handle) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(handle.0).zeros(16);
        self.call(opcode::RELEASEDIR, NodeId(0), out.as_slice(), 0).map(drop)
    }

    /// `FALLOCATE` with a raw mode.
    pub fn fallocate(&self, handle: Handle, offset: u64, length: u64, mode: u32) -> Result<()> {
        let mut out = Encoder::default();
        out.u64(handle.0).u64(offset).u64(length).u32(mode).u32(0);
        self.call(opcode::FALLOCATE, NodeId(0), out.as_slice(), 0).map(drop)
    }

    /// `LSEEK` with a raw whence.
    pub fn lseek(&self, handle: Handle, offset: u64, whence: u32) -> Result<u64> {
        let mut out = Encoder::default();
        out.u64(handle.0).u64(offset).u32(whence).u32(0);
        let reply = self.call(opcode::LSEEK, NodeId(0), out.as_slice(), 8)?;
        Fields::new(&reply).u64()
    }

    /// `COPY_FILE_RANGE`.
    pub fn copy_file_range(&self, from: (Handle, u64), to: (Handle, u64), length: u64) -> Result<u32> {
        let mut out = Encoder::default();
        out.u64(from.0.0).u64(from.1).u64(0).u64(to.0.0).u64(to.1).u64(length).u64(0);
        let reply = self.call(opcode::COPY_FILE_RANGE, NodeId(0), out.as_slice(), 8)?;
        Fields::new(&reply).u32()
    }

    fn opened(&self, f: &mut Fields<'_>) -> Result<Handle> {
        let handle = Handle(f.u64()?);
        self.open_flags.set(f.u32()?);
        f.u32()?;
        Ok(handle)
    }
}

/// Fields of `fuse_setattr_in`.
#[expect(missing_docs, reason = "fields of the protocol's structure")]
#[derive(Clone, Copy, Debug, Default)]
pub struct RawSetAttr {
    pub valid: u32,
    pub handle: u64,
    pub size: u64,
    pub atime: u64,
    pub atime_ns: u32,
    pub mtime: u64,
    pub mtime_ns: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Strings, each with a NUL.
fn text(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(part);
        out.push(0);
    }
    out
}

fn entry(f: &mut Fields<'_>) -> Result<Seen> {
    let node = NodeId(f.u64()?);
    f.take(32)?;
    Ok(Seen { node, ..attr(f)? })
}

fn attributes(reply: &[u8]) -> Result<Seen> {
    let mut f = Fields::new(reply);
    f.take(16)?;
    attr(&mut f)
}

fn attr(f: &mut Fields<'_>) -> Result<Seen> {
    let (inode, size) = (f.u64()?, f.u64()?);
    f.take(16)?;
    let mtime = f.u64()?;
    f.take(20)?;
    let (mode, links, uid, gid, rdev) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?, f.u32()?);
    f.take(8)?;
    Ok(Seen { node: NodeId(0), inode, size, mode, links, uid, gid, rdev, mtime })
}
