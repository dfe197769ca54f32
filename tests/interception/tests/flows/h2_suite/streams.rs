//! §5: the states of a stream.

use super::*;
use crate::support::wire::{CONTINUATION, DATA, PRIORITY, RST_STREAM, WINDOW_UPDATE};

const CANCEL: [u8; 4] = [0, 0, 0, 8];

pub(super) fn cases() -> Vec<Case> {
    [idle(), half_closed(), closed(), identifiers(), priorities()].into_iter().flatten().collect()
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL)
}

fn update(stream: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1])
}

fn idle() -> Vec<Case> {
    vec![
        case("5.1", "idle: DATA", Connection(&[PROTOCOL]), frame(DATA, END_STREAM, 1, b"x")),
        case("5.1", "idle: RST_STREAM", Connection(&[PROTOCOL]), reset(1)),
        case("5.1", "idle: WINDOW_UPDATE", Connection(&[PROTOCOL]), update(1)),
        case(
            "5.1",
            "idle: CONTINUATION",
            Connection(&[PROTOCOL]),
            frame(CONTINUATION, END_HEADERS, 1, &get()),
        ),
        case("5.1", "idle: PRIORITY", Answer(1), [frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), request(1)]),
        case("5.1", "idle: a server's stream", Connection(&[PROTOCOL]), frame(DATA, 0, 2, b"x")),
    ]
}

/// The guest has ended its half; the answer is under way or has been.
fn half_closed() -> Vec<Case> {
    vec![
        case("5.1", "half-closed: DATA", Stream(1, &[STREAM_CLOSED]), [request(1), frame(DATA, 0, 1, b"x")])
            .with_requests(1),
        case("5.1", "half-closed: HEADERS", Connection(&[STREAM_CLOSED, PROTOCOL]), [request(1), request(1)])
            .with_requests(1),
        case(
            "5.1",
            "half-closed: CONTINUATION",
            Connection(&[PROTOCOL]),
            [request(1), frame(CONTINUATION, END_HEADERS, 1, &[])],
        )
        .with_requests(1),
        case("5.1", "half-closed: WINDOW_UPDATE", Answer(1), [request(1), update(1)]),
        case(
            "5.1",
            "half-closed: PRIORITY",
            Answer(1),
            [request(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])],
        ),
        case("5.1", "half-closed: RST_STREAM", Answer(3), [request(1), reset(1), request(3)])
            .with_requests(2),
    ]
}

fn closed() -> Vec<Case> {
    vec![
        case(
            "5.1",
            "reset by the guest: DATA",
            Stream(1, &[STREAM_CLOSED]),
            [open(1), reset(1), frame(DATA, END_STREAM, 1, b"x")],
        ),
        case(
            "5.1",
            "reset by the guest: HEADERS",
            Connection(&[STREAM_CLOSED, PROTOCOL]),
            [open(1), reset(1), request(1)],
        ),
        case(
            "5.1",
            "reset by the guest: CONTINUATION",
            Connection(&[PROTOCOL]),
            [open(1), reset(1), frame(CONTINUATION, END_HEADERS, 1, &[])],
        ),
        case(
            "5.1",
            "reset by the guest: WINDOW_UPDATE, PRIORITY, RST_STREAM",
            Answer(3),
            [open(1), reset(1), update(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), reset(1), request(3)],
        ),
        case(
            "5.1",
            "closed: trailers behind the end",
            Connection(&[STREAM_CLOSED, PROTOCOL]),
            [
                open(1),
                frame(DATA, END_STREAM, 1, b"x"),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(&[("x-a", "1")])),
            ],
        )
        .with_requests(1),
        case(
            "5.1",
            "closed: DATA behind the end",
            Stream(1, &[STREAM_CLOSED]),
            [open(1), frame(DATA, END_STREAM, 1, b"x"), frame(DATA, END_STREAM, 1, b"y")],
        )
        .with_requests(1),
    ]
}

fn identifiers() -> Vec<Case> {
    let many: Vec<u8> = (0..=100).flat_map(|number| open(number * 2 + 1)).collect();
    vec![
        case("5.1.1", "an even stream", Connection(&[PROTOCOL]), request(2)),
        case(
            "5.1.1",
            "a lower stream than before",
            Connection(&[PROTOCOL, STREAM_CLOSED]),
            [request(5), request(3)],
        )
        .with_requests(1),
        case("5.1.1", "streams that are left out", Answer(99), [request(7), request(99)]).with_requests(2),
        case("5.1.1", "the highest stream", Answer(0x7fff_ffff), request(0x7fff_ffff)),
        case("5.1.2", "one stream too many", Stream(201, &[REFUSED_STREAM, PROTOCOL]), many),
    ]
}

fn priorities() -> Vec<Case> {
    vec![
        case("5.3.1", "HEADERS that depend on themselves", Malformed(1), {
            let payload = [&[0, 0, 0, 1, 16][..], &get()].concat();
            frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, &payload)
        }),
        // RFC 9113 has no priorities any more: passed over.
        case("5.3.1", "PRIORITY of a stream on itself", Nothing, frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 16])),
    ]
}
