//! Credentials on the wire: what the host gets, what the guest never does. The CVEs of sbx.md §10 are replayed here by their numbers.

use crate::support;

use std::cell::RefCell;
use std::rc::Rc;

use crate::support::{AnyBody, Client, HOST, Server, World, bytes, ok, raw_exchange, run, statuses, whole};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use intercept::Decision;
use vault::{Binding, Credential, Credentials, Secret, Value};

const REAL: &str = "ghp_REALREALREALREALREALREALREALREALREAL";
const HOLDER: &str = "ghp_placeholderplaceholderplaceholder012";
const STRANGER_REAL: &str = "sk-other-REAL-VALUE-0123456789-0123456789";
const STRANGER: &str = "sk-other-placeholder-0123456789-012345678";

fn binding(host: &str, places: &[&str]) -> Binding {
    Binding {
        hosts: vec![host.parse().expect("a host")],
        places: places.iter().map(|place| place.parse().expect("a place")).collect(),
        ..Binding::default()
    }
}

fn token(name: &str, binding: Binding, placeholder: &str, value: &str) -> Credential {
    let value = Value::Token { placeholder: placeholder.into(), value: Secret::from(value.to_owned()) };
    Credential { name: name.into(), binding, value }
}

/// One secret for our host in `places`, one for another host.
fn credentials(places: &[&str]) -> Credentials {
    Credentials::new(vec![
        token("mine", binding(HOST, places), HOLDER, REAL),
        token("stranger", binding("other.example.org", &["headers"]), STRANGER, STRANGER_REAL),
    ])
}

/// What the host got of each request.
type Seen = Rc<RefCell<Vec<(String, HeaderMap, Result<Bytes, String>)>>>;

fn host(world: &World, alpn: &[&str]) -> (Server, Seen) {
    let seen: Seen = Rc::default();
    let all = Rc::clone(&seen);
    let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request| {
        let all = Rc::clone(&all);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
            let target = head.uri.path_and_query().expect("a path").to_string();
            all.borrow_mut().push((target, head.headers, body));
            ok("served")
        })
    });
    (server, seen)
}

async fn world(places: &[&str], alpn: &[&str]) -> (World, Client, Seen) {
    let world = World::new();
    world.intercept.set_credentials(credentials(places));
    let (server, seen) = host(&world, alpn);
    let client = world.client(alpn, server).await;
    (world, client, seen)
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64.encode(pair))
}

#[test]
fn the_host_gets_the_value_in_each_place_and_the_log_only_its_name() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            for (place, field, sent, got) in [
                (
                    "header:authorization",
                    "authorization",
                    format!("Bearer {HOLDER}"),
                    format!("Bearer {REAL}"),
                ),
                ("header:x-api-key", "x-api-key", HOLDER.to_owned(), REAL.to_owned()),
                (
                    "basic",
                    "authorization",
                    basic(&format!("x-access-token:{HOLDER}")),
                    basic(&format!("x-access-token:{REAL}")),
                ),
            ] {
                let (world, mut client, seen) = world(&[place], alpn).await;
                let request = Request::get("/a").header(field, sent).body(bytes("")).expect("a request");
                let (head, _) = whole(client.send(request).await.expect("an answer")).await;
                assert_eq!(head.status, StatusCode::OK, "{place}");
                assert_eq!(seen.borrow()[0].1[field], got, "{place}");
                let record = world.records(1).await.remove(0);
                assert_eq!(
                    (record.decision.clone(), record.secrets.as_slice()),
                    (Decision::Allowed, &["mine".to_owned()][..])
                );
                assert!(!format!("{record:?}").contains(REAL));
            }
            let (world, mut client, seen) = world(&["query:key"], alpn).await;
            let (head, _) = client.get(&format!("/a?x=1&key={HOLDER}&y=%20")).await;
            assert_eq!(head.status, StatusCode::OK);
            assert!(seen.borrow()[0].0.contains(&format!("key={REAL}")), "{}", seen.borrow()[0].0);
            let record = world.records(1).await.remove(0);
            assert_eq!(record.path, "/a", "the log has no query");
        }
    });
}

/// A host that says the value back in a field and in its body, once it is told to.
fn late_echo(
    world: &World,
    coding: &'static str,
) -> (Server, Rc<tokio::sync::Notify>, Rc<tokio::sync::Notify>) {
    let (there, go) = (Rc::new(tokio::sync::Notify::new()), Rc::new(tokio::sync::Notify::new()));
    let (came, told) = (Rc::clone(&there), Rc::clone(&go));
    let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |request| {
        let (came, told) = (Rc::clone(&came), Rc::clone(&told));
        Box::pin(async move {
            let value = request.headers()["authorization"].clone();
            came.notify_one();
            told.notified().await;
            let mut response = ok(format!("you sent {}", value.to_str().expect("text")));
            response.headers_mut().insert("x-sent", value);
            for coding in coding.split('|').filter(|coding| *coding != "-") {
                response.headers_mut().append("content-encoding", coding.parse().expect("a value"));
            }
            response
        })
    });
    (server, there, go)
}

#[test]
fn a_value_that_was_put_in_stays_masked_when_the_secret_changes_before_the_answer() {
    run(async {
        let other = || {
            token("mine", binding(HOST, &["header:authorization"]), HOLDER, "ghp_NEXTNEXTNEXTNEXTNEXTNEXT")
        };
        for next in [Credentials::default(), Credentials::new(vec![other()])] {
            let world = World::new();
            world.intercept.set_credentials(credentials(&["header:authorization"]));
            let (server, there, go) = late_echo(&world, "-");
            let mut client = world.client(&["h2"], server).await;
            let request = Request::get("/").header("authorization", format!("Bearer {HOLDER}"));
            let answer = client.send(request.body(bytes("")).expect("a request"));
            let changed = async {
                there.notified().await;
                world.intercept.set_credentials(next);
                go.notify_one();
            };
            let (answer, ()) = tokio::join!(answer, changed);
            let (head, body) = whole(answer.expect("an answer")).await;
            assert_eq!(head.headers["x-sent"], format!("Bearer {HOLDER}"));
            assert_eq!(body, format!("you sent Bearer {HOLDER}"));
        }
    });
}

/// The guest may choose what the host says of its answer.
#[test]
fn a_body_is_masked_whatever_coding_it_claims() {
    run(async {
        for coding in ["-", "none", "", "identity|identity", "identity, identity", "gzip"] {
            let world = World::new();
            world.intercept.set_credentials(credentials(&["header:authorization"]));
            let (server, _, go) = late_echo(&world, coding);
            go.notify_one();
            let mut client = world.client(&["h2"], server).await;
            let request = Request::get("/").header("authorization", format!("Bearer {HOLDER}"));
            let answer = client.send(request.body(bytes("")).expect("a request")).await;
            let (_, body) = whole(answer.expect("an answer")).await;
            assert_eq!(body, format!("you sent Bearer {HOLDER}"), "{coding:?}");
        }
    });
}

#[test]
fn a_changed_or_removed_secret_holds_for_the_next_request() {
    run(async {
        let (world, mut client, seen) = world(&["header:authorization"], &["h2"]).await;
        let ask = || {
            Request::get("/")
                .header("authorization", format!("Bearer {HOLDER}"))
                .body(bytes(""))
                .expect("a request")
        };
        whole(client.send(ask()).await.expect("an answer")).await;
        let next =
            token("mine", binding(HOST, &["header:authorization"]), HOLDER, "ghp_NEXTNEXTNEXTNEXTNEXTNEXT");
        world.intercept.set_credentials(Credentials::new(vec![next]));
        whole(client.send(ask()).await.expect("an answer")).await;
        world.intercept.set_credentials(Credentials::default());
        whole(client.send(ask()).await.expect("an answer")).await;
        let got: Vec<String> = seen
            .borrow()
            .iter()
            .map(|(_, headers, _)| headers["authorization"].to_str().expect("text").to_owned())
            .collect();
        assert_eq!(
            got,
            [
                format!("Bearer {REAL}"),
                "Bearer ghp_NEXTNEXTNEXTNEXTNEXTNEXT".into(),
                format!("Bearer {HOLDER}")
            ]
        );
    });
}

/// A placeholder of another host's secret, wherever it stands: 403, nothing at the host, a record that names the secret.
#[test]
fn a_placeholder_for_another_host_is_blocked_and_recorded() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let cases: Vec<(&str, Request<AnyBody>)> = vec![
                ("a header", Request::get("/").header("x-any", STRANGER).body(bytes("")).expect("a request")),
                (
                    "within a header",
                    Request::get("/")
                        .header("cookie", format!("a=1; b={STRANGER}"))
                        .body(bytes(""))
                        .expect("a request"),
                ),
                (
                    "Basic",
                    Request::get("/")
                        .header("authorization", basic(&format!("u:{STRANGER}")))
                        .body(bytes(""))
                        .expect("a request"),
                ),
                ("the path", Request::get(format!("/{STRANGER}/x")).body(bytes("")).expect("a request")),
                ("the query", Request::get(format!("/?q={STRANGER}")).body(bytes("")).expect("a request")),
                (
                    "the query, encoded",
                    Request::get(format!("/?q={}", STRANGER.replace("-", "%2d")))
                        .body(bytes(""))
                        .expect("a request"),
                ),
                (
                    "the body",
                    Request::post("/").body(bytes(format!("some {STRANGER} text"))).expect("a request"),
                ),
            ];
            for (name, request) in cases {
                let (world, mut client, seen) = world(&["header:authorization"], alpn).await;
                let (head, body) = whole(client.send(request).await.expect("an answer")).await;
                assert_eq!(head.status, StatusCode::FORBIDDEN, "{name}");
                let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
                assert_eq!(answer["error"], "exfiltration", "{name}");
                assert!(
                    seen.borrow().iter().all(|(_, _, body)| body.is_err()),
                    "{name}: the host got a whole request"
                );
                let record = world.records(1).await.remove(0);
                assert_eq!(record.decision, Decision::Exfiltration { secret: "stranger".into() }, "{name}");
                assert_eq!(record.status, 403, "{name}");
                assert!(!format!("{record:?}{answer}").contains(STRANGER_REAL), "{name}");
            }
        }
    });
}

/// In a body that comes piece by piece, with the placeholder on the border, in chunks, in trailers.
#[test]
fn a_placeholder_on_a_border_is_found() {
    run(async {
        for cut in 1..STRANGER.len() {
            let (world, mut client, seen) = world(&["header:authorization"], &["h2"]).await;
            let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<http_body::Frame<Bytes>>();
            let stream =
                futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|frame| frame.map(Ok)));
            let body: AnyBody = Box::pin(http_body_util::StreamBody::new(stream));
            let (first, second) = STRANGER.split_at(cut);
            sender.send(http_body::Frame::data(format!("x{first}").into())).expect("open");
            sender.send(http_body::Frame::data(format!("{second}y").into())).expect("open");
            drop(sender);
            let request = Request::post("/").body(body).expect("a request");
            let (head, _) = whole(client.send(request).await.expect("an answer")).await;
            assert_eq!(head.status, StatusCode::FORBIDDEN, "{cut}");
            assert!(seen.borrow().iter().all(|(_, _, body)| body.is_err()), "{cut}");
            assert!(matches!(world.records(1).await[0].decision, Decision::Exfiltration { .. }));
        }
    });
}

/// Chunk borders and sizes of the guest's own on HTTP/1: the placeholder is found across them.
#[test]
fn chunk_borders_hide_nothing() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let server = Server::hyper(None, |request| {
            Box::pin(async move {
                assert!(request.into_body().collect().await.is_err());
                ok("")
            })
        });
        for size in [1, 2, 7, STRANGER.len() - 1] {
            let chunks: String = STRANGER
                .as_bytes()
                .chunks(size)
                .map(|chunk| format!("{:x};x=\"y\"\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)))
                .collect();
            let sent = format!(
                "POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunks}0\r\n\r\n"
            );
            let (guest, _flow) = world.open(80, server.clone());
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&answer), [403], "{size}");
            assert!(matches!(world.records(1).await[0].decision, Decision::Exfiltration { .. }));
        }
    });
}

/// A compressed body is not looked into: the placeholder crosses as the worthless text that it is, the value never does.
#[test]
fn compression_moves_nothing_but_the_placeholder() {
    run(async {
        let (_world, mut client, seen) = world(&["header:authorization", "query:key"], &["h2"]).await;
        // What a gzip of the placeholder might be: the bytes do not matter, the value is never put into a body.
        let body = format!("\x1f\x08{}", HOLDER.replace('_', "\u{1}"));
        let request = Request::post("/")
            .header("content-encoding", "gzip")
            .body(bytes(body.clone()))
            .expect("a request");
        let (head, _) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(seen.borrow()[0].2.as_ref().expect("a body"), &Bytes::from(body));
        // Nor into a plain one of the host's own: places are heads.
        let request = Request::post("/").body(bytes(HOLDER)).expect("a request");
        whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(seen.borrow()[1].2.as_ref().expect("a body"), HOLDER);
    });
}

/// An echo is masked in what can be read: the guest does not choose that it cannot.
#[test]
fn an_answer_to_a_request_with_a_value_is_asked_for_uncompressed() {
    run(async {
        let (_world, mut client, seen) = world(&["header:authorization"], &["h2"]).await;
        for (number, token) in [HOLDER, ""].into_iter().enumerate() {
            let mut request = Request::get("/").header("accept-encoding", "gzip, br");
            if !token.is_empty() {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            whole(client.send(request.body(bytes("")).expect("a request")).await.expect("an answer")).await;
            let asked = seen.borrow()[number].1["accept-encoding"].clone();
            assert_eq!(asked, if token.is_empty() { "gzip, br" } else { "identity" });
        }
    });
}

/// What a guest says in a WebSocket is watched for placeholders, which it cannot be in compressed messages (RFC 7692).
#[test]
fn a_websocket_is_not_offered_compression() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let (server, seen) =
            Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let (guest, _flow) = world.open(80, server);
        let sent = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        );
        raw_exchange(guest, sent.as_bytes()).await;
        let got = String::from_utf8_lossy(&seen.borrow()).to_lowercase();
        assert!(got.contains("sec-websocket-key") && !got.contains("permessage-deflate"), "{got}");
    });
}

#[test]
fn without_tls_no_value_goes_out() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let (server, seen) = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        let (guest, _flow) = world.open(80, server);
        let sent = format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {HOLDER}\r\nConnection: close\r\n\r\n"
        );
        let answer = raw_exchange(guest, sent.as_bytes()).await;
        assert_eq!(statuses(&answer), [403]);
        assert!(seen.borrow().is_empty());
        assert_eq!(world.records(1).await[0].decision, Decision::Exfiltration { secret: "mine".into() });
    });
}

#[test]
fn towards_a_host_that_is_not_trusted_no_value_goes_out() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let stranger = support::Authority::new();
        let server = Server::hyper(Some(stranger.server(&[HOST], &["h2"])), |_| {
            Box::pin(async { panic!("no request may come") })
        });
        let mut client = world.client(&["h2"], server).await;
        let request = Request::get("/")
            .header("authorization", format!("Bearer {HOLDER}"))
            .body(bytes(""))
            .expect("a request");
        let (head, _) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(head.status, StatusCode::BAD_GATEWAY);
        assert!(world.records(1).await[0].detail.as_deref().expect("a reason").contains("not trusted"));
    });
}

/// CVE-2026-105452: a second credential of the client's beside the one that is put in.
#[test]
fn a_second_credential_is_not_forwarded_beside_ours() {
    run(async {
        for fields in [
            format!("Authorization: Bearer {HOLDER}\r\nAuthorization: Bearer attacker\r\n"),
            format!("Authorization: Bearer attacker\r\nAuthorization: Bearer {HOLDER}\r\n"),
            format!("authorization: Bearer {HOLDER}\r\nAUTHORIZATION: Bearer attacker\r\n"),
            format!("Authorization: Bearer {HOLDER}\r\nX-Api-Key: attackers-own-key\r\n"),
            "Authorization: Bearer attacker\r\n".to_owned(),
            format!("Authorization: Bearer {HOLDER}, Bearer attacker\r\n"),
        ] {
            let world = World::new();
            world.intercept.set_credentials(credentials(&["header:authorization"]));
            let (server, seen) = host(&world, &["http/1.1"]);
            let (guest, _flow) = world.open(443, server);
            let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            let sent = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&answer).first().map(|status| status / 100), Some(4), "{fields}");
            assert!(seen.borrow().is_empty(), "{fields}");
            let decision = world.records(1).await.remove(0).decision;
            assert!(
                matches!(decision, Decision::CredentialFailed | Decision::Malformed),
                "{fields}: {decision:?}"
            );
        }
    });
}

/// CVE-2026-105570: hosts and field names are compared without case.
#[test]
fn case_changes_nothing() {
    run(async {
        let world = World::new();
        let upper = Credentials::new(vec![
            token("mine", binding("API.Example.COM", &["header:AUTHORIZATION"]), HOLDER, REAL),
            token("stranger", binding("Other.Example.ORG", &["headers"]), STRANGER, STRANGER_REAL),
        ]);
        world.intercept.set_credentials(upper);
        let (server, seen) = host(&world, &["http/1.1"]);
        let (guest, _flow) = world.open(443, server.clone());
        let guest = world.tls(guest, "aPi.eXample.com", &["http/1.1"]).await.expect("TLS");
        let sent = format!(
            "GET / HTTP/1.1\r\nHost: API.EXAMPLE.COM.\r\naUTHORIZATION: bEARER {HOLDER}\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(statuses(&raw_exchange(guest, sent.as_bytes()).await), [200]);
        assert_eq!(seen.borrow()[0].1["authorization"], format!("bEARER {REAL}"));
        assert_eq!(seen.borrow()[0].1["host"], HOST);
        let (guest, _flow) = world.open(443, server);
        let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
        let sent =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX-ANY: {STRANGER}\r\nConnection: close\r\n\r\n");
        assert_eq!(statuses(&raw_exchange(guest, sent.as_bytes()).await), [403]);
    });
}

#[test]
fn an_echoed_value_is_masked_and_a_redirect_carries_none() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            world.intercept.set_credentials(credentials(&["header:authorization"]));
            let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), |request| {
                Box::pin(async move {
                    let value = request.headers()["authorization"].to_str().expect("text").to_owned();
                    let value = value.strip_prefix("Bearer ").expect("the value").to_owned();
                    assert_eq!(value, REAL);
                    Response::builder()
                        .status(302)
                        .header("location", format!("https://evil.org/?t={value}"))
                        .header("x-echo", request.headers()["authorization"].clone())
                        .header("x-basic", basic(&format!("u:{value}")))
                        .body(bytes(format!("you sent {value}, that is {value}.")))
                        .expect("a response")
                })
            });
            let mut client = world.client(alpn, server).await;
            let request = Request::get("/")
                .header("authorization", format!("Bearer {HOLDER}"))
                .body(bytes(""))
                .expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert_eq!(head.status, StatusCode::FOUND);
            let text = format!("{:?} {}", head.headers, String::from_utf8_lossy(&body));
            assert!(!text.contains(REAL), "{text}");
            assert!(!text.contains(&BASE64.encode(format!("u:{REAL}"))), "{text}");
            assert!(head.headers["location"].to_str().expect("text").contains(HOLDER));
            assert_eq!(body.len(), format!("you sent {REAL}, that is {REAL}.").len(), "the length holds");
        }
    });
}

/// An answer that was compressed could say the value back unseen: with a value no coding is asked for, whatever the guest would have.
#[test]
fn with_a_value_no_compressed_answer_is_asked_for() {
    run(async {
        let (_world, mut client, seen) = world(&["header:authorization"], &["h2"]).await;
        for (holder, expected) in [(Some(HOLDER), &["identity"][..]), (None, &["gzip", "br"])] {
            let mut request =
                Request::get("/").header("accept-encoding", "gzip").header("accept-encoding", "br");
            if let Some(holder) = holder {
                request = request.header("authorization", format!("Bearer {holder}"));
            }
            let (head, _) =
                whole(client.send(request.body(bytes("")).expect("a request")).await.expect("an answer"))
                    .await;
            assert_eq!(head.status, StatusCode::OK);
            let seen = seen.borrow();
            let (_, headers, _) = seen.last().expect("a request");
            let asked: Vec<_> = headers.get_all("accept-encoding").iter().collect();
            assert_eq!(asked, expected);
        }
    });
}

/// gRPC puts its errors into trailers, HTTP/1.1 has words of its own beside the status.
#[test]
fn trailers_and_the_words_beside_the_status_are_masked() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let answer = format!(
            "HTTP/1.1 200 {REAL}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Why\r\n\r\n2\r\nok\r\n0\r\nX-Why: no {REAL}\r\n\r\n"
        );
        let (server, _) = Server::raw(answer.leak().as_bytes());
        let (guest, _flow) = world.open(80, server);
        let sent = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: close, TE\r\n\r\n");
        let answer = String::from_utf8(raw_exchange(guest, sent.as_bytes()).await).expect("text");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.contains(REAL) && answer.contains(&format!("no {HOLDER}")), "{answer}");
    });
}

/// What a head is judged by is not in trailers, which servers may merge into it: other methods and paths, and a credential of the guest's own,
/// also where one may pass.
#[test]
fn what_a_head_is_judged_by_does_not_cross_in_trailers() {
    run(async {
        let passes = ["x-sum", "x-method", "x_original"];
        let stays = [
            "x-http-method-override",
            "x_http_method_override",
            "x-http-method",
            "x-method-override",
            "x-original-url",
            "x-original_url",
            "x-rewrite-url",
            "x-my-key",
            "x_my_key",
            "x-your-key",
            "x_api_key",
            "authorization",
            "content_length",
        ];
        for allow_other in [false, true] {
            let world = World::new();
            let mut mine = binding(HOST, &["header:x-my-key", "header:x_your_key"]);
            mine.allow_other = allow_other;
            let elsewhere = binding("other.example.org", &["header:x-sum"]);
            world.intercept.set_credentials(Credentials::new(vec![
                token("mine", mine, HOLDER, REAL),
                token("stranger", elsewhere, STRANGER, STRANGER_REAL),
            ]));
            let (got, server) = trailers_of(&world);
            let mut client = world.client(&["h2"], server).await;
            let (sender, body) = support::channel();
            let mut trailers = HeaderMap::new();
            for name in passes.into_iter().chain(stays) {
                trailers.insert(name, "DELETE".parse().expect("a value"));
            }
            sender.send(http_body::Frame::data("body".into())).expect("open");
            sender.send(http_body::Frame::trailers(trailers)).expect("open");
            drop(sender);
            let request = Request::post("/").body(body).expect("a request");
            assert_eq!(whole(client.send(request).await.expect("an answer")).await.0.status, StatusCode::OK);
            let mut names: Vec<String> = got.take().keys().map(ToString::to_string).collect();
            names.sort();
            assert_eq!(names, ["x-method", "x-sum", "x_original"]);
        }
    });
}

/// A host over HTTP/2, where nothing has to be declared, and the trailers that it got.
fn trailers_of(world: &World) -> (Rc<RefCell<HeaderMap>>, Server) {
    let got: Rc<RefCell<HeaderMap>> = Rc::default();
    let all = Rc::clone(&got);
    let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |request| {
        let all = Rc::clone(&all);
        Box::pin(async move {
            let body = request.into_body().collect().await.expect("a body");
            all.replace(body.trailers().cloned().unwrap_or_default());
            ok("served")
        })
    });
    (got, server)
}

/// CVE-2026-101998: what cannot be read to its end is not shown as it is. The host breaks off in the middle of the value.
#[test]
fn an_answer_that_breaks_off_shows_no_piece_of_a_value() {
    run(async {
        for cut in [4, 10, REAL.len() - 1] {
            let world = World::new();
            world.intercept.set_credentials(credentials(&["header:authorization"]));
            let tls = world.authority.server(&[HOST], &["http/1.1"]);
            let server = Server::new(move |stream| {
                let tls = tls.clone();
                tokio::task::spawn_local(async move {
                    use tokio::io::{AsyncReadExt, AsyncWriteExt};
                    let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.expect("TLS");
                    let _ = stream.read(&mut [0; 4096]).await;
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbefore {}", &REAL[..cut]);
                    stream.write_all(answer.as_bytes()).await.expect("open");
                    stream.flush().await.expect("open");
                });
            });
            let (guest, _flow) = world.open(443, server);
            let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            let sent = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {HOLDER}\r\n\r\n");
            let answer = String::from_utf8(raw_exchange(guest, sent.as_bytes()).await).expect("text");
            assert!(answer.contains("before "), "{answer}");
            assert!(!answer.contains(&REAL[..cut]), "{answer}");
        }
    });
}

/// A host that is looked into for its own secret: another's placeholder in what a WebSocket client sends is found through the mask.
#[test]
fn a_placeholder_in_a_websocket_ends_it() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        let seen: Rc<RefCell<Vec<u8>>> = Rc::default();
        let all = Rc::clone(&seen);
        let server = Server::new(move |mut stream| {
            let all = Rc::clone(&all);
            tokio::task::spawn_local(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.expect("open");
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    all.borrow_mut().extend_from_slice(&buffer[..count]);
                }
            });
        });
        let (guest, _flow) = world.open(80, server);
        let mask = [0x11, 0x22, 0x33, 0x44];
        let mut sent =
            format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .into_bytes();
        sent.extend([0x82, 0x80 | STRANGER.len() as u8]);
        sent.extend(mask);
        sent.extend(STRANGER.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
        let answer = raw_exchange(guest, &sent).await;
        assert_eq!(statuses(&answer), [101]);
        assert_eq!(world.records(1).await[0].decision, Decision::Exfiltration { secret: "stranger".into() });
        assert!(seen.borrow().is_empty());
    });
}

#[test]
fn a_host_with_a_secret_is_wanted() {
    run(async {
        let world = World::new();
        let name = |text: &str| intercept::FlowHost::Name(policy::Name::parse(text).expect("a name"));
        assert!(!world.intercept.wants(&name(HOST), 443));
        world.intercept.set_credentials(credentials(&["header:authorization"]));
        assert!(world.intercept.wants(&name(HOST), 443));
        assert!(!world.intercept.wants(&name("elsewhere.example"), 443));
    });
}
