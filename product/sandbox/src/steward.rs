//! The shim's own conversation with the guest's agent: set it up once it is ready, shut it down when asked.
//!
//! Runs on a thread of its own, because the agent may take its time and the shim may not.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use agent_proto::ProtoError;
use agent_proto::client::Control;
use agent_proto::messages::{Environment, Setup, Share, Trust};

use crate::escape::{LONGEST, escaped};
use crate::launch::VmmLine;
use crate::network::Guest;
use crate::spec::Spec;

/// How long the guest may take from its start until it answers. The slowest engine needs seconds, not minutes.
const PATIENCE: Duration = Duration::from_secs(240);

/// Between two attempts to reach an agent that does not listen yet.
const PAUSE: Duration = Duration::from_millis(15);

/// What the steward reports.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// Sessions can be opened.
    Ready,
    /// The guest says that it is about to end.
    GoingDown,
    /// The guest is of no use; one sentence says why.
    Failed(String),
    /// The guest could not be asked to shut down.
    WillNotStop(String),
}

/// What the steward is asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Shut the guest down; what runs in it has this long to end.
    ShutDown(Duration),
    /// Sessions that begin from here on have these variables.
    Variables(Vec<(String, String)>),
}

/// Tells the shim's loop that a report is there.
#[derive(Clone, Debug)]
pub(crate) struct Bell(pub(crate) Arc<io::PipeWriter>);

impl Bell {
    pub(crate) fn ring(&self) {
        let _ = (&*self.0).write_all(b"!");
    }
}

/// The steward's whole life.
pub(crate) fn serve(
    spec: &Spec,
    guest: &Guest,
    line: &VmmLine,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
    bell: Bell,
) {
    let say = |report| {
        let _ = reports.send(report);
        bell.ring();
    };
    let mut control = match reach(line).and_then(|control| set_up(control, spec, guest)) {
        Ok(control) => control,
        Err(error) => return say(Report::Failed(words(&error))),
    };
    say(Report::Ready);
    while let Ok(order) = orders.recv() {
        // The connection may be stale while the guest is well.
        let outcome = carry_out(&mut control, &order).or_else(|error| {
            tracing::debug!(%error, "It is asked for again");
            control = connect(line)?;
            carry_out(&mut control, &order)
        });
        match (outcome, order) {
            (Err(error), Order::ShutDown(_)) if !error.is_disconnect() => {
                say(Report::WillNotStop(words(&error)));
            }
            (Err(error), Order::Variables(_)) => {
                tracing::warn!(error = words(&error), "New sessions have the variables of before");
            }
            _ => {}
        }
    }
}

fn carry_out(control: &mut Control<UnixStream>, order: &Order) -> Result<(), ProtoError> {
    match order {
        Order::ShutDown(patience) => control.shutdown(*patience),
        Order::Variables(variables) => control.set_environment(lines(variables)),
    }
}

/// Variables as an environment has them.
fn lines(variables: &[(String, String)]) -> Vec<Vec<u8>> {
    variables.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
}

/// An error as one sentence; the guest may have chosen its words.
fn words(error: &ProtoError) -> String {
    escaped(&crate::engine::sentence(error), LONGEST)
}

fn connect(line: &VmmLine) -> Result<Control<UnixStream>, ProtoError> {
    let stream: OwnedFd = line.connect(agent_proto::abi::AGENT_PORT)?;
    Control::connect(UnixStream::from(stream))
}

/// Connects as soon as the agent listens; before that each attempt ends at once.
pub(crate) fn reach(line: &VmmLine) -> Result<Control<UnixStream>, ProtoError> {
    let begun = Instant::now();
    loop {
        match connect(line) {
            Err(error) if error.is_disconnect() && begun.elapsed() < PATIENCE => {
                tracing::trace!(%error, "The agent does not answer yet");
                std::thread::sleep(PAUSE);
            }
            Err(error) if error.is_disconnect() => {
                let why = format!("the guest did not answer within {} s", PATIENCE.as_secs());
                return Err(ProtoError::Failed(why));
            }
            other => return other,
        }
    }
}

fn set_up(
    mut control: Control<UnixStream>,
    spec: &Spec,
    guest: &Guest,
) -> Result<Control<UnixStream>, ProtoError> {
    let status = control.wait_ready()?;
    tracing::info!(kernel = %status.kernel, micros = status.ready_micros, base = %status.base, "The guest is ready");
    let mut entropy = vec![0u8; 64];
    crate::sys::random(&mut entropy)?;
    control.setup(Setup {
        hostname: crate::naming::host_name(&spec.name),
        entropy,
        shares: shares(spec),
        timezone: host_timezone().unwrap_or_default(),
        trust: Some(Trust { certificates: guest.certificates.clone() }),
        environment: Some(Environment { variables: lines(&guest.variables) }),
        ..Setup::default()
    })?;
    Ok(control)
}

/// The shares as the agent wants them: by their number under the root, parents before children.
fn shares(spec: &Spec) -> Vec<Share> {
    use std::os::unix::ffi::OsStrExt;
    let mut all: Vec<Share> = spec
        .shares
        .iter()
        .enumerate()
        .map(|(number, share)| Share {
            name: number.to_string(),
            path: share.guest_path().as_os_str().as_bytes().to_vec(),
            read_only: share.read_only,
        })
        .collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// The host's time zone by its name, if it says one.
fn host_timezone() -> Option<String> {
    let target = std::fs::read_link("/etc/localtime").ok()?;
    let text = target.to_str()?;
    text.split_once("zoneinfo/").map(|(_, name)| name.to_owned())
}

/// Empties a bell's pipe.
pub(crate) fn silence(pipe: &mut io::PipeReader) {
    let mut bytes = [0u8; 64];
    let _ = pipe.read(&mut bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Networking;

    #[test]
    fn shares_keep_their_numbers_and_parents_come_first() {
        let share =
            |path: &str| crate::workspace::Share { path: path.into(), read_only: false, identity: None };
        let spec = Spec {
            schema: 1,
            id: "i".into(),
            name: "n".into(),
            agent: "shell".into(),
            arch: "x86_64".into(),
            created: String::new(),
            shares: vec![share("/w/inner"), share("/w"), share("/a")],
            cpus: 1,
            memory: 1,
            disk: 1,
            engine: None,
            image: String::new(),
            network: Networking::default(),
        };
        let names: Vec<(String, Vec<u8>)> = shares(&spec).into_iter().map(|s| (s.name, s.path)).collect();
        let expected =
            [("2", "/a"), ("1", "/w"), ("0", "/w/inner")].map(|(n, p)| (n.to_owned(), p.as_bytes().to_vec()));
        assert_eq!(names, expected);
    }
}
