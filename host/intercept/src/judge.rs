//! The verdict on a request: when it comes, and again whenever the rules change while it is under way.

use std::rc::{Rc, Weak};

use policy::{Outcome, Protocol, Target, Verdict};

use crate::Flow;
use crate::body::Exchange;
use crate::head::Examined;
use crate::record::{Decision, Rules, Undecided};

/// What is asked about one request.
pub(crate) struct Judge {
    pub(crate) rules: Rc<dyn Rules>,
    pub(crate) flow: Flow,
    pub(crate) method: String,
    pub(crate) examined: Rc<Examined>,
}

impl Judge {
    /// Every method and path that the request may be taken for has to pass. [`Decision::Allowed`], [`Decision::Observed`] or
    /// [`Decision::Refused`], with the verdict that decided.
    pub(crate) fn judge(&self) -> Option<(Decision, Verdict)> {
        let (policy, undecided) = (self.rules.policy(), self.rules.undecided());
        let target =
            Target { host: self.flow.host.for_policy(), port: self.flow.port, protocol: Protocol::Tcp };
        let examined = &*self.examined;
        let mut found: Option<(Decision, Verdict)> = None;
        for method in std::iter::once(&self.method).chain(&examined.other_methods) {
            for path in std::iter::once(&examined.path).chain(&examined.other_paths) {
                let verdict = policy.request(target, policy::Request { method, path });
                let decision = match (verdict.outcome, undecided) {
                    (Outcome::Allow, _) => Decision::Allowed,
                    (Outcome::Undecided, Undecided::Observe) => Decision::Observed,
                    _ => return Some((Decision::Refused, verdict)),
                };
                // The first one speaks for all, unless another one passes for want of a rule alone.
                if found
                    .as_ref()
                    .is_none_or(|(before, _)| *before == Decision::Allowed && decision == Decision::Observed)
                {
                    found = Some((decision, verdict));
                }
            }
        }
        found
    }
}

/// The exchanges that are under way, of all flows.
#[derive(Default)]
pub(crate) struct UnderWay {
    exchanges: Vec<Weak<Exchange>>,
    /// How many there may be before those that are over are taken out.
    room: usize,
}

impl UnderWay {
    /// The fewest that are kept before any is looked for that is over.
    const LEAST: usize = 64;

    pub(crate) fn add(&mut self, exchange: &Rc<Exchange>) {
        if self.exchanges.len() >= self.room {
            self.exchanges.retain(|exchange| exchange.strong_count() > 0);
            self.room = self.exchanges.len().saturating_mul(2).max(Self::LEAST);
        }
        self.exchanges.push(Rc::downgrade(exchange));
    }

    pub(crate) fn all(&self) -> Vec<Rc<Exchange>> {
        self.exchanges.iter().filter_map(Weak::upgrade).collect()
    }
}
