//! What a sandbox may reach: rules, layers, presets, and the verdicts they come to.
//!
//! Pure: no input or output, no clock, no randomness. A [`PolicySet`] is all that is said about a sandbox; compiled into a
//! [`Policy`] it answers four questions, in the order in which a flow meets them:
//!
//! ```text
//! DNS question      Policy::name      may this name have an address?
//! SYN, datagram     Policy::connect   may this be connected to, and must its requests be looked at?
//! resolved address  Policy::upstream  may the target be reached there? (denied networks, the guard)
//! HTTP request      Policy::request   may this method and path pass?
//! ```
//!
//! [`Policy::check`] answers a person by asking the same four. A deny of any layer beats an allow of every layer; an exception
//! belongs to one deny; the order of rules never matters. `docs/policy.md` has the language.
//!
//! Names, paths and requests come from a hostile guest: nothing here panics on them, and each is settled into one form
//! ([`Name`], [`CanonicalPath`]) before a rule sees it.
#![forbid(unsafe_code)]

mod command;
mod error;
mod explain;
mod glob;
mod guard;
mod http;
mod index;
mod intervals;
mod layers;
mod name;
mod observe;
mod path;
mod pattern;
mod policy;
mod preset;
mod question;
mod resource;
mod rule;
mod target;
mod verdict;

pub use command::line as command_line;
pub use error::SyntaxError;
pub use explain::allow_of;
pub use guard::{Embedding, GuardRange, embedding_table, guard_table};
pub use http::{Methods, PathPattern};
pub use layers::{Approval, GlobalFile, KitFile, KitRules, Layer, PolicySet, SandboxFile, Schema};
pub use name::{HOST_SERVICE, HOST_SERVICES, Name, canonical_address};
pub use observe::{Observed, minimal_rules};
pub use path::{CanonicalPath, PathError};
pub use pattern::NamePattern;
pub use policy::{Policy, RuleView};
pub use preset::{Balanced, Entry, Group, Preset, Withheld, balanced};
pub use question::Question;
pub use resource::{HostPattern, Ports, Resource};
pub use rule::{Decision, HttpMatch, Protocols, Rule, RuleError, Via, upsert};
pub use target::{Host, HostKey, Protocol, Request, Target};
pub use verdict::{Outcome, Reason, RuleId, Verdict};
