//! The policy, request by request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::support::{HOST, Server, World, bytes, channel, ok, raw_exchange, run, statuses, whole};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use intercept::{Decision, Undecided};
use tokio::sync::mpsc::UnboundedSender;

fn server(world: &World, alpn: &[&str]) -> Server {
    Server::hyper(Some(world.authority.server(&[HOST], alpn)), |_| Box::pin(async { ok("served") }))
}

#[test]
fn a_refused_request_is_answered_with_rule_and_remedy_and_the_connection_goes_on() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            world.rule(&[("allow", "GET,HEAD", "/docs/**"), ("deny", "GET", "/docs/closed")]);
            let mut client = world.client(alpn, server(&world, alpn)).await;
            let (head, body) = client.get("/docs/a").await;
            assert_eq!((head.status, body.as_ref()), (StatusCode::OK, &b"served"[..]));
            let request = Request::post("/docs/a?token=hush").body(bytes("data")).expect("a request");
            let (head, body) = whole(client.send(request).await.expect("an answer")).await;
            assert_eq!(head.status, StatusCode::FORBIDDEN);
            assert_eq!(head.headers["content-type"], "application/json");
            let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!((&answer["error"], &answer["method"]), (&"denied".into(), &"POST".into()));
            assert_eq!(
                (&answer["host"], &answer["path"], &answer["port"]),
                (&HOST.into(), &"/docs/a".into(), &443.into())
            );
            assert!(answer["remedy"].as_str().expect("a remedy").starts_with("viv policy allow"), "{answer}");
            assert!(!String::from_utf8_lossy(&body).contains("hush"));
            assert!(answer.get("rule").is_none(), "no rule speaks of it: {answer}");
            let (head, body) = client.get("/docs/closed").await;
            assert_eq!(head.status, StatusCode::FORBIDDEN);
            let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            let rule = format!("sandbox/deny:{HOST}:GET:/docs/closed");
            assert_eq!((&answer["rule"], &answer["layer"]), (&rule.into(), &"sandbox".into()), "{answer}");
            assert!(answer["reason"].as_str().expect("a reason").starts_with("denied by deny "), "{answer}");
            let (head, _) = client.get("/docs/b").await;
            assert_eq!(head.status, StatusCode::OK, "the connection goes on");
            let records = world.records(4).await;
            let mut refused: Vec<_> =
                records.iter().filter(|record| record.decision == Decision::Refused).collect();
            refused.sort_by_key(|record| &record.path);
            assert_eq!(refused.len(), 2);
            for (record, expected) in refused.iter().zip([("POST", "/docs/a"), ("GET", "/docs/closed")]) {
                assert_eq!((record.method.as_str(), record.path.as_str()), expected);
                assert_eq!(record.status, 403);
                assert!(record.remedy.is_some() && record.layer.is_some());
            }
            let allowed = records.iter().find(|record| record.decision == Decision::Allowed).expect("one");
            assert!(allowed.rule.as_deref().expect("its rule").contains(HOST));
        }
    });
}

#[test]
fn grpc_is_refused_in_its_own_words() {
    run(async {
        let world = World::new();
        world.rule(&[("allow", "GET", "/")]);
        let mut client = world.client(&["h2"], server(&world, &["h2"])).await;
        let request = Request::post("/pkg.Service/Method")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers");
        let response = client.send(request.body(bytes("")).expect("a request")).await.expect("an answer");
        let (head, body) = whole(response).await;
        assert_eq!((head.status, body.len()), (StatusCode::OK, 0));
        assert_eq!(head.headers["grpc-status"], "7");
        assert!(head.headers["grpc-message"].to_str().expect("text").contains("viv policy allow"));
        assert_eq!(world.records(1).await[0].status, 403, "the log says what it was");
    });
}

#[test]
fn a_changed_rule_holds_for_the_next_request_of_an_old_connection() {
    run(async {
        let world = World::new();
        let mut client = world.client(&["h2"], server(&world, &["h2"])).await;
        assert_eq!(client.get("/a").await.0.status, StatusCode::OK);
        world.rule(&[("allow", "", ""), ("deny", "GET", "/a")]);
        assert_eq!(client.get("/a").await.0.status, StatusCode::FORBIDDEN);
        assert_eq!(client.get("/b").await.0.status, StatusCode::OK);
        world.rule(&[("allow", "", "")]);
        assert_eq!(client.get("/a").await.0.status, StatusCode::OK);
    });
}

/// Answers without an end, by path; what is sent into one reaches its reader.
type Streams = Rc<RefCell<HashMap<String, UnboundedSender<Frame<Bytes>>>>>;

/// Answers each GET with such a stream, and a POST never.
fn streaming(world: &World, alpn: &[&str]) -> (Server, Streams) {
    let streams = Streams::default();
    let all = Rc::clone(&streams);
    let server =
        Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request: Request<Incoming>| {
            let all = Rc::clone(&all);
            Box::pin(async move {
                let (sender, body) = channel();
                sender.send(Frame::data("first".into())).expect("open");
                all.borrow_mut().insert(request.uri().path().to_owned(), sender);
                if request.method() == "POST" {
                    std::future::pending::<()>().await;
                }
                Response::new(body)
            })
        });
    (server, streams)
}

async fn next(body: &mut Incoming) -> Result<Bytes, hyper::Error> {
    body.frame().await.expect("not the end").map(|frame| frame.into_data().expect("data"))
}

#[test]
fn a_changed_rule_ends_what_is_under_way_and_nothing_else() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            let (server, streams) = streaming(&world, alpn);
            let mut client = world.client(alpn, server.clone()).await;
            // On HTTP/1 a connection has one request: the other one is in a flow of its own.
            let mut other = if alpn == ["h2"] { None } else { Some(world.client(alpn, server).await) };
            let get = |path: &str| Request::get(path).body(bytes("")).expect("a request");
            let mut ended = client.send(get("/ended")).await.expect("an answer").into_body();
            let other = other.as_mut().unwrap_or(&mut client);
            let mut kept = other.send(get("/kept")).await.expect("an answer").into_body();
            assert_eq!(next(&mut ended).await.expect("its beginning"), "first");
            assert_eq!(next(&mut kept).await.expect("its beginning"), "first");
            world.rule(&[("allow", "", ""), ("deny", "GET", "/ended")]);
            // Neither side has moved a byte since.
            next(&mut ended).await.expect_err("it was cut off");
            let record = world.records(1).await.remove(0);
            assert_eq!((record.path.as_str(), record.status, record.received), ("/ended", 200, 5));
            assert_eq!(record.decision, Decision::Refused);
            assert!(record.detail.expect("why").starts_with("ended, for the policy changed: denied by"));
            assert!(record.rule.expect("the rule").contains("deny:") && record.remedy.is_some());
            let of = |path: &str| streams.borrow()[path].clone();
            of("/kept").send(Frame::data("second".into())).expect("the other one lives on");
            assert_eq!(next(&mut kept).await.expect("more"), "second");
            // The host's side of it is gone, too.
            of("/ended").closed().await;
        }
    });
}

#[test]
fn an_upload_under_way_is_refused_when_the_rule_comes() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            let (server, streams) = streaming(&world, alpn);
            let mut client = world.client(alpn, server).await;
            let (sender, body) = channel();
            sender.send(Frame::data("piece".into())).expect("open");
            let answer = client.send(Request::post("/upload").body(body).expect("a request"));
            let change = async {
                while streams.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                world.rule(&[("allow", "GET", "/**")]);
            };
            let (answer, ()) = tokio::join!(answer, change);
            let (head, body) = whole(answer.expect("an answer")).await;
            assert_eq!(head.status, StatusCode::FORBIDDEN);
            assert!(String::from_utf8_lossy(&body).contains("viv policy allow"));
            let record = world.records(1).await.remove(0);
            assert_eq!((record.decision, record.status), (Decision::Refused, 403));
        }
    });
}

#[test]
fn what_no_rule_speaks_of_passes_where_it_is_observed() {
    run(async {
        let world = World::new();
        world.rule(&[("allow", "GET", "/docs/**"), ("deny", "POST", "/closed")]);
        let (server, streams) = streaming(&world, &["h2"]);
        let mut client = world.client(&["h2"], server).await;
        let other = || Request::get("/other").body(bytes("")).expect("a request");
        let answer = client.send(other()).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        world.records(1).await;
        world.undecided(Undecided::Observe);
        let answer = client.send(other()).await.expect("an answer");
        streams.borrow_mut().clear();
        assert_eq!(whole(answer).await.1, "first");
        // A denial stays one.
        let request = Request::post("/closed").body(bytes("")).expect("a request");
        let (head, _) = whole(client.send(request).await.expect("an answer")).await;
        assert_eq!(head.status, StatusCode::FORBIDDEN);
        // What a rule allows is no observation.
        let answer = client.send(Request::get("/docs/a").body(bytes("")).expect("a request")).await;
        streams.borrow_mut().clear();
        assert_eq!(whole(answer.expect("an answer")).await.0.status, StatusCode::OK);
        let records = world.records(3).await;
        let of = |path: &str| records.iter().find(|record| record.path == path).expect("a record");
        assert_eq!((&of("/other").decision, of("/other").status), (&Decision::Observed, 200));
        assert_eq!(of("/closed").decision, Decision::Refused);
        assert_eq!(of("/docs/a").decision, Decision::Allowed);
        // Once nobody observes any more, it ends.
        let mut body = client.send(other()).await.expect("an answer").into_body();
        assert_eq!(next(&mut body).await.expect("an answer"), "first");
        world.undecided(Undecided::Refuse);
        next(&mut body).await.expect_err("it was cut off");
        assert_eq!(world.records(1).await.remove(0).decision, Decision::Refused);
    });
}

/// What tries to be another path or method for the host than for us.
#[test]
fn paths_and_methods_in_disguise_are_judged_as_what_they_may_be() {
    run(async {
        for (line, fields, expected) in [
            ("GET /public/a", "", 200),
            ("GET /private/a", "", 403),
            ("GET /%70rivate/a", "", 403),
            ("GET //private/a", "", 403),
            ("GET /public/..%2fprivate/a", "", 400),
            ("GET /public/../private/a", "", 400),
            ("GET /public/%2e%2e/private/a", "", 400),
            ("GET /public/%252e%252e/private", "", 400),
            ("GET /public%2fa", "", 403),
            ("GET /private;x/a", "", 403),
            ("GET /public/a%00b", "", 400),
            ("GET /public/a%zz", "", 400),
            ("GET /public/a#/../private", "", 200),
            ("GET /public/a?x=../../private", "", 200),
            ("POST /public/a", "Content-Length: 0\r\n", 403),
            ("GET /public/a", "X-HTTP-Method-Override: POST\r\n", 403),
            ("GET /public/a", "X-Method-Override: post\r\n", 403),
            ("GET /public/a", "X_HTTP_Method_Override: POST\r\n", 403),
            ("GET /public/a", "X_Original-URL: /private/a\r\n", 403),
            ("GET /public/a", "X-HTTP-Method: GET\r\n", 200),
            ("GET /public/a", "X-Original-URL: /private/a\r\n", 403),
            ("GET /public/a", "X-Rewrite-URL: /public/../private\r\n", 400),
            ("get /public/a", "", 403),
            ("TRACE /public/a", "", 403),
        ] {
            let world = World::new();
            world.rule(&[("allow", "GET", "/public/**"), ("deny", "GET", "/private/**")]);
            let (server, seen) = Server::raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            let (guest, _flow) = world.open(80, server);
            let sent = format!("{line} HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
            let answer = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&answer), [expected], "{line} {fields}");
            assert_eq!(seen.borrow().is_empty(), expected != 200, "{line} {fields}");
        }
    });
}
