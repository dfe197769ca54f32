//! A filter between a guest and the user's SSH agent: keys stay on the host, and what is signed is only what was allowed.
//!
//! Allowed are signatures for user authentication at a host whose key is known and which was granted, proved by `session-bind@openssh.com`
//! (OpenSSH's PROTOCOL.agent, section 1), and signatures in granted namespaces (`git`; OpenSSH's PROTOCOL.sshsig). All else is refused: other
//! data to sign, adding and removing keys, locking, smart cards, forwarding the agent further. [`Filter`] is pure: messages in, messages out; [`Relay`] asks the agent.
//!
//! ```text
//! guest ── request ──> Filter::request ── Verdict::Pass ──> agent ── answer ──> Filter::answer ──> guest
//!                                      └─ Verdict::Answer ────────────────────────────────────────┘
//! ```
//! Agent protocol: draft-miller-ssh-agent. A signature that authenticates is RFC 4252, section 7.
#![forbid(unsafe_code)]

mod filter;
mod key;
mod relay;
mod wire;

pub use filter::{Event, Filter, Grants, HostGrant, Refusal, Verdict};
pub use relay::{Answer, Relay};
pub use wire::{Frames, MAX_MESSAGE, TooLong};
