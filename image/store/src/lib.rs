//! Where images are kept on the host, and the one way to get at one: what is there is used, what is missing is made.
//!
//! The folder (`~/.cache/vivarium`) holds `downloads/` (by digest), `images/<key>/` (base image, kernel, modules, and
//! `image.json` that says what it is) and `lock`. An image's folder appears under its name only when it is complete, by one
//! rename; whatever else is found in `images/` is the rest of an interrupted build and is removed by the next one.
//!
//! An image that is not the current one goes when no sandbox has it and it was not used for a week ([`UNUSED`]).
//!
//! Only one process sets up at a time. Reading needs no lock.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod base;
mod record;
mod seal;
mod sys;
mod timed;

pub use base::{BaseImage, Store, StoreError, UNUSED};
pub use record::{Part, Record, Replaced};
pub use seal::Seal;
