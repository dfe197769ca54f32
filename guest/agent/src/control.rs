//! Control connections: requests in order, events as they happen.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use agent_proto::ProtoError;
use agent_proto::frame::{self, FrameReader, SKIPPABLE, kind};
use agent_proto::messages::{
    Empty, Event, Failure as Refusal, Happening, Operation, Outcome as Answer, Reply, Request, Setup,
};
use rustix::system::RebootCommand;

use crate::boot::Agent;
use crate::console::log;
use crate::fail::Outcome;
use crate::journal::JOURNAL;
use crate::{identity, metrics, shutdown, sys, trust};

/// Serves one control connection after its welcome, to its end.
pub(crate) fn serve(
    agent: &Arc<Agent>,
    connection: &UnixStream,
    mut frames: FrameReader<UnixStream>,
) -> Result<(), ProtoError> {
    // Events and replies come from two threads; each frame is written whole.
    let writing = Mutex::new(());
    let over = AtomicBool::new(false);
    let send = |write: &dyn Fn(&mut &UnixStream) -> Result<(), ProtoError>| {
        let _whole = writing.lock().unwrap_or_else(PoisonError::into_inner);
        write(&mut { connection })
    };
    std::thread::scope(|scope| {
        let tell = || {
            let mut seen = 0;
            while let Some((version, status)) = agent.board.wait_newer(seen, || over.load(Ordering::Acquire))
            {
                seen = version;
                let event = Event { happening: Some(Happening::Status(status)) };
                if send(&|mut w| frame::write_message(&mut w, kind::EVENT, &event)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("control-events".into()).spawn_scoped(scope, tell)?;
        let tell_log = || {
            let mut next = 0;
            while let Some((line, behind)) = JOURNAL.wait_for(next, || over.load(Ordering::Acquire)) {
                next = behind;
                let event = Event { happening: Some(Happening::Log(line)) };
                if send(&|mut w| frame::write_message(&mut w, kind::EVENT, &event)).is_err() {
                    break;
                }
            }
        };
        let mut following = false;
        let mut serve = || -> Result<(), ProtoError> {
            while let Some(kind) = frames.read_frame()? {
                match kind {
                    kind::REQUEST => {
                        let Request { id, operation } = frames.message()?;
                        let follow = matches!(operation, Some(Operation::FollowLogs(_)));
                        let reply = Reply { id, outcome: Some(carry_out(agent, operation)) };
                        send(&|mut w| frame::write_message(&mut w, kind::REPLY, &reply))?;
                        if follow && !std::mem::replace(&mut following, true) {
                            std::thread::Builder::new().name("log".into()).spawn_scoped(scope, tell_log)?;
                        }
                    }
                    SKIPPABLE.. => {}
                    other => return Err(ProtoError::UnexpectedFrame(other)),
                }
            }
            Ok(())
        };
        let result = serve();
        over.store(true, Ordering::Release);
        agent.board.wake();
        JOURNAL.wake();
        // Frees the teller if it sleeps in a write.
        let _ = connection.shutdown(std::net::Shutdown::Both);
        result
    })
}

fn carry_out(agent: &Arc<Agent>, operation: Option<Operation>) -> Answer {
    let done = match operation {
        Some(Operation::Setup(setup)) => set_up(agent, &setup),
        Some(Operation::SetClock(clock)) => identity::set_clock(clock),
        Some(Operation::Mount(mount)) => agent.shares.mount(&mount.shares),
        Some(Operation::Seed(seed)) => seed_entropy(&seed.bytes),
        Some(Operation::SetTrust(trust)) => trust::set(&trust, &agent.reaper),
        Some(Operation::SetEnvironment(environment)) => agent.sessions.set_environment(&environment),
        Some(Operation::GetStatus(_)) => return Answer::Status(agent.board.get()),
        Some(Operation::GetMetrics(_)) => return Answer::Metrics(metrics::measure()),
        Some(Operation::Shutdown(request)) => {
            let last = if request.reboot { RebootCommand::Restart } else { RebootCommand::PowerOff };
            shutdown::begin(agent, Duration::from_millis(request.timeout_ms.into()), last);
            Ok(())
        }
        // The lines follow the reply.
        Some(Operation::FollowLogs(_)) => Ok(()),
        None => Err(crate::fail::Failure::new("This sandbox's agent does not know that request")),
    };
    match done {
        Ok(()) => Answer::Done(Empty {}),
        Err(e) => Answer::Failure(Refusal { message: e.to_string() }),
    }
}

fn set_up(agent: &Agent, setup: &Setup) -> Outcome {
    agent.board.wait_booted();
    if let Some(clock) = setup.clock {
        identity::set_clock(clock)?;
    }
    seed_entropy(&setup.entropy)?;
    if !setup.hostname.is_empty() {
        identity::set_hostname(&setup.hostname);
    }
    if !setup.timezone.is_empty() {
        identity::set_timezone(&setup.timezone);
    }
    if let Some(environment) = &setup.environment {
        agent.sessions.set_environment(environment)?;
    }
    if let Some(trust) = &setup.trust
        && let Err(e) = trust::set(trust, &agent.reaper)
    {
        // Files in `/etc` belong to the user, who may have made them unchangeable; a sandbox that distrusts is better than none.
        log(format_args!("the host's certificates are not trusted: {e}"));
    }
    agent.shares.mount(&setup.shares)?;
    agent.board.change(|status| status.set_up = true);
    Ok(())
}

fn seed_entropy(bytes: &[u8]) -> Outcome {
    use crate::fail::Doing;
    sys::add_entropy(bytes).doing("Cannot add entropy")
}
