//! Flows of a real guest stack over the real frame ring, to real servers on this host.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::guest::{Guest, echo, hosts, rules};
use gateway::control::{Configuration, FromGateway, Mode, Proxies, ToGateway};
use gateway::record::{Decision, Kind, Record};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use policy::PolicySet;
use rustix::net::{AddressFamily, SocketType};

fn with(policy: PolicySet, table: &[(&str, &str)]) -> Guest {
    Guest::start(Configuration { policy, hosts: hosts(table), ..Configuration::default() })
}

#[test]
fn a_name_is_resolved_connected_and_relayed_both_ways() {
    let port = echo("127.0.0.1");
    let policy = rules(&[&format!("echo.example.com:{port}"), &format!("127.0.0.1:{port}")], &[]);
    let mut guest = with(policy, &[("echo.example.com", "127.0.0.1")]);
    let handle = guest.connect_to("echo.example.com", port).expect("allowed");
    guest.send(handle, b"hello");
    assert_eq!(guest.receive(handle, 5), b"hello");
    // The guest says goodbye; the server's answer to that comes back.
    guest.finish(handle);
    assert_eq!(guest.receive_all(handle), b"");
    let ended = guest.record("its end", |record| record.what.kind == Kind::Ended);
    assert_eq!((ended.bytes_up, ended.bytes_down), (5, 5));
    let opened = guest.record("its beginning", |record| record.what.kind == Kind::Connect);
    assert_eq!((opened.what.decision, opened.what.host.as_str()), (Decision::Allowed, "echo.example.com"));
    assert_eq!(opened.what.address, Some(Ipv4Addr::LOCALHOST.into()));
    guest.end();
}

#[test]
fn megabytes_arrive_whole_in_both_directions() {
    let port = echo("127.0.0.1");
    let policy = rules(&[&format!("echo.example.com:{port}"), &format!("127.0.0.1:{port}")], &[]);
    let mut guest = with(policy, &[("echo.example.com", "127.0.0.1")]);
    let handle = guest.connect_to("echo.example.com", port).unwrap();
    let data: Vec<u8> = (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // The echo is read while it is written: more than all buffers hold.
    let (mut sent, mut back) = (0, Vec::new());
    guest.until("the echo", |guest| {
        let socket = guest.tcp(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|part| (part.len(), back.extend_from_slice(part))).unwrap();
        }
        (back.len() == data.len()).then_some(())
    });
    assert!(back == data);
    guest.end();
}

#[test]
fn a_refused_name_does_not_exist_and_leaves_a_record() {
    let mut guest = with(rules(&["good.example.com"], &["bad.example.com"]), &[]);
    for name in ["other.example.com", "bad.example.com", "intranet"] {
        let reply = guest.ask(name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        let record = guest.record(name, |record| record.what.host == name);
        assert_eq!((record.what.kind, record.what.decision), (Kind::Dns, Decision::Refused));
    }
    assert!(guest.resolve("good.example.com").is_some());
    guest.end();
}

#[test]
fn an_address_needs_a_rule_that_names_its_network() {
    // A guest sends nothing to loopback addresses: it has its own. This host's address is one, if there is a network.
    let own = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own =
        own.connect("192.0.2.1:9").and_then(|()| own.local_addr()).map(|address| address.ip().to_string());
    let listening = own.is_ok();
    let own = own.unwrap_or_else(|_| "192.0.2.1".into());
    let port = if listening { echo(&own) } else { 9 };
    let mut guest = with(rules(&["good.example.com"], &[]), &[]);
    let elsewhere: SocketAddr = (own.parse::<IpAddr>().unwrap(), port).into();
    assert!(guest.connect(elsewhere).is_none());
    let refused = guest.record("the refusal", |record| record.what.kind == Kind::Connect);
    assert_eq!((refused.what.decision, refused.what.port), (Decision::Refused, port));
    if !listening {
        return;
    }
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&[&format!("{own}:{port}")], &[])) }, &[]);
    let handle = guest.until("the new policy", |guest| guest.connect(elsewhere));
    guest.send(handle, b"by address");
    assert_eq!(guest.receive(handle, 10), b"by address");
    guest.end();
}

#[test]
fn a_name_that_points_into_the_private_network_is_refused() {
    let port = echo("127.0.0.1");
    let table = [
        ("rebind.example.com", "127.0.0.1"),
        ("meta.example.com", "169.254.169.254"),
        ("mapped.example.com", "::ffff:10.0.0.1"),
        ("nat64.example.com", "64:ff9b::a00:1"),
    ];
    let mut guest = with(rules(&["**.example.com:*"], &[]), &table);
    for (name, _) in table {
        assert!(guest.connect_to(name, port).is_none(), "{name}");
        let record =
            guest.record(name, |record| record.what.host == name && record.what.kind == Kind::Connect);
        assert_eq!(record.what.decision, Decision::Refused, "{name}");
        assert_eq!(record.what.layer.as_deref(), Some("floor"), "{record:?}");
    }
    guest.end();
}

#[test]
fn all_addresses_of_a_name_are_tried() {
    let port = echo("127.0.0.1");
    let policy = rules(&["two.example.com:*", "127.0.0.0/8:*", "[::1]:*"], &[]);
    // Nobody listens on the first two.
    let table =
        [("two.example.com", "::1"), ("two.example.com", "127.9.9.9"), ("two.example.com", "127.0.0.1")];
    let mut guest = with(policy, &table);
    let handle = guest.connect_to("two.example.com", port).expect("the last address takes it");
    guest.send(handle, b"x");
    assert_eq!(guest.receive(handle, 1), b"x");
    guest.end();
}

#[test]
fn nobody_listening_is_a_reset_for_the_guest() {
    // A port that nobody else gets meanwhile, and nobody listens at.
    let held = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&held, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let free = SocketAddr::try_from(rustix::net::getsockname(&held).unwrap()).unwrap().port();
    let mut guest =
        with(rules(&["gone.example.com:*", "127.0.0.1:*"], &[]), &[("gone.example.com", "127.0.0.1")]);
    assert!(guest.connect_to("gone.example.com", free).is_none());
    let record = guest.record("the failure", |record| record.what.kind == Kind::Connect);
    assert_eq!(record.what.decision, Decision::Failed);
    guest.end();
}

/// A server that refuses an upload answers, and closes with bytes unread: its host resets.
#[test]
fn what_a_server_said_before_its_reset_arrives() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream.write_all(&[b'4'; 16 << 10]).unwrap();
        }
    });
    let network = format!("127.0.0.1:{port}");
    let policy = rules(&["full.example.com:*", &network], &[]);
    let mut guest = with(policy, &[("full.example.com", "127.0.0.1")]);
    for round in 0..3 {
        let handle = guest.connect_to("full.example.com", port).unwrap();
        guest.send(handle, &vec![0; 1 << 20]);
        assert_eq!(guest.receive_all(handle).len(), 16 << 10, "{round}");
        guest.is_reset(handle);
    }
    let ended = guest.record("its end", |record| record.what.kind == Kind::Ended);
    assert!(ended.what.text.starts_with("reset by the server"), "{ended:?}");
    guest.end();
}

#[test]
fn a_reset_ends_a_flow_whose_server_takes_nothing() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let policy = rules(&[&format!("full.example.com:{port}"), &format!("127.0.0.1:{port}")], &[]);
    let mut guest = with(policy, &[("full.example.com", "127.0.0.1")]);
    let handle = guest.connect_to("full.example.com", port).unwrap();
    let _connection = server.accept().unwrap();
    // Until nothing moves any more: the server's buffers are full, then the gateway's, then the guest's own.
    // At first nothing may move because the gateway has not begun: the guest holds 1 MiB, and the gateway half as much.
    let (mut still, mut all, piece) = (0, 0, vec![7; 64 << 10]);
    guest.until("full buffers", |guest| {
        let socket = guest.tcp(handle);
        let sent = if socket.can_send() { socket.send_slice(&piece).unwrap() } else { 0 };
        all += sent;
        still = if sent == 0 && all > 3 << 19 { still + 1 } else { 0 };
        (still > 1000).then_some(())
    });
    guest.tcp(handle).abort();
    let ended = guest.record("its end", |record| record.what.kind == Kind::Ended);
    assert!(ended.bytes_up > 0 && ended.what.port == port, "{ended:?}");
    guest.end();
}

#[test]
fn a_changed_policy_resets_established_flows() {
    let port = echo("127.0.0.1");
    let network = format!("127.0.0.1:{port}");
    let policy = rules(&["a.example.com:*", "b.example.com:*", &network], &[]);
    let mut guest = with(policy, &[("a.example.com", "127.0.0.1"), ("b.example.com", "127.0.0.1")]);
    let a = guest.connect_to("a.example.com", port).unwrap();
    let b = guest.connect_to("b.example.com", port).unwrap();
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&["b.example.com:*", &network], &[])) }, &[]);
    guest.is_reset(a);
    guest.send(b, b"still here");
    assert_eq!(guest.receive(b, 10), b"still here");
    // Without its network the guard holds again, for the established flow too.
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&["b.example.com:*"], &[])) }, &[]);
    guest.is_reset(b);
    let guarded = |record: &Record| record.what.kind == Kind::Ended && record.what.text.contains("127.0.0.1");
    guest.record("why", guarded);
    guest.end();
}

/// A proxy of the test's: says that it was asked, and answers when it is told to.
fn slow_proxy() -> (u16, Receiver<()>, Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let ((say, asked), (answer, told)) = (channel(), channel());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), [0; 4096]);
            assert!(stream.read(&mut head).unwrap() > 0);
            say.send(()).unwrap();
            told.recv().unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        }
    });
    (port, asked, answer)
}

#[test]
fn a_policy_that_changes_during_a_dial_holds_for_it() {
    let (proxy, asked, answer) = slow_proxy();
    let start = rules(&["a.example.com", "mixed.example.com", "127.0.0.1:*"], &[]);
    let mut guest = Guest::start(Configuration {
        policy: start.clone(),
        hosts: hosts(&[
            ("a.example.com", "127.0.0.1"),
            ("mixed.example.com", "93.184.216.34"),
            ("mixed.example.com", "10.0.0.1"),
        ]),
        proxies: Proxies { all: Some(format!("http://127.0.0.1:{proxy}")), ..Proxies::default() },
        ..Configuration::default()
    });
    let address = guest.resolve("a.example.com").unwrap();
    let network_denied = rules(&["a.example.com", "127.0.0.1:*"], &["127.0.0.0/8:*"]);
    let port_denied = rules(&["a.example.com:80", "127.0.0.1:*"], &[]);
    let heard = |guest: &mut Guest, policy: PolicySet| {
        guest.tell(&ToGateway::Policy { policy: Box::new(policy) });
    };
    for (policy, opens) in [(network_denied, false), (port_denied, false), (start.clone(), true)] {
        let pending = guest.dial((IpAddr::from(address), 443));
        guest.until("the proxy's turn", |_| asked.try_recv().ok());
        heard(&mut guest, policy);
        answer.send(()).unwrap();
        assert_eq!(guest.opened(pending), opens);
        guest.tcp(pending).abort();
        heard(&mut guest, start.clone());
    }
    // By the time that the proxy answers the flow is gone already.
    for text in ["127.0.0.0/8", "example.com"] {
        guest.record(text, |record| {
            let why = &record.what.text;
            record.what.decision == Decision::Refused && why.contains("policy changed") && why.contains(text)
        });
    }
    // Behind a proxy any address of a name may be taken: none may be guarded.
    assert!(guest.connect_to("mixed.example.com", 443).is_none());
    assert!(asked.try_recv().is_err());
    guest.end();
}

#[test]
fn connections_that_are_being_made_have_a_bound() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, asked) = channel();
    // A proxy that takes connections and never answers; what it took is the test's to end.
    std::thread::spawn(move || listener.incoming().for_each(|stream| drop(say.send(stream.unwrap()))));
    let mut guest = Guest::start(Configuration {
        policy: rules(&["a.example.com", "127.0.0.1:*"], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1")]),
        proxies: Proxies { all: Some(format!("http://127.0.0.1:{port}")), ..Proxies::default() },
        ..Configuration::default()
    });
    let to = (IpAddr::from(guest.resolve("a.example.com").unwrap()), 443);
    for _ in 0..gateway::dial::MOST_DIALS {
        guest.dial(to);
    }
    let mut taken = Vec::new();
    guest.until("the proxy's turn", |_| {
        taken.extend(asked.try_iter());
        (taken.len() == gateway::dial::MOST_DIALS).then_some(())
    });
    assert!(guest.connect(to).is_none());
    guest.record("why", |record| record.what.kind == Kind::Limit && record.what.text.contains("256"));
    assert!(asked.try_recv().is_err(), "the proxy was not asked");
    // As soon as one is over there is room for another.
    taken.pop();
    let mut next = guest.dial(to);
    guest.until("another one", |guest| {
        if guest.tcp(next).state() == smoltcp::socket::tcp::State::Closed {
            next = guest.dial(to);
        }
        asked.try_recv().ok()
    });
    guest.end();
}

#[test]
fn a_held_flow_waits_for_the_answer() {
    let port = echo("127.0.0.1");
    let mut guest = Guest::start(Configuration {
        policy: rules(&[&format!("127.0.0.1:{port}")], &["never.example.com"]),
        hosts: hosts(&[("asked.example.com", "127.0.0.1")]),
        mode: Mode::Ask,
        ..Configuration::default()
    });
    assert!(guest.resolve("never.example.com").is_none(), "a denial is not asked about");
    let question = |guest: &mut Guest| {
        let word = guest.word("a question", |word| matches!(word, FromGateway::Question { .. }));
        let FromGateway::Question { question, host, port: asked, .. } = word else { unreachable!() };
        assert_eq!((host.as_str(), asked), ("asked.example.com", port));
        question
    };
    let address = guest.resolve("asked.example.com").expect("an address to hold the flow to");
    let held = guest.dial((IpAddr::from(address), port));
    let number = question(&mut guest);
    assert_eq!(guest.tcp(held).state(), smoltcp::socket::tcp::State::SynSent);
    guest.say(&ToGateway::Refuse { question: number }, &[]);
    assert!(!guest.opened(held));
    guest.end();
}

/// The one-time layer: what the shim says after a yes.
#[test]
fn what_was_allowed_once_is_not_asked_about_again_until_it_is_taken_back_or_denied() {
    let port = echo("127.0.0.1");
    let network = format!("127.0.0.1:{port}");
    let policy = |once: &[&str], deny: &[&str]| {
        let once = rules(once, &[]).local;
        Box::new(PolicySet { once, ..rules(&[&network], deny) })
    };
    let asked = format!("asked.example.com:{port}");
    let mut guest = Guest::start(Configuration {
        policy: *policy(&[], &[]),
        hosts: hosts(&[("asked.example.com", "127.0.0.1")]),
        mode: Mode::Ask,
        ..Configuration::default()
    });
    let is_question = |word: &FromGateway| matches!(word, FromGateway::Question { .. });
    let address = guest.resolve("asked.example.com").expect("an address to hold the flow to");
    let first = guest.dial((IpAddr::from(address), port));
    guest.word("a question", is_question);
    guest.say(&ToGateway::Policy { policy: policy(&[&asked], &[]) }, &[]);
    guest.word("its end", |word| matches!(word, FromGateway::QuestionOver { .. }));
    assert!(guest.opened(first));
    // Nobody answers any more: neither another connection nor one when nobody could be asked needs it.
    guest.say(&ToGateway::Mode { mode: Mode::Enforce }, &[]);
    guest.until("the mode", |guest| guest.resolve("other.example.com").is_none().then_some(()));
    let second = guest.connect((IpAddr::from(address), port)).expect("it is allowed");
    for flow in [first, second] {
        guest.send(flow, b"once");
        assert_eq!(guest.receive(flow, 4), b"once");
    }
    let record = guest.record("by which rule", |record| record.what.kind == Kind::Connect);
    assert_eq!(record.what.layer.as_deref(), Some("once"), "{record:?}");
    assert!(guest.connect((IpAddr::from(address), port ^ 1)).is_none(), "another port was not asked about");
    guest.say(&ToGateway::Policy { policy: policy(&[&asked], &["asked.example.com"]) }, &[]);
    guest.is_reset(first);
    guest.is_reset(second);
    assert!(guest.resolve("asked.example.com").is_none(), "a denial beats it");
    guest.say(&ToGateway::Mode { mode: Mode::Ask }, &[]);
    guest.say(&ToGateway::Policy { policy: policy(&[], &[]) }, &[]);
    let address = guest.until("an address to hold the flow to", |guest| guest.resolve("asked.example.com"));
    guest.dial((IpAddr::from(address), port));
    guest.word("another question", is_question);
    guest.end();
}

#[test]
fn a_rule_answers_a_question() {
    let port = echo("127.0.0.1");
    let network = format!("127.0.0.1:{port}");
    let mut guest = Guest::start(Configuration {
        policy: rules(&[&network], &[]),
        hosts: hosts(&[("asked.example.com", "127.0.0.1")]),
        mode: Mode::Ask,
        ..Configuration::default()
    });
    let address = guest.resolve("asked.example.com").unwrap();
    let held = guest.dial((IpAddr::from(address), port));
    guest.word("a question", |word| matches!(word, FromGateway::Question { .. }));
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&[&network, "asked.example.com:*"], &[])) }, &[]);
    guest.word("its end", |word| matches!(word, FromGateway::QuestionOver { .. }));
    assert!(guest.opened(held));
    guest.end();
}

#[test]
fn observed_flows_pass_and_are_recorded() {
    let port = echo("127.0.0.1");
    let mut guest = Guest::start(Configuration {
        policy: rules(&[&format!("127.0.0.1:{port}")], &["no.example.com"]),
        hosts: hosts(&[("seen.example.com", "127.0.0.1")]),
        mode: Mode::Observe,
        ..Configuration::default()
    });
    assert!(guest.connect_to("seen.example.com", port).is_some());
    let record = guest.record("the observation", |record| record.what.kind == Kind::Connect);
    assert_eq!(record.what.decision, Decision::Observed);
    assert!(guest.resolve("no.example.com").is_none());
    guest.end();
}

/// A server of HTTP in clear that answers every request alike.
pub(crate) fn web() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut piece = [0; 4096];
                while let Ok(1..) = stream.read(&mut piece) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
        }
    });
    port
}

/// The status that a request in clear is answered with.
fn status(guest: &mut Guest, handle: smoltcp::iface::SocketHandle, request: &str, authority: &str) -> String {
    let head = format!("{request} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    guest.send(handle, head.as_bytes());
    let mut answer = String::new();
    while !answer.contains("\r\n\r\n") {
        let more = guest.receive(handle, 1);
        assert!(!more.is_empty(), "{answer}");
        answer.push_str(std::str::from_utf8(&more).unwrap());
    }
    let length = answer.to_ascii_lowercase().split("content-length: ").nth(1).unwrap().to_owned();
    guest.receive(handle, length.split("\r\n").next().unwrap().parse().unwrap());
    answer.split(' ').nth(1).unwrap().to_owned()
}

/// A configuration of a sandbox that has a certificate; `folder` is where the root is.
pub(crate) fn inspecting(configuration: Configuration, folder: &std::path::Path) -> Guest {
    inspecting_within(Default::default(), configuration, folder)
}

/// The same with other bounds of a flow that is looked into.
pub(crate) fn inspecting_within(
    limits: intercept::Limits,
    configuration: Configuration,
    folder: &std::path::Path,
) -> Guest {
    let now = std::time::SystemTime::now();
    let root = intercept::RootCa::load_or_make(folder, now).unwrap();
    let ca = serde_json::to_string(&root.issue("test", now).unwrap()).unwrap();
    // Some root is needed; no server here shows a certificate.
    let roots = vec![root.certificate_der().to_vec()];
    let ca = Some(gateway::control::SecretText::new(ca.into()));
    Guest::start_with(Configuration { ca, roots, ..configuration }, move || {
        gateway::interceptor_within(limits)
    })
}

pub(crate) fn request_rule(decision: policy::Decision, host: &str, methods: &str) -> policy::Rule {
    let rule = policy::Rule::new(decision, policy::Resource::parse(host).unwrap());
    rule.with_http(policy::Methods::parse(methods).unwrap(), policy::PathPattern::all()).unwrap()
}

#[test]
fn requests_that_no_rule_speaks_of_pass_where_all_is_observed() {
    let (port, folder) = (web(), tempfile::tempdir().unwrap());
    let seen = format!("seen.example.com:{port}");
    let mut policy = rules(&[&format!("127.0.0.1:{port}")], &[]);
    policy.local.extend([
        request_rule(policy::Decision::Allow, &seen, "GET"),
        request_rule(policy::Decision::Deny, &seen, "DELETE"),
    ]);
    let mut guest = inspecting(
        Configuration {
            policy,
            hosts: hosts(&[("seen.example.com", "127.0.0.1")]),
            mode: Mode::Observe,
            ..Configuration::default()
        },
        folder.path(),
    );
    let handle = guest.connect_to("seen.example.com", port).unwrap();
    for (request, expected) in [("GET /a", "200"), ("POST /b", "200"), ("DELETE /c", "403")] {
        assert_eq!(status(&mut guest, handle, request, &seen), expected, "{request}");
    }
    for (path, decision) in [("/a", Decision::Allowed), ("/b", Decision::Observed), ("/c", Decision::Refused)]
    {
        let record = guest.record(path, |record| record.what.path.as_deref() == Some(path));
        assert_eq!((record.what.kind, record.what.decision), (Kind::Request, decision), "{path}");
    }
    guest.say(&ToGateway::Mode { mode: Mode::Enforce }, &[]);
    guest.until("the mode", |guest| (status(guest, handle, "POST /b", &seen) == "403").then_some(()));
    // Also where no rule allows anything of the host.
    let mut policy = rules(&[&format!("127.0.0.1:{port}")], &[]);
    policy.local.push(request_rule(policy::Decision::Deny, &seen, "DELETE"));
    guest.say(&ToGateway::Mode { mode: Mode::Observe }, &[]);
    guest.tell(&ToGateway::Policy { policy: Box::new(policy) });
    for (request, expected) in [("GET /d", "200"), ("DELETE /e", "403")] {
        let handle = guest.connect_to("seen.example.com", port).unwrap();
        assert_eq!(status(&mut guest, handle, request, &seen), expected, "{request}");
    }
    guest.end();
}

/// What the user let through is looked into where a secret is bound to it: it is no refusal by another way.
#[test]
fn requests_of_a_flow_that_the_user_let_through_pass() {
    let (port, folder) = (web(), tempfile::tempdir().unwrap());
    let asked = format!("asked.example.com:{port}");
    let credential = vault::credentials::Credential {
        name: "mine".into(),
        binding: vault::Binding {
            hosts: vec![asked.parse().unwrap()],
            places: vec!["header:authorization".parse().unwrap()],
            ..vault::Binding::default()
        },
        value: vault::credentials::Value::Missing { placeholders: vec!["held".into()], why: "no".into() },
    };
    let secrets = vault::Credentials::new(vec![credential]).to_wire().unwrap();
    let mut guest = inspecting(
        Configuration {
            policy: rules(&[&format!("127.0.0.1:{port}")], &[]),
            hosts: hosts(&[("asked.example.com", "127.0.0.1")]),
            mode: Mode::Ask,
            secrets: Some(gateway::control::SecretText::new(secrets)),
            ..Configuration::default()
        },
        folder.path(),
    );
    let address = guest.resolve("asked.example.com").unwrap();
    let handle = guest.dial((IpAddr::from(address), port));
    guest.word("a question", |word| matches!(word, FromGateway::Question { .. }));
    let once = rules(&[&asked], &[]).local;
    let policy = PolicySet { once, ..rules(&[&format!("127.0.0.1:{port}")], &[]) };
    guest.say(&ToGateway::Policy { policy: Box::new(policy) }, &[]);
    assert!(guest.opened(handle));
    assert_eq!(status(&mut guest, handle, "POST /b", &asked), "200");
    let record = guest.record("the request", |record| record.what.path.as_deref() == Some("/b"));
    assert_eq!((record.what.kind, record.what.decision), (Kind::Request, Decision::Allowed));
    guest.end();
}

/// What listens on the host's loopback trusts whoever reaches it.
#[test]
fn the_hosts_services_are_not_observed() {
    let port = echo("127.0.0.1");
    let mut guest = Guest::start(Configuration {
        policy: rules(&[&format!("localhost:{}", port ^ 1)], &[]),
        mode: Mode::Observe,
        ..Configuration::default()
    });
    let address = guest.resolve("host.viv.internal").expect("the name alone opens nothing");
    assert!(guest.connect((IpAddr::from(address), port)).is_none());
    refused_service(&mut guest, port);
    guest.end();
}

/// A refusal of a port of the host's says how that port is allowed, and no other.
fn refused_service(guest: &mut Guest, port: u16) {
    let is_it = |record: &Record| record.what.kind == Kind::Connect && record.what.port == port;
    let what = guest.record("the refusal", is_it).what;
    assert_eq!(what.decision, Decision::Refused);
    assert!(what.remedy.is_some_and(|remedy| remedy.ends_with(&format!(" localhost:{port}"))));
}

#[test]
fn datagrams_are_relayed_and_refused_like_connections() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((count, peer)) = server.recv_from(&mut buffer) {
            buffer[..count].reverse();
            server.send_to(&buffer[..count], peer).unwrap();
        }
    });
    let datagrams = |text: &str| {
        let rule = policy::Rule::new(policy::Decision::Allow, policy::Resource::parse(text).unwrap());
        rule.with_protocols(policy::Protocols::parse("udp").unwrap()).unwrap()
    };
    let mut policy = rules(&["tcp.example.com:*"], &[]);
    policy.local.extend([datagrams("udp.example.com:*"), datagrams("127.0.0.1:*")]);
    let mut guest = with(policy, &[("udp.example.com", "127.0.0.1"), ("tcp.example.com", "127.0.0.1")]);
    let address = guest.resolve("udp.example.com").unwrap();
    assert_eq!(guest.datagram((address, port).into(), b"abc").as_deref(), Some(&b"cba"[..]));
    assert!(guest.connect((IpAddr::from(address), port)).is_none(), "a rule for UDP is none for TCP");
    let address = guest.resolve("tcp.example.com").unwrap();
    assert_eq!(guest.datagram_within((address, port).into(), b"abc", Duration::from_secs(3)), None);
    let refused =
        |record: &Record| record.what.kind == Kind::Datagram && record.what.host == "tcp.example.com";
    assert_eq!(guest.record("the refusal", refused).what.decision, Decision::Refused);
    guest.end();
}

#[test]
fn a_service_of_the_host_is_reached_by_its_names() {
    let port = echo("127.0.0.1");
    let mut guest = with(rules(&[], &[]), &[]);
    let address = guest.resolve("host.docker.internal").expect("the name alone opens nothing");
    assert!(guest.connect((IpAddr::from(address), port)).is_none());
    refused_service(&mut guest, port);
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&[], &["localhost:*"])) }, &[]);
    guest.until("no such name", |guest| guest.resolve("host.viv.internal").is_none().then_some(()));
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&[&format!("localhost:{port}")], &[])) }, &[]);
    for name in ["host.docker.internal", "host.viv.internal"] {
        let address = guest.until("the name", |guest| guest.resolve(name));
        let handle = guest.connect((IpAddr::from(address), port)).expect(name);
        guest.send(handle, b"db");
        assert_eq!(guest.receive(handle, 2), b"db");
        assert!(guest.connect((IpAddr::from(address), port ^ 1)).is_none());
    }
    guest.end();
}

#[test]
fn a_published_port_reaches_the_guest() {
    let mut guest = with(rules(&[], &[]), &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = listener.local_addr().unwrap();
    let publish = ToGateway::Publish { number: 5, protocol: policy::Protocol::Tcp, guest_port: 8080 };
    guest.say(&publish, &[&listener.into()]);
    guest.word("the port", |word| matches!(word, FromGateway::Published { number: 5 }));
    // Nothing listens in the guest yet.
    let client = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(place).unwrap();
        let mut byte = [0];
        stream.read(&mut byte).map_err(|error| error.kind())
    });
    guest.until("the refusal", |_| client.is_finished().then_some(()));
    assert!(matches!(client.join().unwrap(), Ok(0) | Err(std::io::ErrorKind::ConnectionReset)));
    let server = guest.listen(8080);
    let client = std::thread::spawn(move || {
        let mut stream = std::net::TcpStream::connect(place).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(guest.opened(server));
    assert_eq!(guest.receive_all(server), b"ping");
    guest.send(server, b"pong");
    guest.finish(server);
    guest.until("the client", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "pong");
    let record = guest.record("the connection", |record| {
        record.what.decision == Decision::Allowed && record.what.kind == Kind::Publish
    });
    assert_eq!((record.bytes_up, record.bytes_down, record.what.port), (4, 4, 8080));
    guest.say(&ToGateway::Unpublish { number: 5 }, &[]);
    guest.until("the closed port", |_| std::net::TcpStream::connect(place).is_err().then_some(()));
    guest.end();
}
