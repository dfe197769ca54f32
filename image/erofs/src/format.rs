//! The on-disk structures (`fs/erofs/erofs_fs.h`), as bytes.

/// Block size in bytes, and its logarithm.
pub(crate) const BLOCK: u64 = 4096;
pub(crate) const BLOCK_BITS: u8 = 12;
/// Where the superblock starts.
pub(crate) const SUPER_AT: u64 = 1024;
pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
/// Inode numbers count slots of this many bytes.
pub(crate) const SLOT: u64 = 32;
/// Size of an extended inode, the only kind written.
pub(crate) const INODE: u64 = 64;
pub(crate) const DIRENT: usize = 12;
pub(crate) const NAME_MAX: usize = 255;

pub(crate) const COMPAT_CHECKSUM: u32 = 1;
pub(crate) const COMPAT_MTIME: u32 = 2;

/// Data in whole blocks.
pub(crate) const LAYOUT_PLAIN: u16 = 0;
/// The last, partial block right behind the inode.
pub(crate) const LAYOUT_INLINE: u16 = 2;

pub(crate) const S_IFMT: u16 = 0o170_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFIFO: u16 = 0o010_000;

/// The directory entry's file type for a mode.
pub(crate) const fn dirent_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// The prefixes that an attribute's name is shortened by, with their numbers; the POSIX ACLs are whole names.
pub(crate) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

/// An inode as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawInode {
    pub(crate) layout: u16,
    pub(crate) xattr_count: u16,
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// First block, or device number.
    pub(crate) union: u32,
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) mtime_nsec: u32,
    pub(crate) links: u32,
}

impl RawInode {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend(((self.layout << 1) | 1).to_le_bytes());
        out.extend(self.xattr_count.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size.to_le_bytes());
        out.extend(self.union.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend(self.uid.to_le_bytes());
        out.extend(self.gid.to_le_bytes());
        out.extend(self.mtime.to_le_bytes());
        out.extend(self.mtime_nsec.to_le_bytes());
        out.extend(self.links.to_le_bytes());
        out.extend([0; 16]);
        out
    }
}

/// What the superblock says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SuperBlock {
    pub(crate) root: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) meta_block: u32,
    pub(crate) build_time: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) label: [u8; 16],
}

impl SuperBlock {
    /// The first block of the image, checksum included.
    pub(crate) fn block(&self) -> Vec<u8> {
        let mut sb = Vec::with_capacity(3072);
        sb.extend(MAGIC.to_le_bytes());
        sb.extend([0; 4]); // checksum
        sb.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        sb.extend([BLOCK_BITS, 0]); // no extended slots
        sb.extend(self.root.to_le_bytes());
        sb.extend(self.inodes.to_le_bytes());
        sb.extend(self.build_time.to_le_bytes());
        sb.extend(0u32.to_le_bytes());
        sb.extend(self.blocks.to_le_bytes());
        sb.extend(self.meta_block.to_le_bytes());
        sb.extend(0u32.to_le_bytes()); // no shared attributes
        sb.extend(self.uuid);
        sb.extend(self.label);
        sb.resize(3072, 0);
        let checksum = crc32c(&sb).to_le_bytes();
        let mut block = vec![0; 1024];
        block.extend(sb.iter().take(4));
        block.extend(checksum);
        block.extend(sb.iter().skip(8));
        block
    }
}

/// CRC-32C as the kernel computes it here: begun with all ones and not inverted at the end.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_castagnolis() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn structures_have_their_sizes() {
        let inode = RawInode {
            layout: 0,
            xattr_count: 0,
            mode: 0,
            size: 0,
            union: 0,
            number: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_nsec: 0,
            links: 0,
        };
        assert_eq!(inode.bytes().len() as u64, INODE);
        let sb = SuperBlock {
            root: 0,
            inodes: 0,
            blocks: 0,
            meta_block: 0,
            build_time: 0,
            uuid: [0; 16],
            label: [0; 16],
        };
        assert_eq!(sb.block().len() as u64, BLOCK);
    }
}
