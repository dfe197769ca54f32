//! What the fault cases share: a sandbox's processes and the journal of what a guest had
//! made durable.

pub mod clock;
mod journal;
mod power;
mod session;

use e2e::{Case, Verdict, World};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

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
    let is = |pid: i32, role: &[&[u8]]| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1..).is_some_and(|words| words.starts_with(role))
    };
    let is_shim = |pid: &i32| is(*pid, &[b"shim", id.as_bytes()]);
    let shim = parents().into_iter().map(|(_, pid)| pid).find(is_shim).and_then(Pid::from_raw)?;
    // Its other child is the gateway's keeper.
    let is_vmm = |pid: &Pid| is(pid.as_raw_nonzero().get(), &[b"vmm"]);
    Some(Processes { shim, vmm: children(shim).into_iter().find(is_vmm) })
}

/// Kills a process that may have ended just now.
pub fn kill(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
}

/// Sets how long the files may become that another process of this user writes. The hard limit stays, so that it can be raised again.
///
/// # Errors
/// The process is gone.
pub fn limit_files(pid: Pid, bytes: Option<u64>) -> Case {
    let maximum = getrlimit(Resource::Fsize).maximum;
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum })?;
    Ok(())
}

/// The children of a process.
pub fn children(parent: Pid) -> Vec<Pid> {
    let all = parents().into_iter();
    all.filter(|(of, _)| *of == parent).filter_map(|(_, pid)| Pid::from_raw(pid)).collect()
}

/// Every process with its parent before it.
fn parents() -> Vec<(Pid, i32)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: i32| {
        // The name, in parentheses, may have any characters; then state and parent.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((Pid::from_raw(parent)?, pid))
    };
    pids.filter_map(parent).collect()
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
