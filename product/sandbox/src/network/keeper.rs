//! The role `viv gateway`: the keeper, which is confined at once and forks the gateway, and forks it again when it has died.
//!
//! A shim cannot start programs once it is confined, and a sandbox without network for the rest of its life would be a poor answer to
//! one bad frame. The keeper hears its shim alone: one word and one descriptor, the far end of the line between shim and gateway. Frames, policy
//! and secrets go over that line and never come here. A gateway that was forked again has its predecessor's memory layout; that whoever
//! kills gateways to learn it gets nowhere, the shim's growing pauses see to.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

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

/// What starts a keeper: this program, with `line` as its line to the shim and its standard error where the caller says.
pub fn command(program: &Path, line: OwnedFd) -> Command {
    let mut command = Command::new(program);
    command
        .arg0("viv")
        .arg(super::GATEWAY_ROLE)
        .env_clear()
        // mallopt(3): else the size from which on memory is mapped grows to that of the largest block that was ever freed. The buffers of flows
        // (32 KiB or half a MiB each, `netstack::Limits`) would come from the heap then, be zeroed by hand and stay resident.
        .env("MALLOC_MMAP_THRESHOLD_", "32768")
        .current_dir("/")
        .stdin(Stdio::from(line))
        .stdout(Stdio::null());
    command
}

/// The role's whole life. Started with an environment that has nothing of the user's and the line to the shim as standard input.
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
                let Watched { how, then } = watch(&line, &ended, child);
                let Then::On(then) = then else { return ExitCode::SUCCESS };
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

/// What came of a gateway.
#[derive(Debug)]
struct Watched {
    /// How it ended.
    how: String,
    then: Then,
}

/// What is next.
#[derive(Debug)]
enum Then {
    /// The line of the next gateway, if that was asked for.
    On(Option<OwnedFd>),
    /// The shim is gone.
    Over,
}

/// Waits until a gateway has ended, and ends it when it is told to or nobody is left to tell. It has always ended when this returns.
fn watch(line: &OwnedFd, ended: &io::PipeReader, child: u32) -> Watched {
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let Some(child) = child else {
        return Watched { how: "it has no process id".into(), then: Then::Over };
    };
    let mut then = Then::On(None);
    loop {
        let mut polled = [PollFd::new(ended, PollFlags::IN), PollFd::new(line, PollFlags::IN)];
        if poll(&mut polled, None).is_err() {
            continue;
        }
        let [is_over, is_told] = polled.map(|one| !one.revents().is_empty());
        if is_told {
            match packet::receive::<ToKeeper>(line) {
                Ok(Some((ToKeeper::Start, descriptors))) => then = Then::On(descriptors.into_iter().next()),
                Ok(Some((ToKeeper::End, _))) => {}
                Ok(None) | Err(_) => then = Then::Over,
            }
        }
        if is_over || is_told {
            // One that was taken over could have closed its end of the pipe and gone on, or no longer end with its parent.
            let _ = kill_process(child, Signal::KILL);
            return Watched { how: how(wait_for(child)), then };
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

#[cfg(test)]
#[allow(clippy::zombie_processes, reason = "what is tested waits for them, by their numbers")]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Child, Command};

    use super::*;

    /// Stands for a gateway that does not end by itself.
    fn stubborn() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn is_gone(child: &Child) -> bool {
        // It was waited for: nothing with its number is this process's child any more.
        rustix::process::test_kill_process(Pid::from_child(child)) == Err(rustix::io::Errno::SRCH)
    }

    #[test]
    fn a_gateway_that_closed_its_pipe_and_goes_on_is_killed() {
        let (_shim, line) = packet::pair().unwrap();
        let (ended, held) = io::pipe().unwrap();
        let child = stubborn();
        drop(held);
        let watched = watch(&line, &ended, child.id());
        assert_eq!(watched.how, "it was killed by signal 9");
        assert!(matches!(watched.then, Then::On(None)) && is_gone(&child));
    }

    #[test]
    fn a_gateway_does_not_outlive_its_shim() {
        let (shim, line) = packet::pair().unwrap();
        let (ended, _held) = io::pipe().unwrap();
        let child = stubborn();
        drop(shim);
        let watched = watch(&line, &ended, child.id());
        assert!(matches!(watched.then, Then::Over) && is_gone(&child));
    }

    #[test]
    fn a_gateway_ends_when_it_is_told_to_and_before_the_next_one() {
        for word in [ToKeeper::End, ToKeeper::Start] {
            let (shim, line) = packet::pair().unwrap();
            let (ended, _held) = io::pipe().unwrap();
            let (_near, far) = packet::pair().unwrap();
            let child = stubborn();
            let with = if word == ToKeeper::Start { vec![far.as_fd()] } else { Vec::new() };
            packet::send(&shim, &word, &with).unwrap();
            let watched = watch(&line, &ended, child.id());
            let Then::On(next) = watched.then else { panic!("{watched:?}") };
            assert_eq!(next.is_some(), word == ToKeeper::Start);
            assert!(is_gone(&child));
        }
    }
}
