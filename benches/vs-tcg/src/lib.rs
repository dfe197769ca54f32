//! What benchmarks against QEMU share.

pub mod qemu;
