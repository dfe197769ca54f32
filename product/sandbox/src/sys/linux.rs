//! Linux.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use backends::FrameLink;
use doorbell::Doorbell;
use hv::{Hypervisor, Unavailable};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, inotify};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::rand::GetRandomFlags;

/// Puts random bytes of the kernel into the first part of a buffer; how many.
pub(crate) fn random(into: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::rand::getrandom(into, GetRandomFlags::empty())?)
}

/// Bytes of memory that this host has.
pub(crate) fn host_memory() -> u64 {
    let pages = rustix::system::sysinfo();
    u64::from(pages.mem_unit).saturating_mul(pages.totalram)
}

/// How long this host is up.
pub(crate) fn uptime() -> Option<Duration> {
    Some(Duration::from_secs(rustix::system::sysinfo().uptime.unsigned_abs()))
}

/// Becomes readable at each jump of the wall clock: it was set, or the host slept (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`).
pub(crate) fn wall_clock_jumps() -> io::Result<OwnedFd> {
    use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
    let timer = rustix::time::timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC)?;
    // A timer that never comes; only what cancels it counts.
    let never = Timespec { tv_sec: i64::from(u32::MAX), tv_nsec: 0 };
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    rustix::time::timerfd_settime(&timer, flags, &Itimerspec { it_interval: none, it_value: never })?;
    Ok(timer)
}

/// Waits for the next jump, on what [`wall_clock_jumps`] gave.
pub(crate) fn wait_for_jump(jumps: &OwnedFd) -> io::Result<()> {
    match rustix::io::retry_on_intr(|| rustix::io::read(jumps, &mut [0u8; 8])) {
        Ok(_) | Err(rustix::io::Errno::CANCELED) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The program that runs now, for starting its other roles, also when its file was replaced or deleted.
pub(crate) fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// Readable when a child has ended.
pub(crate) fn end_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

/// Kills this process when its parent ends.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?)
}

/// Opens a folder to name things in it; a link anywhere in its path is an error (`ELOOP`).
pub(crate) fn open_plain_to_name(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

/// [`open_plain_to_name`], but to read it.
pub(crate) fn open_plain_to_read(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)
}

/// Opens a folder beneath another to read it; what leads out of that or through a link is an error.
pub(crate) fn open_beneath_to_read(
    folder: impl AsFd,
    path: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve)
}

/// The permission bits of a file.
pub(crate) fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

/// Permission bits for a file.
pub(crate) fn mode(permissions: u32) -> Mode {
    Mode::from_raw_mode(permissions)
}

/// Opens a file without a name in a folder; `OPNOTSUPP` or `ISDIR` where the file system has none.
pub(crate) fn nameless_file(folder: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)
}

/// A packet socket connected to the one of this name in `folder`.
pub(crate) fn packet_connect(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let (address, _folder) = address_in(folder, name)?;
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// A packet socket that listens under this name in `folder`; accepting from it waits for nobody.
pub(crate) fn packet_listen(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let (address, _folder) = address_in(folder, name)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// The next client of a listening socket; to receive from it waits for nobody either.
pub(crate) fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// The socket's address through a descriptor of its folder, because a socket's path has room for 108 bytes only. The
/// descriptor must live until the address was used.
fn address_in(folder: &Path, name: &str) -> io::Result<(SocketAddrUnix, OwnedFd)> {
    let handle = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", handle.as_raw_fd()))?;
    Ok((address, handle))
}

/// What a frame ring is made of, until both its sides have it.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) memory: OwnedFd,
    pub(crate) guest_bell: OwnedFd,
    pub(crate) network_bell: OwnedFd,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        let frame_ring::Pair { memory, guest_bell, network_bell } = frame_ring::pair()?;
        Ok(Self { memory, guest_bell, network_bell })
    }

    /// Fresh, empty memory for the same bells.
    pub(crate) fn memory() -> io::Result<OwnedFd> {
        frame_ring::memory()
    }
}

/// Hears of changes to files: those that are named, and all in folders that are named.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    /// The names of the files that are watched by themselves.
    files: HashMap<i32, OsString>,
}

impl Watch {
    /// Watches these; one that cannot be watched is passed over.
    pub(crate) fn new(paths: &[PathBuf]) -> io::Result<Self> {
        use inotify::WatchFlags as W;
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let mut files = HashMap::new();
        for path in paths {
            // Not each write: a log grows in one of these folders.
            let what = W::CLOSE_WRITE | W::MOVED_TO | W::MOVED_FROM | W::DELETE;
            match inotify::add_watch(&inotify, path, what) {
                Ok(number) if !path.is_dir() => {
                    files.insert(number, path.file_name().unwrap_or_default().to_owned());
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "Changes are not seen"),
            }
        }
        Ok(Self { inotify, files })
    }

    /// The names of what has changed since the last look.
    pub(crate) fn changed(&mut self) -> Vec<OsString> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let mut names = Vec::new();
        while let Ok(event) = events.next() {
            let name = match event.file_name() {
                Some(name) => OsString::from_vec(name.to_bytes().to_vec()),
                None => self.files.get(&event.wd()).cloned().unwrap_or_default(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Whether the software CPU can be used.
pub(crate) fn probe_soft() -> Result<(), Unavailable> {
    hv_soft::SoftEngine::new().probe().map(|_| ())
}

/// A bell that came as a descriptor.
pub(crate) fn doorbell(bell: OwnedFd) -> io::Result<Doorbell> {
    Ok(bell.into())
}

/// The guest's side of the link to the network.
pub(crate) fn guest_link(
    memory: OwnedFd,
    mine: Doorbell,
    theirs: Doorbell,
) -> io::Result<Box<dyn FrameLink>> {
    Ok(Box::new(frame_ring::Link::from_parts(memory, frame_ring::Side::Guest, mine, theirs)?))
}

/// The software CPU.
pub(crate) fn soft() -> Result<Box<dyn Hypervisor>, Unavailable> {
    Ok(Box::new(hv_soft::SoftEngine::new()))
}

/// Whether KVM can be opened and has what is needed.
pub(crate) fn probe_kvm() -> Result<(), Unavailable> {
    hv_kvm::KvmEngine::new().probe().map(|_| ())
}

/// KVM, through a descriptor of its device.
pub(crate) fn kvm(device: OwnedFd) -> Result<Box<dyn Hypervisor>, Unavailable> {
    Ok(Box::new(hv_kvm::KvmEngine::with_device(device)))
}

/// How fast KVM runs kernel code: nanoseconds for one instruction, and whether it is emulated.
pub(crate) fn measure_kvm(deadline: Duration) -> Result<(f64, bool), Box<dyn std::error::Error>> {
    let speed = hv_kvm::measure_ring0(deadline)?;
    Ok((speed.ns_per_instr, speed.is_emulated()))
}
