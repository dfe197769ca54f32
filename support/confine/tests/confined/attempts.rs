//! What may not be done: each attempt to break out ends exactly as `confine::ATTEMPTS` has it, and succeeds in a free process.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use confine::hostile::Ground;
use confine::{ATTEMPTS, Attempt, End, Role};
use libtest_mimic::{Completion, Failed, Trial};

use crate::{CONFINED, confine_as, failed, for_roles};

/// What the child prints when the attempt succeeded; nothing else counts as success.
const BROKE_OUT: &str = "BROKE OUT\n";
/// What it prints before the number of the error.
const REFUSED: &str = "REFUSED ";
/// What it prints where the kernel has no Landlock.
const NO_LANDLOCK: &str = "NO LANDLOCK\n";
/// An ordinary user.
const NOBODY: u32 = 65_534;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = for_roles(|name, role| {
        let cannot = |attempt: &'static Attempt| {
            let case = format!("{name}_cannot::{}", attempt.name);
            Trial::ignorable_test(case, move || ends_as_expected(attempt, name, role))
        };
        ATTEMPTS.iter().map(cannot).collect()
    });
    trials.push(Trial::test("probes_succeed_when_free", probes_succeed_when_free));
    trials.push(Trial::ignorable_test("probes_succeed_when_free::nobody", || {
        if is_root() {
            succeed_when_free(Some(NOBODY)).map(|()| Completion::Completed)
        } else {
            Ok(Completion::ignored_with("needs root, to become another user"))
        }
    }));
    trials
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The child: confines itself, unless its role is `free`, and makes the attempt.
pub(crate) fn attempt(role: &str, name: &str, folder: &Path) -> Result<(), String> {
    let ground = Ground::lay(folder).map_err(|error| format!("not prepared: {error}"))?;
    if role != "free" && confine_as(role)?.landlock.is_none() {
        print!("{NO_LANDLOCK}");
    }
    match ground.attempt(name) {
        Ok(()) => print!("{BROKE_OUT}"),
        Err(error) => match error.raw_os_error() {
            Some(number) => println!("{REFUSED}{number}"),
            None => return Err(error.to_string()),
        },
    }
    Ok(())
}

/// Lets a child make an attempt in a folder of its own, as this user or another one.
fn made(name: &str, role: &str, user: Option<u32>) -> Result<Output, Failed> {
    let folder = tempfile::tempdir()?;
    let own = std::fs::File::open(std::env::current_exe()?)?;
    let mut command = match user {
        None => Command::new(std::env::current_exe()?),
        // Where this program lies that user may have no way, and its parent must be that user's.
        Some(_) => {
            rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty())?;
            let mut command = Command::new("/bin/sh");
            command.args(["-c", r#""$@"; exit $?"#, "sh"]).arg(format!("/proc/self/fd/{}", own.as_raw_fd()));
            command
        }
    };
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777))?;
    command.args(["--attempt", role, name]).arg(folder.path().join("ground")).stdin(Stdio::null());
    if let Some(user) = user {
        // For root that also drops its other groups.
        command.uid(user).gid(user);
    }
    Ok(command.output()?)
}

fn ends_as_expected(attempt: &Attempt, name: &str, role: Role) -> Result<Completion, Failed> {
    let output = made(attempt.name, name, None)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let Some(said) = said.strip_prefix(CONFINED) else { return Err(failed("not confined", &output)) };
    let expected = attempt.end(role);
    let as_expected = match expected {
        End::Killed => output.status.signal() == Some(libc::SIGSYS) && !said.contains(REFUSED),
        End::Refused(errno) => output.status.success() && said == format!("{REFUSED}{errno}\n"),
    };
    if as_expected && !said.contains(BROKE_OUT) {
        return Ok(Completion::Completed);
    }
    if said.starts_with(NO_LANDLOCK) && expected == End::Refused(libc::EACCES) {
        return Ok(Completion::ignored_with("this kernel has no Landlock"));
    }
    Err(failed(&format!("{expected:?} was expected"), &output))
}

/// The probes must be able to succeed, or their failure would prove nothing.
fn probes_succeed_when_free() -> Result<(), Failed> {
    succeed_when_free(None)
}

fn succeed_when_free(user: Option<u32>) -> Result<(), Failed> {
    let mut shown = 0;
    for attempt in ATTEMPTS {
        let output = made(attempt.name, "free", user)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let errno = said.strip_prefix(REFUSED).and_then(|number| number.trim().parse::<i32>().ok());
        if output.status.success() && said == BROKE_OUT {
            shown += 1;
        } else if errno.is_some_and(|errno| attempt.lacking.contains(&errno)) {
            println!("{}: not possible here for this user (error {said:?})", attempt.name);
        } else {
            return Err(failed(&format!("{} in a free process", attempt.name), &output));
        }
    }
    println!("{shown} of {} attempts succeed in a free process", ATTEMPTS.len());
    Ok(())
}
