//! The messages. Fields are only ever added, with new numbers; what is absent reads as zero or empty and must mean "as before".

use prost::{Enumeration, Message, Oneof};

/// The generation that this code speaks. It rises when a side must know what the other understands.
pub const GENERATION: u32 = 1;
/// The oldest generation that this code still speaks.
pub const OLDEST_GENERATION: u32 = 1;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Purpose {
    /// Not said: refused.
    Unknown = 0,
    /// Requests, replies and events. Any number of control connections may be open.
    Control = 1,
    /// One process.
    Session = 2,
}

/// First frame of the host. It may send what follows without waiting for the answer.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// The highest generation that the host speaks.
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    /// The lowest that it accepts.
    #[prost(uint32, tag = "2")]
    pub oldest: u32,
    /// What the connection is for.
    #[prost(enumeration = "Purpose", tag = "3")]
    pub purpose: i32,
}

/// The agent's answer.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    /// The generation in use: the lower of the two.
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    /// The agent's version, for people.
    #[prost(string, tag = "2")]
    pub agent_version: String,
}

/// The agent will not go on.
#[derive(Clone, PartialEq, Message)]
pub struct Refused {
    /// Why, for people.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// The highest generation that the agent speaks.
    #[prost(uint32, tag = "2")]
    pub generation: u32,
}

/// A request on a control connection. They are carried out in order.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// Comes back in the reply.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What to do. Absent when this agent does not know it: answered with a failure.
    #[prost(oneof = "Operation", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub operation: Option<Operation>,
}

/// What a request asks for.
#[derive(Clone, PartialEq, Oneof)]
pub enum Operation {
    /// All that a sandbox is told once after boot. Replied to when it is done.
    #[prost(message, tag = "2")]
    Setup(Setup),
    /// Set the wall clock.
    #[prost(message, tag = "3")]
    SetClock(SetClock),
    /// Bind more shares to their paths.
    #[prost(message, tag = "4")]
    Mount(Mount),
    /// Mix entropy into the pool and credit it.
    #[prost(message, tag = "5")]
    Seed(Seed),
    /// Say the status.
    #[prost(message, tag = "6")]
    GetStatus(Empty),
    /// Say the metrics.
    #[prost(message, tag = "7")]
    GetMetrics(Empty),
    /// Stop containers and sessions, sync, power off. Replied to when it begins; then the connection ends.
    #[prost(message, tag = "8")]
    Shutdown(Shutdown),
    /// From the reply on, send the lines of the agent's and dockerd's logs over this connection, those that are still kept first.
    #[prost(message, tag = "9")]
    FollowLogs(Empty),
    /// Trust these certificates instead of those that were sent before.
    #[prost(message, tag = "10")]
    SetTrust(Trust),
    /// Give the sessions that begin from now on these variables instead of those that were sent before.
    #[prost(message, tag = "11")]
    SetEnvironment(Environment),
}

/// Nothing.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

/// What a sandbox is told once after boot.
#[derive(Clone, PartialEq, Message)]
pub struct Setup {
    /// The host name; empty leaves it.
    #[prost(string, tag = "1")]
    pub hostname: String,
    /// The wall clock.
    #[prost(message, optional, tag = "2")]
    pub clock: Option<SetClock>,
    /// Entropy for the pool, 32 bytes or more.
    #[prost(bytes = "vec", tag = "3")]
    pub entropy: Vec<u8>,
    /// The shares, parents before children.
    #[prost(message, repeated, tag = "4")]
    pub shares: Vec<Share>,
    /// The time zone as in `/usr/share/zoneinfo`; empty leaves it.
    #[prost(string, tag = "5")]
    pub timezone: String,
    /// What the guest trusts besides its own roots; absent leaves what it trusts.
    #[prost(message, optional, tag = "6")]
    pub trust: Option<Trust>,
    /// What sessions find in their environment; absent leaves it, which is nothing after a boot.
    #[prost(message, optional, tag = "7")]
    pub environment: Option<Environment>,
}

/// Certificates that the guest trusts besides its own roots. They replace those that were sent before; none takes those away.
#[derive(Clone, PartialEq, Message)]
pub struct Trust {
    /// X.509 certificates in DER, one each. Too many or too large: refused, see [`Trust::check`].
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub certificates: Vec<Vec<u8>>,
}

impl Trust {
    /// The most certificates.
    pub const MAX: usize = 64;
    /// The most bytes of one certificate.
    pub const MAX_LEN: usize = 16 * 1024;
    /// The most bytes of all together.
    pub const MAX_TOTAL: usize = 128 * 1024;

    /// Whether it is within its bounds; what is wrong in words if not. Nothing is said of what the bytes are.
    ///
    /// # Errors
    /// The first bound that is exceeded.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.certificates.len() > Self::MAX {
            return Err("too many certificates");
        }
        let sizes = || self.certificates.iter().map(Vec::len);
        if sizes().any(|len| len > Self::MAX_LEN) || sizes().sum::<usize>() > Self::MAX_TOTAL {
            return Err("the certificates are too large");
        }
        Ok(())
    }
}

/// Variables of sessions, below what [`Exec::env`] says. They replace those that were sent before.
#[derive(Clone, PartialEq, Message)]
pub struct Environment {
    /// `NAME=VALUE`, the name of printable ASCII without spaces, not beginning with a digit: programs have names that no shell has, such as npm's
    /// `npm_config_//registry.example/:_authToken`.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub variables: Vec<Vec<u8>>,
}

impl Environment {
    /// The most variables.
    pub const MAX: usize = 256;
    /// The most bytes of all together.
    pub const MAX_TOTAL: usize = 64 * 1024;

    /// The names and values, or what is wrong in words.
    ///
    /// # Errors
    /// The first variable that is none, or a bound that is exceeded.
    pub fn pairs(&self) -> Result<Vec<(&str, &[u8])>, &'static str> {
        if self.variables.len() > Self::MAX {
            return Err("too many variables");
        }
        if self.variables.iter().map(Vec::len).sum::<usize>() > Self::MAX_TOTAL {
            return Err("the variables are too large");
        }
        self.variables.iter().map(|one| variable(one)).collect()
    }
}

fn variable(one: &[u8]) -> Result<(&str, &[u8]), &'static str> {
    let at = one.iter().position(|b| *b == b'=').ok_or("a variable without a value")?;
    let (name, value) = one.split_at(at);
    let value = value.get(1..).unwrap_or_default();
    let name = std::str::from_utf8(name).map_err(|_| "a variable's name is none")?;
    let plain = name.bytes().all(|b| b.is_ascii_graphic());
    if name.is_empty() || !plain || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a variable's name is none");
    }
    if value.contains(&0) {
        return Err("a variable's value holds a NUL");
    }
    Ok((name, value))
}

/// The wall clock.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct SetClock {
    /// Seconds since 1970.
    #[prost(uint64, tag = "1")]
    pub seconds: u64,
    /// And nanoseconds.
    #[prost(uint32, tag = "2")]
    pub nanos: u32,
}

/// More shares.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// The shares, parents before children.
    #[prost(message, repeated, tag = "1")]
    pub shares: Vec<Share>,
}

/// A folder or file of the host.
#[derive(Clone, PartialEq, Message)]
pub struct Share {
    /// Its name under the root of the virtio-fs device: one component.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The absolute path that it appears at.
    #[prost(bytes = "vec", tag = "2")]
    pub path: Vec<u8>,
    /// Mounted read-only too (the host enforces it in any case).
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// Entropy.
#[derive(Clone, PartialEq, Message)]
pub struct Seed {
    /// The bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub bytes: Vec<u8>,
}

/// Power off.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Shutdown {
    /// How long containers and sessions may take to end, in milliseconds, before they are killed.
    #[prost(uint32, tag = "1")]
    pub timeout_ms: u32,
    /// Reset the machine instead of switching it off.
    #[prost(bool, tag = "2")]
    pub reboot: bool,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// The request's id.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// What came of it.
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5")]
    pub outcome: Option<Outcome>,
}

/// What came of a request.
#[derive(Clone, PartialEq, Oneof)]
pub enum Outcome {
    /// It is done.
    #[prost(message, tag = "2")]
    Done(Empty),
    /// It could not be done.
    #[prost(message, tag = "3")]
    Failure(Failure),
    /// The status asked for.
    #[prost(message, tag = "4")]
    Status(Status),
    /// The metrics asked for.
    #[prost(message, tag = "5")]
    Metrics(Metrics),
}

/// Why a request could not be carried out.
#[derive(Clone, PartialEq, Message)]
pub struct Failure {
    /// For people.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// Something that the host did not ask for.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// What. Absent when this host does not know it: skipped.
    #[prost(oneof = "Happening", tags = "1, 2")]
    pub happening: Option<Happening>,
}

/// What an event tells.
#[derive(Clone, PartialEq, Oneof)]
pub enum Happening {
    /// The status changed. Also sent first on every control connection.
    #[prost(message, tag = "1")]
    Status(Status),
    /// A line of a log, where that was asked for with [`Operation::FollowLogs`].
    #[prost(message, tag = "2")]
    Log(LogLine),
}

/// Whose log a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum LogSource {
    /// Not said.
    Unknown = 0,
    /// The agent's own.
    Agent = 1,
    /// dockerd's.
    Dockerd = 2,
}

/// A line of a log.
#[derive(Clone, PartialEq, Message)]
pub struct LogLine {
    /// Whose it is.
    #[prost(enumeration = "LogSource", tag = "1")]
    pub source: i32,
    /// The line without its end.
    #[prost(bytes = "vec", tag = "2")]
    pub text: Vec<u8>,
    /// How many lines before this one were not kept long enough to be sent.
    #[prost(uint64, tag = "3")]
    pub lost: u64,
}

/// How far the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Phase {
    /// Not said.
    Unknown = 0,
    /// Getting its root file system together.
    Booting = 1,
    /// Sessions can be opened.
    Ready = 2,
    /// Going down.
    Stopping = 3,
    /// It cannot come up; the message says why.
    Failed = 4,
}

/// How Docker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Docker {
    /// Not said.
    Unknown = 0,
    /// There is none in this image.
    Absent = 1,
    /// On its way; its socket waits.
    Starting = 2,
    /// It answers.
    Ready = 3,
    /// It died and is tried again after a pause.
    Failing = 4,
}

/// The state of the guest.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// How far it is.
    #[prost(enumeration = "Phase", tag = "1")]
    pub phase: i32,
    /// For people: what it does now, or why it failed.
    #[prost(string, tag = "2")]
    pub message: String,
    /// How Docker is.
    #[prost(enumeration = "Docker", tag = "3")]
    pub docker: i32,
    /// Open sessions.
    #[prost(uint32, tag = "4")]
    pub sessions: u32,
    /// Microseconds from the kernel's start until sessions could be opened; 0 before.
    #[prost(uint64, tag = "5")]
    pub ready_micros: u64,
    /// The kernel's release, as `uname -r` says it.
    #[prost(string, tag = "6")]
    pub kernel: String,
    /// Whether this boot made the disk's file system: the sandbox's first.
    #[prost(bool, tag = "7")]
    pub first_boot: bool,
    /// How the base image is mounted: `pmem` or `blk`.
    #[prost(string, tag = "8")]
    pub base: String,
    /// Whether a setup has been carried out since boot.
    #[prost(bool, tag = "9")]
    pub set_up: bool,
    /// Whether there is a network card, and its link is up.
    #[prost(bool, tag = "10")]
    pub network: bool,
}

/// What the guest uses. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Metrics {
    /// Time since the kernel started, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub uptime_ms: u64,
    /// CPU time used by everything in the guest, in milliseconds, over all CPUs.
    #[prost(uint64, tag = "2")]
    pub cpu_ms: u64,
    /// Online CPUs.
    #[prost(uint32, tag = "3")]
    pub cpus: u32,
    /// Memory that the kernel manages.
    #[prost(uint64, tag = "4")]
    pub memory_total: u64,
    /// Memory that could be had for new work.
    #[prost(uint64, tag = "5")]
    pub memory_available: u64,
    /// Size of the disk's file system.
    #[prost(uint64, tag = "6")]
    pub disk_total: u64,
    /// Used of it.
    #[prost(uint64, tag = "7")]
    pub disk_used: u64,
    /// Processes.
    #[prost(uint32, tag = "8")]
    pub processes: u32,
    /// Load average over one minute, in thousandths.
    #[prost(uint32, tag = "9")]
    pub load_milli: u32,
}

/// A process to start.
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    /// The session's name, unique among those that are open; empty lets the agent choose one.
    #[prost(string, tag = "1")]
    pub session_id: String,
    /// The program and its arguments. A program without a slash is looked for in the session's `PATH`. Empty: the user's login shell.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`, over the agent's defaults (HOME, USER, LOGNAME, SHELL, PATH, LANG, and TERM with a pty). `NAME` alone removes a default.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub env: Vec<Vec<u8>>,
    /// The working directory; empty for the user's home.
    #[prost(bytes = "vec", tag = "4")]
    pub cwd: Vec<u8>,
    /// `NAME`, `UID`, and either with `:GROUP` or `:GID`; empty for the user `agent`.
    #[prost(string, tag = "5")]
    pub user: String,
    /// A terminal, if it is to have one.
    #[prost(message, optional, tag = "6")]
    pub pty: Option<Pty>,
    /// Whether input will come. Without it the process reads `/dev/null` (or the terminal).
    #[prost(bool, tag = "7")]
    pub stdin: bool,
}

/// A terminal.
#[derive(Clone, PartialEq, Message)]
pub struct Pty {
    /// Its size.
    #[prost(message, optional, tag = "1")]
    pub size: Option<WindowSize>,
    /// The value of `TERM`; empty for `xterm-256color`.
    #[prost(string, tag = "2")]
    pub term: String,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct WindowSize {
    /// Lines.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Columns.
    #[prost(uint32, tag = "2")]
    pub cols: u32,
}

/// A signal for the session's process group (with a pty: for the terminal's foreground group).
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Signal {
    /// Linux x86's number.
    #[prost(uint32, tag = "1")]
    pub number: u32,
}

/// The process runs.
#[derive(Clone, PartialEq, Message)]
pub struct Opened {
    /// The session's name.
    #[prost(string, tag = "1")]
    pub session_id: String,
    /// Its process id in the guest.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// Why a process was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum Cause {
    /// Not said.
    Unknown = 0,
    /// There is no such program.
    NotFound = 1,
    /// It is not executable.
    NotExecutable = 2,
    /// There is no such user or group.
    NoSuchUser = 3,
    /// The working directory is missing or closed to the user.
    NoDirectory = 4,
    /// The guest is not ready yet, or going down.
    NotReady = 5,
    /// The request itself is wrong.
    Invalid = 6,
    /// The guest has not enough of something.
    Resources = 7,
}

/// The process was not started.
#[derive(Clone, PartialEq, Message)]
pub struct NotStarted {
    /// Why.
    #[prost(enumeration = "Cause", tag = "1")]
    pub cause: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Metrics {
    /// Memory that is in use, in bytes.
    pub fn memory_used(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_available)
    }
}

impl NotStarted {
    /// The exit code that a shell gives for this: 127, 126, or 125 for what is not the program's fault.
    pub fn shell_code(&self) -> i32 {
        match self.cause() {
            Cause::NotFound => 127,
            Cause::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// The process ended and all its output has been sent.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Exit {
    /// How.
    #[prost(oneof = "Ending", tags = "1, 2")]
    pub ending: Option<Ending>,
    /// Whether the kernel killed a process of the session for want of memory.
    #[prost(bool, tag = "3")]
    pub out_of_memory: bool,
}

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Oneof)]
pub enum Ending {
    /// By itself, with this code.
    #[prost(int32, tag = "1")]
    Code(i32),
    /// By this signal.
    #[prost(int32, tag = "2")]
    Signal(i32),
}

impl Exit {
    /// The exit code as a shell has it: the code, or 128 and the signal.
    pub fn shell_code(&self) -> i32 {
        match self.ending {
            Some(Ending::Code(code)) => code & 0xff,
            Some(Ending::Signal(signal)) => 128 + (signal & 0x7f),
            None => 125,
        }
    }
}
