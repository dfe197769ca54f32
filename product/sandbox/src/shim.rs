//! The shim: one process for each running sandbox, parent of its vmm, there for as long as its virtual machine.
//!
//! It holds the sandbox's lock, listens on its socket, counts sessions and keeps the logs; bytes of sessions never pass
//! through it. One loop over `poll`; only the [`crate::steward`] has a thread of its own. What the vmm says is bounded and
//! believed for this sandbox only.

mod network;

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::clock::{self, Clock, Due};
use crate::control::{Attention, Notice, Reply, Request, Status};
use crate::ending::{Ending, is_panic};
use crate::error::{Error, Result};
use crate::escape::{LONGEST, escaped};
use crate::folder::{Lock, Sandbox};
use crate::guest_log::{self, GuestLogs};
use crate::host_clock::HostClock;
use crate::launch::{Vmm, VmmLine, is_readable};
use crate::logs::{BoundedLog, LineLog, Source};
use crate::network::{self as net, Network};
use crate::plan::{DiskWork, FromVmm};
use crate::room::{NO_ROOM_TO_START, Room};
use crate::spec::{Runtime, SCHEMA, State, rfc3339};
use crate::steward::{self, Bell, Order, Report};
use crate::{assemble, control, packet};

/// What containers and processes get to end when the sandbox is stopped.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Most counters, and most words on the confinement, that are taken from a vmm.
const MOST_WORDS: usize = 64;

/// How long the last lines of the guest's logs may take to be written when the guest is gone.
const GUEST_LOG_END: Duration = Duration::from_millis(500);

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
    /// Its network, unless it has none.
    pub(crate) network: Option<Network>,
}

/// One connection of a client.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    holds: bool,
    /// Asked to stop, and waits for the end.
    stops: bool,
    /// What it is told of the network, once it is a session.
    attention: Attention,
    /// Asked before the guest was ready.
    waiting: Vec<Request>,
}

/// The files in which the shim writes what it hears.
#[derive(Debug)]
struct Logs {
    console: LineLog,
    vmm: LineLog,
    /// Whether the guest's kernel has said that it panicked.
    panicked: bool,
    /// Closed when the guest's own logs are written to their end.
    guest: Receiver<()>,
}

impl Logs {
    /// `going_down` is told when the guest says that it is about to end.
    fn open(sandbox: &Sandbox, line: &VmmLine, going_down: impl FnMut() + Send + 'static) -> Result<Self> {
        let open = |source: Source| {
            let path = sandbox.log(source);
            BoundedLog::open(&path)
                .map(LineLog::new)
                .map_err(|source| Error::file("cannot write", path, source))
        };
        let guest_logs = GuestLogs { agent: open(Source::Agent)?, dockerd: open(Source::Dockerd)? };
        let (done, guest) = mpsc::channel();
        let line = line.clone();
        thread("guest-log", move || {
            guest_log::follow(&line, guest_logs, going_down);
            drop(done);
        })?;
        Ok(Self { console: open(Source::Console)?, vmm: open(Source::Vmm)?, panicked: false, guest })
    }

    fn console(&mut self, bytes: &[u8]) {
        let panicked = &mut self.panicked;
        self.console.take(bytes, |line| *panicked |= is_panic(line));
    }

    /// After the end of the vmm: what it left in its pipes, and what is left of lines.
    fn finish(&mut self, console: BorrowedFd<'_>, vmm: BorrowedFd<'_>) {
        // More than a pipe holds: a descriptor of it that somebody else kept would make this endless.
        for _ in 0..64 {
            let (said, logged) = (read_some(console), read_some(vmm));
            if said.is_empty() && logged.is_empty() {
                break;
            }
            self.console(&said);
            self.vmm.take(&logged, |_| {});
        }
        let panicked = &mut self.panicked;
        self.console.finish(|line| *panicked |= is_panic(line));
        self.vmm.finish(|_| {});
        // Its connection has ended with the vmm.
        let _ = self.guest.recv_timeout(GUEST_LOG_END);
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map(|_| ())
        .map_err(|error| Error::host("cannot start a thread", error))
}

#[derive(Debug)]
struct Shim<'s> {
    sandbox: &'s Sandbox,
    runtime: Runtime,
    machine: Machine,
    listener: OwnedFd,
    /// By the numbers that they are given as they come: one that leaves moves no other.
    clients: BTreeMap<u64, Client>,
    last_client: u64,
    logs: Logs,
    orders: Sender<Order>,
    reports: Receiver<Report>,
    bell: PipeReader,
    terminate: UnixStream,
    confinement: Vec<String>,
    counters: Vec<(String, u64)>,
    /// What the disks did when the vmm last said so, and at the last look at a shutdown.
    disks: DiskWork,
    disks_before: u64,
    clock: Clock,
    /// Whether the host has room for what the guest writes.
    room: Room,
    /// Whether the guest has reset its machine, by a reboot or a panic: its console's last lines tell which.
    reset: bool,
    /// Why the run ends, as far as it is known.
    ending: Option<Ending>,
}

/// Takes the sandbox's lock for this process, its shim; `None` when another shim has it.
pub fn take(sandbox: &Sandbox) -> Result<Option<Lock>> {
    let lock = sandbox.lock(Duration::from_millis(500))?;
    if lock.is_some() {
        // What a killed one noted would be taken for this one's state.
        sandbox.forget_run();
    }
    Ok(lock)
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
        detached: false,
    };
    sandbox.note(&runtime)?;
    confine::harden().map_err(|error| unconfined(&error))?;
    let outcome = machine().and_then(|machine| {
        runtime.engine.clone_from(&machine.engine);
        let listener = control::listen(sandbox.folder())
            .map_err(|error| Error::host("cannot listen for clients", error))?;
        sandbox.note(&runtime)?;
        listening();
        let host_clock =
            HostClock::watch().map_err(|error| Error::host("cannot watch the host's clock", error))?;
        confine(sandbox, &machine)?;
        let line = machine.vmm.line().clone();
        thread("host-clock", move || host_clock.follow(&line))?;
        serve(sandbox, runtime.clone(), machine, listener, terminate)
    });
    let _ = std::fs::remove_file(sandbox.folder().join(control::SOCKET));
    let ending = match &outcome {
        Ok(ending) => ending.clone(),
        Err(error) => Ending::failure(error.to_string()),
    };
    runtime.state = if ending.failed { State::Failed } else { State::Stopped };
    runtime.ended = Some(rfc3339(SystemTime::now()));
    runtime.reason = Some(ending.reason);
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
    let readable = machine.network.as_ref().map(Network::grants).unwrap_or_default();
    let mut directories = vec![(folder.as_fd(), Access::ReadWrite)];
    directories.extend(readable.iter().map(|(path, access)| (path.as_fd(), *access)));
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
) -> Result<Ending> {
    let (orders, orders_in) = mpsc::channel();
    let (reports_out, reports) = mpsc::channel();
    let (bell, bell_in) = io::pipe().map_err(|error| Error::host("cannot make a pipe", error))?;
    // One descriptor for both threads: to copy one is no call of this role.
    let steward_bell = Bell(bell_in.into());
    let (said, rope) = (reports_out.clone(), steward_bell.clone());
    let logs = Logs::open(sandbox, machine.vmm.line(), move || {
        let _ = said.send(Report::GoingDown);
        rope.ring();
    })?;
    let line = machine.vmm.line().clone();
    let spec = sandbox.spec.clone();
    let guest = machine.network.as_ref().map(|network| network.guest().clone()).unwrap_or_default();
    thread("steward", move || steward::serve(&spec, &guest, &line, &orders_in, &reports_out, steward_bell))?;
    let mut shim = Shim {
        sandbox,
        runtime,
        machine,
        listener,
        clients: BTreeMap::new(),
        last_client: 0,
        logs,
        orders,
        reports,
        bell,
        terminate,
        confinement: Vec::new(),
        counters: Vec::new(),
        disks: DiskWork::default(),
        disks_before: 0,
        clock: Clock::new(Instant::now()),
        room: Room::default(),
        reset: false,
        ending: None,
    };
    shim.work();
    Ok(shim.finish())
}

/// What has something to be heard.
#[derive(Debug, Default)]
struct Ready {
    fixed: Vec<bool>,
    network: Vec<net::Source>,
    clients: Vec<u64>,
}

/// The fixed descriptors of the loop, in the order in which they are polled; the network's and the clients follow.
const FIXED: usize = 7;

impl Shim<'_> {
    /// The loop; returns when the vmm has ended.
    fn work(&mut self) {
        loop {
            let Ready { fixed: ready, network, clients } = self.wait();
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or(false);
            if is_ready(3) {
                self.logs.console(&read_some(self.machine.console.as_fd()));
            }
            if is_ready(4) {
                self.logs.vmm.take(&read_some(self.machine.vmm.errors()), |_| {});
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
                self.stop("asked to stop");
            }
            for source in network {
                self.hear_network(source);
            }
            for number in clients {
                self.hear_client(number);
            }
            if is_ready(0) {
                self.accept();
            }
            self.look_at_clock();
        }
    }

    fn wait(&self) -> Ready {
        let fixed: [BorrowedFd<'_>; FIXED] = [
            self.listener.as_fd(),
            self.machine.vmm.line().as_fd(),
            self.machine.vmm.process(),
            self.machine.console.as_fd(),
            self.machine.vmm.errors(),
            self.bell.as_fd(),
            self.terminate.as_fd(),
        ];
        let network = self.machine.network.as_ref().map(Network::sources).unwrap_or_default();
        let clients = self.clients.values().map(|client| client.socket.as_fd());
        let mut polled: Vec<PollFd<'_>> = fixed
            .into_iter()
            .chain(network.iter().map(|(_, descriptor)| *descriptor))
            .chain(clients)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        let now = Instant::now();
        let due = self.machine.network.as_ref().and_then(Network::next);
        let next = [self.clock.next(), self.room.next(), due].into_iter().flatten().min();
        let left = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {
                let fixed: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
                let (_, rest) = fixed.split_at_checked(FIXED).unwrap_or_default();
                let (of_network, of_clients) = rest.split_at_checked(network.len()).unwrap_or_default();
                let network = network.iter().map(|(source, _)| *source).zip(of_network);
                let clients = self.clients.keys().copied().zip(of_clients);
                Ready {
                    network: network.filter(|(_, ready)| **ready).map(|(source, _)| source).collect(),
                    clients: clients.filter(|(_, ready)| **ready).map(|(number, _)| number).collect(),
                    fixed,
                }
            }
            Err(_) => Ready::default(),
        }
    }

    fn hear_vmm(&mut self) {
        match self.machine.vmm.line().receive() {
            Ok(Some(FromVmm::Confined { layers })) => {
                self.confinement = layers.iter().take(MOST_WORDS).map(|layer| plain(layer)).collect();
            }
            Ok(Some(FromVmm::Counted { counters, disks })) => {
                self.disks = disks;
                let counters = counters.iter().take(MOST_WORDS);
                self.counters = counters.map(|(name, count)| (plain(name), *count)).collect();
            }
            Ok(Some(FromVmm::HostFull)) => {
                let notice = self.room.hear(Instant::now());
                self.tell(notice);
            }
            Ok(Some(FromVmm::NetworkBroken)) => {
                if let Some(network) = &mut self.machine.network {
                    network.ring_is_broken();
                }
            }
            Ok(Some(FromVmm::Failed { why })) => {
                let why = plain(&why);
                tracing::error!(%why, "The virtual machine failed");
                self.note(Ending::failure(why));
            }
            Ok(Some(FromVmm::PoweredOff)) => {
                tracing::info!("The guest powered off");
                self.note(Ending::wanted("powered off"));
            }
            Ok(Some(FromVmm::Reset)) => {
                tracing::info!("The guest reset its machine");
                self.reset = true;
            }
            Ok(None) => {
                // It is ending; its process descriptor will say so, and its status how (a signal, when its system call
                // filter stopped it). Until then this end would be readable for ever.
                self.machine.vmm.see_off();
            }
            Err(error) => {
                self.distrust(&error);
            }
        }
    }

    /// Tells everybody who has a session that what the guest writes waits for room on the host, or does no longer.
    fn tell(&self, notice: Option<Notice>) {
        let Some(notice) = notice else { return };
        if notice == Notice::HostFull {
            tracing::error!("The host's disk is full: what the guest writes waits until there is room");
        } else {
            tracing::info!("There is room on the host's disk again: the guest goes on");
        }
        for client in self.clients.values().filter(|client| client.holds) {
            let _ = packet::send_now(&client.socket, &Reply::Notice(notice.clone()), &[]);
        }
    }

    /// Ends a vmm that does not keep to the protocol; one that does not read what it is told is such a one.
    fn distrust(&mut self, error: &io::Error) {
        tracing::error!(%error, "The vmm does not keep to the protocol");
        self.note(Ending::failure("the vmm did not keep to the protocol"));
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
            Report::GoingDown if self.runtime.state == State::Running => {
                tracing::info!("The guest goes down by itself");
                self.set_state(State::Stopping);
                self.clock.stopping(Instant::now());
            }
            Report::Ready | Report::GoingDown => {}
            Report::Failed(why) => self.useless(why),
            Report::WillNotStop(why) => {
                tracing::warn!(%why, "The guest cannot be asked to shut down");
                self.note(Ending::failure(format!("cut off: the guest cannot be asked to shut down: {why}")));
                self.machine.vmm.kill();
            }
        }
    }

    /// Sessions can be opened: those that wait are.
    fn ready(&mut self) {
        self.set_state(State::Running);
        self.clock.ready();
        let waiting: Vec<(u64, Vec<Request>)> =
            self.clients.iter_mut().map(|(n, client)| (*n, std::mem::take(&mut client.waiting))).collect();
        for (number, requests) in waiting {
            if requests.into_iter().any(|request| !self.answer(number, request, Vec::new())) {
                self.clients.remove(&number);
            }
        }
        self.note_idle();
    }

    fn useless(&mut self, why: String) {
        tracing::error!(%why, "The guest is of no use");
        self.note(Ending::failure(why));
        self.machine.vmm.kill();
    }

    /// Notes why the run ends.
    fn note(&mut self, reason: Ending) {
        Ending::note(&mut self.ending, reason);
    }

    fn accept(&mut self) {
        match crate::sys::accept(&self.listener) {
            Ok(socket) if self.clients.len() < MOST_CLIENTS => {
                self.last_client += 1;
                let attention = Attention::default();
                let client = Client { socket, holds: false, stops: false, attention, waiting: Vec::new() };
                self.clients.insert(self.last_client, client);
                self.note_idle();
            }
            Ok(_) => tracing::warn!("Too many clients; one was turned away"),
            Err(error) => tracing::debug!(%error, "No client after all"),
        }
    }

    fn hear_client(&mut self, number: u64) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let (request, descriptors) = match packet::receive::<Request>(&client.socket) {
            Ok(Some(said)) => said,
            // It has said nothing after all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.drop_client(number),
        };
        let must_wait = matches!(request, Request::Hold { .. } | Request::Open { .. });
        if must_wait && self.runtime.state == State::Starting {
            if client.waiting.len() < 8 {
                client.waiting.push(request);
            }
        } else if !self.answer(number, request, descriptors) {
            self.drop_client(number);
        }
    }

    fn drop_client(&mut self, number: u64) {
        self.clients.remove(&number);
        self.client_left(number);
        self.attend();
        self.note_idle();
    }

    /// Answers a request; false when the client is gone.
    fn answer(&mut self, number: u64, request: Request, descriptors: Vec<OwnedFd>) -> bool {
        let (reply, descriptor) = match request {
            Request::Hold { network } if self.runtime.state == State::Running => {
                if let Some(client) = self.clients.get_mut(&number) {
                    (client.holds, client.attention) = (true, network);
                }
                self.attend();
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
            Request::Hold { .. } | Request::Open { .. } => {
                (Reply::Refused { why: "the sandbox is stopping".into(), stopping: true }, None)
            }
            Request::Keep if self.runtime.state == State::Stopping => {
                (Reply::Refused { why: "the sandbox is stopping".into(), stopping: true }, None)
            }
            Request::Keep => {
                self.runtime.detached = true;
                self.set_state(self.runtime.state);
                self.note_idle();
                (Reply::Kept, None)
            }
            Request::Status => (Reply::Status(self.status()), None),
            Request::Answer { .. }
            | Request::GrantKept { .. }
            | Request::Authority { .. }
            | Request::SshAgent { .. } => {
                self.heed(number, request);
                return true;
            }
            Request::TakeGrant => (self.next_grant(number), None),
            Request::Network
            | Request::ForgetOnce { .. }
            | Request::Publish { .. }
            | Request::Unpublish { .. }
            | Request::Secrets { .. } => (self.answer_on_network(request, descriptors), None),
            Request::Stop { urgent } => {
                self.stop("asked to stop");
                if urgent {
                    self.clock.hurry();
                }
                if let Some(client) = self.clients.get_mut(&number) {
                    client.stops = true;
                }
                (Reply::Stopping, None)
            }
        };
        let Some(client) = self.clients.get(&number) else { return false };
        let descriptors: Vec<BorrowedFd<'_>> = descriptor.iter().map(AsFd::as_fd).collect();
        let told = packet::send_now(&client.socket, &reply, &descriptors).is_ok();
        if reply == Reply::Held {
            let network = self.machine.network.as_mut().map(|network| network.standing(client.attention));
            for notice in self.room.notice().into_iter().chain(network.unwrap_or_default()) {
                let _ = packet::send_now(&client.socket, &Reply::Notice(notice), &[]);
            }
            self.hand_grants();
        }
        told
    }

    /// Asks the vmm for fresh counters and waits for them a moment; a vmm that does not answer costs no more than that.
    fn status(&mut self) -> Status {
        if self.count() {
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
            detached: self.runtime.detached,
        }
    }

    /// Asks the vmm to count; false when it cannot be asked.
    fn count(&mut self) -> bool {
        match self.machine.vmm.line().count() {
            Ok(()) => true,
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.distrust(&error);
                }
                false
            }
        }
    }

    fn sessions(&self) -> usize {
        self.clients.values().filter(|client| client.holds).count()
    }

    fn note_idle(&mut self) {
        // A detached sandbox is as good as held by somebody who never leaves.
        let held = usize::from(self.runtime.detached);
        let (clients, sessions) = (self.clients.len() + held, self.sessions() + held);
        self.clock.note(self.runtime.state, clients, sessions, Instant::now());
    }

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        let notice = self.room.due(now);
        self.tell(notice);
        self.network_due(now);
        let starts = self.runtime.state == State::Starting && self.ending.is_none();
        if starts && self.room.is_too_full_to_start(now) {
            self.useless(NO_ROOM_TO_START.into());
        }
        match self.clock.due(self.runtime.state, now) {
            None => {}
            // What the guest has written waits for room, and would be lost: nobody is there to be told.
            Some(Due::Idle) if self.room.is_waited_for() => self.note_idle(),
            Some(Due::Idle) => self.stop("idle"),
            Some(Due::NotReady) => {
                tracing::error!("The guest was not ready in time");
                self.note(Ending::failure(clock::not_ready()));
                self.machine.vmm.kill();
            }
            Some(Due::Look) => self.look_at_shutdown(),
        }
    }

    /// Waits on as long as the guest's disk does something; asks what it does until the next look.
    fn look_at_shutdown(&mut self) {
        // A vmm that does not answer any more is not busy, and one that waits for room may do so for ever.
        let busy = std::mem::take(&mut self.disks.busy) && !self.room.is_waited_for();
        let worked = busy || self.disks.done != self.disks_before;
        self.disks_before = self.disks.done;
        if self.clock.looked(worked, Instant::now()) {
            self.count();
        } else {
            tracing::warn!("The guest did not shut down in time");
            self.note(Ending::failure(clock::cut_off()));
            self.machine.vmm.kill();
        }
    }

    fn stop(&mut self, reason: &str) {
        match self.runtime.state {
            State::Running => {
                self.note(Ending::wanted(reason));
                self.set_state(State::Stopping);
                self.clock.stopping(Instant::now());
                let _ = self.orders.send(Order::ShutDown(SHUTDOWN));
            }
            // There is nothing in it yet that could be lost.
            State::Starting => {
                self.note(Ending::wanted(reason));
                self.set_state(State::Stopping);
                self.machine.vmm.kill();
            }
            State::Stopping | State::Checking | State::Stopped | State::Failed => {}
        }
    }

    fn set_state(&mut self, state: State) {
        self.runtime.state = state;
        if let Err(error) = self.sandbox.note(&self.runtime) {
            tracing::warn!(%error, "The state could not be written");
        }
    }

    /// After the end of the vmm: the rest of its logs, word to those who wait, and how it ended.
    fn finish(mut self) -> Ending {
        let ended = self.machine.vmm.wait();
        while let Ok(Some(message)) = self.machine.vmm.line().receive() {
            match message {
                FromVmm::Failed { why } => self.note(Ending::failure(plain(&why))),
                FromVmm::Reset => self.reset = true,
                FromVmm::PoweredOff => self.note(Ending::wanted("powered off")),
                FromVmm::Confined { .. }
                | FromVmm::Counted { .. }
                | FromVmm::HostFull
                | FromVmm::NetworkBroken => {}
            }
        }
        self.logs.finish(self.machine.console.as_fd(), self.machine.vmm.errors());
        if let Some(network) = &mut self.machine.network {
            network.finish();
        }
        let ending = Ending::of_run(self.ending.take(), ended, self.reset, self.logs.panicked);
        for client in self.clients.values() {
            if !client.waiting.is_empty() {
                let refused = Reply::Refused { why: ending.reason.clone(), stopping: false };
                let _ = packet::send_now(&client.socket, &refused, &[]);
            }
            if client.stops {
                let ended = Reply::Ended { failed: ending.failed, reason: ending.reason.clone() };
                let _ = packet::send_now(&client.socket, &ended, &[]);
            }
        }
        tracing::info!(reason = ending.reason, failed = ending.failed, "The sandbox has ended");
        ending
    }
}

/// What a vmm says, for the log, the state's file and the user's terminal.
fn plain(text: &str) -> String {
    escaped(text, LONGEST)
}

/// What can be read without waiting; nothing also at the end.
pub(crate) fn read_some(from: BorrowedFd<'_>) -> Vec<u8> {
    if !is_readable(from) {
        return Vec::new();
    }
    let mut bytes = vec![0u8; 64 << 10];
    let count = rustix::io::read(from, &mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}
