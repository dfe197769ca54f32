//! A command in the guest whose input or output is an archive.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use agent_proto::ProtoError;
use agent_proto::client::{Session, SessionEvent, SessionReader, SessionWriter};
use agent_proto::messages::{Exec, Exit};
use indicatif::ProgressBar;
use sandbox::copy::CopyError;
use sandbox::escape::{LONGEST, escaped};

use crate::failure::Failure;

/// The most that is kept of what a command says on its standard error, in bytes.
const MOST_WORDS: usize = 16 << 10;

/// The most that is passed on of that, in lines.
const MOST_REMARKS: usize = 100;

/// How GNU tar ends when a file changed while it read it, as logs and databases do: all of it was sent as it was found.
const CHANGED: i32 = 1;

/// The most that an answer may have, in bytes.
const LONGEST_ANSWER: u64 = 1 << 10;

/// A command that runs in the guest.
pub(super) struct Guest {
    reader: SessionReader<UnixStream>,
    writer: SessionWriter<UnixStream>,
    line: UnixStream,
    moved: ProgressBar,
}

/// What a command sends on its standard output.
pub(super) struct Output {
    reader: SessionReader<UnixStream>,
    piece: Vec<u8>,
    taken: usize,
    words: Vec<u8>,
    exit: Option<Exit>,
    lost: Option<ProtoError>,
    moved: ProgressBar,
}

/// What a command reads on its standard input.
pub(super) struct Input {
    writer: SessionWriter<UnixStream>,
    moved: ProgressBar,
}

impl Guest {
    /// Starts it. `moved` counts the bytes of its input and output.
    pub(super) fn start(
        stream: UnixStream,
        argv: &[&[u8]],
        cwd: &[u8],
        user: &str,
        input: bool,
        moved: &ProgressBar,
    ) -> Result<Self, Failure> {
        let exec = Exec {
            argv: argv.iter().map(|word| word.to_vec()).collect(),
            cwd: cwd.to_vec(),
            user: user.into(),
            stdin: input,
            env: vec![b"LC_ALL=C.UTF-8".to_vec()],
            ..Exec::default()
        };
        let (back, line) = (copy_of(&stream)?, copy_of(&stream)?);
        match Session::open(back, stream, &exec)? {
            Session::Running { reader, writer, .. } => {
                Ok(Self { reader, writer, line, moved: moved.clone() })
            }
            Session::NotStarted(refusal) => Err(crate::session::refused(&refusal, &exec)),
        }
    }

    /// The connection, to end it from elsewhere.
    pub(super) fn line(&self) -> Result<UnixStream, Failure> {
        copy_of(&self.line)
    }

    /// Its output as one word.
    pub(super) fn answer(self) -> Result<String, Failure> {
        self.read(false, |output| {
            let mut text = String::new();
            output.take(LONGEST_ANSWER).read_to_string(&mut text).map_err(CopyError::Archive)?;
            Ok(text.trim().to_owned())
        })
    }

    /// Takes its output as it is.
    pub(super) fn content<T>(
        self,
        take: impl FnOnce(&mut Output) -> Result<T, CopyError>,
    ) -> Result<T, Failure> {
        self.read(false, take)
    }

    /// Takes its output, an archive. What it says of single files is passed on, and no failure.
    pub(super) fn read_archive<T>(
        self,
        take: impl FnOnce(&mut Output) -> Result<T, CopyError>,
    ) -> Result<T, Failure> {
        self.read(true, take)
    }

    /// Takes its output. What it says itself when it fails comes before what that made of its output.
    fn read<T>(
        self,
        packs: bool,
        take: impl FnOnce(&mut Output) -> Result<T, CopyError>,
    ) -> Result<T, Failure> {
        // No input: the writing half only keeps the connection.
        let Self { reader, writer, moved, .. } = self;
        let mut output = Output::new(reader, moved);
        let taken = take(&mut output);
        if taken.is_ok() {
            // Zeros behind the archive's end, and how it ended.
            let _ = io::copy(&mut output, &mut io::sink());
        }
        drop(writer);
        output.judge(taken, packs)
    }

    /// Gives it its input. What it says itself comes before what the closed pipe says.
    pub(super) fn feed<T>(self, give: impl FnOnce(&mut Input) -> Result<T, CopyError>) -> Result<T, Failure> {
        let Self { reader, writer, moved, .. } = self;
        let mut output = Output::new(reader, moved.clone());
        // Hears of room for more input, too.
        let hear = move || {
            let _ = io::copy(&mut output, &mut io::sink());
            output
        };
        let heard = std::thread::Builder::new()
            .name("heard".into())
            .spawn(hear)
            .map_err(|error| sandbox::Error::host("cannot start a thread", error))?;
        let mut input = Input { writer, moved };
        let given = give(&mut input);
        let ended = match &given {
            Ok(_) => input.writer.stdin_end(),
            // It takes no more, and ends by itself: its own words say why.
            Err(CopyError::Broken(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            // Half an archive must not be taken for a whole one.
            Err(_) => input.writer.signal(15),
        };
        tracing::debug!(?ended, "The input has ended");
        let output = heard.join().map_err(|_| Failure::new("the copy was broken off"))?;
        drop(input);
        output.judge(given, false)
    }
}

impl Output {
    fn new(reader: SessionReader<UnixStream>, moved: ProgressBar) -> Self {
        Self { reader, piece: Vec::new(), taken: 0, words: Vec::new(), exit: None, lost: None, moved }
    }

    /// What came of it all; `packs` says that it is a tar that makes an archive.
    fn judge<T>(self, outcome: Result<T, CopyError>, packs: bool) -> Result<T, Failure> {
        // A failure of ours, on the host, is the cause of whatever else failed.
        let (outcome, ours) = match outcome {
            Err(
                error @ (CopyError::NotAsked(_)
                | CopyError::InTheWay { .. }
                | CopyError::Endless { .. }
                | CopyError::TooLarge { .. }),
            ) => {
                return Err(failure(&error));
            }
            Err(error @ CopyError::File { .. }) => return Err(failure(&error)),
            Err(error) => (None, Some(error)),
            Ok(value) => (Some(value), None),
        };
        if let Some(lost) = self.lost {
            return Err(lost.into());
        }
        let code = self.exit.map_or(0, |exit| exit.shell_code());
        let is_well = is_well(code, packs);
        match (outcome, ours) {
            (Some(value), _) if is_well => {
                if packs {
                    remarks(&self.words).iter().for_each(|remark| eprintln!("viv: {remark}"));
                }
                Ok(value)
            }
            (None, Some(error)) if is_well => Err(failure(&error)),
            _ => Err(said(&self.words, code)),
        }
    }
}

/// What a tar says of single files while it packs them: the archive is whole all the same.
fn remarks(words: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(words);
    let lines = text.lines().filter(|line| !line.trim().is_empty()).take(MOST_REMARKS);
    let remark = |line: &str| {
        let line = line.strip_prefix("tar: ").unwrap_or(line);
        match line.strip_suffix(": socket ignored") {
            Some(name) => left_out(name),
            None => format!("in the sandbox: {}", escaped(line, LONGEST)),
        }
    };
    lines.map(remark).collect()
}

/// What is said of something that is not copied; the guest chose its name.
pub(super) fn left_out(name: &str) -> String {
    format!("left out: {} is neither a file, a folder nor a link", escaped(name, LONGEST))
}

fn is_well(code: i32, packs: bool) -> bool {
    code == 0 || packs && code == CHANGED
}

fn copy_of(stream: &UnixStream) -> Result<UnixStream, Failure> {
    stream.try_clone().map_err(|error| Failure::new(format!("the connection cannot be used: {error}")))
}

/// The command's own words, the first line of them.
fn said(words: &[u8], code: i32) -> Failure {
    let text = String::from_utf8_lossy(words);
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let first = ["tar: ", "cat: "].iter().find_map(|name| first.strip_prefix(name)).unwrap_or(first);
    if first.is_empty() {
        return Failure::new(format!("the copy failed in the sandbox (code {code})"));
    }
    let failure = Failure::new(format!("in the sandbox: {first}"));
    if text.contains("Permission denied") {
        failure.hint("viv cp -u root … does it as root there")
    } else if text.contains("does not look like a tar archive") {
        failure
            .hint("- takes an archive:  tar -c FILES | viv cp - NAME:FOLDER;  a file is copied by its name")
    } else {
        failure
    }
}

pub(super) fn failure(error: &CopyError) -> Failure {
    tracing::info!(?error, "The copy failed");
    if let CopyError::TooLarge { name, size, room } = error {
        let (size, room) = (crate::commands::size(*size), crate::commands::size(*room));
        return Failure::new(format!("{name} has {size}, and there is room for {room}"))
            .hint("if it is mostly holes, pack it in the sandbox: tar -cS");
    }
    let failure = Failure::new(error);
    match error {
        CopyError::NotAsked(_) | CopyError::Archive(_) => {
            failure.hint("its tar may have been replaced; look at it before you trust the rest")
        }
        CopyError::Endless { .. } => {
            failure.hint("viv exec NAME head -c 1M FILE > COPY takes the beginning of it")
        }
        CopyError::Broken(source) if source.kind() == io::ErrorKind::BrokenPipe => {
            failure.code(crate::session::BROKEN_PIPE)
        }
        _ => failure,
    }
}

impl Read for Output {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.piece.len() {
            if self.exit.is_some() || self.lost.is_some() {
                return Ok(0);
            }
            match self.reader.next_event() {
                Ok(SessionEvent::Stdout { data, .. }) => {
                    self.moved.inc(data.len() as u64);
                    self.piece.clear();
                    self.piece.extend_from_slice(data);
                    self.taken = 0;
                }
                Ok(SessionEvent::Stderr { data, .. }) => {
                    let room = MOST_WORDS.saturating_sub(self.words.len());
                    self.words.extend_from_slice(data.get(..room).unwrap_or(data));
                }
                Ok(SessionEvent::StdinClosed) => {}
                Ok(SessionEvent::Exit(exit)) => self.exit = Some(exit),
                Err(error) => self.lost = Some(error),
            }
        }
        let rest = self.piece.get(self.taken..).unwrap_or_default();
        let count = rest.len().min(bytes.len());
        for (to, from) in bytes.iter_mut().zip(rest) {
            *to = *from;
        }
        self.taken += count;
        Ok(count)
    }
}

impl Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.writer.stdin(bytes) {
            Ok(true) => {
                self.moved.inc(bytes.len() as u64);
                Ok(bytes.len())
            }
            Ok(false) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(ProtoError::Io(error)) => Err(error),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changed_is_no_failure_of_the_copy() {
        let changed = b"tar: log/a: file changed as we read it\n";
        assert!(is_well(1, true) && is_well(0, true) && is_well(0, false));
        // Of any other command it is one, and so is what tar could not read.
        assert!(!is_well(1, false) && !is_well(2, true));
        assert_eq!(remarks(changed), ["in the sandbox: log/a: file changed as we read it"]);
    }

    #[test]
    fn what_tar_leaves_out_is_told_as_we_tell_it() {
        let words = b"tar: run/my socket: socket ignored\n\ntar: \x1b[2J: socket ignored";
        let told = remarks(words);
        assert_eq!(told[0], "left out: run/my socket is neither a file, a folder nor a link");
        assert!(told.len() == 2 && !told[1].contains('\x1b'), "{told:?}");
    }
}
