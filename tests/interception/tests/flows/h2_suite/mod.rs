//! HTTP/2 case by case, section by section of RFC 9113 and RFC 7541: what a guest may send, and what comes of it. The list follows the
//! sections that h2spec goes through; h2spec itself is in no registry that is reached here, so words and frames are our own. Through
//! the terminating path: TLS with the guest, TLS with a hyper server.

mod framing;
mod headers;
mod messages;
mod streams;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::support::wire::{
    END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, SETTINGS, Seen, fields, frame, over_tls,
};
use crate::support::{HOST, Server, World, in_time, ok, run};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION: u32 = 9;
const CALM: u32 = 11;

/// What must come of a case.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// The connection ends, with one of these codes or PROTOCOL_ERROR (§5.4.1).
    Connection(&'static [u32]),
    /// The connection ends, with a code or without.
    Ended,
    /// This stream is reset with one of these codes (§5.4.2), or the connection ends.
    Stream(u32, &'static [u32]),
    /// This stream is reset or answered with an error, or the connection ends: what is malformed does not go on (§8.1.1).
    Malformed(u32),
    /// This stream is answered with 200.
    Answer(u32),
    /// Nothing: a PING behind it is answered, no stream is reset.
    Nothing,
}
use Expected::{Answer, Connection, Ended, Malformed, Nothing, Stream};

struct Case {
    section: &'static str,
    name: &'static str,
    expected: Expected,
    /// What is sent behind the preface and an empty SETTINGS frame.
    sent: Vec<u8>,
    /// Instead of those two.
    begin: Option<Vec<u8>>,
    /// Whole requests that may reach the host.
    requests: usize,
}

/// A case of which no request comes, but that which `expected` says.
fn case(section: &'static str, name: &'static str, expected: Expected, sent: impl Frames) -> Case {
    let requests = usize::from(matches!(expected, Answer(_)));
    Case { section, name, expected, sent: sent.bytes(), begin: None, requests }
}

impl Case {
    fn with_requests(self, requests: usize) -> Self {
        Self { requests, ..self }
    }

    fn beginning(self, begin: impl Frames) -> Self {
        Self { begin: Some(begin.bytes()), ..self }
    }
}

/// One frame or several.
trait Frames {
    fn bytes(self) -> Vec<u8>;
}

impl Frames for Vec<u8> {
    fn bytes(self) -> Vec<u8> {
        self
    }
}

impl<const N: usize> Frames for [Vec<u8>; N] {
    fn bytes(self) -> Vec<u8> {
        self.concat()
    }
}

/// The block of a GET.
fn get() -> Vec<u8> {
    fields(&over_tls("GET", "/"))
}

/// The block of a POST.
fn post() -> Vec<u8> {
    fields(&over_tls("POST", "/"))
}

/// A whole GET.
fn request(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &get())
}

/// The head of a POST whose body is to come.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &post())
}

const LAST: [u8; 8] = *b"the last";

/// Runs one case; the error says what came instead.
async fn outcome(world: &World, server: &Server, seen: &Cell<usize>, case: &Case) -> Result<(), String> {
    seen.set(0);
    let (guest, flow) = world.open(443, server.clone());
    let guest = world.tls(guest, HOST, &["h2"]).await.expect("TLS with the guest");
    let (mut reader, mut writer) = tokio::io::split(guest);
    let begin = || [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let bytes =
        [case.begin.clone().unwrap_or_else(begin), case.sent.clone(), frame(PING, 0, 0, &LAST)].concat();
    let write = async {
        // Cut off in the middle is fine.
        let _ = writer.write_all(&bytes).await;
        let _ = writer.flush().await;
    };
    let stream = match case.expected {
        Stream(stream, _) | Malformed(stream) | Answer(stream) => Some(stream),
        Connection(_) | Ended | Nothing => None,
    };
    let must_end = matches!(case.expected, Connection(_) | Ended);
    let mut came = Seen::default();
    let read = async {
        while came.read(&mut reader).await {
            let is_quiet = came.pongs.iter().any(|pong| *pong == LAST);
            if is_quiet && !must_end && stream.is_none_or(|stream| came.is_over(stream)) {
                break;
            }
        }
    };
    tokio::join!(write, read);
    let holds = match case.expected {
        // h2 says PROTOCOL_ERROR where the RFC names a closer code.
        Connection(codes) => {
            came.ended && came.gone.is_some_and(|code| codes.contains(&code) || code == PROTOCOL)
        }
        Ended => came.ended,
        // A stream's error may be taken for the connection's (§5.4.1).
        Stream(..) | Malformed(_) if came.ended => came.gone.is_some_and(|code| code != 0),
        Stream(stream, codes) => came.resets.get(&stream).is_some_and(|code| codes.contains(code)),
        Malformed(stream) => came.is_over(stream) && came.answers.get(&stream) != Some(&true),
        Answer(stream) => !came.ended && came.answers.get(&stream) == Some(&true),
        Nothing => !came.ended && came.resets.is_empty(),
    };
    drop((reader, writer));
    if came.ended {
        flow.await.map_err(|error| format!("a panic: {error}"))?;
    }
    if !holds {
        return Err(format!("{came:?}"));
    }
    if seen.get() > case.requests {
        return Err(format!("{} requests reached the host", seen.get()));
    }
    Ok(())
}

/// Runs all cases on connections of their own.
async fn hold(cases: &[Case]) {
    let world = World::new();
    let seen: Rc<Cell<usize>> = Rc::default();
    let count = Rc::clone(&seen);
    let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |request| {
        let count = Rc::clone(&count);
        Box::pin(async move {
            // Only what has come to its end counts.
            if request.into_body().collect().await.is_ok() {
                count.set(count.get() + 1);
            }
            ok("served")
        })
    });
    let mut wrong = Vec::new();
    for case in cases {
        if let Err(what) = in_time(outcome(&world, &server, &seen, case)).await {
            wrong.push(format!("§{} {}: {:?}, but {what}", case.section, case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn framing_holds() {
    run(async { hold(&framing::cases()).await });
}

#[test]
fn streams_hold() {
    run(async { hold(&streams::cases()).await });
}

#[test]
fn messages_hold() {
    run(async { hold(&messages::cases()).await });
}

#[test]
fn header_compression_holds() {
    run(async { hold(&headers::cases()).await });
}

/// The documents say how many there are.
#[test]
fn every_section_has_its_cases() {
    let all: Vec<Case> = [framing::cases(), streams::cases(), messages::cases(), headers::cases()]
        .into_iter()
        .flatten()
        .collect();
    let sections: BTreeSet<&str> = all.iter().map(|case| case.section).collect();
    for section in [
        "3.4",
        "4.1",
        "4.2",
        "4.3",
        "5.1",
        "5.1.1",
        "5.1.2",
        "5.3.1",
        "5.5",
        "6.1",
        "6.2",
        "6.3",
        "6.4",
        "6.5",
        "6.5.2",
        "6.5.3",
        "6.6",
        "6.7",
        "6.8",
        "6.9",
        "6.9.1",
        "6.9.2",
        "6.10",
        "8.1",
        "8.1.1",
        "8.2.1",
        "8.2.2",
        "8.3",
        "8.3.1",
        "8.5",
        "HPACK 2.3.3",
        "HPACK 4.2",
        "HPACK 5.1",
        "HPACK 5.2",
        "HPACK 6.1",
        "HPACK 6.2",
        "HPACK 6.3",
    ] {
        assert!(sections.contains(section), "§{section}");
    }
    let names: BTreeSet<(&str, &str)> = all.iter().map(|case| (case.section, case.name)).collect();
    assert_eq!(names.len(), all.len(), "each case is there once");
    let text = include_str!("../../../../../docs/interception.md");
    assert!(text.contains(&format!("{} cases of RFC 9113", all.len())), "{} cases", all.len());
}
