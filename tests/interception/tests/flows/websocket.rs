//! WebSocket through the interceptor: a real client and a real server, over TCP, each in a thread of its own.

use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;

use crate::support::{HOST, Server, Tcp, World, raw_exchange, run, statuses};
use intercept::{Decision, Flow, FlowHost};
use policy::Name;
use tungstenite::handshake::client::Request;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Message, WebSocket};

/// A server that gives every message back, until it is told to close.
fn echo() -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut socket = tungstenite::accept(stream).expect("a handshake");
        loop {
            match socket.read() {
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message).expect("open"),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    address
}

/// Runs `test` with a client in a thread; its WebSocket goes through a flow to the server.
async fn through(
    world: &World,
    server: SocketAddr,
    test: impl FnOnce(WebSocket<StdStream>) + Send + 'static,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let client = tokio::task::spawn_blocking(move || {
        let stream = StdStream::connect(address).expect("connected");
        let request = Request::builder()
            .uri(format!("ws://{HOST}/socket?x=1"))
            .header("Host", HOST)
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", tungstenite::handshake::client::generate_key())
            .body(())
            .expect("a request");
        let (socket, response) = tungstenite::client(request, stream).expect("a handshake");
        assert_eq!(response.status(), 101);
        test(socket);
    });
    let (guest, _) = listener.accept().await.expect("a connection");
    let flow = Flow { host: FlowHost::Name(Name::parse(HOST).expect("a name")), port: 80 };
    let served = world.intercept.flow(
        flow,
        guest,
        Tcp(server),
        Rc::clone(&world.rules) as _,
        Rc::clone(&world.log) as _,
    );
    let (end, client) = tokio::join!(served, client);
    client.expect("the client's assertions hold");
    assert_eq!(end, intercept::FlowEnd::Closed);
}

/// Sizes of RFC 6455 §5.2's three length forms and their borders, text and binary, whole and in fragments.
#[test]
fn messages_of_every_size_and_shape_come_back() {
    run(async {
        let world = World::new();
        through(&world, echo(), |mut socket| {
            for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 1 << 20] {
                let text = "é".repeat(size / 2) + &"x".repeat(size % 2);
                socket.send(Message::text(text.clone())).expect("sent");
                assert_eq!(socket.read().expect("a message"), Message::text(text));
                let binary: Vec<u8> = (0..size).map(|at| at as u8).collect();
                socket.send(Message::binary(binary.clone())).expect("sent");
                assert_eq!(socket.read().expect("a message"), Message::binary(binary));
            }
            // In fragments, with a ping between them (§5.4, §5.5.2).
            let part = |data: &'static str, code, last| Message::Frame(Frame::message(data, code, last));
            socket.send(part("frag", OpCode::Data(Data::Text), false)).expect("sent");
            socket.send(Message::Ping("are you there".into())).expect("sent");
            socket.send(part("ment", OpCode::Data(Data::Continue), false)).expect("sent");
            socket.send(part("ed", OpCode::Data(Data::Continue), true)).expect("sent");
            let mut seen = vec![socket.read().expect("a message"), socket.read().expect("a message")];
            seen.sort_by_key(Message::is_text);
            assert_eq!(seen, [Message::Pong("are you there".into()), Message::text("fragmented")]);
            for ping in [0, 1, 125] {
                let data = vec![7u8; ping];
                socket.send(Message::Ping(data.clone().into())).expect("sent");
                assert_eq!(socket.read().expect("a pong"), Message::Pong(data.into()));
            }
            let frame = CloseFrame { code: CloseCode::Library(4321), reason: "done".into() };
            socket.close(Some(frame.clone())).expect("sent");
            assert_eq!(socket.read().expect("the close comes back"), Message::Close(Some(frame)));
            assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
        })
        .await;
        let record = world.records(1).await.remove(0);
        assert_eq!((record.status, record.method.as_str(), record.path.as_str()), (101, "GET", "/socket"));
        assert!(record.sent > 2 << 20 && record.received > 2 << 20, "{record:?}");
    });
}

#[test]
fn what_the_server_says_first_arrives_and_its_close_ends_the_flow() {
    run(async {
        let world = World::new();
        let listener = StdListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let mut socket = tungstenite::accept(stream).expect("a handshake");
            for number in 0..1000 {
                socket.send(Message::text(number.to_string())).expect("sent");
            }
            socket.close(None).expect("sent");
            while socket.read().is_ok() {}
        });
        through(&world, address, |mut socket| {
            for number in 0..1000 {
                assert_eq!(socket.read().expect("a message"), Message::text(number.to_string()));
            }
            assert!(matches!(socket.read().expect("a close"), Message::Close(_)));
            while socket.read().is_ok() {}
        })
        .await;
        server.join().expect("no panic");
    });
}

#[test]
fn a_changed_rule_ends_an_open_websocket() {
    run(async {
        let world = World::new();
        let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
        let change = async {
            said.recv().await.expect("an echo came back");
            world.rule(&[("allow", "GET", "/elsewhere")]);
        };
        let test = through(&world, echo(), move |mut socket| {
            socket.send(Message::text("before")).expect("sent");
            assert_eq!(socket.read().expect("a message"), Message::text("before"));
            say.send(()).expect("open");
            // Nobody says anything more, and it ends.
            socket.read().expect_err("it was cut off");
        });
        tokio::join!(test, change);
        let record = world.records(1).await.remove(0);
        assert_eq!((record.status, record.decision), (101, Decision::Refused));
        assert!(record.detail.expect("why").starts_with("ended, for the policy changed: no rule allows GET"));
    });
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn an_upgrade_needs_the_rules_consent_and_the_hosts() {
    run(async {
        for (name, request, answer, status) in [
            (
                "refused by rule",
                format!("GET /closed HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}\r\n"),
                &b""[..],
                403,
            ),
            (
                "the host does not switch",
                format!("GET /open HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}\r\n"),
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                400,
            ),
            (
                "the host switches to something else",
                format!("GET /open HTTP/1.1\r\nHost: {HOST}\r\n{UPGRADE}\r\n"),
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n",
                502,
            ),
            (
                "another protocol was asked for",
                format!(
                    "GET /open HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n"
                ),
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n",
                502,
            ),
            (
                "two protocols were asked for",
                format!(
                    "GET /open HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"
                ),
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                200,
            ),
        ] {
            let world = World::new();
            world.rule(&[("allow", "GET", "/open")]);
            let (server, seen) = Server::raw(answer);
            let (guest, _flow) = world.open(80, server);
            let sent = request.replace("\r\n\r\n", "\r\nX-Last: 1\r\n\r\n");
            let sent = if status == 403 || status == 502 {
                sent.replace("Connection: Upgrade", "Connection: Upgrade, close")
            } else {
                sent
            };
            let got = raw_exchange(guest, sent.as_bytes()).await;
            assert_eq!(statuses(&got), [status], "{name}");
            let seen = String::from_utf8_lossy(&seen.borrow()).to_ascii_lowercase();
            assert!(!seen.contains("upgrade: tunnel") && !seen.contains("h2c"), "{name}: {seen}");
        }
    });
}
