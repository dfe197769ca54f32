//! Joins the wire and a file server: takes a message, has it done, writes the reply.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::abi::{self, init, opcode};
use crate::bytes::Encoder;
use crate::request::Header;
use crate::{
    DirectoryBuffer, Errno, FileSystem, MAX_MESSAGE, MAX_TRANSFER, Operation, Request, Settings, scatter,
};

/// What the virtio-fs device hands its requests to.
pub trait RequestHandler: Send + Sync {
    /// Does one request. `request` holds the device-readable buffers of the chain in order, `reply` the device-writable
    /// ones. Returns the number of bytes written at the front of `reply`; 0 where the guest waits for no reply, or where
    /// there is no room for one. May block on the host's files. The buffers may change while it runs (the guest shares
    /// them): every byte that decides anything is copied once, first.
    fn handle(&self, request: &[IoSlice<'_>], reply: &mut [IoSliceMut<'_>]) -> usize;

    /// The device was reset: the session and all that it had open is over.
    fn reset(&self);

    /// The session's state, to go on with in another process. No request is being handled meanwhile, nor until the process
    /// that goes on has restored it. A handler without state has none to save.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Goes on with a session that [`RequestHandler::save`] saved, in place of its own.
    ///
    /// # Errors
    /// The state is damaged, of another version, or does not fit this handler; then there is no session.
    fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        if state.is_empty() { Ok(()) } else { Err(RestoreError::Unfit("this handler has no state")) }
    }
}

/// Why a session cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// It is not what was saved.
    Damaged(&'static str),
    /// Another version of the program saved it, in a form that this one does not know.
    Version(u32),
    /// It belongs to a handler that is made differently.
    Unfit(&'static str),
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Damaged(what) => write!(f, "The file server's saved state is damaged: {what}"),
            RestoreError::Version(version) => {
                write!(f, "The file server's saved state has the unknown version {version}")
            }
            RestoreError::Unfit(what) => write!(f, "The file server's saved state does not fit: {what}"),
        }
    }
}

impl std::error::Error for RestoreError {}

/// Version of the server's own part of a saved session: one byte, then whether there is a session, then the file system's part.
const SAVED_VERSION: u8 = 1;

/// A file server behind the FUSE wire.
pub struct Server<F> {
    fs: F,
    started: AtomicBool,
}

/// How the reply is to end.
enum Reply {
    /// No reply is due.
    Silent,
    /// This body, after the header.
    Body(Vec<u8>),
    /// So many bytes are in the reply buffers already, after the header's place.
    InPlace(usize),
}

impl<F: FileSystem> Server<F> {
    /// A server that waits for the guest's `INIT`.
    pub fn new(fs: F) -> Server<F> {
        Server { fs, started: AtomicBool::new(false) }
    }

    /// The file server.
    pub fn file_system(&self) -> &F {
        &self.fs
    }

    fn perform(
        &self,
        request: Request<'_>,
        input: &[IoSlice<'_>],
        reply: &mut [IoSliceMut<'_>],
    ) -> Result<Reply, Errno> {
        let started = self.started.load(Ordering::Acquire);
        if !started && !matches!(request.operation, Operation::Init { .. } | Operation::Destroy) {
            return Err(Errno::IO);
        }
        let room = scatter::total_mut(reply).saturating_sub(abi::OUT_HEADER);
        let node = request.node;
        match request.operation {
            Operation::Init { major, minor, max_readahead, flags } => {
                self.initialize(major, minor, max_readahead, flags)
            }
            Operation::Destroy => {
                self.reset();
                Ok(empty())
            }
            Operation::Read { handle, offset, size } => {
                let len = usize::try_from(size).map_or(room, |size| size.min(room));
                let mut into = scatter::window_mut(reply, abi::OUT_HEADER, len);
                let done = self.fs.read(handle, offset, &mut into)?;
                Ok(Reply::InPlace(done.min(len)))
            }
            Operation::Write { handle, offset, size, append } => {
                let len = usize::try_from(size).map_err(|_| Errno::INVAL)?;
                let from = scatter::window(input, abi::IN_HEADER.saturating_add(abi::WRITE_IN), len);
                let done = self.fs.write(handle, offset, append, &from)?;
                let done = u32::try_from(done).map_err(|_| Errno::IO)?;
                Ok(body(|out| {
                    out.u32(done).u32(0);
                }))
            }
            Operation::ReadDir { handle, offset, size, plus } => {
                let len = usize::try_from(size).map_or(room, |size| size.min(room));
                let mut buffer = DirectoryBuffer::new(len, plus);
                self.fs.readdir(handle, offset, &mut buffer)?;
                Ok(Reply::Body(buffer.into_vec()))
            }
            Operation::Forget { .. } | Operation::BatchForget { .. } | Operation::Interrupt => {
                self.forget(request);
                Ok(Reply::Silent)
            }
            Operation::GetXattr { name, size } => sized(self.fs.getxattr(node, name)?, size),
            Operation::ListXattr { size } => sized(self.fs.listxattr(node)?, size),
            _ => self.perform_simple(request),
        }
    }

    /// Operations that need nothing but their arguments.
    fn perform_simple(&self, request: Request<'_>) -> Result<Reply, Errno> {
        let fs = &self.fs;
        let Request { node, context: cx, operation } = request;
        match operation {
            Operation::Lookup { name } => fs.lookup(node, name).map(|entry| body(|out| entry.encode(out))),
            Operation::GetAttr { handle } => {
                fs.getattr(node, handle).map(|attr| body(|out| attr.encode(out)))
            }
            Operation::SetAttr { changes } => {
                fs.setattr(node, &changes).map(|attr| body(|out| attr.encode(out)))
            }
            Operation::ReadLink => fs.readlink(node).map(Reply::Body),
            Operation::Symlink { name, target } => {
                fs.symlink(&cx, node, name, target).map(|entry| body(|out| entry.encode(out)))
            }
            Operation::Mknod { name, mode } => {
                fs.mknod(&cx, node, name, mode).map(|entry| body(|out| entry.encode(out)))
            }
            Operation::Mkdir { name, mode } => {
                fs.mkdir(&cx, node, name, mode).map(|entry| body(|out| entry.encode(out)))
            }
            Operation::Unlink { name } => fs.unlink(node, name).map(|()| empty()),
            Operation::Rmdir { name } => fs.rmdir(node, name).map(|()| empty()),
            Operation::Rename { name, new_parent, new_name, mode } => {
                fs.rename(node, name, new_parent, new_name, mode).map(|()| empty())
            }
            Operation::Link { node: target, name } => {
                fs.link(target, node, name).map(|entry| body(|out| entry.encode(out)))
            }
            Operation::Open { flags } => fs.open(node, flags).map(|open| body(|out| open.encode(out))),
            Operation::Create { name, mode, flags } => {
                fs.create(&cx, node, name, mode, flags).map(|(entry, open)| {
                    body(|out| {
                        entry.encode(out);
                        open.encode(out);
                    })
                })
            }
            Operation::StatFs => fs.statfs(node).map(|space| body(|out| space.encode(out))),
            Operation::Release { handle } => fs.release(handle).map(|()| empty()),
            Operation::Flush { handle } => fs.flush(handle).map(|()| empty()),
            Operation::Fsync { handle, data_only } => fs.fsync(handle, data_only).map(|()| empty()),
            Operation::SetXattr { name, value, mode } => {
                fs.setxattr(node, name, value, mode).map(|()| empty())
            }
            Operation::RemoveXattr { name } => fs.removexattr(node, name).map(|()| empty()),
            Operation::OpenDir => fs.opendir(node).map(|open| body(|out| open.encode(out))),
            Operation::ReleaseDir { handle } => fs.releasedir(handle).map(|()| empty()),
            Operation::FsyncDir { handle, data_only } => fs.fsyncdir(handle, data_only).map(|()| empty()),
            Operation::Access { mask } => fs.access(node, mask).map(|()| empty()),
            Operation::Fallocate { handle, offset, length, mode } => {
                fs.fallocate(handle, offset, length, mode).map(|()| empty())
            }
            Operation::Seek { handle, offset, target } => fs.seek(handle, offset, target).map(|at| {
                body(|out| {
                    out.u64(at);
                })
            }),
            Operation::CopyFileRange { from, from_offset, to, to_offset, length, .. } => {
                // The answer has 32 bits; the guest's kernel asks again for the rest.
                let length = length.min(u64::from(!0xfff_u32));
                let done = fs.copy_file_range(from, from_offset, to, to_offset, length)?;
                let done = u32::try_from(done).map_err(|_| Errno::IO)?;
                Ok(body(|out| {
                    out.u32(done).u32(0);
                }))
            }
            Operation::SyncFs => fs.syncfs(node).map(|()| empty()),
            Operation::Ioctl => Err(Errno::NOTTY),
            _ => Err(Errno::NOSYS),
        }
    }

    fn forget(&self, request: Request<'_>) {
        match request.operation {
            Operation::Forget { count } => self.fs.forget(request.node, count),
            Operation::BatchForget { nodes } => {
                for (node, count) in nodes {
                    self.fs.forget(node, count);
                }
            }
            _ => {}
        }
    }

    fn initialize(&self, major: u32, minor: u32, max_readahead: u32, offered: u64) -> Result<Reply, Errno> {
        if major > abi::MAJOR {
            // The kernel comes again with our major version.
            return Ok(body(|out| {
                out.u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
            }));
        }
        if major < abi::MAJOR || minor < abi::MIN_MINOR {
            return Err(Errno::PROTO);
        }
        let settings = self.fs.init();
        self.started.store(true, Ordering::Release);
        let flags = wanted(settings) & offered;
        let pages = u16::try_from(MAX_TRANSFER.div_ceil(4096)).unwrap_or(u16::MAX);
        Ok(body(|out| {
            out.u32(abi::MAJOR).u32(minor.min(abi::MINOR)).u32(max_readahead.min(MAX_TRANSFER));
            out.u32(low_half(flags));
            out.u16(64).u16(48); // max_background, congestion_threshold
            out.u32(MAX_TRANSFER).u32(1); // max_write, time granularity in ns
            out.u16(pages).u16(0); // max_pages, map_alignment (no DAX)
            out.u32(low_half(flags >> 32)).zeros(28);
        }))
    }
}

impl<F: FileSystem> RequestHandler for Server<F> {
    fn handle(&self, request: &[IoSlice<'_>], reply: &mut [IoSliceMut<'_>]) -> usize {
        let total = scatter::total(request);
        let head = scatter::gather(request, abi::IN_HEADER);
        // Without a header there is nobody to answer.
        let Ok(header) = Header::parse(&head) else { return 0 };
        let outcome = read_message(&header, &head, total, request).and_then(|(message, payload)| {
            let parsed = Request::parse(&message, payload)?;
            self.perform(parsed, request, reply)
        });
        if header.is_silent() {
            return 0;
        }
        finish(header.unique, outcome, reply)
    }

    fn reset(&self) {
        self.started.store(false, Ordering::Release);
        self.fs.destroy();
    }

    fn save(&self) -> Vec<u8> {
        let mut state = vec![SAVED_VERSION, u8::from(self.started.load(Ordering::Acquire))];
        state.extend(self.fs.save());
        state
    }

    fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        self.reset();
        let (head, fs) = state.split_first_chunk::<2>().ok_or(RestoreError::Damaged("it is too short"))?;
        match head {
            [SAVED_VERSION, started @ (0 | 1)] => {
                self.fs.restore(fs).inspect_err(|_| self.fs.destroy())?;
                self.started.store(*started == 1, Ordering::Release);
                Ok(())
            }
            [SAVED_VERSION, _] => Err(RestoreError::Damaged("there is half a session")),
            [version, _] => Err(RestoreError::Version(u32::from(*version))),
        }
    }
}

/// Copies header and arguments out of the shared buffers; the header's bytes are those seen before, so that what was
/// checked and what is used cannot differ. Returns the message and the length of a write's payload.
fn read_message(
    header: &Header,
    head: &[u8],
    total: usize,
    request: &[IoSlice<'_>],
) -> Result<(Vec<u8>, usize), Errno> {
    if header.len > total || header.len < abi::IN_HEADER {
        return Err(Errno::INVAL);
    }
    let body = header.len.saturating_sub(abi::IN_HEADER);
    let (body, payload) = if header.opcode == opcode::WRITE {
        let args = body.min(abi::WRITE_IN);
        (args, body.saturating_sub(args))
    } else {
        (body, 0)
    };
    if body > MAX_MESSAGE {
        return Err(Errno::TOOBIG);
    }
    let mut message = Vec::with_capacity(head.len().saturating_add(body));
    message.extend_from_slice(head);
    for slice in scatter::window(request, abi::IN_HEADER, body) {
        message.extend_from_slice(&slice);
    }
    Ok((message, payload))
}

fn finish(unique: u64, outcome: Result<Reply, Errno>, reply: &mut [IoSliceMut<'_>]) -> usize {
    let room = scatter::total_mut(reply);
    if room < abi::OUT_HEADER {
        return 0;
    }
    let (error, body, in_place) = match outcome {
        Ok(Reply::Silent) => return 0,
        Ok(Reply::Body(body)) if body.len().saturating_add(abi::OUT_HEADER) > room => {
            (Errno::RANGE.raw(), Vec::new(), 0)
        }
        Ok(Reply::Body(body)) => (0, body, 0),
        Ok(Reply::InPlace(len)) => (0, Vec::new(), len),
        Err(errno) => (errno.raw(), Vec::new(), 0),
    };
    let len = abi::OUT_HEADER.saturating_add(body.len()).saturating_add(in_place);
    let mut out = Encoder::with_capacity(abi::OUT_HEADER.saturating_add(body.len()));
    out.u32(u32::try_from(len).unwrap_or(u32::MAX)).u32(error.saturating_neg().cast_unsigned()).u64(unique);
    out.bytes(&body);
    scatter::scatter(reply, out.as_slice());
    len
}

/// Flags that we ask the guest's kernel for, where it offers them. Locks are not among them: they stay in the guest.
fn wanted(settings: Settings) -> u64 {
    let always = init::ASYNC_READ
        | init::ATOMIC_O_TRUNC
        | init::BIG_WRITES
        | init::AUTO_INVAL_DATA
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES
        // No file of ours ever shows a set-id bit or a capability, so there is nothing to kill, and the kernel need not ask
        // for `security.capability` before each write.
        | init::HANDLE_KILLPRIV_V2
        | init::INIT_EXT;
    let listing = if settings.readdirplus { init::DO_READDIRPLUS | init::READDIRPLUS_AUTO } else { 0 };
    always | listing
}

fn low_half(flags: u64) -> u32 {
    u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0)
}

fn body(fill: impl FnOnce(&mut Encoder)) -> Reply {
    let mut out = Encoder::with_capacity(160);
    fill(&mut out);
    Reply::Body(out.into_vec())
}

fn empty() -> Reply {
    Reply::Body(Vec::new())
}

/// An attribute's bytes, or only their length where the guest asks with size 0.
fn sized(value: Vec<u8>, size: u32) -> Result<Reply, Errno> {
    let len = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if size == 0 {
        return Ok(body(|out| {
            out.u32(len).u32(0);
        }));
    }
    if len > size { Err(Errno::RANGE) } else { Ok(Reply::Body(value)) }
}

// The size that Linux 6.12 sends; the reply to `INIT` has the same.
const _: () = assert!(abi::INIT_IN == 64);
