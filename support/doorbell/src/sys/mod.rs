//! The system's way to wake a thread.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{Doorbell, Waiter};
