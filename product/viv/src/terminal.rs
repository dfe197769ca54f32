//! The user's terminal: its size, raw mode that is always undone, and the signals of a session.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::flag;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

/// Whether both the input and the output are terminals, which is when a session gets one.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Rows and columns of the output's terminal.
pub(crate) fn size() -> (u16, u16) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

/// Raw mode on the standard input, undone when dropped.
#[derive(Debug)]
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Enters raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let raw = Self { before };
        raw.again()?;
        Ok(raw)
    }

    /// Enters it again, after the process was stopped and somebody else used the terminal.
    pub(crate) fn again(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        Ok(tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?)
    }
}

impl Raw {
    /// Back to what it was. Harmless when done twice.
    pub(crate) fn leave(&self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.before);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The signals that a session handles, as something that can be polled.
pub(crate) struct Signals {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    /// Whether a signal that asks for the end has come and was not passed on yet.
    unheard: Arc<AtomicBool>,
}

impl Signals {
    /// From here on these signals no longer end the process, but for a second one that asks for the end while the first
    /// could not even be passed on: a guest that does not read may hold up who would do that.
    pub(crate) fn catch() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let wanted = [SIGWINCH, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        let unheard = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGQUIT, SIGTERM] {
            // In this order, so that the first one only sets the flag.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&unheard))?;
            flag::register(signal, Arc::clone(&unheard))?;
        }
        Ok(Self { delivery: SignalDelivery::with_pipe(read, write, SignalOnly, wanted)?, unheard })
    }

    /// Those that have come.
    pub(crate) fn pending(&mut self) -> Vec<i32> {
        self.delivery.pending().collect()
    }

    /// All that have come were passed on.
    pub(crate) fn passed_on(&self) {
        self.unheard.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }
}
