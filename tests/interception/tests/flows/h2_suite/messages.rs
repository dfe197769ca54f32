//! §8: requests. What is malformed does not go on (§8.1.1).

use super::*;
use crate::support::wire::{DATA, field};

pub(super) fn cases() -> Vec<Case> {
    [bodies(), lengths(), names(), connection_fields(), pseudo(), targets()].into_iter().flatten().collect()
}

/// A GET with more fields behind its pseudo-fields.
fn with(more: &[(&str, &str)]) -> Vec<u8> {
    whole(&[get(), fields(more)].concat())
}

fn whole(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

fn without(name: &str) -> Vec<u8> {
    let rest: Vec<_> = over_tls("GET", "/").into_iter().filter(|(known, _)| *known != name).collect();
    whole(&fields(&rest))
}

fn instead(name: &str, value: &str) -> Vec<u8> {
    let list = over_tls("GET", "/").map(|(known, old)| (known, if known == name { value } else { old }));
    whole(&fields(&list))
}

fn trailers(flags: u8, list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, 1, &fields(list))
}

fn bodies() -> Vec<Case> {
    let body = || frame(DATA, 0, 1, b"body");
    vec![
        case("8.1", "trailers", Answer(1), [open(1), body(), trailers(END_STREAM, &[("x-sum", "4")])]),
        case("8.1", "trailers without a body", Answer(1), [open(1), trailers(END_STREAM, &[("x-sum", "0")])]),
        case(
            "8.1",
            "trailers that do not end the stream",
            Malformed(1),
            [open(1), body(), trailers(0, &[("x-sum", "4")])],
        ),
        // Malformed by the letter; h2 drops it, so nothing of it goes on.
        case(
            "8.1",
            "a pseudo-field in trailers",
            Answer(1),
            [open(1), body(), trailers(END_STREAM, &[(":method", "GET")])],
        ),
        case(
            "8.1",
            "a name in capitals in trailers",
            Malformed(1),
            [open(1), body(), trailers(END_STREAM, &[("X-Sum", "4")])],
        ),
        case(
            "8.1",
            "a connection's field in trailers",
            Malformed(1),
            [open(1), body(), trailers(END_STREAM, &[("connection", "close")])],
        ),
    ]
}

fn lengths() -> Vec<Case> {
    let said = |length: &str| {
        let block = [post(), fields(&[("content-length", length)])].concat();
        frame(HEADERS, END_HEADERS, 1, &block)
    };
    let data = |flags, bytes: &[u8]| frame(DATA, flags, 1, bytes);
    vec![
        case("8.1.1", "the length that was said", Answer(1), [said("4"), data(END_STREAM, b"body")]),
        case("8.1.1", "less than was said", Malformed(1), [said("5"), data(END_STREAM, b"body")]),
        case("8.1.1", "more than was said", Malformed(1), [said("3"), data(END_STREAM, b"body")]),
        case(
            "8.1.1",
            "less in several frames",
            Malformed(1),
            [said("9"), data(0, b"body"), data(END_STREAM, b"body")],
        ),
        case(
            "8.1.1",
            "more in several frames",
            Malformed(1),
            [said("7"), data(0, b"body"), data(END_STREAM, b"body")],
        ),
        case(
            "8.1.1",
            "less before trailers",
            Malformed(1),
            [said("5"), data(0, b"body"), trailers(END_STREAM, &[("x-a", "1")])],
        ),
        case("8.1.1", "a length without a body", Malformed(1), with(&[("content-length", "1")])),
        case("8.1.1", "two lengths", Malformed(1), with(&[("content-length", "0"), ("content-length", "1")])),
        case("8.1.1", "a length that is none", Malformed(1), with(&[("content-length", "-0")])),
        case(
            "8.1.1",
            "a length over 2^64",
            Malformed(1),
            with(&[("content-length", "18446744073709551616")]),
        ),
    ]
}

fn names() -> Vec<Case> {
    let odd = [
        ("a capital letter", "X-a"),
        ("a space", "x a"),
        ("a tab", "x\ta"),
        ("a colon within", "x:a"),
        ("a line end", "x\r\na"),
        ("NUL", "x\0"),
        ("DEL", "x\x7f"),
        ("a comma", "x,a"),
        ("a letter of two bytes", "xé"),
        ("nothing", ""),
    ];
    let names = odd.map(|(what, name)| {
        let mut case = case("8.2.1", "", Malformed(1), with(&[(name, "1")]));
        case.name = what;
        case
    });
    let values = [
        ("CR", "a\rb"),
        ("LF", "a\nb"),
        ("CR LF", "a\r\nb"),
        ("NUL in a value", "a\0b"),
        ("DEL in a value", "\x7f"),
    ];
    let values = values.map(|(what, value)| {
        let mut case = case("8.2.1", "", Malformed(1), with(&[("x-a", value)]));
        case.name = what;
        case
    });
    let passes = [
        case("8.2.1", "bytes over 0x7f in a value", Answer(1), with(&[("x-a", "é")])),
        case("8.2.1", "an empty value", Answer(1), with(&[("x-a", "")])),
        case("8.2.1", "cookies in several fields", Answer(1), with(&[("cookie", "a=1"), ("cookie", "b=2")])),
    ];
    names.into_iter().chain(values).chain(passes).collect()
}

fn connection_fields() -> Vec<Case> {
    let fields = [
        ("Connection", "connection", "close"),
        ("Keep-Alive", "keep-alive", "5"),
        ("Proxy-Connection", "proxy-connection", "close"),
        ("Transfer-Encoding", "transfer-encoding", "chunked"),
        ("Upgrade", "upgrade", "websocket"),
        ("TE that is not trailers", "te", "trailers, deflate"),
    ];
    let refused = fields.map(|(what, name, value)| {
        let mut case = case("8.2.2", "", Malformed(1), with(&[(name, value)]));
        case.name = what;
        case
    });
    refused
        .into_iter()
        .chain([case("8.2.2", "TE: trailers", Answer(1), with(&[("te", "trailers")]))])
        .collect()
}

fn pseudo() -> Vec<Case> {
    let mut cases = vec![
        case("8.3", "an unknown one", Malformed(1), with(&[(":unknown", "1")])),
        case("8.3", "an answer's", Malformed(1), with(&[(":status", "200")])),
        case("8.3", "one behind a field", Malformed(1), whole(&[field("x-a", "1"), get()].concat())),
        case("8.3", "one with a capital", Malformed(1), with(&[(":Path", "/")])),
        case("8.3.1", "no method", Malformed(1), without(":method")),
        case("8.3.1", "no scheme", Malformed(1), without(":scheme")),
        case("8.3.1", "no path", Malformed(1), without(":path")),
        case("8.3.1", "neither authority nor Host", Malformed(1), without(":authority")),
        case("8.3.1", "an empty path", Malformed(1), instead(":path", "")),
        case("8.3.1", "an empty authority", Malformed(1), instead(":authority", "")),
        case("8.3.1", "an empty method", Malformed(1), instead(":method", "")),
        case("8.3.1", "Host instead of the authority", Answer(1), {
            let rest: Vec<_> =
                over_tls("GET", "/").into_iter().filter(|(known, _)| *known != ":authority").collect();
            whole(&[fields(&rest), field("host", HOST)].concat())
        }),
        case("8.3.1", "Host beside the authority", Answer(1), with(&[("host", HOST)])),
        case("8.3.1", "another Host beside it", Malformed(1), with(&[("host", "evil.org")])),
    ];
    for (what, twice) in [("two methods", 0), ("two schemes", 1), ("two authorities", 2), ("two paths", 3)] {
        let again = over_tls("GET", "/")[twice];
        let mut case = case("8.3.1", "", Malformed(1), with(&[again]));
        case.name = what;
        cases.push(case);
    }
    cases
}

fn targets() -> Vec<Case> {
    let odd = [
        ("a path without its slash", ":path", "a"),
        ("a URL as the path", ":path", "https://evil.org/"),
        ("a space in the path", ":path", "/a b"),
        ("a line end in the path", ":path", "/\r\nHost: evil.org"),
        ("a request line in the path", ":path", "/ HTTP/1.1\r\nHost: evil.org\r\n\r\nGET /"),
        ("a space in the method", ":method", "GET /admin"),
        ("a line end in the method", ":method", "GET\r\n"),
        ("another scheme", ":scheme", "http"),
        ("a scheme that is none", ":scheme", "gopher"),
        ("a line end in the scheme", ":scheme", "https\r\n"),
        ("another authority", ":authority", "evil.org"),
        ("a user in the authority", ":authority", "user@api.example.com"),
        ("a path in the authority", ":authority", "api.example.com/evil"),
        ("another port", ":authority", "api.example.com:80"),
    ];
    let refused = odd.map(|(what, name, value)| {
        let mut case = case("8.3.1", "", Malformed(1), instead(name, value));
        case.name = what;
        case
    });
    let connect = [
        // Malformed by the letter; fragments are dropped, and what rules are asked about is what is sent: "/".
        case("8.3.1", "a fragment as the path", Answer(1), instead(":path", "#a")),
        case(
            "8.5",
            "CONNECT",
            Malformed(1),
            whole(&fields(&[(":method", "CONNECT"), (":authority", "evil.org:443")])),
        ),
        case("8.5", "CONNECT with a path", Malformed(1), instead(":method", "CONNECT")),
        case("8.5", "CONNECT without an authority", Malformed(1), whole(&fields(&[(":method", "CONNECT")]))),
        case(
            "8.5",
            "extended CONNECT, which was not offered",
            Malformed(1),
            whole(&[fields(&over_tls("CONNECT", "/")), field(":protocol", "websocket")].concat()),
        ),
        case("8.5", "a protocol without CONNECT", Malformed(1), with(&[(":protocol", "websocket")])),
    ];
    refused.into_iter().chain(connect).collect()
}
