//! What a guest tries that wants out: each case says what became of it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::SystemTime;

use crate::guest::{Guest, echo, hosts, question, rules};
use gateway::control::{Configuration, FromGateway, Proxies, SecretText, ToGateway};
use gateway::record::{Decision, Kind, Record};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use rustls::pki_types::ServerName;

/// A real client's ClientHello.
fn hello(server: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(server.to_owned()).unwrap();
    let mut bytes = Vec::new();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// The content of an outer encrypted ClientHello's extension (RFC 9849 §5): suite, configuration, key, payload.
const OUTER: [u8; 12] = [0, 0, 1, 0, 1, 7, 0, 1, 0xaa, 0, 1, 0xbb];

/// The hello with an extension of this kind before the others.
fn with_extension(hello: &[u8], kind: u16) -> Vec<u8> {
    let mut bytes = hello.to_vec();
    // Record header 5, message header 4, version and random 34.
    let mut at = 43;
    at += 1 + usize::from(bytes[at]);
    at += 2 + usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    at += 1 + usize::from(bytes[at]);
    let extension = [&kind.to_be_bytes()[..], &[0, 12], &OUTER].concat();
    for (place, width) in [(3, 2), (6, 3), (at, 2)] {
        let old = bytes[place..place + width].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let new = (old + extension.len()).to_be_bytes();
        bytes[place..place + width].copy_from_slice(&new[8 - width..]);
    }
    bytes.splice(at + 2..at + 2, extension);
    bytes
}

/// The hello in a record of another version: Go's servers take any below 16, s2n any.
fn of_version(hello: &[u8], version: u8) -> Vec<u8> {
    let mut bytes = hello.to_vec();
    bytes[1] = version;
    bytes
}

fn two_names(port: u16) -> Guest {
    let network = format!("127.0.0.1:{port}");
    Guest::start(Configuration {
        policy: rules(&["a.example.com:*", "b.example.com:*", &network], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1"), ("b.example.com", "127.0.0.1")]),
        ..Configuration::default()
    })
}

/// What the server behind `a.example.com` gets of these bytes: all, or a reset before any.
fn passes(guest: &mut Guest, port: u16, bytes: &[u8]) -> bool {
    let handle = guest.connect_to("a.example.com", port).unwrap();
    // In pieces, as a slow or a sly client sends it.
    for piece in bytes.chunks(bytes.len().div_ceil(5)) {
        guest.send(handle, piece);
        guest.turn();
    }
    let echoed = guest.receive(handle, bytes.len());
    guest.tcp(handle).abort();
    assert!(echoed.is_empty() || echoed == bytes);
    !echoed.is_empty()
}

#[test]
fn tls_must_ask_for_the_name_of_its_flow() {
    let port = echo("127.0.0.1");
    let mut guest = two_names(port);
    let good = hello("a.example.com");
    assert!(passes(&mut guest, port, &good));
    let grease = with_extension(&good, 0x3a3a);
    assert!(passes(&mut guest, port, &grease));
    let cases = [
        ("another allowed name", hello("b.example.com"), "b.example.com"),
        ("a name that nobody allowed", hello("evil.example"), "evil.example"),
        ("no name", hello("192.0.2.1"), "SNI"),
        ("an encrypted hello", with_extension(&good, 0xfe0d), "encrypted"),
        ("TLS that is none", [&[22, 3, 1, 0, 5][..], b"hello"].concat(), "begins wrong"),
        ("a record of version 2", of_version(&hello("evil.example"), 2), "version"),
        ("a record of version 22", of_version(&hello("evil.example"), 22), "version"),
        ("no name in a record of version 255", of_version(&hello("192.0.2.1"), 255), "version"),
        (
            "the first version of a proxy's header",
            [&b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"[..], &hello("evil.example")].concat(),
            "PROXY",
        ),
        (
            "the second version of a proxy's header",
            [&b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"[..], &hello("evil.example")].concat(),
            "PROXY",
        ),
        (
            "an alert before the hello",
            [&[21, 4, 0, 0, 2, 1, 90][..], &good].concat(),
            "before the ClientHello",
        ),
        ("an SSL 2.0 hello", vec![0x80, 0x2e, 1, 3, 1, 0, 21, 0, 0, 0, 16], "SSL 2.0"),
    ];
    for (what, bytes, text) in cases {
        assert!(!passes(&mut guest, port, &bytes), "{what} went through");
        let record =
            guest.record(what, |record| record.what.kind == Kind::Tls && record.what.text.contains(text));
        assert_eq!(
            (record.what.decision, record.what.host.as_str()),
            (Decision::Refused, "a.example.com"),
            "{what}"
        );
    }
    // What is not TLS is not looked into, also where its first byte is that of TLS: MongoDB's length is 278 bytes here.
    assert!(passes(&mut guest, port, b"SSH-2.0-OpenSSH_10.0\r\n"));
    let mut mongo = [&[22, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xdd, 7][..], &[0; 264]].concat();
    mongo[21..].fill(b'x');
    assert!(passes(&mut guest, port, &mongo));
    guest.end();
}

/// s2n overlooks types of records that it does not know before a ClientHello. A server of TLS that has said something has one already.
#[test]
fn what_a_server_overlooks_hides_no_hello() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap().port();
    let (say, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut bytes = Vec::new();
            // An error: the gateway resets it. What came before is there.
            let _ = stream.unwrap().read_to_end(&mut bytes);
            say.send(bytes).unwrap();
        }
    });
    let policy = rules(&["a.example.com:*", "127.0.0.1:*"], &[]);
    let table = hosts(&[("a.example.com", "127.0.0.1")]);
    let mut guest = Guest::start(Configuration { policy, hosts: table, ..Configuration::default() });
    let evil = hello("evil.example");
    let unknown = [0x41, 9, 9, 0, 3, b'a', b'b', b'c'];
    let request = [&b"GET / HTTP/1.1\r\n\r\n"[..], &[b'x'; 0x202f - 13]].concat();
    for (at, before) in [&unknown[..], &unknown.repeat(9), &request].into_iter().enumerate() {
        let handle = guest.connect_to("a.example.com", silent).unwrap();
        guest.send(handle, before);
        for piece in evil.chunks(evil.len().div_ceil(3)) {
            guest.turn();
            guest.send(handle, piece);
        }
        let bytes = guest.until("what the server got", |_| got.try_recv().ok());
        assert!(bytes.len() < before.len() + evil.len(), "{at}: a whole hello went through");
        guest.until("a record of each", |guest| {
            let refused =
                |record: &&Record| record.what.kind == Kind::Tls && record.what.text.contains("before the");
            let count: u64 = guest.records.iter().filter(refused).map(|record| record.count).sum();
            (count > at as u64).then_some(())
        });
    }
    // STARTTLS, of which servers speak before.
    let port = echo("127.0.0.1");
    let handle = guest.connect_to("a.example.com", port).unwrap();
    for bytes in [&unknown[..], &evil] {
        guest.send(handle, bytes);
        assert_eq!(guest.receive(handle, bytes.len()), bytes);
    }
    guest.end();
}

/// A server that says nothing and reads slowly; what it got of each connection, until its end.
fn silent() -> (u16, Receiver<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (mut stream, mut all, mut piece) = (stream, Vec::new(), vec![0; 50_000]);
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                all.extend_from_slice(&piece[..count]);
                if all.len() % 7 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            let _ = sender.send(all);
        }
    });
    (port, got)
}

/// An upload to a server that says nothing is looked at to its end: it arrives as it is, and no hello gets through behind it.
#[test]
fn an_upload_arrives_whole_and_no_hello_behind_it() {
    let (port, got) = silent();
    let mut guest = two_names(port);
    let zeros = vec![0; 5 << 20];
    // Records as a lenient server has them: each two bytes behind the other's end.
    let records: Vec<u8> = (0..4_000u32)
        .flat_map(|n| [&[0x41, 9, 9, 2, n as u8][..], &vec![n as u8; 0x200 + (n % 256) as usize]].concat())
        .collect();
    let upload = [&zeros[..], &records].concat();
    for (behind, arrives) in
        [(Vec::new(), true), (hello("b.example.com"), false), (b"and more".to_vec(), true)]
    {
        let handle = guest.connect_to("a.example.com", port).unwrap();
        let all = [&upload[..], &behind].concat();
        guest.send(handle, &all);
        guest.finish(handle);
        let came = guest.until("the server's end", |_| got.try_recv().ok());
        if arrives {
            assert!(came == all, "{} of {} bytes", came.len(), all.len());
        } else {
            // Its first bytes say nothing yet.
            assert!(came.len() < upload.len() + 9 && all.starts_with(&came), "{} bytes", came.len());
            guest.record("a refusal", |record| {
                record.what.kind == Kind::Tls
                    && record.what.text.contains("another record before the ClientHello")
            });
        }
    }
    guest.end();
}

/// A server that answers the first bytes with these; what else it got comes out when the connection ends.
fn answering(answer: Vec<u8>) -> (u16, Receiver<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut bytes) = (stream.unwrap(), vec![0; 64 << 10]);
            let first = stream.read(&mut bytes).unwrap();
            bytes.truncate(first);
            stream.write_all(&answer).unwrap();
            // An error: the gateway resets it. What came before is there.
            let _ = stream.read_to_end(&mut bytes);
            say.send(bytes).unwrap();
        }
    });
    (port, got)
}

/// A ServerHello with this random and nothing else in it.
fn server_hello(random: &[u8]) -> Vec<u8> {
    [&[22, 3, 3, 0, 42, 2, 0, 0, 38, 3, 3][..], random, &[0, 0x13, 1, 0]].concat()
}

#[test]
fn a_second_hello_asks_for_the_same_name() {
    // RFC 8446 §4.1.3.
    let retry = [
        0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
        0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
    ];
    let (asks_again, again) = answering([&[21, 3, 3, 0, 2, 1, 112][..], &server_hello(&retry)].concat());
    let (ordinary, usual) = answering(server_hello(&[7; 32]));
    let policy = rules(&["a.example.com:*", "127.0.0.1:*"], &[]);
    let table = hosts(&[("a.example.com", "127.0.0.1")]);
    let mut guest = Guest::start(Configuration { policy, hosts: table, ..Configuration::default() });
    let (good, evil) = (hello("a.example.com"), hello("evil.example"));
    let specs = [20, 3, 3, 0, 1, 1];
    // Early data goes on at once; what the guest says when the server has spoken is judged, however it is cut.
    let early = [&good[..], &[23, 3, 3, 0, 3, 9, 9, 9]].concat();
    let mut talk = |port, first: &[u8], then: &[u8]| {
        let handle = guest.connect_to("a.example.com", port).unwrap();
        guest.send(handle, first);
        guest.receive(handle, 47);
        for piece in then.chunks(then.len().div_ceil(3).max(1)) {
            guest.send(handle, piece);
            guest.turn();
        }
        guest.finish(handle);
        let got = if port == ordinary { &usual } else { &again };
        guest.until("what the server got", |_| got.try_recv().ok())
    };
    let same = [&specs[..], &good].concat();
    assert_eq!(talk(asks_again, &early, &same), [&early[..], &same].concat());
    let exchange = [22, 3, 3, 0, 4, 16, 0, 0, 0];
    assert_eq!(talk(ordinary, &early, &exchange), [&early[..], &exchange].concat());
    // Sent before the server has asked for it: it waits.
    assert_eq!(talk(asks_again, &[&good[..], &good].concat(), &[]), [&good[..], &good].concat());
    for (first, then) in [
        (good.clone(), evil.clone()),
        (good.clone(), [&specs[..], &evil].concat()),
        ([&good[..], &evil].concat(), Vec::new()),
        (early.clone(), with_extension(&good, 0xfe0d)),
        (good.clone(), exchange.to_vec()),
    ] {
        let got = talk(asks_again, &first, &then);
        assert!(got.len() <= early.len() + specs.len(), "{} bytes went through", got.len());
    }
    for text in ["evil.example when it is asked once more", "cannot be judged"] {
        guest.record(text, |record| record.what.kind == Kind::Tls && record.what.text.contains(text));
    }
    // Two of them in one record.
    let two = [&good[5..], &evil[5..]].concat();
    let two = [&[22, 3, 1][..], &u16::try_from(two.len()).unwrap().to_be_bytes(), &two].concat();
    assert!(!passes(&mut guest, ordinary, &two));
    guest.end();
}

/// A server that answers each eight bytes with the next one of these; all that it got comes out when the connection ends.
fn postgres(answers: &'static [u8]) -> (u16, Receiver<Vec<u8>>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, got) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut bytes) = (stream.unwrap(), Vec::new());
            for answer in answers {
                // Errors: the gateway resets it. What came before is there.
                if let Ok(8) = (&stream).take(8).read_to_end(&mut bytes) {
                    let _ = stream.write_all(&[*answer]);
                }
            }
            let _ = stream.read_to_end(&mut bytes);
            say.send(bytes).unwrap();
        }
    });
    (port, got)
}

/// SSLRequest and GSSENCRequest.
const TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// What a server of PostgreSQL gets of this request and of what comes behind it, at once or behind the server's answers.
fn postgres_gets(
    guest: &mut Guest,
    (port, got): &(u16, Receiver<Vec<u8>>),
    words: &[&[u8]],
    (piece, waits): (usize, bool),
) -> Vec<u8> {
    let handle = guest.connect_to("a.example.com", *port).unwrap();
    for (at, word) in words.iter().enumerate() {
        for piece in word.chunks(piece) {
            guest.send(handle, piece);
            guest.turn();
        }
        if waits && at + 1 < words.len() {
            guest.receive(handle, 1);
        }
    }
    if !waits {
        guest.receive(handle, words.len() - 1);
    }
    guest.finish(handle);
    guest.until("what the server got", |_| got.try_recv().ok())
}

/// How many of such refusals there are in the records.
fn refused_tls(guest: &Guest, text: &str) -> u64 {
    let of_it = |record: &&Record| {
        (record.what.kind, record.what.decision, record.what.host.as_str())
            == (Kind::Tls, Decision::Refused, "a.example.com")
            && record.what.text.contains(text)
    };
    guest.records.iter().filter(of_it).map(|record| record.count).sum()
}

/// Whole and byte by byte, behind the answer and before it.
const WAYS: [(usize, bool); 4] = [(usize::MAX, true), (usize::MAX, false), (1, true), (1, false)];

/// Traefik chooses by the name among all that is behind it, behind PostgreSQL's request as well.
#[test]
fn tls_that_postgresql_is_asked_for_must_ask_for_the_name_of_its_flow() {
    let (yes, later) = (postgres(b"S"), postgres(b"NS"));
    let policy = rules(&["a.example.com:*", "127.0.0.1:*"], &[]);
    let table = hosts(&[("a.example.com", "127.0.0.1")]);
    let mut guest = Guest::start(Configuration { policy, hosts: table, ..Configuration::default() });
    let (good, evil) = (hello("a.example.com"), hello("evil.example"));
    let startup = b"\0\0\0\x10\0\x03\0\0user\0me\0".to_vec();
    // libpq before 14 asks for no name.
    for hello in [&good, &hello("192.0.2.1")] {
        for way in WAYS {
            let all = [&TLS[..], hello].concat();
            assert_eq!(postgres_gets(&mut guest, &yes, &[&TLS, hello], way), all, "{way:?}");
            let all = [&GSS[..], &TLS, hello].concat();
            assert_eq!(postgres_gets(&mut guest, &later, &[&GSS, &TLS, hello], way), all, "{way:?}");
        }
    }
    let encrypted = with_extension(&good, 0xfe0d);
    let nobody = with_extension(&hello("192.0.2.1"), 0xfe0d);
    for (text, word) in [
        ("evil.example", &evil),
        ("encrypted", &encrypted),
        ("encrypted", &nobody),
        ("no TLS", &startup),
        ("begins wrong", &of_version(&evil, 2)),
        ("no TLS", &[&[0x41, 9, 9, 0, 3, b'a', b'b', b'c'][..], &evil].concat()),
    ] {
        for way in WAYS {
            let before = refused_tls(&guest, text);
            assert_eq!(postgres_gets(&mut guest, &yes, &[&TLS, word], way), TLS, "{text} {way:?}");
            let got = postgres_gets(&mut guest, &later, &[&GSS, &TLS, word], way);
            assert_eq!(got, [GSS, TLS].concat(), "{text} {way:?}");
            guest.until("a record of each", |guest| (refused_tls(guest, text) == before + 2).then_some(()));
        }
    }
    // PostgreSQL itself takes such a one of any length.
    for way in WAYS {
        let got = postgres_gets(&mut guest, &yes, &[&[0, 0, 0, 9, 4, 210, 22, 47, 0], &evil], way);
        assert!(got.len() < TLS.len(), "{way:?}: {got:?}");
    }
    guest.until("a record of each", |guest| (refused_tls(guest, "another length") == 4).then_some(()));
    guest.end();
}

#[test]
fn what_postgresql_does_not_say_yes_to_passes() {
    let policy = rules(&["a.example.com:*", "127.0.0.1:*"], &[]);
    let table = hosts(&[("a.example.com", "127.0.0.1")]);
    let mut guest = Guest::start(Configuration { policy, hosts: table, ..Configuration::default() });
    let startup = b"\0\0\0\x10\0\x03\0\0user\0me\0";
    let (no, error, twice) = (postgres(b"N"), postgres(b"E"), postgres(b"NN"));
    let tokens = postgres(b"G");
    for way in WAYS {
        for (server, words) in [
            (&no, &[&TLS[..], startup][..]),
            (&no, &[&GSS, startup]),
            (&error, &[&TLS, startup]),
            (&tokens, &[&GSS, b"\0\0\0\x05token"]),
            (&twice, &[&GSS, &TLS, startup]),
            (&twice, &[&TLS, &GSS, startup]),
        ] {
            assert_eq!(postgres_gets(&mut guest, server, words, way), words.concat(), "{way:?}");
        }
    }
    // Others that begin so, and a client that says no more than its request.
    let port = echo("127.0.0.1");
    for word in [&TLS[..7], &TLS, startup, b"\0\0\0\x08\0\0\0\x01"] {
        assert!(passes(&mut guest, port, word), "{word:?}");
    }
    // Nothing comes behind the request before it is answered, not even with a goodbye.
    let handle = guest.connect_to("a.example.com", no.0).unwrap();
    guest.send(handle, &TLS[..4]);
    guest.turn();
    guest.send(handle, &TLS[4..]);
    assert_eq!(guest.receive(handle, 1), b"N");
    guest.tcp(handle).abort();
    let silent = postgres(b"");
    let handle = guest.connect_to("a.example.com", silent.0).unwrap();
    guest.send(handle, &[&TLS[..], &hello("a.example.com")].concat());
    guest.finish(handle);
    assert_eq!(guest.until("what the server got", |_| silent.1.try_recv().ok()), TLS);
    guest.until("its record", |guest| (refused_tls(guest, "before the server's answer") == 1).then_some(()));
    guest.end();
}

/// An HTTP proxy that gives everybody an echo; its port. The way to port 80, which a test cannot listen on.
fn echoing_proxy() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0) {
                    head.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let mut back = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
            });
        }
    });
    port
}

#[test]
fn http_in_clear_reaches_nobody_unread_however_it_is_spelled() {
    let port = echo("127.0.0.1");
    let folder = tempfile::tempdir().unwrap();
    let root = intercept::RootCa::load_or_make(folder.path(), SystemTime::now()).unwrap();
    let ca = serde_json::to_string(&root.issue("test", SystemTime::now()).unwrap()).unwrap();
    let configuration = Configuration {
        policy: rules(&["a.example.com:*", "127.0.0.1:*"], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1")]),
        proxies: Proxies {
            http: Some(format!("http://127.0.0.1:{}", echoing_proxy())),
            ..Proxies::default()
        },
        ca: Some(SecretText::new(ca.into())),
        ..Configuration::default()
    };
    let mut guest = Guest::start_with(configuration, gateway::interceptor);
    // Without roots there is nothing to look into anything with; with them there is.
    guest.word("why not", |word| matches!(word, FromGateway::Rejected { word, .. } if word == "Ca"));
    let root = rcgen::generate_simple_self_signed(vec!["root.example".into()]).unwrap();
    guest.say(&ToGateway::Roots { roots: vec![root.cert.der().to_vec()] }, &[]);
    let evil = " / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    // What can be read is looked into: the host is another one.
    let long = "A".repeat(40);
    for method in ["GET", "G3T", "A.B", &long] {
        let handle = guest.connect_to("a.example.com", 80).unwrap();
        guest.send(handle, format!("{method}{evil}").as_bytes());
        let answer = guest.receive(handle, 12);
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{method}: {}", String::from_utf8_lossy(&answer));
        guest.tcp(handle).abort();
    }
    let unreadable = [
        (80, ["\r\n".repeat(9000).as_str(), "GET", evil].concat()),
        (80, format!(" GET{evil}")),
        (80, format!("\u{feff}GET{evil}")),
        (80, "GET http://evil.example/\r\n".to_owned()),
        (port, format!("FETCH{evil}")),
        (port, ["\r\n".repeat(9000).as_str(), "GET", evil].concat()),
    ];
    for (at, (port, bytes)) in unreadable.iter().enumerate() {
        let handle = guest.connect_to("a.example.com", *port).unwrap();
        for piece in bytes.as_bytes().chunks(bytes.len().div_ceil(5)) {
            guest.send(handle, piece);
            guest.turn();
        }
        let echoed = guest.receive_all(handle);
        assert!(!echoed.contains(&b'\n'), "{at}: a whole line went through");
        guest.until("a record of each", |guest| {
            let refused = |record: &&Record| {
                record.what.kind == Kind::Request && record.what.text.contains("some HTTP servers")
            };
            let count: u64 = guest.records.iter().filter(refused).map(|record| record.count).sum();
            (count > at as u64).then_some(())
        });
    }
    // Others are not held up: these send no whole line, or wait for the server behind it.
    let git = "003fgit-upload-pack /project.git\0host=a.example.com\0";
    for word in [
        "SSH-2.0-OpenSSH_10.0\r\n",
        "*1\r\n$4\r\nPING\r\n",
        "PING",
        "EHLO box\r\n",
        git,
        "\0\0\0\x08\x04\u{2}",
    ] {
        assert!(passes(&mut guest, port, word.as_bytes()), "{word:?}");
    }
    for word in ["SSH-2.0-OpenSSH_10.0\r\n", "EHLO box\r\n", "\0\x01\x02"] {
        assert!(passes(&mut guest, 80, word.as_bytes()), "{word:?}");
    }
    guest.end();
}

#[test]
fn half_a_hello_goes_nowhere() {
    let port = echo("127.0.0.1");
    let mut guest = two_names(port);
    let handle = guest.connect_to("a.example.com", port).unwrap();
    let bytes = hello("a.example.com");
    guest.send(handle, &bytes[..bytes.len() - 1]);
    for _ in 0..200 {
        guest.turn();
    }
    assert!(!guest.tcp(handle).can_recv(), "the server got bytes before the name was known");
    guest.send(handle, &bytes[bytes.len() - 1..]);
    assert_eq!(guest.receive(handle, bytes.len()), bytes);
    // Nor does a goodbye make it whole; of other protocols it does.
    let handle = guest.connect_to("a.example.com", port).unwrap();
    guest.send(handle, &bytes[..bytes.len() - 1]);
    guest.finish(handle);
    assert_eq!(guest.receive_all(handle), b"");
    guest.record("half a hello", |record| {
        record.what.kind == Kind::Tls
            && record.what.decision == Decision::Refused
            && record.what.text.contains("does not end")
    });
    let handle = guest.connect_to("a.example.com", port).unwrap();
    guest.send(handle, b"GET");
    guest.finish(handle);
    assert_eq!(guest.receive_all(handle), b"GET");
    guest.end();
}

#[test]
fn the_gateway_answers_dns_whatever_server_is_asked() {
    let mut guest = two_names(1);
    let ours = guest.resolve("a.example.com").unwrap();
    for server in [[8, 8, 8, 8], [1, 1, 1, 1], [198, 18, 77, 7]] {
        let answer = guest
            .datagram((Ipv4Addr::from(server), 53).into(), &question("a.example.com", RecordType::A))
            .unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert!(matches!(answer.answers[0].data, RData::A(address) if address.0 == ours));
    }
    // Over TCP, two questions in one connection, to somebody else's server.
    let handle = guest.connect((Ipv4Addr::new(9, 9, 9, 9), 53)).unwrap();
    for name in ["a.example.com", "nothing.example.net"] {
        let message = question(name, RecordType::A);
        guest.send(handle, &u16::try_from(message.len()).unwrap().to_be_bytes());
        guest.send(handle, &message);
    }
    let mut codes = Vec::new();
    for _ in 0..2 {
        let length = guest.receive(handle, 2);
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        codes.push(Message::from_vec(&guest.receive(handle, length)).unwrap().metadata.response_code);
    }
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain]);
    // A message longer than any real one ends the connection.
    guest.send(handle, &[0xff; 100]);
    assert_eq!(guest.receive_all(handle), b"");
    guest.record("the limit", |record| {
        record.what.kind == Kind::Limit
            && record.what.text.contains("more than 4096 bytes")
            && record.count == 1
    });
    // DNS over TLS and QUIC are flows like others.
    assert!(guest.connect((Ipv4Addr::new(9, 9, 9, 9), 853)).is_none());
    guest.end();
}

#[test]
fn a_dns_tunnel_reaches_nobody_and_every_question_is_counted() {
    // The only server that the host has says who asks it.
    let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut configuration =
        Configuration { policy: rules(&["good.example.com"], &[]), ..Configuration::default() };
    configuration.resolver.servers = vec![server.local_addr().unwrap()];
    let mut guest = Guest::start(configuration);
    // As many as may come at once, however fast this machine is.
    let questions = 1900u64;
    for n in 0..questions {
        let answer = guest.ask(&format!("secret-{n:06x}.tunnel.example.net"), RecordType::TXT);
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
    server.set_nonblocking(true).unwrap();
    assert!(server.recv(&mut [0; 512]).is_err(), "a question went upstream");
    let counted = |guest: &mut Guest| guest.records.iter().map(|record| record.count).sum::<u64>();
    guest.until("every question in the records", |guest| (counted(guest) == questions).then_some(()));
    guest.end();
}

#[test]
fn junk_for_dns_is_answered_or_dropped_and_the_next_question_works() {
    let mut guest = two_names(1);
    let good = question("a.example.com", RecordType::A);
    let mut cases = vec![vec![], vec![0; 11], vec![0xff; 700], good[..15].to_vec(), vec![0; 5000]];
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 0xff;
        cases.push(damaged);
    }
    let server = (agent_proto::abi::GATEWAY_IPV4, 53);
    for case in cases {
        guest.cast(server.into(), &case);
    }
    assert!(guest.resolve("a.example.com").is_some());
    guest.record("the one of 5000 bytes", |record| {
        record.what.kind == Kind::Limit
            && record.what.text.contains("more than 4096 bytes")
            && record.count == 1
    });
    guest.end();
}

#[test]
fn what_is_neither_tcp_nor_udp_is_refused_with_a_record() {
    let mut guest = two_names(1);
    let named = guest.resolve("a.example.com").unwrap();
    for (to, protocol, count) in
        [([192, 0, 2, 1].into(), 1, 3), ([192, 0, 2, 1].into(), 47, 1), (named, 1, 1)]
    {
        for _ in 0..count {
            guest.packet(to, protocol, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
        }
    }
    for (host, text, count) in
        [("192.0.2.1", "ICMP", 3), ("192.0.2.1", "IP protocol 47", 1), ("a.example.com", "ICMP", 1)]
    {
        guest.until(text, |guest| {
            let of_it = |record: &&gateway::record::Record| {
                record.what.kind == Kind::Datagram
                    && record.what.decision == Decision::Refused
                    && record.what.host == host
                    && record.what.text.contains(text)
            };
            let sum: u64 = guest.records.iter().filter(of_it).map(|record| record.count).sum();
            (sum == count).then_some(())
        });
    }
    guest.end();
}

#[test]
fn addresses_that_no_name_has_go_nowhere() {
    let port = echo("127.0.0.1");
    let mut guest = two_names(port);
    let literals = [
        "198.18.200.200",
        "198.18.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.0.2.1",
        "fd76:6976::1",
        "fd76:6976::abcd",
        "2001:db8::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::1",
    ];
    for literal in literals {
        let address: IpAddr = literal.parse().unwrap();
        assert!(guest.connect((address, port)).is_none(), "{literal}");
    }
    guest.end();
}

#[test]
fn a_name_does_not_lead_to_another_ones_flow() {
    // Both names share an address upstream; only the port of one is allowed.
    let port = echo("127.0.0.1");
    let mut guest = Guest::start(Configuration {
        policy: rules(&[&format!("a.example.com:{port}"), "b.example.com:9", "127.0.0.1:*"], &[]),
        hosts: hosts(&[("a.example.com", "127.0.0.1"), ("b.example.com", "127.0.0.1")]),
        ..Configuration::default()
    });
    assert!(guest.connect_to("a.example.com", port).is_some());
    assert!(guest.connect_to("b.example.com", port).is_none());
    guest.end();
}
