//! Linux: `openat2` beneath a descriptor, `statx`, and `*at` calls that do not follow links.
//!
//! Every path given to these functions is one checked component, or components that the server itself has met in
//! directories; every call is told not to follow links. `/proc` is not needed. The calls made are listed in
//! [`SYSTEM_CALLS`], for the filter of the process that runs this.

use std::ffi::CStr;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{HostEntry, Identity, OpenFor, Result, ShareFor, Stat};
use fuse_wire::{Errno, FallocateMode, FileKind, SeekTarget, SetTime, SpaceReport, Timestamp, XattrMode};
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, Statx, StatxFlags,
    Timespec, Timestamps, XattrFlags,
};

/// System calls that the file server makes while it serves, for a seccomp filter.
pub const SYSTEM_CALLS: &[&str] = &[
    "openat2",
    "statx",
    "close",
    "getdents64",
    "lseek",
    "readlinkat",
    "symlinkat",
    "mkdirat",
    "unlinkat",
    "renameat2",
    "linkat",
    "preadv",
    "pwritev2",
    "ftruncate",
    "fallocate",
    "fchmod",
    "utimensat",
    "fgetxattr",
    "fsetxattr",
    "flistxattr",
    "fremovexattr",
    "fsync",
    "fdatasync",
    "syncfs",
    "fstatfs",
    "copy_file_range",
];

impl OpenFor {
    fn flags(self) -> OFlags {
        match self {
            OpenFor::Naming => OFlags::PATH,
            OpenFor::Reading => OFlags::RDONLY,
            OpenFor::Writing => OFlags::WRONLY,
            OpenFor::ReadingAndWriting => OFlags::RDWR,
        }
    }
}

/// Opens what a path of the user names, to be shared; links in it are followed.
pub(crate) fn open_share(path: &Path, how: ShareFor) -> std::io::Result<OwnedFd> {
    let flags = match how {
        ShareFor::Directory => OFlags::PATH | OFlags::DIRECTORY,
        ShareFor::Reading => OFlags::RDONLY | OFlags::NONBLOCK,
        ShareFor::ReadingAndWriting => OFlags::RDWR | OFlags::NONBLOCK,
    };
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())?)
}

/// The host's own error behind one of these functions'.
pub(crate) fn io_error(errno: Errno) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno.raw())
}

fn host(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map_err(host),
        }
    }
}

/// The caller's effective user and all of its groups.
pub(crate) fn credentials() -> (u32, Vec<u32>) {
    let mut groups: Vec<u32> =
        rustix::process::getgroups().unwrap_or_default().iter().map(|g| g.as_raw()).collect();
    groups.push(rustix::process::getegid().as_raw());
    (rustix::process::geteuid().as_raw(), groups)
}

/// How many descriptors this process may have open, as far as it says.
pub(crate) fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX)
}

/// What `name` in `dir` is, itself and not what it links to.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &CStr) -> Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = retry(|| rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME))?;
    Stat::from_host(&stat)
}

/// What a descriptor is open on.
pub(crate) fn stat_of(fd: BorrowedFd<'_>) -> Result<Stat> {
    let stat = retry(|| {
        rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
    })?;
    Stat::from_host(&stat)
}

impl Stat {
    fn from_host(stat: &Statx) -> Result<Stat> {
        let time = |t: &rustix::fs::StatxTimestamp| Timestamp { seconds: t.tv_sec, nanoseconds: t.tv_nsec };
        let mode = u32::from(stat.stx_mode);
        let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Ok(Stat {
            identity: Identity {
                device: (stat.stx_dev_major, stat.stx_dev_minor),
                inode: stat.stx_ino,
                birth: if has_birth { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) },
                kind: FileKind::from_mode(mode).ok_or(Errno::IO)?,
            },
            mode: mode & 0o7777,
            links: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            block_size: stat.stx_blksize,
            atime: time(&stat.stx_atime),
            mtime: time(&stat.stx_mtime),
            ctime: time(&stat.stx_ctime),
        })
    }
}

fn open_beneath(dir: BorrowedFd<'_>, path: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // EAGAIN: a rename elsewhere made the kernel unsure; it asks to try again (openat2(2)).
    for _ in 0..64 {
        match retry(|| rustix::fs::openat2(dir, path, flags, mode, resolve)) {
            Err(errno) if errno.raw() == rustix::io::Errno::AGAIN.raw_os_error() => {}
            other => return other,
        }
    }
    Err(Errno::STALE)
}

/// File systems whose files are the kernel's own controls: a guest has no business in the host's, and some of their files
/// are other processes' memory and environment (`include/uapi/linux/magic.h`).
const KERNEL_INTERFACES: &[u32] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x6573_5543, // fusectl
    0x1980_0202, // mqueue
    0x6c6f_6f70, // binder
    0x0765_5821, // resctrl
];

/// Whether an entry of `dir` lies on a file system through which the kernel shows and takes its own state.
pub(crate) fn is_kernel_interface(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool> {
    let entry = open_entry(dir, name, OpenFor::Naming, false)?;
    let stat = retry(|| rustix::fs::fstatfs(&entry))?;
    // The type is signed on some machines, and 32 bits of it are used.
    Ok(KERNEL_INTERFACES.contains(&(stat.f_type as u32)))
}

/// Opens a directory beneath `dir` to name things in it.
pub(crate) fn open_directory_path(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_beneath(dir, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
}

/// Opens a directory's own descriptor for reading.
pub(crate) fn open_directory(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_beneath(dir, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// Opens an entry of `dir`. The caller has seen that it is a regular file, and looks again at what it got: should it have
/// become a pipe or a terminal in between, the open neither waits nor takes the terminal.
pub(crate) fn open_entry(
    dir: BorrowedFd<'_>,
    name: &CStr,
    how: OpenFor,
    synchronous: bool,
) -> Result<OwnedFd> {
    let mut flags = how.flags();
    if how != OpenFor::Naming {
        flags |= OFlags::NONBLOCK | OFlags::NOCTTY;
    }
    if synchronous {
        flags |= OFlags::DSYNC;
    }
    open_beneath(dir, name, flags, Mode::empty())
}

/// Makes a regular file that was not there.
pub(crate) fn create_entry(
    dir: BorrowedFd<'_>,
    name: &CStr,
    how: OpenFor,
    synchronous: bool,
    mode: u32,
) -> Result<OwnedFd> {
    let mut flags = how.flags() | OFlags::CREATE | OFlags::EXCL | OFlags::NOCTTY;
    if synchronous {
        flags |= OFlags::DSYNC;
    }
    open_beneath(dir, name, flags, Mode::from_raw_mode(mode))
}

pub(crate) fn make_directory(dir: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    retry(|| rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)))
}

pub(crate) fn make_symlink(dir: BorrowedFd<'_>, name: &CStr, target: &CStr) -> Result<()> {
    retry(|| rustix::fs::symlinkat(target, dir, name))
}

pub(crate) fn read_link(dir: BorrowedFd<'_>, name: &CStr) -> Result<Vec<u8>> {
    let target = retry(|| rustix::fs::readlinkat(dir, name, Vec::with_capacity(256)))?;
    Ok(target.into_bytes())
}

pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &CStr, directory: bool) -> Result<()> {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    retry(|| rustix::fs::unlinkat(dir, name, flags))
}

pub(crate) fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    mode: fuse_wire::RenameMode,
) -> Result<()> {
    let flags = match mode {
        fuse_wire::RenameMode::Replace => RenameFlags::empty(),
        fuse_wire::RenameMode::NoReplace => RenameFlags::NOREPLACE,
        fuse_wire::RenameMode::Exchange => RenameFlags::EXCHANGE,
    };
    retry(|| rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags))
}

pub(crate) fn link(from: (BorrowedFd<'_>, &CStr), to: (BorrowedFd<'_>, &CStr)) -> Result<()> {
    // Without AT_SYMLINK_FOLLOW a link is made to a symbolic link itself.
    retry(|| rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()))
}

pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> Result<()> {
    retry(|| rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)))
}

pub(crate) fn set_length(fd: BorrowedFd<'_>, size: u64) -> Result<()> {
    retry(|| rustix::fs::ftruncate(fd, size))
}

/// Sets times of what a descriptor is open on. By name it cannot be done: no Landlock right covers `utimensat`, so the filter
/// of the process allows it without a path only.
pub(crate) fn set_times(fd: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
    retry(|| rustix::fs::futimens(fd, &times))
}

/// The time now, by the C library's clock: rustix looks for the kernel's by a call that a vmm's filter kills.
pub(crate) fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: now.as_secs().cast_signed(), nanoseconds: now.subsec_nanos() }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At { seconds, nanoseconds }) => {
            Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) }
        }
    }
}

/// Reads into the buffers until they are full or the file ends.
pub(crate) fn read(fd: BorrowedFd<'_>, mut offset: u64, mut into: &mut [IoSliceMut<'_>]) -> Result<usize> {
    let mut done = 0;
    while into.iter().any(|slice| !slice.is_empty()) {
        let count = match retry(|| rustix::io::preadv(fd, into, offset)) {
            Ok(count) => count,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        };
        if count == 0 {
            break;
        }
        done += count;
        offset += count as u64;
        IoSliceMut::advance_slices(&mut into, count);
    }
    Ok(done)
}

/// Writes all of the buffers, at the end if `append`; what was written before an error counts.
pub(crate) fn write(
    fd: BorrowedFd<'_>,
    mut offset: u64,
    append: bool,
    from: &[IoSlice<'_>],
) -> Result<usize> {
    use rustix::io::ReadWriteFlags;
    let flags = if append { ReadWriteFlags::APPEND } else { ReadWriteFlags::empty() };
    let mut slices = from.to_vec();
    let mut rest = slices.as_mut_slice();
    let mut done = 0;
    while rest.iter().any(|slice| !slice.is_empty()) {
        let count = match retry(|| rustix::io::pwritev2(fd, rest, offset, flags)) {
            Ok(count) => count,
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        };
        if count == 0 {
            break;
        }
        done += count;
        offset += count as u64;
        IoSlice::advance_slices(&mut rest, count);
    }
    Ok(done)
}

/// The extended attribute's value, at most 64 KiB.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &CStr, most: usize) -> Result<Vec<u8>> {
    let mut value = Vec::with_capacity(most);
    retry(|| rustix::fs::fgetxattr(fd, name, rustix::buffer::spare_capacity(&mut value)))?;
    Ok(value)
}

pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8], mode: XattrMode) -> Result<()> {
    let flags = match mode {
        XattrMode::Set => XattrFlags::empty(),
        XattrMode::Create => XattrFlags::CREATE,
        XattrMode::Replace => XattrFlags::REPLACE,
    };
    retry(|| rustix::fs::fsetxattr(fd, name, value, flags))
}

pub(crate) fn list_xattr(fd: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut names = Vec::with_capacity(65536);
    retry(|| rustix::fs::flistxattr(fd, rustix::buffer::spare_capacity(&mut names)))?;
    Ok(names)
}

pub(crate) fn remove_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    retry(|| rustix::fs::fremovexattr(fd, name))
}

pub(crate) fn sync(fd: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    retry(|| if data_only { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) })
}

pub(crate) fn sync_file_system(fd: BorrowedFd<'_>) -> Result<()> {
    retry(|| rustix::fs::syncfs(fd))
}

pub(crate) fn allocate(fd: BorrowedFd<'_>, offset: u64, length: u64, mode: FallocateMode) -> Result<()> {
    let keep = |keep| if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    let flags = match mode {
        FallocateMode::Allocate { keep_size } => keep(keep_size),
        FallocateMode::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateMode::Zero { keep_size } => FallocateFlags::ZERO_RANGE | keep(keep_size),
    };
    retry(|| rustix::fs::fallocate(fd, flags, offset, length))
}

pub(crate) fn seek(fd: BorrowedFd<'_>, offset: u64, target: SeekTarget) -> Result<u64> {
    let from = match target {
        SeekTarget::Data => SeekFrom::Data(offset),
        SeekTarget::Hole => SeekFrom::Hole(offset),
    };
    retry(|| rustix::fs::seek(fd, from))
}

pub(crate) fn copy_range(
    from: BorrowedFd<'_>,
    mut from_offset: u64,
    to: BorrowedFd<'_>,
    mut to_offset: u64,
    length: u64,
) -> Result<usize> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    retry(|| rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), length))
}

pub(crate) fn space(fd: BorrowedFd<'_>) -> Result<SpaceReport> {
    let stat = retry(|| rustix::fs::fstatvfs(fd))?;
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(SpaceReport {
        fragment_size: small(stat.f_frsize),
        block_size: small(stat.f_bsize),
        blocks: stat.f_blocks,
        free: stat.f_bfree,
        available: stat.f_bavail,
        files: stat.f_files,
        files_free: stat.f_ffree,
        name_max: small(stat.f_namemax),
    })
}

/// Goes through a directory from `offset` on, until `take` returns false or the directory ends.
pub(crate) fn list(
    fd: BorrowedFd<'_>,
    offset: u64,
    mut take: impl FnMut(HostEntry<'_>) -> bool,
) -> Result<()> {
    retry(|| rustix::fs::seek(fd, SeekFrom::Start(offset)))?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    let mut entries = RawDir::new(fd, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(host)?,
        };
        let mode = entry.file_type().as_raw_mode();
        let entry = HostEntry {
            name: entry.file_name(),
            inode: entry.ino(),
            next: entry.next_entry_cookie(),
            kind: FileKind::from_mode(mode),
        };
        if !take(entry) {
            break;
        }
    }
    Ok(())
}
