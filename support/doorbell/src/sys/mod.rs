//! The system's way to wake a thread.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{Doorbell, Waiter};

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub use macos::{Doorbell, Waiter};

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::{Doorbell, Waiter};
