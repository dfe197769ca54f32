//! Names and metadata of the image while it is being made.

use std::collections::{BTreeMap, VecDeque};

use crate::ErofsError;
use crate::format::{NAME_MAX, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, S_IFSOCK};

/// How many symbolic links a path may lead through.
const LINK_LIMIT: usize = 40;

/// What a file has besides its name and content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission bits, set-user-id and the like included; a type in it is ignored.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change, seconds since 1970.
    pub mtime: u64,
    /// Nanoseconds of that second.
    pub mtime_nsec: u32,
    /// Extended attributes with their full names (`security.capability`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A file that is neither regular, nor a directory, nor a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Directory(BTreeMap<Vec<u8>, usize>),
    Regular { first_block: u32, size: u64 },
    Symlink(Vec<u8>),
    Device(Device),
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) content: Content,
    pub(crate) meta: Metadata,
}

impl Node {
    /// The full mode, type included.
    pub(crate) fn mode(&self) -> u16 {
        let kind = match &self.content {
            Content::Directory(_) => S_IFDIR,
            Content::Regular { .. } => S_IFREG,
            Content::Symlink(_) => S_IFLNK,
            Content::Device(Device::Character(..)) => S_IFCHR,
            Content::Device(Device::Block(..)) => S_IFBLK,
            Content::Device(Device::Fifo) => S_IFIFO,
            Content::Device(Device::Socket) => S_IFSOCK,
        };
        kind | (self.meta.mode & 0o7777)
    }
}

/// All nodes; the root is number 0. A node with several names is a hard link.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

pub(crate) const ROOT: usize = 0;

impl Tree {
    pub(crate) fn new() -> Self {
        let meta = Metadata { mode: 0o755, ..Metadata::default() };
        Self { nodes: vec![Node { content: Content::Directory(BTreeMap::new()), meta }] }
    }

    pub(crate) fn node(&self, index: usize) -> Result<&Node, ErofsError> {
        self.nodes.get(index).ok_or(ErofsError::Image("a name leads nowhere"))
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Puts a node at a path: directories merge, anything else replaces what is there unless that is a directory.
    pub(crate) fn put(&mut self, path: &[u8], content: Content, meta: Metadata) -> Result<usize, ErofsError> {
        let Some((parent, name)) = self.parent_and_name(path, &meta)? else {
            return match content {
                Content::Directory(_) => {
                    self.node_mut(ROOT)?.meta = meta;
                    Ok(ROOT)
                }
                _ => Err(bad(path, "the root is a directory")),
            };
        };
        let old = self.child(parent, &name);
        if matches!(content, Content::Directory(_)) {
            // A directory where a link to one is: the entry means the link's target, as for tar and dpkg.
            let target = match old {
                Some(old) if matches!(self.node(old)?.content, Content::Symlink(_)) => {
                    self.follow(parent, old, path)?
                }
                other => other,
            };
            if let Some(target) = target {
                let follows = old != Some(target);
                let node = self.node_mut(target)?;
                if !matches!(node.content, Content::Directory(_)) {
                    return Err(bad(path, "something that is no directory is there already"));
                }
                if !follows {
                    node.meta = meta;
                }
                return Ok(target);
            }
        } else if let Some(old) = old {
            self.refuse_directory(old, path)?;
        }
        let index = self.nodes.len();
        self.nodes.push(Node { content, meta });
        self.link(parent, name, index)?;
        Ok(index)
    }

    /// Gives the node at `target` another name.
    pub(crate) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ErofsError> {
        let meta = Metadata::default();
        let (parent, name) =
            self.parent_and_name(target, &meta)?.ok_or_else(|| bad(target, "a directory has one name"))?;
        let index =
            self.child(parent, &name).ok_or_else(|| bad(target, "a hard link's target is not there"))?;
        if matches!(self.node(index)?.content, Content::Directory(_)) {
            return Err(bad(target, "a directory has one name"));
        }
        let (parent, name) =
            self.parent_and_name(path, &meta)?.ok_or_else(|| bad(path, "the root is a directory"))?;
        if let Some(old) = self.child(parent, &name) {
            self.refuse_directory(old, path)?;
        }
        self.link(parent, name, index)
    }

    /// Sets what a regular file holds, once that is known.
    pub(crate) fn set_regular(
        &mut self,
        index: usize,
        first_block: u32,
        size: u64,
    ) -> Result<(), ErofsError> {
        self.node_mut(index)?.content = Content::Regular { first_block, size };
        Ok(())
    }

    /// Whether something is at this path (links in its parents are followed).
    pub(crate) fn exists(&self, path: &[u8]) -> bool {
        let mut at = ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
            let step = self.child(at, name).and_then(|child| match self.node(child).ok()?.content {
                Content::Symlink(_) => self.follow(at, child, path).ok().flatten(),
                _ => Some(child),
            });
            match step {
                Some(child) => at = child,
                None => return false,
            }
        }
        true
    }

    fn node_mut(&mut self, index: usize) -> Result<&mut Node, ErofsError> {
        self.nodes.get_mut(index).ok_or(ErofsError::Image("a name leads nowhere"))
    }

    fn refuse_directory(&self, node: usize, path: &[u8]) -> Result<(), ErofsError> {
        match self.node(node)?.content {
            Content::Directory(_) => Err(bad(path, "a directory is there already")),
            _ => Ok(()),
        }
    }

    fn child(&self, directory: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes.get(directory)?.content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn link(&mut self, parent: usize, name: Vec<u8>, index: usize) -> Result<(), ErofsError> {
        match &mut self.node_mut(parent)?.content {
            Content::Directory(entries) => {
                entries.insert(name, index);
                Ok(())
            }
            _ => Err(ErofsError::Image("a parent is no directory")),
        }
    }

    /// The directory a path's last name is in, made if need be, and that name; `None` for the root itself.
    fn parent_and_name(
        &mut self,
        path: &[u8],
        like: &Metadata,
    ) -> Result<Option<(usize, Vec<u8>)>, ErofsError> {
        let mut names: Vec<&[u8]> = Vec::new();
        for name in path.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return Err(bad(path, "it leads upwards")),
                _ if name.len() > NAME_MAX => return Err(bad(path, "a name is longer than 255 bytes")),
                _ if name.contains(&0) => return Err(bad(path, "a name has a NUL in it")),
                _ => names.push(name),
            }
        }
        let Some((last, parents)) = names.split_last() else { return Ok(None) };
        let mut at = ROOT;
        for name in parents {
            at = match self.child(at, name) {
                Some(child) => {
                    self.follow(at, child, path)?.ok_or_else(|| bad(path, "a link in it leads nowhere"))?
                }
                None => {
                    let index = self.nodes.len();
                    let meta = Metadata { mode: 0o755, mtime: like.mtime, ..Metadata::default() };
                    self.nodes.push(Node { content: Content::Directory(BTreeMap::new()), meta });
                    self.link(at, name.to_vec(), index)?;
                    index
                }
            };
            if !matches!(self.node(at)?.content, Content::Directory(_)) {
                return Err(bad(path, "a parent is no directory"));
            }
        }
        Ok(Some((at, last.to_vec())))
    }

    /// What `node`, an entry of `directory`, is when its links are followed, inside the image.
    fn follow(&self, directory: usize, node: usize, path: &[u8]) -> Result<Option<usize>, ErofsError> {
        if !matches!(self.node(node)?.content, Content::Symlink(_)) {
            return Ok(Some(node));
        }
        // The way from the root to where we are, so that ".." in a link has a meaning.
        let mut way = self.way_to(directory);
        let mut at = node;
        let mut todo: VecDeque<Vec<u8>> = VecDeque::new();
        let mut links = 0;
        loop {
            if let Content::Symlink(target) = &self.node(at)?.content {
                links += 1;
                if links > LINK_LIMIT {
                    return Err(bad(path, "it leads through too many links"));
                }
                if target.starts_with(b"/") {
                    way = vec![ROOT];
                }
                for name in
                    target.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty() && *name != b".")
                {
                    todo.push_front(name.to_vec());
                }
                at = way.last().copied().unwrap_or(ROOT);
            } else if way.last() != Some(&at) {
                way.push(at);
            }
            let Some(name) = todo.pop_front() else { return Ok(Some(at)) };
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                at = way.last().copied().unwrap_or(ROOT);
            } else {
                match self.child(at, &name) {
                    Some(child) => at = child,
                    None => return Ok(None),
                }
            }
        }
    }

    fn way_to(&self, directory: usize) -> Vec<usize> {
        // Directories have one name each, and links are rarer than directories: a search from the root will do.
        let mut stack = vec![vec![ROOT]];
        while let Some(way) = stack.pop() {
            let Some(&last) = way.last() else { continue };
            if last == directory {
                return way;
            }
            if let Some(Node { content: Content::Directory(entries), .. }) = self.nodes.get(last) {
                for child in entries.values() {
                    if matches!(self.nodes.get(*child), Some(Node { content: Content::Directory(_), .. })) {
                        let mut next = way.clone();
                        next.push(*child);
                        stack.push(next);
                    }
                }
            }
        }
        vec![ROOT]
    }
}

pub(crate) fn bad(path: &[u8], reason: &'static str) -> ErofsError {
    ErofsError::Path { path: String::from_utf8_lossy(path).into_owned(), reason }
}
