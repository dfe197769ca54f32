//! What the fault cases share: a sandbox's processes, random moments that can be had again, and the journal of what a guest had
//! made durable.

mod journal;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{Case, Verdict, World};
use rustix::process::{Pid, Signal, kill_process};

pub use journal::{Journal, Writer};

/// Random numbers (splitmix64) from a seed that is said, so that a run can be had again: `VIV_FAULTS_SEED`.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins with the seed that was asked for, or one of the time, and says it.
    pub fn new() -> Self {
        let asked = std::env::var("VIV_FAULTS_SEED").ok().and_then(|text| text.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = asked.unwrap_or_else(now);
        eprintln!("VIV_FAULTS_SEED={seed}");
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit.max(1)
    }

    /// Waits for a random time up to `most`, and says how long.
    pub fn wait(&mut self, most: Duration) -> Duration {
        let time = Duration::from_micros(self.below(most.as_micros() as u64));
        std::thread::sleep(time);
        time
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}

/// A sandbox's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processes {
    /// The shim.
    pub shim: Pid,
    /// Its vmm, if it has started it.
    pub vmm: Option<Pid>,
}

/// The folder of the sandbox with this name, found as a user's program finds it.
pub fn folder(world: &World, name: &str) -> Result<PathBuf, Verdict> {
    let listed = world.run(&["ls", "--json"])?.text();
    let id = listed
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|row| row["name"] == name)
        .and_then(|row| Some(row["id"].as_str()?.to_owned()));
    let id = id.ok_or_else(|| Verdict::Wrong(format!("ls does not list {name}: {listed}")))?;
    Ok(world.state().join("sandboxes").join(id))
}

/// The processes of a sandbox by its folder's name, which its shim has on its command line; `None` when it does not run.
pub fn processes(id: &str) -> Option<Processes> {
    let entries = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let (mut shim, mut parents) = (None, Vec::new());
    for pid in pids {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        if words.get(1..3) == Some(&[b"shim", id.as_bytes()]) {
            shim = Pid::from_raw(pid);
        }
        // The name, in parentheses, may have any characters; then state and parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent.and_then(Pid::from_raw) {
            parents.push((parent, pid));
        }
    }
    let shim = shim?;
    let vmm = parents.iter().find(|(parent, _)| *parent == shim).and_then(|(_, pid)| Pid::from_raw(*pid));
    Some(Processes { shim, vmm })
}

/// Kills a process that may have ended just now.
pub fn kill(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
}

/// `viv check --json` must find nothing wrong.
pub fn check(world: &World, name: &str) -> Case {
    let said = world.run(&["check", "--json", name])?;
    e2e::ensure(said.code == 0, format!("check: {said:?}"))
}

/// The checksum of the base image that a sandbox runs on.
pub fn base_checksum(world: &World, name: &str) -> Result<String, Verdict> {
    let spec = std::fs::read(folder(world, name)?.join("spec.json"))?;
    let spec: serde_json::Value = serde_json::from_slice(&spec)?;
    let image = spec["image"].as_str().unwrap_or_default();
    let base = world.cache().join("images").join(image).join("base.erofs");
    let said = std::process::Command::new("sha256sum").arg(&base).output()?;
    e2e::ensure(said.status.success(), format!("sha256sum {}", base.display()))?;
    Ok(String::from_utf8_lossy(&said.stdout).split(' ').next().unwrap_or_default().to_owned())
}
