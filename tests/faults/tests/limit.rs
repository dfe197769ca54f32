//! A limit on the length of files (`ulimit -f`), which the kernel enforces with a signal that ends a process: as a full disk, and
//! without any privilege.

use std::process::Command;

use e2e::{Case, Verdict, World, ensure, eventually, say};
use faults::{Session, limit_files, processes};

use crate::Named;

pub(crate) const CASES: &[Named] =
    &[("a_guest_waits_where_a_file_may_not_grow", waits), ("a_disk_that_may_not_be_made_is_said", refused)];

/// The vmm of a running sandbox may write nothing behind the first 4096 bytes of any file; then it may.
fn waits(world: &World) -> Case {
    let project = world.project("limit");
    world.shell_ok(&project, "true")?;
    let id = world.folder("shell-limit")?.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vmm = processes(&id).and_then(|found| found.vmm);
    let vmm = vmm.ok_or_else(|| Verdict::Wrong("the sandbox does not run".into()))?;
    let script =
        "echo ready; while [ ! -e limited ]; do sleep 0.1; done; echo kept > ~/kept; sync -f ~; cat ~/kept";
    let session = Session::start(world.viv(&project, ["exec", "shell-limit", "sh", "-c", script]))?;
    limit_files(vmm, Some(4096))?;
    std::fs::write(project.join("limited"), "")?;
    let told = eventually("the notice", || session.errors().contains("disk is full"));
    limit_files(vmm, None)?;
    told?;
    let said = session.end()?;
    ensure(said.code == 0 && said.text() == "ready\nkept", format!("{said:?}"))?;
    let after = processes(&id).and_then(|found| found.vmm);
    ensure(after == Some(vmm), "it is the same vmm as before")?;
    world.run(&["rm", "-f", "shell-limit"]).map(|_| ())
}

/// With the limit below the disk's size from the beginning: one sentence and the next step, from a process that ends by itself.
fn refused(world: &World) -> Case {
    let project = world.project("refused");
    let mut words = world.interactive();
    words.extend(["--", "-c", "true"].map(str::to_owned));
    let mut command = Command::new("sh");
    world.environment(&mut command, &project);
    // In blocks of 512 bytes: 16 MiB.
    command.args(["-c", "ulimit -S -f 32768 && exec \"$@\"", "sh"]).arg(world.program()).args(&words);
    let said = say(command, b"")?;
    ensure(
        said.code == 125
            && said.err.lines().count() == 2
            && said.err.contains("may not become that large")
            && said.err.contains("ulimit -f unlimited"),
        format!("{said:?}"),
    )?;
    // Nothing is lost or half made.
    let said = world.shell_ok(&project, "echo up")?;
    ensure(said == "up", said)?;
    world.run(&["rm", "-f", "shell-refused"]).map(|_| ())
}
