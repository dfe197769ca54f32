//! Numbers of the protocol, from Linux 6.12 `include/uapi/linux/fuse.h`. Only those that we speak are here.

/// Length of `fuse_in_header` in bytes.
pub(crate) const IN_HEADER: usize = 40;
/// Length of `fuse_out_header` in bytes.
pub(crate) const OUT_HEADER: usize = 16;
/// Length of `fuse_write_in` in bytes.
pub(crate) const WRITE_IN: usize = 40;
/// Length of `fuse_init_in` in bytes since 7.36.
pub(crate) const INIT_IN: usize = 64;

/// Major version of the protocol.
pub(crate) const MAJOR: u32 = 7;
/// The newest minor version that we answer with.
pub(crate) const MINOR: u32 = 40;
/// The oldest minor version that we accept (Linux 5.4, the first with virtio-fs).
pub(crate) const MIN_MINOR: u32 = 31;

/// Opcodes (`enum fuse_opcode`).
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
}

/// `fuse_init_in.flags`, both halves.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(crate) const INIT_EXT: u64 = 1 << 30;
}

/// `fuse_setattr_in.valid`.
pub(crate) mod fattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `fuse_getattr_in.getattr_flags`: the handle is valid.
pub(crate) const GETATTR_FH: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: written back from the page cache, the handle is a guess.
pub(crate) const WRITE_CACHE: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`: data only.
pub(crate) const FSYNC_FDATASYNC: u32 = 1 << 0;

/// `fuse_open_out.open_flags`: keep the pages cached before.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// Linux open flags; those used here have the same value on x86-64 and arm64.
pub(crate) mod open {
    pub(crate) const ACCMODE: u32 = 0o3;
    pub(crate) const EXCL: u32 = 0o200;
    pub(crate) const TRUNC: u32 = 0o1000;
    pub(crate) const APPEND: u32 = 0o2000;
    pub(crate) const DSYNC: u32 = 0o10000;
    pub(crate) const SYNC: u32 = 0o4010000;
}

/// File type bits of a mode.
pub(crate) const S_IFMT: u32 = 0o170000;
/// A regular file's type bits.
pub(crate) const S_IFREG: u32 = 0o100000;

/// `renameat2` flags.
pub(crate) const RENAME_NOREPLACE: u32 = 1;
/// Swap the two names.
pub(crate) const RENAME_EXCHANGE: u32 = 2;

/// `fallocate` modes.
pub(crate) mod falloc {
    pub(crate) const KEEP_SIZE: u32 = 0x01;
    pub(crate) const PUNCH_HOLE: u32 = 0x02;
    pub(crate) const ZERO_RANGE: u32 = 0x10;
}

/// `lseek` whence values that reach a FUSE server.
pub(crate) const SEEK_DATA: u32 = 3;
/// The next hole.
pub(crate) const SEEK_HOLE: u32 = 4;

/// `setxattr` flags.
pub(crate) const XATTR_CREATE: u32 = 1;
/// Fail if there is none to replace.
pub(crate) const XATTR_REPLACE: u32 = 2;
/// The largest extended attribute's value in Linux.
pub(crate) const XATTR_SIZE_MAX: u32 = 65536;
/// The longest target of a symbolic link, NUL excluded.
pub(crate) const TARGET_MAX: usize = 4095;
