//! The user's SSH agent in the guest: this program with the argument `ssh-agent` listens on a socket, and what comes to it goes over its output to
//! the host, where each message is judged. Nothing is decided here: whoever is root in the guest may take this process over.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_proto::abi::{AGENT_GID, AGENT_UID};
use agent_proto::pieces::{MAX_PIECE, Pieces, READY, written};

/// Its name as the first argument.
const NAME: &str = "ssh-agent";
/// Connections at one time. More are closed.
const MOST: usize = 32;
/// How long who asked may leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves if it is meant.
pub(crate) fn command(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != NAME {
        return None;
    }
    let path = PathBuf::from(arguments.next()?);
    Some(match serve(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{NAME}: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    })
}

/// The connections there are, and the way to the host.
#[derive(Default)]
struct Open {
    connections: Mutex<HashMap<u32, UnixStream>>,
    out: Mutex<()>,
}

impl Open {
    fn connections(&self) -> MutexGuard<'_, HashMap<u32, UnixStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pieces of different connections never mix.
    fn say(&self, connection: u32, bytes: &[u8]) -> io::Result<()> {
        let _whole = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = io::stdout().lock();
        out.write_all(&written(connection, bytes))?;
        out.flush()
    }
}

fn serve(path: &Path) -> io::Result<()> {
    sweep(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    chown(path, Some(AGENT_UID), Some(AGENT_GID))?;
    let open = Arc::new(Open::default());
    let accepting = Arc::clone(&open);
    std::thread::Builder::new().name("accept".into()).spawn(move || accept(&listener, &accepting))?;
    open.say(READY, b"")?;
    let outcome = hear(&open);
    let _ = fs::remove_file(path);
    outcome
}

/// Takes sockets away whose processes were killed.
fn sweep(path: &Path) {
    let Some(folder) = path.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = entry.path();
        let is_ours = entry.file_name().to_string_lossy().starts_with(NAME);
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        if is_ours && UnixStream::connect(&old).is_err_and(refused) {
            let _ = fs::remove_file(old);
        }
    }
}

fn accept(listener: &UnixListener, open: &Arc<Open>) {
    for (number, stream) in (READY + 1..).zip(listener.incoming().flatten()) {
        let Ok(copy) = stream.try_clone() else { continue };
        if open.connections().len() >= MOST || copy.set_write_timeout(Some(PATIENCE)).is_err() {
            continue;
        }
        open.connections().insert(number, copy);
        let pass = Arc::clone(open);
        let thread = std::thread::Builder::new().name("connection".into());
        if thread.spawn(move || pass_on(number, stream, &pass)).is_err() {
            open.connections().remove(&number);
        }
    }
}

/// From who asks to the host.
fn pass_on(number: u32, mut stream: UnixStream, open: &Open) {
    let mut bytes = vec![0; MAX_PIECE];
    while let Ok(count) = stream.read(&mut bytes)
        && let Some(piece) = bytes.get(..count)
        && !piece.is_empty()
    {
        if open.say(number, piece).is_err() {
            break;
        }
    }
    open.connections().remove(&number);
    let _ = open.say(number, b"");
}

/// From the host to who asked, until the host is gone.
fn hear(open: &Open) -> io::Result<()> {
    let (mut pieces, mut bytes) = (Pieces::default(), vec![0; MAX_PIECE]);
    let mut input = io::stdin().lock();
    loop {
        let count = input.read(&mut bytes)?;
        if count == 0 {
            return Ok(());
        }
        pieces.feed(bytes.get(..count).unwrap_or_default());
        while let Some((number, piece)) = pieces.next_piece().map_err(io::Error::other)? {
            let stream = open.connections().get(&number).and_then(|stream| stream.try_clone().ok());
            let Some(mut stream) = stream else { continue };
            // One that does not read its answer is closed; its thread then says so.
            if piece.is_empty() || stream.write_all(&piece).is_err() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}
