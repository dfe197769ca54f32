//! The host's half: blocking, over any stream.
//!
//! It trusts nothing that the guest sends: what comes is bounded, parsed once, and handed on as data.

mod control;
mod session;

pub use control::Control;
pub use session::{STDIN_WINDOW, Session, SessionEvent, SessionReader, SessionWriter};

use std::io::{Read, Write};

use crate::ProtoError;
use crate::frame::{self, FrameReader, kind};
use crate::messages::{GENERATION, Hello, OLDEST_GENERATION, Purpose, Refused, Welcome};

fn say_hello(stream: &mut impl Write, purpose: Purpose) -> Result<(), ProtoError> {
    let hello = Hello { generation: GENERATION, oldest: OLDEST_GENERATION, purpose: purpose.into() };
    frame::write_message(stream, kind::HELLO, &hello)
}

fn hear_welcome<R: Read>(frames: &mut FrameReader<R>) -> Result<Welcome, ProtoError> {
    match frames.read_frame()?.ok_or(ProtoError::Closed)? {
        kind::WELCOME => {
            let welcome: Welcome = frames.message()?;
            if (OLDEST_GENERATION..=GENERATION).contains(&welcome.generation) {
                Ok(welcome)
            } else {
                Err(ProtoError::Incompatible { theirs: welcome.generation, ours: OLDEST_GENERATION })
            }
        }
        kind::REFUSED => {
            let refused: Refused = frames.message()?;
            if refused.generation != 0 && refused.generation < OLDEST_GENERATION {
                return Err(ProtoError::Incompatible { theirs: refused.generation, ours: OLDEST_GENERATION });
            }
            Err(ProtoError::Refused(refused.reason))
        }
        other => Err(ProtoError::UnexpectedFrame(other)),
    }
}
