//! What a guest syncs is synced on the host: nothing between the two answers for it.

use std::process::{Command, Stdio};

use e2e::{Case, Verdict, World, ensure, eventually};
use faults::processes;
use rustix::process::{Pid, Signal, kill_process};

use crate::Named;

pub(crate) const CASES: &[Named] = &[("each_sync_of_the_guest_is_one_of_its_layer", synced)];

/// Each of them makes the guest's file system flush its disk.
const SYNCS: usize = 5;

fn synced(world: &World) -> Case {
    let project = world.project("flush");
    world.shell_ok(&project, "true")?;
    let folder = world.folder("shell-flush")?;
    let id = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vmm = processes(&id).and_then(|found| found.vmm);
    let vmm = vmm.ok_or_else(|| Verdict::Wrong("the sandbox does not run".into()))?.as_raw_nonzero();
    let output = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync", "-p", &vmm.to_string(), "-o"])
        .arg(output.path())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Verdict::Skipped(format!("needs strace: {error}")))?;
    let status = format!("/proc/{vmm}/status");
    let traced = || {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    let mut ended = false;
    let attached = eventually("strace", || {
        ended = ended || !matches!(strace.try_wait(), Ok(None));
        ended || traced()
    });
    if ended {
        return Err(Verdict::Skipped("strace may not look at the vmm: needs root".into()));
    }
    attached?;
    let script = format!("for i in $(seq {SYNCS}); do echo $i > ~/synced; sync ~/synced; done; echo done");
    let said = world.run(&["exec", "shell-flush", "sh", "-c", &script])?;
    // It lets go of the vmm, which goes on.
    if let Some(pid) = i32::try_from(strace.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::TERM)?;
    }
    strace.wait()?;
    ensure(said.code == 0 && said.text() == "done", format!("{said:?}"))?;
    let trace = std::fs::read_to_string(output.path())?;
    let of_layer =
        trace.lines().filter(|line| line.contains("fdatasync(") && line.contains("/disk/layer-0.raw>"));
    let count = of_layer.count();
    ensure(count >= SYNCS, format!("{count} syncs of the layer for {SYNCS} of the guest:\n{trace}"))?;
    world.run(&["rm", "-f", "shell-flush"]).map(|_| ())
}
