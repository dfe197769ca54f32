//! HTTP/2 as a hostile client speaks it, after the cases of h2spec and the floods of recent years. Prior knowledge, so that frames can be
//! written by hand; behind TLS the same server reads them.

use crate::support;

use std::cell::Cell;
use std::rc::Rc;

use crate::support::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, field, fields, frame, next, setting,
};
use crate::support::{HOST, Server, World, ok, run};
use bytes::Bytes;
use http::{Method, Request, Uri};
use intercept::{Decision, FlowEnd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

fn get(path: &str) -> Vec<u8> {
    fields(&[(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", path)])
}

fn h2_server(count: &Rc<Cell<usize>>) -> Server {
    let count = Rc::clone(count);
    Server::new(move |stream| {
        let count = Rc::clone(&count);
        tokio::task::spawn_local(async move {
            let service = hyper::service::service_fn(move |_: Request<hyper::body::Incoming>| {
                count.set(count.get() + 1);
                async { Ok::<_, std::convert::Infallible>(ok("served")) }
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let _ =
                hyper::server::conn::http2::Builder::new(support::Local).serve_connection(io, service).await;
        });
    })
}

/// What ends it all: the error of the last GOAWAY, if there was one, and the errors of streams.
async fn outcome(stream: &mut DuplexStream) -> (Option<u32>, Vec<u32>) {
    let (mut gone, mut reset) = (None, Vec::new());
    let code = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    while let Some((kind, _, _, payload)) = next(stream).await {
        match kind {
            GOAWAY => gone = Some(code(&payload[4..8])),
            RST_STREAM => reset.push(code(&payload[..4])),
            _ => {}
        }
    }
    (gone, reset)
}

async fn started(world: &World, count: &Rc<Cell<usize>>) -> (DuplexStream, tokio::task::JoinHandle<FlowEnd>) {
    let (mut guest, flow) = world.open(80, h2_server(count));
    guest.write_all(PREFACE).await.expect("open");
    guest.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("open");
    (guest, flow)
}

/// RFC 9113's connection errors: each ends the connection with a GOAWAY, and no request comes of it.
#[test]
fn broken_frames_end_the_connection() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("DATA on stream 0", frame(DATA, 0, 0, b"x")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, &get("/"))),
        ("HEADERS on an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &get("/"))),
        ("DATA on an idle stream", frame(DATA, 0, 1, b"x")),
        ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0; 4])),
        ("RST_STREAM of 3 bytes", frame(RST_STREAM, 0, 1, &[0; 3])),
        ("WINDOW_UPDATE on an idle stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("WINDOW_UPDATE of 0 on the connection", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("WINDOW_UPDATE over 2^31-1", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("WINDOW_UPDATE of 3 bytes", frame(WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[])),
        ("SETTINGS of 5 bytes", frame(SETTINGS, 0, 0, &[0; 5])),
        ("SETTINGS ACK with a payload", frame(SETTINGS, 1, 0, &setting(3, 1))),
        ("SETTINGS: push is 2", frame(SETTINGS, 0, 0, &setting(2, 2))),
        ("SETTINGS: window over 2^31-1", frame(SETTINGS, 0, 0, &setting(4, 0x8000_0000))),
        ("SETTINGS: frame size under 2^14", frame(SETTINGS, 0, 0, &setting(5, 16_383))),
        ("SETTINGS: frame size over 2^24-1", frame(SETTINGS, 0, 0, &setting(5, 16_777_216))),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8])),
        ("PING of 7 bytes", frame(PING, 0, 0, &[0; 7])),
        ("PUSH_PROMISE from a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("CONTINUATION out of nowhere", frame(CONTINUATION, END_HEADERS, 1, &get("/"))),
        (
            "a PING within a header block",
            [frame(HEADERS, END_STREAM, 1, &get("/")), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "a CONTINUATION of another stream",
            [frame(HEADERS, END_STREAM, 1, &get("/")), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
        ),
        (
            "a field that cannot be decompressed",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("an index that is not in the table", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xbe, 0xbf])),
        (
            "a table larger than allowed",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x3f, 0xff, 0xff, 0x7f]),
        ),
        ("padding longer than the frame", frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[0xff, 0x82])),
        ("a frame over the size that was offered", frame(DATA, 0, 1, &vec![0; 16_385])),
        ("HTTP/1 behind the preface", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
    ];
    run(async {
        for (name, bytes) in cases {
            let world = World::new();
            let count = Rc::default();
            let (mut guest, flow) = started(&world, &count).await;
            guest.write_all(&bytes).await.expect("open");
            let (gone, _) = outcome(&mut guest).await;
            assert!(gone.is_some_and(|code| code != 0), "{name}: {gone:?}");
            assert!(matches!(flow.await.expect("no panic"), FlowEnd::Broken(_) | FlowEnd::Closed), "{name}");
            assert_eq!(count.get(), 0, "{name}");
        }
    });
}

/// RFC 9113 §8.2, §8.3: malformed requests. Each is reset or answered with an error, none goes on, and the connection serves the next one.
#[test]
fn malformed_requests_do_not_go_on() {
    let base = [(":method", "GET"), (":scheme", "http"), (":authority", HOST), (":path", "/")];
    let with = |more: &[(&str, &str)]| fields(&[&base[..], more].concat());
    let without = |name: &str| {
        let list: Vec<_> = base.into_iter().filter(|(known, _)| *known != name).collect();
        fields(&list)
    };
    let instead = |name: &str, value: &'static str| {
        let list: Vec<_> =
            base.into_iter().map(|(known, old)| (known, if known == name { value } else { old })).collect();
        fields(&list)
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a name in capitals", with(&[("X-Upper", "1")])),
        ("a Connection field", with(&[("connection", "close")])),
        ("a Transfer-Encoding field", with(&[("transfer-encoding", "chunked")])),
        ("an Upgrade field", with(&[("upgrade", "websocket")])),
        ("a Keep-Alive field", with(&[("keep-alive", "1")])),
        ("TE other than trailers", with(&[("te", "gzip")])),
        ("a pseudo-field after a field", [with(&[("x-a", "1")]), fields(&[(":path", "/b")])].concat()),
        ("an unknown pseudo-field", with(&[(":unknown", "1")])),
        ("an answer's pseudo-field", with(&[(":status", "200")])),
        ("two methods", with(&[(":method", "POST")])),
        ("two paths", with(&[(":path", "/b")])),
        ("two authorities", with(&[(":authority", "evil.org")])),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("an empty path", instead(":path", "")),
        ("a line end in a value", with(&[("x-a", "1\r\nx-b: 2")])),
        ("a line end in the path", instead(":path", "/\r\nHost: evil.org")),
        ("a space in the path", instead(":path", "/a HTTP/1.1")),
        ("NUL in a value", with(&[("x-a", "1\0")])),
        ("a line end in a name", with(&[("x-a\r\nx-b", "1")])),
        ("another authority", instead(":authority", "evil.org")),
        ("another port", instead(":authority", "api.example.com:81")),
        ("a user in the authority", instead(":authority", "x@api.example.com")),
        ("another Host", with(&[("host", "evil.org")])),
        ("two Hosts", with(&[("host", HOST), ("host", HOST)])),
        ("another scheme", instead(":scheme", "https")),
        ("a scheme that is none", instead(":scheme", "gopher")),
        ("no authority and no Host", without(":authority")),
        ("CONNECT", fields(&[(":method", "CONNECT"), (":authority", "evil.org:443")])),
        (
            "extended CONNECT",
            fields(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", HOST),
                (":path", "/"),
            ]),
        ),
        ("a length of a body that is not there", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
        ("dot segments", instead(":path", "/a/../b")),
        ("an asterisk", instead(":path", "*")),
    ];
    run(async {
        for (name, block) in cases {
            let world = World::new();
            let count = Rc::default();
            let (mut guest, _flow) = started(&world, &count).await;
            guest.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.expect("open");
            let ended = loop {
                let Some((kind, _, stream, payload)) = next(&mut guest).await else { break "the end" };
                match (kind, stream) {
                    (RST_STREAM, 1) => break "reset",
                    (GOAWAY, _) if payload[4..8] != [0; 4] => break "goaway",
                    // The status of 4xx and 501 answers: one of the static table's or a literal, never the indexed 200 (0x88).
                    (HEADERS, 1) => {
                        assert_ne!(payload.first(), Some(&0x88), "{name}: 200");
                        break "refused";
                    }
                    _ => {}
                }
            };
            assert_eq!(count.get(), 0, "{name}: the host saw it ({ended})");
            if ended == "reset" || ended == "refused" {
                guest.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &get("/"))).await.expect("open");
                while count.get() == 0 {
                    assert!(next(&mut guest).await.is_some(), "{name}: the connection goes on");
                }
            }
        }
    });
}

/// The frames of one step of a flood.
type Flood<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// Floods end the connection: each kind is bounded by something other than the guest's patience.
#[test]
fn floods_end_the_connection() {
    run(async {
        // Rapid reset (CVE-2023-44487): far fewer requests than resets reach the host, and the connection ends.
        let rapid = |stream: u32| {
            [
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("/")),
                frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
            ]
            .concat()
        };
        // Made you reset: errors that make us reset (a window update of 0).
        let made = |stream: u32| {
            [frame(HEADERS, END_HEADERS, stream, &get("/")), frame(WINDOW_UPDATE, 0, stream, &[0; 4])]
                .concat()
        };
        let continuation = |stream: u32| {
            if stream == 1 {
                frame(HEADERS, END_STREAM, 1, &get("/"))
            } else {
                frame(CONTINUATION, 0, 1, &field("x-a", &"a".repeat(1000)))
            }
        };
        let empty = |stream: u32| {
            if stream == 1 {
                frame(HEADERS, END_STREAM, 1, &get("/"))
            } else {
                frame(CONTINUATION, 0, 1, &[])
            }
        };
        let floods: [(&str, Flood<'_>); 4] = [
            ("rapid reset", &rapid),
            ("made you reset", &made),
            ("continuations", &continuation),
            ("empty continuations", &empty),
        ];
        for (name, make) in floods {
            let world = World::new();
            let count: Rc<Cell<usize>> = Rc::default();
            let (guest, flow) = started(&world, &count).await;
            let (mut read, mut write) = tokio::io::split(guest);
            let bytes: Vec<u8> = (0..20_000).flat_map(|number| make(number * 2 + 1)).collect();
            let sent = async { write.write_all(&bytes).await.is_err() };
            let drain = async { while matches!(read.read(&mut [0; 4096]).await, Ok(1..)) {} };
            let (cut_off, ()) = tokio::join!(sent, drain);
            assert!(cut_off, "{name}: all of it was taken");
            assert!(matches!(flow.await.expect("no panic"), FlowEnd::Broken(_) | FlowEnd::Closed), "{name}");
            assert!(count.get() < 2000, "{name}: {} requests reached the host", count.get());
        }
    });
}

/// Priorities, pings and settings cost nothing that grows; a client that does them and then asks is served.
#[test]
fn harmless_frames_are_harmless() {
    run(async {
        let world = World::new();
        let count = Rc::default();
        let (guest, _flow) = started(&world, &count).await;
        let (mut read, mut write) = tokio::io::split(guest);
        let mut bytes = Vec::new();
        for number in 0..500u32 {
            bytes.extend(frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 16]));
            bytes.extend(frame(0xfa, 0xff, number, b"unknown frames are ignored"));
        }
        bytes.extend(frame(PING, 0, 0, &[1; 8]));
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("/")));
        let write = async { write.write_all(&bytes).await.expect("open") };
        let read = async {
            let mut buffer = [0; 4096];
            while count.get() == 0 {
                assert!(matches!(read.read(&mut buffer).await, Ok(1..)));
            }
        };
        tokio::join!(write, read);
    });
}

#[test]
fn a_guest_that_opens_no_window_holds_up_itself_alone() {
    run(async {
        let world = World::new();
        let made = Rc::new(Cell::new(0usize));
        let counted = Rc::clone(&made);
        let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |_| {
            let made = Rc::clone(&counted);
            let pieces = futures_util::stream::poll_fn(move |_| {
                made.set(made.get() + 1);
                std::task::Poll::Ready(
                    (made.get() < 4096).then(|| Ok(http_body::Frame::data(Bytes::from(vec![1; 16_384])))),
                )
            });
            let body: support::AnyBody = Box::pin(http_body_util::StreamBody::new(pieces));
            Box::pin(async move { http::Response::new(body) })
        });
        let (stream, _flow) = world.open(443, server);
        let stream = world.tls(stream, HOST, &["h2"]).await.expect("TLS");
        let (mut sender, connection) = h2::client::Builder::new()
            .initial_window_size(0)
            .handshake::<_, Bytes>(stream)
            .await
            .expect("HTTP/2");
        tokio::task::spawn_local(async move { drop(connection.await) });
        let uri: Uri = format!("https://{HOST}/").parse().expect("a URL");
        let request = Request::builder().method(Method::GET).uri(uri).body(()).expect("a request");
        let (response, _) = sender.send_request(request, true).expect("sent");
        let body = response.await.expect("an answer").into_body();
        let mut last = usize::MAX;
        while last != made.get() {
            last = made.get();
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        }
        assert!(last * 16_384 < 4 << 20, "{last} pieces were taken for a guest that takes none");
        // A stream that is given up ends at the host as well.
        drop(body);
        assert_eq!(world.records(1).await[0].decision, Decision::Allowed);
    });
}

/// The name in the request is not the connection's: fronting.
#[test]
fn a_request_for_another_host_is_misdirected() {
    run(async {
        let world = World::new();
        let count = Rc::default();
        let (stream, _flow) = world.open(443, h2_tls(&world, &count));
        let stream = world.tls(stream, HOST, &["h2"]).await.expect("TLS");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::task::spawn_local(async move { drop(connection.await) });
        for (uri, host, status) in [
            ("https://evil.org/", None, 421),
            ("https://api.example.com/", Some("evil.org"), 421),
            ("https://api.example.com:8443/", None, 421),
            ("http://api.example.com/", None, 421),
            ("https://api.example.com/", Some(HOST), 200),
            ("https://API.example.com:443/", None, 200),
        ] {
            let mut request = Request::get(uri).version(http::Version::HTTP_2);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let mut sender = sender.clone().ready().await.expect("ready");
            let (response, _) =
                sender.send_request(request.body(()).expect("a request"), true).expect("sent");
            assert_eq!(response.await.expect("an answer").status(), status, "{uri} {host:?}");
        }
        assert_eq!(count.get(), 2);
        let records = world.records(6).await;
        assert_eq!(records.iter().filter(|record| record.decision == Decision::Mismatch).count(), 4);
        drop::<h2::client::SendRequest<Bytes>>(sender);
    });
}

fn h2_tls(world: &World, count: &Rc<Cell<usize>>) -> Server {
    let count = Rc::clone(count);
    Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |_| {
        count.set(count.get() + 1);
        Box::pin(async { ok("served") })
    })
}
