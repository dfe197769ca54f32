//! Writing an image: contents as they come, then the inodes, then the directories, and the superblock last.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use crate::format::{
    BLOCK, DIRENT, INODE, LAYOUT_INLINE, LAYOUT_PLAIN, RawInode, SLOT, SuperBlock, XATTR_PREFIXES,
    dirent_type,
};
use crate::tree::{Content, Device, Metadata, ROOT, Tree, bad};
use crate::{Entry, ErofsError, Kind};

/// Directories and links up to this size are kept right behind their inode.
const INLINE_LIMIT: u64 = 2048;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The image file's size in bytes, a multiple of 4096 or of what was asked for.
    pub bytes: u64,
    /// How many files, directories and the like are in it.
    pub inodes: u64,
}

/// An image being written. Nothing of it is valid before [`Writer::finish`].
pub struct Writer<F: Write + Seek> {
    out: BufWriter<F>,
    /// Bytes written so far.
    at: u64,
    tree: Tree,
    build_time: u64,
    uuid: [u8; 16],
    label: [u8; 16],
    align: u64,
}

impl<F: Write + Seek> Writer<F> {
    /// Starts an image in `out`, which is empty and at its start.
    ///
    /// # Errors
    /// If writing fails.
    pub fn new(out: F) -> Result<Self, ErofsError> {
        let mut out = BufWriter::with_capacity(1 << 18, out);
        out.write_all(&[0; 4096])?;
        Ok(Self {
            out,
            at: BLOCK,
            tree: Tree::new(),
            build_time: 0,
            uuid: [0; 16],
            label: [0; 16],
            align: BLOCK,
        })
    }

    /// Sets what the superblock says of the image: its identity, a label (16 bytes of it), and when it was made.
    pub fn identify(&mut self, uuid: [u8; 16], label: &str, build_time: u64) {
        self.uuid = uuid;
        self.build_time = build_time;
        self.label = [0; 16];
        for (to, from) in self.label.iter_mut().zip(label.bytes().take(15)) {
            *to = from;
        }
    }

    /// Has the image's file end at a multiple of `bytes` (such as a large page, for virtio-pmem); at least 4096.
    pub fn align_end(&mut self, bytes: u64) {
        self.align = bytes.max(BLOCK).next_multiple_of(BLOCK);
    }

    /// Adds a directory. One that is there keeps its entries and gets the new metadata; missing parents are made.
    ///
    /// # Errors
    /// If the path cannot be in an image, or is taken by something else.
    pub fn directory(&mut self, path: &[u8], meta: Metadata) -> Result<(), ErofsError> {
        self.tree.put(path, Content::Directory(BTreeMap::new()), meta).map(drop)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If the path or the target cannot be in an image.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], meta: Metadata) -> Result<(), ErofsError> {
        if target.is_empty() || target.len() >= 4096 || target.contains(&0) {
            return Err(bad(path, "a link's target is empty, too long, or has a NUL in it"));
        }
        let meta = Metadata { mode: 0o777, ..meta };
        self.tree.put(path, Content::Symlink(target.to_vec()), meta).map(drop)
    }

    /// Adds another name for what is at `target`.
    ///
    /// # Errors
    /// If there is nothing at `target`, or a directory.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), ErofsError> {
        self.tree.hard_link(path, target)
    }

    /// Adds a device node, pipe or socket.
    ///
    /// # Errors
    /// If the path cannot be in an image.
    pub fn device(&mut self, path: &[u8], device: Device, meta: Metadata) -> Result<(), ErofsError> {
        self.tree.put(path, Content::Device(device), meta).map(drop)
    }

    /// Adds a regular file with what `contents` gives. Returns its size in bytes.
    ///
    /// # Errors
    /// If the path cannot be in an image, or reading or writing fails.
    pub fn file(&mut self, path: &[u8], meta: Metadata, mut contents: impl Read) -> Result<u64, ErofsError> {
        let mut file = self.file_writer(path, meta)?;
        io::copy(&mut contents, &mut file)?;
        file.finish()
    }

    /// Starts a regular file that is written piece by piece.
    ///
    /// # Errors
    /// If the path cannot be in an image.
    pub fn file_writer(&mut self, path: &[u8], meta: Metadata) -> Result<FileWriter<'_, F>, ErofsError> {
        let node = self.tree.put(path, Content::Regular { first_block: 0, size: 0 }, meta)?;
        let start = self.at;
        Ok(FileWriter { image: self, node, start })
    }

    /// Whether something is at this path.
    #[must_use]
    pub fn exists(&self, path: &[u8]) -> bool {
        self.tree.exists(path)
    }

    /// Adds an entry of a tar archive; `contents` are its bytes, if it is a regular file.
    ///
    /// # Errors
    /// If it cannot be in an image, or reading or writing fails.
    pub fn add_entry(&mut self, entry: Entry, contents: impl Read) -> Result<(), ErofsError> {
        match entry.kind {
            Kind::Directory => self.directory(&entry.path, entry.meta),
            Kind::Regular => self.file(&entry.path, entry.meta, contents).map(drop),
            Kind::Symlink(target) => self.symlink(&entry.path, &target, entry.meta),
            Kind::HardLink(target) => self.hard_link(&entry.path, &target),
            Kind::Device(device) => self.device(&entry.path, device, entry.meta),
        }
    }

    /// Writes everything that is still in memory and gives the file back.
    ///
    /// # Errors
    /// If writing fails or the image is larger than the format allows.
    pub fn finish(mut self) -> Result<(F, Summary), ErofsError> {
        let plan = Plan::new(&self.tree, self.at)?;
        for (position, inode) in &plan.inodes {
            self.pad_to(*position)?;
            self.write(inode)?;
        }
        self.pad_to(plan.directories_at)?;
        for block in &plan.directory_blocks {
            self.write(block)?;
            self.pad_to(self.at.next_multiple_of(BLOCK))?;
        }
        let align = self.align;
        self.pad_to(self.at.next_multiple_of(BLOCK))?;
        let blocks =
            u32::try_from(self.at / BLOCK).map_err(|_| ErofsError::TooLarge("16 TiB is the limit"))?;
        let sb = SuperBlock {
            root: plan.root,
            inodes: plan.count,
            blocks,
            meta_block: plan.meta_block,
            build_time: self.build_time,
            uuid: self.uuid,
            label: self.label,
        };
        self.pad_to(self.at.next_multiple_of(align))?;
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&sb.block())?;
        self.out.flush()?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((file, Summary { bytes: self.at, inodes: plan.count }))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.at = self.at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> Result<(), ErofsError> {
        let gap = position.checked_sub(self.at).ok_or(ErofsError::Image("its parts overlap"))?;
        io::copy(&mut io::repeat(0).take(gap), &mut self.out)?;
        self.at = position;
        Ok(())
    }
}

/// A regular file being written into an image.
pub struct FileWriter<'a, F: Write + Seek> {
    image: &'a mut Writer<F>,
    node: usize,
    start: u64,
}

impl<F: Write + Seek> FileWriter<'_, F> {
    /// Overwrites bytes of this file that were written before, `at` counted from its start.
    ///
    /// # Errors
    /// If they were not written yet, or writing fails.
    pub fn patch(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let position = self.start.saturating_add(at);
        if position.saturating_add(len) > self.image.at {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "that part was not written yet"));
        }
        self.image.out.seek(SeekFrom::Start(position))?;
        self.image.out.write_all(bytes)?;
        self.image.out.seek(SeekFrom::Start(self.image.at)).map(drop)
    }

    /// Ends the file. Returns its size in bytes.
    ///
    /// # Errors
    /// If writing fails or the image is too large.
    pub fn finish(self) -> Result<u64, ErofsError> {
        let size = self.image.at - self.start;
        self.image.pad_to(self.image.at.next_multiple_of(BLOCK))?;
        let first =
            u32::try_from(self.start / BLOCK).map_err(|_| ErofsError::TooLarge("16 TiB is the limit"))?;
        self.image.tree.set_regular(self.node, if size == 0 { 0 } else { first }, size)?;
        Ok(size)
    }
}

impl<F: Write + Seek> Write for FileWriter<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.image.write(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where everything that is not file contents goes.
struct Plan {
    meta_block: u32,
    root: u16,
    count: u64,
    /// Positions in the image, rising, and what goes there.
    inodes: Vec<(u64, Vec<u8>)>,
    directories_at: u64,
    /// Contents of the directories that are not kept with their inodes; each starts at a block.
    directory_blocks: Vec<Vec<u8>>,
}

/// A node's place among the inodes.
struct Slot {
    node: usize,
    parent: usize,
    xattrs: Vec<u8>,
    /// Size of a link's target or a directory's entries.
    size: u64,
    inline: bool,
    position: u64,
}

impl Plan {
    fn new(tree: &Tree, data_end: u64) -> Result<Self, ErofsError> {
        let meta_at = data_end.next_multiple_of(BLOCK);
        let meta_block =
            u32::try_from(meta_at / BLOCK).map_err(|_| ErofsError::TooLarge("16 TiB is the limit"))?;
        let (order, links) = walk(tree)?;
        let mut slots = Vec::with_capacity(order.len());
        let mut nids = vec![0; tree.len()];
        let mut at = 0u64;
        for (node, parent) in order {
            let slot = place(tree, node, parent, at)?;
            if let Some(nid) = nids.get_mut(node) {
                *nid = slot.position / SLOT;
            }
            at = slot.position + INODE + length(&slot.xattrs) + if slot.inline { slot.size } else { 0 };
            slots.push(slot);
        }
        let directories_at = (meta_at + at).next_multiple_of(BLOCK);
        let mut plan = Self {
            meta_block,
            root: 0,
            count: u64::try_from(slots.len()).unwrap_or(u64::MAX),
            inodes: Vec::with_capacity(slots.len()),
            directories_at,
            directory_blocks: Vec::new(),
        };
        let mut next_block = directories_at / BLOCK;
        for (number, slot) in slots.iter().enumerate() {
            let (inode, outside) = encode(tree, slot, number, &nids, &links, next_block)?;
            if let Some(outside) = outside {
                next_block += length(&outside).div_ceil(BLOCK);
                plan.directory_blocks.push(outside);
            }
            plan.inodes.push((meta_at + slot.position, inode));
        }
        Ok(plan)
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Nodes with their parents, in the order of their inodes; and the link counts by node.
type Walk = (Vec<(usize, usize)>, Vec<u32>);

/// Every node once, parents before children and names in order, with its parent; and how many links each has.
fn walk(tree: &Tree) -> Result<Walk, ErofsError> {
    let mut order = Vec::with_capacity(tree.len());
    let mut links = vec![0u32; tree.len()];
    let mut stack = vec![(ROOT, ROOT)];
    while let Some((node, parent)) = stack.pop() {
        let directory = match &tree.node(node)?.content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        };
        let count = links.get_mut(node).ok_or(ErofsError::Image("a name leads nowhere"))?;
        *count = count.saturating_add(1);
        if *count > 1 && directory.is_none() {
            continue; // another name of what is placed already
        }
        order.push((node, parent));
        if let Some(entries) = directory {
            let mut own = 2u32;
            for child in entries.values().rev() {
                own = own
                    .saturating_add(u32::from(matches!(tree.node(*child)?.content, Content::Directory(_))));
                stack.push((*child, node));
            }
            if let Some(count) = links.get_mut(node) {
                *count = own;
            }
        }
    }
    Ok((order, links))
}

/// Decides where an inode goes, at `at` or a little after it.
fn place(tree: &Tree, index: usize, parent: usize, at: u64) -> Result<Slot, ErofsError> {
    let node = tree.node(index)?;
    let xattrs = encode_xattrs(&node.meta)?;
    let size = match &node.content {
        Content::Directory(entries) => directory_size(entries),
        Content::Symlink(target) => length(target),
        Content::Regular { size, .. } => *size,
        Content::Device(_) => 0,
    };
    let fits = INODE + length(&xattrs) + size <= BLOCK && size <= INLINE_LIMIT && size > 0;
    let inline = fits && matches!(node.content, Content::Directory(_) | Content::Symlink(_));
    // The inode itself, and data kept with it, must not lie across two blocks.
    let whole = if inline { INODE + length(&xattrs) + size } else { INODE };
    let mut position = at.next_multiple_of(SLOT);
    if position % BLOCK + whole > BLOCK {
        position = position.next_multiple_of(BLOCK);
    }
    Ok(Slot { node: index, parent, xattrs, size, inline, position })
}

/// The inode with what is kept behind it, and a directory's or link's data that goes elsewhere, from block `outside_at` on.
fn encode(
    tree: &Tree,
    slot: &Slot,
    number: usize,
    nids: &[u64],
    links: &[u32],
    outside_at: u64,
) -> Result<(Vec<u8>, Option<Vec<u8>>), ErofsError> {
    let node = tree.node(slot.node)?;
    let nid = |node: usize| nids.get(node).copied().ok_or(ErofsError::Image("a name leads nowhere"));
    let data = match &node.content {
        Content::Directory(entries) => {
            Some(encode_directory(tree, entries, nid(slot.node)?, nid(slot.parent)?, &nid)?)
        }
        Content::Symlink(target) => Some(target.clone()),
        _ => None,
    };
    let block = |block: u64| u32::try_from(block).map_err(|_| ErofsError::TooLarge("16 TiB is the limit"));
    let union = match &node.content {
        Content::Regular { first_block, .. } => *first_block,
        Content::Device(device) => device_number(*device),
        _ if slot.inline => 0,
        _ => block(outside_at)?,
    };
    let xattr_count = match slot.xattrs.len() {
        0 => 0,
        len => u16::try_from((len - 12) / 4 + 1).map_err(|_| ErofsError::TooLarge("a file's attributes"))?,
    };
    let raw = RawInode {
        layout: if slot.inline { LAYOUT_INLINE } else { LAYOUT_PLAIN },
        xattr_count,
        mode: node.mode(),
        size: slot.size,
        union,
        number: u32::try_from(number + 1).map_err(|_| ErofsError::TooLarge("the number of files"))?,
        uid: node.meta.uid,
        gid: node.meta.gid,
        mtime: node.meta.mtime,
        mtime_nsec: node.meta.mtime_nsec.min(999_999_999),
        links: links.get(slot.node).copied().unwrap_or(1),
    };
    let mut bytes = raw.bytes();
    bytes.extend(&slot.xattrs);
    match data {
        Some(data) if slot.inline => {
            bytes.extend(data);
            Ok((bytes, None))
        }
        data => Ok((bytes, data)),
    }
}

/// As the kernel's `new_encode_dev` has it.
const fn device_number(device: Device) -> u32 {
    match device {
        Device::Character(major, minor) | Device::Block(major, minor) => {
            (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
        }
        Device::Fifo | Device::Socket => 0,
    }
}

/// The attributes as they follow the inode; empty if there are none.
fn encode_xattrs(meta: &Metadata) -> Result<Vec<u8>, ErofsError> {
    let mut entries = Vec::new();
    for (name, value) in &meta.xattrs {
        let found =
            XATTR_PREFIXES.iter().find_map(|(number, prefix)| Some((*number, name.strip_prefix(*prefix)?)));
        let Some((number, rest)) = found else { continue }; // a name space the kernel would not show
        let too_long = |_| ErofsError::TooLarge("a file's attribute");
        entries.push(u8::try_from(rest.len()).map_err(too_long)?);
        entries.push(number);
        entries.extend(u16::try_from(value.len()).map_err(too_long)?.to_le_bytes());
        entries.extend(rest);
        entries.extend(value);
        entries.resize(entries.len().next_multiple_of(4), 0);
    }
    if entries.is_empty() {
        return Ok(entries);
    }
    let mut all = vec![0; 12]; // no shared attributes
    all.extend(entries);
    Ok(all)
}

/// Names in order with `.` and `..`, split into what fits a block each.
fn directory_blocks<'a>(entries: &'a BTreeMap<Vec<u8>, usize>) -> Vec<Vec<&'a [u8]>> {
    let mut names: Vec<&'a [u8]> = entries.keys().map(Vec::as_slice).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    let mut blocks: Vec<Vec<&[u8]>> = Vec::new();
    let mut used = 0;
    for name in names {
        let need = DIRENT + name.len();
        match blocks.last_mut() {
            Some(block) if used + need <= 4096 => block.push(name),
            _ => {
                blocks.push(vec![name]);
                used = 0;
            }
        }
        used += need;
    }
    blocks
}

fn directory_size(entries: &BTreeMap<Vec<u8>, usize>) -> u64 {
    let blocks = directory_blocks(entries);
    let last: usize = blocks.last().map_or(0, |block| block.iter().map(|name| DIRENT + name.len()).sum());
    let full = u64::try_from(blocks.len()).unwrap_or(u64::MAX).saturating_sub(1);
    full * BLOCK + u64::try_from(last).unwrap_or(u64::MAX)
}

fn encode_directory(
    tree: &Tree,
    entries: &BTreeMap<Vec<u8>, usize>,
    own: u64,
    parent: u64,
    nid: &impl Fn(usize) -> Result<u64, ErofsError>,
) -> Result<Vec<u8>, ErofsError> {
    let mut out = Vec::new();
    for names in directory_blocks(entries) {
        out.resize(out.len().next_multiple_of(4096), 0);
        let mut name_at = names.len() * DIRENT;
        for name in &names {
            let (number, kind) = match (*name, entries.get(*name)) {
                (_, Some(child)) => (nid(*child)?, dirent_type(tree.node(*child)?.mode())),
                (b"..", None) => (parent, 2),
                _ => (own, 2),
            };
            out.extend(number.to_le_bytes());
            out.extend(
                u16::try_from(name_at).map_err(|_| ErofsError::TooLarge("a directory"))?.to_le_bytes(),
            );
            out.extend([kind, 0]);
            name_at += name.len();
        }
        names.iter().for_each(|name| out.extend(*name));
    }
    Ok(out)
}
