//! Operations on regular files and their handles.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuse_wire::{Errno, Handle, NodeId, OpenFlags, OpenReply, Result, Timestamp};

use crate::HostFs;
use crate::attributes::drop_set_id;
use crate::handle::OpenFile;
use crate::node::{Fingerprint, Node};
use crate::sys::{self, Stat};

/// A file changed less than this before it was last opened may have changed again without a new time stamp: file systems stamp
/// by the kernel's tick, at most 10 ms.
const SETTLED: Duration = Duration::from_millis(40);

impl HostFs {
    pub(crate) fn open_file(&self, id: NodeId, flags: OpenFlags) -> Result<OpenReply> {
        if id == NodeId::ROOT {
            return Err(Errno::ISDIR);
        }
        let node = self.node(id)?;
        if flags.access.writes() || flags.truncate {
            self.writable(node.share)?;
        }
        let slot = self.handles.reserve()?;
        let _names = self.names_stay();
        let (fd, fd_access) = self.open_regular(&node, flags.access, flags.synchronous)?;
        if fd_access.writes() {
            drop_set_id(fd.as_fd())?;
        }
        if flags.truncate {
            if fd_access.writes() {
                sys::set_length(fd.as_fd(), 0)?;
            } else {
                self.resize(&node, None, 0)?;
            }
        }
        let keep_cache = unchanged_since_last_open(&node, &sys::stat_of(fd.as_fd())?);
        let handle = slot.fill_file(OpenFile {
            node,
            fd,
            access: flags.access,
            fd_access,
            synchronous: flags.synchronous,
        });
        Ok(OpenReply { handle, keep_cache })
    }

    pub(crate) fn read_file(
        &self,
        handle: Handle,
        offset: u64,
        into: &mut [IoSliceMut<'_>],
    ) -> Result<usize> {
        let file = self.handles.file(handle)?;
        if !file.access.reads() {
            return Err(Errno::BADF);
        }
        sys::read(file.fd.as_fd(), offset, into)
    }

    pub(crate) fn write_file(
        &self,
        handle: Handle,
        offset: u64,
        append: bool,
        from: &[IoSlice<'_>],
    ) -> Result<usize> {
        let file = self.writable_file(handle)?;
        sys::write(file.fd.as_fd(), offset, append, from)
    }

    /// An open file that may be written. The share is asked again: a handle is no permission.
    pub(crate) fn writable_file(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        let file = self.handles.file(handle)?;
        self.writable(file.node.share)?;
        if file.access.writes() { Ok(file) } else { Err(Errno::BADF) }
    }

    pub(crate) fn copy_range(&self, from: (Handle, u64), to: (Handle, u64), length: u64) -> Result<usize> {
        let source = self.handles.file(from.0)?;
        if !source.access.reads() {
            return Err(Errno::BADF);
        }
        let target = self.writable_file(to.0)?;
        sys::copy_range(source.fd.as_fd(), from.1, target.fd.as_fd(), to.1, length)
    }
}

/// Whether the guest's cached pages of a file hold, judged by what the file was when the guest opened it last.
fn unchanged_since_last_open(node: &Node, stat: &Stat) -> bool {
    let now = Fingerprint { size: stat.size, mtime: stat.mtime, ctime: stat.ctime };
    let kept = is_settled(stat.ctime).then_some(now);
    let before = std::mem::replace(&mut node.state().fingerprint, kept);
    before == Some(now)
}

fn is_settled(changed: Timestamp) -> bool {
    let Ok(seconds) = u64::try_from(changed.seconds) else { return true };
    let changed = UNIX_EPOCH + Duration::new(seconds, changed.nanoseconds);
    // A time in the future says nothing.
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED)
}
