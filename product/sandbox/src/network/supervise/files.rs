//! Files that change while a sandbox runs: its policy, and how the host resolves names.

use std::path::Path;
use std::time::Instant;

use gateway::control::{Mode, ToGateway};

use super::super::standing::GRACE;
use super::super::{policy_files, settings, surroundings};
use super::{Network, plain};
use crate::control::Notice;

impl Network {
    pub(super) fn hear_files(&mut self, told: &mut Vec<Notice>) {
        let names = self.watch.changed();
        let is = |name: &str| names.iter().any(|changed| changed == name);
        // Those of kits have names of their own.
        if is(policy_files::FILE)
            || names.iter().any(|name| Path::new(name).extension().is_some_and(|e| e == "json"))
        {
            self.read_policy(Instant::now(), told);
        }
        if is("resolv.conf") || is("hosts") || is("stub-resolv.conf") {
            let resolver = surroundings::resolver().unwrap_or_else(|| self.configuration.resolver.clone());
            let hosts = surroundings::hosts().unwrap_or_else(|| self.configuration.hosts.clone());
            if (&resolver, &hosts) != (&self.configuration.resolver, &self.configuration.hosts) {
                self.configuration.resolver = resolver.clone();
                self.configuration.hosts = hosts.clone();
                self.say(&ToGateway::Resolver { resolver, hosts });
            }
        }
        if is(settings::FILE) {
            self.read_settings(Instant::now());
        }
        if let Some(roots) = self.roots.read_again(&names, &self.configuration.roots) {
            self.configuration.roots = roots.clone();
            self.say(&ToGateway::Roots { roots });
        }
    }

    /// What a file with a mistake said before holds on; the next client that starts a sandbox says where the mistake is. One that is
    /// away for a moment is about to be written: nothing goes past the proxies then.
    pub(super) fn read_settings(&mut self, now: Instant) {
        let read = settings::proxies(&self.places);
        if matches!(read, Ok(None)) && self.settings.is_none_or(|again| now < again) {
            self.settings = self.settings.or_else(|| now.checked_add(GRACE));
            return;
        }
        self.settings = None;
        let proxies = match read {
            Ok(file) => self.proxies.with(file.unwrap_or_default()),
            Err(error) => {
                tracing::warn!(error = %plain(&error.to_string()), "The network's settings cannot be read");
                return;
            }
        };
        if proxies != self.configuration.proxies {
            self.configuration.proxies = proxies.clone();
            self.say(&ToGateway::Proxies { proxies });
        }
    }

    /// Reads the policy, and passes on what is other than before.
    pub(super) fn read_policy(&mut self, now: Instant, told: &mut Vec<Notice>) {
        let before = self.policy.problem().map(str::to_owned);
        self.policy.read(&self.places, &self.sandbox, &self.own, now);
        // Before the policy is gone nothing is observed any more, and nothing again before it is back.
        if self.policy.problem().is_some() {
            self.set_mode();
        }
        self.pass_policy_on();
        self.set_mode();
        match (before, self.policy.problem()) {
            (Some(_), None) => told.push(Notice::PolicyBack),
            (before, Some(why)) if before.as_deref() != Some(why) => told.extend(self.policy.notice()),
            _ => {}
        }
    }

    fn pass_policy_on(&mut self) {
        if *self.policy.in_force() != self.configuration.policy {
            self.configuration.policy = self.policy.in_force().clone();
            self.hints.forget();
            let policy = Box::new(self.configuration.policy.clone());
            self.say(&ToGateway::Policy { policy });
        }
    }

    /// A user's answer to a question; what sessions are to be told comes to `told`.
    pub(crate) fn answer(&mut self, question: u64, allow: bool, told: &mut Vec<Notice>) {
        // Who said "always" has written a rule, which must be there before the connection goes on.
        self.hear_files(told);
        let Some(answered) = self.questions.take(question) else { return };
        told.push(Notice::AskOver { question });
        if !allow {
            self.say(&ToGateway::Refuse { question: answered.gateways });
        } else if let Some(rule) = answered.allowed_by(self.policy.in_force()) {
            self.policy.allow_once(rule);
            self.pass_policy_on();
        }
    }

    /// What was allowed until the sandbox stops by rules of these keys is not any more.
    pub(crate) fn forget_once(&mut self, keys: &[String]) {
        self.policy.forget_once(keys);
        self.pass_policy_on();
    }

    pub(super) fn set_mode(&mut self) {
        let mode: Mode = self.policy.mode(self.wanted);
        if mode != self.configuration.mode {
            self.configuration.mode = mode;
            self.say(&ToGateway::Mode { mode });
        }
    }
}
