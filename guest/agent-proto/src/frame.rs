//! Frames: a length, a kind and a body.
//!
//! ```text
//! 0        4     5            5 + length
//! | length | kind | body ...  |
//! ```
//! `length` counts the body only, little-endian. Kinds from [`SKIPPABLE`] on may be skipped by a side that does not know them; any other
//! unknown kind ends the connection. The length is checked against the kind's limit before the body is read.

use std::io::{self, Read, Write};

use prost::Message;

use crate::ProtoError;

/// Bytes before the body.
pub const HEADER_LEN: usize = 5;
/// The most process input or output in one frame.
pub const MAX_DATA: usize = 64 * 1024;
/// Bytes of the stream offset that stands before process input or output in a frame.
pub const OFFSET_LEN: usize = 8;
/// The most that a message may have: room for an [`Exec`](crate::messages::Exec) with as much as Linux takes (`ARG_MAX`, 2 MiB).
pub const MAX_MESSAGE: u32 = 4 * 1024 * 1024;
/// The most that any other message may have.
pub const MAX_SMALL: u32 = 256 * 1024;
/// Kinds from here on may be skipped when unknown.
pub const SKIPPABLE: u8 = 0x80;

/// The kinds of frames. The body is a message of the named type unless said otherwise.
pub mod kind {
    /// First frame from the host: [`Hello`](crate::messages::Hello).
    pub const HELLO: u8 = 0x01;
    /// The agent's answer: [`Welcome`](crate::messages::Welcome).
    pub const WELCOME: u8 = 0x02;
    /// The agent's last frame when it will not go on: [`Refused`](crate::messages::Refused).
    pub const REFUSED: u8 = 0x03;

    /// Control, host to guest: [`Request`](crate::messages::Request).
    pub const REQUEST: u8 = 0x10;
    /// Control, guest to host: [`Reply`](crate::messages::Reply).
    pub const REPLY: u8 = 0x11;
    /// Control, guest to host, unasked: [`Event`](crate::messages::Event).
    pub const EVENT: u8 = 0x12;

    /// Session, host to guest: [`Exec`](crate::messages::Exec), right after the hello.
    pub const EXEC: u8 = 0x20;
    /// Session, guest to host: [`Opened`](crate::messages::Opened).
    pub const OPENED: u8 = 0x21;
    /// Session, guest to host, last frame: [`NotStarted`](crate::messages::NotStarted).
    pub const NOT_STARTED: u8 = 0x22;
    /// Session, host to guest: 8 bytes of offset, then input.
    pub const STDIN: u8 = 0x23;
    /// Session, host to guest, empty: the input ends here.
    pub const STDIN_END: u8 = 0x24;
    /// Session, guest to host: 8 bytes, the offset up to which the process took its input.
    pub const STDIN_TAKEN: u8 = 0x25;
    /// Session, guest to host, empty: the process closed its input; more is thrown away.
    pub const STDIN_CLOSED: u8 = 0x26;
    /// Session, guest to host: 8 bytes of offset, then output (with a pty all of it).
    pub const STDOUT: u8 = 0x27;
    /// Session, guest to host: 8 bytes of offset, then output on the error stream.
    pub const STDERR: u8 = 0x28;
    /// Session, host to guest: [`WindowSize`](crate::messages::WindowSize).
    pub const RESIZE: u8 = 0x29;
    /// Session, host to guest: [`Signal`](crate::messages::Signal).
    pub const SIGNAL: u8 = 0x2a;
    /// Session, guest to host, last frame: [`Exit`](crate::messages::Exit).
    pub const EXIT: u8 = 0x2b;
}

/// The most bytes that the body of a frame of this kind may have; `None` for a kind that is unknown and not to be skipped.
pub fn limit(k: u8) -> Option<u32> {
    match k {
        kind::EXEC => Some(MAX_MESSAGE),
        kind::STDIN | kind::STDOUT | kind::STDERR => Some((MAX_DATA + OFFSET_LEN) as u32),
        kind::STDIN_TAKEN => Some(OFFSET_LEN as u32),
        kind::STDIN_END | kind::STDIN_CLOSED => Some(0),
        kind::HELLO..=kind::REFUSED
        | kind::REQUEST..=kind::EVENT
        | kind::OPENED..=kind::NOT_STARTED
        | kind::RESIZE..=kind::EXIT
        | SKIPPABLE.. => Some(MAX_SMALL),
        _ => None,
    }
}

/// Writes one frame whose body is `parts` joined.
///
/// # Errors
/// [`ProtoError::TooLarge`] when the body is over the kind's limit (nothing is written then), or the stream's error.
pub fn write(w: &mut impl Write, k: u8, parts: &[&[u8]]) -> Result<(), ProtoError> {
    let total: usize = parts.iter().map(|p| p.len()).sum();
    let limit = limit(k).ok_or(ProtoError::UnexpectedFrame(k))?;
    let len = u32::try_from(total).unwrap_or(u32::MAX);
    if len > limit {
        return Err(ProtoError::TooLarge { kind: k, len, limit });
    }
    let mut frame = Vec::with_capacity(HEADER_LEN + total);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.push(k);
    for part in parts {
        frame.extend_from_slice(part);
    }
    w.write_all(&frame)?;
    w.flush()?;
    Ok(())
}

/// Writes one frame that holds a message.
///
/// # Errors
/// As [`write`].
pub fn write_message(w: &mut impl Write, k: u8, message: &impl Message) -> Result<(), ProtoError> {
    write(w, k, &[&message.encode_to_vec()])
}

/// Writes one frame of process input or output that starts at `offset` in its stream.
///
/// # Errors
/// As [`write`].
pub fn write_data(w: &mut impl Write, k: u8, offset: u64, data: &[u8]) -> Result<(), ProtoError> {
    write(w, k, &[&offset.to_le_bytes(), data])
}

/// Reads frames, one at a time, into a buffer that it keeps.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    body: Vec<u8>,
    kind: u8,
}

impl<R: Read> FrameReader<R> {
    /// Reads from `stream`.
    pub fn new(stream: R) -> Self {
        Self { stream, body: Vec::new(), kind: 0 }
    }

    /// The stream behind it.
    pub fn get_ref(&self) -> &R {
        &self.stream
    }

    /// The stream behind it, to write to where it is both.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.stream
    }

    /// Reads the next frame and returns its kind; `None` when the stream ended between two frames. Frames that may be skipped are
    /// returned as well: the caller knows what it knows.
    ///
    /// # Errors
    /// [`ProtoError::UnexpectedFrame`] and [`ProtoError::TooLarge`] before any of the body is read, [`ProtoError::Truncated`], or the
    /// stream's error. The stream is of no more use after any of them.
    pub fn read_frame(&mut self) -> Result<Option<u8>, ProtoError> {
        let mut header = [0u8; HEADER_LEN];
        let mut got = 0;
        while let Some(rest) = header.get_mut(got..).filter(|r| !r.is_empty()) {
            match self.stream.read(rest) {
                Ok(0) if got == 0 => return Ok(None),
                Ok(0) => return Err(ProtoError::Truncated),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let [a, b, c, d, k] = header;
        let len = u32::from_le_bytes([a, b, c, d]);
        let limit = limit(k).ok_or(ProtoError::UnexpectedFrame(k))?;
        if len > limit {
            return Err(ProtoError::TooLarge { kind: k, len, limit });
        }
        self.kind = k;
        self.body.clear();
        self.body.resize(len as usize, 0);
        self.stream.read_exact(&mut self.body).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => ProtoError::Truncated,
            _ => ProtoError::Io(e),
        })?;
        Ok(Some(k))
    }

    /// The body of the frame that was read last.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The message in the frame that was read last.
    ///
    /// # Errors
    /// [`ProtoError::Malformed`].
    pub fn message<M: Message + Default>(&self) -> Result<M, ProtoError> {
        M::decode(self.body.as_slice()).map_err(|_| ProtoError::Malformed(self.kind))
    }

    /// The offset and the data of the frame that was read last, for the kinds that have them.
    ///
    /// # Errors
    /// [`ProtoError::Malformed`] when there is no room for an offset.
    pub fn data(&self) -> Result<(u64, &[u8]), ProtoError> {
        let (offset, data) =
            self.body.split_first_chunk::<OFFSET_LEN>().ok_or(ProtoError::Malformed(self.kind))?;
        Ok((u64::from_le_bytes(*offset), data))
    }
}
