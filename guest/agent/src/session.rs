//! Sessions: one process each, from the request to its exit.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_proto::ProtoError;
use agent_proto::frame::{self, FrameReader, SKIPPABLE, kind};
use agent_proto::messages::{
    Cause, Ending, Environment, Exec, Exit, NotStarted, Opened, Phase, Pty, Signal, WindowSize,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcgetpgrp, tcsetattr, tcsetwinsize};

use crate::cgroup::Group;
use crate::console::log;
use crate::fail::{Failure, Outcome, without_number};
use crate::pump::{Ends, Finish, Input, Pump};
use crate::reaper::{Child, Reaper};
use crate::spawn::{Ids, Preparation, Step, prepare, what_failed};
use crate::status::Board;
use crate::sys::Ended;
use crate::trust;
use crate::users::{Accounts, User};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The group `tty` on Debian; it owns every terminal, so that `write` and `wall` work.
const TTY_GROUP: u32 = 5;
/// How long the host may take to close its side after the exit.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// The sessions that are open.
#[derive(Debug)]
pub(crate) struct Sessions {
    reaper: Arc<Reaper>,
    board: Arc<Board>,
    open: Mutex<Table>,
    /// Whether there are control groups to put sessions into.
    groups: bool,
    /// What the host wants in every environment.
    variables: Mutex<Variables>,
}

type Variables = Vec<(String, Vec<u8>)>;

#[derive(Debug, Default)]
struct Table {
    last: u64,
    running: HashMap<u64, (String, Arc<Child>)>,
}

/// A process and what belongs to it.
struct Running {
    child: Arc<Child>,
    ends: Ends,
    /// The terminal's other side, to resize it and to find its foreground group.
    terminal: Option<OwnedFd>,
    group: Option<Group>,
}

impl Sessions {
    pub(crate) fn new(reaper: Arc<Reaper>, board: Arc<Board>, groups: bool) -> Self {
        Self { reaper, board, open: Mutex::default(), groups, variables: Mutex::default() }
    }

    /// Gives the sessions that begin from now on these variables, and no longer those of before.
    pub(crate) fn set_environment(&self, environment: &Environment) -> Outcome {
        let pairs = environment.pairs().map_err(Failure::new)?;
        let owned = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        *self.variables.lock().unwrap_or_else(PoisonError::into_inner) = owned;
        Ok(())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Signals every session's process group.
    pub(crate) fn signal_all(&self, signal: i32) {
        for (_, child) in self.table().running.values() {
            // One that is just ending needs no signal.
            let _ = child.signal_group(signal);
        }
    }

    /// Serves one session connection after its welcome, to its end.
    pub(crate) fn serve(
        &self,
        connection: &UnixStream,
        mut frames: FrameReader<UnixStream>,
    ) -> Result<(), ProtoError> {
        if frames.read_frame()?.ok_or(ProtoError::Closed)? != kind::EXEC {
            return Err(ProtoError::UnexpectedFrame(kind::EXEC));
        }
        let exec: Exec = frames.message()?;
        // From the start of the process on nothing may fail that would leave it to itself.
        let input = Input::new()?;
        let (number, running) = match self.start(&exec) {
            Ok(started) => started,
            Err(refusal) => return frame::write_message(&mut { connection }, kind::NOT_STARTED, &refusal),
        };
        let name = session_name(&exec, number);
        self.enter(number, name.clone(), &running.child);
        let pid = running.child.pid().as_raw_nonzero().get().unsigned_abs();
        let opened = Opened { session_id: name, pid };
        let result = converse(connection, frames, &input, running, &opened);
        self.leave(number);
        result
    }

    fn enter(&self, number: u64, name: String, child: &Arc<Child>) {
        let count = {
            let mut table = self.table();
            table.running.insert(number, (name, Arc::clone(child)));
            table.running.len()
        };
        self.board.change(|status| status.sessions = count as u32);
    }

    fn leave(&self, number: u64) {
        let count = {
            let mut table = self.table();
            table.running.remove(&number);
            table.running.len()
        };
        self.board.change(|status| status.sessions = count as u32);
    }

    fn start(&self, exec: &Exec) -> Result<(u64, Running), NotStarted> {
        let status = self.board.wait_booted();
        if status.phase() != Phase::Ready {
            return Err(refusal(Cause::NotReady, "The sandbox is not running"));
        }
        let number = {
            let mut table = self.table();
            if !exec.session_id.is_empty() && table.running.values().any(|(name, _)| *name == exec.session_id)
            {
                return Err(refusal(Cause::Invalid, "A session of that name is open"));
            }
            table.last += 1;
            table.last
        };
        let group = if self.groups {
            Some(Group::for_session(number).map_err(|e| refusal(Cause::Resources, e.to_string()))?)
        } else {
            None
        };
        let variables = self.variables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        launch(exec, &Accounts::read(), &self.reaper, group, &variables).map(|running| (number, running))
    }
}

/// Both directions of a running session, from word of its start on.
fn converse(
    connection: &UnixStream,
    frames: FrameReader<UnixStream>,
    input: &Input,
    running: Running,
    opened: &Opened,
) -> Result<(), ProtoError> {
    let Running { child, ends, terminal, group } = running;
    let pump = Pump::new(&child, input, connection, ends);
    frame::write_message(&mut { connection }, kind::OPENED, opened)?;
    let (reading, read) = mpsc::channel::<()>();
    std::thread::scope(|scope| -> Result<(), ProtoError> {
        let hear = || {
            listen(frames, input, &child, terminal.as_ref());
            input.gone();
            drop(reading);
        };
        std::thread::Builder::new().name("session-input".into()).spawn_scoped(scope, hear)?;
        match pump.run() {
            Finish::Ended(ended) => {
                let ending = match ended {
                    Ended::Code(code) => Ending::Code(code),
                    Ended::Signal(signal) => Ending::Signal(signal),
                };
                let out_of_memory = group.as_ref().is_some_and(Group::had_oom_kill);
                if out_of_memory {
                    log("out of memory: the kernel killed a process of a session");
                }
                let exit = Exit { ending: Some(ending), out_of_memory };
                // A host that left in the last moment needs no exit.
                let _ = frame::write_message(&mut { connection }, kind::EXIT, &exit);
                let _ = connection.shutdown(std::net::Shutdown::Write);
                // The host closes once it has the exit.
                let _ = read.recv_timeout(CLOSE_GRACE);
            }
            Finish::Abandoned => {}
        }
        let _ = connection.shutdown(std::net::Shutdown::Both);
        Ok(())
    })
}

fn session_name(exec: &Exec, number: u64) -> String {
    if exec.session_id.is_empty() { format!("s{number}") } else { exec.session_id.clone() }
}

/// Hears the host until it is gone or breaks the protocol.
fn listen(mut frames: FrameReader<UnixStream>, input: &Input, child: &Child, terminal: Option<&OwnedFd>) {
    let hear = |frames: &mut FrameReader<UnixStream>| -> Result<bool, ProtoError> {
        match frames.read_frame()? {
            None => return Ok(false),
            Some(kind::STDIN) => {
                let (offset, data) = frames.data()?;
                input.push(offset, data)?;
            }
            Some(kind::STDIN_END) => input.end(),
            Some(kind::RESIZE) => {
                let size: WindowSize = frames.message()?;
                if let Some(terminal) = terminal {
                    // The terminal is gone when its last user is.
                    let _ = tcsetwinsize(terminal, window(size));
                }
            }
            Some(kind::SIGNAL) => {
                let Signal { number } = frames.message()?;
                let number = i32::try_from(number).map_err(|_| ProtoError::Malformed(kind::SIGNAL))?;
                let group = terminal.and_then(|t| tcgetpgrp(t).ok()).unwrap_or(child.pid());
                // A process that has just ended needs no signal; a number that is none changes nothing.
                let _ = child.signal(group, number);
            }
            Some(SKIPPABLE..) => {}
            Some(other) => return Err(ProtoError::UnexpectedFrame(other)),
        }
        Ok(true)
    };
    while matches!(hear(&mut frames), Ok(true)) {}
}

fn refusal(cause: Cause, message: impl Into<String>) -> NotStarted {
    NotStarted { cause: cause.into(), message: message.into() }
}

/// Starts the process.
fn launch(
    exec: &Exec,
    accounts: &Accounts,
    reaper: &Arc<Reaper>,
    group: Option<Group>,
    variables: &Variables,
) -> Result<Running, NotStarted> {
    let user = accounts.find(&exec.user).map_err(|error| refusal(Cause::NoSuchUser, error.to_string()))?;
    let cwd = if exec.cwd.is_empty() { user.home.clone().into_bytes() } else { exec.cwd.clone() };
    let cwd = CString::new(cwd).map_err(|_| refusal(Cause::Invalid, "The folder's name holds a NUL"))?;
    let mut command = command_line(exec, &user)?;
    command.env_clear().envs(environment(exec, &user, variables));

    let resources = |e: io::Error| refusal(Cause::Resources, without_number(&e.to_string()));
    let (ends, terminal) = match &exec.pty {
        Some(pty) => open_terminal(pty, &user, &mut command).map_err(resources)?,
        None => (open_pipes(exec.stdin, &mut command).map_err(resources)?, None),
    };
    let entrance = group.as_ref().map(Group::entrance).transpose();
    let preparation = Preparation {
        group: entrance.map_err(|e| refusal(Cause::Resources, e.to_string()))?,
        terminal: terminal.is_some(),
        user: change_of_user(&user),
        cwd: Some(cwd.clone()),
        third: None,
        oom_score: if group.is_some() { b"0" } else { b"" },
    };
    prepare(&mut command, preparation);
    let child = reaper.spawn(&mut command).map_err(|e| explain(&e, &command, &cwd, &user))?;
    Ok(Running { child: Arc::new(child), ends, terminal, group })
}

/// What to change to become the user; nothing for an agent that is not root and stays who it is (tests).
fn change_of_user(user: &User) -> Option<Ids> {
    let own = rustix::process::geteuid();
    let stays = !own.is_root() && own.as_raw() == user.uid;
    (!stays).then(|| Ids { uid: user.uid, gid: user.gid, groups: user.groups.clone() })
}

fn explain(error: &io::Error, command: &Command, cwd: &CString, user: &User) -> NotStarted {
    let (step, error) = what_failed(error);
    let kind = error.kind();
    let error = error.to_string();
    let error = without_number(&error);
    let program = command.get_program().to_string_lossy();
    match step {
        Step::Cwd => refusal(Cause::NoDirectory, format!("Cannot enter {}: {error}", cwd.to_string_lossy())),
        Step::User => refusal(Cause::NoSuchUser, format!("Cannot become {}: {error}", user.name)),
        Step::Group | Step::Session | Step::Descriptor => refusal(Cause::Resources, error),
        Step::Exec => match kind {
            io::ErrorKind::NotFound => refusal(Cause::NotFound, format!("{program}: command not found")),
            io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => refusal(Cause::Resources, error),
            _ => refusal(Cause::NotExecutable, format!("{program}: {error}")),
        },
    }
}

/// The program with its arguments; the user's login shell when there are none.
fn command_line(exec: &Exec, user: &User) -> Result<Command, NotStarted> {
    if exec.argv.iter().chain(&exec.env).any(|word| word.contains(&0)) {
        return Err(refusal(Cause::Invalid, "An argument holds a NUL"));
    }
    let Some((program, arguments)) = exec.argv.split_first() else {
        let mut command = Command::new(&user.shell);
        let name = user.shell.rsplit('/').next().unwrap_or("sh");
        command.arg0(format!("-{name}"));
        return Ok(command);
    };
    if program.is_empty() {
        return Err(refusal(Cause::NotFound, "The command is empty"));
    }
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|a| OsStr::from_bytes(a)));
    Ok(command)
}

fn environment(exec: &Exec, user: &User, variables: &Variables) -> BTreeMap<OsString, OsString> {
    let mut all = BTreeMap::new();
    let defaults = [
        ("HOME", user.home.as_str()),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
    ];
    for (name, value) in defaults {
        all.insert(name.into(), value.into());
    }
    all.extend(trust::variables().iter().map(|(name, value)| (name.into(), value.into())));
    for (name, value) in variables {
        all.insert(name.into(), OsString::from_vec(value.clone()));
    }
    if let Some(pty) = &exec.pty {
        let term = if pty.term.is_empty() { "xterm-256color" } else { &pty.term };
        all.insert("TERM".into(), term.into());
    }
    for entry in &exec.env {
        match entry.iter().position(|b| *b == b'=') {
            // A name cannot be empty; a shell would drop it too.
            Some(0) => {}
            Some(at) => {
                let (name, value) = entry.split_at(at);
                let value = value.get(1..).unwrap_or_default();
                all.insert(OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
            }
            None => {
                all.remove(OsStr::from_bytes(entry));
            }
        }
    }
    all
}

fn open_pipes(stdin: bool, command: &mut Command) -> io::Result<Ends> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let input = if stdin {
        let (theirs, ours) = pipe()?;
        command.stdin(theirs);
        Some(ours)
    } else {
        command.stdin(Stdio::null());
        None
    };
    let (stdout, theirs) = pipe()?;
    command.stdout(theirs);
    let (stderr, theirs) = pipe()?;
    command.stderr(theirs);
    Ok(Ends { stdin: input, stdout: Some(stdout), stderr: Some(stderr), terminal: false })
}

fn open_terminal(pty: &Pty, user: &User, command: &mut Command) -> io::Result<(Ends, Option<OwnedFd>)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    if rustix::process::geteuid().is_root() {
        let owner = rustix::fs::Uid::from_raw(user.uid);
        rustix::fs::fchown(&theirs, Some(owner), Some(rustix::fs::Gid::from_raw(TTY_GROUP)))?;
        rustix::fs::fchmod(&theirs, rustix::fs::Mode::from_raw_mode(0o620))?;
    }
    let mut modes = tcgetattr(&theirs)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    tcsetwinsize(&ours, window(pty.size.unwrap_or(WindowSize { rows: 24, cols: 80 })))?;
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let ends = Ends {
        stdin: Some(ours.try_clone()?),
        stdout: Some(ours.try_clone()?),
        stderr: None,
        terminal: true,
    };
    Ok((ends, Some(ours)))
}

fn window(size: WindowSize) -> Winsize {
    let bounded = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Winsize { ws_row: bounded(size.rows), ws_col: bounded(size.cols), ws_xpixel: 0, ws_ypixel: 0 }
}
