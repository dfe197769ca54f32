//! The policy, request by request.

use crate::support::{HOST, Server, World, bytes, ok, raw_exchange, run, statuses, whole};
use http::{Request, StatusCode};
use intercept::Decision;

fn server(world: &World, alpn: &[&str]) -> Server {
    Server::hyper(Some(world.authority.server(&[HOST], alpn)), |_| Box::pin(async { ok("served") }))
}

#[test]
fn a_refused_request_is_answered_with_rule_and_remedy_and_the_connection_goes_on() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            let world = World::new();
            world.rule(&[("allow", "GET,HEAD", "/docs/**")]);
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
            let (head, _) = client.get("/docs/b").await;
            assert_eq!(head.status, StatusCode::OK, "the connection goes on");
            let records = world.records(3).await;
            let refused: Vec<_> =
                records.iter().filter(|record| record.decision == Decision::Refused).collect();
            assert_eq!(refused.len(), 1);
            assert_eq!(
                (refused[0].status, refused[0].path.as_str(), refused[0].method.as_str()),
                (403, "/docs/a", "POST")
            );
            assert!(refused[0].remedy.is_some() && refused[0].layer.is_some());
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
