//! Answers, with what decided and what would change it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::layers::Layer;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It may pass.
    Allow,
    /// The connection may be made if its requests are looked at; each needs [`crate::Policy::request`].
    Inspect,
    /// A rule or the guard refuses it.
    Deny,
    /// No rule says anything: refused, unless somebody is asked and says yes.
    Undecided,
}

impl Outcome {
    /// Whether something may pass: [`Outcome::Allow`] or [`Outcome::Inspect`].
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Allow | Self::Inspect)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Allow => "allow",
            Outcome::Inspect => "inspect",
            Outcome::Deny => "deny",
            Outcome::Undecided => "undecided",
        })
    }
}

/// The name of a rule in a compiled policy: where it comes from and what it says, `sandbox/allow:example.com:443`,
/// `balanced/documentation/allow:docs.rs:443:GET,HEAD:/**`, `floor/guard:10.0.0.0/8`. It stays as long as the rule does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RuleId(String);

impl RuleId {
    pub(crate) fn new(source: &str, key: &str) -> Self {
        Self(format!("{source}/{key}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The layer; of an undecided question the one whose preset leaves it so.
    pub layer: Layer,
    /// The rule; `None` when no rule says anything.
    pub rule: Option<RuleId>,
    /// For people: one line without a full stop.
    pub text: String,
    /// A command that would allow it, or be the next step to it.
    pub remedy: Option<String>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// What is to be done.
    pub outcome: Outcome,
    /// What decided.
    pub reason: Reason,
}

impl Verdict {
    /// Whether something may pass.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.outcome.is_open()
    }
}
