//! What makes this sandbox itself: clock, host name, machine id, entropy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use agent_proto::messages::SetClock;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::console::log;
use crate::fail::{Doing, Failure, Outcome};

/// Sets the wall clock from the time at which the machine started.
pub(crate) fn set_clock_at_start(start: Duration) -> Outcome {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(up.tv_sec.unsigned_abs(), u32::try_from(up.tv_nsec).unwrap_or_default());
    set_clock_to(start + up)
}

/// Sets the wall clock to what the host says.
pub(crate) fn set_clock(clock: SetClock) -> Outcome {
    if clock.nanos >= 1_000_000_000 {
        return Err(Failure::new("The clock's nanoseconds are out of range"));
    }
    set_clock_to(Duration::new(clock.seconds, clock.nanos))
}

fn set_clock_to(time: Duration) -> Outcome {
    let seconds = i64::try_from(time.as_secs()).doing("The time is out of range")?;
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(time.subsec_nanos()) };
    clock_settime(ClockId::Realtime, time).doing("Cannot set the clock")
}

/// Sets the host name and makes it resolve. What cannot be done is logged: files in `/etc` belong to the user, who may have
/// made them unchangeable, and a sandbox with an old name is better than none.
pub(crate) fn set_hostname(name: &str) {
    let name = hostname(name);
    note(rustix::system::sethostname(name.as_bytes()).doing("Cannot set the host name"));
    write_hostname(Path::new("/etc"), &name).into_iter().for_each(note);
}

/// Writes the name to `hostname` and `hosts` in `etc`; each of the two whether or not the other can be written.
fn write_hostname(etc: &Path, name: &str) -> [Outcome; 2] {
    let list = etc.join("hosts");
    let old = fs::read_to_string(&list).unwrap_or_default();
    [
        fs::write(etc.join("hostname"), format!("{name}\n")).doing("Cannot write /etc/hostname"),
        fs::write(list, hosts(&old, name)).doing("Cannot write /etc/hosts"),
    ]
}

/// A failure that nobody's sandbox should end for.
fn note(outcome: Outcome) {
    if let Err(e) = outcome {
        log(format_args!("{e}"));
    }
}

/// The name as a host name: letters, digits, `-` and `.`, at most 64 bytes (sethostname(2)). Folders that sandboxes are named
/// after have others, such as `_`, which become `-`.
fn hostname(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let clean: String = name.chars().map(plain).collect();
    // One byte each by now.
    let clean: String = clean.trim_start_matches(['-', '.']).chars().take(64).collect();
    if clean.is_empty() { "vivarium".to_owned() } else { clean }
}

/// `/etc/hosts` with our line for the name, whatever else is in it kept.
fn hosts(old: &str, name: &str) -> String {
    const MARK: &str = "# this sandbox";
    let mut lines: Vec<&str> = old.lines().filter(|line| !line.ends_with(MARK)).collect();
    if !lines.iter().any(|line| line.split_whitespace().any(|word| word == "localhost")) {
        lines.push("127.0.0.1 localhost");
        lines.push("::1 localhost ip6-localhost ip6-loopback");
    }
    format!("{}\n127.0.1.1 {name} {MARK}\n", lines.join("\n"))
}

/// Gives the sandbox a machine id of its own at its first boot. It lies on the sandbox's disk and stays. Where it cannot be
/// written, that is logged.
pub(crate) fn ensure_machine_id() {
    note(machine_id_in(Path::new("/etc")));
}

fn machine_id_in(etc: &Path) -> Outcome {
    let path = etc.join("machine-id");
    let old = fs::read_to_string(&path).unwrap_or_default();
    if old.trim().len() == 32 && old.trim().bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .doing("Cannot get random bytes")?;
    let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    fs::write(path, format!("{id}\n")).doing("Cannot write the machine id")
}

/// Points `/etc/localtime` at a time zone. What is no zone, or cannot be written, is logged and leaves the old one.
pub(crate) fn set_timezone(zone: &str) {
    note(set_timezone_in(Path::new("/etc"), zone));
}

fn set_timezone_in(etc: &Path, zone: &str) -> Outcome {
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b))
    };
    if !zone.split('/').all(plain) {
        return Err(Failure::new(format!("{zone:?} is no time zone")));
    }
    let target = format!("/usr/share/zoneinfo/{zone}");
    if !fs::exists(&target).unwrap_or(false) {
        // An image without time zone data runs in UTC.
        return Ok(());
    }
    let _ = fs::remove_file(etc.join("localtime"));
    std::os::unix::fs::symlink(&target, etc.join("localtime")).doing("Cannot set the time zone")?;
    fs::write(etc.join("timezone"), format!("{zone}\n")).doing("Cannot write /etc/timezone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_sandbox_makes_a_host_name() {
        for good in ["shell-api", "a", "A1.b"] {
            assert_eq!(hostname(good), good);
        }
        for (name, host) in [
            ("shell-my_project", "shell-my-project"),
            ("_a b", "a-b"),
            ("-.a", "a"),
            ("a\nb/c", "a-b-c"),
            ("größe", "gr--e"),
            ("", "vivarium"),
            ("_", "vivarium"),
        ] {
            assert_eq!(hostname(name), host);
        }
        assert_eq!(hostname(&"a".repeat(65)), "a".repeat(64));
    }

    /// A folder in a file's place refuses the write for root, too, as an immutable file does.
    #[test]
    fn a_file_that_cannot_be_written_keeps_nothing_else_from_being_set() {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("hostname")).unwrap();
        fs::create_dir(etc.path().join("machine-id")).unwrap();
        let [hostname, hosts] = write_hostname(etc.path(), "box");
        assert!(hostname.is_err() && hosts.is_ok());
        assert!(fs::read_to_string(etc.path().join("hosts")).unwrap().contains("127.0.1.1 box "));
        assert!(machine_id_in(etc.path()).is_err());
        fs::remove_dir(etc.path().join("machine-id")).unwrap();
        machine_id_in(etc.path()).unwrap();
        assert_eq!(fs::read_to_string(etc.path().join("machine-id")).unwrap().len(), 33);
    }

    #[test]
    fn the_hosts_file_keeps_what_is_in_it() {
        let first = hosts("", "one");
        assert!(first.contains("127.0.0.1 localhost\n") && first.contains("127.0.1.1 one "));
        let second = hosts(&format!("{first}10.0.0.1 mine\n"), "two");
        assert!(
            second.contains("10.0.0.1 mine") && second.contains("127.0.1.1 two ") && !second.contains("one")
        );
        assert_eq!(second.lines().filter(|line| line.contains("localhost")).count(), 2);
    }

    #[test]
    fn wrong_times_are_refused() {
        assert!(set_clock(SetClock { seconds: 1, nanos: 1_000_000_000 }).is_err());
        assert!(set_clock(SetClock { seconds: u64::MAX, nanos: 0 }).is_err());
    }

    #[test]
    fn time_zones_stay_in_their_folder() {
        let etc = tempfile::tempdir().unwrap();
        for bad in ["../../etc/passwd", "", "/abs", "a//b", "a b"] {
            assert!(set_timezone_in(etc.path(), bad).is_err(), "{bad}");
        }
    }
}
