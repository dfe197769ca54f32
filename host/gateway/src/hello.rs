//! The beginning of a TLS connection: the name that the client asks the server for, before any byte goes upstream.
//!
//! rustls parses the ClientHello (split over records and reads, up to 64 KiB); what it refuses is refused here. Encrypted
//! ClientHello it does not tell of, so the extension is looked for in what it found well-formed.

use rustls::server::Acceptor;

use self::line::{FirstLine, Line};
use self::records::{Found, Records};

pub mod line;
pub mod postgres;
pub mod records;
pub mod retry;

/// Bytes of a ClientHello with the headers of its records. rustls takes a message of up to 64 KiB.
pub(crate) const LONGEST: usize = 72 << 10;
/// Content type of handshake records (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
const CHANGE_CIPHER_SPEC: u8 = 20;
pub(crate) const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
const HEARTBEAT: u8 = 24;
/// What the two versions of HAProxy's PROXY protocol begin with, as far as its readers look at it and nothing else is like it.
const PROXIED: [&[u8]; 2] = [b"PROXY", b"\r\n\r\n\0"];
/// The extension's number (RFC 9849 §5).
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
/// Another one's (RFC 6066 §3).
const SERVER_NAME: u16 = 0;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Too few to say.
    More,
    /// Neither TLS nor, so far, HTTP: [`Hello::line`] says whether what follows may make it a request, [`Hello::records`]
    /// where a ClientHello may come.
    Other,
    /// An HTTP request in clear.
    Http,
    /// Not TLS, and what some HTTP servers read as a request and others refuse.
    Unclear,
    /// A whole ClientHello.
    Hello {
        /// The server's name, if there is one.
        name: Option<String>,
        /// Whether there is an inner ClientHello that only the server can read, or one that looks so (GREASE).
        encrypted: bool,
    },
    /// TLS, but no ClientHello that a server would take or that can be judged; or what would hide one.
    Broken(String),
}

/// The first bytes of a connection.
#[derive(Default)]
pub struct Hello {
    acceptor: Acceptor,
    seen: Vec<u8>,
    line: FirstLine,
    /// Bytes that the line was asked about.
    asked: usize,
    /// The line is not decided, and goes on.
    passes: bool,
    records: Records,
    /// Bytes that the records were followed through.
    followed: usize,
    /// Where the ClientHello's last record ends.
    end: usize,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Hello").field("seen", &self.seen.len()).finish_non_exhaustive()
    }
}

impl Hello {
    /// On port 80 a first line is waited for whatever it begins with; elsewhere only behind methods that are known, for
    /// protocols in which a client says one word and waits are not held up then.
    pub fn on_port(port: u16) -> Self {
        Self { line: FirstLine::new(port == 80), ..Self::default() }
    }

    /// Looks at the next bytes, and keeps them. Once the answer is not [`Seen::More`] no more bytes may be given.
    pub fn push(&mut self, bytes: &[u8]) -> Seen {
        self.seen.extend_from_slice(bytes);
        match self.seen.as_slice() {
            [] | [HANDSHAKE] => Seen::More,
            [HANDSHAKE, 3, ..] => self.hello(bytes.len()),
            // Servers overlook some of these, and take the ClientHello behind them.
            [CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA | HEARTBEAT, 3, ..] => {
                Seen::Broken("a TLS record before the ClientHello".into())
            }
            _ => self.clear(),
        }
    }

    /// What is TLS, with so many new bytes.
    fn hello(&mut self, count: usize) -> Seen {
        if self.seen.len() > LONGEST {
            return Seen::Broken("a ClientHello of more than 64 KiB".into());
        }
        // The first byte was kept back until the second one came.
        let new = count.max(if self.seen.len() == count.saturating_add(1) { self.seen.len() } else { 0 });
        let mut rest = self.seen.get(self.seen.len().saturating_sub(new)..).unwrap_or_default();
        while !rest.is_empty() {
            match self.acceptor.read_tls(&mut rest) {
                Ok(0) => return Seen::Broken("a ClientHello that does not end".into()),
                Ok(_) => {}
                Err(error) => return Seen::Broken(error.to_string()),
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    // rustls overlooks an address there; others choose by it.
                    if name.is_none() && may_have(&self.seen, SERVER_NAME) {
                        return Seen::Broken("an address for the server's name (SNI)".into());
                    }
                    let Some(end) = end_of_message(&self.seen) else {
                        return Seen::Broken("more than a ClientHello in its record".into());
                    };
                    self.end = end;
                    return Seen::Hello { name, encrypted: may_have(&self.seen, ENCRYPTED_CLIENT_HELLO) };
                }
                Err((error, _)) => return Seen::Broken(error.to_string()),
            }
        }
        Seen::More
    }

    /// What does not begin as TLS does. Each byte is looked at once.
    fn clear(&mut self) -> Seen {
        while let Some(byte) = self.seen.get(self.followed) {
            let found = self.records.push(std::slice::from_ref(byte));
            self.followed = self.followed.saturating_add(1);
            let seen = self.seen.get(..self.followed).unwrap_or_default();
            match found {
                Found::Hello(why) => return Seen::Broken(why.into()),
                Found::Begun if self.followed > LONGEST => {
                    return Seen::Broken("records without a ClientHello".into());
                }
                Found::Begun => continue,
                Found::Nothing | Found::Over => {}
            }
            // Some servers take one from anybody, and overlook what is missing.
            if PROXIED.contains(&seen) {
                return Seen::Broken("a PROXY protocol header before it".into());
            }
            if PROXIED.iter().any(|begun| begun.starts_with(seen)) {
                continue;
            }
            if let Some(seen) = self.first_line() {
                return seen;
            }
        }
        Seen::More
    }

    /// The first line of what is not TLS, as far as that is known.
    fn first_line(&mut self) -> Option<Seen> {
        while let Some(byte) = self.seen.get(self.asked..self.followed).and_then(|bytes| bytes.first()) {
            self.asked = self.asked.saturating_add(1);
            match self.line.push(*byte) {
                Line::Held => {}
                line @ (Line::Passing | Line::Other) => {
                    self.passes = line == Line::Passing;
                    return Some(Seen::Other);
                }
                Line::Request => return Some(Seen::Http),
                Line::Unclear => return Some(Seen::Unclear),
            }
        }
        None
    }

    /// What it is if no more bytes come.
    pub fn over(&self) -> Seen {
        match (self.seen.as_slice(), self.line.end()) {
            ([HANDSHAKE, 3, ..], _) => Seen::Broken("a ClientHello that does not end".into()),
            (_, Line::Request | Line::Unclear) => Seen::Unclear,
            _ => Seen::Other,
        }
    }

    /// After [`Seen::Other`]: the first line and the bytes that it was not asked about yet, if it may still become a request.
    pub fn line(&self) -> Option<(FirstLine, &[u8])> {
        self.passes.then(|| (self.line.clone(), self.seen.get(self.asked..).unwrap_or_default()))
    }

    /// After [`Seen::Other`], [`Seen::Http`] or [`Seen::Unclear`]: the records that a server of TLS could read in it, and the bytes
    /// that they were not followed through yet.
    pub fn records(&self) -> (Records, &[u8]) {
        (self.records.clone(), self.seen.get(self.followed..).unwrap_or_default())
    }

    /// After [`Seen::Hello`]: how many of the bytes are the ClientHello's records.
    pub fn end(&self) -> usize {
        self.end
    }

    /// All bytes that were looked at.
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// The same, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.seen
    }
}

/// Whether a well-formed ClientHello has the extension. One that this cannot walk through counts as if it had.
fn may_have(records: &[u8], kind: u16) -> bool {
    let message = handshake(records);
    extensions(&message).is_none_or(|kinds| kinds.contains(&kind))
}

/// Where the records of the first handshake message end; `None` when it is not whole, or another one begins in its last record.
fn end_of_message(records: &[u8]) -> Option<usize> {
    let (mut at, mut got, mut head) = (0usize, 0usize, Vec::with_capacity(4));
    loop {
        let (&[HANDSHAKE, _, _, high, low], rest) = records.get(at..)?.split_first_chunk::<5>()? else {
            return None;
        };
        let payload = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
        at = at.checked_add(5)?.checked_add(payload.len())?;
        got = got.checked_add(payload.len())?;
        head.extend(payload.iter().take(4usize.saturating_sub(head.len())));
        if let &[_, high, middle, low] = head.as_slice() {
            let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?.checked_add(4)?;
            if got >= length {
                return (got == length).then_some(at);
            }
        }
    }
}

/// The handshake bytes of records (RFC 8446 §5.1).
fn handshake(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some((&[HANDSHAKE, _, _, high, low], rest)) = records.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (payload, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        message.extend_from_slice(payload);
        records = after;
    }
    message
}

/// The kinds of extensions of a ClientHello (RFC 8446 §4.1.2, §4.2).
fn extensions(message: &[u8]) -> Option<Vec<u16>> {
    let (&[1, high, middle, low], rest) = message.split_first_chunk::<4>()? else { return None };
    let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()?;
    // Version and random.
    let rest = rest.get(..length)?.get(34..)?;
    let (_session, rest) = vector(rest, 1)?;
    let (_suites, rest) = vector(rest, 2)?;
    let (_compressions, rest) = vector(rest, 1)?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let (mut extensions, _) = vector(rest, 2)?;
    let mut kinds = Vec::new();
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        kinds.push(u16::from_be_bytes(*kind));
        extensions = vector(rest, 2)?.1;
    }
    extensions.is_empty().then_some(kinds)
}

/// A vector with its length in one or two bytes before it, and what comes after.
fn vector(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests;
