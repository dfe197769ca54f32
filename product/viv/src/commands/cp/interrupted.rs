//! Ctrl-C while something is copied to the host: the file that was begun under a name of ours goes before this process does.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use sandbox::Error;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::failure::Failure;

/// The signal that came, if one did.
pub(super) struct Interrupted(Arc<AtomicI32>);

impl Interrupted {
    /// From here on the first signal ends `line`, and with it what is copied over it; a second one ends this process at once.
    pub(super) fn watch(line: UnixStream) -> Result<Self, Failure> {
        crate::session::take_signals();
        let came = Arc::new(AtomicI32::new(0));
        let fail = |error| Error::host("cannot handle signals", error);
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(fail)?;
        let seen = Arc::clone(&came);
        let wait = move || {
            for signal in signals.forever() {
                if seen.swap(signal, Ordering::SeqCst) != 0 {
                    let _ = emulate_default_handler(signal);
                }
                // Who reads from it sees an end that comes too early.
                let _ = line.shutdown(Shutdown::Both);
            }
        };
        std::thread::Builder::new()
            .name("interrupted".into())
            .spawn(wait)
            .map_err(|error| Error::host("cannot start a thread", error))?;
        Ok(Self(came))
    }

    /// What was to be tidied up is. Ends this process as the signal would have, if one came.
    pub(super) fn end(self) {
        let signal = self.0.load(Ordering::SeqCst);
        if signal != 0 {
            let _ = emulate_default_handler(signal);
        }
    }
}
