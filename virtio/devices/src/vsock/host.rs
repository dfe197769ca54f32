//! The host's side of the device: a handle through which connections are handed in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell::Doorbell;
use rustix::fd::OwnedFd;

/// Connections that wait for the device's thread at most; more are closed at once.
const WAITING_MAX: usize = 256;

/// Gives the descriptor for a connection that the guest makes; `None` refuses it.
pub(super) type Accept = Box<dyn Fn() -> Option<OwnedFd> + Send>;

/// A connection that the host asks for.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) fd: OwnedFd,
    pub(super) guest_port: u32,
}

#[derive(Default)]
struct Waiting {
    dials: VecDeque<Dial>,
    listeners: BTreeMap<u32, Accept>,
    /// The device needs a reset by its driver; nobody would serve a dial.
    refused: bool,
}

pub(super) struct Inbox {
    waiting: Mutex<Waiting>,
    pub(super) bell: Doorbell,
}

impl Inbox {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { waiting: Mutex::default(), bell: Doorbell::new()? })
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn next_dial(&self) -> Option<Dial> {
        self.locked().dials.pop_front()
    }

    /// Closes the dials that wait, and until `refused` is taken back all that come.
    pub(super) fn refuse_dials(&self, refused: bool) {
        let mut waiting = self.locked();
        waiting.refused = refused;
        if refused {
            waiting.dials.clear();
        }
    }

    /// A descriptor for the guest's connection to `port`; `None` if nobody listens or the listener refuses.
    pub(super) fn accept(&self, port: u32) -> Option<OwnedFd> {
        self.locked().listeners.get(&port)?()
    }
}

/// Makes and takes connections to the guest. Clones are for the same device.
#[derive(Clone)]
pub struct VsockHost(pub(super) Arc<Inbox>);

impl VsockHost {
    /// Connects `fd`, one end of a stream socket pair, to a port of the guest. Returns at once; a connection asked for
    /// before the guest's driver is ready waits for it. What the guest refuses or breaks is closed, so the other end
    /// reads the end of the stream; so does one asked for while the device waits for a reset after the driver broke its
    /// queues.
    pub fn connect(&self, fd: OwnedFd, guest_port: u32) {
        let mut waiting = self.0.locked();
        if !waiting.refused && waiting.dials.len() < WAITING_MAX {
            waiting.dials.push_back(Dial { fd, guest_port });
        }
        drop(waiting);
        self.0.bell.ring();
    }

    /// Lets the guest connect to `port` of the host: `accept` gives our end of a socket pair for each connection, or
    /// refuses. It runs on the device's thread and must not block. Without a listener a connection is refused.
    pub fn listen(&self, port: u32, accept: impl Fn() -> Option<OwnedFd> + Send + 'static) {
        self.0.locked().listeners.insert(port, Box::new(accept));
    }

    /// Takes a listener back; connections made stay.
    pub fn unlisten(&self, port: u32) {
        self.0.locked().listeners.remove(&port);
    }
}

impl std::fmt::Debug for VsockHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.0.locked();
        let ports: Vec<u32> = waiting.listeners.keys().copied().collect();
        f.debug_struct("VsockHost").field("waiting", &waiting.dials.len()).field("listeners", &ports).finish()
    }
}
