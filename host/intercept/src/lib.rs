//! HTTP and HTTPS of one flow, looked into: what the gateway does where an HTTP rule or a credential applies.
//!
//! [`Intercept::flow`] is given the guest's bytes and a way to reach the flow's host, and drives both to their end: TLS is ended
//! with a certificate for the name that the guest asked for ([`IntermediateCa`], signed by the host's [`RootCa`]), begun again
//! towards the real host and verified against the host's roots; requests are parsed by hyper, judged one by one ([`Rules`])
//! and written anew by hyper, so what one side could read differently from the other never crosses. Bodies stream.
//!
//! ```text
//! guest ── TLS ── hyper server ── agreement → path → rules → credentials ── hyper client ── TLS ── host
//!                     └─────────── masking, records ────────────┘
//! ```
//!
//! * One flow is one future on the gateway's thread; nothing is spawned, dropping it closes both sides ([`tasks`]).
//! * The guest is offered what upstream agreed to (ALPN), so versions differ only where upstream changes its mind.
//! * Every byte of both sides is hostile. [`Limits`] says what is bounded and where.
//!
//! Decided against: HTTP/3 (UDP is refused at once), RFC 8441 (not offered, so clients open an HTTP/1.1 WebSocket), CONNECT, `*`
//! targets, upgrades other than `websocket`, client certificates, 0-RTT, and passing 1xx answers on (100 is ours to
//! give, 103 is dropped: RFC 9110 §15.2 lets a client do without).
#![forbid(unsafe_code)]

mod body;
mod borders;
mod ca;
mod flow;
mod frames;
mod head;
mod judge;
mod leaf;
mod limits;
mod record;
mod refresh;
mod refusal;
mod service;
mod sniff;
mod sys;
mod tasks;
mod tls;
mod upgrade;
mod upstream;

pub use ca::{CaError, INTERMEDIATE_DAYS, IntermediateCa, ROOT_DAYS, ROOT_FILE, ROOT_RENEW_DAYS, RootCa};
pub use flow::{Flow, FlowEnd, FlowHost, Intercept, InterceptError, Settings};
pub use leaf::{LEAF_DAYS, MAX_LEAVES};
pub use limits::Limits;
pub use record::{Decision, RequestRecord, Rules, Sink, Undecided};
pub use upstream::{Dial, Dialling, Stream};
