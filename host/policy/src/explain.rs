//! What a verdict says of its reason, and the command that would change it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::command;
use crate::error::shown;
use crate::guard::Guarded;
use crate::http::Methods;
use crate::layers::Layer;
use crate::observe::cover;
use crate::pattern::NamePattern;
use crate::policy::{Compiled, Placed};
use crate::resource::{HostPattern, Ports, Resource};
use crate::rule::{Decision, Protocols, Rule};
use crate::target::{Host, Protocol, Request, Target, host_port};
use crate::verdict::{Outcome, Reason, RuleId, Verdict};

/// The resource that is one target; every port when the port is 0.
pub(crate) fn resource_of(host: Host<'_>, port: u16) -> Resource {
    let hosts = match host.settled() {
        Host::Name(name) => HostPattern::Names(NamePattern::exact(name)),
        Host::Address(address) => HostPattern::Network(IpNet::from(address)),
        Host::HostService => HostPattern::HostService,
    };
    Resource::new(hosts, Ports::one(port).unwrap_or(Ports::ALL))
}

/// The allow of one target and nothing else: what a yes to a question about it is.
#[must_use]
pub fn allow_of(target: Target<'_>) -> Rule {
    let rule = Rule::new(Decision::Allow, resource_of(target.host, target.port));
    match target.protocol {
        Protocol::Tcp => rule,
        Protocol::Udp => rule.clone().with_protocols(Protocols::Udp).unwrap_or(rule),
    }
}

fn verdict(
    outcome: Outcome,
    layer: Layer,
    rule: Option<RuleId>,
    text: String,
    remedy: Option<String>,
) -> Verdict {
    Verdict { outcome, reason: Reason { layer, rule, text, remedy } }
}

/// Where a rule stands, in words, with its reason.
fn origin(placed: &Placed) -> String {
    let place = match placed.layer {
        Layer::Sandbox => "the sandbox's rules".to_owned(),
        Layer::Once => "a one-time answer".to_owned(),
        Layer::Global if placed.source == "global" => "the global rules".to_owned(),
        _ => shown(&placed.source),
    };
    match placed.rule.reason() {
        Some(reason) => format!("{place}: {}", shown(reason)),
        None => place,
    }
}

impl Compiled {
    pub(crate) fn allowed(&self, outcome: Outcome, placed: &Placed) -> Verdict {
        let text = match outcome {
            Outcome::Inspect => format!("each request is compared with {} ({})", placed.rule, origin(placed)),
            _ => format!("allowed by {} ({})", placed.rule, origin(placed)),
        };
        verdict(outcome, placed.layer, Some(placed.id()), text, None)
    }

    /// The remedy of a deny that is the user's own, against which no allow helps: one about this host alone is taken back, a wider one has
    /// an exception.
    pub(crate) fn denied(&self, placed: &Placed, target: Target<'_>, address: Option<IpAddr>) -> Verdict {
        let sandbox = match placed.layer {
            Layer::Sandbox => Some(self.sandbox.as_str()),
            Layer::Global if placed.source == "global" => Some(""),
            _ => None,
        };
        let remedy = sandbox.and_then(|sandbox| {
            let wanted = resource_of(target.host, target.port);
            if placed.rule.resource().hosts() == wanted.hosts() {
                let mut words = command::start("rm", sandbox);
                words.extend(["--id".to_owned(), placed.key.clone()]);
                return Some(command::line(&words));
            }
            let mut except = placed.rule.except().to_vec();
            except.push(wanted);
            Some(placed.rule.clone().with_except(except).ok()?.command(sandbox))
        });
        let what = match address {
            Some(address) if target.host != Host::Address(address) => {
                format!("{} is at {address}, ", target.host)
            }
            _ => String::new(),
        };
        let text = format!("{what}denied by {} ({})", placed.rule, origin(placed));
        verdict(Outcome::Deny, placed.layer, Some(placed.id()), text, remedy)
    }

    /// A kit's rule that would allow it if the kit were approved.
    pub(crate) fn waits(&self, placed: &Placed) -> Verdict {
        let kit = placed.source.strip_prefix("kit/").unwrap_or(&placed.source);
        let text = format!("{} waits for the approval of its kit ({})", placed.rule, shown(kit));
        let remedy = (!kit.chars().any(char::is_control)).then(|| {
            let words = ["viv", "policy", "approve", kit].map(str::to_owned);
            command::line(&words)
        });
        verdict(Outcome::Undecided, placed.layer, Some(placed.id()), text, remedy)
    }

    /// `target` is the address in question.
    pub(crate) fn guarded_off(&self, guard: &Guarded, target: Target<'_>) -> Verdict {
        let inside = match target.host {
            Host::Address(address) if address != guard.view.address => format!("{address} leads to "),
            _ => String::new(),
        };
        let how = if guard.range.openable {
            "which only a rule that names it reaches"
        } else {
            "which no rule reaches"
        };
        let text = format!("{inside}{} is {}, {how}", guard.view.address, guard.range.what);
        let rule = RuleId::new("floor", &format!("guard:{}", guard.range.network));
        let remedy = guard.range.openable.then(|| allow_of(target).command(&self.sandbox));
        verdict(Outcome::Deny, Layer::Floor, Some(rule), text, remedy)
    }

    pub(crate) fn not_loopback(&self, address: IpAddr) -> Verdict {
        let text = format!("a service of the host is at its loopback address, not at {address}");
        verdict(Outcome::Deny, Layer::Floor, Some(RuleId::new("floor", "host-service")), text, None)
    }

    pub(crate) fn unguarded(&self, address: IpAddr) -> Verdict {
        let rule = Some(RuleId::new("floor", "unguarded"));
        verdict(Outcome::Allow, Layer::Floor, rule, format!("{address} is in no guarded range"), None)
    }

    pub(crate) fn undecided(&self, target: Target<'_>, request: Option<Request<'_>>) -> Verdict {
        let host = target.host;
        let what = match request {
            _ if target.port == 0 => host.to_string(),
            Some(request) => {
                let (method, path) = (shown(request.method), shown(&request.path.to_string()));
                format!("{method} {path} on {}", host_port(host, target.port))
            }
            None => format!("{} to {}", target.protocol, host_port(host, target.port)),
        };
        let why = match self.withheld(host) {
            Some(withheld) => format!("balanced leaves it out: {}", withheld.reason),
            None => self.preset.to_string(),
        };
        let mut rule = allow_of(target);
        if let Some(request) = request
            && self.some_requests_pass(target)
        {
            let narrow = rule.clone().with_http(Methods::of_request(request.method), cover(&[request.path]));
            rule = narrow.unwrap_or(rule);
        }
        let remedy = Some(rule.command(&self.sandbox));
        verdict(Outcome::Undecided, Layer::Global, None, format!("no rule allows {what} ({why})"), remedy)
    }
}
