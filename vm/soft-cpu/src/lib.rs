//! The architectural x86-64 CPU of the `soft` engine: state, paging, exceptions, system instructions, local APIC and
//! timers, and an executor of one instruction at a time.
//!
//! The interpreter here is complete and slow; it is what the binary translator (`soft-jit`) falls back to and is tested
//! against. Guest bytes are never trusted: no path from guest memory or registers panics, and only [`env::RamMap`] makes
//! host addresses out of guest ones.
//!
//! The crate is empty on other architectures than x86-64: x87, SSE and AVX instructions run on the host's own units.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "reaches guest memory through raw pointers and runs generated code")]

mod alu;
pub mod apic;
pub mod clock;
pub mod cpu;
pub mod cpuid;
mod decode;
mod dry_run;
pub mod env;
pub mod exception;
pub mod exec;
mod fpu;
mod mem;
pub mod msr;
mod ops;
mod overlay;
pub mod paging;
pub mod platform;
mod rawmem;
mod segment;
mod stub;
mod sys;

pub use apic::{ApicPort, Poll, poll_interrupts};
pub use cpu::{Cpu, Segment, TlbEvent};
pub use decode::{decoder_options, is_immediate};
pub use dry_run::{DryRun, End, status_flags, undefined_after};
pub use env::{CodeWatch, Env, NoWatch, RamMap, RamSpan};
pub use exception::{Exception, deliver};
pub use exec::{Executor, Exit, Interpreter, Step, step};
pub use fpu::host_has;
pub use paging::{Access, Page, PageFault, translate};
pub use platform::Platform;
pub use stub::StubMemory;
