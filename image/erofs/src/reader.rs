//! Reading an image back: to look at what was built, and to prove the writer in tests. Trusts nothing in the image.
//!
//! Only what the writer makes is understood: uncompressed images of plain and inline files.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};

use crate::ErofsError;
use crate::format::{
    BLOCK, BLOCK_BITS, DIRENT, INODE, LAYOUT_INLINE, LAYOUT_PLAIN, MAGIC, S_IFDIR, S_IFLNK, S_IFMT, SLOT,
    SUPER_AT, XATTR_PREFIXES, crc32c,
};

/// Largest link, directory or attribute area that is read into memory.
const MEMORY_LIMIT: u64 = 64 << 20;

/// An image that is being read.
pub struct Image<F> {
    file: F,
    meta_at: u64,
    root: u64,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The inode's number.
    pub nid: u64,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Links.
    pub links: u32,
    /// Last change in seconds since 1970.
    pub mtime: u64,
    /// Device number, for devices.
    pub device: u32,
    layout: u16,
    xattr_len: u64,
    data_at: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, ErofsError> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, ErofsError> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, ErofsError> {
    array(bytes, at).map(u64::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ErofsError> {
    bytes
        .get(at..at.saturating_add(N))
        .and_then(|part| part.try_into().ok())
        .ok_or(ErofsError::Image("a structure is cut off"))
}

impl<F: Read + Seek> Image<F> {
    /// Reads and checks the superblock.
    ///
    /// # Errors
    /// If it is no such image, or the file is shorter than the image says.
    pub fn open(mut file: F) -> Result<Self, ErofsError> {
        let end = file.seek(SeekFrom::End(0))?;
        let mut sb = read_at(&mut file, SUPER_AT, BLOCK - SUPER_AT)?;
        if u32_at(&sb, 0)? != MAGIC {
            return Err(ErofsError::Image("it is no EROFS image"));
        }
        let checksum = u32_at(&sb, 4)?;
        if let Some(field) = sb.get_mut(4..8) {
            field.fill(0);
        }
        if crc32c(&sb) != checksum {
            return Err(ErofsError::Image("the superblock's checksum is wrong"));
        }
        if sb.get(12) != Some(&BLOCK_BITS) || u32_at(&sb, 80)? != 0 {
            return Err(ErofsError::Image("it has features that are not known"));
        }
        if u64::from(u32_at(&sb, 36)?) * BLOCK > end {
            return Err(ErofsError::Image("it is cut off"));
        }
        let meta_at = u64::from(u32_at(&sb, 40)?) * BLOCK;
        let root = u64::from(u16_at(&sb, 14)?);
        Ok(Self { file, meta_at, root })
    }

    /// The inode with this number.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn inode(&mut self, nid: u64) -> Result<Found, ErofsError> {
        let at = nid
            .checked_mul(SLOT)
            .and_then(|at| at.checked_add(self.meta_at))
            .ok_or(ErofsError::Image("an inode number"))?;
        let raw = read_at(&mut self.file, at, INODE)?;
        let format = u16_at(&raw, 0)?;
        let layout = (format >> 1) & 7;
        if format & 1 != 1 || !matches!(layout, LAYOUT_PLAIN | LAYOUT_INLINE) {
            return Err(ErofsError::Image("an inode's format is not known"));
        }
        let count = u64::from(u16_at(&raw, 2)?);
        let xattr_len = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let union = u32_at(&raw, 16)?;
        let size = u64_at(&raw, 8)?;
        let inline = layout == LAYOUT_INLINE;
        if inline && size >= BLOCK {
            return Err(ErofsError::Image("an inline file is too large"));
        }
        Ok(Found {
            nid,
            mode: u16_at(&raw, 4)?,
            uid: u32_at(&raw, 24)?,
            gid: u32_at(&raw, 28)?,
            size,
            links: u32_at(&raw, 44)?,
            mtime: u64_at(&raw, 32)?,
            device: union,
            layout,
            xattr_len,
            data_at: if inline { at + INODE + xattr_len } else { u64::from(union) * BLOCK },
        })
    }

    /// What is at a path; links are not followed.
    ///
    /// # Errors
    /// If the image is damaged.
    pub fn find(&mut self, path: &[u8]) -> Result<Option<Found>, ErofsError> {
        let mut at = self.inode(self.root)?;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            if at.mode & S_IFMT != S_IFDIR {
                return Ok(None);
            }
            match self.list(&at)?.get(name) {
                Some(nid) => at = self.inode(*nid)?,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// A directory's names, without `.` and `..`, and the inodes they stand for.
    ///
    /// # Errors
    /// If the image is damaged.
    pub fn list(&mut self, directory: &Found) -> Result<BTreeMap<Vec<u8>, u64>, ErofsError> {
        let data = self.bytes(directory)?;
        let mut names = BTreeMap::new();
        for block in data.chunks(4096) {
            let first = usize::from(u16_at(block, 8)?);
            if !first.is_multiple_of(DIRENT) || first == 0 {
                return Err(ErofsError::Image("a directory is damaged"));
            }
            for index in 0..first / DIRENT {
                let nid = u64_at(block, index * DIRENT)?;
                let start = usize::from(u16_at(block, index * DIRENT + 8)?);
                let end = if (index + 1) * DIRENT < first {
                    usize::from(u16_at(block, (index + 1) * DIRENT + 8)?)
                } else {
                    block.len()
                };
                let name = block.get(start..end).ok_or(ErofsError::Image("a directory is damaged"))?;
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                if name != b"." && name != b".." {
                    names.insert(name.to_vec(), nid);
                }
            }
        }
        Ok(names)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// If it is none or the image is damaged.
    pub fn link_target(&mut self, link: &Found) -> Result<Vec<u8>, ErofsError> {
        if link.mode & S_IFMT != S_IFLNK {
            return Err(ErofsError::Image("it is no link"));
        }
        self.bytes(link)
    }

    /// A file's bytes, from front to back.
    ///
    /// # Errors
    /// If seeking fails.
    pub fn contents(&mut self, file: &Found) -> Result<io::Take<&mut F>, ErofsError> {
        self.file.seek(SeekFrom::Start(file.data_at))?;
        Ok(Read::take(&mut self.file, file.size))
    }

    /// A file's extended attributes.
    ///
    /// # Errors
    /// If the image is damaged.
    pub fn xattrs(&mut self, file: &Found) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ErofsError> {
        let mut found = BTreeMap::new();
        if file.xattr_len <= 12 {
            return Ok(found);
        }
        let at = self.meta_at + file.nid * SLOT + INODE + 12;
        let all = read_at(&mut self.file, at, file.xattr_len - 12)?;
        let mut rest = all.as_slice();
        while let [name_len, number, ..] = rest {
            let name_len = usize::from(*name_len);
            let value_len = usize::from(u16_at(rest, 2)?);
            const DAMAGED: ErofsError = ErofsError::Image("an attribute is damaged");
            let name = rest.get(4..4 + name_len).ok_or(DAMAGED)?;
            let value = rest.get(4 + name_len..4 + name_len + value_len).ok_or(DAMAGED)?;
            let (_, prefix) = XATTR_PREFIXES.iter().find(|(known, _)| known == number).ok_or(DAMAGED)?;
            found.insert([prefix, name].concat(), value.to_vec());
            rest = rest.get((4 + name_len + value_len).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(found)
    }

    /// Where a regular file's data starts in the image, in bytes; a multiple of 4096 unless it is empty.
    #[must_use]
    pub const fn position(file: &Found) -> u64 {
        file.data_at
    }

    fn bytes(&mut self, file: &Found) -> Result<Vec<u8>, ErofsError> {
        if file.size > MEMORY_LIMIT {
            return Err(ErofsError::Image("a directory or link is too large"));
        }
        read_at(&mut self.file, file.data_at, file.size)
    }
}

fn read_at<F: Read + Seek>(file: &mut F, at: u64, len: u64) -> Result<Vec<u8>, ErofsError> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(len).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()) == Ok(len) { Ok(bytes) } else { Err(ErofsError::Image("it is cut off")) }
}
