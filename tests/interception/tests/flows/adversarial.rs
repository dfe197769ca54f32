//! Heads and bodies that two parsers may read differently: what the host sees, and what the guest is told.

use std::cell::Cell;
use std::rc::Rc;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support;

use crate::support::{HOST, Server, World, raw_exchange, request_lines, run, statuses};
use intercept::{Decision, FlowEnd};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What a guest sends, what the host's request lines are, what statuses come back.
struct Case {
    name: &'static str,
    sent: String,
    upstream: &'static [&'static str],
    statuses: &'static [u16],
}

fn case(
    name: &'static str,
    sent: impl Into<String>,
    upstream: &'static [&'static str],
    statuses: &'static [u16],
) -> Case {
    Case { name, sent: sent.into().replace("HOST", HOST), upstream, statuses }
}

/// Behind each case that leaves the connection open comes one more request: a smuggled one would stand before it.
const LAST: &str = "GET /last HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n";

fn lengths() -> Vec<Case> {
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    vec![
        case(
            "CL.TE: the chunks count, the connection ends",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}{LAST}"
            ),
            &["POST /a"],
            &[200],
        ),
        case(
            "TE.CL: the chunks count, the connection ends",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n{smuggled:.<92}\r\n0\r\n\r\n{LAST}"
            ),
            &["POST /a"],
            &[200],
        ),
        case(
            "two lengths",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n{LAST}"
            ),
            &[],
            &[400],
        ),
        case(
            "a list of lengths",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 4, 4\r\n\r\nbody{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a signed length",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: +4\r\n\r\nbody{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a negative length",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a hexadecimal length",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x4\r\n\r\nbody{LAST}"),
            &[],
            &[400],
        ),
        case(
            "an endless length",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 99999999999999999999999\r\n\r\n{LAST}"
            ),
            &[],
            &[400],
        ),
        case(
            "a coding that is not chunked",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "chunked is not last",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked, identity\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a coding before chunked",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n{LAST}"
            ),
            &[],
            &[501],
        ),
        case(
            "chunked twice",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{LAST}"
            ),
            &[],
            &[501],
        ),
        case(
            "a vertical tab before chunked",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a space before the colon",
            format!("POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "chunked in HTTP/1.0",
            format!("POST /a HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "an underscore is another field",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{LAST}"
            ),
            &["POST /a", "GET /last"],
            &[200, 200],
        ),
        case(
            "a body that looks like a request",
            format!(
                "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: {}\r\n\r\n{smuggled}{LAST}",
                smuggled.len()
            ),
            &["POST /a", "GET /last"],
            &[200, 200],
        ),
        case(
            "a length of no body",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\n\r\n{LAST}"),
            &["GET /a", "GET /last"],
            &[200, 200],
        ),
    ]
}

fn chunks() -> Vec<Case> {
    let chunked = "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n";
    vec![
        case(
            "chunks with extensions",
            format!("{chunked}2;a=b\r\nab\r\n1\r\nc\r\n0\r\n\r\n{LAST}"),
            &["POST /a", "GET /last"],
            &[200, 200],
        ),
        case(
            "leading zeros",
            format!("{chunked}0002\r\nab\r\n000\r\n\r\n{LAST}"),
            &["POST /a", "GET /last"],
            &[200, 200],
        ),
    ]
}

fn heads() -> Vec<Case> {
    vec![
        case("a plain request", LAST, &["GET /last"], &[200]),
        case(
            "two requests in one packet",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\n\r\n{LAST}"),
            &["GET /a", "GET /last"],
            &[200, 200],
        ),
        case("empty lines before a request", format!("\r\n\r\n{LAST}"), &["GET /last"], &[200]),
        case(
            "a folded line",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\r\n folded: 2\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a bare LF ends a line and goes on as CRLF",
            "GET /last HTTP/1.1\nHost: HOST\nConnection: close\n\n",
            &["GET /last"],
            &[200],
        ),
        case(
            "a bare CR in a value",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\rX-B: 2\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "NUL in a value",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\0\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "a space in a name",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nX A: 1\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case("no name", format!("GET /a HTTP/1.1\r\nHost: HOST\r\n: 1\r\n\r\n{LAST}"), &[], &[400]),
        case("no Host", format!("GET /a HTTP/1.1\r\n\r\n{LAST}"), &[], &[400]),
        case(
            "two Hosts",
            format!("GET /a HTTP/1.1\r\nHost: HOST\r\nHost: evil.org\r\nConnection: close\r\n\r\n{LAST}"),
            &[],
            &[400],
        ),
        case(
            "the same Host twice",
            "GET /a HTTP/1.1\r\nHost: HOST\r\nhOsT: HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[400],
        ),
        case("another Host", "GET /a HTTP/1.1\r\nHost: evil.org\r\nConnection: close\r\n\r\n", &[], &[421]),
        case(
            "a Host below ours",
            "GET /a HTTP/1.1\r\nHost: x.HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[421],
        ),
        case("another port", "GET /a HTTP/1.1\r\nHost: HOST:8080\r\nConnection: close\r\n\r\n", &[], &[421]),
        case(
            "a port that is none",
            "GET /a HTTP/1.1\r\nHost: HOST:99999\r\nConnection: close\r\n\r\n",
            &[],
            &[421],
        ),
        case("an empty port", "GET /a HTTP/1.1\r\nHost: HOST:\r\nConnection: close\r\n\r\n", &[], &[421]),
        case(
            "our port said",
            "GET /a HTTP/1.1\r\nHost: HOST:80\r\nConnection: close\r\n\r\n",
            &["GET /a"],
            &[200],
        ),
        case(
            "Host in capitals with a dot",
            "GET /a HTTP/1.1\r\nHost: API.EXAMPLE.COM.\r\nConnection: close\r\n\r\n",
            &["GET /a"],
            &[200],
        ),
        case(
            "a user in the Host",
            "GET /a HTTP/1.1\r\nHost: HOST@evil.org\r\nConnection: close\r\n\r\n",
            &[],
            &[400],
        ),
        case(
            "a list of Hosts",
            "GET /a HTTP/1.1\r\nHost: HOST, evil.org\r\nConnection: close\r\n\r\n",
            &[],
            &[400],
        ),
        case("an empty Host", "GET /a HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n", &[], &[400]),
        case(
            "a URL of ours",
            "GET http://HOST/a HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
            &["GET /a"],
            &[200],
        ),
        case(
            "a URL of another",
            "GET http://evil.org/a HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[421],
        ),
        case(
            "a URL of ours, Host of another",
            "GET http://HOST/a HTTP/1.1\r\nHost: evil.org\r\nConnection: close\r\n\r\n",
            &[],
            &[421],
        ),
        case(
            "a URL with a user",
            "GET http://HOST@evil.org/a HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[400],
        ),
        case(
            "a URL with another scheme",
            "GET https://HOST/a HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[421],
        ),
        case("CONNECT", "CONNECT HOST:80 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", &[], &[405]),
        case(
            "CONNECT to another",
            "CONNECT evil.org:443 HTTP/1.1\r\nHost: evil.org:443\r\nConnection: close\r\n\r\n",
            &[],
            &[405],
        ),
        case("an asterisk", "OPTIONS * HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n", &[], &[400]),
        case(
            "an authority as the target",
            "GET HOST:80 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n",
            &[],
            &[400],
        ),
        case("a space in the target", format!("GET /a b HTTP/1.1\r\nHost: HOST\r\n\r\n{LAST}"), &[], &[400]),
        case("another version", format!("GET /a HTTP/1.2\r\nHost: HOST\r\n\r\n{LAST}"), &[], &[400]),
        case("HTTP/0.9", "GET /a\r\n", &[], &[400]),
        case("no HTTP", "SSH-2.0-OpenSSH_10.0\r\n", &[], &[400]),
        case(
            "an upgrade to HTTP/2 is not taken",
            "GET /a HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
            &["GET /a"],
            &[200],
        ),
        case(
            "Connection cannot take away the length",
            "POST /a HTTP/1.1\r\nHost: HOST\r\nConnection: close, content-length\r\nContent-Length: 2\r\n\r\nab",
            &["POST /a"],
            &[200],
        ),
    ]
}

#[test]
fn each_odd_request_is_refused_or_reaches_the_host_in_one_reading() {
    run(async {
        for case in lengths().into_iter().chain(chunks()).chain(heads()) {
            let world = World::new();
            let (server, seen) = Server::raw(OK);
            let (guest, _flow) = world.open(80, server);
            let answer = raw_exchange(guest, case.sent.as_bytes()).await;
            let seen = seen.borrow().clone();
            assert_eq!(
                request_lines(&seen),
                case.upstream,
                "{}: {}",
                case.name,
                String::from_utf8_lossy(&seen)
            );
            let got = statuses(&answer);
            assert!(got.starts_with(case.statuses), "{}: {got:?}", case.name);
            let text = String::from_utf8_lossy(&seen).to_ascii_lowercase();
            assert!(!text.contains("http2-settings") && !text.contains("upgrade:"), "{}: {text}", case.name);
        }
    });
}

/// A chunk that is no chunk: the host's request is cut off, never completed.
#[test]
fn broken_chunks_break_the_request_off() {
    run(async {
        for body in [
            "zz\r\nab\r\n0\r\n\r\n",
            "2\r\nabc\r\n0\r\n\r\n",
            "ffffffffffffffffff\r\na",
            "2\nab\r\n0\r\n\r\n",
            "-2\r\nab\r\n0\r\n\r\n",
            "2 \x0b\r\nab\r\n0\r\n\r\n",
        ] {
            let world = World::new();
            let whole = Rc::new(Cell::new(false));
            let seen = Rc::clone(&whole);
            let server = Server::hyper(None, move |request| {
                let seen = Rc::clone(&seen);
                Box::pin(async move {
                    seen.set(request.into_body().collect().await.is_ok());
                    support::ok("")
                })
            });
            let (guest, flow) = world.open(80, server);
            let sent = format!(
                "POST /a HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{}",
                LAST.replace("HOST", HOST)
            );
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            assert!(!statuses(&answer).contains(&200), "{body:?}: {}", String::from_utf8_lossy(&answer));
            assert!(matches!(flow.await.expect("no panic"), FlowEnd::Broken(_) | FlowEnd::Closed));
            assert!(!whole.get(), "{body:?}: the host saw a whole body");
        }
    });
}

#[test]
fn heads_have_limits() {
    run(async {
        for (name, head, status) in [
            ("many fields", "X-A: 1\r\n".repeat(300), 431),
            ("a long field", format!("X-A: {}\r\n", "a".repeat(100_000)), 431),
            ("a long target", String::new(), 414),
        ] {
            let world = World::new();
            let (server, seen) = Server::raw(OK);
            let (guest, _flow) = world.open(80, server);
            let target = if status == 414 { "a".repeat(66_000) } else { String::new() };
            let sent = format!("GET /{target} HTTP/1.1\r\nHost: {HOST}\r\n{head}Connection: close\r\n\r\n");
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            let got = statuses(&answer);
            assert!(got == [status] || got == [431], "{name}: {got:?}");
            assert!(seen.borrow().is_empty(), "{name}");
        }
    });
}

/// What a host answers in order to split its answer or to confuse: the guest sees one clean answer or 502.
#[test]
fn odd_answers_do_not_reach_the_guest_as_they_are() {
    run(async {
        let cases: &[(&str, &'static [u8], &[u16])] = &[
            ("a bare CR in a field", b"HTTP/1.1 200 OK\r\nX-A: 1\rSet-Cookie: x=1\r\nContent-Length: 0\r\n\r\n", &[502]),
            ("NUL in a field", b"HTTP/1.1 200 OK\r\nX-A: 1\0\r\nContent-Length: 0\r\n\r\n", &[502]),
            ("a folded field", b"HTTP/1.1 200 OK\r\nX-A: 1\r\n Set-Cookie: x=1\r\nContent-Length: 0\r\n\r\n", &[502]),
            ("a space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\nContent-Length: 0\r\n\r\n", &[502]),
            ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 7\r\n\r\n", &[502]),
            ("a length that is none", b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n", &[502]),
            ("an unasked switch", b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", &[502]),
            ("no HTTP", b"220 smtp.example.com ESMTP\r\n\r\n", &[502]),
            ("a status that is none", b"HTTP/1.1 99999 OK\r\n\r\n", &[502]),
            ("a second answer behind the first", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil", &[200]),
            ("length and chunks", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", &[200]),
        ];
        for (name, answer, expected) in cases {
            let world = World::new();
            let (server, _) = Server::raw(answer);
            let (guest, _flow) = world.open(80, server);
            let sent = format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
            let got = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&got), *expected, "{name}: {}", String::from_utf8_lossy(&got));
            let text = String::from_utf8_lossy(&got).to_ascii_lowercase();
            let text = text.split("\r\n\r\n").next().expect("a head");
            assert!(!text.contains("set-cookie") && !text.contains("x-evil"), "{name}: {text}");
            assert!(
                text.matches("content-length").count() + text.matches("transfer-encoding").count() <= 1,
                "{name}: {text}"
            );
        }
    });
}

#[test]
fn a_mismatch_is_recorded_as_one() {
    run(async {
        let world = World::new();
        let (server, _) = Server::raw(OK);
        let dialled = server.dialled.clone();
        let (guest, _flow) = world.open(80, server);
        let sent = "GET /a?q=hush HTTP/1.1\r\nHost: evil.org\r\nConnection: close\r\n\r\n";
        raw_exchange(guest, sent.as_bytes()).await;
        let record = world.records(1).await.remove(0);
        assert_eq!((record.decision, record.status, record.path.as_str()), (Decision::Mismatch, 421, "/a"));
        assert!(record.detail.expect("a reason").contains("evil.org"));
        assert_eq!(dialled.get(), 0, "nothing went upstream");
    });
}

/// Requests that ask the connection to become something else and are answered otherwise: the answer is followed by a goodbye. Without one
/// (close_notify, here) the gateway would reset the guest's connection, and the answer with it.
#[test]
fn a_connection_that_stays_as_it_is_ends_with_a_goodbye() {
    run(async {
        for (lines, status) in [
            (format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}"), 405),
            (format!("GET /a HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: h2c"), 200),
            (format!("GET /a HTTP/1.1\r\nHost: {HOST}"), 200),
        ] {
            let world = World::new();
            let tls = world.authority.server(&[HOST], &["http/1.1"]);
            let server = Server::hyper(Some(tls), |_| Box::pin(async { support::ok("ok") }));
            let (guest, _flow) = world.open(443, server);
            let mut guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            guest.write_all(format!("{lines}\r\nConnection: close\r\n\r\n").as_bytes()).await.expect("open");
            let mut answer = Vec::new();
            guest.read_to_end(&mut answer).await.expect("a goodbye");
            assert_eq!(statuses(&answer), [status], "{lines}");
        }
    });
}
