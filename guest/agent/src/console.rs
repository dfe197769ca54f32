//! Words to the outside before there is a connection: the kernel log for what may interest someone, the console for what the host waits for.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// A line for the kernel log (`dmesg`); on the console only when the kernel is not told to be quiet.
pub(crate) fn log(text: impl Display) {
    if let Ok(mut kmsg) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Nothing can be done about a kernel log that takes nothing.
        let _ = kmsg.write_all(format!("<6>viv-agent: {text}\n").as_bytes());
    }
}

/// A line that is printed on the console whatever the log level.
pub(crate) fn say(text: impl Display) {
    if let Ok(mut console) = OpenOptions::new().write(true).open("/dev/console") {
        // A machine without a console has nobody to tell.
        let _ = console.write_all(format!("{text}\n").as_bytes());
        let _ = rustix::termios::tcdrain(&console);
    }
}
