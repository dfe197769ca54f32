//! RFC 7541: compressed fields.

use super::*;
use crate::support::wire::{CONTINUATION, literal, setting};

pub(super) fn cases() -> Vec<Case> {
    [indices(), tables(), integers_and_strings(), literals()].into_iter().flatten().collect()
}

fn with(more: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&get(), more].concat())
}

fn second(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 3, &[&get(), block].concat())
}

fn indices() -> Vec<Case> {
    // `:method: GET`, `:scheme: https`, `:path: /` of the static table.
    let indexed = [&[0x82, 0x87, 0x84][..], &literal(0, ":authority", HOST)].concat();
    vec![
        case(
            "HPACK 6.1",
            "the static table",
            Answer(1),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &indexed),
        ),
        case("HPACK 6.1", "index 0", Connection(&[COMPRESSION]), with(&[0x80])),
        case("HPACK 2.3.3", "an index behind both tables", Connection(&[COMPRESSION]), with(&[0xbe])),
        case(
            "HPACK 2.3.3",
            "a name's index behind both tables",
            Connection(&[COMPRESSION]),
            with(&[0x7e, 1, b'a']),
        ),
        case(
            "HPACK 2.3.3",
            "a field of the dynamic table",
            Answer(3),
            [with(&literal(0x40, "x-a", "1")), second(&[0xbe])],
        )
        .with_requests(2),
        case(
            "HPACK 2.3.3",
            "a field that was never put into the table",
            Connection(&[COMPRESSION]),
            [with(&literal(0x10, "x-a", "1")), second(&[0xbe])],
        )
        .with_requests(1),
        case(
            "HPACK 2.3.3",
            "a field that has left the table",
            Connection(&[COMPRESSION]),
            [
                with(&literal(0x40, "x-a", "1")),
                second(&[literal(0x40, "x-b", &"b".repeat(4090)), vec![0xbe]].concat()),
            ],
        )
        .with_requests(1),
        case(
            "HPACK 2.3.3",
            "the table outlives a refused request",
            Answer(3),
            [with(&[literal(0x40, "x-a", "1"), literal(0, "connection", "close")].concat()), second(&[0xbe])],
        ),
    ]
}

fn tables() -> Vec<Case> {
    let begin = |update: &[u8]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[update, &get()].concat());
    vec![
        case("HPACK 4.2", "a change of size behind a field", Connection(&[COMPRESSION]), with(&[0x20])),
        // An error by the letter; h2 takes it at the beginning of each piece, and it only makes our table smaller.
        case(
            "HPACK 4.2",
            "a change of size within a block's pieces",
            Answer(1),
            [frame(HEADERS, END_STREAM, 1, &get()), frame(CONTINUATION, END_HEADERS, 1, &[0x20])],
        ),
        case("HPACK 6.3", "a table of no size", Answer(1), begin(&[0x20])),
        case("HPACK 6.3", "to nothing and back", Answer(1), begin(&[0x20, 0x3f, 0xe1, 0x1f])),
        case("HPACK 6.3", "over what we allow", Connection(&[COMPRESSION]), begin(&[0x3f, 0xe2, 0x1f])),
        case(
            "HPACK 6.3",
            "far over what we allow",
            Connection(&[COMPRESSION]),
            begin(&[0x3f, 0xff, 0xff, 0xff, 0x7f]),
        ),
        case(
            "HPACK 6.3",
            "the guest's own limit is another matter",
            Answer(1),
            [frame(SETTINGS, 0, 0, &setting(1, 0)), with(&literal(0x40, "x-a", "1"))],
        ),
    ]
}

fn integers_and_strings() -> Vec<Case> {
    let value = |bytes: &[u8]| {
        let mut out = vec![0, 3, b'x', b'-', b'a', bytes.len() as u8 | 0x80];
        out.extend(bytes);
        with(&out)
    };
    vec![
        case("HPACK 5.1", "an integer without an end", Connection(&[COMPRESSION]), {
            with(&[&[0xff][..], &[0x80; 64]].concat())
        }),
        case("HPACK 5.1", "an integer over 2^64", Connection(&[COMPRESSION]), {
            with(&[&[0xff][..], &[0xff; 10], &[0x7f]].concat())
        }),
        case("HPACK 5.1", "an integer that is cut off", Connection(&[COMPRESSION]), with(&[0xff])),
        case(
            "HPACK 5.2",
            "a string longer than its block",
            Connection(&[COMPRESSION]),
            with(&[0, 3, b'x', b'-', b'a', 99, b'1']),
        ),
        case(
            "HPACK 5.2",
            "a string of 2^28 bytes that are not there",
            Connection(&[COMPRESSION]),
            with(&[0, 0x7f, 0xff, 0xff, 0xff, 0x7f]),
        ),
        // "a" is 00011, padded with ones.
        case("HPACK 5.2", "Huffman", Answer(1), value(&[0x1f])),
        case("HPACK 5.2", "Huffman: padding of zeros", Connection(&[COMPRESSION]), value(&[0x18])),
        case("HPACK 5.2", "Huffman: padding over 7 bits", Connection(&[COMPRESSION]), value(&[0x1f, 0xff])),
        case(
            "HPACK 5.2",
            "Huffman: the end of strings",
            Connection(&[COMPRESSION]),
            value(&[0xff, 0xff, 0xff, 0xff]),
        ),
    ]
}

fn literals() -> Vec<Case> {
    // Over all limits when it is read out: 4 KiB, a thousand times.
    let bomb = [literal(0x40, "x-a", &"a".repeat(4000)), vec![0xbe; 1000]].concat();
    vec![
        case("HPACK 6.2", "indexed", Answer(1), with(&literal(0x40, "x-a", "1"))),
        case("HPACK 6.2", "not indexed", Answer(1), with(&literal(0, "x-a", "1"))),
        case("HPACK 6.2", "never indexed", Answer(1), with(&literal(0x10, "x-a", "1"))),
        case("HPACK 6.2", "larger than the table", Answer(1), with(&literal(0x40, "x-a", &"a".repeat(5000)))),
        case("HPACK 6.2", "a bomb", Malformed(1), with(&bomb)),
    ]
}
