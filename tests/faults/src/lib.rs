//! What the fault cases share: a sandbox's processes and the journal of what a guest had
//! made durable.

pub mod clock;
mod journal;
mod power;
mod session;

use e2e::{Case, Verdict, World};
use rustix::process::{Pid, Signal, kill_process};

pub use journal::{Journal, PROGRAM, Writer};
pub use power::{Ledger, Recording};
pub use session::Session;

/// A sandbox's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processes {
    /// The shim.
    pub shim: Pid,
    /// Its vmm, if it has started it.
    pub vmm: Option<Pid>,
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
    let spec = std::fs::read(world.folder(name)?.join("spec.json"))?;
    let spec: serde_json::Value = serde_json::from_slice(&spec)?;
    let image = spec["image"].as_str().unwrap_or_default();
    let base = world.cache().join("images").join(image).join("base.erofs");
    let said = std::process::Command::new("sha256sum").arg(&base).output()?;
    e2e::ensure(said.status.success(), format!("sha256sum {}", base.display()))?;
    Ok(String::from_utf8_lossy(&said.stdout).split(' ').next().unwrap_or_default().to_owned())
}
