//! HTTP as it should be: both versions, streaming, back-pressure, what a head may ask for.

use crate::support;

use std::cell::Cell;
use std::rc::Rc;

use crate::support::{AnyBody, HOST, Server, World, bytes, channel, ok, raw_exchange, run, whole};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use intercept::{Decision, Dial, Dialling};
use tokio::sync::mpsc;

const BOTH: &[&str] = &["h2", "http/1.1"];

#[test]
fn requests_and_answers_pass_with_their_heads_and_bodies() {
    run(async {
        for alpn in [BOTH, &["http/1.1"]] {
            let world = World::new();
            let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), |request| {
                Box::pin(async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.expect("a body").to_bytes();
                    assert_eq!(head.method, Method::PUT);
                    assert_eq!(head.uri.path_and_query().expect("there").as_str(), "/a%2Fb//c?x=%20&y");
                    assert_eq!(head.headers.get_all("x-twice").iter().count(), 2);
                    assert!(
                        !head.headers.contains_key("connection") && !head.headers.contains_key("keep-alive")
                    );
                    assert!(
                        !head.headers.contains_key("proxy-authorization")
                            && !head.headers.contains_key("x-hop")
                    );
                    let mut response = ok(body);
                    *response.status_mut() = StatusCode::IM_A_TEAPOT;
                    response.headers_mut().append("set-cookie", "a=1".parse().expect("a value"));
                    response.headers_mut().append("set-cookie", "b=2".parse().expect("a value"));
                    response.headers_mut().insert("alt-svc", "h3=\":443\"".parse().expect("a value"));
                    response
                })
            });
            let mut client = world.client(alpn, server).await;
            let mut request = Request::put("/a%2Fb//c?x=%20&y").header("x-twice", "1").header("x-twice", "2");
            request = request.header("proxy-authorization", "Basic eA==");
            if !client.is_http2() {
                request = request
                    .header("connection", "keep-alive, x-hop")
                    .header("x-hop", "1")
                    .header("keep-alive", "5");
            }
            let request = request.body(bytes("some body")).expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert_eq!((head.status, body.as_ref()), (StatusCode::IM_A_TEAPOT, &b"some body"[..]));
            assert_eq!(head.headers.get_all("set-cookie").iter().count(), 2);
            assert!(!head.headers.contains_key("alt-svc"));
            let record = world.records(1).await.remove(0);
            assert_eq!((record.method.as_str(), record.host.as_str(), record.port), ("PUT", HOST, 443));
            assert_eq!((record.status, record.sent, record.received), (418, 9, 9));
            assert!(!record.path.contains('?'), "{}", record.path);
            assert_eq!(record.decision, Decision::Allowed);
        }
    });
}

#[test]
fn header_names_keep_their_case_on_http1() {
    run(async {
        let world = World::new();
        let (server, seen) = Server::raw(b"HTTP/1.1 200 OK\r\nX-MiXed: 1\r\nContent-Length: 0\r\n\r\n");
        let (guest, _flow) = world.open(80, server);
        let sent = format!("GET / HTTP/1.1\r\nHoSt: {HOST}\r\nX-CaSe: 2\r\nConnection: close\r\n\r\n");
        let answer = raw_exchange(guest, sent.as_bytes()).await;
        assert!(String::from_utf8_lossy(&answer).contains("X-MiXed: 1"));
        let seen = String::from_utf8(seen.borrow().clone()).expect("text");
        assert!(seen.contains("X-CaSe: 2") && seen.contains(&format!("HoSt: {HOST}")), "{seen}");
    });
}

/// Server-sent events: each is with the guest before the next is made.
#[test]
fn events_stream_one_by_one() {
    run(async {
        for alpn in [BOTH, &["http/1.1"]] {
            let world = World::new();
            let (asked, mut asks) = mpsc::unbounded_channel();
            let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |_| {
                let (sender, body) = channel();
                asked.send(sender).expect("open");
                let response = Response::builder().header("content-type", "text/event-stream").body(body);
                Box::pin(async move { response.expect("a response") })
            });
            let mut client = world.client(alpn, server).await;
            let response = client
                .send(Request::get("/events").body(bytes("")).expect("a request"))
                .await
                .expect("an answer");
            let events = asks.recv().await.expect("asked");
            let mut body = response.into_body();
            for number in 0..20 {
                let event = format!("data: {number}\n\n");
                events.send(Frame::data(event.clone().into())).expect("open");
                let frame = body.frame().await.expect("a frame").expect("no error");
                assert_eq!(frame.into_data().expect("data"), event);
            }
            drop(events);
            assert!(body.collect().await.expect("the end").to_bytes().is_empty());
        }
    });
}

/// gRPC's shape: both directions at once, trailers at the end.
#[test]
fn both_directions_stream_at_once_and_trailers_arrive() {
    run(async {
        let world = World::new();
        let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), |request| {
            Box::pin(async move {
                assert_eq!(request.headers().get("te").expect("te"), "trailers");
                let (sender, body) = channel();
                tokio::task::spawn_local(async move {
                    let mut incoming = request.into_body();
                    while let Some(Ok(frame)) = incoming.frame().await {
                        match frame.into_data() {
                            Ok(data) => sender.send(Frame::data(data)).expect("open"),
                            Err(frame) => {
                                let mut trailers = frame.into_trailers().expect("trailers");
                                trailers.insert("grpc-status", "0".parse().expect("a value"));
                                sender.send(Frame::trailers(trailers)).expect("open");
                            }
                        }
                    }
                });
                Response::builder().header("content-type", "application/grpc").body(body).expect("a response")
            })
        });
        let mut client = world.client(&["h2"], server).await;
        let (sender, body) = channel();
        let request = Request::post("/pkg.Service/Method")
            .header("te", "trailers")
            .header("content-type", "application/grpc");
        let response = client
            .send(request.body(body).expect("a request"))
            .await
            .expect("an answer before the body's end");
        let mut body = response.into_body();
        for number in 0u8..20 {
            sender.send(Frame::data(vec![number; 5].into())).expect("open");
            let frame = body.frame().await.expect("a frame").expect("no error");
            assert_eq!(frame.into_data().expect("data"), vec![number; 5]);
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "20".parse().expect("a value"));
        trailers.insert("content-length", "7".parse().expect("a value"));
        sender.send(Frame::trailers(trailers)).expect("open");
        drop(sender);
        let trailers =
            body.frame().await.expect("a frame").expect("no error").into_trailers().expect("trailers");
        assert_eq!(
            (trailers["grpc-status"].as_bytes(), trailers["x-sum"].as_bytes()),
            (&b"0"[..], &b"20"[..])
        );
        assert!(!trailers.contains_key("content-length"), "no field of a head among the trailers");
        assert_eq!(world.records(1).await[0].sent, 100);
    });
}

#[test]
fn trailers_cross_http1() {
    run(async {
        let world = World::new();
        let (server, seen) = Server::raw(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 5\r\n\r\n",
        );
        let (guest, _flow) = world.open(80, server);
        let sent = format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: X-In\r\nConnection: close, TE\r\n\r\n2\r\nab\r\n0\r\nX-Api-Key: mine\r\nprivate_token: mine\r\nAuthorization: mine\r\nX-In: 7\r\n\r\n"
        );
        let answer = String::from_utf8(raw_exchange(guest, sent.as_bytes()).await).expect("text");
        assert!(answer.to_ascii_lowercase().ends_with("0\r\nx-sum: 5\r\n\r\n"), "{answer}");
        let seen = String::from_utf8(seen.borrow().clone()).expect("text");
        // No credential that nobody judged.
        assert!(seen.to_ascii_lowercase().ends_with("0\r\nx-in: 7\r\n\r\n"), "{seen}");
    });
}

#[test]
fn a_sender_is_held_back_while_nobody_reads() {
    run(async {
        for alpn in [BOTH, &["http/1.1"]] {
            let world = World::new();
            let (hold, held) = tokio::sync::oneshot::channel::<()>();
            let held = Rc::new(Cell::new(Some(held)));
            let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request| {
                let held = held.take();
                Box::pin(async move {
                    held.expect("one request").await.expect("let go");
                    let body = request.into_body().collect().await.expect("a body").to_bytes();
                    ok(body.len().to_string())
                })
            });
            let mut client = world.client(alpn, server).await;
            // 64 MiB in pieces that are made when they are asked for.
            const PIECE: usize = 64 * 1024;
            let made = Rc::new(Cell::new(0usize));
            let count = Rc::clone(&made);
            let pieces = futures_util::stream::poll_fn(move |_| {
                std::task::Poll::Ready((count.get() < 1024).then(|| {
                    count.set(count.get() + 1);
                    Ok(Frame::data(Bytes::from(vec![7; PIECE])))
                }))
            });
            let request =
                Request::post("/").body(Box::pin(StreamBody::new(pieces)) as AnyBody).expect("a request");
            let answer = tokio::task::spawn_local(async move {
                whole(client.send(request).await.expect("an answer")).await
            });
            let mut last = usize::MAX;
            // Quiet once a thousand turns made nothing new.
            while last != made.get() {
                last = made.get();
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
            }
            assert!(last * PIECE < 12 * 1024 * 1024, "{last} pieces were taken while nobody read");
            assert!(last > 0);
            hold.send(()).expect("the server waits");
            let (_, body) = answer.await.expect("no panic");
            assert_eq!(body, (1024 * PIECE).to_string());
        }
    });
}

#[test]
fn heads_without_bodies_keep_their_lengths() {
    run(async {
        for alpn in [BOTH, &["http/1.1"]] {
            let world = World::new();
            let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), |request| {
                Box::pin(async move {
                    let status: u16 = request.uri().path()[1..].parse().expect("a status");
                    let mut response = Response::builder().status(status);
                    if status == 200 || status == 304 {
                        response = response.header("content-length", "12345");
                    }
                    response.body(bytes("")).expect("a response")
                })
            });
            let mut client = world.client(alpn, server).await;
            let request = |method, path| {
                Request::builder().method(method).uri(path).body(bytes("")).expect("a request")
            };
            let (head, body) = whole(client.send(request("HEAD", "/200")).await.expect("an answer")).await;
            assert_eq!(
                (head.headers["content-length"].as_bytes(), body.len()),
                (&b"12345"[..], 0),
                "{alpn:?}"
            );
            let (head, body) = whole(client.send(request("GET", "/304")).await.expect("an answer")).await;
            assert_eq!((head.status.as_u16(), body.len()), (304, 0));
            let (head, body) = whole(client.send(request("DELETE", "/204")).await.expect("an answer")).await;
            assert_eq!((head.status.as_u16(), body.len()), (204, 0));
            assert!(!head.headers.contains_key("content-length"));
            let (head, _) =
                whole(client.send(request("HEAD", "/404")).await.expect("the connection still serves")).await;
            assert_eq!(head.status, 404);
        }
    });
}

#[test]
fn a_client_that_expects_100_gets_it_only_when_it_may_go_on() {
    run(async {
        let world = World::new();
        world.rule(&[("allow", "POST", "/open/**")]);
        let (server, seen) = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let head = |path: &str| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\nbody"
            )
        };
        let (guest, _flow) = world.open(80, server.clone());
        let answer = raw_exchange(guest, head("/open/a").as_bytes()).await;
        assert_eq!(support::statuses(&answer), [100, 200]);
        assert!(!String::from_utf8_lossy(&seen.borrow()).to_ascii_lowercase().contains("expect"));
        let (guest, _flow) = world.open(80, server.clone());
        let answer = raw_exchange(guest, head("/closed").as_bytes()).await;
        assert_eq!(support::statuses(&answer), [403], "no 100 for a refused request");
        let (guest, _flow) = world.open(80, server);
        let answer = raw_exchange(guest, head("/open/a").replace("100-continue", "200-ok").as_bytes()).await;
        assert_eq!(support::statuses(&answer), [417]);
    });
}

#[test]
fn early_hints_are_dropped_and_the_answer_comes() {
    run(async {
        let world = World::new();
        let (server, _) = Server::raw(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        );
        let (guest, _flow) = world.open(80, server);
        let answer = raw_exchange(
            guest,
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert_eq!(support::statuses(&answer), [200]);
        assert!(answer.ends_with(b"ok"));
    });
}

#[test]
fn old_clients_are_served() {
    run(async {
        let world = World::new();
        let (server, seen) =
            Server::raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
        let (guest, _flow) = world.open(80, server);
        let answer =
            String::from_utf8(raw_exchange(guest, b"GET /old HTTP/1.0\r\n\r\n").await).expect("text");
        assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
        let seen = String::from_utf8(seen.borrow().clone()).expect("text");
        assert!(
            seen.starts_with("GET /old HTTP/1.1\r\n")
                && seen.to_ascii_lowercase().contains(&format!("host: {HOST}"))
        );
    });
}

#[test]
fn a_gets_body_is_not_lost() {
    run(async {
        for (head, wire) in [
            ("Content-Length: 3\r\n", "abc"),
            ("Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
            ("Transfer-Encoding: CHUNKED\r\n", "1;ext=\"x\"\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        ] {
            let world = World::new();
            let server = Server::hyper(None, |request| {
                Box::pin(async move { ok(request.into_body().collect().await.expect("a body").to_bytes()) })
            });
            let (guest, _flow) = world.open(80, server);
            let sent = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{head}Connection: close\r\n\r\n{wire}");
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            assert!(answer.ends_with(b"\r\n\r\nabc"), "{}", String::from_utf8_lossy(&answer));
        }
    });
}

/// The host spoke HTTP/2 at first (or could not be asked) and speaks HTTP/1 now.
#[test]
fn http2_towards_the_guest_is_http1_towards_the_host_where_it_must() {
    struct FailsFirst(Server, Cell<bool>);
    impl Dial for FailsFirst {
        fn dial(&self) -> Dialling<'_> {
            if self.1.replace(true) {
                return self.0.dial();
            }
            Box::pin(async { Err(std::io::ErrorKind::ConnectionReset.into()) })
        }
    }
    run(async {
        let world = World::new();
        let server = Server::hyper(Some(world.authority.server(&[HOST], &["http/1.1"])), |request| {
            Box::pin(async move {
                assert_eq!(request.version(), http::Version::HTTP_11);
                assert_eq!(request.headers().get("host").expect("a host"), HOST);
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let mut response = ok(body);
                response.headers_mut().insert("connection", "keep-alive, x-hop".parse().expect("a value"));
                response.headers_mut().insert("x-hop", "1".parse().expect("a value"));
                response
            })
        });
        let dialled = Rc::clone(&server.dialled);
        let mut client = world.client(BOTH, FailsFirst(server, Cell::new(false))).await;
        assert!(client.is_http2());
        for number in 0..3 {
            let request = Request::post("/").body(bytes(format!("number {number}"))).expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert_eq!((head.status.as_u16(), body.as_ref()), (200, format!("number {number}").as_bytes()));
            assert!(!head.headers.contains_key("connection") && !head.headers.contains_key("x-hop"));
        }
        assert_eq!(dialled.get(), 1, "one connection served them all");
        // At once: as many connections as requests, within the limit.
        let support::Client::Http2(sender) = &client else { unreachable!("asserted above") };
        let many = (0..40).map(|number| {
            let mut sender = sender.clone();
            async move {
                let uri = format!("https://{HOST}/{number}");
                let request = Request::post(uri).body(bytes(number.to_string())).expect("a request");
                whole(sender.send_request(request).await.expect("an answer")).await.1
            }
        });
        let answers = futures_util::future::join_all(many).await;
        assert!(answers.iter().enumerate().all(|(number, answer)| *answer == number.to_string()));
        assert!(dialled.get() <= 16, "{} connections", dialled.get());
    });
}

#[test]
fn a_connection_that_the_host_ends_is_ended_for_the_guest_too() {
    run(async {
        let world = World::new();
        let server = Server::new(|mut stream| {
            tokio::task::spawn_local(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            });
        });
        let (guest, _flow) = world.open(80, server);
        // No `Connection: close` from anyone: the guest would wait for ever if its connection stayed.
        let answer = raw_exchange(guest, format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await;
        assert_eq!(support::statuses(&answer), [200]);
    });
}

#[test]
fn http2_without_tls_is_spoken_when_the_guest_does() {
    run(async {
        let world = World::new();
        let server = Server::new(|stream| {
            tokio::task::spawn_local(async move {
                let service =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        Ok::<_, std::convert::Infallible>(ok(format!("{:?}", request.version())))
                    });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http2::Builder::new(support::Local)
                    .serve_connection(io, service)
                    .await;
            });
        });
        let (guest, _flow) = world.open(80, server);
        let support::Client::Http2(mut sender) = support::Client::over(guest, true).await else {
            unreachable!("asked for")
        };
        let request = Request::get(format!("http://{HOST}/")).body(bytes("")).expect("a request");
        let (_, body) = whole(sender.send_request(request).await.expect("an answer")).await;
        assert_eq!(body, "HTTP/2.0");
    });
}
