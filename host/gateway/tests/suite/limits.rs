//! What a guest, or somebody at a port of it, has too much of: what becomes of the next one, and its record.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use crate::flows::{inspecting_within, request_rule, web};
use crate::guest::{Guest, hosts, rules};
use gateway::ask::{A_MINUTE, MOST_HELD};
use gateway::control::{Configuration, FromGateway, Mode, Saved, ToGateway};
use gateway::names::{MOST, SavedNames};
use gateway::publish::MOST_PEERS;
use gateway::record::{Decision, Kind, Record};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use policy::{Name, Protocol};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

/// How many decisions were recorded that are like this. Of connections there may be more than the guest made: a slow one tries again
/// before it has heard.
fn count(guest: &Guest, matches: impl Fn(&Record) -> bool) -> u64 {
    guest.records.iter().filter(|record| matches(record)).map(|record| record.count).sum()
}

fn is_limit(record: &Record, text: &str) -> bool {
    record.what.kind == Kind::Limit
        && record.what.decision == Decision::Refused
        && record.what.text.contains(text)
}

fn reset(guest: &mut Guest, flows: &[SocketHandle]) -> usize {
    flows.iter().filter(|flow| guest.tcp(**flow).state() == State::Closed).count()
}

/// The first four addresses of a pool are the link's.
#[test]
fn names_beyond_the_addresses_do_not_resolve_for_now() {
    let name = |n: u32| Name::parse(&format!("n{n}.example.com")).unwrap();
    let names = SavedNames { names: (0..MOST).map(|n| (name(n), n + 4)).collect(), next: MOST + 4 };
    let mut guest = Guest::start(Configuration {
        policy: rules(&["**.example.com"], &[]),
        restore: Some(Saved { names, flows: Vec::new() }),
        ..Configuration::default()
    });
    for _ in 0..2 {
        let answer = guest.ask("one-more.example.com", RecordType::A);
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
    let text = format!("{MOST} names");
    guest.until("a record of both", |guest| {
        (count(guest, |record| is_limit(record, &text)) == 2).then_some(())
    });
    assert_eq!(guest.resolve("n0.example.com"), Some(Ipv4Addr::new(198, 18, 0, 4)));
    assert_eq!(
        guest.ask("nothing.example.net", RecordType::A).metadata.response_code,
        ResponseCode::NXDomain
    );
    guest.end();
}

#[test]
fn dns_connections_have_a_bound() {
    let mut guest = Guest::start(Configuration { policy: rules(&[], &[]), ..Configuration::default() });
    let server = (Ipv4Addr::new(9, 9, 9, 9), 53);
    let begun = Instant::now();
    let all: Vec<_> = (0..64).map(|_| guest.dial(server)).collect();
    assert!(all.iter().all(|one| guest.opened(*one)));
    let is_refused = guest.connect(server).is_none();
    // One that says nothing for ten seconds is closed: where all of this took so long there was room.
    if is_refused || begun.elapsed() < Duration::from_secs(9) {
        assert!(is_refused);
        guest.record("why", |record| is_limit(record, "more than 64 DNS connections"));
    }
    // As soon as one is over there is room for another.
    guest.finish(all[0]);
    guest.until("another one", |guest| guest.connect(server));
    guest.end();
}

fn asking() -> (Guest, IpAddr) {
    let configuration =
        Configuration { policy: rules(&[], &[]), mode: Mode::Ask, ..Configuration::default() };
    let mut guest = Guest::start(configuration);
    let address = guest.resolve("asked.example.com").unwrap();
    (guest, address.into())
}

#[test]
fn questions_beyond_those_of_a_minute_are_not_asked() {
    let (mut guest, address) = asking();
    let begun = Instant::now();
    let flows: Vec<_> = (1000..1040).map(|port| guest.dial((address, port))).collect();
    let asked = guest.until("an end or a question of each", |guest| {
        let is_question = |word: &&FromGateway| matches!(word, FromGateway::Question { .. });
        let asked = guest.words.iter().filter(is_question).count();
        (asked + reset(guest, &flows) == flows.len()).then_some(asked as u64)
    });
    // One comes free every other second.
    let most = u64::from(A_MINUTE) + begun.elapsed().as_secs() / 2 + 1;
    assert!((u64::from(A_MINUTE)..=most).contains(&asked), "{asked}");
    let text = format!("more than {A_MINUTE} questions to the user in a minute");
    let refused = |record: &Record| {
        record.what.kind == Kind::Connect
            && record.what.decision == Decision::Refused
            && record.what.host == "asked.example.com"
            && record.what.text.starts_with(&text)
    };
    guest.until("a record of each", |guest| {
        (count(guest, refused) >= flows.len() as u64 - asked).then_some(())
    });
    guest.end();
}

#[test]
fn flows_that_wait_for_one_answer_have_a_bound() {
    let (mut guest, address) = asking();
    let flows: Vec<_> = (0..=MOST_HELD).map(|_| guest.dial((address, 443))).collect();
    let text = format!("{MOST_HELD} connections that wait for one answer");
    guest.record("why", |record| record.what.text.ends_with(&text));
    guest.until("the reset", |guest| (reset(guest, &flows) == 1).then_some(()));
    let word = guest.word("a question", |word| matches!(word, FromGateway::Question { .. }));
    let FromGateway::Question { question, .. } = word else { unreachable!("it was looked for") };
    guest.say(&ToGateway::Refuse { question }, &[]);
    guest.until("the others", |guest| (reset(guest, &flows) == flows.len()).then_some(()));
    guest.until("a record of each", |guest| {
        (count(guest, |record| record.what.text == "the user said no") >= MOST_HELD as u64).then_some(())
    });
    assert!(guest.words.is_empty(), "it was asked once");
    guest.end();
}

#[test]
fn the_quietest_peer_of_a_published_port_makes_room() {
    let mut guest = Guest::start(Configuration { policy: rules(&[], &[]), ..Configuration::default() });
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let place = socket.local_addr().unwrap();
    let publish = ToGateway::Publish { number: 1, protocol: Protocol::Udp, guest_port: 9000 };
    guest.say(&publish, &[&socket.into()]);
    guest.word("the port", |word| matches!(word, FromGateway::Published { number: 1 }));
    let inside = guest.bind(9000);
    // Each has an address of its own: it need not stay open to be another one than the next.
    let peer = |n: usize| {
        let socket = UdpSocket::bind((Ipv4Addr::from(0x7f01_0001 + u32::try_from(n).unwrap()), 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let talk = |guest: &mut Guest, socket: &UdpSocket| {
        socket.send_to(b"hello", place).unwrap();
        guest.until("a datagram", |guest| guest.udp(inside).recv().ok().map(|(_, from)| from.endpoint))
    };
    let (first, second, last) = (peer(0), peer(1), peer(MOST_PEERS));
    let as_first = talk(&mut guest, &first);
    let as_second = talk(&mut guest, &second);
    for n in 2..MOST_PEERS {
        talk(&mut guest, &peer(n));
    }
    assert_eq!(talk(&mut guest, &first), as_first, "all of them have room");
    let as_last = talk(&mut guest, &last);
    let record = guest.record("the limit", |record| is_limit(record, "256 peers"));
    assert_eq!((record.count, record.what.port, record.what.protocol), (1, 9000, Some(Protocol::Udp)));
    for to in [as_second, as_first, as_last] {
        guest.udp(inside).send_slice(b"answer", to).unwrap();
    }
    for socket in [&first, &last] {
        guest.until("the answer", |_| socket.recv(&mut [0; 6]).ok());
    }
    assert!(second.recv(&mut [0; 6]).is_err(), "nobody heard it for longest");
    assert_ne!(talk(&mut guest, &second), as_second);
    guest.end();
}

const SEEN: &str = "seen.example.com";

/// What the guest sends to a server of HTTP in clear is looked into.
fn looked_into(limits: intercept::Limits, folder: &std::path::Path) -> Guest {
    let mut policy = rules(&["127.0.0.1:*"], &[]);
    policy.local.push(request_rule(policy::Decision::Allow, &format!("{SEEN}:*"), "GET"));
    let hosts = hosts(&[(SEEN, "127.0.0.1")]);
    inspecting_within(limits, Configuration { policy, hosts, ..Configuration::default() }, folder)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[test]
fn floods_within_a_flow_that_is_looked_into_end_it_with_a_record() {
    let (port, folder) = (web(), tempfile::tempdir().unwrap());
    let mut guest = looked_into(Default::default(), folder.path());
    let fields = "X-A: 1\r\n".repeat(300);
    let head = format!("GET / HTTP/1.1\r\nHost: {SEEN}:{port}\r\n{fields}\r\n");
    // GET / in HPACK (RFC 7541), then RST_STREAM (CVE-2023-44487).
    let authority = format!("{SEEN}:{port}");
    let get = [&[0x82, 0x86, 0x84, 0x41, authority.len() as u8], authority.as_bytes()].concat();
    let mut rapid = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    for stream in (1..200).step_by(2) {
        rapid.extend(frame(1, 5, stream, &get));
        rapid.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    for (bytes, answer, text) in [
        (head.as_bytes(), Some("HTTP/1.1 431 "), "message head is too large"),
        // "too_many_resets", or what is said where the guest is not read fast enough.
        (&rapid, None, "http2 error"),
    ] {
        let handle = guest.connect_to(SEEN, port).unwrap();
        guest.send(handle, bytes);
        let answered = guest.receive_all(handle);
        assert!(answer.is_none_or(|answer| answered.starts_with(answer.as_bytes())), "{answered:?}");
        let record = guest.record(text, |record| record.what.text.contains(text));
        let what = (record.what.kind, record.what.decision, record.what.host.as_str(), record.count);
        assert_eq!(what, (Kind::Ended, Decision::Refused, SEEN, 1));
    }
    guest.end();
}

#[test]
fn what_comes_after_the_last_answer_has_a_bound_and_a_record() {
    let (port, folder) = (web(), tempfile::tempdir().unwrap());
    let mut guest = looked_into(Default::default(), folder.path());
    let length = 16 << 20;
    // Refused by its head alone; its body is thrown away for a while so that the answer arrives.
    let head = format!("POST / HTTP/1.1\r\nHost: {SEEN}:{port}\r\nContent-Length: {length}\r\n\r\n");
    let handle = guest.connect_to(SEEN, port).unwrap();
    guest.send(handle, head.as_bytes());
    let body = vec![b'a'; 64 << 10];
    let mut left = length;
    guest.until("a reset", |guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() {
            left -= socket.send_slice(&body[..body.len().min(left)]).unwrap_or_default();
        }
        (socket.state() == State::Closed).then_some(())
    });
    assert!((1..length - (1 << 20)).contains(&left), "{left} bytes are left");
    let record = guest.record("its record", |record| is_limit(record, "came after the last answer"));
    assert_eq!((record.what.host.as_str(), record.what.port, record.count), (SEEN, port, 1));
    guest.end();
}

#[test]
fn times_of_a_flow_that_is_looked_into_end_it_with_a_record() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, folder) = (web(), tempfile::tempdir().unwrap());
    let short = Duration::from_secs(1);
    let limits = intercept::Limits { handshake: short, head: short, idle: short * 3, ..Default::default() };
    let mut guest = looked_into(limits, folder.path());
    let request = |port| format!("GET / HTTP/1.1\r\nHost: {SEEN}:{port}\r\n\r\n").into_bytes();
    let unanswered = silent.local_addr().unwrap().port();
    let cases: [(&str, u16, Vec<u8>); 5] = [
        ("nothing", port, Vec::new()),
        ("half a handshake", port, vec![22, 3, 1]),
        ("half a head", port, b"GET / HTTP/1.1\r\n".to_vec()),
        ("a request, and no other one", port, request(port)),
        ("a request without an answer", unanswered, request(unanswered)),
    ];
    for (at, (what, port, bytes)) in (1..).zip(cases) {
        let handle = guest.connect_to(SEEN, port).unwrap();
        guest.send(handle, &bytes);
        let answered = guest.receive_all(handle);
        assert_eq!(answered.starts_with(b"HTTP/1.1 200 "), at == 4, "{what}: {answered:?}");
        guest.until(what, |guest| {
            let ended = |record: &Record| {
                record.what.kind == Kind::Ended
                    && record.what.decision == Decision::Allowed
                    && record.what.text.contains("too long in coming")
            };
            (count(guest, ended) == at).then_some(())
        });
    }
    guest.end();
}
