use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::postgres::{Asks, Request};
use super::*;

/// A real client's ClientHello to a name or an address.
fn hello(server: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(server.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// An outer ClientHello's extension (RFC 9849 §5): suite, configuration, key, payload.
const OUTER: &[u8] = &[0, 0, 1, 0, 1, 7, 0, 1, 0xaa, 0, 1, 0xbb];

/// The same hello with one more extension.
fn with_extension(hello: &[u8], kind: u16, body: &[u8]) -> Vec<u8> {
    let mut message = handshake(hello);
    let rest = &message[38..];
    let (_, rest) = vector(rest, 1).unwrap();
    let (_, rest) = vector(rest, 2).unwrap();
    let (_, rest) = vector(rest, 1).unwrap();
    let place = message.len() - rest.len();
    // Before the others: a pre-shared key has to be the last one.
    let extension = [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat();
    let all = u16::from_be_bytes([message[place], message[place + 1]]) as usize + extension.len();
    message[place..place + 2].copy_from_slice(&(all as u16).to_be_bytes());
    message.splice(place + 2..place + 2, extension);
    let length = message.len() - 4;
    message[1..4].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
    records(&message, 16_384)
}

/// A handshake message in records of at most so many bytes.
fn records(message: &[u8], most: usize) -> Vec<u8> {
    message.chunks(most).flat_map(|part| record(22, 3, part)).collect()
}

fn record(kind: u8, version: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, version, 1][..], &(content.len() as u16).to_be_bytes(), content].concat()
}

fn named(name: &str) -> Seen {
    Seen::Hello { name: Some(name.into()), encrypted: false }
}

/// What is seen when the bytes come in pieces of this size; everything that was looked at is kept.
fn look(bytes: &[u8], piece: usize) -> Seen {
    let mut hello = Hello::default();
    let mut looked = 0;
    for piece in bytes.chunks(piece) {
        looked += piece.len();
        let seen = hello.push(piece);
        if seen != Seen::More {
            assert_eq!(hello.into_bytes(), &bytes[..looked]);
            return seen;
        }
    }
    Seen::More
}

#[test]
fn the_name_is_found_however_the_bytes_come() {
    let bytes = hello("one.example.com");
    for piece in [1, 2, 3, 5, 6, 100, bytes.len()] {
        assert_eq!(look(&bytes, piece), named("one.example.com"), "{piece}");
    }
    let message = handshake(&bytes);
    for most in [1, 2, 50, 200] {
        for piece in [1, 7, 100_000] {
            assert_eq!(look(&records(&message, most), piece), named("one.example.com"), "{most} {piece}");
        }
    }
}

#[test]
fn what_follows_the_hello_is_kept() {
    let mut bytes = hello("one.example.com");
    bytes.extend_from_slice(b"early data");
    let mut hello = Hello::default();
    assert_eq!(hello.push(&bytes), named("one.example.com"));
    assert_eq!(hello.into_bytes(), bytes);
}

#[test]
fn an_address_is_no_name() {
    let nameless = hello("192.0.2.7");
    assert_eq!(look(&nameless, 99_999), Seen::Hello { name: None, encrypted: false });
    // Nor may one be asked for where a hello without any passes.
    let asked = with_extension(&nameless, SERVER_NAME, b"\0\x0c\0\0\x09192.0.2.7");
    assert!(matches!(look(&asked, 1), Seen::Broken(why) if why.contains("an address")));
}

#[test]
fn a_request_for_tls_is_found_however_the_bytes_come() {
    let asks = |bytes: &[u8], piece: usize| {
        let mut request = Request::default();
        let mut looked = 0;
        for piece in bytes.chunks(piece) {
            match request.push(piece) {
                Asks::Begun => looked += piece.len(),
                Asks::Whole(end) => return Asks::Whole(looked + end),
                other => return other,
            }
        }
        Asks::Begun
    };
    for piece in [1, 3, 4, 5, 8, 100] {
        for code in [47, 48] {
            let bytes = [0, 0, 0, 8, 4, 210, 22, code, 22, 3, 1];
            assert_eq!(asks(&bytes, piece), Asks::Whole(8));
            assert_eq!(asks(&bytes[..7], piece), Asks::Begun);
            for long in [[0, 0, 0, 9], [0, 0, 1, 8], [0xff; 4]] {
                assert_eq!(asks(&[&long[..], &bytes[4..]].concat(), piece), Asks::Long);
            }
        }
        // A startup message, a request to cancel, and others' first words.
        for other in
            [&b"\0\0\0\x08\0\x03\0\0"[..], b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\0", b"SSH-2.0-x", b"EHLO box"]
        {
            assert_eq!(asks(other, piece), Asks::Nothing, "{other:?}");
        }
    }
}

#[test]
fn an_encrypted_hello_is_told_of() {
    let bytes = with_extension(&hello("outer.example"), ENCRYPTED_CLIENT_HELLO, OUTER);
    for piece in [1, 10_000] {
        assert_eq!(look(&bytes, piece), Seen::Hello { name: Some("outer.example".into()), encrypted: true });
    }
    let other = with_extension(&hello("outer.example"), 0x3a3a, b"grease");
    assert_eq!(look(&other, 10_000), named("outer.example"));
    let split = records(&handshake(&bytes), 3);
    assert_eq!(look(&split, 1), Seen::Hello { name: Some("outer.example".into()), encrypted: true });
}

#[test]
fn a_long_hello_is_taken_and_an_endless_one_is_not() {
    let long = with_extension(&hello("long.example"), 0x3a3a, &vec![0; 40_000]);
    assert_eq!(look(&long, 1460), named("long.example"));
    let mut endless = hello("long.example");
    endless[6..9].copy_from_slice(&[1, 0, 0]);
    endless.resize(100_000, 22);
    assert!(matches!(look(&endless, 1460), Seen::Broken(_)));
    // Records without content make no progress.
    let empty: Vec<u8> = [22, 3, 1, 0, 0].repeat(20_000);
    assert!(matches!(look(&empty, 1460), Seen::Broken(_)));
}

#[test]
fn what_is_not_tls_is_told_apart_at_once() {
    for bytes in
        [&b"SSH-2.0-x"[..], b"QUIT\r\n", b"GET /\r\n", &[0x80, 0, 0], &[0x80, 9, 1, 2], &[22, 22, 0, 0, 1, 2]]
    {
        assert_eq!(look(bytes, 1), Seen::Other, "{bytes:?}");
    }
    for word in [&b"hello"[..], b"PING", b"FETCH / HTTP/1.1\r\n", b"gets key"] {
        assert_eq!(look(word, 1), Seen::Other, "{word:?}");
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"\r\n\nPUT  /x  http/1.0 \n",
        b"PRI * HTTP/2.0\r\n",
        b"GET /\x01 HTTP/1.1\n",
    ] {
        assert_eq!(look(bytes, 1), Seen::Http, "{bytes:?}");
        assert_eq!(look(bytes, 100), Seen::Http, "{bytes:?}");
        assert_eq!(look(&bytes[..bytes.len() - 1], 1), Seen::More, "{bytes:?}");
    }
    for first in [20, 21, 23, 24] {
        assert_eq!(look(&[first], 1), Seen::More);
        assert!(matches!(look(&[first, 3, 1, 0, 2, 1, 90], 1), Seen::Broken(_)), "{first}");
    }
    assert_eq!(look(&[22], 1), Seen::More);
    assert_eq!(look(&[22, 3], 1), Seen::More);
}

/// What is seen on port 80, the bytes whole and one by one.
fn on_the_web(bytes: &[u8]) -> Seen {
    let mut whole = Hello::on_port(80);
    let seen = whole.push(bytes);
    let mut parts = Hello::on_port(80);
    let parts =
        bytes.iter().map(|byte| parts.push(&[*byte])).find(|seen| *seen != Seen::More).unwrap_or(Seen::More);
    assert_eq!(seen, parts, "{bytes:?}");
    seen
}

#[test]
fn on_port_80_only_what_is_no_request_for_anybody_passes() {
    let long = "A".repeat(40) + " / HTTP/1.1\r\n";
    for bytes in
        [&b"G3T / HTTP/1.1\r\n"[..], b"A.B /x HTTP/1.1\n", long.as_bytes(), b"\r\n\nFETCH * http/1.0\r\n"]
    {
        assert_eq!(on_the_web(bytes), Seen::Http, "{bytes:?}");
        assert_eq!(on_the_web(&bytes[..bytes.len() - 1]), Seen::More, "{bytes:?}");
    }
    let unclear = [
        &b" GET / HTTP/1.1\r\n"[..],
        b"GET\x0b/\x0bHTTP/1.1\r\n",
        b"\xef\xbb\xbfGET / HTTP/1.1\r\n",
        b"{GET / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"GET http://evil.example/\n",
        b"x / HTTP/1.1 y\r\n",
    ];
    for bytes in unclear {
        assert_eq!(on_the_web(bytes), Seen::Unclear, "{bytes:?}");
    }
    for bytes in
        [&b"SSH-2.0-OpenSSH_10.0 Debian-5\r\n"[..], b"EHLO box\r\n", b"\0\0\0\x08", b"AB\x01/ HTTP/1.1\n"]
    {
        assert_eq!(on_the_web(bytes), Seen::Other, "{bytes:?}");
    }
    // nginx overlooks any number of empty lines.
    let empty = [&b"\r\n".repeat(9000)[..], b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(on_the_web(&empty), Seen::Unclear);
    assert_eq!(look(&empty, 1024), Seen::Unclear);
    assert_eq!(on_the_web(&[b'x'; 20_000]), Seen::Unclear);
    let mut cut = Hello::on_port(80);
    assert_eq!((cut.push(b"GET / HTTP/1.1"), cut.over()), (Seen::More, Seen::Unclear));
    let mut cut = Hello::on_port(80);
    assert_eq!((cut.push(b"QUIT"), cut.over()), (Seen::More, Seen::Other));
}

#[test]
fn a_line_that_goes_on_is_looked_at_to_its_end() {
    let ends = |bytes: &[u8]| {
        let mut hello = Hello::default();
        assert_eq!(hello.push(bytes), Seen::Other, "{bytes:?}");
        let Some((mut line, rest)) = hello.line() else { return Line::Other };
        rest.iter().map(|byte| line.push(*byte)).find(|line| *line != Line::Passing).unwrap_or(Line::Passing)
    };
    for request in [
        &b"FETCH / HTTP/1.1\r\n"[..],
        b" GET / HTTP/1.1\r\n",
        b"get / http/1.1 \n",
        b"G3T\t/\tHTTP/2\rx\n",
        b"G3T /\x01 HTTP/1.1\n",
    ] {
        assert_eq!(ends(request), Line::Unclear, "{request:?}");
    }
    let git = b"003fgit-upload-pack /project.git\0host=git.example\0";
    let others = [
        &b"SSH-2.0-x\r\n"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO box\r\n",
        git,
        b"\0\0\0\x08\x04\xd2\x16/",
        b"{\"a\":1}\n",
    ];
    for other in others {
        assert_eq!(ends(other), Line::Other, "{other:?}");
    }
    assert_eq!(ends(b"PING"), Line::Passing);
    assert_eq!(ends(&[b'x'; 3 << 20]), Line::Other);
}

/// Go's servers take a first record of any version below 16, wolfSSL's and s2n's of any; OpenSSL takes SSL 2.0's form of hello.
#[test]
fn a_hello_in_a_record_of_another_version_is_broken() {
    let mut bytes = hello("bad.example");
    for version in [0, 1, 2, 4, 15, 16, 22, 0x7f, 0x80, 255] {
        bytes[1] = version;
        for piece in [1, 2, bytes.len()] {
            assert!(matches!(look(&bytes, piece), Seen::Broken(_)), "{version} {piece}");
        }
        // Not a byte goes on before it is known, however it is cut.
        let message = handshake(&bytes);
        for most in [1, 2, 3, 5] {
            let cut: Vec<u8> = message.chunks(most).flat_map(|part| record(22, version, part)).collect();
            let empty = [&record(22, version, &[])[..], &cut].concat();
            let warned = [&cut[..5 + most], &record(21, version, &[1, 90]), &cut[5 + most..]].concat();
            for bytes in [&cut, &empty, &warned] {
                assert!(matches!(look(bytes, 1), Seen::Broken(_)), "{version} {most}");
                assert!(matches!(look(bytes, 4000), Seen::Broken(_)), "{version} {most}");
            }
        }
        for kind in [20, 21, 23, 24] {
            let before = [&[kind, version, 0, 0, 2, 1, 90][..], &bytes].concat();
            assert!(matches!(look(&before, 1), Seen::Broken(_)), "{kind} {version}");
        }
    }
    for piece in [1, 100] {
        assert!(matches!(look(&[0x80, 0x2e, 1, 3, 1, 0, 5], piece), Seen::Broken(_)));
    }
    let endless = record(20, 9, &[]).repeat(20_000);
    assert!(matches!(look(&endless, 1460), Seen::Broken(_)));
}

/// Zeros are looked at many at once: what is found is the same as one by one.
#[test]
fn a_hello_is_found_behind_any_number_of_zeros() {
    let hello = hello("bad.example");
    for zeros in (0..400).chain([65_535, 65_536, 100_000]) {
        for behind in [&hello[..], &[1, 0, 0, 0, 0, 0, 0], &[0, 3, 3, 0, 0, 9]] {
            let all = [&vec![0; zeros], behind].concat();
            let (one, _) = found(&all, 1);
            assert_eq!(matches!(one, Found::Hello(_)), zeros % 5 == 0 && behind == hello, "{zeros}");
            for piece in [3, 5, 64, 1460, all.len()] {
                assert_eq!(found(&all, piece).0, one, "{zeros} {piece}");
            }
        }
    }
}

/// SSL 2.0's form of a ClientHello with two suites and a challenge.
fn old_hello(high: u8, version: u8) -> Vec<u8> {
    let mut bytes = vec![high, 31, 1, version, 3, 0, 6, 0, 0, 0, 16, 0, 0, 0x2f, 0, 0, 0x35];
    bytes.resize(33, 7);
    bytes
}

/// What is found when the bytes come in pieces, and how many had come.
fn found(bytes: &[u8], piece: usize) -> (Found, usize) {
    let (mut records, mut last) = (Records::default(), Found::Nothing);
    for (at, piece) in bytes.chunks(piece).enumerate() {
        last = records.push(piece);
        if matches!(last, Found::Hello(_) | Found::Over) {
            return (last, at * piece.len() + piece.len());
        }
    }
    (last, bytes.len())
}

/// s2n overlooks types of records that it does not know.
#[test]
fn a_hello_behind_what_a_server_overlooks_is_found_before_it_is_whole() {
    let hello = hello("bad.example");
    let cut: Vec<u8> = hello[5..]
        .chunks(1)
        .flat_map(|part| [record(22, 3, part), record(99, 0, b"between")].concat())
        .collect();
    let behind = [
        (record(0x41, 9, b"abc"), hello.clone()),
        (record(0x7f, 0, &[22; 65_535]), hello.clone()),
        ([record(0, 0, &[]), record(0x90, 1, &[9; 300]), record(23, 0x80, &[5; 77])].concat(), hello.clone()),
        // Its fourth and fifth byte are a length.
        ([b"GET / HTTP/1.1\r\n".to_vec(), vec![b'x'; 0x202f - 11]].concat(), hello.clone()),
        (record(22, 9, &[]), hello.clone()),
        (record(77, 0, b"x"), cut),
        (record(77, 0, b"x"), old_hello(0x80, 3)),
        (record(77, 0, b"x"), old_hello(0x80, 9)),
        (Vec::new(), old_hello(0x80, 2)),
        (Vec::new(), old_hello(0x80, 255)),
        // wolfSSL's, without the highest bit.
        (Vec::new(), old_hello(0, 3)),
        (Vec::new(), old_hello(0, 0xfe)),
    ];
    for (before, hello) in behind {
        let all = [&before[..], &hello].concat();
        for piece in [1, 4, 7, 1000, all.len()] {
            assert!(matches!(found(&all, piece).0, Found::Hello(_)), "{:?} {piece}", &all[..8]);
        }
        let (_, at) = found(&all, 1);
        assert!((before.len()..before.len() + hello.len().min(90)).contains(&at), "{:?} {at}", &all[..8]);
    }
    // Any bytes of an upload come where a record may begin: four that match are not enough there.
    let upload = [&record(77, 0, b"x")[..], &[0xff, 0x20, 1, 3, 0, 0x9c, 0x41, 0, 0, 0, 0]].concat();
    for piece in [1, 4, 1000] {
        assert!(!matches!(found(&upload, piece).0, Found::Hello(_)), "{piece}");
    }
    // No server of TLS goes on behind another message.
    let other = [&record(22, 3, &[2, 0, 0, 40])[..], &hello].concat();
    assert_eq!((found(&other, 1).0, found(&other, 1000).0), (Found::Over, Found::Over));
    assert_eq!(found(&[0; 100_000], 1460).0, Found::Nothing);
}

/// Protocols whose first bytes are a length of which the lowest byte comes first.
#[test]
fn what_only_begins_like_tls_passes() {
    let mut others = Vec::new();
    for length in (0x14u16..=0x18).flat_map(|low| [0, 1, 2, 4].map(|high| high << 8 | low)) {
        // MongoDB: length, number, what it answers, OP_MSG or OP_QUERY.
        for number in (0u32..600).chain([0x1_0101, 0x0100_0001, u32::MAX]) {
            for operation in [2013u32, 2004] {
                let head = [u32::from(length), number, 0, operation];
                let mut bytes: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
                bytes.extend(b"\0\0\0\0\0\x3e\0\0\0\x10hello\0\x01\0\0\0\x08helloOk\0\x01\x02$db\0");
                bytes.resize(usize::from(length).max(90), 1);
                others.push(bytes);
            }
        }
        // MySQL: length, number, what the client can, the longest packet, the character set, the user.
        for able in [0x81be_a285u32, 0x0002_820d, 0x0118_aa8d] {
            let mut bytes =
                [&length.to_le_bytes()[..], &[0, 1], &able.to_le_bytes(), &[0, 0, 0, 1, 45]].concat();
            bytes.resize(36, 0);
            bytes.extend(b"user\0");
            bytes.resize(usize::from(length).max(90) + 4, 7);
            others.push(bytes);
        }
    }
    // SOCKS 4, of which some clients send no more; a remote procedure call of 259 bytes; telnet.
    others.push(vec![4, 1, 1, 0xbb, 10, 0, 0, 1, 0]);
    others.push([&[0x80, 0, 1, 3, 0, 0, 0, 9][..], &[0; 80]].concat());
    others.push(b"\xff\xfd\x01\xff\xfb\x03".to_vec());
    for bytes in others {
        let (piece, first) = (bytes.len(), &bytes[..bytes.len().min(16)]);
        assert_eq!((look(&bytes, 1), look(&bytes, piece)), (Seen::Other, Seen::Other), "{first:?}");
        assert!(!matches!(found(&bytes, piece).0, Found::Hello(_)), "{first:?}");
    }
}

/// Some servers take a PROXY protocol header from anybody, and read the hello or the request behind it.
#[test]
fn a_proxy_header_is_broken_on_every_port() {
    let headers = [
        &b"PROXY TCP4 192.0.2.1 192.0.2.2 1 443\r\n"[..],
        b"PROXY TCP6 2001:db8::1 2001:db8::2 1 443\r\n",
        b"PROXY UNKNOWN\r\n",
        // go-proxyproto does not look at the rest of the first word.
        b"PROXYING TCP4 192.0.2.1 192.0.2.2 1 443\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\x01\xbb",
    ];
    for header in headers {
        for behind in [&hello("evil.example")[..], b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"] {
            let bytes = [header, behind].concat();
            for seen in [look(&bytes, 1), look(&bytes, bytes.len()), on_the_web(&bytes)] {
                assert!(matches!(&seen, Seen::Broken(why) if why.contains("PROXY")), "{seen:?}");
            }
        }
        for length in 1..5 {
            assert_eq!(look(&header[..length], 1), Seen::More);
        }
    }
    for (other, seen) in [
        (&b"PROPFIND / HTTP/1.1\r\n"[..], Seen::Http),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", Seen::Http),
        (b"PROX\r\n", Seen::Other),
        (b"\r\n\r\n\x01", Seen::Other),
    ] {
        assert_eq!(look(other, 1), seen, "{other:?}");
        assert_eq!(look(other, 99), seen, "{other:?}");
    }
}

/// A client that sends nothing but empty records behind its hello: none of them is moved for each of the others.
#[test]
fn many_small_records_behind_a_hello_pass_at_once() {
    let mut retry = retry::Retry::new();
    let many = record(23, 3, &[]).repeat(2_000_000);
    assert_eq!(retry.push(&many), retry::Next::Pass(many.clone()));
    let mut bytes = Vec::new();
    for piece in many[..70_000].chunks(4) {
        match retry.push(piece) {
            retry::Next::Pass(mut passed) => bytes.append(&mut passed),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, many[..70_000]);
    assert!(!retry.is_cut());
}

#[test]
fn two_names_and_cut_lengths_are_broken() {
    let bytes = hello("one.example.com");
    let twice = with_extension(&bytes, 0, &[0, 6, 0, 0, 3, b'b', b'a', b'd']);
    assert!(matches!(look(&twice, 10_000), Seen::Broken(_)));
    for at in 5..bytes.len().min(60) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        // Never a panic, and never another name.
        match look(&damaged, 10_000) {
            Seen::Hello { name, .. } => assert_eq!(name.as_deref(), Some("one.example.com"), "{at}"),
            Seen::More | Seen::Other | Seen::Http | Seen::Unclear | Seen::Broken(_) => {}
        }
    }
}
