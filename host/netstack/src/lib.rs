//! A TCP/IP stack without I/O: frames of one guest on one side, flows on the other.
//!
//! The gateway hands in every frame of the guest's network card ([`Stack::frame_in`]), takes out those that go back
//! ([`Stack::frame_out`]), and meets what the guest wants as [`Event`]s. A connection attempt is an event before anything is
//! answered: the gateway decides, connects upstream, and only then accepts the [flow](FlowId) or refuses it. There is no
//! clock (time is an argument), no socket, no thread; nothing happens but within a call.
//!
//! Every byte of a frame is the guest's choice, the offload header in front of it included. What is not understood is
//! dropped and has a [counter](Counters); what can be asked for without end has a [limit](Limits), and hitting it slows or
//! refuses this guest only. The stack learns nothing from the guest: addresses are fixed on both ends, there is no ARP or
//! neighbour cache to fill.
//!
//! TCP is smoltcp's (private, so that it can be replaced), one socket a flow, looked up by our own table: a packet costs the
//! same however many flows there are. UDP, ICMP, ARP and neighbour discovery need no state machine and are ours, over
//! smoltcp's wire formats.
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

mod config;
mod counters;
mod emit;
mod event;
mod flow;
mod icmp;
mod ingress;
mod link;
mod offload;
mod rate;
mod stack;
mod table;
mod tcp;
mod timers;

pub use config::{Config, Limits, MAX_FRAME, MTU};
pub use counters::Counters;
pub use event::{
    ConnectError, DatagramError, Event, FlowId, FlowInfo, LimitKind, NoFlow, Protocol, Received, Refusal,
    ResetCause, SendError,
};
pub use offload::HEADER;
pub use stack::{RestoreError, Stack};
