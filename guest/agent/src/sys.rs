//! The system calls that rustix has no safe form of.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::Pid;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
}

/// Waits until some child has ended, and leaves it waiting to be reaped. `None` when there are no children.
pub(crate) fn peek_ended_child() -> io::Result<Option<Pid>> {
    // SAFETY: siginfo_t is plain data for which all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    loop {
        // SAFETY: `info` is valid for writes; the call keeps no pointer to it.
        let result = unsafe {
            libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOWAIT | libc::__WALL)
        };
        if result == 0 {
            // SAFETY: waitid succeeded for a child, so the SIGCHLD fields of the union are the ones that were filled in.
            let pid = unsafe { info.si_pid() };
            return Ok(Pid::from_raw(pid));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Whether there is any child, ended or not.
pub(crate) fn has_children() -> bool {
    // SAFETY: siginfo_t is plain data for which all zeros is a valid value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
    // SAFETY: `info` is valid for writes; the call keeps no pointer to it.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}

/// Reaps a child that has ended. `None` when it is not there (any more).
pub(crate) fn reap(pid: Pid) -> Option<Ended> {
    let mut status = 0;
    // SAFETY: `status` is valid for writes; the call keeps no pointer to it.
    let result =
        unsafe { libc::waitpid(pid.as_raw_nonzero().get(), &raw mut status, libc::WNOHANG | libc::__WALL) };
    if result <= 0 {
        return None;
    }
    if libc::WIFSIGNALED(status) {
        Some(Ended::Signal(libc::WTERMSIG(status)))
    } else {
        Some(Ended::Code(libc::WEXITSTATUS(status)))
    }
}

/// Listens on a vsock port, from any context id.
pub(crate) fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just returned by socket() and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: sockaddr_vm is plain data for which all zeros is a valid value.
    let mut address: libc::sockaddr_vm = unsafe { mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// Takes the next connection. The type's name notwithstanding it is a vsock stream: reading, writing and shutting down are the same calls.
pub(crate) fn accept(listener: &OwnedFd) -> io::Result<UnixStream> {
    // SAFETY: null pointers ask for no address, which accept4 allows.
    let raw = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just returned by accept4() and belongs to nobody else.
    Ok(UnixStream::from(unsafe { OwnedFd::from_raw_fd(raw) }))
}

/// Mixes bytes into the kernel's entropy pool and credits them in full: they come from the host's own generator.
pub(crate) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const MOST: usize = 512;
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; MOST],
    }
    let device = std::fs::File::options().write(true).open("/dev/urandom")?;
    for piece in bytes.chunks(MOST) {
        let mut info = PoolInfo {
            entropy_bits: (piece.len() * 8) as libc::c_int,
            size: piece.len() as libc::c_int,
            bytes: [0; MOST],
        };
        for (to, from) in info.bytes.iter_mut().zip(piece) {
            *to = *from;
        }
        // SAFETY: the kernel reads the two integers and `size` bytes behind them, all inside `info`.
        if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Brings a network interface up.
pub(crate) fn interface_up(name: &str) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Signals every process except the caller's own and PID 1.
pub(crate) fn signal_everyone(signal: libc::c_int) {
    // SAFETY: no pointers are passed. That there is nobody to signal is no failure.
    unsafe { libc::kill(-1, signal) };
}

/// Gives every signal its default action. What is ignored stays ignored through exec, and a program that was started
/// with SIGINT ignored never gets a Ctrl-C. Makes system calls only, so that a child may call it after fork.
pub(crate) fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: no pointers are passed. The kernel and the C library refuse the numbers that cannot be changed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Signals a process group. Numbers that are no signals are refused by the kernel.
pub(crate) fn signal_group(group: Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    if unsafe { libc::killpg(group.as_raw_nonzero().get(), signal) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes reads and writes return at once instead of waiting.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
