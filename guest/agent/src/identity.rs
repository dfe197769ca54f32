//! What makes this sandbox itself: clock, host name, machine id, entropy.

use std::fs;
use std::time::Duration;

use agent_proto::messages::SetClock;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

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

/// Sets the host name and makes it resolve.
pub(crate) fn set_hostname(name: &str) -> Outcome {
    if !is_hostname(name) {
        return Err(Failure::new(format!("{name:?} cannot be a host name")));
    }
    rustix::system::sethostname(name.as_bytes()).doing("Cannot set the host name")?;
    fs::write("/etc/hostname", format!("{name}\n")).doing("Cannot write /etc/hostname")?;
    fs::write("/etc/hosts", hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), name))
        .doing("Cannot write /etc/hosts")
}

fn is_hostname(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
        && !name.starts_with(['-', '.'])
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

/// Gives the sandbox a machine id of its own at its first boot. It lies on the sandbox's disk and stays.
pub(crate) fn ensure_machine_id() -> Outcome {
    const PATH: &str = "/etc/machine-id";
    let old = fs::read_to_string(PATH).unwrap_or_default();
    if old.trim().len() == 32 && old.trim().bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let mut bytes = [0u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .doing("Cannot get random bytes")?;
    let id: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    fs::write(PATH, format!("{id}\n")).doing("Cannot write the machine id")
}

/// Points `/etc/localtime` at a time zone.
pub(crate) fn set_timezone(zone: &str) -> Outcome {
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
    let _ = fs::remove_file("/etc/localtime");
    std::os::unix::fs::symlink(&target, "/etc/localtime").doing("Cannot set the time zone")?;
    fs::write("/etc/timezone", format!("{zone}\n")).doing("Cannot write /etc/timezone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["shell-api", "a", "A1.b"] {
            assert!(is_hostname(good), "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "a\nb", "a/b", &"a".repeat(65)] {
            assert!(!is_hostname(bad), "{bad}");
        }
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
        for bad in ["../../etc/passwd", "", "/abs", "a//b", "a b"] {
            assert!(set_timezone(bad).is_err(), "{bad}");
        }
    }
}
