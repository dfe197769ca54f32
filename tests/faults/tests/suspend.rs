//! A host that sleeps: all processes of a sandbox are stopped for a while and go on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{Case, Verdict, World, ensure};
use faults::clock::{PATIENCE, Times, WATCHED, judge};
use faults::processes;
use rustix::process::{Pid, Signal, kill_process};

use crate::Named;

pub(crate) const CASES: &[Named] = &[("a_stopped_guest_goes_on_with_the_right_time", stopped)];

const NAME: &str = "shell-asleep";

/// How often it is tried: a busy host may give a guest no processor for a second.
const TIMES: usize = 2;

/// A process that computes all the time, as a watchdog wants to see, and one that says the time fifty times a second.
const BUSY: &str = r#"(while :; do :; done) &
exec python3 -c '
import time
while True:
    print("%.6f" % time.time(), flush=True)
    time.sleep(0.02)
'"#;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A session that was opened before and says the guest's time.
struct Stream {
    client: Child,
    heard: Arc<Mutex<Times>>,
}

impl Stream {
    fn start(world: &World) -> Result<Self, Verdict> {
        let mut client = world
            .viv(&world.project("asleep"), ["exec", NAME, "sh", "-c", BUSY])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = client.stdout.take().ok_or_else(|| Verdict::Wrong("the client has no output".into()))?;
        let heard = Arc::<Mutex<Times>>::default();
        let kept = heard.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let times = line.parse().map(|guest| (now(), guest));
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend(times);
            }
        });
        Ok(Self { client, heard })
    }

    fn times(&self) -> Times {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// The watchdogs have taken nothing for stuck.
fn words(world: &World, console: &str) -> Case {
    let said = world.run(&["exec", "-u", "root", NAME, "dmesg"])?;
    let kernel = said.text();
    for word in ["stall", "lockup", "stuck", "blocked for more than", "unstable"] {
        let lines: Vec<&str> =
            kernel.lines().chain(console.lines()).filter(|line| line.contains(word)).collect();
        ensure(lines.is_empty(), format!("{word}: {lines:?}"))?;
    }
    ensure(said.code == 0 && kernel.contains("Linux version"), "dmesg says what there was")
}

fn stopped(world: &World) -> Case {
    // Watchdogs take a CPU for stuck after 20 s and a grace period after 21 s.
    let time = Duration::from_secs(if e2e::long_cases() { 60 } else { 30 });
    let project = world.project("asleep");
    world.shell_ok(&project, "true")?;
    let folder = world.folder(NAME)?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stream = Stream::start(world)?;
    e2e::eventually("the guest's time", || stream.times().len() > 100)?;
    let client = i32::try_from(stream.client.id()).ok().and_then(Pid::from_raw);
    let found = processes(&id).ok_or_else(|| Verdict::Wrong("the sandbox does not run".into()))?;
    let all: Vec<Pid> = [client, Some(found.shim), found.vmm].into_iter().flatten().collect();
    ensure(all.len() == 3, "a client, a shim and a vmm")?;
    let mut judged = Ok(());
    for _ in 0..TIMES {
        judged = once(world, &stream, &all, &folder, time);
        if judged.is_ok() {
            break;
        }
    }
    drop(stream);
    world.run(&["rm", "-f", NAME])?;
    judged
}

/// Stops everything of a sandbox for this long, and judges what its guest says then.
fn once(world: &World, stream: &Stream, all: &[Pid], folder: &Path, time: Duration) -> Case {
    let before = stream.times();
    let off = before.iter().rev().take(50).map(|(host, guest)| host - guest).fold(f64::INFINITY, f64::min);
    ensure(off.abs() < PATIENCE, format!("the guest's clock is off by {off} s before the stop"))?;
    for pid in all {
        kill_process(*pid, Signal::STOP)?;
    }
    std::thread::sleep(time);
    let woken = now();
    for pid in all {
        kill_process(*pid, Signal::CONT)?;
    }
    std::thread::sleep(Duration::from_secs_f64(WATCHED));
    let times = stream.times();
    let console = std::fs::read_to_string(folder.join("logs/console.log")).unwrap_or_default();
    judge(&times, woken).and_then(|()| words(world, &console)).map_err(|verdict| match verdict {
        Verdict::Wrong(what) => {
            let what = format!("{what}\n{}", evidence(world, &times, woken, &console));
            println!("{what}");
            Verdict::Wrong(what)
        }
        skipped => skipped,
    })
}

/// What is needed to see why it failed: the times around the stop, the guest's kernel, its console.
fn evidence(world: &World, times: &Times, woken: f64, console: &str) -> String {
    let first = times.iter().position(|(host, _)| *host >= woken).unwrap_or(times.len());
    let around = times.iter().skip(first.saturating_sub(3)).take(60);
    let around: Vec<String> =
        around.map(|(host, guest)| format!("{:+.3} {:+.3}", host - woken, guest - woken)).collect();
    let dmesg = world.run(&["exec", "-u", "root", NAME, "dmesg"]).map_or(String::new(), |said| said.text());
    let tail = |text: &str| {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    };
    format!(
        "host's and guest's time after the stop: {}\ndmesg:\n{}\nconsole.log:\n{}",
        around.join(", "),
        tail(&dmesg),
        tail(console)
    )
}
