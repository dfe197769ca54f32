//! The binary translator of the `soft` engine: x86-64 guest code to x86-64 host code, on demand.
//!
//! Most guest instructions translate to themselves; what changes is how they reach memory (through a software TLB in
//! line), where they keep four registers, and how they jump. Everything that is not translated is left to the
//! interpreter in `soft-cpu`, one instruction at a time, so coverage is a matter of speed only.
//!
//! Trusted: [`thunk`], [`emit`] and the bytes they make, [`tlb::refill`] (which makes host addresses), and `stub.rs` of
//! soft-cpu, where the interpreter encodes single x87, SSE and AVX instructions again and runs them.
//! Guest bytes are never executed as they are: every instruction is decoded, allowed by name, and encoded again.
//! [`verify`] reads blocks (not stubs) once more where it is on, as in debug builds and tests: see [`Tuning::verify`].
//!
//! The crate is empty but on x86-64 Linux: translated code runs on the host, keeps its state behind the `gs` base (on
//! Windows that is the system's own) and takes guest exceptions as signals.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(unsafe_code, reason = "runs generated code")]

#[cfg(test)]
mod bare_guest;
mod block;
mod cache;
#[cfg(test)]
mod cache_tests;
mod decode;
mod dispatch;
mod emit;
#[cfg(test)]
mod eviction_tests;
#[cfg(test)]
mod guest_tests;
mod host;
mod jit;
mod layout;
mod lockstep;
#[cfg(test)]
mod lockstep_tests;
mod lower;
#[cfg(test)]
mod native_tests;
mod shared;
mod system;
mod thunk;
mod tlb;
mod translate;
mod tuning;
mod verify;

pub use cache::CacheError;
pub use dispatch::JitVcpu;
pub use jit::Jit;
pub use tuning::Tuning;
