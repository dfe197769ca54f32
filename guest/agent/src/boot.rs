//! From the kernel's first call to a guest that takes sessions.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use agent_proto::abi;
use agent_proto::messages::Phase;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, clock_gettime};

use crate::cmdline::Cmdline;
use crate::console::{log, say};
use crate::devices::Devices;
use crate::docker::Daemon;
use crate::fail::{Doing, Outcome};
use crate::reaper::Reaper;
use crate::session::Sessions;
use crate::shares::Shares;
use crate::status::Board;
use crate::{cgroup, docker, identity, mounts, network, power, root, script, server, shutdown, sys};

/// Everything that the agent's threads share.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) board: Arc<Board>,
    pub(crate) sessions: Sessions,
    pub(crate) shares: Shares,
    pub(crate) docker: Daemon,
    pub(crate) stopping: AtomicBool,
}

impl Agent {
    /// `groups`: whether there are control groups to put sessions into.
    pub(crate) fn new(groups: bool) -> Arc<Self> {
        let reaper = Arc::new(Reaper::default());
        let board = Arc::new(Board::new());
        let sessions = Sessions::new(Arc::clone(&reaper), Arc::clone(&board), groups);
        Arc::new(Self {
            reaper,
            board,
            sessions,
            shares: Shares::default(),
            docker: Daemon::default(),
            stopping: AtomicBool::new(false),
        })
    }
}

/// PID 1. The first thread reaps; all else happens on others, whose panics end them but not the machine.
pub(crate) fn init() -> ! {
    keep_third_descriptor();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    std::panic::set_hook(Box::new(|panic| say(format_args!("viv-agent: {panic}"))));
    let agent = Agent::new(true);
    let booting = Arc::clone(&agent);
    let boot = move || {
        if let Err(e) = boot(&booting) {
            say(format_args!("{} {e}", abi::PANIC_LINE));
            booting.board.change(|status| {
                status.message = e.to_string();
                status.set_phase(Phase::Failed);
            });
            if Cmdline::of_kernel().script.is_some() {
                shutdown::switch_off(RebootCommand::PowerOff);
            }
        }
    };
    if std::thread::Builder::new().name("boot".into()).spawn(boot).is_err() {
        say(format_args!("{} no memory for a thread", abi::PANIC_LINE));
    }
    agent.reaper.run()
}

/// Keeps number 3 taken for ever: children that need a descriptor there overwrite it (see `spawn`).
fn keep_third_descriptor() {
    while let Ok(file) = File::open("/") {
        if file.as_raw_fd() > 3 {
            break;
        }
        std::mem::forget(file);
    }
}

fn boot(agent: &Arc<Agent>) -> Outcome {
    mounts::mount_early()?;
    let cmdline = Cmdline::of_kernel();
    if let Some(time) = cmdline.time {
        identity::set_clock_at_start(time)?;
    }
    let devices = Devices::scan();
    let link = network::begin(devices.load_modules()?);
    listen(agent);
    log("modules loaded");

    let root = root::assemble(&devices, &cmdline, &agent.reaper)?;
    agent.board.change(|status| {
        status.first_boot = root.first_boot;
        status.base = root.base.into();
    });
    if !root.has_disk {
        log("no disk: changes are kept in memory");
    }
    log("root assembled");
    Devices::link_disks()?;
    cgroup::delegate()?;
    settle(&cmdline)?;
    power::offer(agent);
    let network = link.wait();
    if network {
        network::name_servers();
    }
    if cmdline.docker {
        docker::start(agent, cmdline.script.is_none())?;
    }
    let micros = uptime_micros();
    agent.board.change(|status| {
        status.ready_micros = micros;
        status.network = network;
        status.set_phase(Phase::Ready);
    });
    log("ready for sessions");
    say(format_args!("{} {micros}", abi::READY_LINE));
    if root.was_cut_off {
        let reaper = Arc::clone(&agent.reaper);
        // Without a thread for it, it is left to the next run that was cut off.
        let _ = std::thread::Builder::new().name("trim".into()).spawn(move || root::trim_disk(&reaper));
    }
    if let Some(script) = &cmdline.script {
        script::run(agent, script)?;
        shutdown::begin(agent, std::time::Duration::from_secs(2), RebootCommand::PowerOff);
    }
    Ok(())
}

/// Opens the port as early as there is a device for it. A machine without one can still run a script.
fn listen(agent: &Arc<Agent>) {
    let listener = match sys::vsock_listen(abi::AGENT_PORT) {
        Ok(listener) => listener,
        Err(e) => return log(format_args!("no vsock: {e}")),
    };
    let agent = Arc::clone(agent);
    let accept = move || server::accept_all(&agent, &listener);
    if let Err(e) = std::thread::Builder::new().name("accept".into()).spawn(accept) {
        log(format_args!("no thread for connections: {e}"));
    }
}

/// Name, id, loopback, limits and kernel settings.
fn settle(cmdline: &Cmdline) -> Outcome {
    identity::set_hostname(cmdline.hostname.as_deref().unwrap_or_default());
    identity::ensure_machine_id();
    sys::interface_up("lo").doing("Cannot bring the loopback interface up")?;
    // What distributions set for services and logins; everything started here inherits it.
    for (resource, soft, hard) in [(Resource::Nofile, 1024, 524_288), (Resource::Core, 0, u64::MAX)] {
        let limit = Rlimit { current: Some(soft), maximum: (hard != u64::MAX).then_some(hard) };
        setrlimit(resource, limit).doing("Cannot set a limit")?;
    }
    for (setting, value) in [
        ("fs/inotify/max_user_instances", "1024"),
        ("fs/inotify/max_user_watches", "1048576"),
        ("kernel/pid_max", "4194304"),
        ("net/ipv4/ping_group_range", "0 2147483647"),
        ("vm/max_map_count", "1048576"),
    ] {
        if let Err(e) = std::fs::write(format!("/proc/sys/{setting}"), value) {
            log(format_args!("{setting}: {e}"));
        }
    }
    Ok(())
}

fn uptime_micros() -> u64 {
    let up = clock_gettime(ClockId::Boottime);
    up.tv_sec.unsigned_abs() * 1_000_000 + up.tv_nsec.unsigned_abs() / 1000
}
