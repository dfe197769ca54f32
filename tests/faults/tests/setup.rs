//! Set-up that is killed at random moments completes when it is run again.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::{Case, Dice, Verdict, World, ensure, say};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::Named;

pub(crate) const CASES: &[Named] = &[("a_killed_set_up_completes_when_run_again", killed)];

/// How many kills; `VIV_FAULTS_SETUPS` sets another number.
fn count() -> Option<u64> {
    let asked = std::env::var("VIV_FAULTS_SETUPS").ok().and_then(|text| text.parse().ok());
    asked.or(e2e::long_cases().then_some(20))
}

/// With a cache of its own, in which only the downloads of the real one are: every set-up does all that follows them.
fn killed(world: &World) -> Case {
    let Some(kills) = count() else { return Err(Verdict::Skipped(e2e::LONG.into())) };
    let mut dice = Dice::new();
    let home = tempfile::Builder::new().prefix("viv-setup-").tempdir_in("/var/tmp")?;
    let cache = home.path().join("vivarium");
    std::fs::create_dir(&cache)?;
    let downloads = world.cache().join("downloads");
    // Links where the two are on one file system: what is fetched is never written to again.
    for arguments in [["-al"], ["-a"]] {
        let status = std::process::Command::new("cp").args(arguments).arg(&downloads).arg(&cache).status()?;
        if status.success() {
            break;
        }
    }
    let project = world.project("setup");
    let command = |script: &str| {
        let mut arguments = world.interactive();
        arguments.extend(["--", "-c", script].map(str::to_owned));
        let mut command = world.viv(&project, arguments);
        command.env("XDG_CACHE_HOME", home.path()).env("XDG_STATE_HOME", home.path().join("state"));
        command
    };
    // The first one, not killed, tells how long all of it takes.
    let begun = Instant::now();
    let said = say(command("echo up"), b"")?;
    ensure(said.code == 0 && said.text() == "up", format!("the first set-up: {said:?}"))?;
    let whole = begun.elapsed();
    // One that still runs would be attached to, without any set-up.
    let remove = || {
        let mut command = world.viv(&project, ["rm", "-f", "shell-setup"]);
        command.env("XDG_CACHE_HOME", home.path()).env("XDG_STATE_HOME", home.path().join("state"));
        say(command, b"")
    };
    remove()?;
    let mut late = 0;
    for kill in 1..=kills {
        // What a killed one left half made stays.
        for entry in std::fs::read_dir(cache.join("images"))?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with('.') {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        if kill.is_multiple_of(4) {
            let _ = std::fs::remove_dir_all(cache.join("initramfs"));
        }
        let most = if kill.is_multiple_of(3) { Duration::from_secs(20) } else { whole };
        if !kill_one(command("echo up"), &mut dice, most.min(whole), kill)? {
            late += 1;
            remove()?;
        }
    }
    ensure(late * 3 < kills.max(3), format!("{late} of {kills} set-ups were complete before their kill"))?;
    let said = say(command("echo up"), b"")?;
    ensure(said.code == 0 && said.text() == "up", format!("after {kills} kills: {said:?}"))?;
    let left: Vec<String> = std::fs::read_dir(cache.join("images"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure(left.len() == 1 && !left[0].starts_with('.'), format!("beside the image there is {left:?}"))?;
    let removed = remove()?;
    ensure(removed.code == 0, format!("{removed:?}"))
}

/// Kills a set-up with all its processes; false when it was complete before.
fn kill_one(
    mut command: std::process::Command,
    dice: &mut Dice,
    most: Duration,
    number: u64,
) -> Result<bool, Verdict> {
    let mut child =
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let at = dice.wait(most);
    let running = child.try_wait()?.is_none();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid.filter(|_| running) {
        let _ = kill_process_group(pid, Signal::KILL);
    }
    child.wait()?;
    eprintln!(
        "set-up {number} killed after {:.1} s{}",
        at.as_secs_f32(),
        if running { "" } else { ": it was complete" }
    );
    Ok(running)
}
