//! The ClientHello that a server may ask for once more (RFC 8446 §4.1.4), and that must have the name of the first one.

use super::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, Hello, Seen, handshake};

/// The random of a ServerHello that is a HelloRetryRequest (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
/// Bytes of a ServerHello up to the end of its random: type, length, version, random.
const NEEDED: usize = 38;
/// Bytes of the server's that are looked at. Who hides its first message behind more is not believed.
const LONGEST_ANSWER: usize = 1 << 10;
/// Bytes of the client's that wait for the server's first message.
const LONGEST_WAIT: usize = 72 << 10;

/// What becomes of the bytes behind a ClientHello.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These go on, perhaps none; the next ones are looked at.
    Pass(Vec<u8>),
    /// There is no other ClientHello to come: these go on, and all that follow.
    Free(Vec<u8>),
    /// There is one: what was seen of it, and the bytes that go on if it may.
    Again(Seen, Vec<u8>),
    /// It cannot be judged.
    Broken(&'static str),
}

/// Looks on behind a first ClientHello. A client has no handshake message to send before the server's first one, so nothing of
/// an ordinary connection waits here: early data (RFC 8446 §4.2.10) goes on at once.
#[derive(Debug, Default)]
pub struct Retry {
    /// What the server said; `None` once it was a HelloRetryRequest.
    answer: Option<Vec<u8>>,
    /// Bytes of the client's that wait.
    waiting: Vec<u8>,
    /// Bytes that are left of a record that goes on.
    passing: usize,
    second: Hello,
}

impl Retry {
    /// Behind the first ClientHello.
    pub fn new() -> Self {
        Self { answer: Some(Vec::new()), ..Self::default() }
    }

    /// The server's next bytes.
    pub fn answered(&mut self, bytes: &[u8]) -> Next {
        let Some(answer) = self.answer.as_mut() else { return Next::Pass(Vec::new()) };
        answer.extend_from_slice(bytes);
        match is_retry(answer) {
            Some(false) => Next::Free(std::mem::take(&mut self.waiting)),
            None if answer.len() < LONGEST_ANSWER => Next::Pass(Vec::new()),
            Some(true) | None => {
                self.answer = None;
                self.push(&[])
            }
        }
    }

    /// The client's next bytes.
    pub fn push(&mut self, bytes: &[u8]) -> Next {
        self.waiting.extend_from_slice(bytes);
        let (mut out, mut at) = (Vec::new(), 0usize);
        // Taken away once, for there may be a record in every five bytes.
        let next = loop {
            let rest = self.waiting.get(at..).unwrap_or_default();
            let (passing, rest) = rest.split_at(self.passing.min(rest.len()));
            out.extend_from_slice(passing);
            at = at.saturating_add(passing.len());
            self.passing = self.passing.saturating_sub(passing.len());
            let Some(&[kind, _, _, high, low]) = rest.first_chunk::<5>() else { break None };
            let end = usize::from(u16::from_be_bytes([high, low])).saturating_add(5);
            match kind {
                CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA if self.second.seen.is_empty() => {
                    self.passing = end;
                }
                HANDSHAKE if self.answer.is_some() => break None,
                HANDSHAKE => {
                    let Some(record) = rest.get(..end) else { break None };
                    let seen = self.second.push(record);
                    at = at.saturating_add(end);
                    if seen != Seen::More {
                        break Some(seen);
                    }
                }
                _ => return Next::Broken("a record between two ClientHellos that is of neither"),
            }
        };
        self.waiting.drain(..at.min(self.waiting.len()));
        if let Some(seen) = next {
            out.extend(std::mem::take(&mut self.second).into_bytes());
            out.append(&mut self.waiting);
            return Next::Again(seen, out);
        }
        if self.waiting.len() > LONGEST_WAIT {
            return Next::Broken("a second ClientHello before the server asked for one");
        }
        Next::Pass(out)
    }

    /// Whether bytes wait here: nothing that can be judged, if no more come.
    pub fn is_cut(&self) -> bool {
        !self.waiting.is_empty() || !self.second.seen.is_empty()
    }
}

/// Whether the server's first handshake message is a HelloRetryRequest; `None` while that cannot be said. Alerts before it are
/// overlooked by clients.
fn is_retry(mut answer: &[u8]) -> Option<bool> {
    while let Some((&[ALERT, _, _, high, low], rest)) = answer.split_first_chunk::<5>() {
        answer = rest.get(usize::from(u16::from_be_bytes([high, low]))..)?;
    }
    if answer.first().is_some_and(|kind| !matches!(*kind, HANDSHAKE | ALERT)) {
        return Some(false);
    }
    let message = handshake(answer);
    match message.get(6..NEEDED) {
        Some(random) => Some(message.first() == Some(&2) && random == RETRY),
        None => message.first().filter(|kind| **kind != 2).map(|_| false),
    }
}
