//! The `soft` engine behind the [`hv`] contract: a software x86-64 CPU for hosts without usable virtualization.
//!
//! This crate binds vCPUs to threads, delivers interrupts between runs of the executor (the binary translator of
//! `soft-jit`, or the interpreter of `soft-cpu` for tests), waits in HLT, and converts state. It trusts the executors to
//! keep the guest inside its memory; it trusts nothing that comes from the guest.
//!
//! The crate is empty but on x86-64 Linux, like `soft-jit`.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(unsafe_code, reason = "shares each vCPU's kick byte with other threads by address")]

mod engine;
mod state;
mod vcpu;
mod vm;

pub use engine::{ExecutorKind, SoftEngine};
