//! Any bytes as the beginning of a connection, whole and in pieces: what is seen does not depend on how they came, and all
//! that was looked at is kept.

use gateway::hello::{Hello, Seen};

fn look(bytes: &[u8], piece: usize) -> Seen {
    let mut hello = Hello::default();
    let mut looked = 0;
    let mut seen = Seen::More;
    for piece in bytes.chunks(piece.max(1)) {
        looked += piece.len();
        seen = hello.push(piece);
        if seen != Seen::More {
            break;
        }
    }
    assert_eq!(hello.into_bytes(), bytes.get(..looked).expect("as many as were given"));
    seen
}

/// The first byte says how long the pieces are.
pub(crate) fn run(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    let whole = look(bytes, bytes.len());
    let parts = look(bytes, usize::from(*piece));
    match (&whole, &parts) {
        // More is known of a hello that broke when more of it was there.
        (Seen::Broken(_), Seen::Broken(_) | Seen::Hello { .. }) | (Seen::Hello { .. }, Seen::Broken(_)) => {}
        _ => assert_eq!(whole, parts),
    }
}
