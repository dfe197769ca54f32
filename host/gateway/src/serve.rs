//! The process: takes the shim's configuration, runs the flows, heeds the shim's words, reports.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use agent_proto::abi;
use frame_ring::{Link, Side};
use policy::{Policy, Protocol};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until};

use crate::ask::{self, Questions};
use crate::control::{Configuration, Counters, FromGateway, Saved, SecretText, ToGateway};
use crate::core::{Core, Rules, Shared, Slot, Target};
use crate::intercept::{Interceptor, MakeInterceptor, Reporter, Setup};
use crate::names::Names;
use crate::proxy::ProxyTable;
use crate::publish::{self, Published};
use crate::pump::{Pump, PumpError, watched};
use crate::renew;
use crate::resolve::Resolver;
use crate::sys::bell;
use crate::tcp;

/// How long it is until a word that could not be handed over is tried again.
const SHORTAGE: std::time::Duration = std::time::Duration::from_millis(100);

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The process cannot be set up.
    #[error("cannot start: {0}")]
    Start(io::Error),
    /// The shim does not speak as it should.
    #[error("the shim: {0}")]
    Control(io::Error),
    /// The first word is not a configuration with a frame ring.
    #[error("the shim's first word is no configuration with the three descriptors of a frame ring")]
    NotConfigured,
    /// No frames.
    #[error(transparent)]
    Pump(#[from] PumpError),
}

/// What the tasks of a gateway share on its thread.
pub(crate) struct World {
    pub(crate) shared: Arc<Shared>,
    interceptor: RefCell<Option<Rc<dyn Interceptor>>>,
    make: MakeInterceptor,
    /// The authority, also when no interceptor could be made with it.
    ca: RefCell<Option<SecretText>>,
    roots: RefCell<Vec<Vec<u8>>>,
    secrets: RefCell<Option<SecretText>>,
    /// Since the renewal of tokens last looked.
    pub(crate) other_policy: Cell<bool>,
    published: RefCell<HashMap<u64, Published>>,
    /// DNS connections there are.
    pub(crate) dns_streams: Cell<usize>,
    /// For one datagram at a time.
    pub(crate) datagram: RefCell<Vec<u8>>,
}

impl World {
    pub(crate) fn interceptor(&self) -> Option<Rc<dyn Interceptor>> {
        self.interceptor.borrow().clone()
    }

    /// Whether a flow to there has to be looked into although the policy lets it pass.
    pub(crate) fn wants(&self, target: &Target) -> bool {
        self.interceptor().is_some_and(|interceptor| interceptor.wants(target.host.as_host(), target.port))
    }
}

/// Runs a gateway until the shim closes `control`, a packet socket. One thread.
///
/// # Errors
/// When it cannot start, the shim breaks the protocol or the frame ring breaks.
pub fn main_loop(control: OwnedFd, make: MakeInterceptor) -> Result<(), GatewayError> {
    rustix::io::ioctl_fionbio(&control, true).map_err(|error| GatewayError::Start(error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(GatewayError::Start)?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let control =
            Rc::new(watched(control, Interest::READABLE | Interest::WRITABLE).map_err(GatewayError::Start)?);
        let done = run(&control, make).await;
        if let Err(error) = &done {
            // An error: the shim is gone.
            let _ = packet::send_large_now(
                control.get_ref(),
                &FromGateway::Failed { why: error.to_string() },
                &[],
            );
        }
        done
    }))
}

async fn run(control: &Rc<AsyncFd<OwnedFd>>, make: MakeInterceptor) -> Result<(), GatewayError> {
    let first = receive(control).await.map_err(GatewayError::Control)?;
    let Some((ToGateway::Configure(configuration), descriptors)) = first else {
        return if first.is_none() { Ok(()) } else { Err(GatewayError::NotConfigured) };
    };
    let Ok([memory, mine, theirs]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return Err(GatewayError::NotConfigured);
    };
    let link = bell(mine)
        .and_then(|mine| Link::from_parts(memory, Side::Network, mine, bell(theirs)?))
        .map_err(GatewayError::Start)?;
    let world = configured(*configuration, make)?;
    world.shared.say(FromGateway::Ready);
    let pump = Pump::new(Rc::clone(&world), link)?;
    tokio::select! {
        error = pump.run() => Err(error.into()),
        done = heed_words(&world, control) => closed(done),
        done = speak(&world, control) => closed(done),
        never = renew::run(&world) => match never {},
    }
}

/// How the talk with the shim ended. It may close its end while it is spoken to, or before it has heard all.
fn closed(done: io::Result<()>) -> Result<(), GatewayError> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match done {
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => Ok(()),
        done => done.map_err(GatewayError::Control),
    }
}

async fn receive(control: &AsyncFd<OwnedFd>) -> io::Result<Option<(ToGateway, Vec<OwnedFd>)>> {
    loop {
        let mut ready = control.readable().await?;
        match packet::receive_large(control.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            other => return other,
        }
    }
}

fn configured(configuration: Configuration, make: MakeInterceptor) -> Result<Rc<World>, GatewayError> {
    let mut words = VecDeque::new();
    let mut reject =
        |word: &str, why: String| words.push_back(FromGateway::Rejected { word: word.into(), why });
    let resolver = Resolver::new(&configuration.resolver, &configuration.hosts).unwrap_or_else(|error| {
        reject("Resolver", error.to_string());
        Resolver::default()
    });
    let proxies = ProxyTable::new(&configuration.proxies, &configuration.roots);
    if let Err(error) = proxies.check() {
        reject("Proxies", error);
    }
    let mut seed = [0; 8];
    let no_entropy = |_| GatewayError::Start(io::Error::other("the host gives no random numbers"));
    SystemRandom::new().fill(&mut seed).map_err(no_entropy)?;
    let mut stack = netstack::Stack::new(&link_config(u64::from_ne_bytes(seed)), netstack::Limits::default());
    let saved = configuration.restore.unwrap_or_default();
    if !saved.flows.is_empty() && stack.restore(&saved.flows).is_err() {
        reject("Configure", "the saved flows cannot be read".into());
    }
    let names = Names::restore(&saved.names, Instant::now());
    let rules = Rules::new(Policy::compile(&configuration.policy), configuration.mode, names, resolver);
    let shared = Shared::new(Core {
        stack,
        rules,
        flows: HashMap::new(),
        questions: Questions::default(),
        proxies: Arc::new(proxies),
        words,
        counters: Default::default(),
        dials: 0,
        next_port: 32_768,
    });
    let world = Rc::new(World {
        shared,
        interceptor: RefCell::default(),
        make,
        ca: RefCell::default(),
        roots: RefCell::new(configuration.roots),
        secrets: RefCell::new(configuration.secrets),
        other_policy: Cell::default(),
        published: RefCell::default(),
        dns_streams: Cell::new(0),
        datagram: RefCell::default(),
    });
    if let Some(ca) = configuration.ca {
        check(&world, "Ca", set_ca(&world, &ca));
    }
    Ok(world)
}

/// The two ends of the link, as the guest's ABI has them.
fn link_config(seed: u64) -> netstack::Config {
    netstack::Config {
        guest_mac: abi::GUEST_MAC,
        gateway_mac: abi::GATEWAY_MAC,
        guest_ipv4: abi::GUEST_IPV4,
        gateway_ipv4: abi::GATEWAY_IPV4,
        guest_ipv6: abi::GUEST_IPV6,
        gateway_ipv6: abi::GATEWAY_IPV6,
        segmentation: true,
        seed,
    }
}

/// Heeds the shim's words until it is gone.
async fn heed_words(world: &Rc<World>, control: &AsyncFd<OwnedFd>) -> io::Result<()> {
    while let Some((word, descriptors)) = receive(control).await? {
        heed(world, word, descriptors);
    }
    Ok(())
}

fn heed(world: &Rc<World>, word: ToGateway, descriptors: Vec<OwnedFd>) {
    let shared = &world.shared;
    match word {
        ToGateway::Configure(_) => check(world, "Configure", Err("it comes once".into())),
        ToGateway::Policy { policy } => {
            shared.lock().rules.policy = Policy::compile(&policy);
            judge_again(world);
        }
        ToGateway::Mode { mode } => {
            shared.lock().rules.mode = mode;
            judge_again(world);
        }
        ToGateway::Resolver { resolver, hosts } => match Resolver::new(&resolver, &hosts) {
            Ok(resolver) => shared.lock().rules.resolver = resolver,
            Err(error) => check(world, "Resolver", Err(error.to_string())),
        },
        ToGateway::Proxies { proxies } => {
            let proxies = ProxyTable::new(&proxies, &world.roots.borrow());
            let read = proxies.check();
            shared.lock().proxies = Arc::new(proxies);
            check(world, "Proxies", read);
        }
        ToGateway::Roots { roots } => {
            Arc::make_mut(&mut shared.lock().proxies).set_roots(&roots);
            world.roots.replace(roots.clone());
            let set = set_or_make(world, |interceptor| interceptor.set_roots(&roots));
            check(world, "Roots", set);
            judge_again(world);
        }
        ToGateway::Ca { ca } => {
            check(world, "Ca", set_ca(world, &ca));
            judge_again(world);
        }
        ToGateway::Secrets { secrets } => {
            world.secrets.replace(Some(secrets.clone()));
            let set = set_or_make(world, |interceptor| interceptor.set_secrets(&secrets));
            check(world, "Secrets", set);
            judge_again(world);
        }
        ToGateway::Refuse { question } => ask::refused(&mut shared.lock(), question),
        ToGateway::Publish { number, protocol, guest_port } => {
            let socket = descriptors.into_iter().next();
            let opened = publish(world, number, protocol, guest_port, socket);
            shared.say(match opened {
                Ok(()) => FromGateway::Published { number },
                Err(why) => FromGateway::PublishFailed { number, why },
            });
        }
        ToGateway::Unpublish { number } => unpublish(world, number),
        ToGateway::Count => {
            let core = shared.lock();
            let (flows, names) = (core.flows.len() as u64, core.rules.names.len() as u64);
            let counters = Counters { flows, names, ..core.counters };
            drop(core);
            shared.say(FromGateway::Counted { counters });
        }
        ToGateway::Save => save(shared),
    }
}

/// Says what could not be done.
fn check(world: &World, word: &str, done: Result<(), String>) {
    if let Err(why) = done {
        world.shared.say(FromGateway::Rejected { word: word.into(), why });
    }
}

/// Changes the interceptor. One that could not be made with what there was before is made now.
fn set_or_make(
    world: &World,
    change: impl FnOnce(&dyn Interceptor) -> Result<(), String>,
) -> Result<(), String> {
    if let Some(interceptor) = world.interceptor() {
        return change(interceptor.as_ref());
    }
    let ca = world.ca.borrow().clone();
    ca.map_or(Ok(()), |ca| set_ca(world, &ca))
}

fn set_ca(world: &World, ca: &SecretText) -> Result<(), String> {
    world.ca.replace(Some(ca.clone()));
    if let Some(interceptor) = world.interceptor() {
        return interceptor.set_ca(ca);
    }
    let interceptor = (world.make)(Setup {
        ca: ca.clone(),
        roots: world.roots.borrow().clone(),
        secrets: world.secrets.borrow().clone(),
        reporter: Reporter(Arc::clone(&world.shared)),
    })?;
    world.interceptor.replace(Some(interceptor));
    Ok(())
}

/// The rules changed: flows, requests, questions and renewals that were refused are judged again.
fn judge_again(world: &World) {
    world.other_policy.set(true);
    world.shared.logins.notify_one();
    let mut core = world.shared.lock();
    ask::judge_again(&mut core);
    tcp::judge_again(&mut core, world);
    drop(core);
    if let Some(interceptor) = world.interceptor() {
        interceptor.judge_again();
    }
}

fn publish(
    world: &Rc<World>,
    number: u64,
    protocol: Protocol,
    guest_port: u16,
    socket: Option<OwnedFd>,
) -> Result<(), String> {
    let socket = socket.ok_or("it came without a socket")?;
    let published =
        publish::open(world, number, protocol, guest_port, socket).map_err(|error| error.to_string())?;
    world.published.borrow_mut().insert(number, published);
    Ok(())
}

fn unpublish(world: &World, number: u64) {
    world.published.borrow_mut().remove(&number);
    let mut core = world.shared.lock();
    let is_its = |slot: &Slot| slot.publish == Some(number) && slot.end.is_none();
    let gone: Vec<_> = core.flows.iter().filter(|(_, slot)| is_its(slot)).map(|(id, _)| *id).collect();
    gone.into_iter().for_each(|id| core.reset(id));
    world.shared.pump.notify_one();
}

/// Says all records that wait, then the state.
fn save(shared: &Shared) {
    let mut core = shared.lock();
    core.say_records(Instant::now());
    let state = Saved { names: core.rules.names.save(), flows: core.stack.save() };
    core.words.push_back(FromGateway::Saved { state });
    drop(core);
    shared.outbox.notify_one();
}

/// Says to the shim what there is to say, as fast as it listens.
async fn speak(world: &World, control: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let shared = &world.shared;
    loop {
        let word = shared.lock().words.pop_front();
        if let Some(word) = word {
            say(control, &word).await?;
            continue;
        }
        let due = shared.lock().rules.recorder.due();
        let now = Instant::now();
        if due.is_some_and(|due| due <= now) {
            shared.lock().say_records(now);
            continue;
        }
        tokio::select! {
            () = shared.outbox.notified() => {}
            () = sleep_until(due.unwrap_or(now).into()), if due.is_some() => {}
        }
    }
}

/// Whether a message could not be handed over for want of a descriptor or of memory.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

async fn say(control: &AsyncFd<OwnedFd>, word: &FromGateway) -> io::Result<()> {
    loop {
        match packet::send_large_now(control.get_ref(), word, &[]) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                control.writable().await?.clear_ready()
            }
            // The guest's connections have taken all descriptors: no reason to end, and with the gateway what it has recorded.
            Err(error) if is_shortage(&error) => match word {
                // The shim asks again, and what comes after it must not wait.
                FromGateway::Saved { .. } => return Ok(()),
                _ => sleep(SHORTAGE).await,
            },
            Err(error) => return Err(error),
        }
    }
}
