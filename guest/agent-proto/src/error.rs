//! The one error type of the protocol, for both halves.

use std::io;

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ProtoError {
    /// The stream failed.
    #[error("The agent's connection failed")]
    Io(#[from] io::Error),
    /// The stream ended between two frames, before what was waited for had come.
    #[error("The agent's connection was closed")]
    Closed,
    /// The stream ended in the middle of a frame.
    #[error("The agent's connection was closed in the middle of a message")]
    Truncated,
    /// A frame is longer than its kind may be. Nothing of its body was read.
    #[error("A frame of kind {kind:#04x} has {len} bytes; {limit} are allowed")]
    TooLarge {
        /// The frame's kind.
        kind: u8,
        /// Its body's length in bytes as announced.
        len: u32,
        /// The most that its kind allows.
        limit: u32,
    },
    /// A frame of a kind that this side does not know, or that has no place here.
    #[error("An unexpected frame of kind {0:#04x}")]
    UnexpectedFrame(u8),
    /// A frame's body is too short for its kind or not a valid message.
    #[error("A frame of kind {0:#04x} has a malformed body")]
    Malformed(u8),
    /// The two sides have no generation in common.
    #[error("The sandbox's agent speaks protocol generation {theirs}, this viv needs {ours} or newer")]
    Incompatible {
        /// The highest generation of the other side.
        theirs: u32,
        /// The lowest that this side accepts.
        ours: u32,
    },
    /// The other side refused the connection, with its reason.
    #[error("The agent refused the connection: {0}")]
    Refused(String),
    /// A request could not be carried out.
    #[error("{0}")]
    Failed(String),
}

impl ProtoError {
    /// Whether the other side is simply gone, as when its virtual machine ended.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Closed | Self::Truncated => true,
            Self::Io(e) => matches!(
                e.kind(),
                io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::NotConnected
                    | io::ErrorKind::UnexpectedEof
            ),
            _ => false,
        }
    }
}
