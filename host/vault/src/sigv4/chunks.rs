//! Bodies whose chunks are signed one by one (`aws-chunked`): each chunk is held, and passed on with its new signature. The signatures are as long
//! as before, so that the body's length stays.
//!
//! ```text
//! SIZE;chunk-signature=SIG CRLF data CRLF … 0;chunk-signature=SIG CRLF [name:value CRLF …] [x-amz-trailer-signature:SIG CRLF] CRLF
//! ```

use super::MAX_BUFFERED;
use super::keys::{SigningKey, hex_of_sha256};
use crate::refusal::Refusal;

/// The longest line, in bytes: a chunk's size, or a trailer.
const LONGEST_LINE: usize = 8 << 10;
/// Trailers of a body.
const MOST_TRAILERS: usize = 32;
const CHUNK_SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

/// Signs the chunks of one body anew.
pub struct ChunkSigner {
    key: SigningKey,
    date: String,
    scope: String,
    previous: String,
    has_trailer: bool,
    held: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A line with a chunk's size is due.
    Size,
    /// This many bytes and CRLF are due; `digits` is the size as it was written.
    Data { digits: String, size: usize },
    /// Trailers are due; these have come.
    Trailers(Vec<(String, String)>),
    /// All has come.
    End,
    /// Something was wrong.
    Failed,
}

impl ChunkSigner {
    pub(crate) fn new(key: SigningKey, date: String, scope: String, seed: String, has_trailer: bool) -> Self {
        Self { key, date, scope, previous: seed, has_trailer, held: Vec::new(), state: State::Size }
    }

    /// Takes a piece of the body, appends to `out` what can be sent. After a refusal the request must be broken off.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        self.held.extend_from_slice(bytes);
        let mut used = 0usize;
        let outcome = loop {
            match self.step(used, out) {
                Ok(Some(more)) => used = used.saturating_add(more),
                Ok(None) => break Ok(()),
                Err(refusal) => {
                    self.state = State::Failed;
                    break Err(refusal);
                }
            }
        };
        self.held.drain(..used.min(self.held.len()));
        outcome
    }

    /// The body is over.
    pub fn finish(&mut self) -> Result<(), Refusal> {
        match self.state {
            State::End if self.held.is_empty() => Ok(()),
            _ => Err(bad("ends before its last chunk")),
        }
    }

    /// One step from `used` on; how many bytes it took, or `None` if more must come first.
    fn step(&mut self, used: usize, out: &mut Vec<u8>) -> Result<Option<usize>, Refusal> {
        let rest = self.held.get(used..).unwrap_or_default();
        match &mut self.state {
            State::Size => {
                let Some((line, taken)) = line(rest)? else { return Ok(None) };
                let (digits, size) = size(line)?;
                self.state = State::Data { digits, size };
                Ok(Some(taken))
            }
            State::Data { digits, size: 0 } => {
                // The last chunk has no data, and no CRLF after it but that of the (empty) trailers.
                let signature = sign_chunk(&self.key, &self.date, &self.scope, &self.previous, &[]);
                out.extend_from_slice(format!("{digits}{CHUNK_SIGNATURE}{signature}\r\n").as_bytes());
                self.previous = signature;
                self.state = State::Trailers(Vec::new());
                Ok(Some(0))
            }
            State::Data { digits, size } => {
                let whole = size.saturating_add(2);
                let Some(chunk) = rest.get(..whole) else { return Ok(None) };
                let (data, end) = chunk.split_at(*size);
                if end != b"\r\n" {
                    return Err(bad("has a chunk that is longer than it says"));
                }
                let signature = sign_chunk(&self.key, &self.date, &self.scope, &self.previous, data);
                out.extend_from_slice(format!("{digits}{CHUNK_SIGNATURE}{signature}\r\n").as_bytes());
                out.extend_from_slice(chunk);
                self.previous = signature;
                self.state = State::Size;
                Ok(Some(whole))
            }
            State::Trailers(_) => {
                let Some((line, taken)) = line(rest)? else { return Ok(None) };
                let line = line.to_owned();
                self.trailer(&line, out)?;
                Ok(Some(taken))
            }
            State::End if rest.is_empty() => Ok(None),
            State::End => Err(bad("goes on after its end")),
            State::Failed => Err(bad("was refused before")),
        }
    }

    fn trailer(&mut self, line: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let State::Trailers(trailers) = &mut self.state else { return Ok(()) };
        if line.is_empty() {
            if self.has_trailer && !trailers.is_empty() {
                return Err(bad("has trailers without a signature"));
            }
            out.extend_from_slice(b"\r\n");
            self.state = State::End;
            return Ok(());
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("has a trailer without a value"))?;
        let name = name.trim().to_ascii_lowercase();
        let is_one = http::HeaderName::from_bytes(name.as_bytes()).is_ok()
            && http::HeaderValue::from_str(value).is_ok();
        if !self.has_trailer || trailers.len() >= MOST_TRAILERS || !is_one {
            return Err(bad("has trailers that were not announced, or too many of them"));
        }
        if name != TRAILER_SIGNATURE {
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
            trailers.push((name, value.trim().to_owned()));
            return Ok(());
        }
        let mut text = String::new();
        trailers.sort();
        for (name, value) in trailers.iter() {
            text.push_str(&format!("{name}:{value}\n"));
        }
        let signature = self.key.sign(&format!(
            "AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{}\n{}",
            self.date,
            self.scope,
            self.previous,
            hex_of_sha256(text.as_bytes())
        ));
        out.extend_from_slice(format!("{TRAILER_SIGNATURE}:{signature}\r\n").as_bytes());
        // Only the end may follow.
        trailers.clear();
        self.has_trailer = false;
        Ok(())
    }
}

impl std::fmt::Debug for ChunkSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkSigner").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

fn bad(what: &str) -> Refusal {
    Refusal::malformed(format!("the chunk-signed body {what}"))
}

/// The first line without its CRLF, and its length with it.
fn line(bytes: &[u8]) -> Result<Option<(&str, usize)>, Refusal> {
    let window = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(at) = memchr::memmem::find(window, b"\r\n") else {
        return if bytes.len() >= LONGEST_LINE { Err(bad("has a line without an end")) } else { Ok(None) };
    };
    let text = bytes
        .get(..at)
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or_else(|| bad("has a line that is no text"))?;
    Ok(Some((text, at.saturating_add(2))))
}

/// The size of a chunk, as it is written and as a number.
fn size(line: &str) -> Result<(String, usize), Refusal> {
    let (digits, signature) =
        line.split_once(CHUNK_SIGNATURE).ok_or_else(|| bad("has a chunk without a signature"))?;
    let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if signature.len() != 64 || !is_hex(signature) || !is_hex(digits) || !(1..=16).contains(&digits.len()) {
        return Err(bad("has a chunk with a size or signature that cannot be one"));
    }
    match usize::from_str_radix(digits, 16) {
        Ok(size) if size <= MAX_BUFFERED => Ok((digits.to_owned(), size)),
        _ => Err(Refusal::TooLarge { what: "a signed chunk", limit: MAX_BUFFERED }),
    }
}

/// "AWS4-HMAC-SHA256-PAYLOAD" over the signature before it and the data.
fn sign_chunk(key: &SigningKey, date: &str, scope: &str, previous: &str, data: &[u8]) -> String {
    /// SHA-256 of nothing: the place of headers that chunks do not have.
    const OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    key.sign(&format!(
        "AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{scope}\n{previous}\n{OF_NOTHING}\n{}",
        hex_of_sha256(data)
    ))
}
