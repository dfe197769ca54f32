//! PostgreSQL's requests for encryption. A client sends one before anything else and waits for one byte of the server's; behind a yes it
//! begins TLS, whose name some servers choose the database by (Traefik does so on every port).

/// What comes behind the length: SSLRequest's code, and that of GSSENCRequest, which may come before it (PostgreSQL's manual, §54.7).
const CODES: [[u8; 4]; 2] = [[0x04, 0xd2, 0x16, 0x2f], [0x04, 0xd2, 0x16, 0x30]];
/// Bytes of either.
const LENGTH: usize = 8;

/// What the bytes so far are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// They may become a request.
    Begun,
    /// No request.
    Nothing,
    /// A request, which ends behind so many bytes of the last piece.
    Whole(usize),
    /// One that is of another length. No client sends such a one, and PostgreSQL takes it: nobody agrees where it ends.
    Long,
}

/// The first message of a connection, or one behind a no.
#[derive(Clone, Debug, Default)]
pub struct Request {
    seen: Vec<u8>,
}

impl Request {
    /// Looks at the next bytes. After anything but [`Asks::Begun`] it is asked no more.
    pub fn push(&mut self, bytes: &[u8]) -> Asks {
        let end = LENGTH.saturating_sub(self.seen.len());
        self.seen.extend(bytes.iter().take(end));
        let Some((length, code)) = self.seen.split_first_chunk::<4>() else { return Asks::Begun };
        match CODES.iter().any(|known| known.starts_with(code)) {
            false => Asks::Nothing,
            true if self.seen.len() < LENGTH => Asks::Begun,
            true if *length == [0, 0, 0, 8] => Asks::Whole(end),
            true => Asks::Long,
        }
    }
}
