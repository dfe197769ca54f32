//! A session connection: one process in the guest.
//!
//! Input is sent only as far as the guest has room for it ([`STDIN_WINDOW`]), so that a signal or a new window size never waits
//! behind input that the process does not read. Output has no such window: a host that does not read stops the process by the
//! stream's own back-pressure, and nothing else.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::{hear_welcome, say_hello};
use crate::ProtoError;
use crate::frame::{self, FrameReader, MAX_DATA, SKIPPABLE, kind};
use crate::messages::{Exec, Exit, NotStarted, Opened, Purpose, Signal, WindowSize};

/// How much input may be on its way, in bytes: sent, but not yet taken by the process.
pub const STDIN_WINDOW: u64 = 256 * 1024;

/// A process that runs, or the guest's word that it could not be started.
#[derive(Debug)]
pub enum Session<R, W> {
    /// It runs.
    Running {
        /// Its name and process id.
        opened: Opened,
        /// Where its output and its end come from.
        reader: SessionReader<R>,
        /// Where its input and its signals go.
        writer: SessionWriter<W>,
    },
    /// It could not be started.
    NotStarted(NotStarted),
}

impl<R: Read, W: Write> Session<R, W> {
    /// Starts a process. `read` and `write` are the two directions of one fresh stream (for a socket: it and a clone of it).
    ///
    /// The two halves that come back are for two threads: [`SessionWriter::stdin`] waits for room that only [`SessionReader::next`] hears of.
    ///
    /// # Errors
    /// The stream's, or [`ProtoError::Refused`], [`ProtoError::Incompatible`].
    pub fn open(read: R, mut write: W, exec: &Exec) -> Result<Self, ProtoError> {
        say_hello(&mut write, Purpose::Session)?;
        let said = frame::write_message(&mut write, kind::EXEC, exec);
        let said = match said {
            Err(e) if !e.is_disconnect() => return Err(e),
            other => other,
        };
        let mut frames = FrameReader::new(read);
        // An agent that refuses does not wait for more: its reason says more than that it is gone.
        hear_welcome(&mut frames)?;
        said?;
        loop {
            match frames.read_frame()?.ok_or(ProtoError::Closed)? {
                kind::OPENED => {
                    let opened = frames.message()?;
                    let window = Arc::new(Window::default());
                    let reader = SessionReader { frames, window: Arc::clone(&window) };
                    let writer = SessionWriter { stream: write, window, sent: 0 };
                    return Ok(Self::Running { opened, reader, writer });
                }
                kind::NOT_STARTED => return Ok(Self::NotStarted(frames.message()?)),
                SKIPPABLE.. => {}
                other => return Err(ProtoError::UnexpectedFrame(other)),
            }
        }
    }
}

/// What a session tells.
#[derive(Debug, PartialEq)]
pub enum SessionEvent<'a> {
    /// Output; with a pty all of it. `offset` counts the stream's bytes before it.
    Stdout {
        /// Bytes of this stream before these.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// Output on the error stream.
    Stderr {
        /// Bytes of this stream before these.
        offset: u64,
        /// The bytes.
        data: &'a [u8],
    },
    /// The process has closed its input. What is sent still is thrown away.
    StdinClosed,
    /// It ended. Nothing comes after this.
    Exit(Exit),
}

/// The half that hears.
#[derive(Debug)]
pub struct SessionReader<R> {
    frames: FrameReader<R>,
    window: Arc<Window>,
}

impl<R: Read> SessionReader<R> {
    /// Waits for what the session tells next.
    ///
    /// # Errors
    /// The stream's; [`ProtoError::Closed`] when the guest is gone before the process ended.
    pub fn next_event(&mut self) -> Result<SessionEvent<'_>, ProtoError> {
        let kind = loop {
            let next = self.frames.read_frame().and_then(|kind| kind.ok_or(ProtoError::Closed));
            match next {
                Ok(kind::STDIN_TAKEN) => self.window.taken(self.frames.data()?.0),
                Ok(SKIPPABLE..) => {}
                Ok(kind) => break kind,
                Err(e) => {
                    self.window.close();
                    return Err(e);
                }
            }
        };
        match kind {
            kind::STDOUT => self.frames.data().map(|(offset, data)| SessionEvent::Stdout { offset, data }),
            kind::STDERR => self.frames.data().map(|(offset, data)| SessionEvent::Stderr { offset, data }),
            kind::STDIN_CLOSED => {
                self.window.close();
                Ok(SessionEvent::StdinClosed)
            }
            kind::EXIT => {
                self.window.close();
                self.frames.message().map(SessionEvent::Exit)
            }
            other => {
                self.window.close();
                Err(ProtoError::UnexpectedFrame(other))
            }
        }
    }
}

impl<R> Drop for SessionReader<R> {
    fn drop(&mut self) {
        self.window.close();
    }
}

/// The half that speaks.
#[derive(Debug)]
pub struct SessionWriter<W> {
    stream: W,
    window: Arc<Window>,
    sent: u64,
}

impl<W: Write> SessionWriter<W> {
    /// Sends input, of any size; waits for room. Returns whether the process still wants input.
    ///
    /// # Errors
    /// The stream's.
    pub fn stdin(&mut self, data: &[u8]) -> Result<bool, ProtoError> {
        let mut rest = data;
        while !rest.is_empty() {
            let room = self.window.wait_for_room(self.sent);
            if room == 0 {
                return Ok(false);
            }
            let (now, later) =
                rest.split_at(rest.len().min(MAX_DATA).min(usize::try_from(room).unwrap_or(MAX_DATA)));
            frame::write_data(&mut self.stream, kind::STDIN, self.sent, now)?;
            self.sent += now.len() as u64;
            rest = later;
        }
        Ok(!self.window.is_closed())
    }

    /// How much of `data` can be sent now without waiting, in bytes; 0 also when the process wants none.
    pub fn stdin_room(&self) -> usize {
        usize::try_from(self.window.room(self.sent)).unwrap_or(usize::MAX)
    }

    /// Whether the process may still take input, now or later.
    pub fn wants_stdin(&self) -> bool {
        !self.window.is_closed()
    }

    /// Ends the input. With a pty the terminal's end-of-file character is typed.
    ///
    /// # Errors
    /// The stream's.
    pub fn stdin_end(&mut self) -> Result<(), ProtoError> {
        frame::write(&mut self.stream, kind::STDIN_END, &[])
    }

    /// Tells the terminal's new size.
    ///
    /// # Errors
    /// The stream's.
    pub fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ProtoError> {
        let size = WindowSize { rows: rows.into(), cols: cols.into() };
        frame::write_message(&mut self.stream, kind::RESIZE, &size)
    }

    /// Sends a signal (Linux x86 number) to the session's process group.
    ///
    /// # Errors
    /// The stream's.
    pub fn signal(&mut self, number: u32) -> Result<(), ProtoError> {
        frame::write_message(&mut self.stream, kind::SIGNAL, &Signal { number })
    }
}

/// Room for input, told by the half that hears to the half that speaks.
#[derive(Debug, Default)]
struct Window {
    state: Mutex<WindowState>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct WindowState {
    taken: u64,
    closed: bool,
}

impl WindowState {
    fn room(self, sent: u64) -> u64 {
        if self.closed { 0 } else { STDIN_WINDOW.saturating_sub(sent.saturating_sub(self.taken)) }
    }
}

impl Window {
    fn taken(&self, offset: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.taken = state.taken.max(offset);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed
    }

    fn room(&self, sent: u64) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).room(sent)
    }

    /// Bytes that may be sent now, at least one; 0 when no more are wanted.
    fn wait_for_room(&self, sent: u64) -> u64 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && state.room(sent) == 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.room(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Refused;

    /// Takes one write, the hello; then the other side has closed.
    struct TakesHello(usize);

    impl Write for TakesHello {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 == 1 { Ok(bytes.len()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_agent_that_refused_and_left_is_still_heard() {
        let mut said = Vec::new();
        let refused = Refused { reason: "too many connections".into(), ..Refused::default() };
        frame::write_message(&mut said, kind::REFUSED, &refused).unwrap();
        let opened = Session::open(said.as_slice(), TakesHello(0), &Exec::default());
        assert!(matches!(opened, Err(ProtoError::Refused(why)) if why == "too many connections"));
        let opened = Session::open([].as_slice(), TakesHello(0), &Exec::default());
        assert!(opened.is_err_and(|e| e.is_disconnect()));
    }
}
