//! The supervisor of a sandbox's gateway, in the shim's loop. Nothing here waits for the gateway, and what it says is bounded and believed
//! for this sandbox only.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use confine::Access;
use gateway::control::{Configuration, Counters, FromGateway, Mode, ToGateway};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::grants::Grants;
use super::hints::Hints;
use super::keeper::{self, FromKeeper, ToKeeper};
use super::log::NetworkLog;
use super::ports::{self, Publish};
use super::questions::Questions;
use super::standing::Standing;
use super::surroundings::Roots;
use super::{ClientProxies, Guest, Handover, authority, policy_files, surroundings};
use crate::control::{Attention, NetworkStatus, Notice};
use crate::error::{Error, Result};
use crate::escape::{LONGEST, escaped};
use crate::folder::Sandbox;
use crate::launch::VmmLine;
use crate::logs::{self, BoundedLog, LineLog};
use crate::places::Places;
use crate::plan::{self, Descriptors};
use crate::{packet, sys};

mod files;
mod kept;
mod records;

/// Between the end of a gateway and the start of the next: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// One that lived so long has not died of what its predecessor died of.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// How long after something was heard the gateway is asked for what a successor should know.
const SAVE: Duration = Duration::from_secs(5);
/// How long the last records may take at the end.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Most lines about the confinement.
const MOST: usize = 64;

/// What has something to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The keeper's line.
    Keeper,
    /// What keeper and gateway write on their standard error.
    Errors,
    /// The gateway's line.
    Gateway,
    /// A file that is watched has changed.
    Files,
}

/// The keeper's process.
#[derive(Debug)]
struct Keeper {
    child: Child,
    line: OwnedFd,
    errors: OwnedFd,
    is_open: bool,
}

/// The network of a running sandbox.
#[derive(Debug)]
pub(crate) struct Network {
    sandbox: Sandbox,
    places: Places,
    keeper: Keeper,
    ring: sys::Ring,
    control: Option<OwnedFd>,
    /// That of a gateway that is being ended: what it said is heard when it has.
    left: Option<OwnedFd>,
    /// What a gateway is told first, as it is now.
    configuration: Configuration,
    own: Vec<IpAddr>,
    proxies: ClientProxies,
    roots: Roots,
    guest: Guest,
    watch: sys::Watch,
    log: NetworkLog,
    errors: LineLog,
    /// By the numbers that the gateway knows them by.
    ports: BTreeMap<u64, (Publish, OwnedFd)>,
    last_port: u64,
    /// What could not be published at the start.
    unpublished: Vec<(Publish, String)>,
    questions: Questions,
    hints: Hints,
    grants: Grants,
    /// When the certificate authority should be issued again.
    authority: Option<Instant>,
    /// When values of secrets are to be asked for again, and that this was said and not done yet.
    secrets_until: Option<Instant>,
    secrets_ended: bool,
    confinement: Vec<String>,
    counters: Vec<(String, u64)>,
    restarts: u32,
    /// Since when the gateway serves.
    up: Option<Instant>,
    pause: Duration,
    /// When the next gateway is started.
    retry: Option<Instant>,
    save: Option<Instant>,
    /// Why there is no network.
    down: Option<String>,
    /// When the user's settings are looked at again, which are away.
    settings: Option<Instant>,
    policy: Standing,
    /// Why the record cannot be written, and when it is tried again.
    unwritten: Option<(String, Instant)>,
    /// How sessions want to be treated what no rule decides.
    wanted: Mode,
    /// What the gateway said last before it ended.
    last_word: Option<String>,
}

impl Network {
    /// Starts the keeper and the first gateway, reads what it must know, and binds the published ports. Called before the shim is
    /// confined, and before its vmm is started, which gets the other end of the frame ring.
    pub(crate) fn start(
        sandbox: &Sandbox,
        places: &Places,
        handover: Handover,
        descriptors: &mut Descriptors,
    ) -> Result<(Self, plan::Network)> {
        let fail = |source: io::Error| Error::host("cannot start the sandbox's network", source);
        let keeper = Keeper::start()?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&places.config)
            .map_err(|source| Error::file("cannot make the folder", &places.config, source))?;
        let watch = sys::Watch::new(&watched(sandbox, places)).map_err(fail)?;
        let ring = sys::Ring::new().map_err(fail)?;
        let copy = |descriptor: &OwnedFd| descriptor.try_clone().map_err(fail);
        let link = plan::Network {
            memory: descriptors.add(copy(&ring.memory)?),
            bell: descriptors.add(copy(&ring.guest_bell)?),
            far_bell: descriptors.add(copy(&ring.network_bell)?),
        };
        let secrets_until = handover.secrets.until;
        let proxies = handover.proxies.clone();
        let (roots, all) = Roots::read();
        let (configuration, guest) = know(sandbox, places, handover, all)?;
        let errors = sandbox.log(logs::Source::Gateway);
        let errors =
            BoundedLog::open(&errors).map_err(|source| Error::file("cannot write", errors, source))?;
        let own = surroundings::own_addresses();
        let policy = Standing::at_start(places, sandbox, &own);
        let log = NetworkLog::open(sandbox.folder());
        let log = log
            .map_err(|source| Error::file("cannot write", sandbox.folder().join(super::log::FILE), source))?;
        let mut network = Self {
            sandbox: sandbox.clone(),
            places: places.clone(),
            keeper,
            ring,
            control: None,
            left: None,
            configuration: Configuration { policy: policy.in_force().clone(), ..configuration },
            own,
            proxies,
            roots,
            guest,
            watch,
            log,
            errors: LineLog::new(errors),
            ports: BTreeMap::new(),
            last_port: 0,
            unpublished: Vec::new(),
            questions: Questions::default(),
            hints: Hints::default(),
            grants: Grants::default(),
            authority: None,
            secrets_until: secrets_until.and_then(kept::instant),
            secrets_ended: false,
            confinement: Vec::new(),
            counters: Vec::new(),
            restarts: 0,
            up: None,
            pause: FIRST_PAUSE,
            retry: None,
            save: None,
            down: None,
            settings: None,
            policy,
            unwritten: None,
            wanted: Mode::Enforce,
            last_word: None,
        };
        network.note_authority();
        network.bind_ports()?;
        network.launch().map_err(fail)?;
        // Who started it may have read them in the moment in which an editor had them away.
        network.read_settings(Instant::now());
        Ok((network, link))
    }

    /// What a guest is told when it is set up.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// What the shim must still be able to read once it is confined.
    pub(crate) fn grants(&self) -> Vec<(OwnedFd, Access)> {
        let mut paths = surroundings::readable();
        paths.push(self.places.config.clone());
        let open = |path: &PathBuf| File::open(path).ok().map(|file| (file.into(), Access::ReadOnly));
        paths.iter().filter_map(open).collect()
    }

    /// What to wait for.
    pub(crate) fn sources(&self) -> Vec<(Source, BorrowedFd<'_>)> {
        let mut all = vec![(Source::Files, self.watch.as_fd())];
        if self.keeper.is_open {
            all.push((Source::Keeper, self.keeper.line.as_fd()));
            all.push((Source::Errors, self.keeper.errors.as_fd()));
        }
        all.extend(self.control.as_ref().map(|control| (Source::Gateway, control.as_fd())));
        all
    }

    /// Hears what is ready. Gives what sessions are to be told.
    pub(crate) fn hear(&mut self, source: Source, vmm: &VmmLine) -> Vec<Notice> {
        let mut told = Vec::new();
        match source {
            Source::Keeper => self.hear_keeper(vmm, &mut told),
            Source::Errors => {
                let said = crate::shim::read_some(self.keeper.errors.as_fd());
                self.errors.take(&said, |_| {});
            }
            Source::Gateway => self.hear_gateway(&mut told),
            Source::Files => self.hear_files(&mut told),
        }
        told
    }

    /// When to look at the clock again.
    pub(crate) fn next(&self) -> Option<Instant> {
        let unwritten = self.unwritten.as_ref().map(|(_, again)| *again);
        let due = [
            self.retry,
            self.save,
            self.authority,
            self.secrets_until,
            self.policy.again(),
            self.settings,
            self.hints.due(),
            unwritten,
        ];
        due.into_iter().flatten().min()
    }

    /// Does what is due. Gives what sessions are to be told.
    pub(crate) fn due(&mut self, now: Instant, vmm: &VmmLine) -> Vec<Notice> {
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            self.restarts = self.restarts.saturating_add(1);
            if let Err(error) = self.launch_again(vmm) {
                tracing::error!(%error, "The gateway cannot be started again");
                self.retry = Some(now + self.longer_pause());
            }
        }
        if self.save.is_some_and(|at| at <= now) {
            self.save = None;
            self.say(&ToGateway::Save);
        }
        let mut told = Vec::new();
        if self.policy.again().is_some_and(|at| at <= now) {
            self.read_policy(now, &mut told);
        }
        if self.settings.is_some_and(|at| at <= now) {
            self.read_settings(now);
        }
        if self.unwritten.as_ref().is_some_and(|(_, again)| *again <= now) {
            told.extend(self.write_down(Vec::new()));
        }
        told.extend(self.hints.rest(now));
        // Sessions that begin later are told when they do.
        if self.authority.is_some_and(|at| at <= now) {
            self.authority = None;
            told.push(Notice::AuthorityEnds);
        }
        if self.secrets_until.is_some_and(|at| at <= now) {
            (self.secrets_until, self.secrets_ended) = (None, true);
            told.push(Notice::SecretsEnd);
        }
        told
    }

    /// The vmm says that the gateway broke the ring.
    pub(crate) fn ring_is_broken(&mut self) {
        tracing::error!("The gateway broke the frame ring");
        self.end_gateway("it broke the frame ring");
    }

    /// How the gateway is to treat what no rule decides.
    pub(crate) fn attend(&mut self, sessions: impl Iterator<Item = Attention>) {
        let all = sessions.fold(Attention::default(), |all, one| Attention {
            hints: all.hints | one.hints,
            asks: all.asks | one.asks,
            observes: all.observes | one.observes,
            keeps: all.keeps | one.keeps,
        });
        self.wanted = match all {
            Attention { observes: true, .. } => Mode::Observe,
            Attention { asks: true, .. } => Mode::Ask,
            _ => Mode::Enforce,
        };
        self.set_mode();
    }

    /// What a session that begins is to be told.
    pub(crate) fn standing(&mut self, attention: Attention) -> Vec<Notice> {
        let mut told = Vec::new();
        if attention.hints {
            self.hints.begin();
            told.extend(self.down.clone().map(|why| Notice::NetworkDown { why }));
            told.extend(self.policy.notice());
            told.extend(self.unwritten.as_ref().map(|(why, _)| Notice::NoRecord { why: why.clone() }));
            let unpublished = self.unpublished.iter().cloned();
            told.extend(unpublished.map(|(publish, why)| Notice::NotPublished { publish, why }));
        }
        if attention.asks {
            told.extend(self.questions.notices());
        }
        let good_for = self.configuration.ca.as_ref().map(|ca| authority::good_for(ca, SystemTime::now()));
        if attention.keeps && good_for == Some(Some(Duration::ZERO)) {
            told.push(Notice::AuthorityEnds);
        }
        if attention.keeps && self.secrets_ended {
            told.push(Notice::SecretsEnd);
        }
        told
    }

    /// How it fares. What the gateway says meanwhile, and sessions are to be told, comes to `told`.
    pub(crate) fn status(&mut self, told: &mut Vec<Notice>) -> NetworkStatus {
        if self.say(&ToGateway::Count)
            && let Some(control) = &self.control
            && is_readable_within(control.as_fd(), Duration::from_millis(300))
        {
            self.hear_gateway(told);
        }
        NetworkStatus {
            up: self.up.is_some(),
            problem: self.problem(),
            confinement: self.confinement.clone(),
            restarts: self.restarts,
            keeper: self.keeper.is_open.then(|| self.keeper.child.id()),
            observes: self.configuration.mode == Mode::Observe,
            once: self.policy.in_force().once.clone(),
            ports: self.published(),
            counters: self.counters.clone(),
            untold: self.hints.untold(),
        }
    }

    fn problem(&self) -> Option<String> {
        let policy = || self.policy.problem().map(str::to_owned);
        let record = || self.unwritten.as_ref().map(|(why, _)| why.clone());
        self.down.clone().or_else(policy).or_else(record)
    }

    /// Lets the gateway say what it has recorded, at the end of the sandbox.
    pub(crate) fn finish(&mut self) {
        self.last_words();
        self.write_the_rest();
    }

    fn last_words(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        if !self.say(&ToGateway::Save) {
            return;
        }
        self.configuration.restore = None;
        while let Some(control) = &self.control
            && self.configuration.restore.is_none()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !is_readable_within(control.as_fd(), left) {
                return;
            }
            self.hear_gateway(&mut Vec::new());
        }
    }
}

/// Ports.
impl Network {
    fn bind_ports(&mut self) -> Result<()> {
        let before = ports::read(self.sandbox.folder())?;
        for publish in before.iter().copied() {
            match publish.bind_again() {
                Ok((publish, socket)) => {
                    self.last_port += 1;
                    self.ports.insert(self.last_port, (publish, socket));
                }
                Err(error) => {
                    let why = publish.refusal(&error).to_string();
                    tracing::error!(%publish, %why, "A port is not published");
                    self.unpublished.push((publish, why));
                }
            }
        }
        if self.published() != before {
            self.keep_ports()?;
        }
        Ok(())
    }

    /// What is published.
    pub(crate) fn published(&self) -> Vec<Publish> {
        self.ports.values().map(|(publish, _)| *publish).collect()
    }

    /// Those that could not be bound this time stay for the next.
    fn keep_ports(&self) -> Result<()> {
        let mut all = self.published();
        all.extend(self.unpublished.iter().map(|(publish, _)| *publish));
        ports::write(self.sandbox.folder(), &all)
    }

    /// Passes a client's socket on, and keeps what it is for.
    pub(crate) fn publish(&mut self, publish: Publish, socket: OwnedFd) -> Result<Vec<Publish>> {
        let mut all = self.published();
        ports::add(&mut all, publish)?;
        self.last_port += 1;
        let number = self.last_port;
        self.ports.insert(number, (publish, socket));
        // One that was in use at the start is not missing any more.
        let missing = std::mem::take(&mut self.unpublished);
        self.unpublished = missing.iter().filter(|(other, _)| !publish.means(other)).cloned().collect();
        if let Err(error) = self.keep_ports() {
            self.ports.remove(&number);
            self.unpublished = missing;
            return Err(error);
        }
        self.pass_on(number);
        Ok(self.published())
    }

    /// Closes one, and forgets it.
    pub(crate) fn unpublish(&mut self, publish: &Publish) -> Result<Vec<Publish>> {
        if let Some(index) = self.unpublished.iter().position(|(other, _)| publish.means(other)) {
            self.unpublished.remove(index);
            self.keep_ports()?;
            return Ok(self.published());
        }
        let mut all = self.published();
        let removed = ports::remove(&mut all, publish)?;
        let number = self.ports.iter().find(|(_, (known, _))| *known == removed).map(|(number, _)| *number);
        if let Some(number) = number {
            self.ports.remove(&number);
            self.say(&ToGateway::Unpublish { number });
        }
        self.keep_ports()?;
        Ok(self.published())
    }

    fn pass_on(&mut self, number: u64) {
        let Some((publish, socket)) = self.ports.get(&number) else { return };
        let protocol = match publish.protocol {
            ports::Protocol::Tcp => policy::Protocol::Tcp,
            ports::Protocol::Udp => policy::Protocol::Udp,
        };
        let word = ToGateway::Publish { number, protocol, guest_port: publish.guest_port };
        let sent = match &self.control {
            Some(control) => packet::send_large_now(control, &word, &[socket.as_fd()]),
            None => return,
        };
        self.unless_sent(sent);
    }
}

/// The gateway's process.
impl Network {
    /// Starts a gateway and tells it everything.
    fn launch(&mut self) -> io::Result<()> {
        let (near, far) = packet::pair()?;
        packet::send_now(&self.keeper.line, &ToKeeper::Start, &[far.as_fd()])?;
        let ring = [self.ring.memory.as_fd(), self.ring.network_bell.as_fd(), self.ring.guest_bell.as_fd()];
        packet::send_large_now(&near, &ToGateway::Configure(Box::new(self.configuration.clone())), &ring)?;
        self.control = Some(near);
        let numbers: Vec<u64> = self.ports.keys().copied().collect();
        for number in numbers {
            self.pass_on(number);
        }
        Ok(())
    }

    /// The same when there was one before: what it had written to the ring is lost.
    fn launch_again(&mut self, vmm: &VmmLine) -> io::Result<()> {
        self.ring.memory = sys::Ring::memory()?;
        vmm.network(&self.ring.memory)?;
        self.launch()
    }

    /// Says something; false when there is nobody to hear it.
    fn say(&mut self, word: &ToGateway) -> bool {
        let sent = match &self.control {
            Some(control) => packet::send_large_now(control, word, &[]),
            None => return false,
        };
        self.unless_sent(sent)
    }

    fn unless_sent(&mut self, sent: io::Result<()>) -> bool {
        match sent {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "The gateway does not hear");
                self.end_gateway("it did not hear its shim");
                false
            }
        }
    }

    /// Ends the gateway; that it has ended comes from its keeper.
    fn end_gateway(&mut self, why: &str) {
        self.last_word.get_or_insert_with(|| why.to_owned());
        self.left = self.control.take().or(self.left.take());
        self.end_gateway_quietly();
    }

    fn hear_keeper(&mut self, vmm: &VmmLine, told: &mut Vec<Notice>) {
        match packet::receive::<FromKeeper>(&self.keeper.line) {
            Ok(Some((FromKeeper::Confined { layers }, _))) => {
                self.confinement = layers.iter().take(MOST).map(|layer| plain(layer)).collect();
            }
            Ok(Some((FromKeeper::Ended { how }, _))) => self.ended(&how, vmm, told),
            Ok(Some((FromKeeper::Failed { why }, _))) => self.last_word = Some(plain(&why)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => {
                self.keeper.is_open = false;
                self.hear_the_rest(told);
                let why = self.last_word.take();
                let why = why.unwrap_or_else(|| "the process that starts the gateway was killed".into());
                tracing::error!(%why, "There is no network until the sandbox is started again");
                self.go_down(
                    format!("{why}; viv stop {} and start it again", self.sandbox.spec.name),
                    vmm,
                    told,
                );
            }
        }
    }

    /// A gateway has ended, which it never does by itself as long as its shim is there.
    fn ended(&mut self, how: &str, vmm: &VmmLine, told: &mut Vec<Notice>) {
        self.hear_the_rest(told);
        let now = Instant::now();
        let why = self.last_word.take().unwrap_or_else(|| plain(how));
        tracing::error!(%why, how, "The gateway has ended");
        if self.up.is_some_and(|since| since + LONG_LIFE <= now) {
            self.pause = FIRST_PAUSE;
        }
        self.retry = Some(now + self.longer_pause());
        self.go_down(format!("its gateway ended: {why}"), vmm, told);
    }

    fn longer_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    fn go_down(&mut self, why: String, vmm: &VmmLine, told: &mut Vec<Notice>) {
        self.up = None;
        self.save = None;
        if let Err(error) = vmm.network_down() {
            tracing::debug!(%error, "The vmm is not told");
        }
        told.extend(self.questions.all_over());
        if self.down.replace(why.clone()).is_none() {
            told.push(Notice::NetworkDown { why });
        }
    }

    fn hear_gateway(&mut self, told: &mut Vec<Notice>) {
        let Some(control) = &self.control else { return };
        match packet::receive_large::<FromGateway>(control) {
            Ok(Some((word, _))) => self.take(word, told),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Its keeper says how it ended.
            Ok(None) => {
                self.control = None;
                self.end_gateway_quietly();
            }
            Err(error) => {
                tracing::error!(%error, "The gateway does not keep to the protocol");
                self.end_gateway("it did not keep to the protocol");
            }
        }
    }

    /// One that has closed its line and is ending already.
    fn end_gateway_quietly(&mut self) {
        if self.keeper.is_open {
            let _ = packet::send_now(&self.keeper.line, &ToKeeper::End, &[]);
        }
    }

    fn take(&mut self, word: FromGateway, told: &mut Vec<Notice>) {
        match word {
            FromGateway::Ready => {
                self.up = Some(Instant::now());
                if self.down.take().is_some() {
                    told.push(Notice::NetworkBack);
                }
            }
            FromGateway::Records { records } => {
                told.extend(self.write_down(records));
                self.save.get_or_insert(Instant::now() + SAVE);
            }
            FromGateway::Question { question, host, port, protocol, .. } => {
                match self.questions.put(question, &host, port, protocol) {
                    Some(asked) => told.push(asked),
                    None => _ = self.say(&ToGateway::Refuse { question }),
                }
            }
            FromGateway::QuestionOver { question } => told.extend(self.questions.over(question)),
            FromGateway::Published { .. } => {}
            FromGateway::PublishFailed { number, why } => {
                if let Some((publish, _)) = self.ports.get(&number) {
                    told.push(Notice::NotPublished { publish: *publish, why: plain(&why) });
                }
            }
            FromGateway::Counted { counters } => self.counters = counted(&counters),
            FromGateway::Grant { grant } => self.take_grant(&grant),
            FromGateway::Saved { state } => self.configuration.restore = Some(state),
            FromGateway::Rejected { word, why } => {
                tracing::error!(word = plain(&word), why = plain(&why), "The gateway cannot use a word");
            }
            FromGateway::Failed { why } => self.last_word = Some(plain(&why)),
        }
    }
}

impl Keeper {
    fn start() -> Result<Self> {
        let fail = |source: io::Error| Error::host("cannot start the network's process", source);
        confine::keep_descriptors().map_err(fail)?;
        let (near, far) = packet::pair().map_err(fail)?;
        let (errors, errors_in) = io::pipe().map_err(fail)?;
        let mut command = keeper::command(Path::new(&sys::own_program()), far);
        let child = command.stderr(Stdio::from(errors_in)).spawn().map_err(fail)?;
        Ok(Self { child, line: near, errors: errors.into(), is_open: true })
    }
}

/// What a gateway is told of this host and this sandbox, and what the guest is told of the gateway.
fn know(
    sandbox: &Sandbox,
    places: &Places,
    handover: Handover,
    roots: Vec<Vec<u8>>,
) -> Result<(Configuration, Guest)> {
    let now = SystemTime::now();
    let root = authority::root(places, now)?;
    let ca = authority::issue_by(&root, places, sandbox, now)?;
    let mut certificates = vec![root.certificate_der().to_vec()];
    certificates.extend(surroundings::extra_roots());
    let configuration = Configuration {
        resolver: surroundings::resolver().unwrap_or_default(),
        hosts: surroundings::hosts().unwrap_or_default(),
        proxies: handover.proxies.proxies,
        roots,
        ca: Some(ca),
        secrets: handover.secrets.text,
        ..Configuration::default()
    };
    Ok((configuration, Guest { certificates, variables: handover.secrets.variables }))
}

/// The folders and files whose changes matter.
fn watched(sandbox: &Sandbox, places: &Places) -> Vec<PathBuf> {
    let kits = sandbox.folder().join(policy_files::KITS);
    let mut paths = vec![places.config.clone(), sandbox.folder().to_owned(), kits];
    paths.extend(surroundings::readable());
    paths.push("/etc".into());
    paths.retain(|path| path.exists());
    paths
}

/// Whether there is something to read before that time is over.
fn is_readable_within(descriptor: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).ok();
    poll(&mut polled, timeout.as_ref()).is_ok_and(|count| count > 0)
}

/// What was counted, for `viv inspect`.
fn counted(counters: &Counters) -> Vec<(String, u64)> {
    let value = serde_json::to_value(counters).unwrap_or_default();
    let all = value.as_object().into_iter().flatten();
    all.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect()
}

/// A word of the gateway's, for a log or a terminal.
fn plain(text: &str) -> String {
    escaped(text, LONGEST)
}
