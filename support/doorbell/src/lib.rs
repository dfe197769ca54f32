//! Wake-ups for worker threads: a bell that any thread (or the kernel, through ioeventfd) can ring, and a waiter that one
//! worker parks on.
//!
//! On Linux a bell is an eventfd and a waiter an epoll set, so a hypervisor's doorbell registers the bell's descriptor and
//! the worker can wait for sockets and files beside it. Other systems get their own `sys` module behind the same types.

mod sys;

pub use sys::{Doorbell, Waiter};

/// What to wait for on a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Data, a new connection or the end of the stream can be read.
    pub readable: bool,
    /// Data can be written.
    pub writable: bool,
}

impl Interest {
    /// Waits for nothing but errors and hang-ups.
    pub const NONE: Self = Self { readable: false, writable: false };
    /// Waits until data can be read.
    pub const READ: Self = Self { readable: true, writable: false };
    /// Waits until data can be written.
    pub const WRITE: Self = Self { readable: false, writable: true };
    /// Waits for either.
    pub const BOTH: Self = Self { readable: true, writable: true };
}

/// Something that [`Waiter::wait`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token given when the source was added.
    pub token: u64,
    /// The source can be read, or its stream ended.
    pub readable: bool,
    /// The source can be written.
    pub writable: bool,
    /// The other side is gone or the descriptor is in error; reported whatever the interest is.
    pub hung_up: bool,
}

#[cfg(test)]
mod tests;
