//! Moving bytes between one process and its connection.
//!
//! The pump owns the process's ends and is the only one who writes to the connection; the connection's reader hands it input through
//! [`Input`], which is bounded by the protocol's window. When the host does not read, the pump sleeps in its write and the process in its own: nobody else is held up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_proto::ProtoError;
use agent_proto::client::STDIN_WINDOW;
use agent_proto::frame::{self, MAX_DATA, kind};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::termios::tcgetpgrp;

use crate::reaper::Child;
use crate::sys::{Ended, set_nonblocking};

/// How long output of background processes is waited for in silence once the process itself has ended.
const LINGER: Duration = Duration::from_millis(250);
/// How long a process whose host is gone may take to end by itself.
const HANGUP_GRACE: Duration = Duration::from_secs(5);
/// The process's progress with its input is told each time it took this much, in bytes; well below the window, so that it never runs dry.
const TELL_EVERY: u64 = 64 * 1024;
/// What a terminal takes for the end of input (VEOF's default).
const END_OF_FILE: u8 = 4;

/// Input on its way to the process, and word that the host is gone.
#[derive(Debug)]
pub(crate) struct Input {
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<u8>,
    received: u64,
    end: bool,
    gone: bool,
}

impl Input {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { state: Mutex::default(), wake })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full only when a wake-up is pending already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Takes a piece of input in. Fails when it is not the next piece, or more than the window.
    pub(crate) fn push(&self, offset: u64, data: &[u8]) -> Result<(), ProtoError> {
        let mut state = self.lock();
        if offset != state.received || (state.queue.len() + data.len()) as u64 > STDIN_WINDOW {
            return Err(ProtoError::Malformed(kind::STDIN));
        }
        state.received += data.len() as u64;
        if !state.end {
            state.queue.extend(data);
        }
        drop(state);
        self.wake();
        Ok(())
    }

    /// No more input will come.
    pub(crate) fn end(&self) {
        self.lock().end = true;
        self.wake();
    }

    /// The host is gone.
    pub(crate) fn gone(&self) {
        self.lock().gone = true;
        self.wake();
    }
}

/// The ends of a process's streams.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Where input goes; with a terminal the same device as `stdout`.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) terminal: bool,
}

/// How a session came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The process ended and its output was sent.
    Ended(Ended),
    /// The host is gone.
    Abandoned,
}

/// One running session's bytes. Dropped before the process has ended, also when nothing was pumped yet, it hangs up on it: no process
/// outlives its host.
pub(crate) struct Pump<'a> {
    child: &'a Child,
    input: &'a Input,
    connection: &'a UnixStream,
    ends: Ends,
    sent: [u64; 2],
    taken: u64,
    told: u64,
    ended: Option<Ended>,
    end_typed: bool,
}

impl<'a> Pump<'a> {
    pub(crate) fn new(child: &'a Child, input: &'a Input, connection: &'a UnixStream, ends: Ends) -> Self {
        Self {
            child,
            input,
            connection,
            ends,
            sent: [0; 2],
            taken: 0,
            told: 0,
            ended: None,
            end_typed: false,
        }
    }

    /// Pumps until the process has ended and its output is out, or the host is gone; then the process is made to end.
    pub(crate) fn run(mut self) -> Finish {
        // The connection's failure is the host's absence.
        self.pump().unwrap_or(Finish::Abandoned)
    }

    /// Ends a process whose host is gone: as when a terminal's line drops, and for good after a while. What it writes meanwhile is thrown
    /// away: a closed pipe would kill it before it can clean up.
    fn hang_up(&mut self) {
        let foreground =
            self.ends.stdout.as_ref().filter(|_| self.ends.terminal).and_then(|t| tcgetpgrp(t).ok());
        for signal in [libc::SIGHUP, libc::SIGCONT] {
            // Ended by itself in the meantime.
            let _ = self.child.signal_group(signal);
            let _ = foreground.map(|group| self.child.signal(group, signal));
        }
        self.ends.stdin = None;
        for end in [&mut self.ends.stdout, &mut self.ends.stderr] {
            // It may not have been pumped yet; to wait in a read would be to wait for ever.
            if end.as_ref().is_some_and(|fd| set_nonblocking(fd).is_err()) {
                *end = None;
            }
        }
        let deadline = Instant::now() + HANGUP_GRACE;
        let mut buffer = vec![0u8; MAX_DATA];
        while self.child.wait_for(Duration::ZERO).is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.wait(false, Some(left)).is_err() {
                let _ = self.child.signal_group(libc::SIGKILL);
                self.child.wait();
                return;
            }
            // The wake-up is not of interest any more; taken, so that it does not wake again.
            let _ = rustix::io::read(&self.input.wake, &mut [0u8; 8]);
            for end in [&mut self.ends.stdout, &mut self.ends.stderr] {
                let read = end.as_ref().map(|fd| rustix::io::read(fd, &mut *buffer));
                if !matches!(read, Some(Ok(1..) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR))) {
                    *end = None;
                }
            }
        }
    }

    fn pump(&mut self) -> Result<Finish, ProtoError> {
        for fd in [&self.ends.stdin, &self.ends.stdout, &self.ends.stderr].into_iter().flatten() {
            set_nonblocking(fd)?;
        }
        let mut buffer = vec![0u8; MAX_DATA];
        loop {
            let waiting = {
                let state = self.input.lock();
                if state.gone {
                    return Ok(Finish::Abandoned);
                }
                !state.queue.is_empty() || (state.end && !self.end_typed)
            };
            if let Some(ended) =
                self.ended.filter(|_| self.ends.stdout.is_none() && self.ends.stderr.is_none())
            {
                return Ok(Finish::Ended(ended));
            }
            if waiting && self.ends.stdin.is_none() {
                self.feed()?;
                continue;
            }
            let linger = self.ended.map(|_| LINGER);
            let ready = self.wait(waiting, linger)?;
            if let (true, Some(ended)) = (ready.nothing, self.ended) {
                return Ok(Finish::Ended(ended));
            }
            if ready.woken {
                let mut count = [0u8; 8];
                let _ = rustix::io::read(&self.input.wake, &mut count);
            }
            if ready.stdout {
                self.forward(kind::STDOUT, &mut buffer)?;
            }
            if ready.stderr {
                self.forward(kind::STDERR, &mut buffer)?;
            }
            if ready.stdin || waiting {
                self.feed()?;
            }
            if ready.ended && self.ended.is_none() {
                self.ended = Some(self.child.wait());
            }
        }
    }

    /// Sleeps until there is something to do, or for as long as `limit` says.
    fn wait(&self, input_waiting: bool, limit: Option<Duration>) -> io::Result<Ready> {
        let input = if input_waiting { PollFlags::OUT } else { PollFlags::empty() };
        let wanted = [
            (Some(&self.input.wake), PollFlags::IN),
            (self.ended.is_none().then(|| self.child.pidfd()), PollFlags::IN),
            (self.ends.stdout.as_ref(), PollFlags::IN),
            (self.ends.stderr.as_ref(), PollFlags::IN),
            (self.ends.stdin.as_ref(), input),
        ];
        let mut fds: Vec<PollFd<'_>> = wanted
            .iter()
            .filter_map(|(fd, flags)| fd.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), *flags)))
            .collect();
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(limit.subsec_nanos()),
        });
        let count = loop {
            match poll(&mut fds, limit.as_ref()) {
                Ok(count) => break count,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let mut polled = fds.iter();
        let mut fired = |present: bool| present && polled.next().is_some_and(|fd| !fd.revents().is_empty());
        let [woken, ended, stdout, stderr, stdin] = wanted.map(|(fd, _)| fired(fd.is_some()));
        Ok(Ready { nothing: count == 0, woken, ended, stdout, stderr, stdin })
    }

    /// Reads what one stream has and sends it on.
    fn forward(&mut self, stream: u8, buffer: &mut [u8]) -> Result<(), ProtoError> {
        let (end, sent) = match stream {
            kind::STDERR => (&mut self.ends.stderr, &mut self.sent[1]),
            _ => (&mut self.ends.stdout, &mut self.sent[0]),
        };
        let Some(fd) = end else { return Ok(()) };
        match rustix::io::read(fd, &mut *buffer) {
            Ok(n) if n > 0 => {
                let data = buffer.get(..n).unwrap_or_default();
                frame::write_data(&mut { self.connection }, stream, *sent, data)?;
                *sent += n as u64;
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // The end; a terminal says it as an input/output error when its last user has closed it.
            _ => {
                *end = None;
                if self.ends.terminal {
                    self.ends.stdin = None;
                }
            }
        }
        Ok(())
    }

    /// Gives the process what input there is and it takes.
    fn feed(&mut self) -> Result<(), ProtoError> {
        let mut state = self.input.lock();
        if state.end && self.ends.terminal && !self.end_typed {
            self.end_typed = true;
            state.queue.push_back(END_OF_FILE);
        }
        let mut closed = false;
        if let Some(stdin) = &self.ends.stdin {
            let piece = state.queue.as_slices().0;
            match rustix::io::write(stdin, piece) {
                _ if piece.is_empty() => closed = !self.ends.terminal && !state.end && broken(stdin),
                Ok(n) => {
                    state.queue.drain(..n);
                    self.taken += n as u64;
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(_) => closed = true,
            }
        } else {
            self.taken += state.queue.len() as u64;
            state.queue.clear();
        }
        if closed {
            self.taken += state.queue.len() as u64;
            state.queue.clear();
            self.ends.stdin = None;
        }
        if state.end && state.queue.is_empty() {
            self.end_typed = true;
            if !self.ends.terminal {
                self.ends.stdin = None;
            }
        }
        drop(state);
        if closed {
            frame::write(&mut { self.connection }, kind::STDIN_CLOSED, &[])?;
        }
        if self.taken - self.told >= TELL_EVERY {
            self.told = self.taken;
            frame::write(&mut { self.connection }, kind::STDIN_TAKEN, &[&self.taken.to_le_bytes()])?;
        }
        Ok(())
    }
}

impl Drop for Pump<'_> {
    fn drop(&mut self) {
        if self.child.wait_for(Duration::ZERO).is_none() {
            self.hang_up();
        }
    }
}

/// Whether nobody reads the other end of a pipe any more.
fn broken(pipe: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0)
}

struct Ready {
    nothing: bool,
    woken: bool,
    ended: bool,
    stdout: bool,
    stderr: bool,
    stdin: bool,
}
