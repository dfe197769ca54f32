//! What belongs to one system.

#[cfg(target_os = "linux")]
mod linux;

#[cfg(target_os = "linux")]
pub(crate) use linux::{bell, datagram_socket};

#[cfg(not(target_os = "linux"))]
mod none;

#[cfg(not(target_os = "linux"))]
pub(crate) use none::{bell, datagram_socket};
