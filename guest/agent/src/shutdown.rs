//! Going down: containers first, then everybody, then the disk, then the power.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use agent_proto::messages::Phase;
use rustix::system::{RebootCommand, reboot};

use crate::boot::Agent;
use crate::console::{log, say};
use crate::{root, sys};

/// What processes outside containers get at least to end by themselves.
const LAST_CALL: Duration = Duration::from_millis(500);

/// Goes down on a thread of its own, once. What runs has `limit` to end before it is killed; `last` is the end.
pub(crate) fn begin(agent: &Arc<Agent>, limit: Duration, last: RebootCommand) {
    if agent.stopping.swap(true, Ordering::AcqRel) {
        return;
    }
    agent.board.change(|status| status.set_phase(Phase::Stopping));
    let down = Arc::clone(agent);
    let started =
        std::thread::Builder::new().name("shutdown".into()).spawn(move || go_down(&down, limit, last));
    if started.is_err() {
        go_down(agent, Duration::ZERO, last);
    }
}

fn go_down(agent: &Agent, limit: Duration, last: RebootCommand) {
    log(if last == RebootCommand::Restart { "going down for a reset" } else { "going down" });
    let deadline = Instant::now() + limit;
    for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGCONT] {
        agent.sessions.signal_all(signal);
    }
    agent.docker.stop(limit);
    if !limit.is_zero() {
        sys::signal_everyone(libc::SIGTERM);
        let deadline = deadline.max(Instant::now() + LAST_CALL);
        while Instant::now() < deadline && processes_left() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    switch_off(last)
}

/// Kills what is left, makes the disk clean, and switches the machine off or resets it.
pub(crate) fn switch_off(last: RebootCommand) -> ! {
    sys::signal_everyone(libc::SIGKILL);
    let start = Instant::now();
    while processes_left() && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(2));
    }
    rustix::fs::sync();
    if let Err(e) = root::seal_disk() {
        log(e);
        // Emergency remount, read-only: whatever still holds the disk open loses.
        let _ = std::fs::write("/proc/sysrq-trigger", "u");
        std::thread::sleep(Duration::from_millis(50));
        rustix::fs::sync();
    }
    loop {
        if let Err(e) = reboot(last) {
            say(format_args!("{} cannot power off: {e}", agent_proto::abi::PANIC_LINE));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Whether any process but PID 1 and the kernel's own is left.
fn processes_left() -> bool {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.parse::<u32>().ok()).filter(|pid| *pid > 1);
        // The kernel's threads have no memory map.
        pid.is_some() && std::fs::read_link(entry.path().join("exe")).is_ok()
    })
}
