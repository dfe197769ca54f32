//! Several byte streams over one: what the guest's end of the SSH agent and the host's say to each other over a process's input and output.
//!
//! ```text
//! 0            4        8         8 + length
//! | connection | length | bytes ... |
//! ```
//! Both numbers are big-endian. A piece of no bytes ends its connection. Connection 0 is none: its one piece says that the guest listens.

/// The longest piece, in bytes.
pub const MAX_PIECE: usize = 64 * 1024;
/// Says that the guest listens.
pub const READY: u32 = 0;

/// Bytes before a piece.
const HEADER: usize = 8;

/// A piece that says it is longer than [`MAX_PIECE`]: nothing behind it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl std::fmt::Display for TooLong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a piece of more than {MAX_PIECE} bytes")
    }
}

impl std::error::Error for TooLong {}

/// A connection's bytes as pieces; none at all as the piece that ends it.
#[must_use]
pub fn written(connection: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER + bytes.len());
    let mut rest = bytes;
    loop {
        let (piece, after) = rest.split_at(rest.len().min(MAX_PIECE));
        out.extend_from_slice(&connection.to_be_bytes());
        // No more than MAX_PIECE.
        out.extend_from_slice(&u32::try_from(piece.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(piece);
        rest = after;
        if rest.is_empty() {
            return out;
        }
    }
}

/// Cuts a stream into pieces.
#[derive(Debug, Default)]
pub struct Pieces(Vec<u8>);

impl Pieces {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next piece, if all of it has come.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn next_piece(&mut self) -> Result<Option<(u32, Vec<u8>)>, TooLong> {
        let Some((connection, rest)) = self.0.split_first_chunk::<4>() else { return Ok(None) };
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let connection = u32::from_be_bytes(*connection);
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_PIECE {
            return Err(TooLong);
        }
        let Some(bytes) = rest.get(..length) else { return Ok(None) };
        let bytes = bytes.to_vec();
        self.0.drain(..HEADER + length);
        Ok(Some((connection, bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_wherever_the_stream_breaks() {
        let long = vec![7; MAX_PIECE + 1];
        let stream = [written(1, b"one"), written(2, &long), written(1, b"")].concat();
        let mut pieces = Pieces::default();
        let mut found = Vec::new();
        for chunk in stream.chunks(5) {
            pieces.feed(chunk);
            while let Some(piece) = pieces.next_piece().unwrap() {
                found.push(piece);
            }
        }
        let expected = [(1, b"one".to_vec()), (2, vec![7; MAX_PIECE]), (2, vec![7]), (1, Vec::new())];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_says_it_is_longer_is_refused_before_it_has_come() {
        let mut pieces = Pieces::default();
        pieces.feed(&[0, 0, 0, 1, 0, 1, 0, 1]);
        assert_eq!(pieces.next_piece(), Err(TooLong));
    }
}
