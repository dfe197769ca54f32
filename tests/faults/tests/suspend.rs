//! A host that sleeps: all processes of a sandbox are stopped for a while and go on.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{Case, Verdict, World, ensure};
use faults::processes;
use rustix::process::{Signal, kill_process};

use crate::Named;

pub(crate) const CASES: &[Named] = &[("a_stopped_guest_goes_on_with_the_right_time", stopped)];

/// Two processes that a stop would make look stuck: one that computes, one that sleeps in short pieces and notes the largest gap
/// between what it meant to sleep and what it slept, after the stop.
const BUSY: &str = "(while :; do :; done) & (while :; do sleep 0.05; done) & touch /tmp/busy; wait";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The guest's time less the host's, in seconds, as near as one exec can tell: the guest's must lie between two looks at the host's.
fn difference(world: &World) -> Result<f64, Verdict> {
    let before = now();
    let said = world.run(&["exec", "shell-asleep", "date", "+%s.%N"])?;
    let after = now();
    let guest: f64 = said.text().parse().map_err(|_| Verdict::Wrong(format!("date: {said:?}")))?;
    Ok(if guest < before {
        guest - before
    } else if guest > after {
        guest - after
    } else {
        0.0
    })
}

fn stopped(world: &World) -> Case {
    // Watchdogs take a CPU for stuck after 20 s and a grace period after 21 s.
    let time = Duration::from_secs(if e2e::long_cases() { 60 } else { 30 });
    let project = world.project("asleep");
    world.shell_ok(&project, "true")?;
    let folder = world.folder("shell-asleep")?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut busy = world.viv(&project, ["exec", "shell-asleep", "sh", "-c", BUSY]).spawn()?;
    e2e::eventually("the load", || {
        world.run(&["exec", "shell-asleep", "test", "-e", "/tmp/busy"]).is_ok_and(|said| said.code == 0)
    })?;
    let before = difference(world)?;
    ensure(before.abs() < 1.0, format!("the guest's clock is off by {before} s before the stop"))?;
    let Some(found) = processes(&id) else { return ensure(false, "the sandbox does not run") };
    let all: Vec<_> = [Some(found.shim), found.vmm].into_iter().flatten().collect();
    ensure(all.len() == 2, "a shim and a vmm")?;
    for pid in &all {
        kill_process(*pid, Signal::STOP)?;
    }
    std::thread::sleep(time);
    for pid in &all {
        kill_process(*pid, Signal::CONT)?;
    }
    let after = difference(world)?;
    ensure(after.abs() < 1.0, format!("the guest's clock is off by {after} s after the stop"))?;
    // Everything goes on, and the kernel's watchdogs have taken nothing for stuck.
    std::thread::sleep(Duration::from_secs(3));
    ensure(matches!(busy.try_wait(), Ok(None)), "the load goes on")?;
    let said = world.run(&["exec", "-u", "root", "shell-asleep", "dmesg"])?;
    e2e::end(busy);
    let console = std::fs::read_to_string(folder.join("logs/console.log")).unwrap_or_default();
    for word in ["stall", "lockup", "stuck", "blocked for more than", "unstable"] {
        let lines: Vec<&str> =
            said.text().leak().lines().chain(console.lines()).filter(|line| line.contains(word)).collect();
        ensure(lines.is_empty(), format!("{word}: {lines:?}"))?;
    }
    ensure(said.code == 0 && said.text().contains("Linux version"), "dmesg says what there was")?;
    world.run(&["rm", "-f", "shell-asleep"]).map(|_| ())
}
