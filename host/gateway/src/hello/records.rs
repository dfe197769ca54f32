//! Records of TLS in what does not begin as TLS does. Servers are lenient while they do not know the client's version: s2n takes a record of any
//! version, and overlooks those of each type that it does not know, as RFC 4346 §6 has it; others overlook warnings. What such a
//! server reads is followed here: each byte is looked at once, and contents are not kept.

use super::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEARTBEAT};

/// Bytes of a record's header.
const HEADER: usize = 5;
/// Bytes up to the end of the three lengths in SSL 2.0's form of a ClientHello.
const OLD: usize = 11;
/// Bytes of alerts and of what else is short in TLS.
const SHORT: u16 = 2;
/// What a ClientHello's length can be: version, random and three empty vectors; all that its vectors hold.
const LENGTHS: std::ops::RangeInclusive<u32> = 38..=131_396;
/// The longest challenge of SSL 2.0's form that all take who do not look at its whole length.
const CHALLENGE: usize = 32;

/// What was found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing but what may become a ClientHello, or what some overlook before it.
    Begun,
    /// Nothing that looks like TLS. A ClientHello may come behind it.
    Nothing,
    /// A ClientHello, and what is wrong with it.
    Hello(&'static str),
    /// Something that no server of TLS goes on behind.
    Over,
}

/// The records of a connection, as a lenient server reads them.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// What a record begins with, while that is not decided.
    head: Vec<u8>,
    /// Bytes of its content that are to come.
    left: usize,
    /// These are of a handshake message.
    handshake: bool,
    /// A message's first bytes: its type and its length.
    message: Vec<u8>,
    /// There was a record of another type.
    behind: bool,
    /// There was one that no client of TLS sends before its ClientHello.
    strange: bool,
    over: bool,
}

impl Records {
    /// Looks at the next bytes. After [`Found::Hello`] and [`Found::Over`] it is asked no more.
    pub fn push(&mut self, mut bytes: &[u8]) -> Found {
        while let Some((first, rest)) = bytes.split_first().filter(|_| !self.over) {
            if self.left > 0 {
                let (content, rest) = bytes.split_at(self.left.min(bytes.len()));
                bytes = rest;
                if let Some(why) = self.content(content) {
                    return Found::Hello(why);
                }
                continue;
            }
            // A stream of zeros is one of empty records: all at once.
            if self.behind && self.head.is_empty() && *first == 0 {
                let zeros = zeros(bytes);
                let whole = zeros.saturating_sub(zeros % HEADER);
                if whole > 0 {
                    self.begin(0, 0);
                    bytes = bytes.get(whole..).unwrap_or_default();
                    continue;
                }
            }
            // Most others, at once.
            if let Some((&[kind @ 0..=0x7f, _, _, high, low], rest)) = bytes.split_first_chunk::<HEADER>()
                && self.behind
                && self.head.is_empty()
            {
                bytes = rest;
                self.begin(kind, u16::from_be_bytes([high, low]));
                continue;
            }
            bytes = rest;
            self.head.push(*first);
            match is_old_hello(&self.head, self.behind) {
                Some(true) => return Found::Hello("an SSL 2.0 ClientHello, which has no name"),
                Some(false) => {}
                None => continue,
            }
            let Some(&[kind, _, _, high, low]) = self.head.first_chunk::<HEADER>() else { continue };
            let then = self.head.split_off(HEADER);
            self.head.clear();
            self.begin(kind, u16::from_be_bytes([high, low]));
            if let found @ Found::Hello(_) = self.push(&then) {
                return found;
            }
        }
        match (self.over, self.is_begun()) {
            (true, _) => Found::Over,
            (false, true) => Found::Begun,
            (false, false) => Found::Nothing,
        }
    }

    /// A record of this type and length.
    fn begin(&mut self, kind: u8, length: u16) {
        self.left = usize::from(length);
        self.handshake = kind == HANDSHAKE;
        self.behind |= !self.handshake;
        self.strange |= !(self.handshake || is_other(kind) && length <= SHORT);
    }

    /// The next bytes of a record's content; what is wrong with the ClientHello that they are of.
    fn content(&mut self, bytes: &[u8]) -> Option<&'static str> {
        self.left = self.left.saturating_sub(bytes.len());
        if !self.handshake {
            return None;
        }
        self.message.extend(bytes.iter().take(4usize.saturating_sub(self.message.len())));
        match *self.message.as_slice() {
            [1, high, middle, low] if LENGTHS.contains(&u32::from_be_bytes([0, high, middle, low])) => {
                Some(match self.behind {
                    true => "another record before the ClientHello",
                    false => "a ClientHello in a record of a version that TLS has not",
                })
            }
            [] | [1] | [1, _] | [1, _, _] => None,
            _ => {
                self.over = true;
                None
            }
        }
    }

    /// Whether there is nothing so far but what may become a ClientHello, or what some overlook before it.
    fn is_begun(&self) -> bool {
        !self.strange
            && match *self.head.as_slice() {
                [] => true,
                [kind, ..] if kind == HANDSHAKE || is_other(kind) => true,
                // Telnet's negotiation can look like a version that nobody but s2n takes.
                [0x80..=0xff, ..] => {
                    self.head.get(3).is_none_or(|major| *major == 3)
                        && is_old_hello(&self.head, self.behind).is_none()
                }
                _ => false,
            }
    }
}

/// How many zeros these bytes begin with.
fn zeros(bytes: &[u8]) -> usize {
    // As many as are compared at once.
    const PIECE: usize = 64;
    let is_zero = |piece: &&[u8]| piece.iter().fold(0, |all, byte| all | byte) == 0;
    let pieces = bytes.chunks_exact(PIECE).take_while(is_zero).count().saturating_mul(PIECE);
    let rest = bytes.get(pieces..).unwrap_or_default();
    pieces.saturating_add(rest.iter().take_while(|byte| **byte == 0).count())
}

/// Whether a type is another one of TLS than the handshake's.
fn is_other(kind: u8) -> bool {
    matches!(kind, CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA | HEARTBEAT)
}

/// Whether a record is a ClientHello of SSL 2.0's form (RFC 5246 §E.2), which asks for no name; `None` while that cannot be said.
/// s2n takes one of any version, behind records that it overlooks; wolfSSL, as the first one, without the highest bit.
fn is_old_hello(head: &[u8], behind: bool) -> Option<bool> {
    match *head {
        [HANDSHAKE, ..] => return Some(false),
        [0..=0x7f, ..] if behind => return Some(false),
        [0..=0x7f, _, _, major, ..] if !matches!(major, 3 | 0xfe) => return Some(false),
        [_, _, kind, ..] if kind != 1 => return Some(false),
        _ => {}
    }
    // How long all of it is, its suites, its session and its challenge, as far as that is there.
    let at = |at: usize| head.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes)));
    let Some(room) = (at(0)? & 0x7fff).checked_sub(OLD.saturating_sub(2)).filter(|room| *room > 0) else {
        return Some(false);
    };
    // As a connection's beginning these say enough. Behind other records the bytes of an upload come here, and each start is another
    // chance for four of them to match.
    if let [0x80..=0xff, _, _, 3, ..] = *head
        && !behind
    {
        return Some(true);
    }
    let suites = at(5)?;
    let Some(room) = room.checked_sub(suites).filter(|_| suites > 0) else { return Some(false) };
    let Some(room) = room.checked_sub(at(7)?) else { return Some(false) };
    let challenge = at(9)?;
    Some(challenge == room || challenge <= room.min(CHALLENGE))
}
