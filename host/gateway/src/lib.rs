//! The gateway: the process beside a sandbox that is its only way out.
//!
//! Frames of the guest's network card come over a ring in shared memory and go into a TCP/IP stack of our own
//! ([`netstack`]); what comes out are flows. Names are answered with synthetic addresses, so a flow's destination is a name that the
//! guest asked for and may have. The gateway resolves it itself, asks the [`policy`] about every address, connects, and only
//! then answers the guest. TLS is passed on untouched once its client asks for the name of the flow; what has rules about
//! requests, or credentials, goes to an [`Interceptor`](intercept::Interceptor).
//!
//! Everything of a sandbox is one thread. The process opens no file: what the host knows (name servers, its table of names,
//! roots, proxies, policy, secrets) the shim says in [`control`] words. It never binds a socket: published ports come as
//! descriptors.
//!
//! # Limits
//! What a guest can ask for without end has a bound; `docs/network.md` has those of times and caches, too. Each that is hit leaves a
//! record of the kind in the last column: a `Limit` is of the bound alone, the others are what the flow or the request has anyway.
//!
//! | what | at most | then | [`Kind`](record::Kind) |
//! |---|---|---|---|
//! | flows, half-open flows, buffers, frames | [`netstack::Limits`] | see there | `Limit`; `Ended` of a flow that its time or another one ended |
//! | upstream connections being made | [`dial::MOST_DIALS`] | reset | `Limit`; `Request` of one that is looked into |
//! | DNS questions in a second | 1000, 2000 at once | dropped | `Limit` |
//! | DNS connections | 64 | reset | `Limit` |
//! | bytes of a DNS message | [`dns::LONGEST`] | dropped | `Limit` |
//! | names with addresses | [`names::MOST`] | SERVFAIL while the one asked for longest ago without flows was so within a minute | `Limit` |
//! | bytes of a ClientHello | 64 KiB | reset | `Tls` |
//! | questions to the user | [`ask::A_MINUTE`], [`ask::MOST_QUESTIONS`], [`ask::MOST_HELD`] flows each, [`ask::PATIENCE`] | reset | `Connect`, `Datagram` |
//! | different records in a second, of each of three classes ([`record::Class`]) | 200 after 1024 | folded by host and port (20 after 256), by zone (5 after 64), by kind | those, with an exact count |
//! | peers of a published UDP port | [`publish::MOST_PEERS`] | the quietest makes room | `Limit` |
//! | what is looked into | `intercept::Limits` | see `docs/interception.md` | `Request`, `Ended` |
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod allowance;
pub mod ask;
pub mod control;
mod core;
pub mod dial;
pub mod dns;
mod doorkeeper;
pub mod flow;
pub mod hello;
mod inspect;
pub mod intercept;
pub mod names;
mod proxy;
pub mod publish;
mod pump;
pub mod record;
mod relay;
mod renew;
pub mod resolve;
mod serve;
mod sys;
mod tcp;
mod udp;
mod wire;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

pub use core::Target;
pub use pump::PumpError;
pub use serve::{GatewayError, main_loop};

/// What makes the interceptor of a gateway.
pub fn interceptor() -> intercept::MakeInterceptor {
    interceptor_within(::intercept::Limits::default())
}

/// The same with other bounds of a flow: no test can wait until a gateway's own are hit.
pub fn interceptor_within(limits: ::intercept::Limits) -> intercept::MakeInterceptor {
    Box::new(move |setup| inspect::make(setup, limits))
}

/// The role of the process: serves the sandbox whose shim holds the other end of `control` until that closes.
pub fn main(control: OwnedFd) -> ExitCode {
    match main_loop(control, interceptor()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
