//! What a client does with a sandbox: start it when it does not run, hold it, stop it.

use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::{Connection, Hold, Notice, Reply, Request, Status};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::folder::Sandbox;
use crate::logs::Source;
use crate::room::NO_ROOM_TO_START;
use crate::spec::State;
use crate::sys::own_program;

/// The hidden role's name on the command line of `viv`.
pub const SHIM_ROLE: &str = "shim";

/// How long a shim may take to listen, or to be gone when its virtual machine has ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a shim that stops its sandbox is asked whether it lives.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

/// What a guest gets to say what it uses, all in all.
const METRICS: Duration = Duration::from_secs(2);

/// How long a shim may take to say how its sandbox fares, which it knows. One that takes longer was stopped, or its host is.
const STATUS: Duration = Duration::from_secs(2);

/// The variables that a shim gets; it starts with no others.
const KEPT_VARIABLES: [&str; 6] =
    ["HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "VIV_LOG", "PATH"];

/// The one line that a shim writes to the client that started it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    /// It can be connected to.
    Listening,
    /// Another shim has the sandbox.
    Busy,
    /// It could not start the sandbox.
    Failed {
        /// One sentence.
        why: String,
        /// The next step.
        hint: Option<String>,
    },
}

/// A session's place in a sandbox: while it lives the sandbox does not stop for idleness.
#[derive(Debug)]
pub struct Held {
    connection: Connection,
    /// Whether this call started the sandbox.
    pub started: bool,
}

impl Held {
    /// A byte stream to the guest's agent.
    pub fn agent(&self) -> Result<UnixStream> {
        self.connection.open_port(agent_proto::abi::AGENT_PORT).map(UnixStream::from)
    }

    /// Waits for something that the session's user should know; `None` when the sandbox has ended. Nothing else may be asked
    /// over this place at the same time.
    pub fn next_notice(&self) -> Option<Notice> {
        self.connection.next_notice()
    }

    /// How the sandbox fares.
    pub fn status(&self) -> Result<Status> {
        status_over(&self.connection)
    }

    /// Lets the sandbox go on without sessions until it is stopped.
    pub fn keep(&self) -> Result<()> {
        match self.connection.ask(&Request::Keep)? {
            (Reply::Kept, _) => Ok(()),
            (other, _) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
        }
    }
}

/// Connects to the sandbox and starts it when it does not run. Waits until the guest is ready. `starting` is told, once,
/// that there is something to wait for.
pub fn hold(sandbox: &Sandbox, starting: impl FnMut()) -> Result<Held> {
    hold_within(sandbox, PATIENCE, starting)
}

fn hold_within(sandbox: &Sandbox, patience: Duration, mut starting: impl FnMut()) -> Result<Held> {
    let mut started = false;
    let mut told = false;
    let mut deadline = Instant::now() + patience;
    loop {
        if let Some(connection) = sandbox.connect()? {
            if !told && sandbox.state() == State::Starting {
                starting();
                told = true;
            }
            // A guest may take minutes to be ready, but its shim answers meanwhile.
            match connection.hold(patience, || status(sandbox).is_ok())? {
                Hold::Held => {
                    tracing::info!(sandbox = sandbox.spec.name, started, "The guest is ready");
                    return Ok(Held { connection, started });
                }
                Hold::Failed(why) => return Err(not_started(sandbox, why)),
                Hold::Silent => return Err(silent(sandbox)),
                Hold::Ending => {
                    // Its disk may have much to write yet.
                    if !told {
                        starting();
                        told = true;
                    }
                    connection.set_patience(patience)?;
                    connection.wait_for_end();
                    deadline = Instant::now() + patience;
                }
            }
        }
        if sandbox.is_checked() {
            return Err(Error::Checked { name: sandbox.spec.name.clone() });
        }
        if sandbox.is_running() {
            // Another shim that does not listen yet, or no longer.
            if Instant::now() >= deadline {
                return Err(silent(sandbox));
            }
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        if started {
            let why = sandbox.runtime().and_then(|runtime| runtime.reason);
            return Err(not_started(sandbox, why.unwrap_or_else(|| "it ended at once".into())));
        }
        if !told {
            starting();
            told = true;
        }
        tracing::info!(sandbox = sandbox.spec.name, id = sandbox.spec.id, "Starting the sandbox's process");
        match spawn_shim(sandbox)? {
            Announcement::Listening => started = true,
            Announcement::Busy => {}
            Announcement::Failed { why, hint } => return Err(Error::NotStarted { why, hint }),
        }
    }
}

/// How the guest's agent begins what it says of a disk that it cannot use.
const DISK_TROUBLE: &str = "The sandbox's disk";

fn not_started(sandbox: &Sandbox, why: String) -> Error {
    let console = sandbox.log(Source::Console);
    let hint = if why == NO_ROOM_TO_START {
        "free some space, then start it again:  viv ls shows what each sandbox takes".into()
    } else if why.contains(DISK_TROUBLE) {
        format!("viv check {} says more; the disk is left as it is", sandbox.spec.name)
    } else if std::fs::metadata(&console).is_ok_and(|log| log.len() > 0) {
        format!("viv logs {} shows the guest's own words", sandbox.spec.name)
    } else {
        "its guest wrote nothing; viv diagnose says what this host can do".into()
    };
    Error::NotStarted { why, hint: Some(hint) }
}

/// Starts a shim and waits for its announcement. It is in no terminal's session and outlives this process.
fn spawn_shim(sandbox: &Sandbox) -> Result<Announcement> {
    let fail = |source: std::io::Error| Error::host("cannot start the sandbox's process", source);
    // It outlives us: a lock or a pipe that our caller left open would be held for as long.
    confine::keep_descriptors().map_err(fail)?;
    let (heard, said) = std::io::pipe().map_err(fail)?;
    let kept = KEPT_VARIABLES.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value)));
    let child = Command::new(own_program())
        .arg0("viv")
        .args([SHIM_ROLE, &sandbox.spec.id])
        .env_clear()
        .envs(kept)
        .envs(crate::environment::passed_on())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(said))
        .stderr(Stdio::null())
        .spawn()
        .map_err(fail)?;
    // Never waited for: it ends with its sandbox, which may be long after this process.
    drop(child);
    announcement(heard)
}

fn announcement(heard: PipeReader) -> Result<Announcement> {
    let mut line = String::new();
    let _ = BufReader::new(heard).read_line(&mut line);
    serde_json::from_str(&line).map_err(|_| Error::NotStarted {
        why: "its shim ended without a word".into(),
        hint: Some("shim.log in the sandbox's folder may say why".into()),
    })
}

/// How a running sandbox fares; `None` when it does not run or does not listen yet.
pub fn status(sandbox: &Sandbox) -> Result<Option<Status>> {
    let Some(connection) = sandbox.connect()? else { return Ok(None) };
    connection.set_patience(STATUS)?;
    status_over(&connection).map(Some)
}

fn status_over(connection: &Connection) -> Result<Status> {
    match connection.ask(&Request::Status)? {
        (Reply::Status(status), _) => Ok(status),
        (other, _) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
    }
}

/// What the guest uses; `None` when it cannot be asked just now.
pub fn metrics(sandbox: &Sandbox) -> Option<agent_proto::messages::Metrics> {
    let connection = sandbox.connect().ok()??;
    connection.set_patience(STATUS).ok()?;
    // A sandbox that is not ready would make this wait.
    (status_over(&connection).ok()?.state == State::Running).then_some(())?;
    let stream = UnixStream::from(connection.open_port(agent_proto::abi::AGENT_PORT).ok()?);
    let stream = Deadline::new(stream, Instant::now() + METRICS);
    agent_proto::client::Control::connect(stream).ok()?.metrics().ok()
}

/// What came of [`stop`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It did not run.
    Already,
    /// As it should: its disk is clean.
    InOrder,
    /// It is stopped, but broke on the way down or had to be cut off; one sentence says why.
    Otherwise(String),
}

/// Shuts a sandbox down and waits until it is gone, as long as its shim answers. An `urgent` stop, of one that is to be deleted,
/// does not wait for its disk.
pub fn stop(sandbox: &Sandbox, urgent: bool) -> Result<Stopped> {
    let mut heard = Instant::now();
    let (mut ran, mut end) = (false, None);
    // One that is being checked does not run.
    while sandbox.is_running() && !sandbox.is_checked() {
        ran = true;
        if let Some(connection) = sandbox.connect()? {
            // It may end before it has answered; that is as good. One that does neither is not waited for without end.
            connection.set_patience(SIGN_OF_LIFE)?;
            if connection.ask(&Request::Stop { urgent }).is_ok() {
                heard = Instant::now();
                end = connection.wait_for_end().or(end);
            }
        }
        if heard.elapsed() >= PATIENCE && sandbox.is_running() {
            return Err(silent(sandbox));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Of an end that was not told, such as a killed shim's, its notes tell.
    let noted = || sandbox.end(State::Failed).filter(|_| sandbox.state() == State::Failed);
    Ok(match end {
        _ if !ran => Stopped::Already,
        Some((true, why)) => Stopped::Otherwise(why),
        Some((false, _)) => Stopped::InOrder,
        None => noted().map_or(Stopped::InOrder, Stopped::Otherwise),
    })
}

/// What is said of a shim that does not answer.
fn silent(sandbox: &Sandbox) -> Error {
    let pid = sandbox.runtime().filter(|runtime| !runtime.state.is_over()).map(|runtime| runtime.pid);
    Error::Silent { name: sandbox.spec.name.clone(), pid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::{running, sandboxes, wish};
    use crate::spec::Runtime;

    #[test]
    fn a_shim_that_does_not_answer_is_named_and_not_waited_for() {
        let (_root, all) = sandboxes();
        let sandbox = all.create(&wish("/a/project", None)).unwrap().0;
        let lock = sandbox.lock(Duration::ZERO).unwrap().unwrap();
        sandbox.note(&Runtime { pid: 4242, ..running() }).unwrap();
        // It listens, as one that was stopped does, and says nothing.
        let listener = crate::control::listen(sandbox.folder()).unwrap();
        let silent = hold_within(&sandbox, Duration::from_millis(20), || {}).unwrap_err();
        assert!(matches!(silent, Error::Silent { pid: Some(4242), .. }), "{silent}");
        assert!(silent.hint().unwrap().contains("kill -9 4242"));
        drop((listener, lock));
    }
}
