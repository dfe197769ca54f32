//! What one flow may use, and what all of a sandbox may.

use std::time::Duration;

/// The bounds of one flow, where they are not said to be of all. What is over is refused on that flow alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for the guest's TLS handshake, and for upstream's connection with its handshake. 30 s.
    pub handshake: Duration,
    /// Time for one HTTP/1 head, counted from the end of the request before: an idle connection closes then. 120 s.
    pub head: Duration,
    /// A flow in which no byte moves to or from the guest for this long is closed. 1 h.
    pub idle: Duration,
    /// Bytes of one HTTP/1 head, and of one HTTP/2 header list, requests and answers alike. 64 KiB.
    pub head_bytes: u32,
    /// Header fields of one HTTP/1 head. 200.
    pub headers: usize,
    /// HTTP/2 streams at once. 100.
    pub streams: u32,
    /// HTTP/2 streams that were reset by the guest before we looked at them; more end the connection (rapid reset,
    /// CVE-2023-44487). 20.
    pub pending_resets: usize,
    /// HTTP/2 streams that we had to reset for the guest's errors; more end the connection ("made you reset"). 64.
    pub error_resets: usize,
    /// HTTP/1 connections to upstream at once, for a guest that speaks HTTP/2 to a host that does not. 16.
    pub connections: usize,
    /// Bytes in flight of one HTTP/2 stream. 1 MiB.
    pub stream_window: u32,
    /// Bytes in flight of one HTTP/2 connection. 4 MiB.
    pub connection_window: u32,
    /// Bytes of a body that has to be held whole: one to be signed without a declared hash. 16 MiB.
    pub held_body: usize,
    /// Bytes of such bodies in all flows; what comes beyond waits until there is room. 64 MiB.
    pub held_in_all: usize,
    /// Flows at once, from the first on, that have the windows above; what is opened while there are more has [`SMALL_WINDOW`]s. 32.
    pub wide_flows: usize,
    /// Bytes of a token endpoint's answer. 1 MiB.
    pub token_answer: usize,
}

/// Bytes in flight of a stream, and of a connection, of a flow that is one of many: what HTTP/2 begins with (RFC 9113 §6.9.2).
const SMALL_WINDOW: u32 = 65_535;

impl Limits {
    /// Those of a flow that is opened when there are so many others.
    pub(crate) fn beside(mut self, others: usize) -> Self {
        if others >= self.wide_flows {
            self.stream_window = self.stream_window.min(SMALL_WINDOW);
            self.connection_window = self.connection_window.min(SMALL_WINDOW);
        }
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(30),
            head: Duration::from_secs(120),
            idle: Duration::from_secs(3600),
            head_bytes: 64 * 1024,
            headers: 200,
            streams: 100,
            pending_resets: 20,
            error_resets: 64,
            connections: 16,
            stream_window: 1024 * 1024,
            connection_window: 4 * 1024 * 1024,
            held_body: 16 * 1024 * 1024,
            held_in_all: 64 * 1024 * 1024,
            wide_flows: 32,
            token_answer: 1024 * 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_of_very_many_flows_are_small() {
        let limits = Limits::default();
        assert_eq!(limits.beside(31), limits);
        let small = limits.beside(32);
        assert_eq!((small.stream_window, small.connection_window), (65_535, 65_535));
        // What 4,096 flows can have the gateway hold of both sides.
        let held = |limits: Limits, flows: u64| u64::from(limits.connection_window) * 2 * flows;
        assert!(held(limits, 32) + held(small, 4096) < 1 << 30);
    }
}
