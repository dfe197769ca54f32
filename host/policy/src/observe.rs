//! From what was seen to the rules that would allow it and little else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::explain::{allow_of, resource_of};
use crate::http::{Methods, PathPattern};
use crate::layers::PolicySet;
use crate::path::{CanonicalPath, Reading};
use crate::policy::Policy;
use crate::preset::Preset;
use crate::rule::{Decision, Rule, Via};
use crate::target::{Host, HostKey, Protocol, Request, Target};

/// Paths of one kind of request on a host that are named one by one; more become the folder that they share.
const NAMED_PATHS: usize = 4;

/// Something that happened while a sandbox ran with `--observe`. A connection that was looked into is seen by its requests
/// alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observed {
    /// The host.
    pub host: HostKey,
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// Method and path of a request.
    #[serde(default)]
    pub request: Option<(String, String)>,
    /// The address that the connection went to, or would have gone to.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

impl Observed {
    fn target(&self) -> Target<'_> {
        Target { host: self.host.as_host(), port: self.port, protocol: self.protocol }
    }

    /// Method and path, when a rule can be made of them: hosts with names, TCP, a path that can be judged.
    fn judgeable(&self) -> Option<(&str, CanonicalPath)> {
        let (method, path) = self.request.as_ref()?;
        let http = self.protocol == Protocol::Tcp && !matches!(self.host, HostKey::Address(_));
        http.then(|| CanonicalPath::parse(path).ok().map(|path| (method.as_str(), path))).flatten()
    }

    fn allowed_by(&self, policy: &Policy) -> bool {
        let target = self.target();
        let host = match target.host {
            Host::Name(name) => policy.name(name).is_open(),
            _ => true,
        };
        let upstream = self.address.is_none_or(|address| policy.upstream(target, address).is_open());
        let passes = match self.judgeable() {
            Some((method, path)) => policy.request(target, Request { method, path: &path }).is_open(),
            None => policy.connect(target).outcome == crate::Outcome::Allow,
        };
        host && upstream && passes
    }
}

/// The rules that allow all of this and little else, as far as `base` does not allow it already (`None`: nothing is).
/// Hosts are named exactly; a host of which only requests were seen gets rules for them. Requests with paths that no policy lets
/// pass are left out, and so is what the guard never opens.
#[must_use]
pub fn minimal_rules(observed: &[Observed], base: Option<&Policy>) -> Vec<Rule> {
    // A set: neither order nor repetition matters.
    let left: BTreeSet<&Observed> =
        observed.iter().filter(|seen| base.is_none_or(|base| !seen.allowed_by(base))).collect();
    let mut flows: BTreeMap<(&HostKey, Protocol, u16), Vec<&Observed>> = BTreeMap::new();
    for seen in left {
        flows.entry((&seen.host, seen.protocol, seen.port)).or_default().push(seen);
    }
    let bare = Policy::compile(&PolicySet { preset: Preset::AllowAll, ..PolicySet::default() });
    let at = |target: Target<'_>, address: IpAddr| {
        let rule = allow_of(Target { host: Host::Address(address), ..target });
        let set = PolicySet { preset: Preset::DenyAll, local: vec![rule.clone()], ..PolicySet::default() };
        Policy::compile(&set).upstream(target, address).is_open().then_some(rule)
    };
    let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
    let mut keep = |rule: Rule| {
        let rule = rule.with_via(Via::Observed);
        rules.insert(rule.key(), rule);
    };
    for ((host, protocol, port), seen) in flows {
        if port == 0 {
            continue;
        }
        let target = Target { host: host.as_host(), port, protocol };
        // Requests whose paths are refused whatever the rules say nothing here.
        let seen: Vec<&Observed> =
            seen.into_iter().filter(|one| one.judgeable().is_some() || !one.is_web()).collect();
        if seen.is_empty() {
            continue;
        }
        if seen.iter().all(|one| one.judgeable().is_some()) {
            request_rules(target, &seen).into_iter().for_each(&mut keep);
        } else if let HostKey::Address(address) = host {
            at(target, *address).into_iter().for_each(&mut keep);
        } else {
            keep(allow_of(target));
        }
        for address in
            seen.iter().filter_map(|one| one.address).filter(|_| !matches!(host, HostKey::HostService))
        {
            if !bare.upstream(target, address).is_open() {
                at(target, address).into_iter().for_each(&mut keep);
            }
        }
    }
    rules.into_values().collect()
}

impl Observed {
    /// Whether this is a request of a host by name.
    fn is_web(&self) -> bool {
        self.request.is_some() && self.protocol == Protocol::Tcp && !matches!(self.host, HostKey::Address(_))
    }
}

/// Rules for requests of one host: methods that were used on the same paths share a rule.
fn request_rules(target: Target<'_>, seen: &[&Observed]) -> Vec<Rule> {
    let requests: Vec<(Methods, CanonicalPath)> = seen
        .iter()
        .filter_map(|one| one.judgeable().map(|(method, path)| (Methods::of_request(method), path)))
        .collect();
    let mut by_method: BTreeMap<Methods, Vec<&CanonicalPath>> = BTreeMap::new();
    for (methods, path) in &requests {
        by_method.entry(*methods).or_default().push(path);
    }
    let mut by_path: BTreeMap<PathPattern, Methods> = BTreeMap::new();
    for (methods, paths) in by_method {
        let named: BTreeSet<PathPattern> = paths.iter().map(|path| cover(&[path])).collect();
        let patterns = if named.len() <= NAMED_PATHS { named } else { BTreeSet::from([cover(&paths)]) };
        for pattern in patterns {
            by_path.entry(pattern).and_modify(|all| *all = all.and(methods)).or_insert(methods);
        }
    }
    let resource = resource_of(target.host, target.port);
    by_path
        .into_iter()
        .filter_map(|(path, methods)| {
            Rule::new(Decision::Allow, resource.clone()).with_http(methods, path).ok()
        })
        .collect()
}

/// The narrowest pattern that allows these paths: the path itself if there is one with one reading, else the folder that
/// all readings share. Segments that do not look the same to everybody are not written.
pub(crate) fn cover(paths: &[&CanonicalPath]) -> PathPattern {
    let plain = |segment: &String| segment.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    if let [path] = paths
        && path.is_plain()
        && let Some(segments) = path.main()
        && segments.iter().all(plain)
        && let Some(pattern) = PathPattern::literal(segments, false)
    {
        return pattern;
    }
    let mut shared: Option<Vec<String>> = None;
    for reading in paths.iter().flat_map(|path| path.readings()) {
        let segments: &[String] = match reading {
            Reading::Segments(segments) => segments,
            Reading::Asterisk => return PathPattern::all(),
        };
        shared = Some(match shared {
            None => segments.to_vec(),
            Some(before) => {
                before.iter().zip(segments).take_while(|(a, b)| a == b).map(|(a, _)| a.clone()).collect()
            }
        });
    }
    let mut folder: Vec<String> = shared.unwrap_or_default().into_iter().take_while(plain).collect();
    loop {
        if let Some(pattern) = PathPattern::literal(&folder, true) {
            return pattern;
        }
        if folder.pop().is_none() {
            return PathPattern::all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(host: &str, port: u16, request: Option<(&str, &str)>) -> Observed {
        Observed {
            host: HostKey::parse(host).unwrap(),
            port,
            protocol: Protocol::Tcp,
            request: request.map(|(method, path)| (method.to_owned(), path.to_owned())),
            address: None,
        }
    }

    fn keys(observed: &[Observed], base: Option<&Policy>) -> Vec<String> {
        minimal_rules(observed, base).iter().map(Rule::key).collect()
    }

    #[test]
    fn hosts_become_rules() {
        let mut private = seen("db.corp.example", 5432, None);
        private.address = Some("10.1.2.3".parse().unwrap());
        let mut dns = seen("9.9.9.9", 53, None);
        dns.protocol = Protocol::Udp;
        let observed = [
            seen("example.com", 443, None),
            seen("example.com", 443, None),
            seen("example.com", 443, Some(("GET", "/a"))),
            seen("example.com", 22, None),
            private,
            dns,
            seen("localhost", 5432, None),
            seen("203.0.113.5", 80, Some(("GET", "/"))),
            seen("224.0.0.251", 5353, None),
        ];
        assert_eq!(
            keys(&observed, None),
            [
                "allow:10.1.2.3:5432",
                "allow:203.0.113.5:80",
                "allow:9.9.9.9:53:udp",
                "allow:db.corp.example:5432",
                "allow:example.com:22",
                "allow:example.com:443",
                "allow:localhost:5432"
            ]
        );
    }

    #[test]
    fn requests_become_rules_for_them() {
        let request = |method, path| seen("api.x.org", 443, Some((method, path)));
        assert_eq!(
            keys(&[request("GET", "/a"), request("HEAD", "/a"), request("POST", "/b/c")], None),
            ["allow:api.x.org:443:GET,HEAD:/a", "allow:api.x.org:443:POST:/b/c"]
        );
        let many: Vec<Observed> =
            (0..9).map(|n| seen("api.x.org", 443, Some(("GET", &*format!("/v1/items/{n}"))))).collect();
        assert_eq!(keys(&many, None), ["allow:api.x.org:443:GET:/v1/items/**"]);
        assert_eq!(keys(&[request("PROPFIND", "/a")], None), ["allow:api.x.org:443:ANY:/a"]);
        assert_eq!(keys(&[request("GET", "/x/@s%2Fp")], None), ["allow:api.x.org:443:GET:/x/**"]);
        assert_eq!(keys(&[request("GET", "/x/a*b")], None), ["allow:api.x.org:443:GET:/x/**"]);
        assert_eq!(keys(&[request("GET", "/x/\u{202e}b")], None), ["allow:api.x.org:443:GET:/x/**"]);
        assert!(keys(&[request("GET", "/a/../b")], None).is_empty());
    }

    #[test]
    fn what_the_base_allows_needs_no_rule() {
        let base = Policy::compile(&PolicySet::default());
        let observed = [
            seen("docs.rs", 443, Some(("GET", "/serde"))),
            seen("docs.rs", 443, Some(("POST", "/serde"))),
            seen("deb.debian.org", 80, None),
            seen("example.com", 443, None),
        ];
        assert_eq!(keys(&observed, Some(&base)), ["allow:docs.rs:443:POST:/serde", "allow:example.com:443"]);
    }
}
