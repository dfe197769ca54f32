//! What streams: WebSocket, server-sent events, gRPC and long bodies through connections that are looked into. Each waits for the other
//! side's last word before it says the next one, so that nothing comes through if anything is held back.

use std::process::Command;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use e2e::{Case, ensure};
use futures_util::{SinkExt, StreamExt};
use http::header::{CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use network::{Handler, How, Named, Net, answer, handler};
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

pub(crate) const CASES: &[Named] = &[
    ("server_sent_events_come_one_by_one", events),
    ("a_websocket_echoes_and_a_refused_one_is_not_opened", websocket),
    ("grpc_streams_in_both_directions", grpc),
    ("long_bodies_pass_whole_in_both_directions", long_bodies),
];

/// Has connections to a host looked into: what begins with `/open` passes.
fn look_into(net: &Net, host: &str) -> Case {
    net.allow(&["--path", "/open/**", &format!("{host}:443")])
}

/// Sends an event, and the next one when it was acknowledged.
fn event_server() -> Handler {
    let acknowledged = Arc::new(Notify::new());
    handler(move |request: Request<Incoming>| {
        let acknowledged = acknowledged.clone();
        async move {
            if request.uri().path() == "/open/acknowledge" {
                acknowledged.notify_one();
                return answer(StatusCode::OK, "");
            }
            let (mut sender, body) = Channel::<Bytes>::new(1);
            tokio::spawn(async move {
                for number in 0..5 {
                    sender.send_data(format!("data: {number}\n\n").into()).await?;
                    acknowledged.notified().await;
                }
                Ok::<_, http_body_util::channel::SendError>(())
            });
            let mut response = Response::new(network::body(body));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response
        }
    })
}

fn events(net: &Net) -> Case {
    let host = "events.example";
    let _site = net.site(host, How::default(), event_server())?;
    look_into(net, host)?;
    for version in ["--http2", "--http1.1"] {
        let said = net.guest_ok(&format!(
            "curl -sSN -m 100 {version} https://{host}/open/events | while read -r word number; do \
               [ \"$word\" = data: ] || continue; echo -n \"$number \"; curl -sS -m 60 https://{host}/open/acknowledge; done"
        ))?;
        ensure(said == "0 1 2 3 4", format!("{version}: {said}"))?;
    }
    Ok(())
}

/// Echoes each message.
fn websocket_server() -> Handler {
    handler(|mut request: Request<Incoming>| async move {
        let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
            return answer(StatusCode::BAD_REQUEST, "no WebSocket");
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(stream) = upgrade.await else { return };
            let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(stream), Role::Server, None).await;
            while let Some(Ok(message)) = socket.next().await {
                let data = message.is_text() || message.is_binary();
                if data && socket.send(message).await.is_err() {
                    return;
                }
            }
        });
        let mut response = Response::new(network::body(Empty::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let fields = response.headers_mut();
        fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = derive_accept_key(key.as_bytes()).parse() {
            fields.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        response
    })
}

/// Sends each message when the last one came back, then asks for what is refused.
const WEBSOCKET_CLIENT: &str = r#"
const messages = ['hello', 'ä\u0000✓', 'x'.repeat(300000), new Uint8Array([0, 255, 1]).buffer];
const shown = (data) => typeof data === 'string' ? `text ${data.length}` : `bytes ${new Uint8Array(data)}`;
const socket = new WebSocket('wss://socket.example/open/echo');
socket.binaryType = 'arraybuffer';
let next = 0;
const say = () => next < messages.length ? socket.send(messages[next]) : socket.close(1000, 'done');
socket.onopen = say;
socket.onmessage = ({ data }) => {
  const sent = messages[next++];
  console.log(shown(data) === shown(sent) && (typeof data !== 'string' || data === sent) ? shown(data) : 'wrong');
  say();
};
socket.onclose = ({ code, wasClean }) => {
  console.log(`closed ${code} ${wasClean}`);
  const refused = new WebSocket('wss://socket.example/closed/echo');
  refused.onopen = () => console.log('opened');
  refused.onerror = () => console.log('refused');
};
"#;

fn websocket(net: &Net) -> Case {
    let host = "socket.example";
    let site = net.site(host, How::default(), websocket_server())?;
    look_into(net, host)?;
    std::fs::write(net.shared().join("socket.js"), WEBSOCKET_CLIENT)?;
    let said = net.guest_ok("timeout 100 node socket.js")?;
    ensure(said == "text 5\ntext 3\ntext 300000\nbytes 0,255,1\nclosed 1000 true\nrefused", said)?;
    let paths: Vec<String> = site.seen().iter().map(|one| one.target.path().to_owned()).collect();
    ensure(paths == ["/open/echo"], format!("{paths:?}"))?;
    net.recorded(host, "the WebSocket", |record| record["path"] == "/open/echo" && record["status"] == 101)
        .map(|_| ())
}

/// A gRPC service over HTTP/2: each message is answered with itself, doubled, before the next one is read; a call ends with its
/// count of messages in the trailers.
fn grpc_server() -> Handler {
    handler(|request: Request<Incoming>| async move {
        let (sender, body) = Channel::<Bytes>::new(1);
        let of_grpc = request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc")
            && request.headers().get("te").is_some_and(|value| value == "trailers");
        if !of_grpc {
            return answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, "no gRPC");
        }
        tokio::spawn(grpc_call(request.into_body(), sender));
        let mut response = Response::new(network::body(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    })
}

async fn grpc_call(mut requests: Incoming, mut replies: Sender<Bytes>) -> Option<()> {
    let mut held = BytesMut::new();
    let mut count = 0u32;
    while let Some(frame) = requests.frame().await {
        held.extend_from_slice(frame.ok()?.data_ref()?);
        // A message: one byte for compression, four of length.
        while let Some(length) =
            held.get(1..5).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)))
        {
            let whole = 5 + length as usize;
            if held.len() < whole {
                break;
            }
            let message = held.split_to(whole).split_off(5);
            let mut reply = BytesMut::from(&[0][..]);
            reply.extend_from_slice(&(length * 2).to_be_bytes());
            reply.extend_from_slice(&message);
            reply.extend_from_slice(&message);
            replies.send_data(reply.freeze()).await.ok()?;
            count += 1;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("messages", count.into());
    replies.send_trailers(trailers).await.ok()
}

/// Sends a message when the last one came back.
const GRPC_CLIENT: &str = r#"
import queue, grpc
channel = grpc.secure_channel('grpc.example:443', grpc.ssl_channel_credentials())
def call(path):
    asked = queue.Queue()
    answers = channel.stream_stream(path)(iter(asked.get, None), timeout=100)
    return asked, answers
asked, answers = call('/open/Doubler')
message = b'x'
for _ in range(18):
    asked.put(message)
    message = next(answers)
print(len(message))
asked.put(None)
print(list(answers), dict(answers.trailing_metadata())['messages'], answers.code().name)
asked, answers = call('/closed/Doubler')
try:
    next(answers)
except grpc.RpcError as error:
    print(error.code().name)
asked.put(None)
"#;

fn grpc(net: &Net) -> Case {
    let host = "grpc.example";
    let library = network::grpc_library()?;
    let folder = net.shared().join("grpc");
    let copied = Command::new("cp").arg("-r").arg(&library).arg(&folder).status()?;
    ensure(copied.success(), "grpcio cannot be copied")?;
    let site = net.site(host, How::default(), grpc_server())?;
    look_into(net, host)?;
    std::fs::write(net.shared().join("call.py"), GRPC_CLIENT)?;
    let said = net.guest_ok("PYTHONPATH=grpc timeout 200 python3 call.py")?;
    // A refused call is answered in gRPC's own words: HTTP 200 with grpc-status 7.
    ensure(said == "262144\n[] 18 OK\nPERMISSION_DENIED", said)?;
    let paths: Vec<String> = site.seen().iter().map(|one| one.target.path().to_owned()).collect();
    ensure(paths == ["/open/Doubler"], format!("{paths:?}"))
}

/// Takes a body and answers with one of the same bytes, piece by piece.
fn mirror() -> Handler {
    handler(|request: Request<Incoming>| async move { Response::new(network::body(request.into_body())) })
}

fn long_bodies(net: &Net) -> Case {
    let host = "mirror.example";
    let site = net.site(host, How::default(), mirror())?;
    look_into(net, host)?;
    for flags in ["--http2", "--http1.1", "--http1.1 -H 'Transfer-Encoding: chunked'"] {
        let said = net.guest_ok(&format!(
            "set -e -o pipefail; [ -e /tmp/long ] || head -c 20000000 /dev/urandom > /tmp/long; \
             curl -sS -m 200 {flags} -T /tmp/long https://{host}/open/mirror | cmp - /tmp/long && echo same"
        ))?;
        ensure(said == "same", format!("{flags}: {said}"))?;
    }
    ensure(site.seen().len() == 3, format!("{:?}", site.seen()))?;
    net.recorded(host, "the bytes", |record| {
        record["bytes_down"].as_u64().is_some_and(|count| count >= 20_000_000)
    })
    .map(|_| ())
}
