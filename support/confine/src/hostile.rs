//! Attempts to break out of a confined process, as code that a guest took over would make them. For tests only: each
//! attempt is expected to fail with an error or to kill the process.

use std::ffi::{CStr, CString};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Its name.
    pub name: &'static str,
    attempt: fn() -> io::Result<()>,
}

impl Probe {
    /// Makes the attempt: `Ok` says that it **succeeded**, which a confined process must not see. May not return.
    pub fn attempt(&self) -> io::Result<()> {
        (self.attempt)()
    }
}

/// Every attempt.
pub const PROBES: &[Probe] = &[
    Probe { name: "open-passwd", attempt: || open("/etc/passwd") },
    Probe { name: "open-ssh-folder", attempt: || open(&format!("{}/.ssh", home())) },
    Probe { name: "open-own-memory", attempt: || open("/proc/self/mem") },
    Probe { name: "create-in-tmp", attempt: || std::fs::write("/tmp/vivarium-hostile", b"x") },
    Probe { name: "list-root", attempt: || std::fs::read_dir("/").map(|_| ()) },
    Probe { name: "socket-inet", attempt: || socket(libc::AF_INET) },
    Probe { name: "socket-unix", attempt: || socket(libc::AF_UNIX) },
    Probe { name: "socket-netlink", attempt: || socket(libc::AF_NETLINK) },
    Probe { name: "socket-vsock", attempt: || socket(libc::AF_VSOCK) },
    Probe { name: "execve", attempt: execve },
    Probe { name: "fork", attempt: fork },
    Probe { name: "ptrace", attempt: ptrace },
    Probe { name: "read-parents-memory", attempt: read_parent },
    Probe { name: "kill-parent", attempt: || signal_parent(libc::SYS_kill) },
    Probe { name: "tgkill-parent", attempt: tgkill_parent },
    Probe {
        name: "unshare",
        attempt: || call(libc::SYS_unshare, [libc::CLONE_NEWUSER as i64, 0, 0, 0, 0, 0]),
    },
    Probe {
        name: "map-writable-and-executable",
        attempt: || map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC),
    },
    Probe { name: "map-executable", attempt: || map(libc::PROT_READ | libc::PROT_EXEC) },
    Probe { name: "make-executable", attempt: make_executable },
    Probe { name: "io-uring", attempt: || call(libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]) },
    Probe {
        name: "terminal-ioctl",
        attempt: || call(libc::SYS_ioctl, [0, 0x5412 /* TIOCSTI */, 0, 0, 0, 0]),
    },
    Probe { name: "kvm-create-vm", attempt: || call(libc::SYS_ioctl, [0, 0xae01, 0, 0, 0, 0]) },
    Probe { name: "device-node", attempt: device_node },
    Probe { name: "touch-by-path", attempt: || touch(libc::AT_FDCWD, c"/tmp", 0) },
    Probe { name: "touch-by-empty-path", attempt: || touch(0, c"", libc::AT_EMPTY_PATH) },
];

/// The probe of this name.
pub fn find(name: &str) -> Option<Probe> {
    PROBES.iter().find(|probe| probe.name == name).copied()
}

fn home() -> String {
    std::env::var("HOME").unwrap_or_else(|_| "/root".into())
}

fn open(path: &str) -> io::Result<()> {
    std::fs::File::open(path).map(|_| ())
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn call(number: libc::c_long, a: [i64; 6]) -> io::Result<()> {
    let [first, second, third, fourth, fifth, sixth] = a;
    // SAFETY: the callers pass no pointer but null.
    checked(unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) })
}

fn socket(family: i32) -> io::Result<()> {
    call(libc::SYS_socket, [family.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0])
}

fn execve() -> io::Result<()> {
    let path = CString::new("/bin/true").map_err(io::Error::other)?;
    let arguments = [path.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: the pointers are to a C string and to arrays that end with null.
    checked(unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) }.into())
}

fn fork() -> io::Result<()> {
    // SAFETY: a plain fork; the child, if there is one, ends at once.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: ends this process.
        unsafe { libc::_exit(0) };
    }
    checked(child)
}

static PARENT: AtomicU32 = AtomicU32::new(0);

/// Notes who the parent is. Call it before the process is confined: the probes must not fail at that question already.
pub fn prepare() {
    PARENT.store(std::os::unix::process::parent_id(), Ordering::SeqCst);
}

fn parent() -> i64 {
    PARENT.load(Ordering::SeqCst).into()
}

fn ptrace() -> io::Result<()> {
    call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), parent(), 0, 0, 0, 0])
}

fn read_parent() -> io::Result<()> {
    call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0, 0, 0])
}

fn signal_parent(number: libc::c_long) -> io::Result<()> {
    call(number, [parent(), 0, 0, 0, 0, 0])
}

fn tgkill_parent() -> io::Result<()> {
    call(libc::SYS_tgkill, [parent(), parent(), 0, 0, 0, 0])
}

fn map(protection: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make_executable() -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, whose protection is then changed; nothing else uses it.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        checked(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC).into())
    }
}

fn device_node() -> io::Result<()> {
    let path = CString::new("/tmp/vivarium-hostile-node").map_err(io::Error::other)?;
    // SAFETY: the path is a C string.
    checked(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(1, 3)) }.into())
}

/// Leaves both times as they are: whether the call is let through is all that counts.
fn touch(directory: i32, path: &CStr, flags: i32) -> io::Result<()> {
    let leave = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let times = [leave, leave];
    // SAFETY: the path is a C string, and the times are an array of two.
    checked(unsafe { libc::utimensat(directory, path.as_ptr(), times.as_ptr(), flags) }.into())
}
