//! What a session's user is told while the session goes on, on the standard error.

use std::io::Write;

use rustix::termios::{OutputModes, tcgetattr};
use sandbox::client::Held;
use sandbox::control::Notice;

/// Tells until the sandbox or this process ends. The session's place in the sandbox goes with the thread, and ends with the process.
pub(crate) fn watch(held: Held) {
    let tell = move || {
        while let Some(notice) = held.next_notice() {
            say(words(notice));
        }
    };
    // Without it the session is as good, but for this.
    let _ = std::thread::Builder::new().name("notices".into()).spawn(tell);
}

fn words(notice: Notice) -> &'static str {
    match notice {
        Notice::HostFull => {
            "the host's disk is full: what the sandbox writes waits, nothing is lost   free some space, and it goes on"
        }
        Notice::HostHasRoom => "there is room on the host's disk again: the sandbox goes on",
    }
}

/// A line of its own, also on a terminal in raw mode, in the middle of what the session draws.
fn say(words: &str) {
    let mut out = std::io::stderr().lock();
    let raw =
        tcgetattr(std::io::stderr()).is_ok_and(|modes| !modes.output_modes.contains(OutputModes::OPOST));
    let text = if raw { format!("\r\nviv: {words}\r\n") } else { format!("viv: {words}\n") };
    let _ = out.write_all(text.as_bytes());
}
