//! Flows from end to end: a guest, a host and the interceptor between them. One program, as most of it is hyper.

mod adversarial;
mod ca;
mod corpus;
mod credentials;
mod h1_host;
mod h2_host;
mod h2_suite;
mod http2;
mod messages;
mod replayed;
mod rules;
mod signing;
mod streamed;
mod support;
mod tls;
mod websocket;
