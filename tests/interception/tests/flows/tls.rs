//! TLS of both sides.

use crate::support;

use std::net::IpAddr;

use crate::support::{Client, HOST, Server, World, ok, run};
use http::StatusCode;
use intercept::{Decision, Flow, FlowEnd, FlowHost};
use x509_parser::prelude::*;

fn hello(world: &World, names: &[&str], alpn: &[&str]) -> Server {
    Server::hyper(Some(world.authority.server(names, alpn)), |request| {
        let version = request.version();
        Box::pin(async move { ok(format!("{version:?}")) })
    })
}

#[test]
fn the_guest_is_offered_what_the_host_speaks() {
    run(async {
        for (guest, host, agreed, seen) in [
            (&["h2", "http/1.1"][..], &["h2", "http/1.1"][..], Some("h2"), "HTTP/2.0"),
            (&["h2", "http/1.1"], &["http/1.1"], Some("http/1.1"), "HTTP/1.1"),
            (&["h2", "http/1.1"], &[], Some("http/1.1"), "HTTP/1.1"),
            (&["http/1.1"], &["h2", "http/1.1"], Some("http/1.1"), "HTTP/1.1"),
            (&["h2"], &["h2", "http/1.1"], Some("h2"), "HTTP/2.0"),
            (&[], &["h2", "http/1.1"], None, "HTTP/1.1"),
            (&["http/1.1", "http/1.0"], &[], Some("http/1.1"), "HTTP/1.1"),
        ] {
            let world = World::new();
            let (stream, _flow) = world.open(443, hello(&world, &[HOST], host));
            let stream = world.tls(stream, HOST, guest).await.expect("TLS");
            assert_eq!(stream.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes), "{guest:?} {host:?}");
            let mut client = Client::over(stream, agreed == Some("h2")).await;
            let (head, body) = client.get("/").await;
            assert_eq!((head.status, body.as_ref()), (StatusCode::OK, seen.as_bytes()), "{guest:?} {host:?}");
        }
    });
}

#[test]
fn a_guest_that_offers_no_http_is_refused() {
    run(async {
        let world = World::new();
        let server = hello(&world, &[HOST], &[]);
        let dialled = server.dialled.clone();
        let (stream, flow) = world.open(443, server);
        world.tls(stream, HOST, &["postgresql"]).await.expect_err("nobody can look into that");
        assert!(matches!(flow.await.expect("no panic"), FlowEnd::Refused(_)));
        assert_eq!(world.records(1).await[0].decision, Decision::Malformed);
        assert_eq!(dialled.get(), 0);
    });
}

#[test]
fn the_leaf_is_for_the_name_that_was_asked_for_and_comes_with_its_chain() {
    run(async {
        let world = World::new();
        let (stream, _flow) = world.open(443, hello(&world, &[HOST], &[]));
        let stream =
            world.tls(stream, "API.Example.COM", &[]).await.expect("the guest trusts the root alone");
        let chain = stream.get_ref().1.peer_certificates().expect("a chain").to_vec();
        assert_eq!(chain.len(), 2);
        let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("a leaf");
        let names = leaf.subject_alternative_name().expect("one").expect("there").value.general_names.clone();
        assert_eq!(names, [GeneralName::DNSName(HOST)]);
        assert!(!leaf.is_ca());
        let (_, issuer) = X509Certificate::from_der(&chain[1]).expect("an intermediate");
        assert!(leaf.validity().not_after <= issuer.validity().not_after);
    });
}

#[test]
fn a_hello_for_another_name_is_refused_before_anything_goes_upstream() {
    run(async {
        for name in ["evil.example.com", "example.com", "api.example.com.evil.org"] {
            let world = World::new();
            let server = hello(&world, &[HOST], &[]);
            let dialled = server.dialled.clone();
            let (stream, flow) = world.open(443, server);
            world.tls(stream, name, &[]).await.expect_err("refused");
            assert!(matches!(flow.await.expect("no panic"), FlowEnd::Refused(_)));
            let record = world.records(1).await.remove(0);
            assert_eq!((record.decision, record.host.as_str(), record.port), (Decision::Mismatch, HOST, 443));
            assert!(record.detail.expect("a reason").contains(name));
            assert_eq!(dialled.get(), 0);
        }
    });
}

#[test]
fn the_users_own_machine_is_reached_by_each_of_its_names_whichever_its_certificate_has() {
    run(async {
        let flow = || Flow { host: FlowHost::Name(policy::Name::host_service()), port: 8443 };
        let world = World::new();
        let rule = |resource: &str| {
            let resource = policy::Resource::parse(resource).expect("a resource");
            policy::Rule::new(policy::Decision::Allow, resource)
        };
        *world.rules.0.borrow_mut() = policy::Policy::compile(&policy::PolicySet {
            preset: policy::Preset::DenyAll,
            local: vec![rule("localhost:8443"), rule(HOST)],
            ..policy::PolicySet::default()
        });
        for name in policy::HOST_SERVICES {
            for (certified, alpn) in
                [(name, "http/1.1"), ("localhost", "h2"), ("host.docker.internal", "http/1.1")]
            {
                let (stream, _flow) = world.open_to(flow(), hello(&world, &[certified], &[alpn]));
                let stream = world.tls(stream, name, &[alpn]).await.expect("a leaf that has the name");
                let mut client = Client::over(stream, alpn == "h2").await;
                let request = http::Request::get(format!("https://{name}:8443/"));
                let request = request.header("host", format!("{name}:8443")).body(support::bytes(""));
                let answer = client.send(request.expect("a request")).await.expect("an answer");
                let (head, body) = support::whole(answer).await;
                assert_eq!(head.status, StatusCode::OK, "{name} {certified} {alpn}: {body:?}");
            }
            // A certificate for another host stays one, and so does a hello for another host.
            let (stream, _flow) = world.open_to(flow(), hello(&world, &["host.example.com"], &[]));
            let stream = world.tls(stream, name, &[]).await.expect("TLS with the guest");
            let request = http::Request::get("/").header("host", format!("{name}:8443"));
            let request = request.body(support::bytes("")).expect("a request");
            let (head, _) =
                support::whole(Client::over(stream, false).await.send(request).await.expect("an answer"))
                    .await;
            assert_eq!(head.status, StatusCode::BAD_GATEWAY, "{name}");
            let (stream, ended) = world.open_to(flow(), hello(&world, &[name], &[]));
            world.tls(stream, "host.example.com", &[]).await.expect_err("another host");
            assert!(matches!(ended.await.expect("no panic"), FlowEnd::Refused(_)));
            // Nor does a name of the user's own machine stand for any other host.
            let (stream, ended) = world.open(443, hello(&world, &[HOST], &[]));
            world.tls(stream, name, &[]).await.expect_err("another host");
            assert!(matches!(ended.await.expect("no panic"), FlowEnd::Refused(_)));
            let mut client = world.client(&[], hello(&world, &[name], &[])).await;
            assert_eq!(client.get("/").await.0.status, StatusCode::BAD_GATEWAY, "{name}");
        }
    });
}

#[test]
fn a_hello_without_a_name_is_for_the_flows_host() {
    run(async {
        let world = World::new();
        let (stream, _flow) = world.open(443, hello(&world, &[HOST], &[]));
        let mut config = (*support::client_config(world.root.certificate_der(), &[])).clone();
        config.enable_sni = false;
        let name = rustls::pki_types::ServerName::try_from(HOST).expect("a name");
        let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config))
            .connect(name, stream)
            .await
            .expect("TLS");
        let (head, _) = Client::over(stream, false).await.get("/").await;
        assert_eq!(head.status, StatusCode::OK);
    });
}

#[test]
fn a_flow_to_an_address_has_a_leaf_for_the_address_and_no_name() {
    run(async {
        let world = World::new();
        let address: IpAddr = "203.0.113.7".parse().expect("an address");
        let flow = Flow { host: FlowHost::Address(address), port: 443 };
        let (stream, _flow) = world.open_to(flow.clone(), hello(&world, &["203.0.113.7"], &[]));
        let stream = world.tls(stream, "203.0.113.7", &[]).await.expect("TLS with an address");
        // Rules by name say nothing of it, so the policy refuses the request; that it is one shows that TLS was up.
        let mut client = Client::over(stream, false).await;
        let request = http::Request::get("/")
            .header("host", "203.0.113.7")
            .body(support::bytes(""))
            .expect("a request");
        let (head, _) = support::whole(client.send(request).await.expect("an answer")).await;
        assert_ne!(head.status, StatusCode::MISDIRECTED_REQUEST);
        let (stream, flow) = world.open_to(flow, hello(&world, &["203.0.113.7"], &[]));
        world.tls(stream, HOST, &[]).await.expect_err("a name is not the address");
        assert!(matches!(flow.await.expect("no panic"), FlowEnd::Refused(_)));
    });
}

#[test]
fn a_host_that_is_not_trusted_gets_no_request_and_the_guest_is_told_why() {
    run(async {
        let world = World::new();
        // It even has the name of a root that is trusted.
        let stranger = support::Authority::new();
        for (server, why) in [
            (stranger.server(&[HOST], &["h2"]), "BadSignature"),
            (world.authority.server(&["other.example.com"], &["h2"]), "not valid for"),
        ] {
            let server = Server::hyper(Some(server), |_| Box::pin(async { panic!("no request may come") }));
            let mut client = world.client(&["h2", "http/1.1"], server).await;
            let (head, body) = client.get("/x?key=hush").await;
            assert_eq!(head.status, StatusCode::BAD_GATEWAY);
            let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(body["error"], "upstream");
            let record = world.records(1).await.remove(0);
            assert_eq!(
                (record.decision, record.status, record.path.as_str()),
                (Decision::UpstreamFailed, 502, "/x")
            );
            let detail = record.detail.expect("a reason");
            assert!(detail.contains("not trusted") && detail.contains(why), "{detail}");
        }
    });
}

#[test]
fn roots_and_authority_change_for_the_next_connection() {
    run(async {
        let world = World::new();
        let stranger = support::Authority::new();
        let server =
            || Server::hyper(Some(stranger.server(&[HOST], &[])), |_| Box::pin(async { ok("hello") }));
        let (head, _) = world.client(&[], server()).await.get("/").await;
        assert_eq!(head.status, StatusCode::BAD_GATEWAY);
        assert_eq!(world.intercept.set_roots(&[stranger.der.clone(), b"no certificate".to_vec()]), Ok(1));
        let (head, _) = world.client(&[], server()).await.get("/").await;
        assert_eq!(head.status, StatusCode::OK);
        world.intercept.set_roots(&[b"no certificate".to_vec()]).expect_err("nothing to trust");
        let (head, _) = world.client(&[], server()).await.get("/").await;
        assert_eq!(head.status, StatusCode::OK, "the old roots stay");
        let next = world.root.issue("box again", std::time::SystemTime::now()).expect("an intermediate");
        world.intercept.set_ca(&next).expect("usable");
        let (stream, _flow) = world.open(443, server());
        let stream = world.tls(stream, HOST, &[]).await.expect("TLS");
        let chain = stream.get_ref().1.peer_certificates().expect("a chain").to_vec();
        assert_eq!(chain[1].as_ref(), next.certificate);
    });
}

#[test]
fn a_host_that_cannot_be_reached_is_said_so() {
    struct Nowhere;
    impl intercept::Dial for Nowhere {
        fn dial(&self) -> intercept::Dialling<'_> {
            Box::pin(async {
                Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "nobody listens"))
            })
        }
    }
    run(async {
        let world = World::new();
        let (head, body) = world.client(&["h2", "http/1.1"], Nowhere).await.get("/").await;
        assert_eq!(head.status, StatusCode::BAD_GATEWAY);
        assert!(String::from_utf8_lossy(&body).contains("nobody listens"));
    });
}
