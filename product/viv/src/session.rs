//! One process in the guest, with this process's input, output, terminal and signals as its own.
//!
//! The main thread hears: output, and the end. A second one speaks: input, window sizes, signals. Bytes go straight between
//! this process and the vmm.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agent_proto::client::{Session, SessionEvent, SessionReader, SessionWriter};
use agent_proto::messages::{Cause, Exec, NotStarted, Pty, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGTERM, SIGWINCH};

use crate::failure::{Failure, OURS};
use crate::notices;
use crate::terminal::{self, Raw, Signals};

/// Bytes read from the standard input at once.
const PIECE: usize = 64 << 10;

/// The exit code of a process that writes into a closed pipe, as a shell has it.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// What to run.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The program and its arguments.
    pub(crate) argv: Vec<Vec<u8>>,
    /// `NAME=VALUE`.
    pub(crate) env: Vec<Vec<u8>>,
    /// The folder to run in.
    pub(crate) cwd: Vec<u8>,
    /// The user; empty for `agent`.
    pub(crate) user: String,
    /// Whether it gets a terminal.
    pub(crate) tty: bool,
    /// Whether the standard input is passed on.
    pub(crate) input: bool,
}

/// Set when a session has taken over the signals.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// From here on the signals are somebody's, and set-up has nothing more to say.
pub(crate) fn take_signals() {
    BEGUN.store(true, Ordering::SeqCst);
}

/// Whether a session handles the signals of this process.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::SeqCst)
}

/// Runs it and returns its exit code as a shell has it.
pub(crate) fn run(stream: UnixStream, wanted: Wanted) -> Result<u8, Failure> {
    let exec = exec_message(&wanted);
    let back = stream
        .try_clone()
        .map_err(|error| Failure::new(format!("the connection cannot be used: {error}")))?;
    let (reader, writer) = match Session::open(back, stream, &exec)? {
        Session::Running { reader, writer, .. } => (reader, writer),
        Session::NotStarted(refusal) => return Err(refused(&refusal, &exec)),
    };
    // Not before: until the guest has answered, which it may never do, a signal ends this process.
    let signals =
        Signals::catch().map_err(|error| Failure::new(format!("signals cannot be handled: {error}")))?;
    take_signals();
    let raw = if wanted.tty && wanted.input {
        let raw =
            Raw::enter().map_err(|error| Failure::new(format!("the terminal cannot be used: {error}")))?;
        Some(Arc::new(raw))
    } else {
        None
    };
    let input = Input { open: wanted.input, pause: SHORTEST_PAUSE };
    let speaker = Speaker { writer, signals, raw: raw.clone(), tty: wanted.tty, input };
    let spoken = std::thread::Builder::new().name("input".into()).spawn(move || speaker.work());
    if let Err(error) = spoken {
        return Err(Failure::new(format!("a thread cannot be started: {error}")));
    }
    let code = hear(reader);
    if let Some(raw) = raw {
        // The other thread may hold the last reference while it waits for a key, so dropping is not enough.
        raw.leave();
    }
    code
}

/// Why the guest did not start what was wanted, and what would be started. The words of a cause are the guest's.
pub(crate) fn refused(refusal: &NotStarted, exec: &Exec) -> Failure {
    let program = exec.argv.first().map_or("the shell".into(), |word| String::from_utf8_lossy(word));
    let folder = String::from_utf8_lossy(&exec.cwd);
    let why = |what: &str| {
        let why = refusal.message.strip_prefix(what).and_then(|rest| rest.strip_prefix(": "));
        why.map_or_else(String::new, |why| format!(": {}", begin_small(why)))
    };
    let (message, hint) = match refusal.cause() {
        Cause::NotFound if program.contains(char::is_whitespace) => (
            format!("there is no program called \"{program}\" in the sandbox"),
            format!(
                "the command and its arguments are words of their own, without quotes around them all:  viv exec NAME {program}"
            ),
        ),
        Cause::NotFound if program.contains('/') => (
            format!("there is no program {program} in the sandbox"),
            format!(
                "viv exec NAME ls -l {program} looks; if it is there, its first line names an interpreter that is not"
            ),
        ),
        Cause::NotFound => (
            format!("there is no program called \"{program}\" in the sandbox"),
            "the host's programs are not in it; one outside of the sandbox's PATH goes by its path".into(),
        ),
        Cause::NotExecutable => (
            format!("{program} cannot be executed{}", why(&program)),
            format!(
                "chmod +x makes a file a program; a script is run without by  viv exec NAME sh {program}"
            ),
        ),
        Cause::NoDirectory => (
            format!(
                "the folder {folder} cannot be entered in the sandbox{}",
                why(&format!("Cannot enter {folder}"))
            ),
            "-w FOLDER names another, from the workspace on if it is relative; -u root may enter any".into(),
        ),
        Cause::NoSuchUser => (
            format!("{} in the sandbox", begin_small(&refusal.message)),
            "its /etc/passwd and /etc/group have the names; a number (-u UID:GID) needs none".into(),
        ),
        Cause::NotReady => (begin_small(&refusal.message), "the same command again starts it".into()),
        _ => (
            format!("nothing was started in the sandbox: {}", begin_small(&refusal.message)),
            "viv logs NAME may say more".into(),
        ),
    };
    Failure::new(message).hint(hint).code(u8::try_from(refusal.shell_code()).unwrap_or(OURS))
}

/// A sentence of the guest's as a part of one.
fn begin_small(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

fn exec_message(wanted: &Wanted) -> Exec {
    let pty = wanted.tty.then(|| {
        let (rows, cols) = terminal::size();
        Pty {
            size: Some(WindowSize { rows: rows.into(), cols: cols.into() }),
            term: std::env::var("TERM").unwrap_or_default(),
        }
    });
    Exec {
        argv: wanted.argv.clone(),
        env: wanted.env.clone(),
        cwd: wanted.cwd.clone(),
        user: wanted.user.clone(),
        pty,
        stdin: wanted.input,
        ..Exec::default()
    }
}

fn hear(mut reader: SessionReader<UnixStream>) -> Result<u8, Failure> {
    loop {
        let written = match reader.next_event()? {
            SessionEvent::Stdout { data, .. } => write_all(io::stdout().as_fd(), data),
            SessionEvent::Stderr { data, .. } => write_all(io::stderr().as_fd(), data),
            SessionEvent::StdinClosed => Ok(()),
            SessionEvent::Exit(exit) => {
                if exit.out_of_memory {
                    eprintln!("viv: the sandbox ran out of memory   more: --memory on a new sandbox");
                }
                return Ok(u8::try_from(exit.shell_code()).unwrap_or(OURS));
            }
        };
        match written {
            Ok(()) => {}
            // Nobody reads on: the guest's process is hung up on when the connection closes.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(BROKEN_PIPE),
            Err(error) => return Err(Failure::new(format!("the output cannot be written: {error}"))),
        }
    }
}

/// Writes everything, also to a descriptor that somebody made non-blocking.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How long input waits at first for room with the guest's process before that is asked again, and at last.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The standard input, as far as the guest's process wants it.
struct Input {
    /// Neither at its end nor refused.
    open: bool,
    pause: Duration,
}

impl Input {
    /// How many bytes may be read now, and how long to wait at most for anything else; without room, input waits and is looked
    /// at again soon. Once the process has closed its end there is nothing to look for ever again.
    fn room<W: io::Write>(&mut self, writer: &SessionWriter<W>) -> (usize, Option<Duration>) {
        self.open &= writer.wants_stdin();
        let room = if self.open { writer.stdin_room().min(PIECE) } else { 0 };
        if room > 0 || !self.open {
            self.pause = SHORTEST_PAUSE;
            return (room, None);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        (0, Some(pause))
    }
}

/// The half that speaks.
struct Speaker {
    writer: SessionWriter<UnixStream>,
    signals: Signals,
    raw: Option<Arc<Raw>>,
    tty: bool,
    input: Input,
}

impl Speaker {
    fn work(mut self) {
        let mut piece = vec![0u8; PIECE];
        loop {
            // Signals never wait for room.
            let (room, timeout) = self.input.room(&self.writer);
            let (input, signal) = self.wait(room > 0, timeout);
            if signal && self.hear_signals().is_err() {
                return;
            }
            if input && self.pass_input(&mut piece, room).is_err() {
                return;
            }
        }
    }

    fn wait(&self, with_input: bool, timeout: Option<Duration>) -> (bool, bool) {
        let stdin = io::stdin();
        let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if with_input {
            polled.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let timeout = timeout.map(|time| Timespec { tv_sec: 0, tv_nsec: time.subsec_nanos().into() });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {
                let ready = |index: usize| polled.get(index).is_some_and(|one| !one.revents().is_empty());
                (ready(1), ready(0))
            }
            Err(_) => (false, true),
        }
    }

    fn pass_input(&mut self, piece: &mut [u8], room: usize) -> Result<(), agent_proto::ProtoError> {
        let Some(piece) = piece.get_mut(..room) else { return Ok(()) };
        match rustix::io::read(io::stdin(), &mut *piece) {
            Ok(0) => {
                self.input.open = false;
                self.writer.stdin_end()
            }
            Ok(count) => {
                let rest = notices::for_the_guest(piece.get(..count).unwrap_or_default());
                if !rest.is_empty() {
                    self.input.open = self.writer.stdin(&rest)?;
                }
                Ok(())
            }
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => Ok(()),
            // The terminal is gone, or the input cannot be read: for the process it is the end.
            Err(_) => {
                self.input.open = false;
                self.writer.stdin_end()
            }
        }
    }

    fn hear_signals(&mut self) -> Result<(), agent_proto::ProtoError> {
        for signal in self.signals.pending() {
            match signal {
                SIGWINCH | SIGCONT => {
                    if signal == SIGCONT
                        && let Some(raw) = &self.raw
                    {
                        let _ = raw.again();
                    }
                    if self.tty {
                        let (rows, cols) = terminal::size();
                        self.writer.resize(rows, cols)?;
                    }
                }
                // With a terminal the keys go through it; a signal is meant for this process, as with ssh.
                SIGHUP | SIGTERM if self.tty => {
                    if let Some(raw) = &self.raw {
                        raw.leave();
                    }
                    std::process::exit(128 + signal);
                }
                other => {
                    self.writer.signal(u32::try_from(other).unwrap_or(0))?;
                    // Whoever started this process is gone. The guest's process is hung up on with it.
                    if other == SIGHUP {
                        std::process::exit(128 + other);
                    }
                }
            }
        }
        self.signals.passed_on();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    use agent_proto::client::STDIN_WINDOW;
    use agent_proto::frame::{self, kind};
    use agent_proto::messages::{GENERATION, Opened, Welcome};

    #[test]
    fn signals_are_left_alone_until_the_guest_has_answered() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let wanted = Wanted {
            argv: vec![b"true".to_vec()],
            env: Vec::new(),
            cwd: b"/".to_vec(),
            user: String::new(),
            tty: false,
            input: false,
        };
        let session = std::thread::spawn(move || run(near, wanted));
        // It has said what it wants and waits for the guest.
        far.read_exact(&mut [0u8; 8]).unwrap();
        assert!(!has_begun());
        drop(far);
        assert!(session.join().unwrap().is_err());
        assert!(!has_begun());
    }

    #[test]
    fn what_was_not_started_has_a_cause_and_a_next_step() {
        let said = |cause: Cause, message: &str, program: &str| {
            let refusal = NotStarted { cause: cause.into(), message: message.into() };
            let exec = Exec { argv: vec![program.into()], cwd: b"/nope".to_vec(), ..Exec::default() };
            let failure = refused(&refusal, &exec);
            (failure.code, failure.text())
        };
        for (cause, message, program, code, sentence, hint) in [
            (
                Cause::NotFound,
                "x: command not found",
                "docker ps",
                127,
                "called \"docker ps\"",
                "viv exec NAME docker ps",
            ),
            (Cause::NotFound, "x: command not found", "nosuch", 127, "called \"nosuch\"", "PATH"),
            (Cause::NotFound, "x: command not found", "./x", 127, "no program ./x", "interpreter"),
            (
                Cause::NotExecutable,
                "/etc/passwd: Permission denied",
                "/etc/passwd",
                126,
                "/etc/passwd cannot be executed: permission denied",
                "chmod +x",
            ),
            (
                Cause::NoDirectory,
                "Cannot enter /nope: No such file or directory",
                "ls",
                125,
                "the folder /nope cannot be entered in the sandbox: no such file or directory",
                "-w FOLDER",
            ),
            (
                Cause::NoSuchUser,
                "There is no group \"b\"",
                "ls",
                125,
                "error: there is no group \"b\" in",
                "/etc/group",
            ),
            (Cause::Resources, "Out of memory", "ls", 125, "sandbox: out of memory", "viv logs"),
            // A guest says what it likes.
            (Cause::NotExecutable, "", "ls", 126, "ls cannot be executed\n", "chmod"),
        ] {
            let (is, text) = said(cause, message, program);
            let (first, second) = text.split_once("  hint: ").unwrap();
            assert!(is == code && first.contains(sentence) && second.contains(hint), "{is} {text}");
        }
    }

    /// A session with a guest that says it runs, then these frames.
    fn session(said: &[u8]) -> (SessionReader<io::Cursor<Vec<u8>>>, SessionWriter<Vec<u8>>) {
        let mut guest = Vec::new();
        let welcome = Welcome { generation: GENERATION, ..Welcome::default() };
        frame::write_message(&mut guest, kind::WELCOME, &welcome).unwrap();
        frame::write_message(&mut guest, kind::OPENED, &Opened::default()).unwrap();
        guest.extend_from_slice(said);
        match Session::open(io::Cursor::new(guest), Vec::new(), &Exec::default()).unwrap() {
            Session::Running { reader, writer, .. } => (reader, writer),
            Session::NotStarted(_) => panic!("it runs"),
        }
    }

    #[test]
    fn input_that_the_process_wants_no_more_is_not_waited_for() {
        let mut closed = Vec::new();
        frame::write(&mut closed, kind::STDIN_CLOSED, &[]).unwrap();
        let (mut reader, mut writer) = session(&closed);
        let mut input = Input { open: true, pause: SHORTEST_PAUSE };
        assert_eq!(input.room(&writer), (PIECE, None));
        writer.stdin(&vec![0; usize::try_from(STDIN_WINDOW).unwrap()]).unwrap();
        let pauses: Vec<_> = (0..8).map(|_| input.room(&writer).1.unwrap()).collect();
        assert!(
            pauses.is_sorted() && pauses[0] == SHORTEST_PAUSE && pauses[7] == LONGEST_PAUSE,
            "{pauses:?}"
        );
        assert!(matches!(reader.next_event().unwrap(), SessionEvent::StdinClosed));
        assert_eq!(input.room(&writer), (0, None), "no more of these wake-ups");
        assert_eq!(input.room(&writer), (0, None));
    }
}
