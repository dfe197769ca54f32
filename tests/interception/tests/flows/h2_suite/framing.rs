//! §3.4, §4 and §6: frames one by one.

use super::*;
use crate::support::wire::{
    ACK, CONTINUATION, DATA, GOAWAY, PADDED, PRIORITIZED, PRIORITY, PUSH_PROMISE, RST_STREAM, WINDOW_UPDATE,
    setting,
};

pub(super) fn cases() -> Vec<Case> {
    [start(), size(), data_and_headers(), small(), settings(), pings(), windows(), continuations()]
        .into_iter()
        .flatten()
        .collect()
}

fn start() -> Vec<Case> {
    let empty = || frame(SETTINGS, 0, 0, &[]);
    vec![
        case("3.4", "a preface, SETTINGS, a request", Answer(1), request(1)),
        case("3.4", "a preface of one wrong byte", Ended, vec![])
            .beginning([b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n".to_vec(), empty()]),
        case("3.4", "HTTP/1.1 although HTTP/2 was agreed on", Ended, vec![])
            .beginning(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec()),
        case("3.4", "the preface twice", Connection(&[PROTOCOL, FRAME_SIZE]), PREFACE.to_vec()),
        case("3.4", "SETTINGS with parameters at the start", Answer(1), request(1)).beginning([
            PREFACE.to_vec(),
            frame(SETTINGS, 0, 0, &[setting(1, 0), setting(3, 7), setting(4, 70_000)].concat()),
        ]),
        case("4.1", "an unknown kind of frame", Answer(1), [frame(0x7f, 0xff, 0, &[7; 99]), request(1)]),
        case("4.1", "an unknown kind on a stream", Answer(1), [frame(0x42, 0, 1, b"?"), request(1)]),
        case(
            "4.1",
            "flags that mean nothing",
            Answer(1),
            [frame(PING, 0x16, 0, &[1; 8]), frame(HEADERS, END_HEADERS | END_STREAM | 0x12, 1, &get())],
        ),
        case(
            "4.1",
            "the reserved bit",
            Answer(1),
            [
                frame(PING, 0, 0x8000_0000, &[1; 8]),
                frame(HEADERS, END_HEADERS | END_STREAM, 0x8000_0001, &get()),
            ],
        ),
        case(
            "5.5",
            "an unknown parameter",
            Answer(1),
            [frame(SETTINGS, 0, 0, &setting(0xf0f0, 1)), request(1)],
        ),
        case(
            "5.5",
            "an unknown frame within a header block",
            Connection(&[PROTOCOL]),
            [
                frame(HEADERS, END_STREAM, 1, &get()),
                frame(0x7f, 0, 0, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ],
        ),
    ]
}

fn size() -> Vec<Case> {
    vec![
        case(
            "4.2",
            "DATA of the largest size",
            Answer(1),
            [open(1), frame(DATA, END_STREAM, 1, &vec![1; 16_384])],
        ),
        case(
            "4.2",
            "DATA over the largest size",
            Connection(&[FRAME_SIZE]),
            [open(1), frame(DATA, END_STREAM, 1, &vec![1; 16_385])],
        ),
        case("4.2", "HEADERS over the largest size", Connection(&[FRAME_SIZE]), {
            let block = [get(), fields(&[("x-a", &"a".repeat(16_384))])].concat();
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
        }),
        case("4.2", "an unknown frame over the largest size", Connection(&[FRAME_SIZE]), {
            frame(0x7f, 0, 0, &vec![0; 16_385])
        }),
        case("4.3", "a block that cannot be decompressed", Connection(&[COMPRESSION]), {
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 12])
        }),
        case(
            "4.3",
            "PRIORITY within a block",
            Connection(&[PROTOCOL]),
            [
                frame(HEADERS, END_STREAM, 1, &get()),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ],
        ),
        case(
            "4.3",
            "another stream's HEADERS within a block",
            Connection(&[PROTOCOL]),
            [frame(HEADERS, END_STREAM, 1, &get()), request(3)],
        ),
        case("4.3", "a block in pieces of 16 bytes", Answer(1), pieces(16)),
        // Allowed by the letter; the number of pieces is bounded because of CVE-2024-27316.
        case("4.3", "a block in pieces of one byte", Connection(&[CALM]), pieces(1)),
    ]
}

/// A GET whose block is cut, also within its strings.
fn pieces(size: usize) -> Vec<u8> {
    let block = get();
    let (first, rest) = block.split_at(size);
    let more = rest.chunks(size).flat_map(|piece| frame(CONTINUATION, 0, 1, piece));
    let begin = frame(HEADERS, END_STREAM, 1, first);
    begin.into_iter().chain(more).chain(frame(CONTINUATION, END_HEADERS, 1, &[])).collect()
}

fn data_and_headers() -> Vec<Case> {
    vec![
        case("6.1", "DATA of a request", Answer(1), [open(1), frame(DATA, END_STREAM, 1, b"body")]),
        case(
            "6.1",
            "padded DATA",
            Answer(1),
            [open(1), frame(DATA, END_STREAM | PADDED, 1, &[&[5], &b"body"[..], &[0; 5]].concat())],
        ),
        case(
            "6.1",
            "DATA that is all padding",
            Answer(1),
            [open(1), frame(DATA, END_STREAM | PADDED, 1, &[&[200], &[0; 200][..]].concat())],
        ),
        case(
            "6.1",
            "empty DATA",
            Answer(1),
            [open(1), frame(DATA, 0, 1, &[]), frame(DATA, END_STREAM, 1, &[])],
        ),
        case("6.1", "DATA on stream 0", Connection(&[PROTOCOL]), frame(DATA, END_STREAM, 0, b"x")),
        case(
            "6.1",
            "padding as long as the frame",
            Connection(&[PROTOCOL]),
            [open(1), frame(DATA, END_STREAM | PADDED, 1, &[6, 1, 2, 3, 4, 5])],
        ),
        case(
            "6.1",
            "padded DATA without a length",
            Connection(&[PROTOCOL, FRAME_SIZE]),
            [open(1), frame(DATA, END_STREAM | PADDED, 1, &[])],
        ),
        case("6.2", "padded HEADERS", Answer(1), {
            let payload = [&[9][..], &get(), &[0; 9]].concat();
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &payload)
        }),
        case("6.2", "HEADERS with a priority", Answer(1), {
            let payload = [&[0x80, 0, 0, 0, 255][..], &get()].concat();
            frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, &payload)
        }),
        case("6.2", "HEADERS with padding and a priority", Answer(1), {
            let payload = [&[2, 0, 0, 0, 0, 16][..], &get(), &[0; 2]].concat();
            frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED | PADDED, 1, &payload)
        }),
        case("6.2", "HEADERS on stream 0", Connection(&[PROTOCOL]), request(0)),
        case(
            "6.2",
            "padding longer than the frame",
            Connection(&[PROTOCOL]),
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[0xff, 0x82]),
        ),
        case(
            "6.2",
            "a priority that is cut off",
            Connection(&[PROTOCOL, FRAME_SIZE]),
            frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, &[0, 0]),
        ),
    ]
}

fn small() -> Vec<Case> {
    vec![
        case("6.3", "PRIORITY on stream 0", Connection(&[PROTOCOL]), frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 1])),
        case("6.3", "PRIORITY of 4 bytes", Connection(&[FRAME_SIZE]), frame(PRIORITY, 0, 1, &[0; 4])),
        case("6.3", "PRIORITY of 6 bytes", Connection(&[FRAME_SIZE]), frame(PRIORITY, 0, 1, &[0; 6])),
        case(
            "6.3",
            "PRIORITY of a stream to come",
            Answer(1),
            [frame(PRIORITY, 0, 9, &[0, 0, 0, 3, 16]), request(1)],
        ),
        case(
            "6.4",
            "RST_STREAM on stream 0",
            Connection(&[PROTOCOL]),
            frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]),
        ),
        case(
            "6.4",
            "RST_STREAM of an idle stream",
            Connection(&[PROTOCOL]),
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
        ),
        case(
            "6.4",
            "RST_STREAM of 3 bytes",
            Connection(&[FRAME_SIZE]),
            [open(1), frame(RST_STREAM, 0, 1, &[0; 3])],
        ),
        case(
            "6.4",
            "RST_STREAM of 5 bytes",
            Connection(&[FRAME_SIZE]),
            [open(1), frame(RST_STREAM, 0, 1, &[0; 5])],
        ),
        case(
            "6.4",
            "RST_STREAM with an unknown code",
            Answer(3),
            [open(1), frame(RST_STREAM, 0, 1, &[0xff; 4]), request(3)],
        ),
        case(
            "6.6",
            "PUSH_PROMISE from a client",
            Connection(&[PROTOCOL]),
            [open(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &get()[..]].concat())],
        ),
        case("6.8", "GOAWAY on a stream", Connection(&[PROTOCOL]), frame(GOAWAY, 0, 1, &[0; 8])),
        case("6.8", "GOAWAY of 7 bytes", Connection(&[FRAME_SIZE]), frame(GOAWAY, 0, 0, &[0; 7])),
        case("6.8", "GOAWAY with words", Ended, frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\0that is all")),
        case("6.8", "GOAWAY with an unknown code", Ended, frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0xff, 0, 0, 0])),
    ]
}

fn settings() -> Vec<Case> {
    let one = |id, value| frame(SETTINGS, 0, 0, &setting(id, value));
    vec![
        case("6.5", "an acknowledgement of nothing", Answer(1), [frame(SETTINGS, ACK, 0, &[]), request(1)]),
        case(
            "6.5",
            "an acknowledgement with a payload",
            Connection(&[FRAME_SIZE]),
            frame(SETTINGS, ACK, 0, &setting(3, 1)),
        ),
        case("6.5", "SETTINGS on a stream", Connection(&[PROTOCOL]), frame(SETTINGS, 0, 1, &setting(3, 1))),
        case(
            "6.5",
            "SETTINGS of 5 bytes",
            Connection(&[FRAME_SIZE]),
            frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0]),
        ),
        case("6.5", "SETTINGS of 7 bytes", Connection(&[FRAME_SIZE]), frame(SETTINGS, 0, 0, &[0; 7])),
        case("6.5.2", "ENABLE_PUSH of 2", Connection(&[PROTOCOL]), one(2, 2)),
        case("6.5.2", "ENABLE_PUSH of 0", Answer(1), [one(2, 0), request(1)]),
        case("6.5.2", "a window of 2^31", Connection(&[FLOW_CONTROL]), one(4, 0x8000_0000)),
        case("6.5.2", "a window of 2^31-1", Answer(1), [one(4, 0x7fff_ffff), request(1)]),
        case("6.5.2", "frames of 2^14-1", Connection(&[PROTOCOL]), one(5, 16_383)),
        case("6.5.2", "frames of 2^14", Answer(1), [one(5, 16_384), request(1)]),
        case("6.5.2", "frames of 2^24-1", Answer(1), [one(5, 16_777_215), request(1)]),
        case("6.5.2", "frames of 2^24", Connection(&[PROTOCOL]), one(5, 16_777_216)),
        case("6.5.2", "a table of 2^32-1", Answer(1), [one(1, u32::MAX), request(1)]),
        case("6.5.2", "a list of fields of 2^32-1", Answer(1), [one(6, u32::MAX), request(1)]),
        case(
            "6.5.3",
            "the last of two values counts",
            Answer(1),
            [frame(SETTINGS, 0, 0, &[setting(4, 0), setting(4, 65_535)].concat()), request(1)],
        ),
        case("6.5.3", "a hundred SETTINGS", Answer(1), [one(3, 100).repeat(100), request(1)]),
    ]
}

fn pings() -> Vec<Case> {
    vec![
        case("6.7", "PING", Nothing, vec![]),
        case(
            "6.7",
            "an answer that nobody asked for",
            Answer(1),
            [frame(PING, ACK, 0, b"no asked"), request(1)],
        ),
        case("6.7", "PING on a stream", Connection(&[PROTOCOL]), frame(PING, 0, 1, &[0; 8])),
        case("6.7", "PING of 7 bytes", Connection(&[FRAME_SIZE]), frame(PING, 0, 0, &[0; 7])),
        case("6.7", "PING of 9 bytes", Connection(&[FRAME_SIZE]), frame(PING, 0, 0, &[0; 9])),
    ]
}

fn windows() -> Vec<Case> {
    let update = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let initial = |value| frame(SETTINGS, 0, 0, &setting(4, value));
    vec![
        case("6.9", "by 0 on the connection", Connection(&[PROTOCOL]), update(0, 0)),
        case("6.9", "by 0 on a stream", Stream(1, &[PROTOCOL]), [open(1), update(1, 0)]),
        case(
            "6.9",
            "WINDOW_UPDATE of 3 bytes",
            Connection(&[FRAME_SIZE]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
        ),
        case(
            "6.9",
            "WINDOW_UPDATE of 5 bytes",
            Connection(&[FRAME_SIZE]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 5]),
        ),
        case(
            "6.9.1",
            "a connection's window over 2^31-1",
            Connection(&[FLOW_CONTROL]),
            [update(0, 0x7fff_ffff), update(0, 0x7fff_ffff)],
        ),
        case(
            "6.9.1",
            "a stream's window over 2^31-1",
            Stream(1, &[FLOW_CONTROL]),
            [open(1), update(1, 0x7fff_ffff), update(1, 0x7fff_ffff)],
        ),
        case(
            "6.9.1",
            "an answer in a window of one byte at a time",
            Answer(1),
            [initial(1), request(1), update(1, 1).repeat(16)],
        ),
        case(
            "6.9.2",
            "a window that is opened after the request",
            Answer(1),
            [initial(0), request(1), initial(16)],
        ),
        case("6.9.2", "a window below zero", Answer(1), [initial(3), request(1), initial(0), update(1, 100)]),
        case(
            "6.9.2",
            "a change that takes a stream over 2^31-1",
            Connection(&[FLOW_CONTROL]),
            [initial(0), open(1), update(1, 0x7fff_ffff), initial(1)],
        ),
    ]
}

fn continuations() -> Vec<Case> {
    let begin = || frame(HEADERS, END_STREAM, 1, &get());
    let more = |flags, stream| frame(CONTINUATION, flags, stream, &fields(&[("x-a", "1")]));
    vec![
        case("6.10", "several", Answer(1), [begin(), more(0, 1), more(0, 1), more(END_HEADERS, 1)]),
        case("6.10", "an empty one", Answer(1), [begin(), frame(CONTINUATION, END_HEADERS, 1, &[])]),
        case("6.10", "on stream 0", Connection(&[PROTOCOL]), [begin(), more(END_HEADERS, 0)]),
        case("6.10", "of another stream", Connection(&[PROTOCOL]), [begin(), more(END_HEADERS, 3)]),
        case(
            "6.10",
            "behind HEADERS that had ended",
            Connection(&[PROTOCOL]),
            [frame(HEADERS, END_HEADERS, 1, &post()), more(END_HEADERS, 1)],
        ),
        case(
            "6.10",
            "behind one that had ended",
            Connection(&[PROTOCOL]),
            [frame(HEADERS, 0, 1, &post()), more(END_HEADERS, 1), more(END_HEADERS, 1)],
        ),
        case(
            "6.10",
            "behind DATA",
            Connection(&[PROTOCOL]),
            [open(1), frame(DATA, 0, 1, b"x"), more(END_HEADERS, 1)],
        ),
        case("6.10", "out of nowhere", Connection(&[PROTOCOL]), more(END_HEADERS, 1)),
    ]
}
