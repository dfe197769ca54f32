//! The architectural x86-64 CPU of the `soft` engine: state, paging, exceptions, system instructions, local APIC and
//! timers, and an executor of one instruction at a time.
//!
//! The interpreter here is complete and slow; it is what the binary translator (`soft-jit`) falls back to and is tested
//! against. Guest bytes are never trusted: no path from guest memory or registers panics, and only [`env::RamMap`] makes
//! host addresses out of guest ones.
#![allow(unsafe_code, reason = "reaches guest memory through raw pointers and runs generated code")]

pub mod cpu;
pub mod env;
pub mod exception;
pub mod exec;
pub mod paging;

pub use cpu::{Cpu, Segment, TlbEvent};
pub use env::{CodeWatch, Env, RamMap, RamSpan};
pub use exception::Exception;
pub use exec::{Executor, Exit, Step};
pub use paging::{Access, Page, PageFault, translate};
