//! A hostile host that speaks HTTP/2: RFC 9113 from the client's side, and floods. Through TLS on both sides. What is malformed is 502 for the
//! guest or visibly breaks off, and the next request is served by a new connection or the same one.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::wire::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, field, fields, frame, literal, next, over_tls, setting,
};
use crate::support::{Client, HOST, Server, World, bytes, in_time, ok, run};

/// A host whose first connection answers the first request with `hostile`, and whose others are well-behaved.
fn host(tls: Arc<ServerConfig>, hostile: Vec<u8>) -> Server {
    let connections = Rc::new(Cell::new(0));
    let hostile = Rc::new(hostile);
    Server::new(move |stream| {
        let first = connections.replace(connections.get() + 1) == 0;
        let (tls, hostile) = (Arc::clone(&tls), Rc::clone(&hostile));
        tokio::task::spawn_local(async move {
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
            if first {
                if begun(&mut stream).await {
                    let _ = stream.write_all(&hostile).await;
                    let _ = stream.flush().await;
                    // Whatever else is asked on this connection is reset.
                    while let Some((kind, _, id, _)) = next(&mut stream).await {
                        if kind == HEADERS {
                            let _ = stream.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 2])).await;
                            let _ = stream.flush().await;
                        }
                    }
                }
                return;
            }
            let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                let _ = request.into_body().collect().await;
                Ok::<_, std::convert::Infallible>(ok("clean"))
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ = hyper::server::conn::http2::Builder::new(crate::support::Local)
                .serve_connection(io, service)
                .await;
        });
    })
}

/// Reads the preface and all up to the first request; sends SETTINGS.
async fn begun(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> bool {
    let mut preface = [0; PREFACE.len()];
    if stream.read_exact(&mut preface).await.is_err() || preface != PREFACE {
        return false;
    }
    let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
    let _ = stream.flush().await;
    while let Some((kind, ..)) = next(stream).await {
        if kind == HEADERS {
            return true;
        }
    }
    false
}

/// What the guest may get.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// 502, or a body that visibly breaks off.
    Nothing,
    /// This status, with a body of this many bytes.
    Whole(u16, usize),
}
use Expected::{Nothing, Whole};

struct Case {
    section: &'static str,
    name: &'static str,
    answer: Vec<u8>,
    expected: Expected,
}

fn case<const N: usize>(
    section: &'static str,
    name: &'static str,
    answer: [Vec<u8>; N],
    expected: Expected,
) -> Case {
    Case { section, name, answer: answer.concat(), expected }
}

fn head(more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &[fields(&[(":status", "200")]), fields(more)].concat())
}

fn only(list: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields(list))
}

fn body(flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, 1, bytes)
}

fn end() -> Vec<u8> {
    body(END_STREAM, b"ok")
}

fn good() -> [Vec<u8>; 2] {
    [head(&[]), end()]
}

fn framing() -> Vec<Case> {
    vec![
        case("5.1", "a plain answer", good(), Whole(200, 2)),
        case(
            "4.1",
            "unknown frames around the answer",
            [frame(0x7f, 0xff, 1, &[1; 99]), head(&[]), frame(0x7f, 0, 0, &[]), end()],
            Whole(200, 2),
        ),
        case(
            "4.2",
            "DATA over the size that was offered",
            [head(&[]), body(END_STREAM, &vec![0; 16_385])],
            Nothing,
        ),
        case(
            "4.3",
            "a block that cannot be decompressed",
            [frame(HEADERS, END_HEADERS, 1, &[0xff; 12])],
            Nothing,
        ),
        case(
            "4.3",
            "DATA within a block",
            [frame(HEADERS, 0, 1, &fields(&[(":status", "200")])), end()],
            Nothing,
        ),
        case("5.1", "DATA before the head", [end()], Nothing),
        case("5.1", "DATA on an idle stream", [frame(DATA, END_STREAM, 9, b"ok")], Nothing),
        case(
            "5.1",
            "an answer that nobody asked for",
            [frame(HEADERS, END_HEADERS, 9, &field(":status", "200"))],
            Nothing,
        ),
        case(
            "5.1.1",
            "a stream of the host's own",
            [frame(HEADERS, END_HEADERS, 2, &field(":status", "200"))],
            Nothing,
        ),
        case("5.1", "WINDOW_UPDATE of an idle stream", [frame(WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1])], Nothing),
        case("5.1", "RST_STREAM of an idle stream", [frame(RST_STREAM, 0, 9, &[0, 0, 0, 8])], Nothing),
        case("6.1", "DATA on stream 0", [head(&[]), frame(DATA, END_STREAM, 0, b"ok")], Nothing),
        case(
            "6.1",
            "padding as long as the frame",
            [head(&[]), body(END_STREAM | PADDED, &[6, 1, 2])],
            Nothing,
        ),
        case("6.1", "padded DATA", [head(&[]), body(END_STREAM | PADDED, b"\x03ok\0\0\0")], Whole(200, 2)),
        case(
            "6.2",
            "HEADERS on stream 0",
            [frame(HEADERS, END_HEADERS, 0, &field(":status", "200"))],
            Nothing,
        ),
        case("6.4", "the stream is reset", [frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])], Nothing),
        case(
            "6.4",
            "it is reset in the middle",
            [head(&[]), body(0, b"ok"), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])],
            Nothing,
        ),
        case("6.4", "RST_STREAM of 3 bytes", [frame(RST_STREAM, 0, 1, &[0; 3])], Nothing),
        case("6.5", "SETTINGS on a stream", [frame(SETTINGS, 0, 1, &[])], Nothing),
        case("6.5", "SETTINGS of 5 bytes", [frame(SETTINGS, 0, 0, &[0; 5])], Nothing),
        case("6.5", "an acknowledgement with a payload", [frame(SETTINGS, ACK, 0, &setting(3, 1))], Nothing),
        // A connection error by the letter; h2 passes over it, and takes no push all the same.
        case(
            "6.5.2",
            "a server that enables push",
            [frame(SETTINGS, 0, 0, &setting(2, 1)), head(&[]), end()],
            Whole(200, 2),
        ),
        case("6.5.2", "a window of 2^31", [frame(SETTINGS, 0, 0, &setting(4, 1 << 31))], Nothing),
        case("6.5.2", "frames of 2^24", [frame(SETTINGS, 0, 0, &setting(5, 1 << 24))], Nothing),
        case(
            "6.6",
            "a push, which we do not take",
            [
                frame(
                    PUSH_PROMISE,
                    END_HEADERS,
                    1,
                    &[&[0, 0, 0, 2], &fields(&over_tls("GET", "/evil"))[..]].concat(),
                ),
                frame(HEADERS, END_HEADERS | END_STREAM, 2, &field(":status", "200")),
            ],
            Nothing,
        ),
        case("6.7", "PING on a stream", [frame(PING, 0, 1, &[0; 8])], Nothing),
        case("6.7", "PING of 7 bytes", [frame(PING, 0, 0, &[0; 7])], Nothing),
        case("6.8", "GOAWAY instead of an answer", [frame(GOAWAY, 0, 0, &[0; 8])], Nothing),
        case(
            "6.8",
            "GOAWAY, then the answer",
            [frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]), head(&[]), end()],
            Whole(200, 2),
        ),
        case("6.9", "by 0 on the connection", [frame(WINDOW_UPDATE, 0, 0, &[0; 4])], Nothing),
        case("6.9", "by 0 on the stream", [frame(WINDOW_UPDATE, 0, 1, &[0; 4])], Nothing),
        case(
            "6.9.1",
            "a window over 2^31-1",
            [
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            ],
            Nothing,
        ),
        case("6.10", "CONTINUATION out of nowhere", [frame(CONTINUATION, END_HEADERS, 1, &[])], Nothing),
        case(
            "6.10",
            "a head in pieces",
            [
                frame(HEADERS, 0, 1, &field(":status", "200")),
                frame(CONTINUATION, 0, 1, &[]),
                frame(CONTINUATION, END_HEADERS, 1, &field("x-a", "1")),
                end(),
            ],
            Whole(200, 2),
        ),
        case(
            "3.4",
            "HTTP/1.1 although HTTP/2 was agreed on",
            [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()],
            Nothing,
        ),
    ]
}

fn messages() -> Vec<Case> {
    let with = |name, value| head(&[(name, value)]);
    let odd = [
        ("8.2.1", "a capital letter", with("X-a", "1")),
        ("8.2.1", "a line end in a value", with("x-a", "1\r\nx-evil: 1")),
        ("8.2.1", "a line end in a name", with("x-a\r\nx-evil", "1")),
        ("8.2.1", "NUL in a value", with("x-a", "1\0")),
        ("8.2.1", "a space in a name", with("x a", "1")),
        ("8.2.1", "a name of nothing", with("", "1")),
        ("8.2.2", "Connection", with("connection", "close")),
        ("8.2.2", "Transfer-Encoding", with("transfer-encoding", "chunked")),
        ("8.2.2", "Upgrade", with("upgrade", "websocket")),
        ("8.3", "an unknown pseudo-field", with(":evil", "1")),
        ("8.3", "a pseudo-field behind a field", {
            frame(HEADERS, END_HEADERS, 1, &fields(&[("x-a", "1"), (":status", "200")]))
        }),
        ("8.3.2", "two statuses", with(":status", "204")),
        ("8.3.2", "no status", frame(HEADERS, END_HEADERS, 1, &field("x-a", "1"))),
        ("8.3.2", "a status that is none", frame(HEADERS, END_HEADERS, 1, &field(":status", "abc"))),
        ("8.3.2", "a status of four digits", frame(HEADERS, END_HEADERS, 1, &field(":status", "2000"))),
        ("8.3.2", "a status of two digits", frame(HEADERS, END_HEADERS, 1, &field(":status", "20"))),
        ("8.3.2", "an empty status", frame(HEADERS, END_HEADERS, 1, &field(":status", ""))),
        ("8.6", "101, which HTTP/2 has not", frame(HEADERS, END_HEADERS, 1, &field(":status", "101"))),
        ("8.1.1", "less than was said", head(&[("content-length", "9")])),
        ("8.1.1", "more than was said", head(&[("content-length", "1")])),
        ("8.1.1", "two lengths", head(&[("content-length", "2"), ("content-length", "99")])),
        ("8.1.1", "a length that is none", head(&[("content-length", "2x")])),
    ];
    let odd = odd.map(|(section, name, head)| case(section, name, [head, end()], Nothing));
    let hint = || frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "103"), ("link", "</a>")]));
    let more = [
        case("8.1", "trailers", [head(&[]), body(0, b"ok"), only(&[("x-sum", "2")])], Whole(200, 2)),
        case(
            "8.1",
            "trailers that do not end the stream",
            [head(&[]), body(0, b"ok"), frame(HEADERS, END_HEADERS, 1, &field("x-sum", "2")), end()],
            Nothing,
        ),
        // Malformed by the letter; h2 drops pseudo-fields where they mean nothing.
        case(
            "8.1",
            "a status in trailers",
            [head(&[]), body(0, b"ok"), only(&[(":status", "500")])],
            Whole(200, 2),
        ),
        case("8.3", "a request's pseudo-field", [head(&[(":path", "/evil")]), end()], Whole(200, 2)),
        case("8.1", "a hint, then the answer", [hint(), head(&[]), end()], Whole(200, 2)),
        case("8.1", "a hint that ends the stream", [only(&[(":status", "103")])], Nothing),
        case("8.1", "a hint behind the head", [head(&[]), hint(), end()], Nothing),
        case("8.1", "5,000 hints, then the answer", [hint().repeat(5000), head(&[]), end()], Whole(200, 2)),
        // On HTTP/2 it is a body like any other: the frames say where it ends.
        case(
            "8.1",
            "204 with a body",
            [frame(HEADERS, END_HEADERS, 1, &field(":status", "204")), end()],
            Whole(204, 2),
        ),
        case("8.1", "100,000 empty pieces", [head(&[]), body(0, &[]).repeat(100_000), end()], Nothing),
    ];
    odd.into_iter().chain(more).collect()
}

fn compression() -> Vec<Case> {
    let status = || field(":status", "200");
    let whole = |block: Vec<u8>| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    let bomb = [status(), literal(0x40, "x-a", &"a".repeat(4000)), vec![0xbe; 12_000]].concat();
    let long = |count: usize, size: usize| {
        let begin = frame(HEADERS, 0, 1, &status());
        let piece = frame(CONTINUATION, 0, 1, &field("x-a", &"a".repeat(size)));
        [begin, piece.repeat(count), frame(CONTINUATION, END_HEADERS, 1, &[]), end()].concat()
    };
    vec![
        case(
            "HPACK 6.1",
            "the static table",
            [frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88])],
            Whole(200, 0),
        ),
        case("HPACK 6.1", "index 0", [whole(vec![0x88, 0x80])], Nothing),
        case("HPACK 2.3.3", "an index behind both tables", [whole(vec![0x88, 0xfe])], Nothing),
        case("HPACK 6.3", "a table over what we allow", [whole(vec![0x3f, 0xff, 0xff, 0x7f, 0x88])], Nothing),
        case(
            "HPACK 5.2",
            "a string longer than its block",
            [whole(vec![0x88, 0, 3, b'x', b'-', b'a', 99])],
            Nothing,
        ),
        case(
            "HPACK 5.1",
            "an integer without an end",
            [whole([&[0x88, 0xff][..], &[0x80; 64]].concat())],
            Nothing,
        ),
        case("HPACK 6.2", "a bomb: 48 MB from 16 KB", [whole(bomb)], Nothing),
        case("10.5.1", "a head of 12 KB", [long(3, 4000)], Whole(200, 2)),
        case("10.5.1", "a head of 160 KB", [long(10, 16_000)], Nothing),
        case("10.5.1", "a head of 16 MB", [long(1000, 16_000)], Nothing),
        case(
            "10.5.1",
            "a head of nothing without an end",
            [{
                let begin = frame(HEADERS, 0, 1, &status());
                [begin, frame(CONTINUATION, 0, 1, &[]).repeat(20_000)].concat()
            }],
            Nothing,
        ),
    ]
}

async fn outcome(case: &Case) -> Result<(), String> {
    let world = World::new();
    let server = host(world.authority.server(&[HOST], &["h2"]), case.answer.clone());
    let mut client = world.client(&["h2"], server).await;
    let ask = || Request::get("/").body(bytes("")).expect("a request");
    match client.send(ask()).await {
        // The stream was reset before there was a head.
        Err(_) if case.expected == Nothing => {}
        Err(error) => return Err(format!("no answer: {error}")),
        Ok(response) => {
            let (head, body) = response.into_parts();
            let body = body.collect().await.map(http_body_util::Collected::to_bytes);
            let shown = format!("{} with {body:?}", head.status);
            if head.headers.contains_key("x-evil") {
                return Err("a smuggled field".into());
            }
            let holds = match case.expected {
                Nothing => head.status == 502 || body.is_err(),
                Whole(status, length) => head.status == status && body.is_ok_and(|body| body.len() == length),
            };
            if !holds {
                return Err(shown);
            }
        }
    }
    // The first connection, where it goes on, serves the second request too.
    if case.expected == Nothing {
        let (head, body) = second(&mut client).await?;
        if !(head == 200 && body == "clean" || head == 502) {
            return Err(format!("the second answer is {head} {body}"));
        }
    }
    Ok(())
}

async fn second(client: &mut Client) -> Result<(u16, String), String> {
    let request = Request::get("/").body(bytes("")).expect("a request");
    let response = client.send(request).await.map_err(|error| format!("no second answer: {error}"))?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| format!("no second body: {error}"))?.to_bytes();
    Ok((head.status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
}

/// RFC 9113 from the client's side.
#[test]
fn a_hostile_host_sends_no_http2_that_confuses() {
    run(async {
        let cases: Vec<Case> = [framing(), messages(), compression()].into_iter().flatten().collect();
        let mut wrong = Vec::new();
        for case in &cases {
            if let Err(what) = in_time(outcome(case)).await {
                wrong.push(format!("§{} {}: {:?}, but {what}", case.section, case.name, case.expected));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        let text = include_str!("../../../../docs/interception.md");
        assert!(text.contains(&format!("{} answers over HTTP/2", cases.len())), "{} cases", cases.len());
    });
}

/// What a host sends without end and without reading what we answer to it: it is held back, and nothing is collected for it.
#[test]
fn floods_of_a_host_that_does_not_read_are_held_back() {
    run(async {
        let settings = frame(SETTINGS, 0, 0, &setting(3, 100));
        for (name, piece) in [("PING", frame(PING, 0, 0, &[7; 8])), ("SETTINGS", settings)] {
            let world = World::new();
            let sent = Rc::new(Cell::new(0usize));
            let count = Rc::clone(&sent);
            let tls = world.authority.server(&[HOST], &["h2"]);
            let piece = Rc::new(piece.repeat(50));
            let server = Server::new(move |stream| {
                let (tls, count, piece) = (Arc::clone(&tls), Rc::clone(&count), Rc::clone(&piece));
                tokio::task::spawn_local(async move {
                    let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.expect("TLS");
                    assert!(begun(&mut stream).await);
                    while stream.write_all(&piece).await.is_ok() {
                        count.set(count.get() + piece.len());
                    }
                });
            });
            let mut client = world.client(&["h2"], server).await;
            let request = Request::get("/").body(bytes("")).expect("a request");
            let asked = tokio::task::spawn_local(async move { client.send(request).await.is_ok() });
            let mut last = usize::MAX;
            // Quiet once a thousand turns took nothing more.
            while last != sent.get() || last == 0 {
                last = sent.get();
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                assert!(last < 8 << 20, "{name}: {last} bytes are taken of a host that reads nothing");
            }
            asked.abort();
        }
    });
}

/// Rapid reset from the other side: the host resets whatever is asked.
#[test]
fn a_host_that_resets_all_costs_the_guest_its_answers_alone() {
    run(async {
        let world = World::new();
        let tls = world.authority.server(&[HOST], &["h2"]);
        let server = Server::new(move |stream| {
            let tls = Arc::clone(&tls);
            tokio::task::spawn_local(async move {
                let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else {
                    return;
                };
                let mut preface = [0; PREFACE.len()];
                let _ = stream.read_exact(&mut preface).await;
                let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
                while let Some((kind, _, id, _)) = next(&mut stream).await {
                    if kind == HEADERS {
                        let _ = stream.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, 7])).await;
                        let _ = stream.flush().await;
                    }
                }
            });
        });
        let mut client = world.client(&["h2"], server).await;
        for number in 0..200 {
            let request = Request::get(format!("/{number}")).body(bytes("")).expect("a request");
            let response = client.send(request).await.expect("an answer");
            assert_eq!(response.status(), 502, "{number}");
            let _ = response.into_body().collect().await;
        }
        assert_eq!(world.records(200).await.len(), 200);
    });
}
