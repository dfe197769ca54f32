//! What the host says on the kernel command line.

use std::time::Duration;

use agent_proto::abi::cmdline as key;

/// The agent's part of the kernel command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cmdline {
    /// Wall clock when the machine started, since 1970.
    pub(crate) time: Option<Duration>,
    /// A script to run instead of waiting: a path or a disk's serial.
    pub(crate) script: Option<String>,
    pub(crate) hostname: Option<String>,
    /// Whether to start dockerd.
    pub(crate) docker: bool,
    /// Whether the overlay's upper layer is kept in memory even where there is a disk.
    pub(crate) root_in_memory: bool,
    /// Whether there is a file system on the disk, for all that the host knows.
    pub(crate) disk_is_made: bool,
}

impl Cmdline {
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self { docker: true, ..Self::default() };
        for (name, value) in text.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
            match name {
                key::TIME => found.time = parse_time(value),
                key::SCRIPT => found.script = Some(value.to_owned()),
                key::HOSTNAME => found.hostname = Some(value.to_owned()),
                key::DOCKER => found.docker = value != "off",
                key::ROOT => found.root_in_memory = value == "memory",
                key::DISK => found.disk_is_made = value == "made",
                _ => {}
            }
        }
        found
    }

    /// The running kernel's. Empty when `/proc` is not there.
    pub(crate) fn of_kernel() -> Self {
        Self::parse(&std::fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }
}

/// Seconds with an optional fraction; exact to the nanosecond, unlike a float.
fn parse_time(text: &str) -> Option<Duration> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    Some(Duration::new(seconds.parse().ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_its_own_and_leaves_the_rest() {
        let line = "console=hvc0 quiet viv.time=1763717000.25 viv.script=viv-script root=/dev/vda viv.docker=off viv.disk=made viv.new=1";
        let expected = Cmdline {
            time: Some(Duration::new(1_763_717_000, 250_000_000)),
            script: Some("viv-script".into()),
            hostname: None,
            docker: false,
            root_in_memory: false,
            disk_is_made: true,
        };
        assert_eq!(Cmdline::parse(line), expected);
        assert!(Cmdline::parse("").docker);
    }

    #[test]
    fn time_is_exact_or_absent() {
        assert_eq!(parse_time("5"), Some(Duration::new(5, 0)));
        assert_eq!(parse_time("5.000000001"), Some(Duration::new(5, 1)));
        for wrong in ["", ".5", "5.0000000001", "-1", "1.-2", "x", "99999999999999999999"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }
}
