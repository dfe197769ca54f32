//! Attempts to break out of a confined process, as code that a guest took over would make them. For tests only:
//! [`crate::ATTEMPTS`] says how each must end.

use std::ffi::{CStr, CString, c_long};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libc as c;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketType};

use crate::table::{Call, Shown};

/// What an attempt needs to be one: everything is there and open before the process is confined, so that nothing but the
/// confinement makes it fail.
#[derive(Debug)]
pub struct Ground {
    /// A folder outside of all grants, with a file `file` and a file `.ssh/key`.
    folder: PathBuf,
    /// The file, opened for reading.
    file: File,
    parent: i64,
    /// Memory of the parent's, if it can be looked up; else an address at which there is hardly any.
    parents_memory: usize,
    /// The guest's side of a new terminal, if this host has any.
    terminal: Option<OwnedFd>,
    /// `/dev/kvm`, if it can be opened.
    kvm: Option<File>,
    /// A socket without an address.
    udp: OwnedFd,
}

impl Ground {
    /// Makes what is not there yet in the folder, and opens everything.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lay(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder.join(".ssh"))?;
        for name in ["file", ".ssh/key"] {
            std::fs::write(folder.join(name), b"content")?;
        }
        let parent = std::os::unix::process::parent_id();
        let maps = std::fs::read_to_string(format!("/proc/{parent}/maps")).unwrap_or_default();
        let start = maps.split('-').next().and_then(|start| usize::from_str_radix(start, 16).ok());
        Ok(Self {
            folder: folder.to_owned(),
            file: File::open(folder.join("file"))?,
            parent: parent.into(),
            parents_memory: start.unwrap_or(0x1000),
            terminal: terminal().ok(),
            kvm: File::options().read(true).write(true).open("/dev/kvm").ok(),
            udp: rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?,
        })
    }

    /// Makes an attempt: `Ok` says that it **succeeded**, which a confined process must not see. May not return.
    ///
    /// # Errors
    /// It was refused.
    pub fn attempt(&self, name: &str) -> io::Result<()> {
        let request = |fd: RawFd, request: i64, argument: i64| {
            call(c::SYS_ioctl, [fd.into(), request, argument, 0, 0, 0])
        };
        let fd = |fd: Option<RawFd>| fd.unwrap_or(-1);
        match name {
            "open-passwd" => open(Path::new("/etc/passwd"), OFlags::RDONLY),
            "open-passwd-by-openat" => by_openat(Path::new("/etc/passwd")),
            "open-ssh-folder" => open(&self.folder.join(".ssh/key"), OFlags::RDONLY),
            "open-own-memory" => open(Path::new("/proc/self/mem"), OFlags::RDWR),
            "create-a-file" => open(&self.folder.join("new"), OFlags::WRONLY | OFlags::CREATE),
            "list-root" => open(Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY),
            "device-ioctl" => request(self.file.as_raw_fd(), 0x5451 /* FIOCLEX */, 0),
            "touch-by-path" => touch(c::AT_FDCWD, &text(&self.folder)?, 0),
            "touch-by-empty-path" => touch(self.file.as_raw_fd(), c"", c::AT_EMPTY_PATH),
            "chmod-by-path" => by_path(c::SYS_fchmodat, &text(&self.folder.join("file"))?, 0o600),
            "set-user-id" => call(c::SYS_fchmod, [self.file.as_raw_fd().into(), 0o4700, 0, 0, 0, 0]),
            "pipe-node" => node(&self.folder.join("pipe"), c::S_IFIFO, 0),
            "device-node" => node(&self.folder.join("null"), c::S_IFCHR, c::makedev(1, 3)),
            "chroot" => chroot(&text(&self.folder)?),
            "socket-inet" => socket(c::AF_INET, c::SOCK_STREAM),
            // As a gateway makes them, but for the kind.
            "socket-raw" => {
                let kind = c::SOCK_RAW | c::SOCK_NONBLOCK | c::SOCK_CLOEXEC;
                call(c::SYS_socket, [c::AF_INET.into(), kind.into(), c::IPPROTO_ICMP.into(), 0, 0, 0])
            }
            "bind" => bind(&self.udp),
            "socket-unix" => socket(c::AF_UNIX, c::SOCK_STREAM),
            "socket-netlink" => socket(c::AF_NETLINK, c::SOCK_RAW),
            "socket-vsock" => socket(c::AF_VSOCK, c::SOCK_STREAM),
            "execve" => execve(),
            "fork" => fork(),
            "trace-me" => call(c::SYS_ptrace, [c::PTRACE_TRACEME.into(), 0, 0, 0, 0, 0]),
            "ptrace" => call(c::SYS_ptrace, [c::PTRACE_SEIZE.into(), self.parent, 0, 0, 0, 0]),
            "read-parents-memory" => read_memory(self.parent, self.parents_memory),
            "kill-parent" => call(c::SYS_kill, [self.parent, 0, 0, 0, 0, 0]),
            "tgkill-parent" => call(c::SYS_tgkill, [self.parent, self.parent, 0, 0, 0, 0]),
            "pidfd-of-parent" => call(c::SYS_pidfd_open, [self.parent, 0, 0, 0, 0, 0]),
            "change-user" => call(c::SYS_setresuid, [-1, -1, -1, 0, 0, 0]),
            "unshare" => call(c::SYS_unshare, [c::CLONE_NEWUSER.into(), 0, 0, 0, 0, 0]),
            "unshare-descriptors" => call(c::SYS_unshare, [c::CLONE_FILES.into(), 0, 0, 0, 0, 0]),
            "map-writable-and-executable" => map(c::PROT_READ | c::PROT_WRITE | c::PROT_EXEC),
            "map-executable" => map(c::PROT_READ | c::PROT_EXEC),
            "make-executable" => make_executable(),
            "memory-file" => memory_file(),
            "io-uring" => io_uring(),
            "terminal-ioctl" => terminal_input(fd(self.terminal.as_ref().map(|fd| fd.as_raw_fd()))),
            "kvm-create-vm" => request(fd(self.kvm.as_ref().map(|fd| fd.as_raw_fd())), 0xae01, 0),
            _ => Err(io::Error::other("there is no such attempt")),
        }
    }
}

static PREPARED: OnceLock<(String, Ground)> = OnceLock::new();

/// Prepares what a text `NAME FOLDER` asks for: an attempt, and the folder for its [`Ground`]. Call it before the process is
/// confined.
///
/// # Errors
/// The text has no folder, or it cannot be written.
pub fn prepare(asked: &str) -> io::Result<()> {
    let (name, folder) = asked.split_once(' ').ok_or_else(|| io::Error::other("no folder is named"))?;
    let ground = Ground::lay(Path::new(folder))?;
    PREPARED.set((name.to_owned(), ground)).map_err(|_| io::Error::other("prepared twice"))
}

/// The name of the attempt that was prepared, if one was.
#[must_use]
pub fn prepared() -> Option<&'static str> {
    PREPARED.get().map(|(name, _)| name.as_str())
}

/// Makes the attempt that was prepared: as [`Ground::attempt`].
///
/// # Errors
/// It was refused.
pub fn attempt() -> io::Result<()> {
    let nothing = || io::Error::other("nothing was prepared");
    PREPARED.get().ok_or_else(nothing).and_then(|(name, ground)| ground.attempt(name))
}

/// Looks at a clock that no vDSO has, so that it takes a system call on every host.
///
/// # Errors
/// There is no such clock.
pub fn look_at_the_clock() -> io::Result<()> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is this function's own.
    checked(unsafe { libc::clock_gettime(c::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }.into())
}

static REMOVED: OnceLock<String> = OnceLock::new();

/// Takes a system call's lines that name a case out of the table that this process will be confined by.
pub fn remove_line(system_call: &str) {
    let _ = REMOVED.set(system_call.to_owned());
}

/// A table without the line that was removed.
pub(crate) fn remaining(table: &[Call]) -> Vec<Call> {
    let name = REMOVED.get().map(String::as_str);
    let removed = |call: &Call| matches!(call.shown, Shown::Case(..)) && Some(call.name()) == name;
    table.iter().filter(|call| !removed(call)).copied().collect()
}

fn terminal() -> io::Result<OwnedFd> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let name = ptsname(&near, Vec::new())?;
    let far = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    // It goes on for as long as this process does.
    std::mem::forget(near);
    Ok(far)
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)
}

fn open(path: &Path, flags: OFlags) -> io::Result<()> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR } else { Mode::empty() };
    rustix::fs::openat2(rustix::fs::CWD, path, flags, mode, ResolveFlags::empty())?;
    Ok(())
}

fn by_openat(path: &Path) -> io::Result<()> {
    rustix::fs::openat(rustix::fs::CWD, path, OFlags::RDONLY, Mode::empty())?;
    Ok(())
}

fn checked(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn call(number: c_long, a: [i64; 6]) -> io::Result<()> {
    let [first, second, third, fourth, fifth, sixth] = a;
    // SAFETY: the callers pass no pointer but null.
    checked(unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) })
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    call(c::SYS_socket, [family.into(), kind.into(), 0, 0, 0, 0])
}

/// Takes any port of this host's own address.
fn bind(socket: &OwnedFd) -> io::Result<()> {
    Ok(rustix::net::bind(socket, &std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0))?)
}

/// Becomes a program that says what a test looks for.
fn execve() -> io::Result<()> {
    let arguments = [c"/bin/echo".as_ptr(), c"BROKE OUT".as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: the pointers are to a C string and to arrays that end with null.
    checked(unsafe { libc::execve(c"/bin/echo".as_ptr(), arguments.as_ptr(), environment.as_ptr()) }.into())
}

fn fork() -> io::Result<()> {
    // SAFETY: a plain fork; the child, if there is one, ends at once.
    let child = unsafe { libc::syscall(c::SYS_clone, c::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    checked(child)
}

fn read_memory(process: i64, at: usize) -> io::Result<()> {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(at), iov_len: 1 };
    let process = i32::try_from(process).map_err(io::Error::other)?;
    // SAFETY: one byte of this process is written; the other address is of another one.
    let count = unsafe { libc::process_vm_readv(process, &raw const here, 1, &raw const there, 1, 0) };
    if count == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn map(protection: i32) -> io::Result<()> {
    let flags = c::MAP_PRIVATE | c::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if at == c::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make_executable() -> io::Result<()> {
    let flags = c::MAP_PRIVATE | c::MAP_ANONYMOUS;
    // SAFETY: a new mapping, whose protection is then changed; nothing else uses it.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 4096, c::PROT_READ | c::PROT_WRITE, flags, -1, 0);
        if at == c::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        checked(libc::mprotect(at, 4096, c::PROT_READ | c::PROT_EXEC).into())
    }
}

fn memory_file() -> io::Result<()> {
    rustix::fs::memfd_create(c"hostile", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(())
}

fn io_uring() -> io::Result<()> {
    // `struct io_uring_params` has 120 bytes.
    let mut parameters = [0u64; 15];
    // SAFETY: the kernel fills the parameters, which are as long as it takes them to be.
    checked(unsafe { libc::syscall(c::SYS_io_uring_setup, 1, &raw mut parameters) })
}

/// Types a letter on a terminal, as if its user had.
fn terminal_input(terminal: RawFd) -> io::Result<()> {
    let letter = b'x';
    // SAFETY: the request reads one byte.
    checked(unsafe { libc::ioctl(terminal, c::TIOCSTI, &raw const letter) }.into())
}

fn node(path: &Path, kind: libc::mode_t, number: libc::dev_t) -> io::Result<()> {
    let path = text(path)?;
    // SAFETY: the path is a C string.
    checked(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, number) }.into())
}

fn chroot(path: &CStr) -> io::Result<()> {
    // SAFETY: the path is a C string.
    checked(unsafe { libc::chroot(path.as_ptr()) }.into())
}

fn by_path(number: c_long, path: &CStr, mode: libc::mode_t) -> io::Result<()> {
    // SAFETY: the path is a C string.
    checked(unsafe { libc::syscall(number, c::AT_FDCWD, path.as_ptr(), mode, 0) })
}

fn touch(directory: i32, path: &CStr, flags: i32) -> io::Result<()> {
    let day = libc::timespec { tv_sec: 86_400, tv_nsec: 0 };
    let times = [day, day];
    // SAFETY: the path is a C string, and the times are an array of two.
    checked(unsafe { libc::utimensat(directory, path.as_ptr(), times.as_ptr(), flags) }.into())
}
