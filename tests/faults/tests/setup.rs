//! Set-up that is killed at random moments completes when it is run again.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::{Case, Dice, Verdict, World, ensure, say};
use faults::{children, limit_files};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("a_killed_set_up_completes_when_run_again", killed),
    ("a_set_up_that_meets_a_full_disk_says_so", full),
];

/// How many kills; `VIV_FAULTS_SETUPS` sets another number.
fn count() -> Option<u64> {
    let asked = std::env::var("VIV_FAULTS_SETUPS").ok().and_then(|text| text.parse().ok());
    asked.or(e2e::long_cases().then_some(20))
}

/// A home with a cache in which only the downloads of the real one are.
fn own_home(world: &World) -> Result<tempfile::TempDir, Verdict> {
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
    Ok(home)
}

/// The host has no room any more once the guest that makes the image runs: its vmm may write nothing behind the first 4096 bytes of a
/// file. One sentence says that, and not the guest's console.
fn full(world: &World) -> Case {
    if !e2e::long_cases() {
        return Err(Verdict::Skipped(e2e::LONG.into()));
    }
    let home = own_home(world)?;
    let mut words = world.interactive();
    words.extend(["--", "-c", "true"].map(str::to_owned));
    let mut command = world.viv(&world.project("no-room"), words);
    command.env("XDG_CACHE_HOME", home.path()).env("XDG_STATE_HOME", home.path().join("state"));
    let mut client = command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let pid = i32::try_from(client.id()).ok().and_then(Pid::from_raw);
    // One with many threads has its devices and its memory, which is a file, too.
    let running = |vmm: &Pid| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.as_raw_nonzero()));
        tasks.is_ok_and(|tasks| tasks.count() > 4)
    };
    let mut vmm = None;
    while vmm.is_none() && matches!(client.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(50));
        vmm = pid.and_then(|pid| children(pid).into_iter().find(running));
    }
    let limited = vmm.map(|vmm| limit_files(vmm, Some(4096)));
    let said = e2e::Said::from(client.wait_with_output()?);
    ensure(limited.is_some_and(|done| done.is_ok()), format!("there was no machine to limit: {said:?}"))?;
    // Behind what was said of the progress.
    let last: Vec<&str> = said.err.lines().rev().take(2).collect();
    ensure(
        said.code == 125
            && last.len() == 2
            && last[1] == "error: the host's disk is full: there is no room to make the base image"
            && last[0].contains("free some space"),
        format!("{said:?}"),
    )?;
    let images = std::fs::read_dir(home.path().join("vivarium/images"))?.flatten();
    let whole = images.filter(|entry| entry.path().join("image.json").exists()).count();
    ensure(whole == 0, "there is no image")
}

/// With a cache of its own, in which only the downloads of the real one are: every set-up does all that follows them, and every fourth
/// fetches half of them again.
fn killed(world: &World) -> Case {
    let Some(kills) = count() else { return Err(Verdict::Skipped(e2e::LONG.into())) };
    let mut dice = Dice::new();
    let home = own_home(world)?;
    let cache = home.path().join("vivarium");
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
        let fetches = kill % 4 == 1;
        if fetches {
            forget_half(&cache)?;
        }
        let most = if fetches || kill.is_multiple_of(3) { Duration::from_secs(20) } else { whole };
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

/// Removes every other download, so that the next set-up begins with fetching them.
fn forget_half(cache: &Path) -> Result<(), Verdict> {
    let mut downloads = Vec::new();
    for entry in std::fs::read_dir(cache.join("downloads"))?.flatten() {
        if entry.file_type()?.is_file() {
            downloads.push(entry.path());
        }
    }
    downloads.sort();
    for download in downloads.iter().step_by(2) {
        std::fs::remove_file(download)?;
    }
    ensure(downloads.len() > 20, format!("{} downloads are too few", downloads.len()))
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
