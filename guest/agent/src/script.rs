//! Running one script instead of serving sessions: tests, benchmarks and the building of images need no connection for it.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use agent_proto::abi;

use crate::boot::Agent;
use crate::cgroup::Group;
use crate::console::say;
use crate::devices::Devices;
use crate::fail::{Doing, Failure, Outcome};
use crate::spawn::{Ids, Preparation, prepare, what_failed};
use crate::sys::Ended;

/// The most that a script may have, in bytes.
const LIMIT: u64 = 16 * 1024 * 1024;

/// Runs the script, prints its exit code as the host expects it, and returns that.
pub(crate) fn run(agent: &Agent, name: &str) -> Outcome<i32> {
    let script = find(name)?;
    let console = || File::options().write(true).open("/dev/console").doing("Cannot open the console");
    let mut command = Command::new("/bin/sh");
    command
        .arg(&script)
        .env_clear()
        .envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("USER", "root"),
            ("LANG", "C.UTF-8"),
            ("TERM", "dumb"),
        ])
        .stdin(Stdio::null())
        .stdout(console()?)
        .stderr(console()?);
    let group = Group::for_session(0)?;
    let root = Ids { uid: 0, gid: 0, groups: vec![0] };
    prepare(
        &mut command,
        Preparation {
            group: Some(group.entrance()?),
            user: Some(root),
            cwd: Some(c"/".to_owned()),
            oom_score: b"0",
            ..Preparation::default()
        },
    );
    let child =
        agent.reaper.spawn(&mut command).map_err(|e| what_failed(&e).1).doing("Cannot run the script")?;
    let code = match child.wait() {
        Ended::Code(code) => code,
        Ended::Signal(signal) => 128 + signal,
    };
    say(format_args!("{} {code}", abi::EXIT_LINE));
    Ok(code)
}

/// A path in the root as it is; the content of a disk, without the NULs that fill its last sector, as a file.
fn find(name: &str) -> Outcome<PathBuf> {
    if name.starts_with('/') {
        return Ok(name.into());
    }
    let disk = Devices::disk(name)
        .ok_or_else(|| Failure::new(format!("There is no disk {name} with the script")))?;
    let mut content = Vec::new();
    File::open(disk)
        .and_then(|disk| disk.take(LIMIT).read_to_end(&mut content))
        .doing("Cannot read the script's disk")?;
    let path = PathBuf::from("/run/vivarium/script");
    fs::write(&path, without_padding(&content)).doing("Cannot write the script")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).doing("Cannot make the script runnable")?;
    Ok(path)
}

fn without_padding(content: &[u8]) -> &[u8] {
    let end = content.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    content.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_padding_goes() {
        assert_eq!(without_padding(b"a\0b\n\0\0\0"), b"a\0b\n");
        assert_eq!(without_padding(b"\0\0"), b"");
        assert_eq!(without_padding(b"x"), b"x");
    }
}
