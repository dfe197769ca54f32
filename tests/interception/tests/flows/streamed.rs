//! Answers that stream: values that come into force meanwhile, as the host may say there what it got by a later request; and messages
//! of which each side waits for the other's.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::support::{HOST, Server, World, bytes, channel, ok, run, whole};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::mpsc::UnboundedSender;
use vault::{Binding, Credential, Credentials, Secret, Value};

const REAL: &str = "ghp_REALREALREALREALREALREALREALREALREAL";
const NEXT: &str = "ghp_NEXTNEXTNEXTNEXTNEXTNEXTNEXTNEXTNEXT";
const HOLDER: &str = "ghp_placeholderplaceholderplaceholder012";

fn bound(value: &str) -> Credentials {
    let value = Value::Token { placeholder: HOLDER.into(), value: Secret::from(value.to_owned()) };
    let binding = Binding {
        hosts: vec![HOST.parse().expect("a host")],
        places: vec!["header:authorization".parse().expect("a place")],
        ..Binding::default()
    };
    Credentials::new(vec![Credential { name: "mine".into(), binding, value }])
}

/// A host that streams to whom asks for `/stream`, and keeps the credentials of other requests.
#[derive(Clone, Default)]
struct Echo {
    stream: Rc<RefCell<Option<UnboundedSender<Frame<Bytes>>>>>,
    got: Rc<RefCell<Vec<String>>>,
}

impl Echo {
    /// Says of its stream that it is of this kind, and how long if it knows.
    fn server(&self, world: &World, alpn: &[&str], kind: &'static str, length: Option<usize>) -> Server {
        let echo = self.clone();
        Server::hyper(Some(world.authority.server(&[HOST], alpn)), move |request| {
            let echo = echo.clone();
            Box::pin(async move {
                if request.uri().path() != "/stream" {
                    let value = request.headers()["authorization"].to_str().expect("text");
                    echo.got.borrow_mut().push(value.to_owned());
                    return ok("");
                }
                let (sender, body) = channel();
                echo.stream.replace(Some(sender));
                let response = Response::builder().header("content-type", kind);
                let response =
                    length.into_iter().fold(response, |head, length| head.header("content-length", length));
                response.body(body).expect("a response")
            })
        })
    }

    fn say(&self, text: String) {
        let stream = self.stream.borrow();
        stream.as_ref().expect("a stream").send(Frame::data(text.into())).expect("open");
    }

    fn end(&self, trailers: Option<HeaderMap>) {
        let stream = self.stream.take().expect("a stream");
        if let Some(trailers) = trailers {
            stream.send(Frame::trailers(trailers)).expect("open");
        }
    }
}

/// The first secret of a host, one in another's place, and one that is gone again, by a host that goes on with one answer meanwhile.
async fn streams(alpn: &'static [&'static str], kind: &'static str, is_long: bool, before: Option<&str>) {
    let case = format!("{alpn:?} {kind} {is_long} {before:?}");
    let world = World::new();
    world.intercept.set_credentials(before.map(bound).unwrap_or_default());
    let old = before.unwrap_or("nothing");
    let (begun, rest) = old.split_at(if before.is_some() { 10 } else { old.len() });
    let (first, second) = NEXT.split_at(7);
    let said = [
        format!("data: {begun}"),
        format!("{rest}\n\ndata: {first}"),
        format!("{second}\n\n"),
        format!("data: {REAL} {NEXT}, ghp_"),
    ];
    let echo = Echo::default();
    let server = echo.server(&world, alpn, kind, is_long.then(|| said.concat().len()));
    let mut client = world.client(alpn, server.clone()).await;
    let request = Request::get("/stream").body(bytes("")).expect("a request");
    let (_, mut body) = client.send(request).await.expect("an answer").into_parts();
    let [one, two, three, four] = said;
    echo.say(one);
    let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
    assert_eq!(frame, if before.is_some() { "data: " } else { "data: nothing" }, "{case}");

    world.intercept.set_credentials(bound(NEXT));
    let mut other = world.client(alpn, server).await;
    let request = Request::get("/").header("authorization", format!("Bearer {HOLDER}"));
    whole(other.send(request.body(bytes("")).expect("a request")).await.expect("an answer")).await;
    assert_eq!(*echo.got.borrow(), [format!("Bearer {NEXT}")], "the host has it now");
    echo.say(two);
    let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
    let shown = format!("{}\n\ndata: ", if before.is_some() { HOLDER } else { "" });
    assert_eq!(frame, shown, "{case}");
    echo.say(three);
    let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
    assert_eq!(frame, format!("{HOLDER}\n\n"), "{case}");

    world.intercept.set_credentials(Credentials::default());
    echo.say(four);
    let is_http2 = alpn == ["h2"];
    let trailers = HeaderMap::from_iter([("x-why".parse().expect("a name"), NEXT.parse().expect("a value"))]);
    echo.end(is_http2.then_some(trailers));
    let last = body.collect().await.expect("the length holds");
    if is_http2 {
        assert_eq!(last.trailers().expect("trailers")["x-why"], HOLDER, "{case}");
    }
    let old = if before.is_some() { HOLDER } else { REAL };
    assert_eq!(last.to_bytes(), format!("data: {old} {HOLDER}, ghp_"), "{case}");
}

#[test]
fn a_value_that_comes_into_force_while_an_answer_streams_is_masked_in_it() {
    run(async {
        for alpn in [&["h2"][..], &["http/1.1"]] {
            for before in [Some(REAL), None] {
                streams(alpn, "text/event-stream", false, before).await;
                streams(alpn, "text/plain", true, before).await;
            }
        }
    });
}

/// The answer was asked for before the host had a secret at all: only trailers hold the value.
#[test]
fn trailers_are_masked_with_what_is_in_force_when_they_come() {
    run(async {
        let world = World::new();
        let echo = Echo::default();
        let mut client = world.client(&["h2"], echo.server(&world, &["h2"], "application/grpc", None)).await;
        let request = Request::get("/stream").body(bytes("")).expect("a request");
        let (_, body) = client.send(request).await.expect("an answer").into_parts();
        world.intercept.set_credentials(bound(NEXT));
        let why = format!("no {NEXT}").parse().expect("a value");
        echo.end(Some(HeaderMap::from_iter([("grpc-message".parse().expect("a name"), why)])));
        let last = body.collect().await.expect("no error");
        assert_eq!(last.trailers().expect("trailers")["grpc-message"], format!("no {HOLDER}"));
    });
}

/// One message, told apart from the next as such streams do.
fn message(kind: &str, text: &str) -> Vec<u8> {
    let length = text.len() as u32;
    let head = match kind {
        // Behind the two lengths stands a checksum, which nobody looks at here; another is the end of the text.
        "application/vnd.amazon.eventstream" => [(length + 12).to_be_bytes(), [0; 4], [7; 4]].concat(),
        _ => [&[0][..], &length.to_be_bytes()].concat(),
    };
    [&head, text.as_bytes()].concat()
}

/// A host that says a message, waits for one of the guest's, and says the next.
async fn in_turns(kind: &'static str, late: bool) {
    let world = World::new();
    if !late {
        world.intercept.set_credentials(bound(REAL));
    }
    let (begun, rest) = REAL.split_at(1);
    let said = [format!("one {begun}"), format!("{rest} two {begun}"), format!("three {REAL} {begun}")];
    let answers = said.clone().map(|text| message(kind, &text));
    let server = Server::hyper(Some(world.authority.server(&[HOST], &["h2"])), move |request| {
        let answers = answers.clone();
        Box::pin(async move {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                let mut asked = request.into_body();
                for answer in answers {
                    sender.send(Frame::data(answer.into())).expect("open");
                    asked.frame().await.expect("a frame").expect("no error");
                }
            });
            Response::builder().header("content-type", kind).body(body).expect("a response")
        })
    });
    let mut client = world.client(&["h2"], server).await;
    let (sender, body) = channel();
    let request = Request::post("/turns").header("content-type", kind).body(body).expect("a request");
    let (_, mut body) = client.send(request).await.expect("an answer").into_parts();
    for text in said {
        let shown = message(kind, &text.replace(REAL, HOLDER));
        let mut got = Vec::new();
        while got.len() < shown.len() {
            let frame = tokio::time::timeout(Duration::from_secs(20), body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("{kind}: the end of \"{text}\" is held back"));
            got.extend(frame.expect("a frame").expect("no error").into_data().expect("data"));
        }
        // What the border of two messages cuts is no value.
        assert_eq!(got, shown, "{kind}: {text}");
        if late {
            world.intercept.set_credentials(bound(REAL));
        }
        sender.send(Frame::data("go on".into())).expect("open");
    }
    let last = body.collect().await.expect("no error").to_bytes();
    assert!(last.is_empty(), "{kind}: {last:?}");
}

#[test]
fn a_message_that_ends_like_a_value_begins_is_not_held_back() {
    run(async {
        for kind in ["application/grpc", "application/connect+json", "application/vnd.amazon.eventstream"] {
            in_turns(kind, false).await;
            in_turns(kind, true).await;
        }
    });
}

/// A guest may have it said of an answer that it is such a stream, and where its messages end: in the middle of a value, too.
#[test]
fn a_border_within_a_value_shows_little_of_it() {
    run(async {
        for (length, shown) in [(4, 4), (7, 7), (8, 0), (39, 0)] {
            let world = World::new();
            world.intercept.set_credentials(bound(REAL));
            let echo = Echo::default();
            let mut client =
                world.client(&["h2"], echo.server(&world, &["h2"], "application/grpc", None)).await;
            let request = Request::get("/stream").body(bytes("")).expect("a request");
            let (_, mut body) = client.send(request).await.expect("an answer").into_parts();
            let (begun, rest) = REAL.split_at(length);
            let head = format!("\0\0\0\0{}", char::from(length as u8));
            echo.say(format!("{head}{begun}"));
            let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
            assert_eq!(frame, format!("{head}{}", &REAL[..shown]));
            echo.say(rest.into());
            echo.end(None);
            let last = body.collect().await.expect("no error").to_bytes();
            assert_eq!(last, HOLDER[shown..], "{length}");
        }
    });
}
