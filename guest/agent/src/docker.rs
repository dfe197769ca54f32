//! dockerd: its socket is here from the start, so that the first `docker` command waits for it instead of failing.
//!
//! The socket belongs to the agent and outlives dockerd: who connects while dockerd starts, or is started again after its death, waits in the socket's queue.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_proto::messages::{Docker, LogSource};
use serde_json::Value;

use crate::boot::Agent;
use crate::cgroup::Group;
use crate::console::log;
use crate::fail::{Doing, Outcome};
use crate::journal::JOURNAL;
use crate::mounts::make_dir;
use crate::reaper::Child;
use crate::spawn::{Preparation, prepare, what_failed};
use crate::users::Accounts;
use crate::{network, oci};

const SOCKET: &str = "/run/docker.sock";
const LOG_DIR: &str = "/var/log/vivarium";
const LOG: &str = "/var/log/vivarium/dockerd.log";
const OLD_LOG: &str = "/var/log/vivarium/dockerd.log.1";
/// The log's size at which it becomes the old one, in bytes.
const LOG_LIMIT: u64 = 4 * 1024 * 1024;
/// The pause after dockerd's death, at first and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long dockerd waits for the host's setup, whose certificates it reads only once. Nobody but the host's own tests leaves it out.
const SETUP: Duration = Duration::from_secs(5);
const SETTINGS: &str = "/etc/docker/daemon.json";
/// A dockerd that lived this long was well; the pause begins anew.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// The daemon as the rest of the agent sees it.
#[derive(Debug, Default)]
pub(crate) struct Daemon {
    stopping: AtomicBool,
    running: Mutex<Option<Arc<Child>>>,
}

impl Daemon {
    /// Ends dockerd, which ends its containers; it is not started again. Waits at most `limit`.
    pub(crate) fn stop(&self, limit: Duration) {
        self.stopping.store(true, Ordering::Release);
        let child = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(child) = child {
            // Gone by itself in the meantime.
            let _ = child.signal_group(libc::SIGTERM);
            child.wait_for(limit);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

/// Makes the socket and keeps dockerd running behind it, on a thread of its own. Without dockerd in the image: says so, no more.
///
/// `waits`: whether dockerd is started only once the host has set the guest up.
pub(crate) fn start(agent: &Arc<Agent>, waits: bool) -> Outcome {
    let Some(program) = ["/usr/sbin/dockerd", "/usr/bin/dockerd"].into_iter().find(|p| Path::new(p).exists())
    else {
        agent.board.set_docker(Docker::Absent);
        return Ok(());
    };
    let socket = listen()?;
    agent.board.set_docker(Docker::Starting);
    let agent = Arc::clone(agent);
    if let Err(e) = oci::offer() {
        log(format_args!("containers will not trust the host's certificates: {e}"));
    }
    let supervise = move || {
        if waits {
            agent.board.wait_set_up(SETUP);
        }
        supervise(&agent, program, &socket);
    };
    std::thread::Builder::new().name("docker".into()).spawn(supervise).doing("Cannot watch over dockerd")?;
    Ok(())
}

fn listen() -> Outcome<OwnedFd> {
    let socket = UnixListener::bind(SOCKET).doing("Cannot make Docker's socket")?;
    // The standard library's queue of 128 is not for hundreds of waiting builds.
    rustix::net::listen(&socket, 4096).doing("Cannot listen on Docker's socket")?;
    let group = Accounts::read().group_id("docker");
    chown(SOCKET, Some(0), group.or(Some(0))).doing("Cannot give Docker's socket to its group")?;
    fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o660))
        .doing("Cannot set the mode of Docker's socket")?;
    Ok(socket.into())
}

fn supervise(agent: &Arc<Agent>, program: &str, socket: &OwnedFd) {
    let mut pause = PAUSE.0;
    while !agent.docker.is_stopping() {
        let started = Instant::now();
        match run_once(agent, program, socket) {
            Ok(()) if agent.docker.is_stopping() => return,
            Ok(()) => log("dockerd ended; starting it again"),
            Err(e) => log(format_args!("dockerd: {e}")),
        }
        agent.board.set_docker(Docker::Failing);
        if started.elapsed() > WELL_AFTER {
            pause = PAUSE.0;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// One life of dockerd.
fn run_once(agent: &Arc<Agent>, program: &str, socket: &OwnedFd) -> Outcome {
    make_dir(LOG_DIR)?;
    // The number in it may by now be another process's.
    let _ = fs::remove_file("/run/docker.pid");
    let (output, theirs) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("Cannot make a pipe")?;
    let mut command = Command::new("/bin/sh");
    // Socket activation wants dockerd's own process id, which only the process itself knows.
    command
        .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh", program, "-H", "fd://"])
        .args(network_options(&fs::read(SETTINGS).unwrap_or_default(), network::mtu()))
        .env_clear()
        .env("PATH", format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", oci::FOLDER))
        .envs([("HOME", "/root"), ("LISTEN_FDS", "1"), ("LANG", "C.UTF-8")])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(theirs.try_clone().doing("Cannot share a pipe")?)
        .stderr(theirs);
    // Kept while dockerd lives: a group that nobody holds is removed.
    let group = Group::for_service("dockerd")?;
    let third = socket.try_clone().doing("Cannot share Docker's socket")?;
    prepare(
        &mut command,
        Preparation {
            group: Some(group.entrance()?),
            third: Some(third),
            oom_score: b"-500",
            ..Preparation::default()
        },
    );
    let child = Arc::new(
        agent.reaper.spawn(&mut command).map_err(|e| what_failed(&e).1).doing("Cannot start dockerd")?,
    );
    // The parent's copy of the pipe must go, or its end would never come.
    drop(command);
    *agent.docker.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&child));

    std::thread::scope(|scope| {
        scope.spawn(|| keep_log(File::from(output)));
        scope.spawn(|| {
            if ping(|| child.wait_for(Duration::ZERO).is_some()) {
                agent.board.set_docker(Docker::Ready);
            }
        });
        child.wait();
    });
    Ok(())
}

/// Options that give Docker's networks the link's MTU: with the usual 1500 bytes everything would be cut into pieces on its way out. What the user's own
/// settings say of it stays; dockerd refuses to be told twice.
fn network_options(settings: &[u8], mtu: Option<u32>) -> Vec<String> {
    let Some(mtu) = mtu else { return Vec::new() };
    // What is wrong with the file, dockerd says better.
    let settings: Value = serde_json::from_slice(settings).unwrap_or_default();
    let mut options = Vec::new();
    if settings.get("mtu").is_none() {
        options.push(format!("--mtu={mtu}"));
    }
    if settings.get("default-network-opts").is_none() {
        options.push(format!("--default-network-opt=bridge=com.docker.network.driver.mtu={mtu}"));
    }
    options
}

/// Asks over the socket until dockerd answers. Returns whether it did before it ended.
fn ping(ended: impl Fn() -> bool) -> bool {
    while !ended() {
        let asked = || -> std::io::Result<bool> {
            let mut stream = UnixStream::connect(SOCKET)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
            let mut answer = [0u8; 12];
            stream.read_exact(&mut answer)?;
            Ok(answer.ends_with(b" 200"))
        };
        // A time-out means that it is still starting.
        if asked().unwrap_or(false) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Gives the host the lines that these bytes end; `line` is the beginning of the next one.
fn show(bytes: &[u8], line: &mut Vec<u8>) {
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        line.extend_from_slice(piece);
        if line.ends_with(b"\n") || line.len() > 8 * 1024 {
            JOURNAL.add(LogSource::Dockerd, line.strip_suffix(b"\n").unwrap_or(line));
            line.clear();
        }
    }
}

/// Writes what dockerd says to its log, which never becomes larger than twice its limit.
fn keep_log(mut output: File) {
    let open = || OpenOptions::new().create(true).append(true).open(LOG);
    let mut log = open().ok();
    let mut size = log.as_ref().and_then(|log| log.metadata().ok()).map_or(0, |m| m.len());
    let mut buffer = vec![0u8; 16 * 1024];
    let mut line = Vec::new();
    // Read on whatever becomes of the file: dockerd must never block on its log.
    while let Ok(n) = output.read(&mut buffer) {
        if n == 0 {
            return;
        }
        show(buffer.get(..n).unwrap_or_default(), &mut line);
        if size > LOG_LIMIT && fs::rename(LOG, OLD_LOG).is_ok() {
            log = open().ok();
            size = 0;
        }
        if let Some(log) = &mut log
            && log.write_all(buffer.get(..n).unwrap_or_default()).is_ok()
        {
            size += n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerd_is_told_the_mtu_where_the_users_settings_do_not() {
        let both = ["--mtu=65520", "--default-network-opt=bridge=com.docker.network.driver.mtu=65520"];
        for settings in ["", "{", r#"{"debug":true}"#, "[]"] {
            assert_eq!(network_options(settings.as_bytes(), Some(65_520)), both);
            assert!(network_options(settings.as_bytes(), None).is_empty());
        }
        assert_eq!(network_options(br#"{"mtu":1400}"#, Some(65_520)), both[1..]);
        let own = br#"{"default-network-opts":{"bridge":{}},"mtu":1}"#;
        assert!(network_options(own, Some(65_520)).is_empty());
    }
}
