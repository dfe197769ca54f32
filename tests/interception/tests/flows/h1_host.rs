//! A hostile host that speaks HTTP/1: what it answers may be taken for two answers, for none, or never ends. Through TLS on both sides, case
//! by case of RFC 9112 and RFC 9110. Behind each answer the guest asks again: what is left of a hostile answer must never be the next one's.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{HOST, Server, World, in_time, raw_exchange, run, statuses};

/// A host whose first connection answers each request with `hostile`, and whose others are well-behaved.
fn host(tls: Arc<ServerConfig>, hostile: Vec<u8>) -> Server {
    let connections = Cell::new(0);
    let hostile = Rc::new(hostile);
    Server::new(move |stream| {
        let first = connections.replace(connections.get() + 1) == 0;
        let (tls, hostile) = (Arc::clone(&tls), Rc::clone(&hostile));
        tokio::task::spawn_local(async move {
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await else { return };
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                seen.extend_from_slice(&buffer[..count]);
                if !seen.ends_with(b"\r\n\r\n") {
                    continue;
                }
                seen.clear();
                let clean = b"HTTP/1.1 200 OK\r\nX-Clean: 1\r\nContent-Length: 5\r\n\r\nclean";
                let answer = if first { hostile.as_slice() } else { clean };
                if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                if first && hostile.ends_with(b"(end)") {
                    _ = stream.shutdown().await;
                    return;
                }
            }
        });
    })
}

/// What the guest may get for the first request.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Expected {
    /// 502: nothing of it.
    Nothing,
    /// This status, with this as the whole body.
    Whole(u16, &'static str),
    /// 200 and a body that visibly breaks off.
    Broken,
}
use Expected::{Broken, Nothing, Whole};

struct Case {
    section: &'static str,
    name: &'static str,
    answer: Vec<u8>,
    expected: Expected,
}

fn case(section: &'static str, name: &'static str, answer: impl Into<Vec<u8>>, expected: Expected) -> Case {
    Case { section, name, answer: answer.into(), expected }
}

const EVIL: &str = "HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil";

/// RFC 9112 §4: status lines.
fn lines() -> Vec<Case> {
    let with = |line: &str| format!("{line}\r\nContent-Length: 2\r\n\r\nok");
    let case = |name, line: &str, expected| case("9112 §4", name, with(line), expected);
    vec![
        case("a plain answer", "HTTP/1.1 200 OK", Whole(200, "ok")),
        case("no reason", "HTTP/1.1 200 ", Whole(200, "ok")),
        case("no reason and no space", "HTTP/1.1 200", Whole(200, "ok")),
        case("HTTP/1.0", "HTTP/1.0 200 OK", Whole(200, "ok")),
        case("HTTP/1.2", "HTTP/1.2 200 OK", Nothing),
        case("HTTP/2.0", "HTTP/2.0 200 OK", Nothing),
        case("HTTP in small letters", "http/1.1 200 OK", Nothing),
        case("ICY", "ICY 200 OK", Nothing),
        case("two spaces", "HTTP/1.1  200 OK", Nothing),
        case("two digits", "HTTP/1.1 20 OK", Nothing),
        case("four digits", "HTTP/1.1 2000 OK", Nothing),
        case("a status below 100", "HTTP/1.1 099 OK", Nothing),
        case("a sign", "HTTP/1.1 +20 OK", Nothing),
        case("no status", "HTTP/1.1 OK", Nothing),
        case("a line end within the reason", "HTTP/1.1 200 OK\rX-Evil: 1", Nothing),
        case("NUL within the reason", "HTTP/1.1 200 O\0K", Nothing),
        case("an unknown status", "HTTP/1.1 799 Whatever", Whole(799, "ok")),
        case("no line at all", "", Nothing),
    ]
}

/// RFC 9112 §5: fields.
fn fields() -> Vec<Case> {
    let with = |field: &str| format!("HTTP/1.1 200 OK\r\n{field}\r\nContent-Length: 2\r\n\r\nok");
    let case = |name, field: &str, expected| case("9112 §5", name, with(field), expected);
    vec![
        case("a bare CR", "X-A: 1\rX-Evil: 1", Nothing),
        case("a bare LF", "X-A: 1\nX-B: 1", Whole(200, "ok")),
        case("NUL", "X-A: 1\0", Nothing),
        case("a folded line", "X-A: 1\r\n X-Evil: 1", Nothing),
        case("a folded first line", " X-Evil: 1", Nothing),
        case("a space before the colon", "X-A : 1", Nothing),
        case("a tab before the colon", "X-A\t: 1", Nothing),
        case("a space within the name", "X A: 1", Nothing),
        case("no colon", "X-A", Nothing),
        case("no name", ": 1", Nothing),
        case("a letter over 0x7f in the name", "X-\u{e9}: 1", Nothing),
        case("a control character in the name", "X-\u{1}: 1", Nothing),
        case("brackets in the name", "X(A): 1", Nothing),
        case("a control character in the value", "X-A: \u{1}", Nothing),
        case("300 fields", &"X-A: 1\r\n".repeat(300), Nothing),
        case("a field of 300 KiB", &format!("X-A: {}", "a".repeat(300 << 10)), Nothing),
        case("200 KiB of fields", &format!("X-A: {}\r\n", "a".repeat(2000)).repeat(100), Nothing),
        case("a megabyte without a line end", &"a".repeat(1 << 20), Nothing),
        case("an unasked switch of protocols", "Connection: upgrade\r\nUpgrade: h2c", Whole(200, "ok")),
    ]
}

/// RFC 9112 §6: how long the body is.
fn lengths() -> Vec<Case> {
    let with = |head: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}");
    let case = |name, head: &str, body: &str, expected| case("9112 §6", name, with(head, body), expected);
    vec![
        case("an answer behind the answer", "Content-Length: 2", &format!("ok{EVIL}"), Whole(200, "ok")),
        case("garbage behind the answer", "Content-Length: 2", "ok\0\0\0\0", Whole(200, "ok")),
        case("empty lines behind the answer", "Content-Length: 2", "ok\r\n\r\n", Whole(200, "ok")),
        case(
            "length and chunks",
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n",
            Whole(200, "ok"),
        ),
        case(
            "chunks and length",
            "Transfer-Encoding: chunked\r\nContent-Length: 99",
            "2\r\nok\r\n0\r\n\r\n",
            Whole(200, "ok"),
        ),
        case("two lengths", "Content-Length: 2\r\nContent-Length: 55", &format!("ok{EVIL}"), Nothing),
        case("a list of two lengths", "Content-Length: 2, 55", &format!("ok{EVIL}"), Nothing),
        case("a negative length", "Content-Length: -2", "ok", Nothing),
        case("a signed length", "Content-Length: +2", "ok", Nothing),
        case("a hexadecimal length", "Content-Length: 0x2", "ok", Nothing),
        case("a length with a space", "Content-Length: 2 2", "ok", Nothing),
        case("a length over 2^64", "Content-Length: 18446744073709551618", "ok", Nothing),
        case("an empty length", "Content-Length:", "ok", Nothing),
        case("a length in other digits", "Content-Length: \u{662}", "ok", Nothing),
        case("a body that is cut off", "Content-Length: 50", "ok(end)", Broken),
        case("no length: to the end", "X-A: 1", "ok(end)", Whole(200, "ok(end)")),
        case(
            "chunked is not last: to the end",
            "Transfer-Encoding: chunked, identity",
            "2\r\nok\r\n0\r\n\r\n(end)",
            Nothing,
        ),
        case(
            "a coding that nobody knows",
            "Transfer-Encoding: xchunked",
            "2\r\nok\r\n0\r\n\r\n(end)",
            Nothing,
        ),
        case(
            "chunked twice",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "2\r\nok\r\n0\r\n\r\n(end)",
            Nothing,
        ),
        case("a coding before chunked", "Transfer-Encoding: gzip, chunked", "2\r\nok\r\n0\r\n\r\n", Nothing),
        case(
            "a vertical tab before chunked",
            "Transfer-Encoding: \u{b}chunked",
            "2\r\nok\r\n0\r\n\r\n(end)",
            Nothing,
        ),
        case(
            "a space before the colon of a coding",
            "Transfer-Encoding : chunked",
            "2\r\nok\r\n0\r\n\r\n",
            Nothing,
        ),
    ]
}

/// RFC 9112 §7.1: chunks.
fn chunks() -> Vec<Case> {
    let with = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let case = |name, body: &str, expected| case("9112 §7.1", name, with(body), expected);
    let long = "a".repeat(100 << 10);
    vec![
        case("two chunks", "1\r\no\r\n1\r\nk\r\n0\r\n\r\n", Whole(200, "ok")),
        case("an extension", "2;a=b;c=\"d\"\r\nok\r\n0\r\n\r\n", Whole(200, "ok")),
        case("leading zeros", "0000002\r\nok\r\n00\r\n\r\n", Whole(200, "ok")),
        case("an answer behind the last chunk", &format!("2\r\nok\r\n0\r\n\r\n{EVIL}"), Whole(200, "ok")),
        case("no digits", "\r\nok\r\n0\r\n\r\n", Broken),
        case("0x", "0x2\r\nok\r\n0\r\n\r\n", Broken),
        case("a sign", "+2\r\nok\r\n0\r\n\r\n", Broken),
        case("a minus", "-2\r\nok\r\n0\r\n\r\n", Broken),
        case("a size over 2^64", "10000000000000002\r\nok\r\n0\r\n\r\n", Broken),
        case("a size of 2^64-1", "ffffffffffffffff\r\nok(end)", Broken),
        case("a size that ends in LF", "2\nok\r\n0\r\n\r\n", Broken),
        case("a bare CR in an extension", "2;a\rb\r\nok\r\n0\r\n\r\n", Broken),
        case("a bare LF in an extension", "2;a\nok\r\n0\r\n\r\n", Broken),
        case("a chunk that is longer", "2\r\nokay\r\n0\r\n\r\n", Broken),
        case("a chunk that is shorter", "4\r\nok\r\n0\r\n\r\n(end)", Broken),
        case("no last chunk", "2\r\nok\r\n(end)", Broken),
        case("an extension of 100 KiB", &format!("2;{long}\r\nok\r\n0\r\n\r\n"), Broken),
        case("trailers of 100 KiB", &format!("2\r\nok\r\n0\r\nX-A: {long}\r\n\r\n"), Broken),
        case("2000 trailers", &format!("2\r\nok\r\n0\r\n{}\r\n", "X-A: 1\r\n".repeat(2000)), Broken),
        case("a trailer with a bare CR", "2\r\nok\r\n0\r\nX-A: 1\rX-Evil: 1\r\n\r\n", Broken),
        case("a trailer without a colon", "2\r\nok\r\n0\r\nX-A\r\n\r\n", Broken),
        case("a length among the trailers", "2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n", Whole(200, "ok")),
    ]
}

/// RFC 9110 §15, RFC 9112 §6.3: answers without a body, and those before the answer.
fn statuses_without_bodies() -> Vec<Case> {
    let case = |name, answer: String, expected| case("9110 §15", name, answer, expected);
    let no_body = |status: &str| format!("HTTP/1.1 {status} None\r\nContent-Length: 55\r\n\r\n{EVIL}");
    vec![
        case("204 with a body", no_body("204"), Whole(204, "")),
        case("304 with a body", no_body("304"), Whole(304, "")),
        case("205 with a body", "HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nok".into(), Whole(205, "ok")),
        case("103, then the answer", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(), Whole(200, "ok")),
        case("100 with a length", "HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into(), Whole(200, "ok")),
        case("10,000 answers before the answer", {
            format!("{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 100 Continue\r\n\r\n".repeat(10_000))
        }, Whole(200, "ok")),
        case("a megabyte of hints", {
            let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "a".repeat(1000));
            format!("{}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", hint.repeat(1000))
        }, Whole(200, "ok")),
        case("101 unasked", "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".into(), Nothing),
        case("101 without words", "HTTP/1.1 101 Switching\r\n\r\n".into(), Nothing),
    ]
}

fn all() -> Vec<Case> {
    [lines(), fields(), lengths(), chunks(), statuses_without_bodies()].into_iter().flatten().collect()
}

/// The answers in what the guest read: status and body, and whether the last was whole. By the letter of RFC 9112.
fn answers(mut bytes: &[u8]) -> (Vec<(u16, String)>, bool) {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut head = httparse::Response::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = head.parse(bytes) else { return (found, false) };
        let value = |name: &str| {
            let field = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
            Some(String::from_utf8_lossy(field.value).into_owned())
        };
        let status = head.code.expect("complete");
        assert!(value("x-evil").is_none(), "a smuggled field");
        let rest = &bytes[length..];
        let (body, behind) = match (value("transfer-encoding"), value("content-length")) {
            _ if matches!(status, 204 | 304) => (Some(Vec::new()), rest),
            (Some(coding), length) => {
                assert!(length.is_none() && coding == "chunked", "one reading");
                unchunked(rest)
            }
            (None, Some(length)) => {
                let length: usize = length.parse().expect("one length");
                (rest.get(..length).map(<[u8]>::to_vec), rest.get(length..).unwrap_or_default())
            }
            // To the end: only where the connection is closed behind it.
            (None, None) => (Some(rest.to_vec()), &[][..]),
        };
        let Some(body) = body else { return (found, false) };
        found.push((status, String::from_utf8_lossy(&body).into_owned()));
        bytes = behind;
    }
    (found, true)
}

/// A chunked body and what stands behind it; `None` where it is not whole.
fn unchunked(mut bytes: &[u8]) -> (Option<Vec<u8>>, &[u8]) {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((at, size))) = httparse::parse_chunk_size(bytes) else {
            return (None, &[]);
        };
        bytes = &bytes[at..];
        let size = usize::try_from(size).expect("small");
        if size == 0 {
            let end = bytes.windows(2).position(|window| window == b"\r\n");
            return match end {
                Some(0) => (Some(body), &bytes[2..]),
                _ => match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    Some(end) => (Some(body), &bytes[end + 4..]),
                    None => (None, &[]),
                },
            };
        }
        let Some(data) = bytes.get(..size + 2) else { return (None, &[]) };
        body.extend_from_slice(&data[..size]);
        bytes = &bytes[size + 2..];
    }
}

async fn outcome(case: &Case) -> Result<(), String> {
    let world = World::new();
    let server = host(world.authority.server(&[HOST], &["http/1.1"]), case.answer.clone());
    let (guest, flow) = world.open(443, server);
    let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
    let sent = format!(
        "GET /a HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /b HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    );
    let seen = raw_exchange(guest, sent.as_bytes()).await;
    flow.await.map_err(|error| format!("a panic: {error}"))?;
    let (found, is_whole) = answers(&seen);
    let shown = || format!("{found:?}, whole: {is_whole}, {} bytes", seen.len());
    let mut rest = found.iter();
    let first = rest.next();
    let holds = match case.expected {
        Nothing => first.is_some_and(|(status, _)| *status == 502),
        Whole(status, body) => first == Some(&(status, body.to_owned())),
        // Whether there was a head before it broke off or not: nothing that looks whole.
        Broken => first.is_none_or(|(status, _)| *status == 502),
    };
    if !holds {
        return Err(shown());
    }
    // The second: the well-behaved connection's, or none, as the connection may have ended. Where the host goes on to answer on its first
    // one, that is the same answer again.
    match (rest.next(), case.expected) {
        (None, _) => {}
        (Some((200, body)), _) if body == "clean" => {}
        (Some((status, body)), Whole(first, again)) if (*status, body.as_str()) == (first, again) => {}
        (Some((502, _)), _) => {}
        _ => return Err(format!("the second answer: {}", shown())),
    }
    if rest.next().is_some() {
        return Err(format!("a third answer: {}", shown()));
    }
    Ok(())
}

/// RFC 9112, RFC 9110: one answer for each request, as one reading has it, or 502.
#[test]
fn a_hostile_host_splits_no_answer() {
    run(async {
        let cases = all();
        let mut wrong = Vec::new();
        for case in &cases {
            if let Err(what) = in_time(outcome(case)).await {
                wrong.push(format!("RFC {} {}: {:?}, but {what}", case.section, case.name, case.expected));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
        let text = include_str!("../../../../docs/interception.md");
        assert!(text.contains(&format!("{} answers over HTTP/1", cases.len())), "{} cases", cases.len());
    });
}

/// A body to HEAD is no body: what comes all the same is not the next answer.
#[test]
fn a_body_behind_an_answer_to_head_is_dropped() {
    run(async {
        let world = World::new();
        let server = host(world.authority.server(&[HOST], &["http/1.1"]), EVIL.into());
        let (guest, _flow) = world.open(443, server);
        let guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
        let sent = format!(
            "HEAD /a HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET /b HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        );
        let seen = String::from_utf8(raw_exchange(guest, sent.as_bytes()).await).expect("text");
        let (_, second) = seen.split_once("\r\n\r\n").expect("a head");
        assert!(second.is_empty() || statuses(second.as_bytes()) == [200], "{seen}");
        assert!(second.is_empty() || second.ends_with("clean"), "{seen}");
    });
}

/// Answers before the answer without end hold up one request and nothing else: nothing of them is kept, and they end with the guest's flow.
#[test]
fn endless_answers_before_the_answer_end_with_the_flow() {
    run(async {
        let world = World::new();
        let sent = Rc::new(Cell::new(0usize));
        let count = Rc::clone(&sent);
        let tls = world.authority.server(&[HOST], &["http/1.1"]);
        let server = Server::new(move |stream| {
            let (tls, count) = (Arc::clone(&tls), Rc::clone(&count));
            tokio::task::spawn_local(async move {
                let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.expect("TLS");
                let _ = stream.read(&mut [0; 4096]).await;
                while stream.write_all(&b"HTTP/1.1 102 Processing\r\n\r\n".repeat(100)).await.is_ok() {
                    count.set(count.get() + 1);
                }
                count.set(usize::MAX);
            });
        });
        let (guest, flow) = world.open(443, server);
        let mut guest = world.tls(guest, HOST, &["http/1.1"]).await.expect("TLS");
        let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        guest.write_all(ask.as_bytes()).await.expect("open");
        while sent.get() < 200 {
            tokio::task::yield_now().await;
        }
        drop(guest);
        flow.await.expect("no panic");
        while sent.get() != usize::MAX {
            tokio::task::yield_now().await;
        }
    });
}
