//! The guest's own logs, the agent's and dockerd's, as they come out of it: they are still here when the guest is not.
//!
//! On a thread of its own, with a connection of its own. What the guest sends is bounded line by line and believed in nothing.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agent_proto::ProtoError;
use agent_proto::client::Control;
use agent_proto::messages::{Happening, LogLine, LogSource, Phase};

use crate::launch::VmmLine;
use crate::logs::LineLog;

/// Between two attempts to reach an agent that does not listen yet.
const PAUSE: Duration = Duration::from_millis(50);

/// The files that are written.
#[derive(Debug)]
pub(crate) struct GuestLogs {
    pub(crate) agent: LineLog,
    pub(crate) dockerd: LineLog,
}

/// Writes what the guest says until it is gone. `going_down` is told when it says that it is about to end.
pub(crate) fn follow(line: &VmmLine, mut logs: GuestLogs, mut going_down: impl FnMut()) {
    let Some(mut control) = reach(line) else { return };
    let heard = control.follow_logs().and_then(|()| {
        loop {
            match control.next_event()? {
                Happening::Log(line) => logs.write(&line),
                Happening::Status(status) if status.phase() == Phase::Stopping => going_down(),
                Happening::Status(_) => {}
            }
        }
    });
    match heard {
        Err::<(), ProtoError>(error) if !error.is_disconnect() => {
            tracing::warn!(%error, "The guest's logs are no longer heard");
        }
        _ => tracing::debug!("The guest's logs have ended"),
    }
}

/// Connects as soon as the agent listens; `None` when the vmm is gone first.
fn reach(line: &VmmLine) -> Option<Control<UnixStream>> {
    loop {
        let stream: OwnedFd = line.connect(agent_proto::abi::AGENT_PORT).ok()?;
        match Control::connect(UnixStream::from(stream)) {
            Ok(control) => return Some(control),
            Err(error) if error.is_disconnect() => std::thread::sleep(PAUSE),
            Err(error) => {
                tracing::warn!(%error, "The guest's logs cannot be heard");
                return None;
            }
        }
    }
}

impl GuestLogs {
    fn write(&mut self, said: &LogLine) {
        let log = match said.source() {
            LogSource::Dockerd => &mut self.dockerd,
            LogSource::Agent | LogSource::Unknown => &mut self.agent,
        };
        if said.lost > 0 {
            log.line(format!("({} lines before this one are lost)", said.lost).as_bytes());
        }
        log.line(&said.text);
    }
}
