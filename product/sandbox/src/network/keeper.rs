//! The role `viv gateway`: the keeper, which is confined at once and forks the gateway, and forks it again when it has died.
//!
//! A shim cannot start programs once it is confined, and a sandbox without network for the rest of its life would be a poor answer to
//! one bad frame. The keeper hears its shim alone: one word and one descriptor, the far end of the line between shim and gateway. Frames, policy
//! and secrets go over that line and never come here. A gateway that was forked again has its predecessor's memory layout; that whoever
//! kills gateways to learn it gets nowhere, the shim's growing pauses see to.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use confine::Forked;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};
use serde::{Deserialize, Serialize};

use crate::engine::sentence;
use crate::packet;

/// What a keeper is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// Start a gateway on the line whose far end comes along. One that still runs is ended before.
    Start,
    /// End the gateway.
    End,
}

/// What a keeper tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// It is confined, and so is what it starts.
    Confined {
        /// In the words of `viv diagnose`.
        layers: Vec<String>,
    },
    /// The gateway has ended; one sentence says how.
    Ended {
        /// The sentence.
        how: String,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        why: String,
    },
}

/// The role's whole life. Started with an empty environment and the line to the shim as standard input.
pub fn main() -> ExitCode {
    let _ = crate::sys::end_with_parent();
    match own_line() {
        Ok(line) => run(line),
        Err(_) => ExitCode::FAILURE,
    }
}

/// The line, taken off the standard input: a gateway must not have it.
fn own_line() -> io::Result<OwnedFd> {
    let line = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let nothing = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&nothing)?;
    Ok(line)
}

fn run(line: OwnedFd) -> ExitCode {
    let (keeper, report) = match confine::become_keeper() {
        Ok(confined) => confined,
        Err(error) => {
            let _ = packet::send(&line, &FromKeeper::Failed { why: sentence(&error) }, &[]);
            return ExitCode::FAILURE;
        }
    };
    if packet::send(&line, &FromKeeper::Confined { layers: report.layers }, &[]).is_err() {
        return ExitCode::FAILURE;
    }
    // What was said while another one ran.
    let mut next = None;
    loop {
        let control = match next.take() {
            Some(control) => control,
            None => match packet::receive::<ToKeeper>(&line) {
                Ok(Some((ToKeeper::Start, descriptors))) => match descriptors.into_iter().next() {
                    Some(control) => control,
                    None => continue,
                },
                Ok(Some((ToKeeper::End, _))) => continue,
                Ok(None) | Err(_) => return ExitCode::SUCCESS,
            },
        };
        let Ok((ended, held)) = io::pipe() else { return ExitCode::FAILURE };
        match keeper.fork() {
            Ok(Forked::Child) => {
                drop((line, ended));
                // Held to its end, whatever that is.
                let code = gateway::main(control);
                drop(held);
                return code;
            }
            Ok(Forked::Keeper(child)) => {
                drop((held, control));
                let (how, then) = watch(&line, &ended, child);
                if packet::send(&line, &FromKeeper::Ended { how }, &[]).is_err() {
                    return ExitCode::SUCCESS;
                }
                next = then;
            }
            Err(error) => {
                let why = sentence(&error);
                if packet::send(&line, &FromKeeper::Ended { how: why }, &[]).is_err() {
                    return ExitCode::SUCCESS;
                }
            }
        }
    }
}

/// Waits until a gateway has ended, and ends it when it is told to. Gives how it ended, and the line of the next one if that was asked for.
fn watch(line: &OwnedFd, ended: &io::PipeReader, child: u32) -> (String, Option<OwnedFd>) {
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let Some(child) = child else { return ("it has no process id".into(), None) };
    let mut next = None;
    loop {
        let mut polled = [PollFd::new(ended, PollFlags::IN), PollFd::new(line, PollFlags::IN)];
        if poll(&mut polled, None).is_err() {
            continue;
        }
        let [is_over, is_told] = polled.map(|one| !one.revents().is_empty());
        if is_told {
            match packet::receive::<ToKeeper>(line) {
                Ok(Some((ToKeeper::Start, descriptors))) => next = descriptors.into_iter().next(),
                Ok(Some((ToKeeper::End, _))) => {}
                // The shim is gone: this process ends, and with it the gateway.
                Ok(None) | Err(_) => std::process::exit(0),
            }
        }
        if is_over || is_told {
            // One that was taken over could have closed its end of the pipe and gone on.
            let _ = kill_process(child, Signal::KILL);
            return (how(wait_for(child)), next);
        }
    }
}

fn wait_for(child: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(Some(child), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(ended) => return ended.map(|(_, status)| status),
            Err(_) => return None,
        }
    }
}

fn how(status: Option<WaitStatus>) -> String {
    let Some(status) = status else { return "it was lost".into() };
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => "it ended".into(),
        (Some(code), _) => format!("it ended with code {code}"),
        (None, Some(signal)) if signal == Signal::SYS.as_raw() => "its system call filter stopped it".into(),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".into(),
    }
}
