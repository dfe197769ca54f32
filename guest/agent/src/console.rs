//! Words to the outside before there is a connection: the kernel log for what may interest someone, the console for what the host waits for.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

use agent_proto::messages::LogSource;

use crate::journal::JOURNAL;

/// A line for the kernel log (`dmesg`) and for the host's `viv logs`; on the console only when the kernel is not told to be quiet.
pub(crate) fn log(text: impl Display) {
    JOURNAL.add(LogSource::Agent, text.to_string().as_bytes());
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
