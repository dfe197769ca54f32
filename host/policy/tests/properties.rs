//! What holds for all rules and targets. The universe is small, so that rules and targets meet; the oracle reads each rule
//! by itself, from its text, without index or layers.

use std::net::IpAddr;

use policy::{
    CanonicalPath, Decision, HostKey, HostPattern, KitRules, Methods, Name, Observed, Outcome, PathPattern,
    Policy, PolicySet, Preset, Protocol, Protocols, Question, Request, Resource, Rule, Target, minimal_rules,
};
use proptest::prelude::*;

const HOSTS: &[&str] = &[
    "a.x.org",
    "b.x.org",
    "a.y.x.org",
    "x.org",
    "*.x.org",
    "**.x.org",
    "**.org",
    "[ab].x.org",
    "?.y.x.org",
    "a.*.x.org",
    "a.net",
    "*.net",
    "**",
    "a*.x.org",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "0.0.0.0/0",
    "203.0.113.0/24",
    "203.0.113.7",
    "2001:db8::/32",
    "2001:db8::1",
    "::/0",
    "127.0.0.1",
    "127.0.0.0/8",
    "64:ff9b::/96",
    "169.254.169.254",
];
const TARGETS: &[&str] = &[
    "a.x.org",
    "b.x.org",
    "a.y.x.org",
    "x.org",
    "a.net",
    "b.c.net",
    "q.example",
    "10.1.2.3",
    "10.9.9.9",
    "203.0.113.7",
    "198.51.100.1",
    "2001:db8::1",
    "64:ff9b::a01:203",
    "::ffff:10.1.2.3",
    "localhost",
    "169.254.169.254",
    "fe80::1",
];
const PORTS: &[&str] = &["", ":443", ":22", ":400-500", ":1-22", ":65535"];
const PATHS: &[&str] = &["/", "/**", "/a", "/a/**", "/a/*", "/**/c", "/a/*/c"];
const ASKED_PATHS: &[&str] =
    &["/", "/a", "/a/b", "/a/b/c", "/A/b", "//a/b", "/a%2Fb", "/a;x/b", "/c", "/a/b%2541/c", "*"];
const METHODS: &[&str] = &["ANY", "GET", "GET,HEAD", "POST"];

fn resource() -> impl Strategy<Value = Resource> {
    let named = (prop::sample::select(HOSTS), prop::sample::select(PORTS)).prop_map(|(host, ports)| {
        let text = if host.contains("::") && !ports.is_empty() {
            format!("[{host}]{ports}")
        } else {
            format!("{host}{ports}")
        };
        Resource::parse(&text).unwrap()
    });
    let service = prop::sample::select(&[":443", ":22", ":*"][..])
        .prop_map(|ports| Resource::parse(&format!("localhost{ports}")).unwrap());
    prop_oneof![12 => named, 1 => service]
}

fn rule() -> impl Strategy<Value = Rule> {
    let http = prop::option::weighted(0.4, (prop::sample::select(METHODS), prop::sample::select(PATHS)));
    let protocols = prop::option::weighted(0.3, prop::sample::select(&["tcp", "udp", "tcp,udp"][..]));
    (any::<bool>(), resource(), protocols, http, prop::collection::vec(resource(), 0..3)).prop_map(
        |(allow, resource, protocols, http, except)| {
            let mut rule = Rule::new(if allow { Decision::Allow } else { Decision::Deny }, resource);
            if let Some(protocols) = protocols {
                rule = rule.with_protocols(Protocols::parse(protocols).unwrap()).unwrap();
            }
            if let Some((methods, path)) = http
                && let Ok(with) = rule
                    .clone()
                    .with_http(Methods::parse(methods).unwrap(), PathPattern::parse(path).unwrap())
            {
                rule = with;
            }
            rule.clone().with_except(except).unwrap_or(rule)
        },
    )
}

fn set() -> impl Strategy<Value = PolicySet> {
    let list = || prop::collection::vec(rule(), 0..5);
    let kit = (any::<bool>(), list()).prop_map(|(approved, rules)| KitRules {
        kit: "k".to_owned(),
        version: "1".to_owned(),
        approved,
        rules,
    });
    let preset =
        prop::sample::select(&[Preset::DenyAll, Preset::DenyAll, Preset::Balanced, Preset::AllowAll][..]);
    (preset, list(), prop::collection::vec(kit, 0..3), list(), list()).prop_map(
        |(preset, global, kits, local, once)| PolicySet {
            sandbox: "s".to_owned(),
            preset,
            host_addresses: vec![],
            global,
            kits,
            local,
            once,
        },
    )
}

fn question() -> impl Strategy<Value = Question> {
    let request = prop::option::of((
        prop::sample::select(&["GET", "POST", "post", "PROPFIND"][..]),
        prop::sample::select(ASKED_PATHS),
    ));
    (
        prop::sample::select(TARGETS),
        prop::sample::select(&[22u16, 443, 450, 80, 65535][..]),
        any::<bool>(),
        request,
    )
        .prop_map(|(host, port, udp, request)| Question {
            host: HostKey::parse(host).unwrap(),
            port,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            request: request.map(|(method, path)| (method.to_owned(), CanonicalPath::parse(path).unwrap())),
        })
}

fn target(question: &Question) -> Target<'_> {
    Target { host: question.host.as_host(), port: question.port, protocol: question.protocol }
}

// ---- the oracle ----

fn glob(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => (0..=text.len()).any(|n| glob(rest, &text[n..])),
        (['[', rest @ ..], [c, more @ ..]) => {
            let end = rest.iter().position(|c| *c == ']').unwrap();
            rest[..end].contains(c) && glob(&rest[end + 1..], more)
        }
        (['?', rest @ ..], [_, more @ ..]) => glob(rest, more),
        ([p, rest @ ..], [c, more @ ..]) => p == c && glob(rest, more),
        _ => false,
    }
}

fn chars(text: &str) -> Vec<char> {
    text.chars().collect()
}

fn name_fits(pattern: &str, name: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**.") {
        // Some labels in front, then the rest.
        let mut tail = name;
        while let Some((_, more)) = tail.split_once('.') {
            if name_fits(rest, more) {
                return true;
            }
            tail = more;
        }
        return false;
    }
    let (pattern, name): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
    pattern.len() == name.len()
        && pattern.iter().zip(name).all(|(p, n)| if *p == "*" { true } else { glob(&chars(p), &chars(n)) })
}

fn inner(address: IpAddr) -> Vec<IpAddr> {
    let mut all = vec![address];
    if let IpAddr::V6(v6) = address
        && v6.octets()[..12] == [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]
    {
        all.push(IpAddr::from([v6.octets()[12], v6.octets()[13], v6.octets()[14], v6.octets()[15]]));
    }
    all
}

fn private(address: IpAddr) -> bool {
    inner(address).iter().any(|address| match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    })
}

fn about(resource: &Resource, host: &HostKey) -> bool {
    match (resource.hosts(), host) {
        (HostPattern::Any, _) | (HostPattern::HostService, HostKey::HostService) => true,
        (HostPattern::Names(pattern), HostKey::Name(name)) => name_fits(&pattern.to_string(), name.as_str()),
        (HostPattern::Network(network), HostKey::Address(address)) => {
            inner(*address).iter().any(|one| network.contains(one))
        }
        (HostPattern::Network(network), HostKey::HostService) => {
            network.contains(&"127.0.0.1".parse::<IpAddr>().unwrap())
                || network.contains(&"::1".parse::<IpAddr>().unwrap())
        }
        _ => false,
    }
}

fn holds(resource: &Resource, question: &Question) -> bool {
    about(resource, &question.host) && resource.ports().contains(question.port)
}

/// Whether an allow reaches what it is about: what is guarded is reached by its own name alone.
fn reaches(rule: &Rule, trusted: bool, host: &HostKey) -> bool {
    match (rule.resource().hosts(), host) {
        (HostPattern::Any, HostKey::Address(address)) => !private(*address),
        (HostPattern::Any, HostKey::HostService) => false,
        (HostPattern::HostService, _) => trusted,
        (HostPattern::Network(network), HostKey::HostService) => trusted && network.prefix_len() >= 8,
        (HostPattern::Network(network), HostKey::Address(address)) => {
            let narrow = match address.to_string().as_str() {
                "169.254.169.254" => network.prefix_len() == 32,
                // Private only by what is inside; the rules here name neither form of it by IPv6.
                "64:ff9b::a01:203" => network.prefix_len() >= 104,
                _ => network.prefix_len() >= 8,
            };
            network.contains(address) && (!private(*address) || (trusted && narrow))
        }
        _ => true,
    }
}

struct Read {
    deny: bool,
    http_deny: bool,
    allow: bool,
    http_allow: bool,
    guarded: bool,
}

fn read(set: &PolicySet, question: &Question, request: bool) -> Read {
    let mut all: Vec<(&Rule, bool, bool)> = Vec::new();
    let preset: Vec<(String, Rule)> = set.preset.rules();
    all.extend(preset.iter().map(|(_, rule)| (rule, true, true)));
    for list in [&set.global, &set.local, &set.once] {
        all.extend(list.iter().map(|rule| (rule, true, true)));
    }
    for kit in &set.kits {
        all.extend(
            kit.rules.iter().map(|rule| (rule, kit.approved || set.preset != Preset::DenyAll, kit.approved)),
        );
    }
    let mut read = Read { deny: false, http_deny: false, allow: false, http_allow: false, guarded: false };
    let mut waiting = false;
    for (rule, active, trusted) in all {
        if !holds(rule.resource(), question) {
            continue;
        }
        let protocol = rule.protocols().contains(question.protocol);
        if rule.decision() == Decision::Deny {
            if rule.except().iter().any(|except| holds(except, question)) {
                continue;
            }
            match rule.http() {
                None => read.deny |= protocol,
                Some(http) if http.methods == Methods::Any && http.path.is_all() => read.deny = true,
                Some(http) => {
                    let fits = match (&question.request, request) {
                        (Some((method, path)), true) => {
                            (http.methods == Methods::Any
                                || http
                                    .methods
                                    .to_string()
                                    .split(',')
                                    .any(|m| m.eq_ignore_ascii_case(method)))
                                && denies(&http.path, path)
                        }
                        _ => true,
                    };
                    read.http_deny |= fits || question.protocol == Protocol::Udp;
                }
            }
        } else if protocol {
            let fits = match (rule.http(), &question.request, request) {
                (Some(http), Some((method, path)), true) => {
                    (http.methods == Methods::Any || http.methods.to_string().split(',').any(|m| m == method))
                        && allows(&http.path, path)
                }
                _ => true,
            };
            if !fits {
            } else if !active {
                waiting = true;
            } else if !reaches(rule, trusted, &question.host) {
                waiting |= !trusted && *rule.resource().hosts() != HostPattern::Any;
                read.guarded |= matches!(question.host, HostKey::Address(address) if private(address));
            } else if rule.http().is_some() {
                read.http_allow = true;
            } else {
                read.allow = true;
            }
        }
    }
    read.guarded &= !waiting;
    read
}

/// Asks the engine for a path alone, through a policy of one rule: the oracle has no paths of its own.
fn single(decision: Decision, pattern: &PathPattern, path: &CanonicalPath) -> Outcome {
    let name = Name::parse("one.example").unwrap();
    let target = Target::tcp(policy::Host::Name(&name), 443);
    let resource = || Resource::parse("one.example").unwrap();
    let rule = Rule::new(decision, resource()).with_http(Methods::Any, pattern.clone()).unwrap();
    let mut local = vec![rule];
    if decision == Decision::Deny {
        local.push(Rule::new(Decision::Allow, resource()));
    }
    let set = PolicySet { preset: Preset::DenyAll, local, ..PolicySet::default() };
    Policy::compile(&set).request(target, Request { method: "GET", path }).outcome
}

fn denies(pattern: &PathPattern, path: &CanonicalPath) -> bool {
    single(Decision::Deny, pattern, path) == Outcome::Deny
}

fn allows(pattern: &PathPattern, path: &CanonicalPath) -> bool {
    single(Decision::Allow, pattern, path) == Outcome::Allow
}

fn oracle_connect(set: &PolicySet, question: &Question) -> Outcome {
    let read = read(set, question, false);
    match read {
        Read { deny: true, .. } => Outcome::Deny,
        Read { http_deny: true, allow: true, .. } if question.protocol == Protocol::Udp => Outcome::Deny,
        Read { http_deny: true, allow: true, .. } => Outcome::Inspect,
        Read { allow: true, .. } => Outcome::Allow,
        Read { http_allow: true, .. } => Outcome::Inspect,
        Read { guarded: true, .. } => Outcome::Deny,
        _ => Outcome::Undecided,
    }
}

fn oracle_request(set: &PolicySet, question: &Question) -> Outcome {
    let read = read(set, question, true);
    match read {
        Read { deny: true, .. } => Outcome::Deny,
        Read { http_deny: true, .. } => Outcome::Deny,
        Read { allow: true, .. } | Read { http_allow: true, .. } => Outcome::Allow,
        Read { guarded: true, .. } => Outcome::Deny,
        _ => Outcome::Undecided,
    }
}

/// What the gateway does with a flow, in its order.
fn enforce(policy: &Policy, question: &Question) -> Outcome {
    let target = target(question);
    if let HostKey::Name(name) = &question.host {
        let verdict = policy.name(name);
        if !verdict.is_open() {
            return verdict.outcome;
        }
    }
    let connect = policy.connect(target).outcome;
    if !connect.is_open() {
        return connect;
    }
    if let HostKey::Address(address) = question.host {
        let upstream = policy.upstream(target, address);
        if !upstream.is_open() {
            return upstream.outcome;
        }
    }
    match (&question.request, connect) {
        (Some((method, path)), _) => policy.request(target, Request { method, path }).outcome,
        (None, connect) => connect,
    }
}

fn shuffled(set: &PolicySet, seed: u64) -> PolicySet {
    fn turn<T: Clone>(list: &[T], seed: u64) -> Vec<T> {
        let mut list = list.to_vec();
        let mut state = seed;
        for i in (1..list.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            list.swap(i, (state >> 33) as usize % (i + 1));
        }
        list
    }
    let mut set = set.clone();
    for list in [&mut set.global, &mut set.local, &mut set.once] {
        *list = turn(list, seed);
    }
    set.kits = turn(&set.kits, seed);
    for kit in &mut set.kits {
        kit.rules = turn(&kit.rules, seed);
    }
    set
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_engine_is_the_oracle(set in set(), questions in prop::collection::vec(question(), 8)) {
        let policy = Policy::compile(&set);
        for question in &questions {
            let verdict = policy.connect(target(question));
            prop_assert_eq!(verdict.outcome, oracle_connect(&set, question), "{:?} {:?}", question, verdict);
            if let Some((method, path)) = &question.request {
                let verdict = policy.request(target(question), Request { method, path });
                prop_assert_eq!(verdict.outcome, oracle_request(&set, question), "{:?} {:?}", question, verdict);
            }
        }
    }

    #[test]
    fn check_is_enforcement(set in set(), questions in prop::collection::vec(question(), 8)) {
        let policy = Policy::compile(&set);
        for question in &questions {
            let check = policy.check(question);
            prop_assert_eq!(check.outcome, enforce(&policy, question), "{:?} {:?}", question, check);
            // What lets through names a rule that is there, or the guard.
            if let Some(id) = &check.reason.rule {
                let known = policy.rules().any(|view| view.id == *id && view.layer == check.reason.layer);
                prop_assert!(known || id.as_str().starts_with("floor/"), "{}", id);
            } else {
                prop_assert_eq!(check.outcome, Outcome::Undecided);
            }
        }
    }

    #[test]
    fn the_order_of_rules_never_matters(set in set(), seed: u64, questions in prop::collection::vec(question(), 8)) {
        let (one, other) = (Policy::compile(&set), Policy::compile(&shuffled(&set, seed)));
        for question in &questions {
            prop_assert_eq!(one.check(question), other.check(question));
            prop_assert_eq!(one.connect(target(question)), other.connect(target(question)));
        }
    }

    #[test]
    fn deny_always_wins(set in set(), more in prop::collection::vec(rule(), 1..6), place in 0..4, questions in prop::collection::vec(question(), 8)) {
        let before = Policy::compile(&set);
        let mut after = set.clone();
        let allows: Vec<Rule> = more.into_iter().filter(|rule| rule.decision() == Decision::Allow).collect();
        match place {
            0 => after.global.extend(allows),
            1 => after.local.extend(allows),
            2 => after.once.extend(allows),
            _ => after.kits.push(KitRules { kit: "z".into(), version: "1".into(), approved: true, rules: allows }),
        }
        let after = Policy::compile(&after);
        for question in &questions {
            // What a rule denies stays denied, whatever else is allowed (the guard is opened by naming).
            let verdict = before.connect(target(question));
            let by_rule = verdict.reason.rule.as_ref().is_some_and(|id| !id.as_str().starts_with("floor/"));
            if verdict.outcome == Outcome::Deny && by_rule {
                prop_assert_eq!(after.connect(target(question)).outcome, Outcome::Deny);
            }
        }
    }

    #[test]
    fn a_plain_deny_refuses_all_that_it_is_about(set in set(), resource in resource(), questions in prop::collection::vec(question(), 8)) {
        let mut set = set;
        set.kits.push(KitRules { kit: "z".into(), version: "1".into(), approved: false, rules: vec![Rule::new(Decision::Deny, resource.clone())] });
        let policy = Policy::compile(&set);
        for question in questions.iter().filter(|question| holds(&resource, question)) {
            prop_assert_eq!(policy.connect(target(question)).outcome, Outcome::Deny);
            // A person is told of what refuses first, which can be that nothing allows the name.
            prop_assert!(!policy.check(question).is_open());
        }
    }

    #[test]
    fn an_exception_switches_off_its_own_rule_alone(set in set(), deny in resource(), except in prop::collection::vec(resource(), 1..4), questions in prop::collection::vec(question(), 8)) {
        let plain = Rule::new(Decision::Deny, deny);
        let with = plain.clone().with_except(except.clone()).unwrap();
        let compiled = |rule: Option<&Rule>| {
            let mut set = set.clone();
            set.global.extend(rule.cloned());
            Policy::compile(&set)
        };
        let (without, full, excepted) = (compiled(None), compiled(Some(&plain)), compiled(Some(&with)));
        for question in &questions {
            let off = except.iter().any(|except| holds(except, question));
            let expected = if off { &without } else { &full };
            prop_assert_eq!(excepted.connect(target(question)).outcome, expected.connect(target(question)).outcome);
            if let Some((method, path)) = &question.request {
                let request = Request { method, path };
                prop_assert_eq!(excepted.request(target(question), request).outcome, expected.request(target(question), request).outcome);
            }
        }
    }

    #[test]
    fn a_name_has_an_address_when_something_of_it_is_open(set in set(), host in prop::sample::select(&TARGETS[..7])) {
        let policy = Policy::compile(&set);
        let name = Name::parse(host).unwrap();
        // The only ports at which anything can change.
        let ports = [1u16, 21, 22, 23, 80, 399, 400, 442, 443, 444, 500, 501, 65534, 65535];
        let open = ports.iter().any(|port| {
            [Target::tcp(policy::Host::Name(&name), *port), Target::udp(policy::Host::Name(&name), *port)]
                .iter().any(|target| policy.connect(*target).is_open())
        });
        prop_assert_eq!(policy.name(&name).is_open(), open, "{:?}", policy.name(&name));
    }

    #[test]
    fn rules_are_printed_and_read(rule in rule()) {
        let json = serde_json::to_string(&rule).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule.clone());
        let text = rule.resource().to_string();
        prop_assert_eq!(&Resource::parse(&text).unwrap(), rule.resource());
        prop_assert_eq!(&Resource::parse(&text.to_uppercase()).unwrap(), rule.resource());
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}|[a-c*?\\[\\]!:./0-9-]{0,24}") {
        if let Ok(resource) = Resource::parse(&text) {
            prop_assert_eq!(Resource::parse(&resource.to_string()), Ok(resource));
        }
        if let Ok(name) = Name::parse(&text) {
            prop_assert_eq!(Name::parse(name.as_str()), Ok(name));
        }
        if let Ok(pattern) = PathPattern::parse(&text) {
            prop_assert_eq!(PathPattern::parse(&pattern.to_string()), Ok(pattern));
        }
        let _ = (Question::parse(&text), CanonicalPath::parse(&text), Methods::parse(&text), Protocols::parse(&text));
    }

    /// However a path is spelled, a deny of what it says holds.
    #[test]
    fn a_spelling_does_not_pass_a_deny(segments in prop::collection::vec("[a-c]{1,3}", 1..5), tricks in prop::collection::vec(0..6, 1..5), escapes: u64) {
        let pattern = PathPattern::parse(&format!("/{}/**", segments.join("/"))).unwrap();
        let mut path = String::new();
        let mut bits = escapes;
        // One trick of each sort that may not be mixed.
        let parameters = tricks.contains(&3);
        for (index, segment) in segments.iter().chain(["more".to_owned()].iter()).enumerate() {
            let trick = tricks.get(index).copied().unwrap_or_default();
            path.push_str(if trick == 1 { "//" } else if trick == 2 && !parameters && index > 0 { "%2F" } else { "/" });
            for c in segment.chars() {
                bits = bits.rotate_left(1);
                match bits & 3 {
                    1 => path.push_str(&format!("%{:02x}", c as u32)),
                    2 => path.extend(c.to_uppercase()),
                    _ => path.push(c),
                }
            }
            match trick {
                3 => path.push_str(";v=1"),
                4 => path.push_str("%20"),
                5 => path.push('.'),
                _ => {}
            }
        }
        let path = CanonicalPath::parse(&path).unwrap();
        prop_assert!(denies(&pattern, &path), "{pattern} {path}");
    }

    #[test]
    fn observed_work_passes_under_its_minimal_rules(seen in prop::collection::vec(question(), 0..12), preset in prop::sample::select(&Preset::ALL[..])) {
        let observed: Vec<Observed> = seen.iter().map(|question| Observed {
            host: question.host.clone(),
            port: question.port,
            protocol: question.protocol,
            request: question.request.as_ref().map(|(method, path)| (method.clone(), path.to_string())),
            address: None,
        }).collect();
        let base = Policy::compile(&PolicySet { preset, ..PolicySet::default() });
        let rules = minimal_rules(&observed, Some(&base));
        let mut again = observed.clone();
        again.reverse();
        prop_assert_eq!(&minimal_rules(&again, Some(&base)), &rules);
        let set = PolicySet { preset, local: rules, ..PolicySet::default() };
        let policy = Policy::compile(&set);
        for (question, observed) in seen.iter().zip(&observed) {
            let path = observed.request.as_ref().and_then(|(_, path)| CanonicalPath::parse(path).ok());
            let asked = Question { request: question.request.clone().zip(path).map(|((method, _), path)| (method, path)), ..question.clone() };
            prop_assert!(policy.check(&asked).is_open(), "{:?} {:?}", asked, policy.check(&asked));
        }
        // Nothing is left to add, and a host that was not seen is as before.
        prop_assert!(minimal_rules(&observed, Some(&policy)).is_empty());
        for host in TARGETS {
            let key = HostKey::parse(host).unwrap();
            if observed.iter().all(|one| one.host != key) {
                let target = Target::tcp(key.as_host(), 443);
                prop_assert_eq!(policy.connect(target).is_open(), base.connect(target).is_open(), "{}", host);
            }
        }
    }
}
