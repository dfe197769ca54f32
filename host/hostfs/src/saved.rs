//! A session's state, saved and gone on with: for snapshots, and for forks, whose children open again what their parent had open.
//!
//! Nodes are saved as what they are and where they were last seen; nothing is opened for them until it is used, and what is
//! something else by then is stale. Open files and directories are opened again at once; one that had no name any more is
//! lost, and reading it says so. The state comes from a file that may have been changed: numbers are checked, chains of
//! parents must end at a share, and every access goes through the same walls as a guest's.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use fuse_wire::{Access, Errno, FileKind, Handle, Name, NodeId, RestoreError};
use prost::Message;

use crate::HostFs;
use crate::handle::{Held, HostDirectory, OpenDirectory, OpenFile};
use crate::node::Node;
use crate::owner::Owner;
use crate::sys::{self, Identity};

/// Version of the form below. Field numbers never change their meaning.
const VERSION: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Session {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// What the shares' roots were, in order.
    #[prost(message, repeated, tag = "2")]
    roots: Vec<File>,
    #[prost(message, repeated, tag = "3")]
    nodes: Vec<SavedNode>,
    #[prost(message, repeated, tag = "4")]
    handles: Vec<SavedHandle>,
    /// Owners that the host's file system could not keep.
    #[prost(message, repeated, tag = "5")]
    owners: Vec<SavedOwner>,
    #[prost(uint64, tag = "6")]
    last_node: u64,
    #[prost(uint64, tag = "7")]
    last_handle: u64,
}

/// What makes a file itself.
#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(uint32, tag = "1")]
    major: u32,
    #[prost(uint32, tag = "2")]
    minor: u32,
    #[prost(uint64, tag = "3")]
    inode: u64,
    #[prost(sint64, tag = "4")]
    birth_seconds: i64,
    #[prost(uint32, tag = "5")]
    birth_nanoseconds: u32,
    /// Type bits of a mode.
    #[prost(uint32, tag = "6")]
    kind: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SavedNode {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint32, tag = "2")]
    share: u32,
    #[prost(message, optional, tag = "3")]
    file: Option<File>,
    #[prost(uint64, tag = "4")]
    parent: u64,
    #[prost(bytes = "vec", tag = "5")]
    name: Vec<u8>,
    /// 0: the guest does not hold it, but something below it.
    #[prost(uint64, tag = "6")]
    lookups: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SavedHandle {
    #[prost(uint64, tag = "1")]
    handle: u64,
    /// 0: the directory above the shares.
    #[prost(uint64, tag = "2")]
    node: u64,
    /// 0 lost, 1 directory, 2 file to read, 3 to write, 4 both.
    #[prost(uint32, tag = "3")]
    open_for: u32,
    #[prost(bool, tag = "4")]
    synchronous: bool,
}

#[derive(Clone, PartialEq, Message)]
struct SavedOwner {
    #[prost(uint32, tag = "1")]
    share: u32,
    #[prost(message, optional, tag = "2")]
    file: Option<File>,
    #[prost(uint32, tag = "3")]
    uid: u32,
    #[prost(uint32, tag = "4")]
    gid: u32,
    #[prost(uint32, optional, tag = "5")]
    mode: Option<u32>,
}

impl File {
    fn of(identity: &Identity) -> File {
        File {
            major: identity.device.0,
            minor: identity.device.1,
            inode: identity.inode,
            birth_seconds: identity.birth.0,
            birth_nanoseconds: identity.birth.1,
            kind: identity.kind.mode_bits(),
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity {
            device: (self.major, self.minor),
            inode: self.inode,
            birth: (self.birth_seconds, self.birth_nanoseconds),
            kind: FileKind::from_mode(self.kind)?,
        })
    }
}

type Outcome<T> = Result<T, RestoreError>;

impl HostFs {
    pub(crate) fn saved(&self) -> Vec<u8> {
        let _names = self.names_change();
        let (held_nodes, last_node) = self.nodes.held();
        let (held_handles, last_handle) = self.handles.held();
        let mut nodes = HashMap::new();
        for (node, lookups) in &held_nodes {
            save_node(&mut nodes, node, *lookups);
        }
        let mut handles = Vec::with_capacity(held_handles.len());
        for (handle, held) in &held_handles {
            let (node, open_for, synchronous) = match held {
                Held::Lost => (None, 0, false),
                Held::Directory(directory) => (directory.host.as_ref().map(|host| &host.node), 1, false),
                Held::File(file) => (Some(&file.node), number_of(file.access), file.synchronous),
            };
            if let Some(node) = node {
                save_node(&mut nodes, node, 0);
            }
            handles.push(SavedHandle {
                handle: handle.0,
                node: node.map_or(0, |node| node.id.0),
                open_for,
                synchronous,
            });
        }
        let owners = self.remembered.all().into_iter().map(|((share, identity), owner)| SavedOwner {
            share: share_number(share),
            file: Some(File::of(&identity)),
            uid: owner.uid,
            gid: owner.gid,
            mode: owner.mode,
        });
        let session = Session {
            version: VERSION,
            roots: self.roots.iter().map(|root| File::of(&root.identity)).collect(),
            nodes: nodes.into_values().collect(),
            handles,
            owners: owners.collect(),
            last_node,
            last_handle,
        };
        session.encode_to_vec()
    }

    pub(crate) fn go_on(&self, state: &[u8]) -> Outcome<()> {
        self.forget_session();
        let session = Session::decode(state).map_err(|_| RestoreError::Damaged("it cannot be decoded"))?;
        if session.version != VERSION {
            return Err(RestoreError::Version(session.version));
        }
        if session.roots.len() != self.roots.len() {
            return Err(RestoreError::Unfit("the number of shares is another"));
        }
        let nodes = self.remake_nodes(&session)?;
        for owner in &session.owners {
            let identity = self.identity_now(&session, owner.share, owner.file.as_ref())?;
            let owned = Owner { uid: owner.uid, gid: owner.gid, mode: owner.mode };
            self.remembered.set(share_index(owner.share), identity, Some(owned));
        }
        for saved in &session.handles {
            let held = self.open_again(saved, &nodes)?;
            let full = |_| RestoreError::Unfit("more is open than may be");
            self.handles.restore(Handle(saved.handle), held).map_err(full)?;
        }
        self.nodes.count_from(session.last_node);
        self.handles.count_from(session.last_handle);
        Ok(())
    }

    /// A file's identity as it would be now: devices may have been numbered anew since, so what was on the share's own is
    /// looked for on the share's own.
    fn identity_now(&self, session: &Session, share: u32, file: Option<&File>) -> Outcome<Identity> {
        let mut identity =
            file.and_then(File::identity).ok_or(RestoreError::Damaged("a file is of no kind"))?;
        let index = share_index(share);
        let (before, now) = session
            .roots
            .get(index)
            .zip(self.roots.get(index))
            .ok_or(RestoreError::Damaged("a share does not exist"))?;
        if identity.device == (before.major, before.minor) {
            identity.device = now.identity.device;
        }
        Ok(identity)
    }

    fn remake_nodes(&self, session: &Session) -> Outcome<HashMap<u64, Arc<Node>>> {
        let mut nodes: HashMap<u64, Arc<Node>> =
            self.roots.iter().map(|root| (root.id.0, Arc::clone(root))).collect();
        let roots = nodes.len();
        for saved in &session.nodes {
            let identity = self.identity_now(session, saved.share, saved.file.as_ref())?;
            if saved.id <= NodeId::ROOT.0 || saved.id > session.last_node {
                return Err(RestoreError::Damaged("a node has an impossible number"));
            }
            let node = self
                .nodes
                .remake(NodeId(saved.id), share_index(saved.share), identity)
                .ok_or(RestoreError::Unfit("there are more nodes than may be"))?;
            if nodes.insert(saved.id, node).is_some() {
                return Err(RestoreError::Damaged("two nodes have one number"));
            }
        }
        check_parents(session, &nodes, roots)?;
        for saved in &session.nodes {
            let (Some(node), Some(parent)) = (nodes.get(&saved.id), nodes.get(&saved.parent)) else {
                continue;
            };
            let name =
                CString::new(saved.name.clone()).map_err(|_| RestoreError::Damaged("a name holds a NUL"))?;
            Name::new(&name).map_err(|_| RestoreError::Damaged("a name is none"))?;
            node.set_place(parent, &name);
            if saved.lookups > 0 && !self.nodes.hold(node, saved.lookups) {
                return Err(RestoreError::Damaged("two nodes are one file"));
            }
        }
        Ok(nodes)
    }

    fn open_again(&self, saved: &SavedHandle, nodes: &HashMap<u64, Arc<Node>>) -> Outcome<Held> {
        if saved.open_for == 0 {
            return Ok(Held::Lost);
        }
        if saved.open_for == 1 && saved.node == 0 {
            return Ok(Held::Directory(Arc::new(OpenDirectory { host: None })));
        }
        let node = nodes.get(&saved.node).ok_or(RestoreError::Damaged("something open has no node"))?;
        let opened = if saved.open_for == 1 {
            self.directory_again(node)
        } else {
            let access =
                access_of(saved.open_for).ok_or(RestoreError::Damaged("something is open for nothing"))?;
            self.file_again(node, access, saved.synchronous)
        };
        Ok(opened.unwrap_or(Held::Lost))
    }

    fn directory_again(&self, node: &Arc<Node>) -> Result<Held, Errno> {
        let directory = self.directory(node)?;
        let fd = sys::open_directory(directory.as_fd(), c".")?;
        let host = HostDirectory { node: Arc::clone(node), fd: Mutex::new(fd) };
        Ok(Held::Directory(Arc::new(OpenDirectory { host: Some(host) })))
    }

    fn file_again(&self, node: &Arc<Node>, access: Access, synchronous: bool) -> Result<Held, Errno> {
        if access.writes() {
            self.writable(node.share)?;
        }
        let (fd, fd_access) = self.open_regular(node, access, synchronous)?;
        let node = Arc::clone(node);
        Ok(Held::File(Arc::new(OpenFile { node, fd, access, fd_access, synchronous })))
    }
}

/// Saves a node and what is above it; roots of shares are there without.
fn save_node(nodes: &mut HashMap<u64, SavedNode>, node: &Arc<Node>, lookups: u64) {
    let (mut at, mut lookups) = (Arc::clone(node), lookups);
    while let Some(place) = at.place() {
        if let Some(known) = nodes.get_mut(&at.id.0) {
            known.lookups = known.lookups.max(lookups);
            return;
        }
        let saved = SavedNode {
            id: at.id.0,
            share: share_number(at.share),
            file: Some(File::of(&at.identity)),
            parent: place.parent.id.0,
            name: place.name.into_bytes(),
            lookups,
        };
        nodes.insert(at.id.0, saved);
        (at, lookups) = (place.parent, 0);
    }
}

/// Every chain of parents must end at a root of its own share, without a circle.
fn check_parents(session: &Session, nodes: &HashMap<u64, Arc<Node>>, roots: usize) -> Outcome<()> {
    const CIRCLE: RestoreError = RestoreError::Damaged("a node is below itself");
    let parents: HashMap<u64, u64> = session.nodes.iter().map(|saved| (saved.id, saved.parent)).collect();
    let mut sound: std::collections::HashSet<u64> =
        nodes.keys().filter(|id| !parents.contains_key(id)).copied().collect();
    debug_assert_eq!(sound.len(), roots);
    for saved in &session.nodes {
        let mut chain = Vec::new();
        let mut at = saved.id;
        while !sound.contains(&at) {
            if chain.len() > session.nodes.len() {
                return Err(CIRCLE);
            }
            chain.push(at);
            let parent = *parents.get(&at).ok_or(RestoreError::Damaged("a node has no parent"))?;
            let (below, above) = nodes
                .get(&at)
                .zip(nodes.get(&parent))
                .ok_or(RestoreError::Damaged("a node has no parent"))?;
            if below.share != above.share || !above.is_directory() {
                return Err(RestoreError::Damaged("a node is in another share or below a file"));
            }
            at = parent;
        }
        sound.extend(chain);
    }
    Ok(())
}

fn number_of(access: Access) -> u32 {
    match access {
        Access::Read => 2,
        Access::Write => 3,
        Access::ReadWrite => 4,
    }
}

fn access_of(number: u32) -> Option<Access> {
    match number {
        2 => Some(Access::Read),
        3 => Some(Access::Write),
        4 => Some(Access::ReadWrite),
        _ => None,
    }
}

fn share_number(share: usize) -> u32 {
    u32::try_from(share).unwrap_or(u32::MAX)
}

fn share_index(share: u32) -> usize {
    usize::try_from(share).unwrap_or(usize::MAX)
}
