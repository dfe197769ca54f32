//! What a gateway goes by and its shim may change: how names are resolved, proxies, roots; and a gateway that goes on where another one
//! ended.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::time::SystemTime;

use crate::flows::{inspecting, request_rule};
use crate::guest::{Guest, echo, hosts, rules};
use crate::tls;
use gateway::control::{Configuration, FromGateway, Proxies, ResolverSettings, ToGateway};
use gateway::record::{Decision, Kind};
use smoltcp::socket::tcp::State;

/// A server that says at which of this host's addresses it was reached, and echoes.
fn whereabouts() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let address = stream.local_addr().unwrap().ip().to_string();
                let mut back = stream.try_clone().unwrap();
                // Errors: the test is over.
                let _ = back.write_all(address.as_bytes());
                let _ = std::io::copy(&mut stream, &mut back);
            });
        }
    });
    port
}

#[test]
fn names_are_resolved_as_the_host_does_now() {
    let port = whereabouts();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let table = |address| hosts(&[("moved.example.com", address)]);
    let mut guest = Guest::start(Configuration {
        policy: rules(&["*.example.com:*", "127.0.0.0/8:*"], &[]),
        hosts: table("127.0.0.1"),
        ..Configuration::default()
    });
    let before = guest.connect_to("moved.example.com", port).unwrap();
    assert_eq!(guest.receive(before, 9), b"127.0.0.1");
    assert!(guest.connect_to("elsewhere.example.com", port).is_none(), "there is no server to ask");
    let resolver =
        ResolverSettings { servers: vec![server.local_addr().unwrap()], ..ResolverSettings::default() };
    guest.tell(&ToGateway::Resolver { resolver, hosts: table("127.0.0.2") });
    let after = guest.connect_to("moved.example.com", port).unwrap();
    assert_eq!(guest.receive(after, 9), b"127.0.0.2");
    guest.send(before, b"still here");
    assert_eq!(guest.receive(before, 10), b"still here");
    let address = guest.resolve("elsewhere.example.com").unwrap();
    guest.dial((IpAddr::from(address), port));
    let mut question = [0; 512];
    let count = guest.until("a question", |_| server.recv(&mut question).ok());
    assert!(question[..count].windows(9).any(|part| part == b"elsewhere"));
    guest.end();
}

/// An HTTP proxy that answers in the server's place; what it is asked comes out.
fn proxy(answer: &'static [u8]) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, asked) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0) {
                head.push(byte[0]);
            }
            // Errors: the test is over.
            let _ = say.send(String::from_utf8(head).unwrap());
            let _ = stream.write_all(&[b"HTTP/1.1 200 OK\r\n\r\n", answer].concat());
        }
    });
    (port, asked)
}

#[test]
fn the_next_connection_goes_by_the_proxy_that_there_is_now() {
    let port = whereabouts();
    let (proxy, asked) = proxy(b"the proxy");
    let mut guest = Guest::start(Configuration {
        policy: rules(&["a.example.com:*", "127.0.0.1:*"], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1")]),
        ..Configuration::default()
    });
    let before = guest.connect_to("a.example.com", port).unwrap();
    assert_eq!(guest.receive(before, 9), b"127.0.0.1");
    let proxies = Proxies { https: Some(format!("http://127.0.0.1:{proxy}")), ..Proxies::default() };
    guest.tell(&ToGateway::Proxies { proxies });
    let by_proxy = guest.connect_to("a.example.com", port).unwrap();
    assert_eq!(guest.receive(by_proxy, 9), b"the proxy");
    let head = asked.try_recv().expect("once");
    assert!(head.starts_with(&format!("CONNECT a.example.com:{port} HTTP/1.1\r\n")), "{head}");
    guest.send(before, b"still here");
    assert_eq!(guest.receive(before, 10), b"still here");
    guest.tell(&ToGateway::Proxies { proxies: Proxies::default() });
    let again = guest.connect_to("a.example.com", port).unwrap();
    assert_eq!(guest.receive(again, 9), b"127.0.0.1");
    assert!(asked.try_recv().is_err());
    guest.end();
}

#[test]
fn a_server_is_checked_against_the_roots_that_there_are_now() {
    let host = "tls.example.com";
    let (port, authority) = tls::https(host);
    let mut policy = rules(&[&format!("127.0.0.1:{port}")], &[]);
    policy.local.push(request_rule(policy::Decision::Allow, &format!("{host}:{port}"), "GET"));
    let folder = tempfile::tempdir().unwrap();
    let hosts = hosts(&[(host, "127.0.0.1")]);
    let mut guest = inspecting(Configuration { policy, hosts, ..Configuration::default() }, folder.path());
    let own = intercept::RootCa::load_or_make(folder.path(), SystemTime::now()).unwrap();
    let get = |guest: &mut Guest, path: &str| {
        let handle = guest.connect_to(host, port).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
        tls::exchange(guest, handle, (host, own.certificate_der()), &request)
    };
    let answer = get(&mut guest, "/before");
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("is not trusted"), "{answer}");
    let record = guest.record("the refusal", |record| record.what.path.as_deref() == Some("/before"));
    assert_eq!((record.what.decision, record.what.status), (Decision::Failed, Some(502)));
    guest.tell(&ToGateway::Roots { roots: vec![authority] });
    let answer = get(&mut guest, "/after");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The roots of before hold no more.
    guest.tell(&ToGateway::Roots { roots: vec![own.certificate_der().to_vec()] });
    let answer = get(&mut guest, "/again");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    guest.end();
}

#[test]
fn a_shim_may_go_before_it_has_heard_all() {
    for _ in 0..10 {
        Guest::start(Configuration::default()).end_unheard();
    }
}

#[test]
fn names_keep_their_addresses_over_a_restart() {
    let policy = rules(&["**.example.com"], &[]);
    let mut guest = Guest::start(Configuration { policy: policy.clone(), ..Configuration::default() });
    let first: Vec<_> = (0..5).map(|n| guest.resolve(&format!("n{n}.example.com")).unwrap()).collect();
    let state = saved(&mut guest);
    // All records come before the state.
    assert_eq!(guest.records.iter().map(|record| record.count).sum::<u64>(), 5);
    guest.restart(Configuration { policy, restore: Some(state), ..Configuration::default() });
    for n in [4, 2, 0, 1, 3] {
        assert_eq!(guest.resolve(&format!("n{n}.example.com")).unwrap(), first[n]);
    }
    guest.end();
}

fn saved(guest: &mut Guest) -> gateway::control::Saved {
    guest.say(&ToGateway::Save, &[]);
    let word = guest.word("the state", |word| matches!(word, FromGateway::Saved { .. }));
    let FromGateway::Saved { state } = word else { unreachable!("it was looked for") };
    state
}

#[test]
fn connections_end_with_their_gateway() {
    let port = echo("127.0.0.1");
    let configuration = Configuration {
        policy: rules(&["**.example.com:*", "127.0.0.1:*"], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1"), ("b.example.com", "127.0.0.1")]),
        ..Configuration::default()
    };
    let mut guest = Guest::start(configuration.clone());
    // Another name has the first address, so that a gateway that knew none would give it to this one.
    guest.resolve("b.example.com").unwrap();
    let address = guest.resolve("a.example.com").unwrap();
    let place = (IpAddr::from(address), port);
    let open = guest.connect(place).unwrap();
    guest.send(open, b"hello");
    assert_eq!(guest.receive(open, 5), b"hello");
    let state = saved(&mut guest);
    let unsaved = guest.connect(place).unwrap();
    guest.restart(Configuration { restore: Some(state), ..configuration });
    // Programs that wait for an answer hear of it at once.
    guest.is_reset(open);
    // Of what came after the state the gateway knows nothing, until it is spoken to.
    assert_eq!(guest.tcp(unsaved).state(), State::Established);
    guest.send(unsaved, b"hello");
    guest.is_reset(unsaved);
    assert_eq!(guest.resolve("a.example.com"), Some(address));
    // The guest's programs do not ask again: the address has to lead there.
    let again = guest.connect(place).unwrap();
    guest.send(again, b"again");
    assert_eq!(guest.receive(again, 5), b"again");
    guest
        .record("to whom", |record| record.what.kind == Kind::Connect && record.what.host == "a.example.com");
    guest.end();
}
