//! eventfd and epoll.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

use crate::{Event, Interest};

/// A bell; clones ring the same one. Rings before the bell is answered count once.
#[derive(Clone, Debug)]
pub struct Doorbell {
    fd: Arc<OwnedFd>,
}

impl Doorbell {
    /// A new bell; fails only when the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?) })
    }

    /// Rings. Never blocks: a bell that cannot count further is ringing already.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Silences the bell; whether it had been rung since the last call.
    pub fn answer(&self) -> bool {
        let mut count = [0; 8];
        matches!(rustix::io::read(&self.fd, &mut count), Ok(8))
    }
}

/// A bell that came from another process: an eventfd made by [`Doorbell::new`] there, and the same bell.
impl From<OwnedFd> for Doorbell {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd) }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A set of sources that a thread waits for; others may add and remove sources meanwhile. Descriptors are level-triggered:
/// what is not dealt with is reported again.
#[derive(Debug)]
pub struct Waiter {
    epoll: OwnedFd,
}

fn flags(interest: Interest) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::empty();
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, interest.readable);
    flags.set(epoll::EventFlags::OUT, interest.writable);
    flags
}

impl Waiter {
    /// An empty set; fails only when the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds a source under a token. The caller keeps the descriptor open until [`Waiter::remove`].
    pub fn add(&self, source: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token), flags(interest))?)
    }

    /// Changes what is waited for.
    pub fn modify(&self, source: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, source, epoll::EventData::new_u64(token), flags(interest))?)
    }

    /// Forgets a source.
    pub fn remove(&self, source: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Waits until something happens or the time is over, and replaces `events` with what happened. A signal ends the
    /// wait with nothing.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let mut buffer = [MaybeUninit::uninit(); 64];
        let timeout = timeout.map(|time| Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let seen = match epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref()) {
            Ok((seen, _)) => seen,
            Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        events.extend(seen.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Event {
                token: data.u64(),
                readable: flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
                writable: flags.contains(epoll::EventFlags::OUT),
                hung_up: flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR),
            }
        }));
        Ok(())
    }
}
