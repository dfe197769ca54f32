//! What clients ask of a shim, over the socket in the sandbox's folder.
//!
//! Each connection carries requests one after another, each answered once. A connection that sent [`Request::Hold`]
//! counts as a session until it is closed, however that happens.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway::record::Record;
use policy::Rule;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::network::ports::Publish;
use crate::network::{SecretText, Secrets};
use crate::packet;
use crate::spec::State;

/// The socket's name in the sandbox's folder.
pub const SOCKET: &str = "control.sock";

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Request {
    /// Count this connection as a session. Answered with [`Reply::Held`] as soon as the guest is ready.
    Hold {
        /// What it is to be told of the network.
        #[serde(default)]
        network: Attention,
    },
    /// A connection to a vsock port of the guest. Answered with [`Reply::Opened`] and one descriptor.
    Open {
        /// The guest's port.
        port: u32,
    },
    /// Go on without sessions until the sandbox is stopped. Answered with [`Reply::Kept`] at once.
    Keep,
    /// How the sandbox fares. Answered with [`Reply::Status`] at once.
    Status,
    /// How its network fares. Answered with [`Reply::Network`] at once.
    Network,
    /// What a user says to [`Notice::Asked`]. Not answered. Who says "always" writes the rule first; a yes without a rule holds until the
    /// sandbox stops.
    Answer {
        /// The question's number.
        question: u64,
        /// Whether the connections that wait may go on.
        allow: bool,
    },
    /// What was allowed until the sandbox stops by rules of these keys is not any more. Answered with [`Reply::Network`].
    ForgetOnce {
        /// As [`policy::Rule::key`] has them.
        keys: Vec<String>,
    },
    /// Pass on who comes to the socket that is sent along, which is bound and, if it is TCP, listens. Answered with [`Reply::Ports`].
    Publish {
        /// Its address, and where to.
        publish: Publish,
    },
    /// Do that no longer. Answered with [`Reply::Ports`].
    Unpublish {
        /// As it was published.
        publish: Publish,
    },
    /// From the next request on these secrets hold, and no others. Answered with [`Reply::SecretsTaken`].
    Secrets {
        /// All of them.
        secrets: Secrets,
    },
    /// Tokens that nobody has kept yet. Answered with [`Reply::Grant`]; not needed by a session whose [`Attention::keeps`] is set.
    TakeGrant,
    /// Whether the tokens that were handed over are kept now. Not answered.
    GrantKept {
        /// The number that they came with.
        number: u64,
        /// If not, another client gets them.
        kept: bool,
    },
    /// Another certificate authority for the gateway, after [`Notice::AuthorityEnds`]. Not answered.
    Authority {
        /// As crate `intercept` writes it, with its key.
        authority: SecretText,
    },
    /// What a session decided about requests to the user's SSH agent, which it forwards. Not answered.
    SshAgent {
        /// Of that kind only.
        records: Vec<Record>,
    },
    /// Shut the guest down. Answered with [`Reply::Stopping`] at once; the connection is closed by the shim's end.
    Stop {
        /// The sandbox is to be deleted: what its disk still writes gives it no more time.
        #[serde(default)]
        urgent: bool,
    },
}

/// What the shim answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// The connection counts as a session.
    Held,
    /// The descriptor that came along is the connection.
    Opened,
    /// The sandbox goes on without sessions.
    Kept,
    /// How the sandbox fares.
    Status(Status),
    /// How its network fares.
    Network(NetworkStatus),
    /// What is published from here on, also after the next start.
    Ports {
        /// All of it.
        ports: Vec<Publish>,
    },
    /// The secrets hold.
    SecretsTaken,
    /// Tokens to keep; to be answered with [`Request::GrantKept`].
    Grant {
        /// None when there are none.
        grant: Option<Unkept>,
    },
    /// The guest is being shut down.
    Stopping,
    /// How that came out; not an answer, and the last word to who asked for it.
    Ended {
        /// Whether it ended otherwise than was wanted.
        failed: bool,
        /// Why it ended.
        reason: String,
    },
    /// Something that a session's user should know; not an answer, and sent to connections that are sessions only.
    Notice(Notice),
    /// The request could not be met; one sentence says why.
    Refused {
        /// The sentence.
        why: String,
        /// Whether it is because the sandbox is going down; it can be started again then.
        #[serde(default)]
        stopping: bool,
    },
}

/// What a session is told of the network; a client of before the network wants nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attention {
    /// Refusals, and when the network is down.
    pub hints: bool,
    /// While it is there, what no rule decides is asked about, and it answers.
    pub asks: bool,
    /// While it is there, what would be refused is let through and recorded, but for what the built-in rules keep.
    pub observes: bool,
    /// It keeps new tokens of logins, asks for values of secrets again, and issues certificate authorities anew.
    pub keeps: bool,
}

/// Tokens of a login that nobody has kept yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unkept {
    /// For the answer.
    pub number: u64,
    /// As crate `vault` writes a grant, with the values.
    pub grant: SecretText,
}

/// What a session's user is told unasked. Words in it may be a guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "notice")]
pub enum Notice {
    /// The host's disk is full: what the guest writes waits.
    HostFull,
    /// There is room again.
    HostHasRoom,
    /// Something was refused.
    Blocked {
        /// What: `POST gist.github.com/`, `example.com:22`.
        what: String,
        /// The reason, with the layer that it comes from.
        why: String,
        /// The command that would allow it.
        allow: Option<String>,
        /// How many further refusals were not told since the last one that was.
        untold: u64,
    },
    /// Further refusals and failures were not told, and no hint came after them.
    MoreBlocked {
        /// How many.
        count: u64,
    },
    /// A name is allowed, and does not resolve.
    Unresolved {
        /// The name.
        host: String,
        /// Why.
        why: String,
    },
    /// A placeholder of a secret was seen on its way to where it does not belong.
    Exfiltration {
        /// Where to.
        what: String,
        /// What was seen.
        why: String,
    },
    /// May this be connected to? It waits for [`Request::Answer`], for a minute at most.
    Asked {
        /// The question's number.
        question: u64,
        /// The host's name or address.
        host: String,
        /// The port.
        port: u16,
        /// Whether it is UDP.
        udp: bool,
    },
    /// A question needs no answer any more.
    AskOver {
        /// Its number.
        question: u64,
    },
    /// There is no network just now.
    NetworkDown {
        /// Why.
        why: String,
    },
    /// It is back.
    NetworkBack,
    /// The rules cannot be read: nothing is allowed.
    NoPolicy {
        /// Why.
        why: String,
        /// Whether what held before holds on; else nothing is allowed.
        holds_on: bool,
    },
    /// They can be again.
    PolicyBack,
    /// Decisions about the network cannot be written down now: they are kept, and tried again.
    NoRecord {
        /// Why.
        why: String,
    },
    /// They can be again.
    RecordBack,
    /// Tokens to keep; to be answered with [`Request::GrantKept`]. Sent to one session only.
    Grant(Unkept),
    /// Values of secrets that programs gave are to be asked for again; who keeps it going sends [`Request::Secrets`]. Sent to one session.
    SecretsEnd,
    /// The sandbox's certificate authority ends before long; who keeps it going sends [`Request::Authority`].
    AuthorityEnds,
    /// That was of no use.
    AuthorityStays {
        /// Why.
        why: String,
    },
    /// A port could not be published.
    NotPublished {
        /// Which.
        publish: Publish,
        /// Why.
        why: String,
    },
}

/// How a running sandbox's network fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Whether the gateway serves frames.
    pub up: bool,
    /// Why not, or what is wrong all the same.
    pub problem: Option<String>,
    /// How the gateway is confined, in the words of `viv diagnose`.
    pub confinement: Vec<String>,
    /// How often it was started again in this run.
    pub restarts: u32,
    /// Process id of the keeper that starts the gateway; none without a network.
    pub keeper: Option<u32>,
    /// Whether what would be refused is let through and recorded.
    pub observes: bool,
    /// What was allowed until the sandbox stops.
    #[serde(default)]
    pub once: Vec<Rule>,
    /// What is published.
    pub ports: Vec<Publish>,
    /// What the gateway counted.
    pub counters: Vec<(String, u64)>,
    /// How many refusals sessions were not told of, and not yet that there are so many.
    #[serde(default)]
    pub untold: u64,
}

/// How a running sandbox fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it does.
    pub state: State,
    /// When this run began, RFC 3339.
    pub started: String,
    /// The engine it runs on.
    pub engine: String,
    /// How the vmm is confined, in the words of `viv diagnose`.
    pub confinement: Vec<String>,
    /// Open sessions.
    pub sessions: u32,
    /// Process id of the vmm.
    pub vmm: u32,
    /// What the engine counted, such as instructions it does not know.
    pub counters: Vec<(String, u64)>,
    /// Whether it goes on without sessions.
    #[serde(default)]
    pub detached: bool,
}

/// What came of [`Connection::hold`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is a session.
    Held,
    /// The sandbox is going down; it can be started again when it is gone.
    Ending,
    /// The sandbox could not start; one sentence says why.
    Failed(String),
    /// Its shim does not answer.
    Silent,
}

/// A client's connection to a shim.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// What came between a question and its answer.
    notices: Mutex<VecDeque<Notice>>,
}

impl Connection {
    /// Connects to the shim of the sandbox in `folder`. Not found or refused means that there is none.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let socket = crate::sys::packet_connect(folder, SOCKET)?;
        Ok(Self { socket, notices: Mutex::default() })
    }

    /// Asks and waits for the answer.
    pub fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>)> {
        match self.ask_raw(request)? {
            Some((Reply::Refused { why, .. }, _)) => Err(Error::Lost { why }),
            Some(answer) => Ok(answer),
            None => Err(Error::Lost { why: "the sandbox ended".into() }),
        }
    }

    fn ask_raw(&self, request: &Request) -> Result<Option<(Reply, Vec<OwnedFd>)>> {
        self.say(request).and_then(|()| self.hear()).map_err(|error| lost(&error))
    }

    fn say(&self, request: &Request) -> io::Result<()> {
        self.send(request, &[])
    }

    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        match packet::send(&self.socket, request, descriptors) {
            // What it said before it went is still to be read. A killed one's socket may be reset while this is said.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn hear(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        loop {
            match packet::receive(&self.socket)? {
                Some((Reply::Notice(notice), _)) => self.notices().push_back(notice),
                other => return Ok(other),
            }
        }
    }

    fn notices(&self) -> MutexGuard<'_, VecDeque<Notice>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next notice; `None` when the shim is gone. Nothing may be asked meanwhile, by another thread.
    pub(crate) fn next_notice(&self) -> Option<Notice> {
        if let Some(notice) = self.notices().pop_front() {
            return Some(notice);
        }
        loop {
            match packet::receive(&self.socket).ok()?? {
                (Reply::Notice(notice), _) => return Some(notice),
                other => tracing::debug!(?other, "An answer to nothing"),
            }
        }
    }

    /// Says what a user answered. May be used while another thread waits for notices: there is no answer to it.
    pub(crate) fn answer(&self, question: u64, allow: bool) -> Result<()> {
        self.say(&Request::Answer { question, allow }).map_err(|error| lost(&error))
    }

    /// Says whether tokens are kept. As [`Self::answer`].
    pub(crate) fn grant_kept(&self, number: u64, kept: bool) -> Result<()> {
        self.say(&Request::GrantKept { number, kept }).map_err(|error| lost(&error))
    }

    /// Hands another certificate authority over. As [`Self::answer`].
    pub(crate) fn set_authority(&self, authority: SecretText) -> Result<()> {
        self.say(&Request::Authority { authority }).map_err(|error| lost(&error))
    }

    /// Has records written down. As [`Self::answer`].
    pub(crate) fn ssh_agent(&self, records: Vec<Record>) -> Result<()> {
        self.say(&Request::SshAgent { records }).map_err(|error| lost(&error))
    }

    /// Asks with a descriptor.
    pub(crate) fn ask_with(&self, request: &Request, descriptor: impl AsFd) -> Result<Reply> {
        let sent = self.send(request, &[descriptor.as_fd()]);
        match sent.and_then(|()| self.hear()).map_err(|error| lost(&error))? {
            Some((Reply::Refused { why, .. }, _)) => Err(Error::Lost { why }),
            Some((reply, _)) => Ok(reply),
            None => Err(Error::Lost { why: "the sandbox ended".into() }),
        }
    }

    /// Makes this connection a session. Waits until the guest is ready, as long as `is_alive` says so of the shim, which is asked
    /// each time that `patience` has ended.
    pub fn hold(&self, network: Attention, patience: Duration, is_alive: impl Fn() -> bool) -> Result<Hold> {
        self.set_timeout(Some(patience))?;
        self.say(&Request::Hold { network }).map_err(|error| lost(&error))?;
        let answer = loop {
            match self.hear() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !is_alive() {
                        return Ok(Hold::Silent);
                    }
                }
                other => break other.map_err(|error| lost(&error))?,
            }
        };
        self.set_timeout(None)?;
        match answer {
            Some((Reply::Held, _)) => Ok(Hold::Held),
            Some((Reply::Refused { why, stopping: false }, _)) => Ok(Hold::Failed(why)),
            Some((Reply::Refused { .. }, _)) | None => Ok(Hold::Ending),
            Some((other, _)) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
        }
    }

    /// A byte stream to a port of the guest.
    pub fn open_port(&self, port: u32) -> Result<OwnedFd> {
        match self.ask(&Request::Open { port })? {
            (Reply::Opened, descriptors) => descriptors
                .into_iter()
                .next()
                .ok_or_else(|| Error::Lost { why: "an answer came without its connection".into() }),
            (other, _) => Err(Error::Lost { why: format!("an answer did not fit: {other:?}") }),
        }
    }

    /// From here on an answer is waited for no longer than this.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        self.set_timeout(Some(patience))
    }

    fn set_timeout(&self, patience: Option<Duration>) -> Result<()> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        for which in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&self.socket, which, patience)
                .map_err(|error| Error::host("cannot reach the sandbox", error))?;
        }
        Ok(())
    }

    /// Waits until the shim has closed the connection, which it does by ending. Gives what [`Reply::Ended`]
    /// has, if it said that.
    pub fn wait_for_end(&self) -> Option<(bool, String)> {
        let mut end = None;
        while let Ok(Some((reply, _))) = packet::receive::<Reply>(&self.socket) {
            if let Reply::Ended { failed, reason } = reply {
                end = Some((failed, reason));
            }
        }
        end
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn lost(error: &io::Error) -> Error {
    Error::Lost { why: crate::error::in_words(error) }
}

/// Binds and listens in `folder`. The caller holds the folder's lock, so a socket that is there belongs to nobody.
pub(crate) fn listen(folder: &Path) -> io::Result<OwnedFd> {
    match std::fs::remove_file(folder.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    crate::sys::packet_listen(folder, SOCKET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_a_very_long_path_has_a_socket_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("x".repeat(200)).join("y".repeat(200));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(Connection::open(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listen(&folder).unwrap());
        assert_eq!(Connection::open(&folder).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

        // What a killed shim left is replaced.
        let listener = listen(&folder).unwrap();
        let client = Connection::open(&folder).unwrap();
        let server = crate::sys::accept(&listener).unwrap();
        let flags = rustix::fs::fcntl_getfl(&server).unwrap();
        assert!(flags.contains(rustix::fs::OFlags::NONBLOCK), "a client that says nothing holds nobody up");
        rustix::fs::fcntl_setfl(&server, rustix::fs::OFlags::empty()).unwrap();
        let serve = std::thread::spawn(move || {
            let (request, _) = packet::receive::<Request>(&server).unwrap().unwrap();
            assert!(matches!(request, Request::Stop { urgent: true }));
            packet::send(&server, &Reply::Stopping, &[]).unwrap();
            packet::send(&server, &Reply::Ended { failed: true, reason: "cut off".into() }, &[]).unwrap();
        });
        assert_eq!(client.ask(&Request::Stop { urgent: true }).unwrap().0, Reply::Stopping);
        serve.join().unwrap();
        assert_eq!(client.wait_for_end(), Some((true, "cut off".into())));
    }

    #[test]
    fn the_words_of_an_older_client_are_understood() {
        let heard = |text| serde_json::from_str::<Request>(text).unwrap();
        assert!(matches!(heard(r#"{"ask":"stop"}"#), Request::Stop { urgent: false }));
        let Request::Hold { network } = heard(r#"{"ask":"hold"}"#) else { panic!() };
        assert_eq!(network, Attention::default());
        // And an older shim understands what is said now.
        #[derive(Debug, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "snake_case", tag = "ask")]
        enum Older {
            Stop,
            Hold,
        }
        let network = Attention { hints: true, ..Attention::default() };
        let said = serde_json::to_string(&Request::Hold { network }).unwrap();
        assert_eq!(serde_json::from_str::<Older>(&said).unwrap(), Older::Hold);
        let said = serde_json::to_string(&Request::Stop { urgent: true }).unwrap();
        assert_eq!(serde_json::from_str::<Older>(&said).unwrap(), Older::Stop);
    }
}
