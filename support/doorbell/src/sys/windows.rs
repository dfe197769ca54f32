//! Windows: not yet. Its threads wait for handles, so that sockets need an event object each; the types are here for what
//! is built on them, and none of them can be made.

use std::convert::Infallible;
use std::io;
use std::os::windows::io::{AsSocket, BorrowedSocket};
use std::time::Duration;

use crate::{Event, Interest};

/// A bell; clones ring the same one. Rings before the bell is answered count once.
#[derive(Clone, Debug)]
pub struct Doorbell(Infallible);

impl Doorbell {
    /// Refuses: [`io::ErrorKind::Unsupported`].
    pub fn new() -> io::Result<Self> {
        Err(unsupported())
    }

    /// Rings. Never blocks.
    pub fn ring(&self) {
        match self.0 {}
    }

    /// Silences the bell; whether it had been rung since the last call.
    pub fn answer(&self) -> bool {
        match self.0 {}
    }
}

impl AsSocket for Doorbell {
    fn as_socket(&self) -> BorrowedSocket<'_> {
        match self.0 {}
    }
}

/// A set of sources that a thread waits for.
#[derive(Debug)]
pub struct Waiter(Infallible);

impl Waiter {
    /// Refuses: [`io::ErrorKind::Unsupported`].
    pub fn new() -> io::Result<Self> {
        Err(unsupported())
    }

    /// Adds a source under a token.
    pub fn add(&self, _source: &impl AsSocket, _token: u64, _interest: Interest) -> io::Result<()> {
        match self.0 {}
    }

    /// Changes what is waited for.
    pub fn modify(&self, _source: &impl AsSocket, _token: u64, _interest: Interest) -> io::Result<()> {
        match self.0 {}
    }

    /// Forgets a source.
    pub fn remove(&self, _source: &impl AsSocket) -> io::Result<()> {
        match self.0 {}
    }

    /// Waits until something happens or the time is over.
    pub fn wait(&self, _events: &mut Vec<Event>, _timeout: Option<Duration>) -> io::Result<()> {
        match self.0 {}
    }
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "doorbells are not supported on Windows yet")
}
