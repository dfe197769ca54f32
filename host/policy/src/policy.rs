//! The compiled policy, and the one way in which questions are answered.

use std::net::IpAddr;
use std::sync::Arc;

use crate::guard::{Guarded, guarded, views};
use crate::index::{Index, LOOPBACK, Number};
use crate::intervals::PortSet;
use crate::layers::{Layer, PolicySet};
use crate::name::{Name, canonical_address};
use crate::preset::{Preset, Withheld, balanced};
use crate::question::Question;
use crate::resource::{HostPattern, Resource};
use crate::rule::{Decision, Rule};
use crate::target::{Host, Protocol, Request, Target};
use crate::verdict::{Outcome, RuleId, Verdict};

/// All rules that hold for one sandbox: immutable, cheap to clone. A change of rules is a new policy.
#[derive(Debug, Clone)]
pub struct Policy(Arc<Compiled>);

#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) sandbox: String,
    pub(crate) preset: Preset,
    host_addresses: Vec<IpAddr>,
    /// Sorted by layer, source and content: the first that fits is the one that is named.
    rules: Vec<Placed>,
    index: Index,
}

/// A rule where it stands.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) layer: Layer,
    /// First part of its id: `global`, `balanced/registries`, `kit/NAME@VERSION`, `sandbox`, `once`.
    pub(crate) source: String,
    pub(crate) rule: Rule,
    pub(crate) key: String,
    /// Whether it counts.
    pub(crate) active: bool,
    /// Whether it may open guarded addresses and services of the host.
    pub(crate) trusted: bool,
}

/// A rule of a compiled policy, for lists.
#[derive(Debug, Clone)]
pub struct RuleView<'a> {
    /// Its name.
    pub id: RuleId,
    /// Its layer.
    pub layer: Layer,
    /// Where it comes from: `global`, `balanced/registries`, `kit/NAME@VERSION`, `sandbox`, `once`.
    pub source: &'a str,
    /// The rule.
    pub rule: &'a Rule,
    /// Whether it counts; a kit's allow may wait for its approval.
    pub active: bool,
}

/// Rules that fit a question, each the first of its sort.
#[derive(Debug, Default)]
struct Found<'a> {
    deny: Option<&'a Placed>,
    http_deny: Option<&'a Placed>,
    allow: Option<&'a Placed>,
    http_allow: Option<&'a Placed>,
    /// What guards the address, when an allow fits that does not open it.
    guard: Option<Guarded>,
    /// An allow that waits for its kit's approval.
    waiting: Option<&'a Placed>,
}

impl Policy {
    /// Makes a policy of all that is said about a sandbox. The order of rules within a layer does not matter.
    #[must_use]
    pub fn compile(set: &PolicySet) -> Self {
        let mut rules: Vec<Placed> = Vec::new();
        let mut place = |layer, source: &str, rule: &Rule, active: bool, trusted: bool| {
            rules.push(Placed {
                layer,
                source: source.to_owned(),
                key: rule.key(),
                rule: rule.clone(),
                active: active || rule.decision() == Decision::Deny,
                trusted,
            });
        };
        for (source, rule) in set.preset.rules() {
            place(Layer::Global, &source, &rule, true, true);
        }
        for kit in &set.kits {
            let source = format!("kit/{}@{}", kit.kit, kit.version);
            for rule in &kit.rules {
                place(Layer::Kit, &source, rule, kit.approved || set.preset != Preset::DenyAll, kit.approved);
            }
        }
        for (layer, source, list) in [
            (Layer::Global, "global", &set.global),
            (Layer::Sandbox, "sandbox", &set.local),
            (Layer::Once, "once", &set.once),
        ] {
            list.iter().for_each(|rule| place(layer, source, rule, true, true));
        }
        rules.sort_by_cached_key(|placed| {
            (
                placed.layer,
                placed.source.clone(),
                placed.key.clone(),
                placed.rule.except().to_vec(),
                placed.rule.reason().map(str::to_owned),
            )
        });
        let mut index = Index::default();
        for (number, placed) in rules.iter().enumerate() {
            index.insert(number, placed.rule.resource().hosts());
        }
        let host_addresses = set.host_addresses.iter().map(|address| canonical_address(*address)).collect();
        Self(Arc::new(Compiled {
            sandbox: set.sandbox.clone(),
            preset: set.preset,
            host_addresses,
            rules,
            index,
        }))
    }

    /// The sandbox that it is for.
    #[must_use]
    pub fn sandbox(&self) -> &str {
        &self.0.sandbox
    }

    /// All rules, those that do not count too.
    pub fn rules(&self) -> impl Iterator<Item = RuleView<'_>> {
        self.0.rules.iter().map(|placed| RuleView {
            id: placed.id(),
            layer: placed.layer,
            source: &placed.source,
            rule: &placed.rule,
            active: placed.active,
        })
    }

    /// Whether a name may have an address: whether anything allows some port, protocol or request of it.
    #[must_use]
    pub fn name(&self, name: &Name) -> Verdict {
        self.0.name(Host::Name(name).settled())
    }

    /// Whether a connection may be made, before any byte of it is seen. To an address that the guest chose itself the guard
    /// applies here too; for a name it applies to each resolved address ([`Policy::upstream`]).
    #[must_use]
    pub fn connect(&self, target: Target<'_>) -> Verdict {
        let target = settled(target);
        let found = self.0.find(target, None);
        self.0.judge(target, None, &found)
    }

    /// Whether a request may pass. It says all that [`Policy::connect`] does, and looks at method and path besides.
    #[must_use]
    pub fn request(&self, target: Target<'_>, request: Request<'_>) -> Verdict {
        let target = settled(target);
        let found = self.0.find(target, Some(request));
        self.0.judge(target, Some(request), &found)
    }

    /// Whether a target may be reached at this address: denies of networks and the guard. It does not say that the target
    /// itself is allowed.
    #[must_use]
    pub fn upstream(&self, target: Target<'_>, address: IpAddr) -> Verdict {
        self.0.upstream(settled(target), canonical_address(address))
    }

    /// Whether any HTTP rule concerns this host and port over TCP, so that its connections must be looked into or refused.
    #[must_use]
    pub fn needs_inspection(&self, host: Host<'_>, port: u16) -> bool {
        self.connect(Target::tcp(host, port)).outcome == Outcome::Inspect
    }

    /// Whether a rule denies some requests of a target: where it passes for want of a rule alone (it is observed, or the user said yes), it
    /// must be looked into, or over UDP be refused.
    #[must_use]
    pub fn denies_requests(&self, target: Target<'_>) -> bool {
        self.0.find(settled(target), None).http_deny.is_some()
    }

    /// Answers a person's question by asking what enforcement asks, in its order, until something refuses. (Which addresses
    /// a name resolves to is not known here.)
    #[must_use]
    pub fn check(&self, question: &Question) -> Verdict {
        let target =
            Target { host: question.host.as_host(), port: question.port, protocol: question.protocol };
        if let Host::Name(name) = target.host {
            let verdict = self.name(name);
            if !verdict.is_open() {
                return verdict;
            }
        }
        let connect = self.connect(target);
        if !connect.is_open() {
            return connect;
        }
        if let Host::Address(address) = target.host {
            let upstream = self.upstream(target, address);
            if !upstream.is_open() {
                return upstream;
            }
        }
        match &question.request {
            Some((method, path)) => self.request(target, Request { method, path }),
            None => connect,
        }
    }
}

fn settled(target: Target<'_>) -> Target<'_> {
    Target { host: target.host.settled(), ..target }
}

impl Placed {
    pub(crate) fn id(&self) -> RuleId {
        RuleId::new(&self.source, &self.key)
    }

    fn resource(&self) -> &Resource {
        self.rule.resource()
    }

    fn fits_port(&self, target: Target<'_>) -> bool {
        self.resource().ports().contains(target.port)
    }

    /// Whether an exception switches this rule off for a target, at the address it has upstream if that is known.
    fn excepts(&self, target: Target<'_>, address: Option<IpAddr>) -> bool {
        self.rule.except().iter().any(|except| {
            let hosts = except.hosts();
            except.ports().contains(target.port)
                && (covers(hosts, target.host)
                    || address.is_some_and(|address| covers(hosts, Host::Address(address))))
        })
    }
}

/// Whether hosts of a resource hold a host, apart from what the guard says.
fn covers(hosts: &HostPattern, host: Host<'_>) -> bool {
    match (hosts, host) {
        (HostPattern::Any, _) | (HostPattern::HostService, Host::HostService) => true,
        (HostPattern::Names(pattern), Host::Name(name)) => pattern.matches(name),
        (HostPattern::Network(network), Host::Address(address)) => {
            views(address).iter().any(|view| network.contains(&view.address))
        }
        (HostPattern::Network(network), Host::HostService) => {
            LOOPBACK.iter().any(|address| network.contains(address))
        }
        _ => false,
    }
}

impl Compiled {
    /// The rules about a host, in the order in which they are named.
    fn about(&self, host: Host<'_>) -> Vec<&Placed> {
        let mut numbers: Vec<Number> = self.index.any().to_vec();
        match host {
            Host::Name(name) => self.index.names(name, &mut numbers),
            Host::Address(address) => {
                for view in views(address) {
                    self.index.networks(view.address, &mut numbers);
                }
            }
            Host::HostService => {
                numbers.extend(self.index.host_service());
                for address in LOOPBACK {
                    self.index.networks(address, &mut numbers);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
            .into_iter()
            .filter_map(|number| self.rules.get(number))
            .filter(|placed| covers(placed.resource().hosts(), host))
            .collect()
    }

    /// The guards of an address and of the addresses inside it.
    fn guards(&self, address: IpAddr) -> Vec<Guarded> {
        views(address).into_iter().filter_map(|view| guarded(view, &self.host_addresses)).collect()
    }

    /// Whether an allow reaches a host: guarded addresses and the host's services are reached by what names them, in rules
    /// that may. (A guarded form inside an address can need a rule of its own.)
    fn reaches(&self, placed: &Placed, host: Host<'_>, guards: &[Guarded]) -> bool {
        match (placed.resource().hosts(), host) {
            (HostPattern::HostService, _) => placed.trusted,
            (HostPattern::Network(network), Host::HostService) => {
                placed.trusted
                    && LOOPBACK.iter().any(|address| {
                        self.guards(*address).iter().any(|guard| guard.opened_by(network, *address))
                    })
            }
            (HostPattern::Any, Host::HostService) => false,
            (HostPattern::Network(network), Host::Address(address)) => {
                // An IPv4 network does not allow the IPv6 address that has one of its own inside; it opens its guard.
                network.contains(&address)
                    && (guards.is_empty()
                        || (placed.trusted && guards.iter().all(|guard| guard.opened_by(network, address))))
            }
            (HostPattern::Any, Host::Address(_)) => guards.is_empty(),
            _ => true,
        }
    }

    /// Looks for the first rule of each sort. With a request, HTTP rules are those that fit it; without, any.
    fn find(&self, target: Target<'_>, request: Option<Request<'_>>) -> Found<'_> {
        let guards = match target.host {
            Host::Address(address) => self.guards(address),
            _ => Vec::new(),
        };
        let mut found = Found::default();
        for placed in self.about(target.host).into_iter().filter(|placed| placed.fits_port(target)) {
            let rule = &placed.rule;
            let same_protocol = rule.protocols().contains(target.protocol);
            match (rule.decision(), rule.http()) {
                (Decision::Deny, _) if placed.excepts(target, None) => {}
                (Decision::Deny, None) if same_protocol => first(&mut found.deny, placed),
                (Decision::Deny, Some(http)) if http.is_all() => first(&mut found.deny, placed),
                // A request could also go over UDP (HTTP/3), where it would not be seen.
                (Decision::Deny, Some(http)) => {
                    let fits = request.is_none_or(|request| {
                        http.methods.contains(request.method, false) && http.path.denies(request.path)
                    });
                    if fits || target.protocol == Protocol::Udp {
                        first(&mut found.http_deny, placed);
                    }
                }
                (Decision::Allow, http) if same_protocol => {
                    let fits = match (http, request) {
                        (Some(http), Some(request)) => {
                            http.methods.contains(request.method, true) && http.path.allows(request.path)
                        }
                        _ => true,
                    };
                    if !fits {
                        continue;
                    }
                    if !placed.active {
                        first(&mut found.waiting, placed);
                    } else if !self.reaches(placed, target.host, &guards) {
                        if !placed.trusted && *placed.resource().hosts() != HostPattern::Any {
                            first(&mut found.waiting, placed);
                        }
                        found.guard = found.guard.or(guards.first().copied());
                    } else if http.is_some() {
                        first(&mut found.http_allow, placed);
                    } else {
                        first(&mut found.allow, placed);
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// Whether an HTTP rule allows some requests of a target, and nothing all of them.
    pub(crate) fn some_requests_pass(&self, target: Target<'_>) -> bool {
        let found = self.find(target, None);
        found.allow.is_none() && found.http_allow.is_some()
    }

    /// What the rules that were found amount to.
    fn judge(&self, target: Target<'_>, request: Option<Request<'_>>, found: &Found<'_>) -> Verdict {
        if let Some(deny) = found.deny {
            return self.denied(deny, target, None);
        }
        match (found.http_deny, found.allow, found.http_allow) {
            // Also where nothing is allowed: what passes for want of a rule must not be what one denies.
            (Some(deny), _, _) if request.is_some() => self.denied(deny, target, None),
            (Some(deny), Some(_), _) if target.protocol == Protocol::Udp => self.denied(deny, target, None),
            (Some(deny), Some(_), _) => self.allowed(Outcome::Inspect, deny),
            (None, Some(allow), _) => self.allowed(Outcome::Allow, allow),
            (_, None, Some(allow)) if request.is_some() => self.allowed(Outcome::Allow, allow),
            (_, None, Some(allow)) => self.allowed(Outcome::Inspect, allow),
            (_, None, None) => match (found.waiting, found.guard) {
                (Some(waiting), _) => self.waits(waiting),
                (None, Some(guard)) => self.guarded_off(&guard, target),
                (None, None) => self.undecided(target, request),
            },
        }
    }

    fn upstream(&self, target: Target<'_>, address: IpAddr) -> Verdict {
        if target.host == Host::HostService {
            return match LOOPBACK.contains(&address) {
                true => self.judge(target, None, &self.find(target, None)),
                false => self.not_loopback(address),
            };
        }
        let guards = self.guards(address);
        let mut opened = vec![None; guards.len()];
        let mut waiting = None;
        for placed in self.about(Host::Address(address)) {
            let HostPattern::Network(network) = placed.resource().hosts() else { continue };
            let protocol = placed.rule.protocols().contains(target.protocol);
            if !protocol || !placed.fits_port(target) {
                continue;
            }
            if placed.rule.decision() == Decision::Deny {
                if !placed.excepts(target, Some(address)) {
                    return self.denied(placed, target, Some(address));
                }
                continue;
            }
            for (guard, opened) in guards.iter().zip(opened.iter_mut()) {
                let counts = placed.active && placed.trusted;
                if guard.opened_by(network, address) {
                    first(if counts { opened } else { &mut waiting }, placed);
                }
            }
        }
        match guards.iter().zip(&opened).find(|(_, opened)| opened.is_none()) {
            Some((guard, _)) => match waiting {
                Some(waiting) => self.waits(waiting),
                None => self.guarded_off(guard, Target { host: Host::Address(address), ..target }),
            },
            None => match opened.iter().flatten().next() {
                Some(placed) => self.allowed(Outcome::Allow, placed),
                None => self.unguarded(address),
            },
        }
    }

    fn name(&self, host: Host<'_>) -> Verdict {
        let about = self.about(host);
        let mut deciding = None;
        let (mut denied_all, mut wanted) = (true, false);
        let mut waiting = None;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut denied = PortSet::default();
            for placed in about.iter().filter(|placed| placed.rule.decision() == Decision::Deny) {
                denied = self.denied_ports(placed, host, protocol, denied);
            }
            denied_all &= PortSet::all().minus(&denied).is_empty();
            for placed in about.iter().filter(|placed| placed.rule.decision() == Decision::Allow) {
                if !placed.rule.protocols().contains(protocol) {
                    continue;
                }
                if !placed.active || !self.reaches(placed, host, &[]) {
                    if !placed.trusted && *placed.resource().hosts() != HostPattern::Any {
                        first(&mut waiting, placed);
                    }
                    continue;
                }
                wanted = true;
                let mut open = PortSet::default();
                open.add(placed.resource().ports());
                if !open.minus(&denied).is_empty() {
                    first(&mut deciding, placed);
                }
            }
        }
        if let Some(placed) = deciding {
            return self.allowed(Outcome::Allow, placed);
        }
        let target = Target { host, port: 0, protocol: Protocol::Tcp };
        let deny = about.iter().find(|placed| placed.rule.decision() == Decision::Deny);
        match (deny, waiting) {
            (Some(deny), _) if wanted || denied_all => self.denied(deny, target, None),
            (_, Some(waiting)) => self.waits(waiting),
            _ => self.undecided(target, None),
        }
    }

    /// Adds the ports that a deny refuses whatever the request: those that it has, without those of its exceptions.
    fn denied_ports(
        &self,
        placed: &Placed,
        host: Host<'_>,
        protocol: Protocol,
        mut denied: PortSet,
    ) -> PortSet {
        let all_requests = placed.rule.http().is_none_or(|http| http.is_all() || protocol == Protocol::Udp);
        let same_protocol = placed.rule.protocols().contains(protocol) || placed.rule.http().is_some();
        if !all_requests || !same_protocol {
            return denied;
        }
        let mut ports = PortSet::default();
        ports.add(placed.resource().ports());
        for except in placed.rule.except().iter().filter(|except| covers(except.hosts(), host)) {
            ports.remove(except.ports());
        }
        for range in ports.ranges() {
            denied.add(range);
        }
        denied
    }
}

/// Keeps the first.
fn first<'a>(slot: &mut Option<&'a Placed>, placed: &'a Placed) {
    if slot.is_none() {
        *slot = Some(placed);
    }
}

impl Compiled {
    /// Why `balanced` leaves a host out, if it says so.
    pub(crate) fn withheld(&self, host: Host<'_>) -> Option<&'static Withheld> {
        (self.preset == Preset::Balanced)
            .then(|| balanced().withheld.iter().find(|withheld| covers(withheld.host.hosts(), host)))
            .flatten()
    }
}
