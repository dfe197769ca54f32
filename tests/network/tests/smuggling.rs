//! Requests and answers that two parsers may read differently.

use std::sync::Arc;

use e2e::{Case, Verdict, ensure};
use network::{Answers, How, Named, Net, Wire, echo, to_heads};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("a_smuggled_request_is_no_request", smuggled),
    ("an_answer_that_was_split_is_one_answer_or_none", split),
    ("http2_smuggles_nothing_and_its_floods_end_the_connection", http2),
];

const CLEAR: How<'static> = How { port: None, alpn: &[], six: false };

/// What a strict reader takes the bytes of a connection for: the request lines, and whether the last request is whole. An error is two
/// readings.
fn requests(mut bytes: &[u8]) -> Result<(Vec<String>, bool), Verdict> {
    let wrong =
        |what: &str, bytes: &[u8]| Verdict::Wrong(format!("{what}: {}", String::from_utf8_lossy(bytes)));
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Err(wrong("half a head", bytes));
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        bytes = &bytes[end + 4..];
        let field = |name: &str| -> Vec<String> {
            let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
            let fields = fields.filter(|(other, _)| other.trim().eq_ignore_ascii_case(name));
            fields.map(|(_, value)| value.trim().to_ascii_lowercase()).collect()
        };
        lines.push(head.lines().next().unwrap_or_default().to_owned());
        let (lengths, codings) = (field("content-length"), field("transfer-encoding"));
        match (lengths.as_slice(), codings.as_slice()) {
            ([], []) => {}
            ([length], []) => {
                let length: usize = length.parse().map_err(|_| wrong("a length", head.as_bytes()))?;
                let Some(rest) = bytes.get(length..) else { return Ok((lines, false)) };
                bytes = rest;
            }
            ([], [coding]) if coding == "chunked" => loop {
                let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
                    return Ok((lines, false));
                };
                let size = String::from_utf8_lossy(&bytes[..end]).into_owned();
                let size = usize::from_str_radix(&size, 16).map_err(|_| wrong("a chunk", bytes))?;
                let Some(rest) = bytes.get(end + 2 + size + 2..) else { return Ok((lines, false)) };
                bytes = rest;
                if size == 0 {
                    break;
                }
            },
            _ => return Err(wrong("two framings", head.as_bytes())),
        }
    }
    Ok((lines, true))
}

/// What is sent, what statuses come of it, what the server reads.
struct Attempt(&'static str, String, &'static [u16], &'static [&'static str]);

fn attempts() -> Vec<Attempt> {
    let host = "Host: smuggled.example\r\n";
    let post = format!("POST /open/a HTTP/1.1\r\n{host}");
    let smuggled = format!("GET /closed/escape HTTP/1.1\r\n{host}\r\n");
    let last = format!("GET /open/last HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let length = smuggled.len();
    let chunk = format!("{length:x}\r\n{smuggled}\r\n0\r\n\r\n");
    let both = &["POST /open/a HTTP/1.1", "GET /open/last HTTP/1.1"][..];
    let first = &["POST /open/a HTTP/1.1"][..];
    vec![
        Attempt("two requests", format!("{post}Content-Length: 4\r\n\r\nbody{last}"), &[200, 200], both),
        Attempt(
            "a body that looks like a request",
            format!("{post}Content-Length: {length}\r\n\r\n{smuggled}{last}"),
            &[200, 200],
            both,
        ),
        Attempt(
            "chunks that look like a request",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n{chunk}{last}"),
            &[200, 200],
            both,
        ),
        Attempt(
            "a request behind one",
            format!(
                "{post}Content-Length: 4\r\n\r\nbody{}",
                smuggled.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
            ),
            &[200, 403],
            first,
        ),
        // RFC 9112 §6.1: the chunks count, and what stands behind them is not read.
        Attempt(
            "CL.TE",
            format!("{post}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}{last}"),
            &[200],
            first,
        ),
        Attempt(
            "TE.CL",
            format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{chunk}{last}"),
            &[200],
            first,
        ),
        Attempt(
            "TE.TE",
            format!(
                "{post}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{smuggled}"
            ),
            &[400],
            &[],
        ),
        Attempt(
            "a coding in disguise",
            format!("{post}Content-Length: {length}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n{smuggled}"),
            &[400],
            &[],
        ),
        Attempt(
            "a space before the colon",
            format!("{post}Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{smuggled}"),
            &[400],
            &[],
        ),
        Attempt(
            "CL.CL",
            format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
            &[400],
            &[],
        ),
        Attempt("a signed length", format!("{post}Content-Length: +{length}\r\n\r\n{smuggled}"), &[400], &[]),
        Attempt(
            "a folded field",
            format!("{post}X-A: b\r\n Content-Length: {length}\r\n\r\n{smuggled}"),
            &[400],
            &[],
        ),
        Attempt(
            "a bare CR",
            format!("{post}X-A: b\rContent-Length: {length}\r\n\r\n{smuggled}"),
            &[400],
            &[],
        ),
        Attempt("NUL", format!("{post}X-A: b\0\r\nContent-Length: {length}\r\n\r\n{smuggled}"), &[400], &[]),
        Attempt(
            "an upgrade to HTTP/2",
            format!(
                "GET /open/last HTTP/1.1\r\n{host}Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n{smuggled}"
            ),
            &[200],
            &["GET /open/last HTTP/1.1"],
        ),
    ]
}

fn smuggled(net: &Net) -> Case {
    let host = "smuggled.example";
    // Answers what is whole to a strict reader, and nothing else.
    let answers: Answers = Arc::new(|heard| {
        let lines = requests(heard).ok().filter(|(_, whole)| *whole)?.0;
        Some(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".repeat(lines.len()))
    });
    net.allow(&["--path", "/open/**", "smuggled.example:80"])?;
    let all = attempts();
    let conversations: Vec<Value> =
        all.iter().map(|Attempt(_, sent, ..)| json!({ "to": [host, 80], "say": [sent] })).collect();
    let raw = net.raw(host, CLEAR, answers)?;
    let spoken = net.speak(&conversations)?;
    for (Attempt(name, _, statuses, _), spoken) in all.iter().zip(&spoken) {
        ensure(spoken.statuses() == *statuses, format!("{name}: {spoken:?}"))?;
    }
    // The gateway may use a connection for no request, or a further one for the second.
    let mut read = Vec::new();
    for bytes in raw.heard() {
        let (lines, whole) = requests(&bytes)?;
        ensure(whole, format!("half a request: {}", String::from_utf8_lossy(&bytes)))?;
        read.extend(lines);
    }
    let expected: Vec<&str> = all.iter().flat_map(|Attempt(.., lines)| lines.iter().copied()).collect();
    ensure(read == expected, format!("{read:#?}"))?;
    net.recorded(host, "the request behind one", |record| {
        record["decision"] == "Refused" && record["status"] == 403 && record["path"] == "/closed/escape"
    })?;
    net.recorded(host, "what is no request", |record| {
        record["decision"] == "Refused" && record["status"] != 403
    })
    .map(|_| ())
}

/// Answers of a hostile server, by the path that was asked for.
fn answers(head: &str) -> Vec<u8> {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let word = path.trim_start_matches("/open/").split('?').next().unwrap_or_default();
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Evil: 1\r\n\r\nevil";
    match word {
        "two" => format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{evil}"),
        "cr" => "HTTP/1.1 200 OK\r\nX-A: b\rX-Evil: 1\r\nContent-Length: 2\r\n\r\nok".into(),
        "folded" => "HTTP/1.1 200 OK\r\nX-A: b\r\n X-Evil: 1\r\nContent-Length: 2\r\n\r\nok".into(),
        "lengths" => format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 60\r\n\r\nok{evil}"),
        "chunks" => format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}"),
        "space" => format!("HTTP/1.1 200 OK\r\nContent-Length : 60\r\nContent-Length: 2\r\n\r\nok{evil}"),
        "switch" => format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{evil}"),
        "none" => format!("HTTP/1.1 204 No Content\r\nContent-Length: 60\r\n\r\n{evil}"),
        // What it was asked for, as servers do that send one on.
        "back" => format!("HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n\r\n"),
        _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Good: 1\r\n\r\nok".into(),
    }
    .into_bytes()
}

fn split(net: &Net) -> Case {
    let host = "split.example";
    let raw = net.raw(host, CLEAR, to_heads(answers))?;
    net.allow(&["--path", "/open/**", "split.example:80"])?;
    // Each on a connection that asks once more afterwards: a surplus answer would be taken for that one's.
    let cases: [(&str, &[u16]); 10] = [
        ("good", &[200]),
        ("two", &[200]),
        ("cr", &[502]),
        ("folded", &[502]),
        ("lengths", &[502]),
        ("chunks", &[200]),
        ("space", &[502]),
        ("switch", &[502]),
        ("none", &[204]),
        ("back?x=%0d%0aX-Evil:%201%0d%0a%0d%0aevil", &[302]),
    ];
    let request = |path: &str, more: &str| format!("GET /open/{path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n");
    let mut all: Vec<Value> = cases
        .iter()
        .map(|(path, _)| {
            let last = request("good", "Connection: close\r\n");
            json!({ "to": [host, 80], "say": [request(path, ""), { "await": "\r\n\r\n" }, last] })
        })
        .collect();
    // In a field of the request, too.
    all.push(
        json!({ "to": [host, 80], "say": [request("good", "X-A: b\rX-Evil: 1\r\nConnection: close\r\n")] }),
    );
    let spoken = net.speak(&all)?;
    for ((path, statuses), spoken) in cases.iter().zip(&spoken) {
        let got = spoken.statuses();
        // The second answer is its own, or there is none: the host's connection, and with it the guest's, may have been ended.
        let second = got.get(statuses.len()..).unwrap_or_default();
        ensure(
            got.starts_with(statuses) && (second == [200] || second.is_empty()),
            format!("{path}: {spoken:?}"),
        )?;
        ensure(
            second.is_empty() || spoken.heard.to_ascii_lowercase().contains("x-good"),
            format!("{path}: {spoken:?}"),
        )?;
        let heads = spoken.heard.replace("%0d%0aX-Evil", "");
        ensure(
            !heads.to_ascii_lowercase().contains("x-evil") && !heads.ends_with("evil"),
            format!("{path}: {spoken:?}"),
        )?;
    }
    ensure(spoken.first().is_some_and(|good| good.statuses() == [200, 200]), format!("{spoken:?}"))?;
    ensure(spoken.last().is_some_and(|last| last.statuses() == [400]), format!("{spoken:?}"))?;
    ensure(!raw.text().to_ascii_lowercase().contains("x-evil: 1"), raw.text())?;
    net.recorded(host, "the broken answer", |record| {
        record["decision"] == "Failed" && record["status"] == 502
    })
    .map(|_| ())
}

fn http2(net: &Net) -> Case {
    let host = "frames.example";
    let site = net.site(host, How::default(), echo())?;
    net.allow(&["--path", "/open/**", "frames.example:443"])?;
    let gateway = net.gateway()?;
    let wire = Wire::tap()?;
    let said = net.attacked("h2.py", &[host])?;
    for good in ["good", "good with a body", "good again"] {
        ensure(said[good] == 200, format!("{good}: {said}"))?;
    }
    // RFC 9113 §8.1.1: what is malformed ends its stream; what is for another host is misdirected; nothing of it goes on.
    let refused = [
        "a line in a value",
        "a line in a name",
        "a line in the path",
        "a space in the path",
        "a line in the method",
        "chunked",
        "a shorter length",
        "two lengths",
        "a connection field",
        "capitals",
        "two paths",
        "a path behind fields",
        "CONNECT",
    ];
    for attempt in refused {
        let end = &said[attempt];
        let ended = end
            .as_str()
            .is_some_and(|end| end.starts_with("reset") || end.starts_with("gone") || end == "closed");
        ensure(ended || [400, 403, 405].iter().any(|status| end == status), format!("{attempt}: {said}"))?;
    }
    for attempt in ["another authority", "another host", "no authority"] {
        ensure(said[attempt] == 421 || said[attempt] == 400, format!("{attempt}: {said}"))?;
    }
    for flood in ["rapid reset", "made to reset", "continuations"] {
        ensure(said[flood][1] == "closed", format!("{flood}: {said}"))?;
    }
    let seen = site.seen();
    let paths: Vec<&str> =
        seen.iter().map(|one| one.target.path()).filter(|path| *path != "/open/flood").collect();
    // A body that is longer than it was said to be may have begun.
    let begun = paths.iter().filter(|path| **path == "/open/a").count();
    ensure(begun == paths.len() && (3..=5).contains(&begun), format!("{paths:?}"))?;
    // Far fewer than were asked for: `docs/network.md` has the limit.
    ensure(seen.len() < 500, format!("{} requests", seen.len()))?;
    ensure(!format!("{seen:?}").contains("closed") && !wire.frames()?.have("escape-"), format!("{paths:?}"))?;
    net.recorded(host, "the other authority", |record| {
        record["decision"] == "Refused"
            && record["status"] == 421
            && record.to_string().contains("escape-authority")
    })?;
    eprintln!("of 4,000 requests that were reset {} reached the server: {said}", seen.len());
    gateway.holds(net)
}
