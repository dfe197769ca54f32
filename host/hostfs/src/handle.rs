//! Open files and directories of the guest. Their number is bounded, their numbers are never used again.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fuse_wire::{Access, Errno, Handle};

use crate::node::Node;

/// An open regular file.
pub(crate) struct OpenFile {
    pub(crate) node: Arc<Node>,
    /// Shared among the opens of a file that has no name any more, and of a shared single file.
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) access: Access,
    /// What `fd` itself is open for; at least `access`.
    pub(crate) fd_access: Access,
    pub(crate) synchronous: bool,
}

/// An open directory.
pub(crate) struct OpenDirectory {
    /// `None` for the root above the shares.
    pub(crate) host: Option<HostDirectory>,
}

/// An open directory of a share.
pub(crate) struct HostDirectory {
    pub(crate) node: Arc<Node>,
    /// Locked while it is listed: its position belongs to one reader.
    pub(crate) fd: Mutex<OwnedFd>,
}

#[derive(Clone)]
enum Open {
    File(Arc<OpenFile>),
    Directory(Arc<OpenDirectory>),
    /// Open in the session that was gone on with, and not to be opened again.
    Lost,
}

/// What a handle of a session is, for saving it.
pub(crate) enum Held {
    File(Arc<OpenFile>),
    Directory(Arc<OpenDirectory>),
    Lost,
}

/// All that the guest has open.
pub(crate) struct Handles {
    open: RwLock<(HashMap<Handle, Open>, u64)>,
    taken: AtomicUsize,
    limit: usize,
}

/// Room for one handle, given back unless it is filled.
pub(crate) struct Slot<'h> {
    handles: &'h Handles,
    filled: bool,
}

impl Handles {
    pub(crate) fn new(limit: usize) -> Handles {
        Handles { open: RwLock::default(), taken: AtomicUsize::new(0), limit }
    }

    /// Takes room for a handle before anything is opened or made.
    pub(crate) fn reserve(&self) -> Result<Slot<'_>, Errno> {
        if self.taken.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.taken.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::NFILE);
        }
        Ok(Slot { handles: self, filled: false })
    }

    fn get(&self, handle: Handle) -> Result<Open, Errno> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.0.get(&handle).cloned().ok_or(Errno::BADF)
    }

    pub(crate) fn file(&self, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        match self.get(handle)? {
            Open::File(file) => Ok(file),
            Open::Directory(_) => Err(Errno::BADF),
            Open::Lost => Err(Errno::STALE),
        }
    }

    pub(crate) fn directory(&self, handle: Handle) -> Result<Arc<OpenDirectory>, Errno> {
        match self.get(handle)? {
            Open::Directory(directory) => Ok(directory),
            Open::File(_) => Err(Errno::BADF),
            Open::Lost => Err(Errno::STALE),
        }
    }

    pub(crate) fn close(&self, handle: Handle) -> Result<(), Errno> {
        let closed = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            open.0.remove(&handle)
        };
        if closed.is_none() {
            return Err(Errno::BADF);
        }
        self.taken.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn clear(&self) {
        let closed = {
            let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut open.0)
        };
        self.taken.fetch_sub(closed.len(), Ordering::Relaxed);
    }

    /// All that is open, and the last number given out.
    pub(crate) fn held(&self) -> (Vec<(Handle, Held)>, u64) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let held = |(handle, what): (&Handle, &Open)| {
            let what = match what {
                Open::File(file) => Held::File(Arc::clone(file)),
                Open::Directory(directory) => Held::Directory(Arc::clone(directory)),
                Open::Lost => Held::Lost,
            };
            (*handle, what)
        };
        (open.0.iter().map(held).collect(), open.1)
    }

    /// Gives a handle of a session that is gone on with its meaning again. Numbers from `handle` on are new.
    pub(crate) fn restore(&self, handle: Handle, what: Held) -> Result<(), Errno> {
        let mut slot = self.reserve()?;
        slot.filled = true;
        let what = match what {
            Held::File(file) => {
                file.node.add_open_file(&file);
                Open::File(file)
            }
            Held::Directory(directory) => Open::Directory(directory),
            Held::Lost => Open::Lost,
        };
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.1 = open.1.max(handle.0);
        if open.0.insert(handle, what).is_some() {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Numbers from here on are new.
    pub(crate) fn count_from(&self, last: u64) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.1 = open.1.max(last);
    }

    pub(crate) fn count(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Slot<'_> {
    pub(crate) fn fill_file(self, file: OpenFile) -> Handle {
        let file = Arc::new(file);
        file.node.add_open_file(&file);
        self.fill(Open::File(file))
    }

    pub(crate) fn fill_directory(self, directory: OpenDirectory) -> Handle {
        self.fill(Open::Directory(Arc::new(directory)))
    }

    fn fill(mut self, what: Open) -> Handle {
        self.filled = true;
        let mut open = self.handles.open.write().unwrap_or_else(PoisonError::into_inner);
        open.1 = open.1.wrapping_add(1);
        let handle = Handle(open.1);
        open.0.insert(handle, what);
        handle
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.handles.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
