//! What a client does with a sandbox: start it when it does not run, hold it, stop it.

use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gateway::record::Record;
use serde::{Deserialize, Serialize};

use crate::control::{Attention, Connection, Hold, NetworkStatus, Notice, Reply, Request, Status, Unkept};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::folder::{Folder, Sandbox};
use crate::logs::Source;
use crate::network::ports::{self, Publish};
use crate::network::{Handover, SecretText, Secrets};
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
const KEPT_VARIABLES: [&str; 8] = [
    "HOME",
    "XDG_STATE_HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "VIV_LOG",
    "PATH",
    // Which roots servers are checked against.
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

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

    /// Says what the user answered to [`Notice::Asked`]. May be called while another thread waits in [`Self::next_notice`].
    pub fn answer(&self, question: u64, allow: bool) -> Result<()> {
        self.connection.answer(question, allow)
    }

    /// Says whether the tokens of [`Notice::Grant`] are kept. As [`Self::answer`].
    pub fn grant_kept(&self, number: u64, kept: bool) -> Result<()> {
        self.connection.grant_kept(number, kept)
    }

    /// Hands another certificate authority over. As [`Self::answer`].
    pub fn set_authority(&self, authority: SecretText) -> Result<()> {
        self.connection.set_authority(authority)
    }

    /// Has records of kind [`gateway::record::Kind::SshAgent`] written down. As [`Self::answer`].
    pub fn ssh_agent(&self, records: Vec<Record>) -> Result<()> {
        self.connection.ssh_agent(records)
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
///
/// `attention` says what this session is told of the network; `handover` is made when a shim is started.
pub fn hold<E: From<Error>>(
    sandbox: &Sandbox,
    attention: Attention,
    handover: impl FnMut() -> Result<Handover, E>,
    starting: impl FnMut(),
) -> Result<Held, E> {
    hold_within(sandbox, attention, PATIENCE, handover, starting)
}

fn hold_within<E: From<Error>>(
    sandbox: &Sandbox,
    attention: Attention,
    patience: Duration,
    mut handover: impl FnMut() -> Result<Handover, E>,
    mut starting: impl FnMut(),
) -> Result<Held, E> {
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
            match connection.hold(attention, patience, || status(sandbox).is_ok())? {
                Hold::Held => {
                    tracing::info!(sandbox = sandbox.spec.name, started, "The guest is ready");
                    return Ok(Held { connection, started });
                }
                Hold::Failed(why) => return Err(not_started(sandbox, why).into()),
                Hold::Silent => return Err(silent(sandbox).into()),
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
            return Err(Error::Checked { name: sandbox.spec.name.clone() }.into());
        }
        if sandbox.is_running() {
            // Another shim that does not listen yet, or no longer.
            if Instant::now() >= deadline {
                return Err(silent(sandbox).into());
            }
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        if started {
            let why = sandbox.runtime().and_then(|runtime| runtime.reason);
            return Err(not_started(sandbox, why.unwrap_or_else(|| "it ended at once".into())).into());
        }
        // Somebody may be asked for a passphrase here: nothing is drawn over that.
        let given = handover()?;
        if !told {
            starting();
            told = true;
        }
        tracing::info!(sandbox = sandbox.spec.name, id = sandbox.spec.id, "Starting the sandbox's process");
        match spawn_shim(sandbox, &given)? {
            Announcement::Listening => started = true,
            Announcement::Busy => {}
            Announcement::Failed { why, hint } => return Err(Error::NotStarted { why, hint }.into()),
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
fn spawn_shim(sandbox: &Sandbox, handover: &Handover) -> Result<Announcement> {
    let fail = |source: std::io::Error| Error::host("cannot start the sandbox's process", source);
    // It outlives us: a lock or a pipe that our caller left open would be held for as long.
    confine::keep_descriptors().map_err(fail)?;
    let (heard, said) = std::io::pipe().map_err(fail)?;
    let (given, giving) = std::io::pipe().map_err(fail)?;
    let kept = KEPT_VARIABLES.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value)));
    let child = Command::new(own_program())
        .arg0("viv")
        .args([SHIM_ROLE, &sandbox.spec.id])
        .env_clear()
        .envs(kept)
        .envs(crate::environment::passed_on())
        .current_dir("/")
        .stdin(Stdio::from(given))
        .stdout(Stdio::from(said))
        .stderr(Stdio::null())
        .spawn()
        .map_err(fail)?;
    // One that is gone already says so, or says nothing.
    let _ = handover.write(giving);
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

/// How a running sandbox's network fares; `None` when it does not run or does not listen yet.
pub fn network(sandbox: &Sandbox) -> Result<Option<NetworkStatus>> {
    ask_network(sandbox, &Request::Network)
}

/// Takes back what a running sandbox was allowed until it stops by rules of these keys ([`policy::Rule::key`]).
pub fn forget_once(sandbox: &Sandbox, keys: Vec<String>) -> Result<()> {
    ask_network(sandbox, &Request::ForgetOnce { keys }).map(|_| ())
}

fn ask_network(sandbox: &Sandbox, request: &Request) -> Result<Option<NetworkStatus>> {
    let Some(connection) = sandbox.connect()? else { return Ok(None) };
    connection.set_patience(STATUS)?;
    match connection.ask(request)? {
        (Reply::Network(status), _) => Ok(Some(status)),
        (other, _) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
    }
}

/// Publishes a port, now and after each start. Gives what is published then.
pub fn publish(sandbox: &Sandbox, publish: Publish) -> Result<Publish> {
    if sandbox.spec.network == crate::spec::Networking::None {
        return Err(Error::Mistake {
            why: format!("{} has no network: it was made with --network none", sandbox.spec.name),
            hint: "another sandbox can have one".into(),
        });
    }
    let (bound, socket) = publish.bind().map_err(|error| publish.refusal(&error))?;
    change_ports(
        sandbox,
        |connection| connection.ask_with(&Request::Publish { publish: bound }, &socket),
        |all| ports::add(all, bound),
    )?;
    Ok(bound)
}

/// Publishes a port no longer.
pub fn unpublish(sandbox: &Sandbox, publish: Publish) -> Result<()> {
    change_ports(
        sandbox,
        |connection| connection.ask(&Request::Unpublish { publish }).map(|(reply, _)| reply),
        |all| ports::remove(all, &publish).map(|_| ()),
    )
}

/// Lets the shim of a sandbox change what is published, or does it where there is none.
fn change_ports(
    sandbox: &Sandbox,
    ask: impl Fn(&Connection) -> Result<Reply>,
    change: impl Fn(&mut Vec<Publish>) -> Result<()>,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(connection) = sandbox.connect()? {
            connection.set_patience(PATIENCE)?;
            return match ask(&connection) {
                Ok(Reply::Ports { .. }) => Ok(()),
                Ok(other) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
                Err(Error::Lost { why }) => Err(Error::Mistake {
                    why,
                    hint: format!("viv ports {} lists what is published", sandbox.spec.name),
                }),
                Err(error) => Err(error),
            };
        }
        if let Some(_lock) = sandbox.lock(Duration::from_millis(100))? {
            let mut all = ports::read(sandbox.folder())?;
            change(&mut all)?;
            return ports::write(sandbox.folder(), &all);
        }
        // It starts just now, or its disk is checked.
        if sandbox.is_checked() {
            return Err(Error::Checked { name: sandbox.spec.name.clone() });
        }
        if Instant::now() >= deadline {
            return Err(silent(sandbox));
        }
    }
}

/// Gives a running sandbox its secrets anew, also one that starts just now; false when it does not run, or has no network.
pub fn set_secrets(sandbox: &Sandbox, secrets: &Secrets) -> Result<bool> {
    if sandbox.spec.network == crate::spec::Networking::None {
        return Ok(false);
    }
    let request = Request::Secrets { secrets: secrets.clone() };
    let deadline = Instant::now() + PATIENCE;
    let is_over = || !sandbox.is_running() || sandbox.is_checked() || sandbox.state() == State::Stopping;
    loop {
        if let Some(connection) = sandbox.connect()? {
            connection.set_patience(STATUS)?;
            return match connection.ask(&request) {
                Ok((Reply::SecretsTaken, _)) => Ok(true),
                Ok((other, _)) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
                Err(_) if is_over() => Ok(false),
                Err(error) => Err(error),
            };
        }
        if is_over() {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            return Err(silent(sandbox));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Takes over the tokens that no session has kept: `keep` is given each, as crate `vault` writes it, and says whether it is kept now.
pub fn keep_grants(sandbox: &Folder, mut keep: impl FnMut(&SecretText) -> bool) -> Result<()> {
    let Some(connection) = sandbox.connect()? else { return Ok(()) };
    connection.set_patience(STATUS)?;
    loop {
        match connection.ask(&Request::TakeGrant)? {
            (Reply::Grant { grant: Some(Unkept { number, grant }) }, _) => {
                connection.grant_kept(number, keep(&grant))?;
            }
            (Reply::Grant { grant: None }, _) => return Ok(()),
            (other, _) => return Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
        }
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
/// does not wait for its disk. What it is need not be known.
pub fn stop(sandbox: &Folder, urgent: bool) -> Result<Stopped> {
    let mut heard = Instant::now();
    let (mut ran, mut end) = (false, None);
    // What is said to one while the next is made is heard in the end.
    let mut kept: Option<Connection> = None;
    // One that is being checked does not run.
    while sandbox.is_running() && !sandbox.is_checked() {
        ran = true;
        if let Some(connection) = sandbox.connect()? {
            // It may end before it has answered; that is as good. One that does neither is not waited for without end.
            connection.set_patience(SIGN_OF_LIFE)?;
            if connection.ask(&Request::Stop { urgent }).is_ok() {
                heard = Instant::now();
                end = connection.wait_for_end().or(end);
                kept = Some(connection);
            }
        }
        if heard.elapsed() >= PATIENCE && sandbox.is_running() {
            return Err(silent(sandbox));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    end = end.or_else(|| kept.and_then(|connection| connection.wait_for_end()));
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
fn silent(sandbox: &Folder) -> Error {
    let pid = sandbox.runtime().filter(|runtime| !runtime.state.is_over()).map(|runtime| runtime.pid);
    Error::Silent { name: sandbox.name().to_owned(), pid }
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
        let silent = hold_within(
            &sandbox,
            Attention::default(),
            Duration::from_millis(20),
            || Ok::<_, Error>(Handover::default()),
            || {},
        )
        .unwrap_err();
        assert!(matches!(silent, Error::Silent { pid: Some(4242), .. }), "{silent}");
        assert!(silent.hint().unwrap().contains("kill -9 4242"));
        drop((listener, lock));
    }
}
