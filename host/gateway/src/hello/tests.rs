use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

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
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(most).flat_map(record).collect()
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
    assert_eq!(look(&hello("192.0.2.7"), 99_999), Seen::Hello { name: None, encrypted: false });
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
        [&b"SSH-2.0-x"[..], b"QUIT\r\n", b"GET /\r\n", &[22, 16], &[0x80, 0, 0], &[0x80, 9, 1, 2], &[22, 22]]
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

/// Go's servers take a first record of any version below 16; OpenSSL takes SSL 2.0's form of hello.
#[test]
fn a_hello_in_a_record_of_another_version_is_broken() {
    let mut bytes = hello("bad.example");
    for version in [0, 1, 2, 4, 15] {
        bytes[1] = version;
        for piece in [1, 2, bytes.len()] {
            assert!(matches!(look(&bytes, piece), Seen::Broken(_)), "{version} {piece}");
        }
        for kind in [20, 21, 23, 24] {
            let before = [&[kind, version, 0, 0, 2, 1, 90][..], &bytes].concat();
            assert!(matches!(look(&before, 1), Seen::Broken(_)), "{kind} {version}");
        }
    }
    for piece in [1, 100] {
        assert!(matches!(look(&[0x80, 0x2e, 1, 3, 1, 0, 5], piece), Seen::Broken(_)));
    }
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
