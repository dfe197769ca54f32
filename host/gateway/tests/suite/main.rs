//! A gateway behind its ring, with a guest and a shim of the test's. One program, as most of it is the gateway and a network stack.

mod adversary;
mod corpus;
mod flows;
mod guest;
mod limits;
mod renewal;
mod settings;
mod tls;
