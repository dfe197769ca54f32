//! AWS requests signed again and OAuth tokens kept, through the whole path. The guest signs with what it has; the host verifies
//! with the real key, by code of its own.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{AnyBody, Client, HOST, Server, World, bytes, channel, ok, run, whole};
use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use intercept::{Limits, RequestRecord};
use ring::{digest, hmac};
use vault::sigv4::Keys;
use vault::{Binding, Credential, Credentials, Secret, Value};

const GUEST_ID: &str = "AKIAPLACEHOLDERABCDE";
const GUEST_SECRET: &str = "placeholderplaceholderplaceholder1234567";
const REAL_ID: &str = "AKIAREALREALREALREAL";
const REAL_SECRET: &str = "REALSECRETREALSECRETREALSECRETREALSECRET";
const REGION: &str = "eu-central-1";

fn credentials() -> Credentials {
    let keys = Keys {
        key_id: Secret::from(REAL_ID.to_owned()),
        secret: Secret::from(REAL_SECRET.to_owned()),
        session_token: None,
    };
    let value = Value::Aws { key_id: GUEST_ID.into(), secret: GUEST_SECRET.into(), keys: keys.into() };
    let binding = Binding {
        hosts: vec![HOST.parse().expect("a host")],
        places: vec!["sigv4".parse().expect("a place")],
        ..Binding::default()
    };
    Credentials::new(vec![Credential { name: "aws".into(), binding, value }])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

/// `20261122T023000Z` of now: signatures are dated.
fn stamp() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days (Howard Hinnant's algorithm).
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

struct Signing<'a> {
    secret: &'a str,
    stamp: &'a str,
    service: &'a str,
}

impl Signing<'_> {
    fn scope(&self) -> String {
        format!("{}/{REGION}/{}/aws4_request", &self.stamp[..8], self.service)
    }

    fn key(&self) -> Vec<u8> {
        let first = mac(format!("AWS4{}", self.secret).as_bytes(), &self.stamp[..8]);
        [REGION, self.service, "aws4_request"].iter().fold(first, |key, text| mac(&key, text))
    }

    /// The signature of a request whose signed fields are these, in order.
    fn request(&self, method: &str, path: &str, fields: &[(&str, String)], payload: &str) -> String {
        let canonical: String = fields.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
        let request = format!("{method}\n{path}\n\n{canonical}\n{}\n{payload}", names.join(";"));
        let text = format!("AWS4-HMAC-SHA256\n{}\n{}\n{}", self.stamp, self.scope(), sha(request.as_bytes()));
        hex(&mac(&self.key(), &text))
    }

    fn chunk(&self, before: &str, data: &[u8]) -> String {
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{before}\n{}\n{}",
            self.stamp,
            self.scope(),
            sha(b""),
            sha(data)
        );
        hex(&mac(&self.key(), &text))
    }
}

/// The guest's request: signed with what it has.
fn signed(
    path: &str,
    service: &str,
    stamp: &str,
    payload: &str,
    declared: bool,
    body: AnyBody,
) -> (Request<AnyBody>, String) {
    let signing = Signing { secret: GUEST_SECRET, stamp, service };
    let mut fields = vec![("host", HOST.to_owned())];
    if declared {
        fields.push(("x-amz-content-sha256", payload.to_owned()));
    }
    fields.push(("x-amz-date", stamp.to_owned()));
    let signature = signing.request("PUT", path, &fields, payload);
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={GUEST_ID}/{}, SignedHeaders={}, Signature={signature}",
        signing.scope(),
        names.join(";")
    );
    let mut request = Request::put(path).header("authorization", authorization);
    for (name, value) in fields.iter().filter(|(name, _)| *name != "host") {
        request = request.header(*name, value);
    }
    (request.body(body).expect("a request"), signature)
}

/// What the host has to see: a signature with the real key over what arrived. Gives the signature.
fn verified(head: &Parts, service: &str, payload: &str) -> String {
    let authorization = head.headers["authorization"].to_str().expect("text");
    assert!(authorization.contains(&format!("Credential={REAL_ID}/")), "{authorization}");
    let stamp = head.headers["x-amz-date"].to_str().expect("text");
    let names =
        authorization.split("SignedHeaders=").nth(1).expect("names").split(',').next().expect("names");
    let fields: Vec<(&str, String)> = names
        .split(';')
        .map(|name| {
            let value = match head.headers.get(name) {
                Some(value) => value.to_str().expect("text").to_owned(),
                None => head.uri.authority().expect("HTTP/2's host").to_string(),
            };
            (name, value)
        })
        .collect();
    let signing = Signing { secret: REAL_SECRET, stamp, service };
    let expected = signing.request(head.method.as_str(), head.uri.path(), &fields, payload);
    assert_eq!(authorization.split("Signature=").nth(1), Some(expected.as_str()), "{authorization}");
    expected
}

type Handler = Box<dyn Fn(Parts, Result<Bytes, String>) -> Response<AnyBody>>;

fn host(world: &World, alpn: &[&str], handler: Handler) -> Server {
    let handler = Rc::new(handler);
    Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request| {
        let handler = Rc::clone(&handler);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).map_err(|error| error.to_string());
            handler(head, body)
        })
    })
}

#[test]
fn declared_and_undeclared_bodies_are_signed_again() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            for (service, declared) in [("s3", true), ("sqs", false)] {
                let world = World::new();
                world.intercept.set_credentials(credentials());
                let server = host(
                    &world,
                    alpn,
                    Box::new(move |head, body| {
                        let body = body.expect("a whole body");
                        verified(&head, service, &sha(&body));
                        ok(body)
                    }),
                );
                let mut client = world.client(alpn, server).await;
                let body = "Action=GetCallerIdentity";
                let (request, _) =
                    signed("/a/b", service, &stamp(), &sha(body.as_bytes()), declared, bytes(body));
                let (head, echoed) = whole(client.send(request).await.expect("an answer")).await;
                assert_eq!(
                    (head.status.as_u16(), echoed.as_ref()),
                    (200, body.as_bytes()),
                    "{service} {alpn:?}"
                );
                let record = world.records(1).await.remove(0);
                assert_eq!(record.secrets, ["aws"]);
                assert_eq!(record.sent, body.len() as u64);
            }
        }
    });
}

#[test]
fn an_unsigned_payload_streams_and_an_undeclared_one_has_a_limit() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials());
        let server = host(
            &world,
            &["h2"],
            Box::new(|head, body| {
                verified(&head, "s3", "UNSIGNED-PAYLOAD");
                ok(body.expect("a whole body").len().to_string())
            }),
        );
        let mut client = world.client(&["h2"], server).await;
        let long = 17 << 20;
        let (request, _) = signed("/a", "s3", &stamp(), "UNSIGNED-PAYLOAD", true, bytes(vec![1; long]));
        let (head, body) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!((head.status.as_u16(), body), (200, Bytes::from(long.to_string())));
        let (request, _) = signed("/a", "sts", &stamp(), &sha(&vec![1; long]), false, bytes(vec![1; long]));
        let (head, _) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(head.status.as_u16(), 413);
    });
}

#[test]
fn bodies_that_are_held_have_so_much_room_in_all() {
    run(async {
        let world = World::with(Limits { held_body: 1024, held_in_all: 2048, ..Limits::default() });
        world.intercept.set_credentials(credentials());
        let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), |request| {
            Box::pin(async move { ok(request.into_body().collect().await.expect("a body").to_bytes()) })
        });
        let Client::Http2(sender) = world.client(&["h2"], server).await else { panic!("HTTP/2") };
        let ask = |body: AnyBody| {
            let (request, _) = signed("/a", "sqs", &stamp(), &sha(b"abc"), false, body);
            let mut client = Client::Http2(sender.clone());
            tokio::task::spawn_local(async move {
                whole(client.send(request).await.expect("an answer")).await.0.status.as_u16()
            })
        };
        // Two that do not end take all of it.
        let begun = || {
            let (sender, body) = channel();
            sender.send(Frame::data("abc".into())).expect("open");
            (sender, ask(body))
        };
        let ((first, first_answer), (second, second_answer)) = (begun(), begun());
        let third = ask(bytes("abc"));
        for _ in 0..5000 {
            tokio::task::yield_now().await;
        }
        assert!(!third.is_finished(), "there was room for a third one");
        drop(first);
        assert_eq!((first_answer.await.expect("no panic"), third.await.expect("no panic")), (200, 200));
        drop(second);
        assert_eq!(second_answer.await.expect("no panic"), 200);
        let records = world.records(3).await;
        let waited =
            |record: &RequestRecord| record.detail.as_deref().is_some_and(|text| text.starts_with("waited"));
        assert_eq!(records.iter().filter(|record| waited(record)).count(), 1, "{records:?}");
    });
}

/// A guest cannot keep a key in use by a body that does not end.
#[test]
fn a_key_that_is_removed_before_the_body_has_come_signs_nothing() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials());
        let asked = Rc::new(RefCell::new(0));
        let counted = Rc::clone(&asked);
        let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |_| {
            *counted.borrow_mut() += 1;
            Box::pin(async { ok("answered") })
        });
        let mut client = world.client(&["h2"], server).await;
        let (sender, body) = channel();
        sender.send(Frame::data("ab".into())).expect("open");
        let (request, _) = signed("/a", "sqs", &stamp(), &sha(b"abc"), false, body);
        let answer =
            tokio::task::spawn_local(
                async move { whole(client.send(request).await.expect("an answer")).await },
            );
        for _ in 0..5000 {
            tokio::task::yield_now().await;
        }
        world.intercept.set_credentials(Credentials::default());
        sender.send(Frame::data("c".into())).expect("open");
        drop(sender);
        let (head, body) = answer.await.expect("no panic");
        assert_eq!((head.status.as_u16(), *asked.borrow()), (502, 0), "{body:?}");
        let record = world.records(1).await.remove(0);
        assert!(record.detail.is_some_and(|why| why.contains("secrets changed")));
    });
}

#[test]
fn a_signature_that_is_not_the_guests_is_not_replaced() {
    run(async {
        let world = World::new();
        world.intercept.set_credentials(credentials());
        let server = host(&world, &["h2"], Box::new(|_, _| panic!("nothing may come")));
        let mut client = world.client(&["h2"], server).await;
        let (mut request, signature) = signed("/a", "s3", &stamp(), &sha(b"x"), true, bytes("x"));
        let old = request.headers()["authorization"]
            .to_str()
            .expect("text")
            .replace(GUEST_ID, "AKIASOMEBODYELSES000");
        request
            .headers_mut()
            .insert("authorization", old.replace(&signature, &"0".repeat(64)).parse().expect("a value"));
        let (head, _) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(head.status.as_u16(), 403);
    });
}

#[test]
fn an_upload_in_signed_chunks_is_signed_chunk_by_chunk() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            world.intercept.set_credentials(credentials());
            let stamp = stamp();
            let at_host = stamp.clone();
            let server = host(
                &world,
                alpn,
                Box::new(move |head, body| {
                    let body = body.expect("a whole body");
                    let mut before = verified(&head, "s3", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
                    assert_eq!(head.headers["x-amz-date"].to_str().expect("text"), at_host);
                    let signing = Signing { secret: REAL_SECRET, stamp: &at_host, service: "s3" };
                    let (mut rest, mut data) = (&body[..], Vec::new());
                    loop {
                        let line = rest.windows(2).position(|end| end == b"\r\n").expect("a line");
                        let text = std::str::from_utf8(&rest[..line]).expect("text");
                        let (size, signature) = text.split_once(";chunk-signature=").expect("a signature");
                        let size = usize::from_str_radix(size, 16).expect("a size");
                        let chunk = &rest[line + 2..line + 2 + size];
                        assert_eq!(signature, signing.chunk(&before, chunk));
                        before = signature.to_owned();
                        data.extend_from_slice(chunk);
                        rest = &rest[line + 2 + size + 2..];
                        if size == 0 {
                            break;
                        }
                    }
                    assert!(rest.is_empty());
                    ok(sha(&data))
                }),
            );
            let mut client = world.client(alpn, server).await;
            let payload = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
            let (request, mut before) = signed("/bucket/key", "s3", &stamp, payload, true, bytes(""));
            let signing = Signing { secret: GUEST_SECRET, stamp: &stamp, service: "s3" };
            let data: Vec<u8> = (0..150_000u32).map(|at| at as u8).collect();
            let mut wire = Vec::new();
            for chunk in data.chunks(65_536).chain([&[][..]]) {
                before = signing.chunk(&before, chunk);
                wire.extend(format!("{:x};chunk-signature={before}\r\n", chunk.len()).into_bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            // In pieces that end anywhere.
            let pieces: Vec<_> =
                wire.chunks(7_001).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
            let body: AnyBody = Box::pin(StreamBody::new(futures_util::stream::iter(pieces)));
            let (mut head, _) = request.into_parts();
            head.headers.insert("content-length", wire.len().into());
            head.headers.insert("x-amz-decoded-content-length", data.len().into());
            let (head, body) =
                whole(client.send(Request::from_parts(head, body)).await.expect("an answer")).await;
            assert_eq!((head.status.as_u16(), body.as_ref()), (200, sha(&data).as_bytes()), "{alpn:?}");
        }
    });
}

const ACCESS: &str = "real-access-token-0123456789abcdefghij";
const REFRESH: &str = "real-refresh-token-0123456789abcdefghij";

fn sign_in() -> Credentials {
    let key = [7; 32];
    let sign_in = vault::oauth::SignIn {
        endpoint: vault::oauth::Endpoint {
            service: "mine".into(),
            hosts: vec![HOST.parse().expect("a host")],
            paths: vec!["/oauth/token".into()],
            resources: vec![HOST.parse().expect("a host")],
            body: vault::oauth::BodyKind::Form,
        },
        key,
        sandbox: "box".into(),
        grant: None,
    };
    let binding = Binding {
        hosts: vec![HOST.parse().expect("a host")],
        places: vec!["header:authorization".parse().expect("a place")],
        ..Binding::default()
    };
    Credentials::new(vec![Credential { name: "mine".into(), binding, value: Value::SignIn(sign_in) }])
}

fn token_answer(number: u32) -> String {
    format!(
        r#"{{"access_token":"{ACCESS}{number}","refresh_token":"{REFRESH}{number}","token_type":"bearer","expires_in":3600}}"#
    )
}

/// Signing in: the guest gets sentinels, uses them, refreshes with them; the gateway refreshes by itself. The host gets real ones.
#[test]
fn tokens_stay_on_this_side() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            world.intercept.set_credentials(sign_in());
            let asked: Rc<RefCell<Vec<String>>> = Rc::default();
            let all = Rc::clone(&asked);
            let server = host(
                &world,
                alpn,
                Box::new(move |head, body| {
                    let body = String::from_utf8(body.expect("a whole body").to_vec()).expect("text");
                    if head.uri.path() == "/oauth/token" {
                        assert_eq!(head.headers["accept-encoding"], "identity");
                        all.borrow_mut().push(body);
                        let number = all.borrow().len() as u32;
                        let mut response = ok(token_answer(number));
                        response
                            .headers_mut()
                            .insert("content-type", "application/json".parse().expect("a value"));
                        return response;
                    }
                    ok(head.headers["authorization"]
                        .to_str()
                        .expect("text")
                        .replace("real-", "got:real-")
                        .len()
                        .to_string())
                }),
            );
            let mut client = world.client(alpn, server.clone()).await;
            let ask = |form: &str| {
                Request::post("/oauth/token")
                    .header("content-type", "application/x-www-form-urlencoded")
                    .header("accept-encoding", "gzip")
                    .body(bytes(form.to_owned()))
                    .expect("a request")
            };
            let (head, body) = whole(
                client
                    .send(ask("grant_type=authorization_code&code=abc&client_id=me"))
                    .await
                    .expect("an answer"),
            )
            .await;
            assert_eq!(head.status.as_u16(), 200);
            let text = String::from_utf8(body.to_vec()).expect("text");
            assert!(!text.contains(ACCESS) && !text.contains(REFRESH), "{text}");
            let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let sentinel = |field: &str| answer[field].as_str().expect("a sentinel").to_owned();
            assert_eq!(*world.log.grants.borrow(), ["mine"]);
            // Used: the host gets the real one.
            let request =
                Request::get("/me").header("authorization", format!("Bearer {}", sentinel("access_token")));
            let (_, body) =
                whole(client.send(request.body(bytes("")).expect("a request")).await.expect("an answer"))
                    .await;
            assert_eq!(body, format!("Bearer got:{ACCESS}1").len().to_string());
            // Refreshed by the guest: the host gets the real one.
            let form =
                format!("grant_type=refresh_token&refresh_token={}&client_id=me", sentinel("refresh_token"));
            whole(client.send(ask(&form)).await.expect("an answer")).await;
            assert!(asked.borrow()[1].contains(&format!("refresh_token={REFRESH}1")), "{:?}", asked.borrow());
            // Refreshed by us.
            let due = world.intercept.credentials().refresh("mine").expect("a request for new tokens");
            let grant = world.intercept.refresh(&due, server).await.expect("refreshed");
            assert_eq!(grant.name(), "mine");
            assert!(asked.borrow()[2].contains(&format!("{REFRESH}2")), "{:?}", asked.borrow());
            let request =
                Request::get("/me").header("authorization", format!("Bearer {}", sentinel("access_token")));
            let (head, _) =
                whole(client.send(request.body(bytes("")).expect("a request")).await.expect("an answer"))
                    .await;
            assert_eq!(head.status.as_u16(), 200, "the first sentinel still stands for the newest token");
            let records = world.records(4).await;
            assert!(!format!("{records:?}").contains("real-"));
        }
    });
}

/// What cannot be understood is not passed on: it may have a token in it (CVE-2026-101998).
#[test]
fn a_token_answer_that_cannot_be_read_is_kept_back() {
    run(async {
        for (name, field, answer) in [
            ("compressed though not asked for", Some(("content-encoding", "gzip")), token_answer(1)),
            ("neither JSON nor a form", None, format!("<token>{ACCESS}</token>")),
            ("cut off", None, token_answer(1)[..60].to_owned()),
            ("too long", None, format!("{}{}", token_answer(1), " ".repeat(2 << 20))),
        ] {
            let world = World::new();
            world.intercept.set_credentials(sign_in());
            let server = host(
                &world,
                &["h2"],
                Box::new(move |_, _| {
                    let mut response = ok(answer.clone());
                    response
                        .headers_mut()
                        .insert("content-type", "application/json".parse().expect("a value"));
                    if let Some((name, value)) = field {
                        response.headers_mut().insert(name, value.parse().expect("a value"));
                    }
                    response
                }),
            );
            let mut client = world.client(&["h2"], server).await;
            let request =
                Request::post("/oauth/token").header("content-type", "application/x-www-form-urlencoded");
            let request = request.body(bytes("grant_type=authorization_code&code=abc")).expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert!(!String::from_utf8_lossy(&body).contains("real-"), "{name}");
            assert!(
                head.status.is_server_error() || head.status.is_client_error(),
                "{name}: {}",
                head.status
            );
        }
    });
}
