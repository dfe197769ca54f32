//! From a node to a descriptor, by where the node was last seen and with a look at what was found there.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuse_wire::{Access, Errno, FileKind, NodeId, Result};

use crate::HostFs;
use crate::handle::OpenFile;
use crate::node::{Node, climb, lock};
use crate::sys::{self, OpenFor, Stat};

/// The longest path given to one call; `PATH_MAX` less some room.
const MAX_PATH: usize = 4000;

pub(crate) fn open_for(access: Access) -> OpenFor {
    match access {
        Access::Read => OpenFor::Reading,
        Access::Write => OpenFor::Writing,
        Access::ReadWrite => OpenFor::ReadingAndWriting,
    }
}

/// Whether a descriptor open for `has` serves `wants`.
pub(crate) fn covers(has: Access, wants: Access) -> bool {
    (has.reads() || !wants.reads()) && (has.writes() || !wants.writes())
}

impl HostFs {
    /// The node, which must not be the root above the shares.
    pub(crate) fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.nodes.get(id)
    }

    /// A descriptor that names a directory.
    pub(crate) fn directory(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if !node.is_directory() {
            return Err(Errno::NOTDIR);
        }
        if let Some(fd) = node.descriptor() {
            return Ok(fd);
        }
        let (base, names) = climb(node)?;
        let fd = Arc::new(walk(base.as_fd(), &names)?);
        if sys::stat_of(fd.as_fd())?.identity != node.identity {
            return Err(Errno::STALE);
        }
        self.descriptors.keep(node, Arc::clone(&fd));
        Ok(fd)
    }

    /// The directory and name that a node was last seen at. [`Errno::STALE`] if something else is there now.
    pub(crate) fn whereabouts(&self, node: &Arc<Node>) -> Result<(Arc<OwnedFd>, CString, Stat)> {
        let place = node.place().ok_or(Errno::STALE)?;
        let directory = self.directory(&place.parent)?;
        let stat = match sys::stat_at(directory.as_fd(), &place.name) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(Errno::STALE),
            other => other?,
        };
        if stat.identity != node.identity {
            return Err(Errno::STALE);
        }
        Ok((directory, place.name, stat))
    }

    /// What the host says of a node, wherever it can still be reached: at its place, through the descriptor kept when its
    /// name was removed, or through an open file.
    pub(crate) fn stat(&self, node: &Arc<Node>) -> Result<Stat> {
        if node.is_directory()
            && let Some(fd) = node.descriptor()
        {
            return sys::stat_of(fd.as_fd());
        }
        let missing = match self.whereabouts(node) {
            Ok((_, _, stat)) => return Ok(stat),
            Err(errno) => errno,
        };
        if let Some(fd) = node.descriptor() {
            return sys::stat_of(fd.as_fd());
        }
        match node.open_files().first() {
            Some(file) => sys::stat_of(file.fd.as_fd()),
            None => Err(missing),
        }
    }

    /// Opens a regular file. A file that has no name any more is opened through a descriptor that the guest has open on
    /// it already, if that suffices. Returns what the descriptor is open for.
    pub(crate) fn open_regular(
        &self,
        node: &Arc<Node>,
        access: Access,
        synchronous: bool,
    ) -> Result<(Arc<OwnedFd>, Access)> {
        if node.identity.kind != FileKind::Regular {
            return Err(if node.is_directory() { Errno::ISDIR } else { Errno::PERM });
        }
        if node.place().is_none() {
            return self.open_shared_file(node, access);
        }
        match self.open_by_name(node, open_for(access), synchronous) {
            Ok(fd) => Ok((Arc::new(fd), access)),
            Err(Errno::STALE) => {
                let suits = |file: &&Arc<OpenFile>| covers(file.fd_access, access);
                let files = node.open_files();
                let file = files.iter().find(suits).ok_or(Errno::STALE)?;
                Ok((Arc::clone(&file.fd), file.fd_access))
            }
            Err(errno) => Err(errno),
        }
    }

    /// A share that is a single file has one descriptor, opened by the parent process.
    fn open_shared_file(&self, node: &Arc<Node>, access: Access) -> Result<(Arc<OwnedFd>, Access)> {
        let share = self.shares.get(node.share).ok_or(Errno::STALE)?;
        let has = if share.read_only { Access::Read } else { Access::ReadWrite };
        if covers(has, access) { Ok((Arc::clone(&share.fd), has)) } else { Err(Errno::ROFS) }
    }

    fn open_by_name(&self, node: &Arc<Node>, how: OpenFor, synchronous: bool) -> Result<OwnedFd> {
        let (directory, name, _) = self.whereabouts(node)?;
        let open = || sys::open_entry(directory.as_fd(), &name, how, synchronous);
        let fd = match open() {
            // The guest's kernel has allowed it by the mode, or its root may do anything; here it is the caller's own file.
            Err(Errno::ACCESS) if how != OpenFor::Reading => {
                let handle = sys::open_entry(directory.as_fd(), &name, OpenFor::Reading, false)?;
                self.same(node, handle.as_fd())?;
                self.lifted(&[handle.as_fd()], 0o600, open)?
            }
            Err(Errno::LOOP | Errno::NOENT) => return Err(Errno::STALE),
            other => other?,
        };
        self.same(node, fd.as_fd())?;
        Ok(fd)
    }

    fn same(&self, node: &Node, fd: BorrowedFd<'_>) -> Result<()> {
        if sys::stat_of(fd)?.identity == node.identity { Ok(()) } else { Err(Errno::STALE) }
    }

    /// A descriptor of a regular file or directory through which its mode and attributes can be reached; what it is open for does not
    /// matter there.
    pub(crate) fn any_descriptor(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if node.is_directory() {
            let directory = self.directory(node)?;
            return sys::open_directory(directory.as_fd(), c".").map(Arc::new);
        }
        if let Some(file) = node.open_files().first() {
            return Ok(Arc::clone(&file.fd));
        }
        match self.open_regular(node, Access::Read, false) {
            Err(Errno::ACCESS) => self.open_regular(node, Access::Write, false).map(|(fd, _)| fd),
            other => other.map(|(fd, _)| fd),
        }
    }

    /// Does something in directories; where the caller's own lack write permission, grants it for the moment.
    pub(crate) fn in_directories<T>(
        &self,
        directories: &[BorrowedFd<'_>],
        mut action: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        match action() {
            Err(Errno::ACCESS) if self.caller.0 != 0 => {
                let open = |directory: &BorrowedFd<'_>| sys::open_directory(*directory, c".");
                let handles: Vec<OwnedFd> = directories.iter().map(open).collect::<Result<_>>()?;
                let handles: Vec<BorrowedFd<'_>> = handles.iter().map(AsFd::as_fd).collect();
                self.lifted(&handles, 0o700, action)
            }
            other => other,
        }
    }

    /// Does something that needs permission `bits` on files of the caller's, which it has the right to give itself; for that
    /// moment only.
    ///
    /// The guest's kernel has decided by the mode that it sees who may do this; that its root may write where the mode says no is
    /// the guest's matter. A file of another user on the host stays as closed as it is.
    pub(crate) fn lifted<T>(
        &self,
        files: &[BorrowedFd<'_>],
        bits: u32,
        mut action: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        match action() {
            Err(Errno::ACCESS) if self.caller.0 != 0 => {}
            other => return other,
        }
        // One at a time: what another lifted must not be taken for a file's own mode.
        let _alone = lock(&self.lift);
        let mut lifted = Vec::new();
        let outcome = self.lift_each(files, bits, &mut lifted).and_then(|()| action());
        let mut restored = Ok(());
        for (fd, mode) in lifted {
            restored = restored.and(sys::set_mode(fd, mode));
        }
        let value = outcome?;
        restored.map(|()| value)
    }

    fn lift_each<'f>(
        &self,
        files: &[BorrowedFd<'f>],
        bits: u32,
        lifted: &mut Vec<(BorrowedFd<'f>, u32)>,
    ) -> Result<()> {
        for fd in files {
            let stat = sys::stat_of(*fd)?;
            // A set-user-id file stays as it is: its bit could not be given back (`confine`'s filter has none of it).
            if stat.uid == self.caller.0 && stat.mode & bits != bits && stat.mode & 0o4000 == 0 {
                sys::set_mode(*fd, stat.mode | bits)?;
                lifted.push((*fd, stat.mode));
            }
        }
        Ok(())
    }
}

/// Opens a directory by names that were each met in the one before. A long chain takes more than one call.
fn walk(base: BorrowedFd<'_>, names: &[CString]) -> Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    let mut path: Vec<u8> = Vec::new();
    let step = |at: &Option<OwnedFd>, path: &[u8]| {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let dir = at.as_ref().map_or(base, AsFd::as_fd);
        match sys::open_directory_path(dir, &path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Err(Errno::STALE),
            other => other,
        }
    };
    for name in names {
        let name = name.to_bytes();
        if path.len() + 1 + name.len() > MAX_PATH {
            at = Some(step(&at, &path)?);
            path.clear();
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
    }
    step(&at, &path)
}
