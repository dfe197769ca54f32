//! Secrets: what they are bound to, the placeholders that stand for them in a guest, and how they get into requests.
//!
//! A guest never has a secret. It has a *placeholder* of the same shape; the gateway puts the value in its place when a request goes to a
//! host that the secret is *bound* to, over verified TLS, and refuses a request that takes a placeholder elsewhere. Values that come back are masked.
//!
//! Without features the crate is pure: no files, no clock, no threads. That is what the gateway uses. The feature `store` adds where values are
//! kept ([`store`]): the keychain, encrypted files, and the programs that know them.
#![forbid(unsafe_code)]

pub mod binding;
pub mod credentials;
mod find;
pub mod hosts;
pub mod mask;
pub mod oauth;
mod place;
pub mod refusal;
pub mod secret;
pub mod services;
pub mod shape;
pub mod sigv4;
#[cfg(feature = "store")]
pub mod store;

pub use binding::Binding;
pub use credentials::{Body, Credential, Credentials, Destination, Placed, Value, Watch, WireError};
pub use hosts::HostPattern;
pub use mask::Masker;
pub use place::{is_read_as, may_hold_a_credential};
pub use refusal::Refusal;
pub use secret::Secret;
