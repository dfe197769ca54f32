//! Any bytes as both sides of a connection's beginning, whole and in pieces: what is seen does not depend on how they came, all
//! that was looked at is kept, and what goes on is what came.

use gateway::hello::line::{FirstLine, Line};
use gateway::hello::postgres::{Asks, Request};
use gateway::hello::records::{Found, Records};
use gateway::hello::retry::{Next, Retry};
use gateway::hello::{Hello, Seen};

/// Bytes of the client's and of the server's that a [`Retry`] is given. With more its bounds decide, and those are met in pieces.
const MOST: (usize, usize) = (72 << 10, 1 << 10);

/// What is known of the client's bytes once all of them came.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    seen: Seen,
    /// If no more had come.
    over: Seen,
    /// Where the ClientHello ends.
    end: usize,
    /// What became of the first line and of the records, if it is no TLS so far.
    clear: Option<(Line, Found)>,
}

fn look(port: u16, bytes: &[u8], piece: usize) -> Known {
    let mut hello = Hello::on_port(port);
    let mut looked = 0;
    let mut seen = Seen::More;
    for piece in bytes.chunks(piece) {
        looked += piece.len();
        seen = hello.push(piece);
        if seen != Seen::More {
            break;
        }
    }
    let (kept, later) = bytes.split_at(looked);
    let line = match (&seen, hello.line()) {
        (Seen::Http, _) => Some(Line::Request),
        (Seen::Unclear, _) => Some(Line::Unclear),
        (Seen::Other, None) => Some(Line::Other),
        (Seen::Other, Some((line, rest))) => Some(ends(line, rest.iter().chain(later))),
        (Seen::More | Seen::Hello { .. } | Seen::Broken(_), _) => None,
    };
    let clear = line.map(|line| {
        let (records, rest) = hello.records();
        (line, found(records, [rest].into_iter().chain(later.chunks(piece))))
    });
    let (over, end) = (hello.over(), hello.end());
    assert_eq!(hello.into_bytes(), kept);
    assert!(end <= looked, "{end} of {looked}");
    Known { seen, over, end, clear }
}

/// What a first line is at its end.
fn ends<'a>(mut line: FirstLine, rest: impl IntoIterator<Item = &'a u8>) -> Line {
    for byte in rest {
        match line.push(*byte) {
            Line::Held | Line::Passing => {}
            end => return end,
        }
    }
    line.end()
}

/// What is found in records in the end.
fn found<'a>(mut records: Records, pieces: impl IntoIterator<Item = &'a [u8]>) -> Found {
    let mut found = records.push(&[]);
    for piece in pieces {
        if matches!(found, Found::Hello(_) | Found::Over) {
            break;
        }
        found = records.push(piece);
    }
    found
}

/// What the first message is as PostgreSQL's request, and where that ends.
fn asks<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Asks, usize) {
    let (mut request, mut before) = (Request::default(), 0);
    for piece in pieces {
        match request.push(piece) {
            Asks::Begun => before += piece.len(),
            Asks::Whole(end) => return (Asks::Whole(0), before + end),
            other => return (other, 0),
        }
    }
    (Asks::Begun, 0)
}

/// A flow behind its first ClientHello.
struct Behind {
    retry: Retry,
    /// The client's bytes that came.
    came: Vec<u8>,
    /// Those that went on.
    gone: Vec<u8>,
    /// What is looked at no further, without its bytes.
    last: Option<Next>,
}

impl Behind {
    fn new() -> Self {
        Self { retry: Retry::new(), came: Vec::new(), gone: Vec::new(), last: None }
    }

    fn client(&mut self, bytes: &[u8]) {
        if self.last.is_none() {
            self.came.extend_from_slice(bytes);
            let next = self.retry.push(bytes);
            self.next(next);
        }
    }

    fn server(&mut self, bytes: &[u8]) {
        if self.last.is_none() {
            let next = self.retry.answered(bytes);
            self.next(next);
        }
    }

    fn next(&mut self, next: Next) {
        let mut bytes = Vec::new();
        self.last = match next {
            Next::Pass(some) => {
                bytes = some;
                None
            }
            Next::Free(all) => {
                bytes = all;
                Some(Next::Free(Vec::new()))
            }
            Next::Again(seen, all) => {
                bytes = all;
                Some(Next::Again(seen, Vec::new()))
            }
            broken @ Next::Broken(_) => Some(broken),
        };
        self.gone.append(&mut bytes);
    }

    /// What it came to, and how many bytes went on; how many did so before it broke depends on the pieces.
    fn end(self) -> (Option<Next>, Option<usize>) {
        let gone = self.gone.len();
        assert_eq!(Some(self.gone.as_slice()), self.came.get(..gone), "what goes on is not what came");
        let all = gone == self.came.len();
        match self.last {
            None => assert_eq!(self.retry.is_cut(), !all),
            Some(Next::Free(_) | Next::Again(..)) => assert!(all, "{gone} of {}", self.came.len()),
            Some(_) => return (self.last, None),
        }
        (self.last, Some(gone))
    }
}

/// What follows a ClientHello, the server's first piece behind so many bytes of it.
fn behind(client: &[u8], server: &[u8], before: usize, piece: usize) {
    let (client, server) = (&client[..client.len().min(MOST.0)], &server[..server.len().min(MOST.1)]);
    let (first, rest) = client.split_at(before.min(client.len()));
    let mut parts = Behind::new();
    for piece in first.chunks(piece) {
        parts.client(piece);
    }
    let (mut said, mut asked) = (server.chunks(piece), rest.chunks(piece));
    loop {
        let turn = (said.next(), asked.next());
        if let Some(piece) = turn.0 {
            parts.server(piece);
        }
        if let Some(piece) = turn.1 {
            parts.client(piece);
        }
        if turn == (None, None) {
            break;
        }
    }
    // What comes behind an answer that asks for nothing is free: only so much of it can be compared.
    let mut whole = Behind::new();
    whole.client(&client[..parts.came.len()]);
    whole.server(server);
    assert_eq!(whole.end(), parts.end());
}

/// The first byte says how long the pieces are, the second one which port it is, two more how many of the client's bytes the server
/// waits for, and another two how many at the end are the server's.
pub(crate) fn run(data: &[u8]) {
    let Some((&[piece, port, before @ .., high, low], bytes)) = data.split_first_chunk::<6>() else { return };
    let (piece, port) = (usize::from(piece).max(1), if port & 1 == 1 { 80 } else { 443 });
    let server = usize::from(u16::from_be_bytes([high, low]));
    let (bytes, server) = bytes.split_at(bytes.len().saturating_sub(server));
    let all = bytes.len().max(1);

    let whole = look(port, bytes, all);
    let parts = look(port, bytes, piece);
    match (&whole.seen, &parts.seen) {
        // More is known of a hello that broke when more of it was there.
        (Seen::Broken(_), Seen::Broken(_) | Seen::Hello { .. }) | (Seen::Hello { .. }, Seen::Broken(_))
            if bytes.starts_with(&[22, 3]) => {}
        _ => assert_eq!(whole, parts),
    }

    let records = found(Records::default(), [bytes]);
    assert_eq!(found(Records::default(), bytes.chunks(piece)), records);
    // Nothing is overlooked or looked at twice where a flow begins to pass.
    if let Some(clear) = &whole.clear {
        assert_eq!(*clear, (ends(FirstLine::new(port == 80), bytes), records));
    }

    assert_eq!(asks(bytes.chunks(piece)), asks([bytes]));

    // Without a first ClientHello it is as if one had been there.
    let end = if matches!(whole.seen, Seen::Hello { .. }) { whole.end } else { 0 };
    behind(&bytes[end..], server, usize::from(u16::from_be_bytes(before)), piece);
}
