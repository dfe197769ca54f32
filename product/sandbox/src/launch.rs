//! Starting the confined process that is the virtual machine.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::ending::Ending;
use crate::error::{Error, Result};
use crate::packet;
use crate::plan::{Descriptors, FromVmm, Plan, ToVmm};
use crate::sys;

/// The hidden role's name on the command line of `viv`.
pub const VMM_ROLE: &str = "vmm";

/// The signal that [`Vmm::kill`] sends.
const KILL: i32 = 9;

/// Whether there is something to read from a vmm's pipe, or its end, without waiting.
pub(crate) fn is_readable(pipe: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(pipe, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
}

/// A running vmm.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    line: VmmLine,
    process: OwnedFd,
    errors: OwnedFd,
    killed: bool,
}

/// The line to a vmm; clones may be used from any thread. Nothing here waits for a vmm that does not read.
#[derive(Clone, Debug)]
pub struct VmmLine(Arc<OwnedFd>);

impl VmmLine {
    /// A byte stream to a port of the guest. It ends at once when nothing listens there.
    pub fn connect(&self, port: u32) -> std::io::Result<OwnedFd> {
        let (near, far) = packet::stream_pair()?;
        packet::send_now(&*self.0, &ToVmm::Connect { port }, &[far.as_fd()])?;
        Ok(near)
    }

    /// Asks for the engine's counters; the answer comes as [`FromVmm::Counted`].
    pub fn count(&self) -> std::io::Result<()> {
        packet::send_now(&*self.0, &ToVmm::Count, &[])
    }

    /// Fresh memory for the frame ring, whose other end a new gateway has: the guest's network card has a link again.
    pub(crate) fn network(&self, memory: impl AsFd) -> std::io::Result<()> {
        packet::send_now(&*self.0, &ToVmm::Network, &[memory.as_fd()])
    }

    /// The gateway is gone: the guest's network card has no link.
    pub(crate) fn network_down(&self) -> std::io::Result<()> {
        packet::send_now(&*self.0, &ToVmm::NetworkDown, &[])
    }

    /// What the vmm says next; `None` when it has ended.
    pub fn receive(&self) -> std::io::Result<Option<FromVmm>> {
        // Descriptors from a vmm are never wanted, and closed here.
        Ok(packet::receive::<FromVmm>(&*self.0)?.map(|(message, _)| message))
    }
}

impl AsFd for VmmLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Vmm {
    /// Starts a vmm and gives it its plan.
    pub fn start(plan: Plan, descriptors: &Descriptors) -> Result<Self> {
        let fail = |source: std::io::Error| Error::host("cannot start the virtual machine's process", source);
        // What it holds comes with its plan, whoever starts it.
        confine::keep_descriptors().map_err(fail)?;
        let (near, far) = packet::pair().map_err(fail)?;
        let (errors, errors_in) = std::io::pipe().map_err(fail)?;
        let child = Command::new(sys::own_program())
            .arg0("viv")
            .arg(VMM_ROLE)
            .env_clear()
            .envs(crate::environment::passed_on())
            .current_dir("/")
            .stdin(Stdio::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors_in))
            .spawn()
            .map_err(fail)?;
        let process = sys::end_of(&child).map_err(fail)?;
        packet::send(&near, &ToVmm::Start(Box::new(plan)), &descriptors.borrowed()).map_err(fail)?;
        Ok(Self { child, line: VmmLine(Arc::new(near)), process, errors: errors.into(), killed: false })
    }

    /// The line to it.
    pub fn line(&self) -> &VmmLine {
        &self.line
    }

    /// Readable when the process has ended.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// What it writes on its standard error: its log.
    pub fn errors(&self) -> BorrowedFd<'_> {
        self.errors.as_fd()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it. The guest's disk is as after a power cut.
    pub fn kill(&mut self) {
        self.killed = true;
        let _ = self.child.kill();
    }

    /// Ends one that has closed its line and is ending already: how it does so is its own doing.
    pub(crate) fn see_off(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end and says how it ended when that was neither by itself nor by [`Self::kill`].
    pub(crate) fn wait(&mut self) -> Option<Ending> {
        use std::os::unix::process::ExitStatusExt;
        match self.child.wait() {
            Ok(status) if self.killed && status.signal() == Some(KILL) => None,
            Ok(status) => Ending::of_process(status),
            Err(error) => {
                Some(Ending::failure(format!("the vmm was lost: {}", crate::error::in_words(&error))))
            }
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
