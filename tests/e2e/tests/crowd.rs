//! Many at once: clients of one sandbox, sandboxes of one user, and clients that want different things of the same one.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use e2e::{Case, Dice, Said, Verdict, World, ensure, eventually, say, within};
use serde_json::Value;

use crate::Named;

pub(crate) const CASES: &[Named] = &[
    ("twenty_clients_of_one_sandbox", clients),
    ("ten_sandboxes_at_once", sandboxes),
    ("clients_that_race_leave_nothing_wrong", race),
];

/// The sandbox does not run when they come: one of them starts it, and all get their own command.
fn clients(world: &World) -> Case {
    let folder = world.project("crowded");
    let asked = |number: usize| {
        let script = format!("cat; echo {number}; sleep 1; exit {number}");
        world.shell(&folder, &script, format!("input {number}\n").as_bytes())
    };
    let answers: Vec<Result<Said, Verdict>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20).map(|number| scope.spawn(move || asked(number))).collect();
        let gone = || Err(Verdict::Wrong("a client's thread ended".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    for (number, said) in answers.into_iter().enumerate() {
        let said = said?;
        let right = format!("input {number}\n{number}");
        ensure(
            usize::try_from(said.code) == Ok(number) && said.text() == right,
            format!("client {number}: {said:?}"),
        )?;
    }
    let listed = world.run(&["ls", "-q"])?.text();
    let made: Vec<&str> = listed.lines().filter(|name| name.starts_with("shell-crowded")).collect();
    ensure(made == ["shell-crowded"], listed.clone())?;
    world.run(&["rm", "-f", "shell-crowded"]).map(|_| ())
}

fn sandboxes(world: &World) -> Case {
    let folders: Vec<_> = (0..10).map(|number| world.project(&format!("one-of-{number}"))).collect();
    let small = |folder: &Path, script: &str| {
        say(world.viv(folder, ["run", "shell", ".", "-m", "512m", "--cpus", "1", "--", "-c", script]), b"")
    };
    // None ends before all ten run.
    let script = "pwd; touch here; while ! [ -e go ]; do sleep 0.2; done";
    let ten_run = || {
        let listed = world.run(&["ls", "--json"]).map(|said| said.text()).unwrap_or_default();
        let rows = listed.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let ours = |row: &serde_json::Value| {
            row["name"].as_str().is_some_and(|name| name.starts_with("shell-one-of-"))
        };
        rows.filter(|row| ours(row) && row["state"] == "running").count() == folders.len()
    };
    let mut met = Ok(());
    let said: Vec<Result<Said, Verdict>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            folders.iter().map(|folder| scope.spawn(move || small(folder, script))).collect();
        met = eventually("ten sandboxes that run at the same time", ten_run);
        for folder in &folders {
            let _ = std::fs::write(folder.join("go"), "");
        }
        let gone = || Err(Verdict::Wrong("a client's thread ended".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    met?;
    for (said, folder) in said.into_iter().zip(&folders) {
        let said = said?;
        ensure(said.code == 0 && said.text() == folder.to_string_lossy(), format!("{said:?}"))?;
        ensure(folder.join("here").exists(), "each in its own folder")?;
    }
    let names: Vec<String> = (0..10).map(|number| format!("shell-one-of-{number}")).collect();
    let mut remove = vec!["rm", "-f"];
    remove.extend(names.iter().map(String::as_str));
    let removed = world.run(&remove)?;
    ensure(removed.code == 0 && removed.text().lines().count() == 10, format!("{removed:?}"))
}

/// Two clients do what comes to their minds to the same two sandboxes, in a state folder of their own.
fn race(world: &World) -> Case {
    let time = Duration::from_secs(if e2e::long_cases() { 600 } else { 20 });
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let own = tempfile::Builder::new().prefix("viv-race-").tempdir_in("/var/tmp")?;
    let state = own.path().canonicalize()?;
    let folder = world.project("raced");
    let viv = |arguments: &[&str]| {
        let mut command = world.viv(&folder, arguments);
        command.env("XDG_STATE_HOME", &state);
        say(command, b"")
    };
    let small = ["-m", "512m", "--cpus", "1"];
    let done = AtomicUsize::new(0);
    let client = |number: u64| -> Case {
        let mut random = Dice::of(seed.wrapping_mul(2).wrapping_add(number));
        let begun = Instant::now();
        while begun.elapsed() < time {
            let name = ["race-a", "race-b"][usize::from(random.below(2) == 1)];
            let made = |verb: &[&'static str]| [verb, &["shell", ".", "--name", name], &small[..]].concat();
            let arguments = match random.below(8) {
                0 => made(&["create"]),
                1 => made(&["run", "-d"]),
                2 => [&made(&["run"])[..], &["--", "-c", "echo through"]].concat(),
                3 => vec!["start", name],
                4 => vec!["exec", name, "echo", "through"],
                5 => vec!["stop", name],
                6 => vec!["rm", "-f", name],
                _ => vec!["ls", "--json"],
            };
            let said = viv(&arguments)?;
            done.fetch_add(1, Ordering::Relaxed);
            // Another client may always have been faster; what a user then reads is one of our sentences.
            let well = said.code == 0
                // Its process was told to end: the sandbox was stopped under it.
                || [129, 137, 143].contains(&said.code)
                || (said.code == 125 && said.err.lines().any(|line| line.starts_with("error: ")));
            // No race makes these true.
            let never =
                ["panic", "does not answer", "did not fit", "without a word", "does not go on", "damaged"];
            let sound = never.iter().all(|words| !said.err.contains(words));
            ensure(well && sound, format!("seed {seed}: {arguments:?}: {said:?}"))?;
            if arguments == ["ls", "--json"] {
                rows_are_sound(&said)?;
            }
        }
        Ok(())
    };
    let ended: Vec<Case> = std::thread::scope(|scope| {
        let threads = [0, 1].map(|number| scope.spawn(move || client(number)));
        let gone = || Err(Verdict::Wrong("a client's thread ended".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    let checked = ended.into_iter().collect::<Case>().and_then(|()| nothing_wrong(&viv, &state));
    // Whatever was wrong, nothing of it goes on.
    let _ = viv(&["rm", "-f", "race-a", "race-b"]);
    checked.map_err(|verdict| match verdict {
        Verdict::Wrong(what) => {
            Verdict::Wrong(format!("seed {seed}, {} commands: {what}", done.into_inner()))
        }
        other => other,
    })
}

/// What `ls` says while others are at work: known states, an end only where there was one, and none that nobody wanted.
fn rows_are_sound(said: &Said) -> Case {
    for row in said.text().lines() {
        let row: Value = serde_json::from_str(row)?;
        let state = row["state"].as_str().unwrap_or_default();
        let sound = match state {
            "starting" | "running" | "stopping" => row["reason"].is_null(),
            "stopped" => {
                row["reason"].is_null() || row["reason"] == "asked to stop" || row["reason"] == "idle"
            }
            _ => false,
        };
        ensure(sound, format!("in the race: {row}"))?;
    }
    Ok(())
}

/// The sandboxes that are left can be used, and stopped they are nothing but their folders.
fn nothing_wrong(viv: &dyn Fn(&[&str]) -> Result<Said, Verdict>, state: &Path) -> Case {
    let names = viv(&["ls", "-q"])?.text();
    for name in names.lines() {
        let said = viv(&["exec", name, "echo", "through"])?;
        ensure(said.text() == "through", format!("{name} is of no use: {said:?}"))?;
        let said = viv(&["stop", name])?;
        ensure(said.code == 0, format!("{said:?}"))?;
    }
    let rows = viv(&["ls", "--json"])?.text();
    for row in rows.lines() {
        let row: Value = serde_json::from_str(row)?;
        ensure(row["state"] == "stopped" && row["reason"] == "asked to stop", row.to_string())?;
    }
    let folders: Vec<String> = std::fs::read_dir(state.join("vivarium/sandboxes"))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != ".names")
        .collect();
    ensure(folders.len() == names.lines().count(), format!("folders {folders:?} of {names:?}"))?;
    nothing_runs(state)
}

/// A shim has given its lock back a moment before it is gone.
pub(crate) const GONE: Duration = Duration::from_secs(15);

/// No process is left. One that nobody told to end does so by itself half a minute later.
pub(crate) fn nothing_runs(state: &Path) -> Case {
    within(GONE, "the end of all processes", || processes_of(state).is_empty())
        .map_err(|_| Verdict::Wrong(format!("processes that are left: {:?}", processes_of(state))))
}

/// The processes that hold a file beneath this folder, or have it in their environment.
fn processes_of(state: &Path) -> Vec<String> {
    let text = state.to_string_lossy().into_owned();
    let has = |process: &Path| {
        let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        descriptors
            .map(|entry| std::fs::read_link(entry.path()))
            .any(|to| to.is_ok_and(|to| to.starts_with(state)))
            || std::fs::read(process.join("environ"))
                .is_ok_and(|all| String::from_utf8_lossy(&all).contains(&text))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|entry| has(&entry.path()))
        .map(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            format!("{:?} {}", entry.file_name(), String::from_utf8_lossy(&line).replace('\0', " "))
        })
        .collect()
}
