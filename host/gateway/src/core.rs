//! What all flows of a gateway share: the stack, the names, the policy, the records.
//!
//! One thread does everything; the lock is there because the streams handed to an interceptor must be able to cross threads.
//! It is never held across an await, and never taken by a waker or a drop that happens within it.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use netstack::{FlowId, Stack};
use policy::{Host, HostKey, Name, Outcome, Policy, Protocol, Verdict, canonical_address};
use tokio::sync::Notify;

use crate::allowance::Allowance;
use crate::ask::Questions;
use crate::control::{Counters, FromGateway, Mode};
use crate::dns::{self, Found, Zone};
use crate::names::{self, Names};
use crate::proxy::ProxyTable;
use crate::record::{Decision, Kind, Recorder, What};
use crate::resolve::Resolver;

/// DNS questions in a second, after a burst of twice as many. More are dropped: the guest asks again.
const QUESTIONS_A_SECOND: u32 = 1000;

/// Upstream addresses of one flow that are remembered.
const MOST_ADDRESSES: usize = 64;

/// Where a flow goes, as policy sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// Name, address or the host itself.
    pub host: HostKey,
    /// The destination's port.
    pub port: u16,
    /// Of the flow.
    pub protocol: Protocol,
}

impl Target {
    /// As policy takes it.
    pub fn view(&self) -> policy::Target<'_> {
        policy::Target { host: self.host.as_host(), port: self.port, protocol: self.protocol }
    }

    /// A decision about it.
    pub fn what(&self, kind: Kind, decision: Decision) -> What {
        What::flow(kind, decision, &self.host, self.port, self.protocol)
    }
}

/// Why a flow is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both ways were finished.
    Closed,
    /// The guest, a limit or the policy ended it.
    Reset,
}

/// What is known of a flow that has a task.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) read: Option<Waker>,
    pub(crate) write: Option<Waker>,
    pub(crate) end: Option<End>,
    /// It was writable once: established.
    pub(crate) open: bool,
    /// `None`: a flow to the gateway itself, or from the host.
    pub(crate) target: Option<Target>,
    /// Upstream was connected: it is pending no more.
    pub(crate) connected: bool,
    /// The upstream addresses that it was connected to, or that its proxy may have taken.
    pub(crate) addresses: Vec<IpAddr>,
    /// An interceptor serves it, and asks the policy about every request.
    pub(crate) inspected: bool,
    /// The published port that it came by.
    pub(crate) publish: Option<u64>,
}

impl Slot {
    /// Notes where it was connected to: a rule about the address is about the flow.
    pub(crate) fn reached(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            if !self.addresses.contains(address) {
                self.addresses.push(*address);
            }
        }
        // A name that changes its address all the time: connections to the oldest ones have long ended.
        self.addresses.drain(..self.addresses.len().saturating_sub(MOST_ADDRESSES));
    }

    pub(crate) fn wake(&mut self) {
        for waker in [self.read.take(), self.write.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// What decides, and what is written down about it.
pub(crate) struct Rules {
    pub(crate) policy: Policy,
    pub(crate) mode: Mode,
    pub(crate) names: Names,
    pub(crate) resolver: Resolver,
    pub(crate) recorder: Recorder,
    /// DNS questions that may still come.
    allowance: Allowance,
}

impl Rules {
    pub(crate) fn new(policy: Policy, mode: Mode, names: Names, resolver: Resolver) -> Self {
        let rate = f64::from(QUESTIONS_A_SECOND);
        let allowance = Allowance::new(rate * 2.0, rate);
        Self { policy, mode, names, resolver, recorder: Recorder::new(), allowance }
    }

    /// Whether one more DNS question is answered.
    pub(crate) fn may_ask(&mut self) -> bool {
        if self.allowance.take(Instant::now()) {
            return true;
        }
        let text = format!("more than {QUESTIONS_A_SECOND} DNS questions in a second: dropped");
        self.record(What::new(Kind::Limit, Decision::Refused, "DNS", 53).text(text));
        false
    }

    /// Whether a DNS message is short enough to be read.
    pub(crate) fn may_be_read(&mut self, length: usize) -> bool {
        if length <= dns::LONGEST {
            return true;
        }
        let text = format!("a DNS message of more than {} bytes: dropped", dns::LONGEST);
        self.record(What::new(Kind::Limit, Decision::Refused, "DNS", 53).text(text));
        false
    }

    pub(crate) fn record(&mut self, what: What) {
        self.recorder.add(what, (0, 0), Instant::now());
    }

    /// What stands behind a destination that the guest believes in.
    pub(crate) fn host(&self, destination: IpAddr) -> Option<HostKey> {
        let destination = canonical_address(destination);
        if !names::is_ours(destination) {
            return Some(HostKey::Address(destination));
        }
        let name = self.names.name(destination)?;
        Some(if name.is_host_service() { HostKey::HostService } else { HostKey::Name(name.clone()) })
    }

    /// The verdict on a flow, the mode taken into account.
    pub(crate) fn judge(&self, target: &Target) -> Judgement {
        let verdict = self.policy.connect(target.view());
        // What listens on the host's loopback trusts whoever reaches it: it takes a rule that names the port.
        let mode = if target.host == HostKey::HostService { Mode::Enforce } else { self.mode };
        let course = match (verdict.outcome, mode) {
            (Outcome::Allow, _) => Course::Pass,
            (Outcome::Inspect, _) => Course::Inspect,
            (Outcome::Deny, _) | (Outcome::Undecided, Mode::Enforce) => Course::Refuse,
            (Outcome::Undecided, Mode::Observe) => Course::Observe,
            (Outcome::Undecided, Mode::Ask) => Course::Ask,
        };
        let undecided = verdict.outcome == Outcome::Undecided && self.policy.denies_requests(target.view());
        let looks = undecided || course == Course::Inspect;
        Judgement { course, looks, verdict }
    }

    fn may_have(&mut self, name: &Name) -> bool {
        // Names of one label are the host's affair: its table's, or nobody's.
        let alone = name.labels().nth(1).is_none() && !self.resolver.is_in_table(name);
        if alone && !name.is_host_service() {
            let text = "a name of one label that the host's table does not have";
            self.record(What::new(Kind::Dns, Decision::Refused, name, 0).text(text));
            return false;
        }
        let verdict = self.policy.name(name);
        // Who connects is refused and recorded with the port, which a rule for it needs: of the name alone nothing could be said.
        if name.is_host_service() && verdict.outcome == Outcome::Undecided {
            return true;
        }
        let mode = if name.is_host_service() { Mode::Enforce } else { self.mode };
        let decision = match (verdict.outcome, mode) {
            (Outcome::Allow | Outcome::Inspect, _) => Decision::Allowed,
            (Outcome::Undecided, Mode::Observe) => Decision::Observed,
            (Outcome::Undecided, Mode::Ask) => Decision::Asked,
            _ => Decision::Refused,
        };
        self.record(What::new(Kind::Dns, decision, name, 0).because(&verdict.reason));
        decision != Decision::Refused
    }
}

impl Zone for Rules {
    fn addresses(&mut self, name: &Name) -> Found {
        if !self.may_have(name) {
            return Found::Refused;
        }
        match self.names.ask(name, Instant::now()) {
            Some((v4, v6)) => Found::Addresses(v4, v6),
            None => {
                let text = format!("{} names were asked for within a minute", names::MOST);
                self.record(What::new(Kind::Limit, Decision::Refused, "DNS", 53).text(text));
                Found::Exhausted
            }
        }
    }

    fn refused(&mut self, name: &str) {
        let text = "not the name of a host";
        self.record(What::new(Kind::Dns, Decision::Refused, name.trim_end_matches('.'), 0).text(text));
    }

    fn pointer(&mut self, address: IpAddr) -> Option<Name> {
        self.names.name(address).cloned()
    }
}

/// What becomes of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Course {
    Pass,
    Inspect,
    Observe,
    Ask,
    Refuse,
}

/// The verdict on a flow with what follows from it.
#[derive(Debug, Clone)]
pub(crate) struct Judgement {
    pub(crate) course: Course,
    /// Its requests have to be looked at, by a rule that allows or denies some.
    pub(crate) looks: bool,
    pub(crate) verdict: Verdict,
}

/// Everything that the flows share.
pub(crate) struct Core {
    pub(crate) stack: Stack,
    pub(crate) rules: Rules,
    pub(crate) flows: HashMap<FlowId, Slot>,
    pub(crate) questions: Questions,
    pub(crate) proxies: Arc<ProxyTable>,
    /// Words for the shim, without records.
    pub(crate) words: VecDeque<FromGateway>,
    pub(crate) counters: Counters,
    /// Upstream connections that are being made.
    pub(crate) dials: usize,
    /// Ports of the gateway's that connections to the guest come from.
    pub(crate) next_port: u16,
}

/// The core, and what wakes the tasks that serve it.
pub(crate) struct Shared {
    core: Mutex<Core>,
    start: Instant,
    /// Frames may have to be sent.
    pub(crate) pump: Notify,
    /// Words or records wait for the shim.
    pub(crate) outbox: Notify,
    /// There may be other tokens, or rules, to renew them by.
    pub(crate) logins: Notify,
}

impl Core {
    /// Resets a flow towards the guest, and wakes who serves it.
    pub(crate) fn reset(&mut self, id: FlowId) {
        // An error: it is gone by itself.
        let _ = self.stack.reset(id);
        if let Some(slot) = self.flows.get_mut(&id) {
            slot.end = Some(End::Reset);
            slot.wake();
        }
    }

    /// Has the records that wait said next.
    pub(crate) fn say_records(&mut self, now: Instant) {
        let batches = self.rules.recorder.take(now);
        self.words.extend(batches.into_iter().map(|records| FromGateway::Records { records }));
    }

    pub(crate) fn count_opened(&mut self) {
        self.counters.opened = self.counters.opened.saturating_add(1);
    }

    pub(crate) fn count_refused(&mut self) {
        self.counters.refused = self.counters.refused.saturating_add(1);
    }
}

impl Shared {
    pub(crate) fn new(core: Core) -> Arc<Self> {
        let (pump, outbox, logins) = (Notify::new(), Notify::new(), Notify::new());
        Arc::new(Self { core: Mutex::new(core), start: Instant::now(), pump, outbox, logins })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        // Single-threaded: what a panicking task left is as whole as the stack leaves it.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stack's time.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The stack's time as the runtime has it.
    pub(crate) fn instant(&self, at: Duration) -> Option<Instant> {
        self.start.checked_add(at)
    }

    /// Writes a decision down.
    pub(crate) fn record(&self, what: What) {
        self.record_bytes(what, (0, 0));
    }

    /// The same with the bytes that were carried up and down.
    pub(crate) fn record_bytes(&self, what: What, bytes: (u64, u64)) {
        self.lock().rules.recorder.add(what, bytes, Instant::now());
        self.outbox.notify_one();
    }

    /// Says something to the shim.
    pub(crate) fn say(&self, word: FromGateway) {
        self.lock().words.push_back(word);
        self.outbox.notify_one();
    }
}

/// Whether it is one of the gateway's own addresses on the link.
pub(crate) fn is_gateway(address: IpAddr) -> bool {
    address == IpAddr::from(agent_proto::abi::GATEWAY_IPV4)
        || address == IpAddr::from(agent_proto::abi::GATEWAY_IPV6)
}

/// Whether a flow is a DNS question: port 53, whatever server the guest asks.
pub(crate) fn is_dns(destination: SocketAddr) -> bool {
    destination.port() == 53
}

/// The name of a target, if it has one.
pub(crate) fn name_of(target: &Target) -> Option<&Name> {
    match target.host.as_host() {
        Host::Name(name) => Some(name),
        Host::Address(_) | Host::HostService => None,
    }
}
