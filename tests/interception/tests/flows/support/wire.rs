//! HTTP/2 by hand (RFC 9113 §4, RFC 7541 §6), for peers that break its rules.

use std::collections::BTreeMap;

use tokio::io::{AsyncRead, AsyncReadExt};

use super::HOST;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const PRIORITIZED: u8 = 0x20;

/// A frame; the highest bit of `stream` is the reserved one.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// One parameter of a SETTINGS frame.
pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A length with a prefix of seven bits (RFC 7541 §5.1).
fn length(mut rest: usize, out: &mut Vec<u8>) {
    if rest < 127 {
        return out.push(rest as u8);
    }
    out.push(127);
    rest -= 127;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    out.push(rest as u8);
}

/// A literal field that is not indexed (RFC 7541 §6.2.2), without Huffman.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    literal(0, name, value)
}

/// A literal field: `first` says whether it is indexed (0x40), not indexed (0) or never (0x10).
pub(crate) fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![first];
    for text in [name, value] {
        length(text.len(), &mut out);
        out.extend(text.as_bytes());
    }
    out
}

pub(crate) fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    list.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The pseudo-fields of a request over TLS.
pub(crate) const fn over_tls(method: &'static str, path: &'static str) -> [(&'static str, &'static str); 4] {
    [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)]
}

/// What a peer sent.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The code of its GOAWAY.
    pub(crate) gone: Option<u32>,
    /// It ended the connection.
    pub(crate) ended: bool,
    /// The codes of its RST_STREAM frames, by stream.
    pub(crate) resets: BTreeMap<u32, u32>,
    /// By stream: was its answer 200?
    pub(crate) answers: BTreeMap<u32, bool>,
    /// By stream: the bytes of DATA, and whether the stream was ended.
    pub(crate) bodies: BTreeMap<u32, (usize, bool)>,
    /// The payloads of PINGs that it answered.
    pub(crate) pongs: Vec<Vec<u8>>,
    /// How many SETTINGS it acknowledged.
    pub(crate) acks: usize,
}

impl Seen {
    /// Takes in one more frame; false at the end.
    pub(crate) async fn read(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> bool {
        let Some((kind, flags, id, payload)) = next(stream).await else {
            self.ended = true;
            return false;
        };
        let code = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        match kind {
            GOAWAY => self.gone = Some(code(&payload[4..8])),
            RST_STREAM => _ = self.resets.insert(id, code(&payload[..4])),
            PING if flags & ACK != 0 => self.pongs.push(payload),
            SETTINGS if flags & ACK != 0 => self.acks += 1,
            HEADERS => {
                // What stands before the status may be a change of the table's size (RFC 7541 §6.3).
                let status = payload.iter().find(|byte| **byte & 0xe0 != 0x20);
                self.answers.entry(id).or_insert(status == Some(&0x88));
                self.bodies.entry(id).or_default().1 |= flags & END_STREAM != 0;
            }
            DATA => {
                let body = self.bodies.entry(id).or_default();
                body.0 += payload.len();
                body.1 |= flags & END_STREAM != 0;
            }
            _ => {}
        }
        true
    }

    /// Whether nothing more is to be said of a stream.
    pub(crate) fn is_over(&self, stream: u32) -> bool {
        self.resets.contains_key(&stream) || self.bodies.get(&stream).is_some_and(|body| body.1)
    }
}

/// The next frame: kind, flags, stream and payload.
pub(crate) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}
