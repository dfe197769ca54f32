//! Nodes: what the guest has looked up and not yet given back.
//!
//! A node remembers where it was last seen (parent and name) and what it is (device, inode, birth), and needs no open
//! descriptor: a tree of any size is served under any descriptor limit, and a fork can open again what its parent knew. The
//! [`Identity`] is checked whenever a node is reached by name again, so a name that means another file by now is stale, not
//! mistaken.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fuse_wire::{Errno, FileKind, NodeId, Timestamp};

use crate::handle::OpenFile;
use crate::owner::Owner;
use crate::sys::{Identity, Stat};

/// The longest chain of parents that is followed. Longer ones exist only if somebody made them to tease us.
const MAX_DEPTH: usize = 4096;

/// What a node takes beside its name, in bytes, rounded up: itself, its share of the two tables at the emptiest that they get
/// after growing, and the allocator's own use for it and for its name.
pub(crate) const NODE_BYTES: usize = 512;

/// Where a node was last seen.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: CString,
}

/// What is remembered of a file's state to know whether the guest's cached pages still hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) size: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
}

#[derive(Default)]
pub(crate) struct State {
    /// `None` for a share's root.
    pub(crate) place: Option<Place>,
    /// Names the file itself: kept for directories that are in use, and for files whose name the guest removed.
    descriptor: Option<Arc<OwnedFd>>,
    open: Vec<Weak<OpenFile>>,
    /// The owner attribute, and the time of last change that it was read at.
    pub(crate) owner: Option<(Timestamp, Owner)>,
    pub(crate) fingerprint: Option<Fingerprint>,
    /// Times of access and modification that the guest gave to a link or special file.
    pub(crate) times: Option<Box<(Timestamp, Timestamp)>>,
    /// Bytes of the name that are counted in [`Alive`].
    counted: usize,
}

/// What is in memory: known to the guest, or still above a node that is.
#[derive(Default)]
struct Alive {
    nodes: AtomicUsize,
    bytes: AtomicUsize,
}

/// One file, directory or link of a share.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) share: usize,
    pub(crate) identity: Identity,
    state: Mutex<State>,
    used: AtomicBool,
    alive: Arc<Alive>,
}

impl Node {
    fn new(id: NodeId, share: usize, identity: Identity, state: State, alive: &Arc<Alive>) -> Arc<Node> {
        alive.nodes.fetch_add(1, Ordering::Relaxed);
        alive.bytes.fetch_add(NODE_BYTES, Ordering::Relaxed);
        let used = AtomicBool::new(false);
        Arc::new(Node { id, share, identity, state: Mutex::new(state), used, alive: Arc::clone(alive) })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.identity.kind == FileKind::Directory
    }

    pub(crate) fn place(&self) -> Option<Place> {
        self.state().place.clone()
    }

    pub(crate) fn set_place(&self, parent: &Arc<Node>, name: &CStr) {
        let place = Place { parent: Arc::clone(parent), name: name.to_owned() };
        // The old place is dropped after the lock: it may be the last holder of a chain of parents.
        let _old = {
            let mut state = self.state();
            let bytes = name.count_bytes();
            let before = std::mem::replace(&mut state.counted, bytes);
            self.alive.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.alive.bytes.fetch_sub(before, Ordering::Relaxed);
            state.place.replace(place)
        };
    }

    pub(crate) fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        let found = self.state().descriptor.clone();
        if found.is_some() {
            self.used.store(true, Ordering::Relaxed);
        }
        found
    }

    /// Files that the guest has open on this node.
    pub(crate) fn open_files(&self) -> Vec<Arc<OpenFile>> {
        self.state().open.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn add_open_file(&self, file: &Arc<OpenFile>) {
        let mut state = self.state();
        state.open.retain(|open| open.strong_count() > 0);
        state.open.push(Arc::downgrade(file));
    }

    /// Whether `other` is this node or above it.
    fn is_below(self: &Arc<Node>, other: &Node) -> bool {
        let mut at = Arc::clone(self);
        for _ in 0..MAX_DEPTH {
            if at.id == other.id {
                return true;
            }
            match at.place() {
                Some(place) => at = place.parent,
                None => return false,
            }
        }
        true
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.alive.nodes.fetch_sub(1, Ordering::Relaxed);
        self.alive.bytes.fetch_sub(NODE_BYTES + state.counted, Ordering::Relaxed);
        // Parents are let go one after the other: a chain as deep as a hostile tree must not recurse on the stack.
        let mut next = state.place.take();
        while let Some(place) = next {
            next = Arc::into_inner(place.parent).and_then(|mut parent| {
                parent.state.get_mut().unwrap_or_else(PoisonError::into_inner).place.take()
            });
        }
    }
}

/// The chain of names from `node` up to the nearest directory with an open descriptor, that descriptor first.
pub(crate) fn climb(node: &Arc<Node>) -> Result<(Arc<OwnedFd>, Vec<CString>), Errno> {
    let mut names = Vec::new();
    let mut at = Arc::clone(node);
    loop {
        if let Some(fd) = at.descriptor() {
            names.reverse();
            return Ok((fd, names));
        }
        if names.len() >= MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let place = at.place().ok_or(Errno::STALE)?;
        names.push(place.name);
        at = place.parent;
    }
}

struct Known {
    node: Arc<Node>,
    lookups: u64,
    /// Roots of shares are never forgotten.
    permanent: bool,
}

#[derive(Default)]
struct Tables {
    by_id: HashMap<NodeId, Known>,
    by_identity: HashMap<(usize, Identity), NodeId>,
    last: u64,
}

/// All nodes that the guest holds.
pub(crate) struct Nodes {
    tables: Mutex<Tables>,
    alive: Arc<Alive>,
    /// Most bytes that they may take, with their names.
    limit: usize,
}

impl Nodes {
    /// Room for nodes that take this many bytes.
    pub(crate) fn new(limit: usize) -> Nodes {
        let tables = Tables { last: NodeId::ROOT.0, ..Tables::default() };
        Nodes { tables: Mutex::new(tables), alive: Arc::default(), limit }
    }

    /// Adds a share's root, whose descriptor stays open.
    pub(crate) fn add_root(&self, share: usize, stat: &Stat, fd: Arc<OwnedFd>) -> Arc<Node> {
        let mut tables = lock(&self.tables);
        let state = State { descriptor: Some(fd), ..State::default() };
        let node = self.make(&mut tables, share, stat.identity, state);
        let known = Known { node: Arc::clone(&node), lookups: 0, permanent: true };
        tables.by_id.insert(node.id, known);
        tables.by_identity.insert((share, stat.identity), node.id);
        node
    }

    fn make(&self, tables: &mut Tables, share: usize, identity: Identity, state: State) -> Arc<Node> {
        // Never used twice, not even over sessions: a number that the guest kept cannot mean something else.
        tables.last = tables.last.wrapping_add(1);
        Node::new(NodeId(tables.last), share, identity, state, &self.alive)
    }

    /// Refuses where this many bytes more are too many.
    pub(crate) fn room(&self, bytes: usize) -> Result<(), Errno> {
        let taken = self.alive.bytes.load(Ordering::Relaxed);
        if taken.saturating_add(bytes) > self.limit { Err(Errno::NFILE) } else { Ok(()) }
    }

    pub(crate) fn get(&self, id: NodeId) -> Result<Arc<Node>, Errno> {
        lock(&self.tables).by_id.get(&id).map(|known| Arc::clone(&known.node)).ok_or(Errno::STALE)
    }

    pub(crate) fn find(&self, share: usize, identity: Identity) -> Option<Arc<Node>> {
        let tables = lock(&self.tables);
        let id = tables.by_identity.get(&(share, identity))?;
        tables.by_id.get(id).map(|known| Arc::clone(&known.node))
    }

    /// Notes that `name` in `parent` is a file of this identity, and counts a lookup of it.
    pub(crate) fn enter(
        &self,
        parent: &Arc<Node>,
        name: &CStr,
        identity: Identity,
    ) -> Result<Arc<Node>, Errno> {
        let key = (parent.share, identity);
        let known = {
            let mut guard = lock(&self.tables);
            let tables = &mut *guard;
            match tables.by_identity.get(&key).and_then(|id| tables.by_id.get_mut(id)) {
                Some(known) => {
                    known.lookups = known.lookups.saturating_add(1);
                    Arc::clone(&known.node)
                }
                None => {
                    self.room(NODE_BYTES + name.count_bytes())?;
                    let node = self.make(tables, parent.share, identity, State::default());
                    node.set_place(parent, name);
                    tables.by_identity.insert(key, node.id);
                    let known = Known { node: Arc::clone(&node), lookups: 1, permanent: false };
                    tables.by_id.insert(node.id, known);
                    return Ok(node);
                }
            }
        };
        match self.moved(&known, parent, name) {
            Ok(()) => Ok(known),
            Err(errno) => {
                self.forget(known.id, 1);
                Err(errno)
            }
        }
    }

    /// Notes where a known node is now. [`Errno::STALE`] if that would put a directory below itself: then what is remembered of
    /// its parents is out of date (the host moved them), and the guest has to walk there again.
    fn moved(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &CStr) -> Result<(), Errno> {
        let Some(place) = node.place() else { return Ok(()) };
        let same_parent = Arc::ptr_eq(&place.parent, parent);
        if same_parent && place.name.as_c_str() == name {
            return Ok(());
        }
        if !same_parent && node.is_directory() && parent.is_below(node) {
            return Err(Errno::STALE);
        }
        self.room_for_name(&place.name, name)?;
        node.set_place(parent, name);
        Ok(())
    }

    /// Refuses to replace a name by one that is too much longer.
    pub(crate) fn room_for_name(&self, old: &CStr, new: &CStr) -> Result<(), Errno> {
        match new.count_bytes().saturating_sub(old.count_bytes()) {
            0 => Ok(()),
            more => self.room(more),
        }
    }

    pub(crate) fn forget(&self, id: NodeId, count: u64) {
        let dropped = {
            let mut guard = lock(&self.tables);
            let tables = &mut *guard;
            let Some(known) = tables.by_id.get_mut(&id) else { return };
            known.lookups = known.lookups.saturating_sub(count);
            if known.permanent || known.lookups > 0 {
                return;
            }
            let known = tables.by_id.remove(&id);
            if let Some(known) = &known {
                tables.by_identity.remove(&(known.node.share, known.node.identity));
            }
            known
        };
        drop(dropped);
    }

    /// Forgets all but the roots.
    pub(crate) fn clear(&self) {
        let dropped: Vec<Known> = {
            let mut guard = lock(&self.tables);
            let tables = &mut *guard;
            let gone: Vec<NodeId> =
                tables.by_id.iter().filter(|(_, known)| !known.permanent).map(|(id, _)| *id).collect();
            let dropped: Vec<Known> = gone.iter().filter_map(|id| tables.by_id.remove(id)).collect();
            for known in &dropped {
                tables.by_identity.remove(&(known.node.share, known.node.identity));
            }
            dropped
        };
        drop(dropped);
    }

    /// The nodes that the guest holds with their lookups, and the last number given out.
    pub(crate) fn held(&self) -> (Vec<(Arc<Node>, u64)>, u64) {
        let tables = lock(&self.tables);
        let held = tables.by_id.values().map(|known| (Arc::clone(&known.node), known.lookups)).collect();
        (held, tables.last)
    }

    /// Makes a node of another session again, without its place and not held yet.
    pub(crate) fn remake(&self, id: NodeId, share: usize, identity: Identity) -> Option<Arc<Node>> {
        self.room(NODE_BYTES).ok()?;
        Some(Node::new(id, share, identity, State::default(), &self.alive))
    }

    /// Holds a remade node for the guest. False if its number or its file is taken.
    pub(crate) fn hold(&self, node: &Arc<Node>, lookups: u64) -> bool {
        let mut guard = lock(&self.tables);
        let tables = &mut *guard;
        let key = (node.share, node.identity);
        if tables.by_id.contains_key(&node.id) || tables.by_identity.contains_key(&key) {
            return false;
        }
        tables.by_identity.insert(key, node.id);
        tables.by_id.insert(node.id, Known { node: Arc::clone(node), lookups, permanent: false });
        true
    }

    /// Numbers from here on are new.
    pub(crate) fn count_from(&self, last: u64) {
        let mut tables = lock(&self.tables);
        tables.last = tables.last.max(last);
    }

    /// How many nodes there are in memory, known to the guest or still above one that is.
    pub(crate) fn alive(&self) -> usize {
        self.alive.nodes.load(Ordering::Relaxed)
    }
}

/// Bounds the descriptors that nodes keep open: the one unused for longest is closed first (second chance).
pub(crate) struct Descriptors {
    queue: Mutex<std::collections::VecDeque<Weak<Node>>>,
    limit: usize,
}

impl Descriptors {
    pub(crate) fn new(limit: usize) -> Descriptors {
        Descriptors { queue: Mutex::default(), limit }
    }

    /// Keeps a descriptor with a node, and closes others where there are too many.
    pub(crate) fn keep(&self, node: &Arc<Node>, fd: Arc<OwnedFd>) {
        if node.state().descriptor.replace(fd).is_some() {
            return; // it has its place in the queue
        }
        // What is let go is dropped after the lock: a node may take its parents with it.
        let mut closed = Vec::new();
        let mut queue = lock(&self.queue);
        queue.push_back(Arc::downgrade(node));
        let mut chances = queue.len();
        while queue.len() > self.limit {
            let Some(oldest) = queue.pop_front() else { break };
            let Some(candidate) = oldest.upgrade() else { continue };
            chances = chances.saturating_sub(1);
            if chances > 0 && candidate.used.swap(false, Ordering::Relaxed) {
                queue.push_back(oldest);
            } else {
                let fd = candidate.state().descriptor.take();
                closed.push((candidate, fd));
            }
        }
        drop(queue);
        drop(closed);
    }

    /// Forgets which nodes keep one. Their descriptors close with them.
    pub(crate) fn clear(&self) {
        let dropped = std::mem::take(&mut *lock(&self.queue));
        drop(dropped);
    }
}

/// A poisoned lock means that a thread panicked between two steps; what is guarded here is whole after each of them.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
