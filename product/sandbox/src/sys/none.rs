//! Systems that sandboxes have not been brought to: nothing is started, nothing is shared.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use hv::{Hypervisor, Unavailable};
use rustix::fs::{Mode, Stat};
use rustix::io::Errno;

fn unsupported() -> io::Error {
    let why = format!("sandboxes are not supported on {} yet", std::env::consts::OS);
    io::Error::new(io::ErrorKind::Unsupported, why)
}

fn unavailable(engine: &str) -> Unavailable {
    Unavailable {
        reason: format!("the engine {engine} is not supported on {} yet", std::env::consts::OS),
        hint: "use a Linux host".into(),
    }
}

/// Puts random bytes of the kernel into the first part of a buffer; how many.
pub(crate) fn random(into: &mut [u8]) -> io::Result<usize> {
    File::open("/dev/urandom")?.read(into)
}

/// Bytes of memory that this host has: not asked for yet, so that the least is taken.
pub(crate) fn host_memory() -> u64 {
    0
}

/// Not asked for yet.
pub(crate) fn uptime() -> Option<Duration> {
    None
}

/// Refuses.
pub(crate) fn wall_clock_jumps() -> io::Result<OwnedFd> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn wait_for_jump(_jumps: &OwnedFd) -> io::Result<()> {
    Err(unsupported())
}

/// The program that runs now.
pub(crate) fn own_program() -> PathBuf {
    std::env::current_exe().unwrap_or_default()
}

/// Refuses.
pub(crate) fn end_of(_child: &Child) -> io::Result<OwnedFd> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn open_plain_to_name(_path: &Path) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOTSUP)
}

/// Refuses.
pub(crate) fn open_plain_to_read(_path: &Path) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOTSUP)
}

/// Refuses.
pub(crate) fn open_beneath_to_read(
    _folder: impl AsFd,
    _path: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    Err(Errno::NOTSUP)
}

/// The permission bits of a file.
pub(crate) fn permissions(stat: &Stat) -> u32 {
    u32::from(stat.st_mode) & 0o7777
}

/// Permission bits for a file.
pub(crate) fn mode(permissions: u32) -> Mode {
    Mode::from_raw_mode((permissions & 0o7777) as rustix::fs::RawMode)
}

/// There are none.
pub(crate) fn nameless_file(_folder: &Path) -> rustix::io::Result<OwnedFd> {
    Err(Errno::OPNOTSUPP)
}

/// Refuses.
pub(crate) fn packet_connect(_folder: &Path, _name: &str) -> io::Result<OwnedFd> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn packet_listen(_folder: &Path, _name: &str) -> io::Result<OwnedFd> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn accept(_listener: impl AsFd) -> io::Result<OwnedFd> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn doorbell(_bell: OwnedFd) -> io::Result<doorbell::Doorbell> {
    Err(unsupported())
}

/// Refuses.
pub(crate) fn guest_link(
    _memory: OwnedFd,
    _mine: doorbell::Doorbell,
    _theirs: doorbell::Doorbell,
) -> io::Result<Box<dyn backends::FrameLink>> {
    Err(unsupported())
}

/// There are none.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) memory: OwnedFd,
    pub(crate) guest_bell: OwnedFd,
    pub(crate) network_bell: OwnedFd,
}

impl Ring {
    pub(crate) fn new() -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn memory() -> io::Result<OwnedFd> {
        Err(unsupported())
    }
}

/// There are none.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    pub(crate) fn new(_paths: &[PathBuf]) -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn changed(&mut self) -> Vec<OsString> {
        Vec::new()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Refuses.
pub(crate) fn probe_soft() -> Result<(), Unavailable> {
    Err(unavailable("soft"))
}

/// Refuses.
pub(crate) fn soft() -> Result<Box<dyn Hypervisor>, Unavailable> {
    Err(unavailable("soft"))
}

/// Refuses.
pub(crate) fn probe_kvm() -> Result<(), Unavailable> {
    Err(unavailable("kvm"))
}

/// Refuses.
pub(crate) fn kvm(_device: OwnedFd) -> Result<Box<dyn Hypervisor>, Unavailable> {
    Err(unavailable("kvm"))
}

/// Refuses.
pub(crate) fn measure_kvm(_deadline: Duration) -> Result<(f64, bool), Box<dyn std::error::Error>> {
    Err(unsupported().into())
}
