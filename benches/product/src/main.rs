//! What the product itself costs, by the real `viv` with a state of its own: listing, a command's round trip, stopping,
//! deleting, starting after a kill, and what an idle sandbox takes of the host.
//!
//! `cargo run --release -p product` prints the table of `docs/benchmarks.md`. It needs the base image
//! (`viv run shell` makes it). `--times N` (default 10) repeats each row.

mod costs;
mod figures;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::figures::{Figures, Unit};

/// Stopped sandboxes that `viv ls` lists.
const MANY: usize = 100;
/// How long an idle sandbox is watched.
const IDLE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut times = 10;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--times" => {
                let value = arguments.next().context("--times needs a value")?;
                times = value.parse().context("--times takes a number")?;
            }
            other => bail!("unknown argument {other}; known: --times N"),
        }
    }
    let viv = Viv::new()?;
    let mut figures = Figures::default();
    listing(&viv, times, &mut figures)?;
    commands(&viv, times, &mut figures)?;
    idle(&viv, &mut figures)?;
    ends(&viv, times, &mut figures)?;
    print!("{}", figures.markdown());
    Ok(())
}

/// The program, and a state and a project folder of its own. All its sandboxes are deleted with it.
struct Viv {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Viv {
    fn new() -> Result<Self> {
        let status = Command::new("cargo").args(["build", "--release", "-p", "viv"]).status()?;
        let program = std::env::current_exe()?.with_file_name("viv");
        if !status.success() || !program.is_file() {
            bail!("there is no {}", program.display());
        }
        // Not below /tmp, which is often in memory.
        let folder = tempfile::Builder::new().prefix("viv-figures-").tempdir_in("/var/tmp")?;
        Ok(Self { program, folder })
    }

    fn project(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    fn command<S: AsRef<OsStr>>(&self, project: &Path, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(project).env("XDG_STATE_HOME", self.folder.path().join("state"));
        command.stdin(Stdio::null());
        command
    }

    /// Runs it to its end, which must be a good one; gives its output.
    fn run(&self, project: &Path, arguments: &[&str]) -> Result<String> {
        let output = self.command(project, arguments).stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("viv {} ended with {}", arguments.join(" "), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Wall time of one run.
    fn time(&self, project: &Path, arguments: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        self.run(project, arguments)?;
        Ok(begun.elapsed())
    }

    /// The process ids of a running sandbox: shim and vmm.
    fn processes(&self, project: &Path, name: &str) -> Result<[u64; 2]> {
        let all: Value = serde_json::from_str(&self.run(project, &["inspect", name])?)?;
        let pid =
            |which: &str| all["processes"][which].as_u64().with_context(|| format!("no {which} in {all}"));
        Ok([pid("shim")?, pid("vmm")?])
    }
}

impl Drop for Viv {
    fn drop(&mut self) {
        let project = self.folder.path().to_owned();
        let names = self.run(&project, &["ls", "-q"]).unwrap_or_default();
        for name in names.lines() {
            let _ = self.run(&project, &["rm", "-f", name]);
        }
    }
}

fn listing(viv: &Viv, times: usize, figures: &mut Figures) -> Result<()> {
    for number in 0..MANY {
        let project = viv.project(&format!("p{number}"))?;
        viv.run(&project, &["create", "shell", "."])?;
    }
    let project = viv.project("p0")?;
    for _ in 0..times {
        figures.add(
            "a process of `viv` that does nothing (`viv --version`)",
            Unit::Time,
            nanoseconds(viv.time(&project, &["--version"])?),
        );
        figures.add("`viv ls`, 100 stopped sandboxes", Unit::Time, nanoseconds(viv.time(&project, &["ls"])?));
        figures.add("`viv ls -q`, the same", Unit::Time, nanoseconds(viv.time(&project, &["ls", "-q"])?));
    }
    let names = viv.run(&project, &["ls", "-q"])?;
    let names: Vec<&str> = names.lines().collect();
    let begun = Instant::now();
    let arguments: Vec<&str> = ["rm", "-f"].into_iter().chain(names.iter().copied()).collect();
    viv.run(&project, &arguments)?;
    let each = begun.elapsed() / u32::try_from(names.len().max(1))?;
    figures.add("`viv rm` of a stopped sandbox that never ran, each of 100", Unit::Time, nanoseconds(each));
    Ok(())
}

/// A command's round trip beside what the command itself takes in the guest.
fn commands(viv: &Viv, times: usize, figures: &mut Figures) -> Result<()> {
    let project = viv.project("busy")?;
    viv.run(&project, &["run", "-d", "shell", ".", "--name", "busy"])?;
    // The first ones find cold caches in the guest.
    for _ in 0..3 {
        viv.run(&project, &["exec", "busy", "true"])?;
    }
    for _ in 0..times {
        let took = viv.time(&project, &["exec", "busy", "true"])?;
        figures.add("`viv exec NAME true`", Unit::Time, nanoseconds(took));
        // The command's own time: what the guest needs to start and end such a process.
        let script = "s=$(date +%s%N); for i in 1 2 3 4 5 6 7 8 9 10; do /bin/true; done; e=$(date +%s%N); echo $(((e - s) / 10))";
        let own: u64 = viv.run(&project, &["exec", "busy", "bash", "-c", script])?.trim().parse()?;
        figures.add("`/bin/true` itself, started by bash in the guest", Unit::Time, own);
    }
    Ok(())
}

/// The sandbox of [`commands`], left alone.
fn idle(viv: &Viv, figures: &mut Figures) -> Result<()> {
    let project = viv.project("busy")?;
    // Docker's start and the guest's own first minute are over then.
    std::thread::sleep(Duration::from_secs(60));
    let pids = viv.processes(&project, "busy")?;
    let before = costs::of(&pids)?;
    let begun = Instant::now();
    std::thread::sleep(IDLE);
    let after = costs::of(&pids)?;
    let seconds = begun.elapsed().as_secs_f64();
    let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
    figures.add_float(
        "wake-ups a second of an idle sandbox (shim and vmm)",
        rate(after.switches, before.switches),
    );
    let percent = rate(after.nanoseconds, before.nanoseconds) / 1e7;
    figures.add_float("CPU of an idle sandbox (shim and vmm), % of one core", percent);
    for (name, pid) in [("shim", pids[0]), ("vmm", pids[1])] {
        match costs::memory(pid) {
            Ok(bytes) => figures.add(
                &format!("memory of the {name} beyond guest RAM and base image"),
                Unit::Bytes,
                bytes,
            ),
            Err(error) => eprintln!("the {name}'s memory is not shown to this user: {error:#}"),
        }
    }
    Ok(())
}

/// Stopping, deleting, and starting again after a stop and after a kill.
fn ends(viv: &Viv, times: usize, figures: &mut Figures) -> Result<()> {
    let project = viv.project("busy")?;
    let first = ["run", "shell", ".", "--name", "busy", "--", "-c", "true"];
    for _ in 0..times {
        figures.add("`viv stop`", Unit::Time, nanoseconds(viv.time(&project, &["stop", "busy"])?));
        figures.add(
            "`viv run shell . -- -c true`, stopped before",
            Unit::Time,
            nanoseconds(viv.time(&project, &first)?),
        );
        let [_, vmm] = viv.processes(&project, "busy")?;
        let begun = Instant::now();
        let killed = Command::new("kill").args(["-KILL", &vmm.to_string()]).status()?;
        if !killed.success() {
            bail!("the vmm {vmm} could not be killed");
        }
        // The shim may not have noticed yet; a user would type it again, too.
        if viv.command(&project, &first).stderr(Stdio::null()).status().is_ok_and(|status| !status.success())
        {
            viv.run(&project, &first)?;
        }
        figures.add(
            "`kill -9` of the vmm, then `viv run shell . -- -c true`",
            Unit::Time,
            nanoseconds(begun.elapsed()),
        );
    }
    for _ in 0..times {
        figures.add(
            "`viv rm -f` of a running sandbox",
            Unit::Time,
            nanoseconds(viv.time(&project, &["rm", "-f", "busy"])?),
        );
        viv.run(&project, &first)?;
    }
    Ok(())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
