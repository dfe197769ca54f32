//! Connections: listening, the hello, and who serves what.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use agent_proto::ProtoError;
use agent_proto::frame::{self, FrameReader, kind};
use agent_proto::messages::{GENERATION, Hello, OLDEST_GENERATION, Purpose, Refused, Welcome};

use crate::boot::Agent;
use crate::console::log;
use crate::{control, sys};

/// How long a connection may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// Accepts connections for ever, each served by a thread of its own.
pub(crate) fn accept_all(agent: &Arc<Agent>, listener: &OwnedFd) {
    loop {
        match sys::accept(listener) {
            Ok(connection) => {
                let agent = Arc::clone(agent);
                let serve = move || {
                    if let Err(e) = serve(&agent, &connection)
                        && !e.is_disconnect()
                    {
                        log(format_args!("connection: {e}"));
                    }
                };
                if let Err(e) = std::thread::Builder::new().name("connection".into()).spawn(serve) {
                    log(format_args!("connection: {e}"));
                }
            }
            Err(e) => {
                log(format_args!("accept: {e}"));
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Serves one connection to its end.
pub(crate) fn serve(agent: &Arc<Agent>, connection: &UnixStream) -> Result<(), ProtoError> {
    connection.set_read_timeout(Some(HELLO_TIMEOUT))?;
    let mut frames = FrameReader::new(connection.try_clone()?);
    if frames.read_frame()?.ok_or(ProtoError::Closed)? != kind::HELLO {
        return Err(ProtoError::UnexpectedFrame(kind::HELLO));
    }
    let hello: Hello = frames.message()?;
    let refuse = |reason: &str| {
        let refused = Refused { reason: reason.into(), generation: GENERATION };
        frame::write_message(&mut { connection }, kind::REFUSED, &refused)
    };
    let generation = hello.generation.min(GENERATION);
    if generation < OLDEST_GENERATION.max(hello.oldest) {
        return refuse("no protocol generation in common");
    }
    let welcome = Welcome { generation, agent_version: env!("CARGO_PKG_VERSION").into() };
    connection.set_read_timeout(None)?;
    match hello.purpose() {
        Purpose::Control => {
            frame::write_message(&mut { connection }, kind::WELCOME, &welcome)?;
            control::serve(agent, connection, frames)
        }
        Purpose::Session => {
            frame::write_message(&mut { connection }, kind::WELCOME, &welcome)?;
            agent.sessions.serve(connection, frames)
        }
        Purpose::Unknown => refuse("the connection's purpose is unknown to this agent"),
    }
}

#[cfg(test)]
mod tests;
