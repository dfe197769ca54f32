//! What was reported of another sandbox's proxy (Docker's sbx: its CVEs, its issues), replayed against this one by number. Each attack in its
//! variants, through TLS on both sides; the host is a real server on a real socket where it breaks off.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use intercept::{Decision, Flow, FlowEnd, FlowHost};
use policy::Name;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vault::oauth::{BodyKind, Endpoint, SignIn};
use vault::{Binding, Credential, Credentials, Secret, Value};

use crate::support::{AnyBody, HOST, Server, Tcp, World, bytes, ok, raw_exchange, run, statuses, whole};

const ACCESS: &str = "real-access-token-0123456789abcdefghij";
const REFRESH: &str = "real-refresh-token-9876543210klmnopqrst";
const REAL: &str = "ghp_REALREALREALREALREALREALREALREALREAL";
const HOLDER: &str = "ghp_placeholderplaceholderplaceholder012";

/// One token for our host, in the header Authorization.
fn token() -> Credentials {
    let binding = Binding {
        hosts: vec![HOST.parse().expect("a host")],
        places: vec!["header:authorization".parse().expect("a place")],
        ..Binding::default()
    };
    let value = Value::Token { placeholder: HOLDER.into(), value: Secret::from(REAL.to_owned()) };
    Credentials::new(vec![Credential { name: "mine".into(), binding, value }])
}

/// People sign in at `host`, in this spelling.
fn sign_in(host: &str) -> Credentials {
    let hosts = || vec![host.parse().expect("a host")];
    let endpoint = Endpoint {
        service: "mine".into(),
        hosts: hosts(),
        paths: vec!["/oauth/token".into()],
        resources: hosts(),
        body: BodyKind::Form,
    };
    let value = Value::SignIn(SignIn { endpoint, key: [7; 32], sandbox: "box".into(), grant: None });
    let places = vec!["header:authorization".parse().expect("a place")];
    let binding = Binding { hosts: hosts(), places, ..Binding::default() };
    Credentials::new(vec![Credential { name: "mine".into(), binding, value }])
}

fn tokens() -> String {
    format!(
        r#"{{"access_token":"{ACCESS}","token_type":"bearer","refresh_token":"{REFRESH}","expires_in":3600}}"#
    )
}

/// Is a piece of a token in what the guest got?
fn leaks(seen: &[u8]) -> bool {
    // Past the common beginning, which is no secret.
    [ACCESS, REFRESH].iter().any(|token| {
        token.as_bytes()[12..].windows(8).any(|piece| seen.windows(8).any(|window| window == piece))
    })
}

/// How the host ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// As it should: close_notify, then FIN.
    Closed,
    /// FIN without a word of TLS (a truncation attack looks like that).
    Cut,
    /// RST: whoever reads gets an error.
    Reset,
}

/// A host over TCP and TLS that answers the first request of each connection with `answer`, and ends.
async fn host(tls: Arc<ServerConfig>, answer: Vec<u8>, end: End) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls));
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut seen = Vec::new();
            while !seen.ends_with(b"code=abc") {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).await {
                    Ok(count @ 1..) => seen.extend_from_slice(&buffer[..count]),
                    _ => break,
                }
            }
            // Refused in the middle is fine.
            let _ = stream.write_all(&answer).await;
            let _ = stream.flush().await;
            match end {
                End::Closed => _ = stream.shutdown().await,
                End::Cut => {}
                End::Reset => stream.get_ref().0.set_zero_linger().expect("the option is known"),
            }
        }
    });
    address
}

const ASK: &str = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 38\r\nConnection: close\r\n\r\ngrant_type=authorization_code&code=abc";

fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}\r\n").as_bytes(), body].concat()
}

fn sized(head: &str, body: &[u8]) -> Vec<u8> {
    answer(&format!("{head}Content-Length: {}\r\n", body.len()), body)
}

/// Answers of a token endpoint that cannot be read to their end, or not for what they are, each with how the host ends.
fn unreadable() -> Vec<(&'static str, Vec<u8>, End)> {
    let json = tokens();
    let body = json.as_bytes();
    let length = |length: usize| format!("Content-Length: {length}\r\n");
    let chunked = |wire: String| answer("Transfer-Encoding: chunked\r\n", wire.as_bytes());
    let chunk = format!("{:x}\r\n{json}\r\n", json.len());
    let utf16: Vec<u8> = json.encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        ("a short read", answer(&length(body.len() + 9), body), End::Closed),
        ("a short read, cut", answer(&length(body.len() + 9), body), End::Cut),
        ("a read error", answer(&length(body.len() + 9), body), End::Reset),
        ("half of it", answer(&length(body.len()), &body[..body.len() / 2]), End::Closed),
        ("half of it, reset", answer(&length(body.len()), &body[..body.len() / 2]), End::Reset),
        ("no length, cut before its end", answer("", &body[..60]), End::Cut),
        ("chunks without a last one", chunked(chunk.clone()), End::Closed),
        ("a chunk that is cut off", chunked(chunk[..50].to_owned()), End::Reset),
        ("a chunk size that is none behind it", chunked(format!("{chunk}zz\r\n")), End::Closed),
        ("trailing garbage", sized("", format!("{json}garbage").as_bytes()), End::Closed),
        ("a second object", sized("", format!("{json}{json}").as_bytes()), End::Closed),
        ("a mark of byte order", sized("", format!("\u{feff}{json}").as_bytes()), End::Closed),
        ("UTF-16", sized("", &utf16), End::Closed),
        ("bytes that are no UTF-8", sized("", &[body, b"\xff"].concat()), End::Closed),
        ("a guard before it", sized("", format!(")]}}',\n{json}").as_bytes()), End::Closed),
        ("JavaScript", sized("", format!("callback({json})").as_bytes()), End::Closed),
        ("XML", sized("", format!("<access_token>{ACCESS}</access_token>").as_bytes()), End::Closed),
        ("base64", sized("", BASE64.encode(body).as_bytes()), End::Closed),
        ("oversize", sized("", format!("{json}{}", " ".repeat(70_000)).as_bytes()), End::Closed),
        (
            "oversize without a length",
            answer("", format!("{json}{}", " ".repeat(2 << 20)).as_bytes()),
            End::Closed,
        ),
        ("said to be compressed", sized("Content-Encoding: gzip\r\n", body), End::Closed),
        ("said to be compressed twice", sized("Content-Encoding: identity, br\r\n", body), End::Closed),
        ("compressed, not said", sized("", &[b"\x1f\x8b\x08\0\0\0\0\0\0\x03", body].concat()), End::Closed),
        ("a transfer coding", answer("Transfer-Encoding: gzip, chunked\r\n", chunk.as_bytes()), End::Closed),
        (
            "a piece that was asked for",
            {
                let piece = format!(
                    "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 17-54/200\r\nContent-Length: 39\r\n\r\n{ACCESS}="
                );
                piece.into_bytes()
            },
            End::Closed,
        ),
        (
            "tokens that are no text",
            sized("", format!(r#"{{"access_token":["{ACCESS}"]}}"#).as_bytes()),
            End::Closed,
        ),
        (
            "tokens in an error",
            {
                format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{json}", json.len())
                    .into_bytes()
            },
            End::Closed,
        ),
        (
            "tokens in a redirect",
            {
                format!("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: {}\r\n\r\n{json}", json.len())
                    .into_bytes()
            },
            End::Closed,
        ),
    ]
}

/// CVE-2026-101998: masking failed open where the answer could not be read, and the tokens of a login reached the guest.
#[test]
fn cve_2026_101998_masking_does_not_fail_open() {
    run(async {
        let mut wrong = Vec::new();
        for (name, answer, end) in unreadable() {
            let world = World::new();
            world.intercept.set_credentials(sign_in(HOST));
            let address = host(world.authority.server(&[HOST], &["http/1.1"]), answer, end).await;
            let (guest, flow) = world.open(443, Tcp(address));
            let guest = world.tls(guest, HOST, &["h2", "http/1.1"]).await.expect("TLS");
            let sent = format!("POST /oauth/token HTTP/1.1\r\nHost: {HOST}\r\n{ASK}");
            let seen = raw_exchange(guest, sent.as_bytes()).await;
            if leaks(&seen) || statuses(&seen).first().is_some_and(|status| *status < 400) {
                wrong.push(format!("{name}: {}", String::from_utf8_lossy(&seen)));
            }
            flow.await.expect("no panic");
            let records = format!("{:?}", world.records(1).await);
            assert!(!leaks(records.as_bytes()), "{name}: {records}");
            assert!(world.log.grants.borrow().is_empty(), "{name}: nothing is kept of it");
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    });
}

/// CVE-2026-101998 on HTTP/2, where a stream ends alone: the host resets it in the middle of the answer.
#[test]
fn cve_2026_101998_a_reset_stream_shows_nothing() {
    run(async {
        for cut in [20, 40, tokens().len() - 1, tokens().len()] {
            let world = World::new();
            world.intercept.set_credentials(sign_in(HOST));
            let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |_| {
                let first = Ok(Frame::data(bytes::Bytes::from(tokens()[..cut].to_owned())));
                let pieces = [first, Err(std::io::Error::other("the host gives up"))];
                let body: AnyBody = Box::pin(StreamBody::new(futures_util::stream::iter(pieces)));
                Box::pin(async move { http::Response::new(body) })
            });
            let mut client = world.client(&["h2"], server).await;
            let request = Request::post("/oauth/token")
                .header("content-type", "application/x-www-form-urlencoded")
                .body(bytes("grant_type=authorization_code&code=abc"))
                .expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert!(head.status.is_server_error(), "{cut}: {}", head.status);
            assert!(!leaks(&body) && world.log.grants.borrow().is_empty(), "{cut}");
        }
    });
}

/// CVE-2026-101998, the other way round: what can be read is kept, and none of it stands in the head or the trailers either.
#[test]
fn cve_2026_101998_tokens_beside_the_body_are_masked() {
    run(async {
        let json = tokens();
        let head = format!("Location: https://localhost/#access_token={ACCESS}\r\nX-Token: {REFRESH}\r\n");
        let trailers = format!("X-Token: {ACCESS}\r\n");
        for answer in [
            sized(&head, json.as_bytes()),
            answer(
                &format!("{head}Transfer-Encoding: chunked\r\nTrailer: X-Token\r\n"),
                format!("{:x}\r\n{json}\r\n0\r\n{trailers}\r\n", json.len()).as_bytes(),
            ),
        ] {
            let world = World::new();
            world.intercept.set_credentials(sign_in(HOST));
            let address = host(world.authority.server(&[HOST], &["http/1.1"]), answer, End::Closed).await;
            let (guest, _flow) = world.open(443, Tcp(address));
            let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            let sent = format!(
                "POST /oauth/token HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\n{}",
                ASK.replace("Connection: close", "Connection: close, TE")
            );
            let seen = raw_exchange(guest, sent.as_bytes()).await;
            let text = String::from_utf8_lossy(&seen);
            assert_eq!(statuses(&seen), [200], "{text}");
            assert!(!leaks(&seen), "{text}");
            assert_eq!(*world.log.grants.borrow(), ["mine"]);
        }
    });
}

/// How the guest may spell host and path of the token endpoint: SNI, Host and target.
fn spellings() -> Vec<(&'static str, String, String)> {
    let host = |sni: &'static str, host: &str| (sni, host.to_owned(), "/oauth/token".to_owned());
    let path = |path: &str| (HOST, HOST.to_owned(), path.to_owned());
    vec![
        host(HOST, HOST),
        host("API.EXAMPLE.COM", HOST),
        host(HOST, "API.EXAMPLE.COM"),
        host("aPi.ExAmPlE.cOm", "ApI.eXaMpLe.CoM"),
        host(HOST, "api.example.com."),
        host(HOST, "API.EXAMPLE.COM.:443"),
        host(HOST, "api.example.com:443"),
        host(HOST, "api.example.com:0443"),
        host(HOST, "api.example.com:"),
        host(HOST, "api.example.com.."),
        host(HOST, "api%2eexample.com"),
        host(HOST, "\u{ff41}pi.example.com"),
        host(HOST, "api\u{3002}example.com"),
        host(HOST, "xn--api-.example.com"),
        host(HOST, "user@api.example.com"),
        host(HOST, " api.example.com "),
        path("https://api.example.com/oauth/token"),
        path("HTTPS://API.EXAMPLE.COM/oauth/token"),
        path("/oauth/token?x=1"),
        path("/oauth/token?"),
        path("/oauth/token/"),
        path("//oauth//token"),
        path("/./oauth/./token"),
        path("/x/../oauth/token"),
        path("/x/%2e%2e/oauth/token"),
        path("/oauth/%74oken"),
        path("/oauth/%54OKEN"),
        path("/OAuth/Token"),
        path("/oauth%2ftoken"),
        path("/oauth%2Ftoken"),
        path("/oauth\\token"),
        path("/oauth%5ctoken"),
        path("/oauth/token;v=1"),
        path("/oauth;v=1/token"),
        path("/oauth/token.json"),
        path("/oauth/token%00"),
        path("/oauth/token%20"),
        path("/oauth/token%3b"),
        path("/oauth/%2574oken"),
        path("/oauth/token#x"),
        path("/oauth/t%C3%B3ken/../token"),
    ]
}

/// CVE-2026-105570: the token endpoint's host was compared with case, so that another spelling was not looked into. The host here answers any
/// request with tokens; no spelling gets them.
#[test]
fn cve_2026_105570_no_spelling_passes_the_mask() {
    run(async {
        for bound in [HOST, "API.Example.COM", "api.example.com.", "**.EXAMPLE.com", "*.example.com"] {
            let world = World::new();
            world.intercept.set_credentials(sign_in(bound));
            let server = Server::hyper(Some(world.authority.server(&[HOST], &["http/1.1"])), |request| {
                Box::pin(async move {
                    request.into_body().collect().await.expect("a body");
                    ok(tokens())
                })
            });
            assert!(world.intercept.wants(&FlowHost::Name(Name::parse(HOST).expect("a name")), 443));
            let mut kept = 0;
            for (sni, host, target) in spellings() {
                // Anew each time: a token that is known already is masked wherever it stands.
                world.intercept.set_credentials(sign_in(bound));
                let (guest, _flow) = world.open(443, server.clone());
                let guest = world.tls(guest, sni, &["http/1.1"]).await.expect("TLS");
                let sent = format!("POST {target} HTTP/1.1\r\nHost: {host}\r\n{ASK}");
                let seen = raw_exchange(guest, sent.as_bytes()).await;
                let text = String::from_utf8_lossy(&seen);
                assert!(!leaks(&seen), "{bound}, {sni}, {host}, {target}: {text}");
                let status = statuses(&seen).first().copied();
                assert!(
                    status.is_some_and(|status| status == 200 || status >= 400),
                    "{host}, {target}: {text}"
                );
                kept += usize::from(status == Some(200));
            }
            assert!(kept >= 15, "{bound}: the harmless spellings are served, {kept} were");
            assert_eq!(world.log.grants.borrow().len(), kept);
        }
    });
}

/// CVE-2026-105570 by the method: servers exist that grant tokens to other methods than POST.
#[test]
fn cve_2026_105570_no_method_passes_the_mask() {
    run(async {
        for method in ["GET", "PUT", "PATCH", "DELETE", "QUERY", "post", "Post"] {
            let world = World::new();
            world.intercept.set_credentials(sign_in(HOST));
            let server = Server::hyper(Some(world.authority.server(&[HOST], &["http/1.1"])), |request| {
                Box::pin(async move {
                    request.into_body().collect().await.expect("a body");
                    ok(tokens())
                })
            });
            let (guest, _flow) = world.open(443, server);
            let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            let sent = format!(
                "{method} /oauth/token HTTP/1.1\r\nHost: {HOST}\r\nX-HTTP-Method-Override: POST\r\n{ASK}"
            );
            let seen = raw_exchange(guest, sent.as_bytes()).await;
            assert!(!leaks(&seen), "{method}: {}", String::from_utf8_lossy(&seen));
        }
    });
}

/// What the host got of each request: target and fields.
type Got = Rc<RefCell<Vec<(String, HeaderMap)>>>;

fn recording(world: &World, alpn: &[&str]) -> (Server, Got) {
    let got: Got = Rc::default();
    let all = Rc::clone(&got);
    let server = Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request| {
        all.borrow_mut().push((request.uri().to_string(), request.headers().clone()));
        Box::pin(async { ok("served") })
    });
    (server, got)
}

/// A client's own credential beside the one that is put in, as lines of an HTTP/1 head.
fn second_credentials() -> Vec<(&'static str, String)> {
    let ours = format!("Authorization: Bearer {HOLDER}\r\n");
    let with = |more: &str| format!("{ours}{more}\r\n");
    vec![
        ("a second Authorization", with("Authorization: Bearer attackers-own-0123456789")),
        ("before ours", format!("Authorization: Bearer attackers-own-0123456789\r\n{ours}")),
        ("in another case", with("aUTHORIZATION: Bearer attackers-own-0123456789")),
        ("of another scheme", with("Authorization: Basic YXR0YWNrZXI6b3du")),
        ("an empty one beside", with("Authorization:")),
        ("in a list", format!("Authorization: Bearer {HOLDER}, Bearer attackers-own-0123456789\r\n")),
        ("behind ours", format!("Authorization: Bearer {HOLDER} attackers-own-0123456789\r\n")),
        ("before ours in one value", format!("Authorization: Bearer attackers-own-0123456789 {HOLDER}\r\n")),
        ("on a folded line", format!("Authorization: Bearer {HOLDER}\r\n attackers-own-0123456789\r\n")),
        (
            "on a folded line of its own",
            format!("Authorization: Bearer\r\n\tattackers-own-0123456789\r\nX-A: {HOLDER}\r\n"),
        ),
        ("behind a bare CR", with("X-A: 1\rAuthorization: Bearer attackers-own-0123456789")),
        ("a space before the colon", with("Authorization : Bearer attackers-own-0123456789")),
        ("a tab before the colon", with("Authorization\t: Bearer attackers-own-0123456789")),
        ("a space before the name", with(" Authorization: Bearer attackers-own-0123456789")),
        ("X-Api-Key", with("X-Api-Key: attackers-own-0123456789")),
        ("X-Api-Key before", format!("x-API-key: attackers-own-0123456789\r\n{ours}")),
        ("X_Api_Key, which gateways of servers read alike", with("X_Api_Key: attackers-own-0123456789")),
        ("Api-Key", with("Api-Key: attackers-own-0123456789")),
        ("Private-Token", with("PRIVATE-TOKEN: attackers-own-0123456789")),
        ("Job-Token", with("JOB-TOKEN: attackers-own-0123456789")),
        ("Deploy-Token", with("Deploy-Token: attackers-own-0123456789")),
        ("X-Auth-Token", with("X-Auth-Token: attackers-own-0123456789")),
        ("X-Goog-Api-Key", with("x-goog-api-key: attackers-own-0123456789")),
        ("none of ours at all", "Authorization: Bearer attackers-own-0123456789\r\n".to_owned()),
        ("none of ours, another header", "X-Api-Key: attackers-own-0123456789\r\n".to_owned()),
    ]
}

/// CVE-2026-105452: a credential of the client's own was forwarded next to the one that was put in.
#[test]
fn cve_2026_105452_no_second_credential_is_forwarded() {
    run(async {
        for (name, fields) in second_credentials() {
            let world = World::new();
            world.intercept.set_credentials(token());
            let (server, got) = recording(&world, &["http/1.1"]);
            let (guest, _flow) = world.open(443, server);
            let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
            let sent = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
            let seen = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&seen).first().map(|status| status / 100), Some(4), "{name}");
            assert!(got.borrow().is_empty(), "{name}: {:?}", got.borrow());
        }
    });
}

/// CVE-2026-105452 where the second one stands in the target (RFC 6750 §2.3: never more than one method).
#[test]
fn cve_2026_105452_no_second_credential_in_the_target() {
    run(async {
        for alpn in ["h2", "http/1.1"] {
            for query in [
                "access_token=attackers-own-0123456789",
                "x=1&access_token=attackers-own-0123456789&y",
                "access%5Ftoken=attackers-own-0123456789",
                "private_token=attackers-own-0123456789",
                "job_token=attackers-own-0123456789",
            ] {
                let world = World::new();
                world.intercept.set_credentials(token());
                let (server, got) = recording(&world, &[alpn]);
                let mut client = world.client(&[alpn], server).await;
                let request = Request::get(format!("/?{query}"))
                    .header("authorization", format!("Bearer {HOLDER}"))
                    .body(bytes(""))
                    .expect("a request");
                let (head, _) = whole(client.send(request).await.expect("an answer")).await;
                assert!(head.status.is_client_error(), "{alpn} {query}: {}", head.status);
                assert!(got.borrow().is_empty(), "{alpn} {query}: {:?}", got.borrow());
            }
        }
    });
}

/// CVE-2026-105452 on HTTP/2, in fields and in trailers; and what is for a proxy goes no further than here.
#[test]
fn cve_2026_105452_no_second_credential_on_http2() {
    run(async {
        let ask = || Request::get("/").header("authorization", format!("Bearer {HOLDER}"));
        for (name, field) in [("authorization", "Bearer own"), ("x-api-key", "own"), ("x_api_key", "own")] {
            let world = World::new();
            world.intercept.set_credentials(token());
            let (server, got) = recording(&world, &["h2"]);
            let mut client = world.client(&["h2"], server).await;
            let request = ask().header(name, field).body(bytes("")).expect("a request");
            let (head, _) = whole(client.send(request).await.expect("an answer")).await;
            assert!(head.status.is_client_error() && got.borrow().is_empty(), "{name}: {}", head.status);
        }
        let world = World::new();
        world.intercept.set_credentials(token());
        let (server, got) = recording(&world, &["h2"]);
        let mut client = world.client(&["h2"], server).await;
        let request = ask().header("proxy-authorization", "Basic b3du").body(bytes("")).expect("a request");
        whole(client.send(request).await.expect("an answer")).await;
        let fields = got.borrow()[0].1.clone();
        assert_eq!(fields["authorization"], format!("Bearer {REAL}"));
        assert!(!fields.contains_key("proxy-authorization"), "{fields:?}");
    });
}

/// sbx#224: the transparent gateway connected to what the Host field named. Here the flow's address was decided by its name before there was a
/// head; a head for another host is refused, and none of its fields changes who is dialled.
#[test]
fn sbx_224_the_head_chooses_no_destination() {
    run(async {
        let evil = [
            ("Host", "GET / HTTP/1.1\r\nHost: evil.org\r\n".to_owned(), 421),
            ("the target", format!("GET http://evil.org/ HTTP/1.1\r\nHost: {HOST}\r\n"), 421),
            ("both", "GET http://evil.org/ HTTP/1.1\r\nHost: evil.org\r\n".to_owned(), 421),
            ("CONNECT", "CONNECT evil.org:443 HTTP/1.1\r\nHost: evil.org:443\r\n".to_owned(), 405),
            ("an address", "GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n".to_owned(), 421),
            ("a port", format!("GET / HTTP/1.1\r\nHost: {HOST}:22\r\n"), 421),
            ("two of them", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: evil.org\r\n"), 400),
            ("a list", format!("GET / HTTP/1.1\r\nHost: {HOST}, evil.org\r\n"), 400),
        ];
        for port in [80, 443] {
            for (name, head, status) in &evil {
                let world = World::new();
                let tls = (port == 443).then(|| world.authority.server(&[HOST], &["http/1.1"]));
                let server = Server::hyper(tls, |_| Box::pin(async { panic!("no request may come") }));
                let dialled = Rc::clone(&server.dialled);
                let (guest, _flow) = world.open(port, server);
                let sent = format!("{head}Connection: close\r\n\r\n");
                let seen = if port == 443 {
                    let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
                    raw_exchange(guest, sent.as_bytes()).await
                } else {
                    raw_exchange(guest, sent.as_bytes()).await
                };
                assert_eq!(statuses(&seen), [*status], "{name}");
                // With TLS its handshake is made before there is a head.
                assert!(dialled.get() <= usize::from(port == 443), "{name}");
                let decision = world.records(1).await.remove(0).decision;
                assert!(matches!(decision, Decision::Mismatch | Decision::Malformed), "{name}: {decision:?}");
            }
        }
        // Fields that other proxies route by are the host's to read: it is the allowed one, and is told its own name.
        let world = World::new();
        let (server, got) = recording(&world, &["http/1.1"]);
        let dialled = Rc::clone(&server.dialled);
        let mut client = world.client(&["http/1.1"], server).await;
        let request = Request::get("/")
            .header("x-forwarded-host", "evil.org")
            .header("forwarded", "host=evil.org")
            .header("x-host", "evil.org")
            .body(bytes(""))
            .expect("a request");
        whole(client.send(request).await.expect("an answer")).await;
        assert_eq!((dialled.get(), &got.borrow()[0].1["host"]), (1, &http::HeaderValue::from_static(HOST)));
        // And a handshake for another name ends the flow before anything is dialled.
        let world = World::new();
        let (server, _) = recording(&world, &["http/1.1"]);
        let dialled = Rc::clone(&server.dialled);
        let flow = Flow { host: FlowHost::Name(Name::parse(HOST).expect("a name")), port: 443 };
        let (guest, end) = world.open_to(flow, server);
        assert!(world.tls(guest, "evil.org", &["http/1.1"]).await.is_err());
        assert!(matches!(end.await.expect("no panic"), FlowEnd::Refused(_)));
        assert_eq!(dialled.get(), 0);
    });
}
