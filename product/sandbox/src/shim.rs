//! The shim: one process for each running sandbox, parent of its vmm, there for as long as its virtual machine.
//!
//! It holds the sandbox's lock, listens on its socket, counts sessions and keeps the logs; bytes of sessions never pass
//! through it. One loop over `poll`; only the [`crate::steward`] has a thread of its own. What the vmm says is bounded and
//! believed for this sandbox only.

use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SocketFlags;

use crate::clock::{self, Clock, Due};
use crate::control::{Reply, Request, Status};
use crate::error::{Error, Result};
use crate::escape::{LONGEST, escaped};
use crate::folder::{Lock, Sandbox};
use crate::launch::Vmm;
use crate::logs::BoundedLog;
use crate::plan::FromVmm;
use crate::spec::{Runtime, SCHEMA, State, rfc3339};
use crate::steward::{self, Bell, Order, Report};
use crate::{assemble, control, packet};

/// What containers and processes get to end when the sandbox is stopped.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Most counters, and most words on the confinement, that are taken from a vmm.
const MOST_WORDS: usize = 64;

/// Most client connections at once.
const MOST_CLIENTS: usize = 256;

/// A vmm that starts and the reading ends that belong to it.
#[derive(Debug)]
pub struct Machine {
    /// The process.
    pub vmm: Vmm,
    /// The guest's console.
    pub console: PipeReader,
    /// The engine's name.
    pub engine: String,
}

/// One connection of a client.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    holds: bool,
    /// Asked before the guest was ready.
    waiting: Vec<Request>,
}

/// The files in which the shim writes what it hears.
#[derive(Debug)]
struct Logs {
    console: BoundedLog,
    vmm: BoundedLog,
}

#[derive(Debug)]
struct Shim<'s> {
    sandbox: &'s Sandbox,
    runtime: Runtime,
    machine: Machine,
    listener: OwnedFd,
    clients: Vec<Client>,
    logs: Logs,
    orders: Sender<Order>,
    reports: Receiver<Report>,
    bell: PipeReader,
    terminate: UnixStream,
    confinement: Vec<String>,
    counters: Vec<(String, u64)>,
    clock: Clock,
    /// Why the run ends.
    reason: Option<String>,
}

/// Takes the sandbox's lock for this process, its shim; `None` when another shim has it.
pub fn take(sandbox: &Sandbox) -> Result<Option<Lock>> {
    sandbox.lock(Duration::from_millis(500))
}

/// Runs the sandbox until its virtual machine ends. `machine` starts it; `listening` is called when clients can connect.
/// `terminate` becomes readable when this process is asked to end (SIGTERM).
pub fn run(
    sandbox: &Sandbox,
    lock: Lock,
    machine: impl FnOnce() -> Result<Machine>,
    listening: impl FnOnce(),
    terminate: UnixStream,
) -> Result<()> {
    let mut runtime = Runtime {
        schema: SCHEMA,
        pid: std::process::id(),
        state: State::Starting,
        started: rfc3339(SystemTime::now()),
        ended: None,
        reason: None,
        engine: String::new(),
    };
    sandbox.note(&runtime)?;
    confine::harden().map_err(|error| unconfined(&error))?;
    let outcome = machine().and_then(|machine| {
        runtime.engine.clone_from(&machine.engine);
        let listener = control::listen(sandbox.folder())
            .map_err(|error| Error::host("cannot listen for clients", error))?;
        sandbox.note(&runtime)?;
        listening();
        confine(sandbox, &machine)?;
        serve(sandbox, runtime.clone(), machine, listener, terminate)
    });
    let _ = std::fs::remove_file(sandbox.folder().join(control::SOCKET));
    runtime.state = State::Stopped;
    runtime.ended = Some(rfc3339(SystemTime::now()));
    runtime.reason = Some(match &outcome {
        Ok(reason) => reason.clone(),
        Err(error) => error.to_string(),
    });
    sandbox.note_end(&runtime)?;
    drop(lock);
    outcome.map(|_| ())
}

/// Takes from this process all that it needs no more now that its vmm runs and its socket listens. The vmm is not heard,
/// and no client, before.
fn confine(sandbox: &Sandbox, machine: &Machine) -> Result<()> {
    use confine::{Access, Grants, Role};
    let path = sandbox.folder();
    let folder = std::fs::File::open(path).map_err(|source| Error::file("cannot open", path, source))?;
    let directories = vec![(folder.as_fd(), Access::ReadWrite)];
    let grants = Grants { directories, child: Some(machine.vmm.id()), ..Grants::default() };
    let report = confine::confine(Role::Shim, &grants).map_err(|error| unconfined(&error))?;
    tracing::info!(layers = report.layers.join(", "), "The shim is confined");
    Ok(())
}

fn unconfined(error: &confine::ConfineError) -> Error {
    Error::NotStarted { why: crate::engine::sentence(error), hint: None }
}

fn serve(
    sandbox: &Sandbox,
    runtime: Runtime,
    machine: Machine,
    listener: OwnedFd,
    terminate: UnixStream,
) -> Result<String> {
    let open = |name: &str| {
        let path = sandbox.log(name);
        BoundedLog::open(&path).map_err(|source| Error::file("cannot write", path, source))
    };
    let logs = Logs { console: open("console")?, vmm: open("vmm")? };
    let (orders, orders_in) = mpsc::channel();
    let (reports_out, reports) = mpsc::channel();
    let (bell, bell_in) = io::pipe().map_err(|error| Error::host("cannot make a pipe", error))?;
    let line = machine.vmm.line().clone();
    let spec = sandbox.spec.clone();
    std::thread::Builder::new()
        .name("steward".into())
        .spawn(move || steward::serve(&spec, &line, &orders_in, &reports_out, Bell(bell_in)))
        .map_err(|error| Error::host("cannot start a thread", error))?;
    let mut shim = Shim {
        sandbox,
        runtime,
        machine,
        listener,
        clients: Vec::new(),
        logs,
        orders,
        reports,
        bell,
        terminate,
        confinement: Vec::new(),
        counters: Vec::new(),
        clock: Clock::new(Instant::now()),
        reason: None,
    };
    shim.work();
    Ok(shim.finish())
}

/// The fixed descriptors of the loop, in the order in which they are polled; the clients follow.
const FIXED: usize = 7;

impl Shim<'_> {
    /// The loop; returns when the vmm has ended.
    fn work(&mut self) {
        loop {
            let ready = self.wait();
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            if is_ready(3) {
                copy(&self.machine.console, &mut self.logs.console);
            }
            if is_ready(4) {
                copy_descriptor(self.machine.vmm.errors(), &mut self.logs.vmm);
            }
            if is_ready(1) {
                self.hear_vmm();
            }
            if is_ready(2) {
                return;
            }
            if is_ready(5) {
                steward::silence(&mut self.bell);
                while let Ok(report) = self.reports.try_recv() {
                    self.hear_steward(report);
                }
            }
            if is_ready(6) {
                let _ = self.terminate.read(&mut [0u8; 16]);
                self.stop("asked to end");
            }
            let clients: Vec<usize> =
                (0..self.clients.len()).filter(|index| is_ready(FIXED + index)).collect();
            // From the back, so that a client that leaves does not move those still to be heard.
            for index in clients.into_iter().rev() {
                self.hear_client(index);
            }
            if is_ready(0) {
                self.accept();
            }
            self.look_at_clock();
        }
    }

    fn wait(&self) -> Vec<bool> {
        let fixed: [BorrowedFd<'_>; FIXED] = [
            self.listener.as_fd(),
            self.machine.vmm.line().as_fd(),
            self.machine.vmm.process(),
            self.machine.console.as_fd(),
            self.machine.vmm.errors(),
            self.bell.as_fd(),
            self.terminate.as_fd(),
        ];
        let clients = self.clients.iter().map(|client| client.socket.as_fd());
        let mut polled: Vec<PollFd<'_>> = fixed
            .into_iter()
            .chain(clients)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        let now = Instant::now();
        let timeout = self.clock.next().map(|at| {
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(60),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => polled.iter().map(|one| !one.revents().is_empty()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn hear_vmm(&mut self) {
        match self.machine.vmm.line().receive() {
            Ok(Some(FromVmm::Confined { layers })) => {
                self.confinement = layers.iter().take(MOST_WORDS).map(|layer| plain(layer)).collect();
            }
            Ok(Some(FromVmm::Counted { counters })) => {
                let counters = counters.iter().take(MOST_WORDS);
                self.counters = counters.map(|(name, count)| (plain(name), *count)).collect();
            }
            Ok(Some(FromVmm::Failed { why })) => {
                let why = plain(&why);
                tracing::error!(%why, "The virtual machine failed");
                self.reason.get_or_insert(why);
            }
            Ok(Some(FromVmm::PoweredOff)) => {
                tracing::info!("The guest powered off");
                self.reason.get_or_insert_with(|| "shut down in the guest".into());
            }
            Ok(None) => {
                // It is ending; its process descriptor will say so, and its status how (a signal, when its system call
                // filter stopped it). Until then this end would be readable for ever.
                self.machine.vmm.kill();
            }
            Err(error) => {
                self.distrust(&error);
            }
        }
    }

    /// Ends a vmm that does not keep to the protocol; one that does not read what it is told is such a one.
    fn distrust(&mut self, error: &io::Error) {
        tracing::error!(%error, "The vmm does not keep to the protocol");
        self.reason
            .get_or_insert_with(|| "the virtual machine's process did not keep to the protocol".into());
        self.machine.vmm.kill();
    }

    fn hear_steward(&mut self, report: Report) {
        match report {
            Report::Ready if self.runtime.state == State::Starting => {
                match assemble::disk_is_made(self.sandbox) {
                    Ok(()) => self.ready(),
                    Err(error) => self.useless(error.to_string()),
                }
            }
            Report::Ready => {}
            Report::Failed(why) => self.useless(why),
            Report::WillNotStop(why) => {
                tracing::warn!(%why, "The guest cannot be asked to shut down");
                self.machine.vmm.kill();
            }
        }
    }

    /// Sessions can be opened: those that wait are.
    fn ready(&mut self) {
        self.set_state(State::Running);
        self.clock.ready();
        let waiting: Vec<(usize, Vec<Request>)> =
            self.clients.iter_mut().enumerate().map(|(i, c)| (i, std::mem::take(&mut c.waiting))).collect();
        let mut gone = Vec::new();
        for (index, requests) in waiting {
            if requests.into_iter().any(|request| !self.answer(index, request)) {
                gone.push(index);
            }
        }
        for index in gone.into_iter().rev() {
            self.clients.remove(index);
        }
        self.note_idle();
    }

    fn useless(&mut self, why: String) {
        tracing::error!(%why, "The guest is of no use");
        self.reason.get_or_insert(why);
        self.machine.vmm.kill();
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) if self.clients.len() < MOST_CLIENTS => {
                self.clients.push(Client { socket, holds: false, waiting: Vec::new() });
                self.note_idle();
            }
            Ok(_) => tracing::warn!("Too many clients; one was turned away"),
            Err(error) => tracing::debug!(%error, "No client after all"),
        }
    }

    fn hear_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let request = match packet::receive::<Request>(&client.socket) {
            Ok(Some((request, _))) => request,
            Ok(None) | Err(_) => {
                self.drop_client(index);
                return;
            }
        };
        let must_wait = matches!(request, Request::Hold | Request::Open { .. });
        if must_wait && self.runtime.state == State::Starting {
            if client.waiting.len() < 8 {
                client.waiting.push(request);
            }
        } else if !self.answer(index, request) {
            self.drop_client(index);
        }
    }

    fn drop_client(&mut self, index: usize) {
        self.clients.remove(index);
        self.note_idle();
    }

    /// Answers a request; false when the client is gone.
    fn answer(&mut self, index: usize, request: Request) -> bool {
        let (reply, descriptor) = match request {
            Request::Hold if self.runtime.state == State::Running => {
                if let Some(client) = self.clients.get_mut(index) {
                    client.holds = true;
                }
                self.note_idle();
                (Reply::Held, None)
            }
            Request::Open { port } if self.runtime.state == State::Running => {
                match self.machine.vmm.line().connect(port) {
                    Ok(stream) => (Reply::Opened, Some(stream)),
                    Err(error) => {
                        if error.kind() == io::ErrorKind::WouldBlock {
                            self.distrust(&error);
                        }
                        (Reply::Refused { why: crate::error::in_words(&error), stopping: false }, None)
                    }
                }
            }
            Request::Hold | Request::Open { .. } => {
                (Reply::Refused { why: "the sandbox is stopping".into(), stopping: true }, None)
            }
            Request::Status => (Reply::Status(self.status()), None),
            Request::Stop => {
                self.stop("asked to stop");
                (Reply::Stopping, None)
            }
        };
        let Some(client) = self.clients.get(index) else { return false };
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
        packet::send_now(&client.socket, &reply, &descriptors).is_ok()
    }

    /// Asks the vmm for fresh counters and waits for them a moment; a vmm that does not answer costs no more than that.
    fn status(&mut self) -> Status {
        let asked = self.machine.vmm.line().count();
        if let Err(error) = asked {
            if error.kind() == io::ErrorKind::WouldBlock {
                self.distrust(&error);
            }
        } else {
            let line = self.machine.vmm.line().clone();
            let mut polled = [PollFd::new(&line, PollFlags::IN)];
            let patience = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
            if poll(&mut polled, Some(&patience)).is_ok_and(|count| count > 0) {
                self.hear_vmm();
            }
        }
        Status {
            state: self.runtime.state,
            started: self.runtime.started.clone(),
            engine: self.runtime.engine.clone(),
            confinement: self.confinement.clone(),
            sessions: u32::try_from(self.sessions()).unwrap_or(u32::MAX),
            vmm: self.machine.vmm.id(),
            counters: self.counters.clone(),
        }
    }

    fn sessions(&self) -> usize {
        self.clients.iter().filter(|client| client.holds).count()
    }

    fn note_idle(&mut self) {
        let (clients, sessions) = (self.clients.len(), self.sessions());
        self.clock.note(self.runtime.state, clients, sessions, Instant::now());
    }

    fn look_at_clock(&mut self) {
        match self.clock.due(self.runtime.state, Instant::now()) {
            None => {}
            Some(Due::Idle) => self.stop("idle"),
            Some(Due::NotReady) => {
                tracing::error!("The guest was not ready in time");
                self.reason.get_or_insert_with(clock::not_ready);
                self.machine.vmm.kill();
            }
            Some(Due::NotStopped) => {
                tracing::warn!("The guest did not shut down in time");
                self.machine.vmm.kill();
            }
        }
    }

    fn stop(&mut self, reason: &str) {
        match self.runtime.state {
            State::Running => {
                self.reason = Some(reason.into());
                self.set_state(State::Stopping);
                self.clock.stopping(Instant::now());
                let _ = self.orders.send(Order::ShutDown(SHUTDOWN));
            }
            // There is nothing in it yet that could be lost.
            State::Starting => {
                self.reason = Some(reason.into());
                self.set_state(State::Stopping);
                self.machine.vmm.kill();
            }
            State::Stopping | State::Stopped => {}
        }
    }

    fn set_state(&mut self, state: State) {
        self.runtime.state = state;
        if let Err(error) = self.sandbox.note(&self.runtime) {
            tracing::warn!(%error, "The state could not be written");
        }
    }

    /// After the end of the vmm: the rest of its logs, word to those who wait, and the reason.
    fn finish(mut self) -> String {
        let ended = self.machine.vmm.wait();
        while let Ok(Some(message)) = self.machine.vmm.line().receive() {
            if let FromVmm::Failed { why } = message {
                self.reason.get_or_insert(plain(&why));
            }
        }
        let drain = |from: &dyn Fn() -> Vec<u8>, log: &mut BoundedLog| {
            for _ in 0..64 {
                let bytes = from();
                if bytes.is_empty() || log.write_all(&bytes).is_err() {
                    break;
                }
            }
        };
        let (console, errors) = (&self.machine.console, self.machine.vmm.errors());
        drain(&|| read_some(console.as_fd()), &mut self.logs.console);
        drain(&|| read_some(errors), &mut self.logs.vmm);
        let reason = self.reason.take().or(ended).unwrap_or_else(|| "the virtual machine ended".into());
        for client in &self.clients {
            if !client.waiting.is_empty() {
                let _ = packet::send_now(
                    &client.socket,
                    &Reply::Refused { why: reason.clone(), stopping: false },
                    &[],
                );
            }
        }
        tracing::info!(%reason, "The sandbox has ended");
        reason
    }
}

/// What a vmm says, for the log, the state's file and the user's terminal.
fn plain(text: &str) -> String {
    escaped(text, LONGEST)
}

/// What can be read without waiting; nothing also at the end.
fn read_some(from: BorrowedFd<'_>) -> Vec<u8> {
    let mut polled = [PollFd::from_borrowed_fd(from, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if !poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0) {
        return Vec::new();
    }
    let mut bytes = vec![0u8; 64 << 10];
    let count = rustix::io::read(from, &mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

fn copy(from: &PipeReader, log: &mut BoundedLog) {
    copy_descriptor(from.as_fd(), log);
}

fn copy_descriptor(from: BorrowedFd<'_>, log: &mut BoundedLog) {
    let bytes = read_some(from);
    if let Err(error) = log.write_all(&bytes) {
        tracing::debug!(%error, "A log could not be written");
    }
}
