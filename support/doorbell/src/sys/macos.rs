//! A pipe and kqueue.
//!
//! kqueue has one filter for reading and one for writing, each with its own end; epoll's hang-up is both ends. So both
//! filters of a source are always in the set: level-triggered where there is interest, otherwise with `EV_CLEAR`, which
//! reports a change once, and everything but the end is dropped here. Never run so far.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::libc::timespec;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use crate::{Event, Interest};

/// A bell; clones ring the same one. Rings before the bell is answered count once.
#[derive(Clone, Debug)]
pub struct Doorbell {
    pipe: Arc<(OwnedFd, OwnedFd)>,
}

impl Doorbell {
    /// A new bell; fails only when the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe()?;
        for end in [&reader, &writer] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Self { pipe: Arc::new((reader, writer)) })
    }

    /// Rings. Never blocks: a full pipe is ringing already.
    pub fn ring(&self) {
        let _ = rustix::io::write(&self.pipe.1, &[1]);
    }

    /// Silences the bell; whether it had been rung since the last call.
    pub fn answer(&self) -> bool {
        let mut rung = false;
        let mut bytes = [0; 512];
        while let Ok(count @ 1..) = rustix::io::read(&self.pipe.0, &mut bytes) {
            rung = true;
            if count < bytes.len() {
                break;
            }
        }
        rung
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.0.as_fd()
    }
}

/// What is known of a source.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    interest: Interest,
    read_ended: bool,
    write_ended: bool,
}

/// A set of sources that a thread waits for; others may add and remove sources meanwhile. Descriptors are level-triggered:
/// what is not dealt with is reported again.
#[derive(Debug)]
pub struct Waiter {
    queue: Kqueue,
    /// By descriptor; one that was closed without [`Waiter::remove`] stays until its number comes again.
    sources: Mutex<HashMap<usize, Source>>,
}

const FILTERS: [EventFilter; 2] = [EventFilter::EVFILT_READ, EventFilter::EVFILT_WRITE];

impl Waiter {
    /// An empty set; fails only when the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Kqueue::new()?, sources: Mutex::default() })
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<usize, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a source under a token. The caller keeps the descriptor open until [`Waiter::remove`].
    pub fn add(&self, source: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.sources().insert(number(source)?, Source { interest, ..Source::default() });
        for (filter, wanted) in FILTERS.into_iter().zip([interest.readable, interest.writable]) {
            let flags = if wanted { EvFlags::EV_ADD } else { EvFlags::EV_ADD | EvFlags::EV_CLEAR };
            self.change(source, token, filter, flags)?;
        }
        Ok(())
    }

    /// Changes what is waited for.
    pub fn modify(&self, source: &impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        // Added again a filter keeps its old EV_CLEAR, so that it has to go first.
        self.remove(source)?;
        self.add(source, token, interest)
    }

    /// Forgets a source.
    pub fn remove(&self, source: &impl AsFd) -> io::Result<()> {
        self.sources().remove(&number(source)?);
        for filter in FILTERS {
            match self.change(source, 0, filter, EvFlags::EV_DELETE) {
                // A pipe's end has one filter only.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn change(&self, source: &impl AsFd, token: u64, filter: EventFilter, flags: EvFlags) -> io::Result<()> {
        let token = token.cast_signed() as isize;
        let change = KEvent::new(number(source)?, filter, flags, FilterFlag::empty(), 0, token);
        match self.queue.kevent(&[change], &mut [], None) {
            // The reading end of a pipe cannot be waited for to be written.
            Err(nix::errno::Errno::EINVAL) if filter == EventFilter::EVFILT_WRITE => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Waits until something happens or the time is over, and replaces `events` with what happened. A signal ends the
    /// wait with nothing, and so may a change that nobody waits for.
    pub fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let nothing = KEvent::new(0, FILTERS[0], EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut buffer = [nothing; 64];
        let timeout = timeout.map(|time| timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let count = match self.queue.kevent(&[], &mut buffer, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut sources = self.sources();
        for seen in buffer.iter().take(count) {
            let token = (seen.udata() as i64).cast_unsigned();
            let Some(source) = sources.get_mut(&seen.ident()) else { continue };
            let ended = seen.flags().contains(EvFlags::EV_EOF);
            let read = seen.filter() == Ok(EventFilter::EVFILT_READ);
            source.read_ended |= ended && read;
            source.write_ended |= ended && !read;
            let event = Event {
                token,
                readable: read && source.interest.readable,
                writable: !read && source.interest.writable,
                hung_up: source.read_ended && source.write_ended || seen.flags().contains(EvFlags::EV_ERROR),
            };
            if event.readable || event.writable || event.hung_up {
                events.push(event);
            }
        }
        Ok(())
    }
}

fn number(source: &impl AsFd) -> io::Result<usize> {
    usize::try_from(source.as_fd().as_raw_fd()).map_err(io::Error::other)
}
