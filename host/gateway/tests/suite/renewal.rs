//! Tokens of a login are renewed by the gateway itself: a real TLS server on this host, the gateway's own dialler and policy.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime};

use crate::guest::{Guest, hosts, rules};
use crate::tls::certified;
use gateway::control::{Configuration, FromGateway, SecretText, ToGateway};
use gateway::record::{Decision, Kind};
use vault::credentials::{Body, Credential, Destination, Value};
use vault::{Binding, Credentials};

const NAME: &str = "auth.example.com";

/// A token endpoint. What it is sent comes out of the channel; it answers with new tokens, the first time with a status of the test's.
struct Server {
    port: u16,
    root: Vec<u8>,
    asked: Receiver<String>,
}

fn server(first: &'static str) -> Server {
    slow_server(first, None)
}

/// The same; it answers when it is told to, if it waits for that.
fn slow_server(first: &'static str, told: Option<Receiver<()>>) -> Server {
    let (config, root) = certified(NAME);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (say, asked) = channel();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let status = if number == 0 { first } else { "200 OK" };
            answer(rustls::StreamOwned::new(tls, stream.unwrap()), number, status, &say, told.as_ref());
        }
    });
    Server { port, root, asked }
}

fn answer(
    mut stream: impl Read + Write,
    number: usize,
    status: &str,
    say: &Sender<String>,
    told: Option<&Receiver<()>>,
) {
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut piece).unwrap_or(0);
        request.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
            });
            length.is_some_and(|length| body.len() >= length.parse().unwrap())
        });
        if whole {
            let _ = say.send(text);
            if let Some(told) = told {
                told.recv().unwrap();
            }
            break;
        }
        if count == 0 {
            return;
        }
    }
    let body = format!(
        r#"{{"access_token":"access-{number}-0123456789abcdef","refresh_token":"refresh-{number}-0123456789abcdef","expires_in":3600}}"#
    );
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let _ = stream.flush();
}

/// Nobody has signed in at the server.
fn no_login(port: u16) -> Credentials {
    let host = || vec![format!("{NAME}:{port}").parse().unwrap()];
    let endpoint = vault::oauth::Endpoint {
        service: "mine".into(),
        hosts: host(),
        paths: vec!["/token".into()],
        resources: host(),
        body: vault::oauth::BodyKind::Form,
    };
    let sign_in = vault::oauth::SignIn { endpoint, key: [7; 32], sandbox: "box".into(), grant: None };
    let binding = Binding {
        hosts: host(),
        places: vec!["header:authorization".parse().unwrap()],
        ..Binding::default()
    };
    Credentials::new(vec![Credential { name: "mine".into(), binding, value: Value::SignIn(sign_in) }])
}

/// A login at the server so many hours ago, whose tokens held for one.
fn ended_login(port: u16, hours: u64) -> Credentials {
    let set = no_login(port);
    let (mut head, ()) = http::Request::post("/token").body(()).unwrap().into_parts();
    let to = Destination { host: NAME, port, tls: true };
    let placed = set.place(&to, &mut head, SystemTime::now()).unwrap();
    let Body::Token(mut exchange) = placed.body else { panic!("a token endpoint") };
    exchange
        .request(Some("application/x-www-form-urlencoded"), b"grant_type=authorization_code&client_id=me")
        .unwrap();
    let tokens = br#"{"access_token":"first-access-0123456789","refresh_token":"first-refresh-0123456789","expires_in":3600}"#;
    let long_ago = SystemTime::now() - Duration::from_secs(3600 * hours);
    let kept = exchange.response(200, tokens, long_ago).unwrap().unwrap();
    set.with_grant(&kept.grant)
}

fn configuration(server: &Server, allow: &[&str], folder: &std::path::Path) -> Configuration {
    let root = intercept::RootCa::load_or_make(folder, SystemTime::now()).unwrap();
    let ca = serde_json::to_string(&root.issue("test", SystemTime::now()).unwrap()).unwrap();
    Configuration {
        policy: rules(allow, &[]),
        hosts: hosts(&[(NAME, "127.0.0.1")]),
        roots: vec![server.root.clone()],
        ca: Some(SecretText::new(ca.into())),
        secrets: Some(SecretText::new(ended_login(server.port, 2).to_wire().unwrap())),
        ..Configuration::default()
    }
}

fn start(configuration: Configuration) -> Guest {
    Guest::start_with(configuration, gateway::interceptor)
}

fn granted(guest: &mut Guest) -> vault::oauth::Grant {
    let word = guest.word("new tokens", |word| matches!(word, FromGateway::Grant { .. }));
    let FromGateway::Grant { grant } = word else { unreachable!("it was looked for") };
    vault::oauth::Grant::from_wire(grant.expose()).unwrap()
}

#[test]
fn tokens_that_have_ended_are_renewed_though_the_guest_does_nothing() {
    let (server, folder) = (server("200 OK"), tempfile::tempdir().unwrap());
    let (name, address) = (format!("{NAME}:{}", server.port), format!("127.0.0.1:{}", server.port));
    let mut guest = start(configuration(&server, &[&name, &address], folder.path()));
    let grant = granted(&mut guest);
    assert_eq!(grant.name(), "mine");
    assert!(grant.ends().unwrap() > SystemTime::now() + Duration::from_secs(3500));
    let asked = server.asked.recv().unwrap();
    assert!(asked.starts_with("POST /token HTTP/1.1\r\n"), "{asked}");
    assert!(
        asked.ends_with("grant_type=refresh_token&refresh_token=first-refresh-0123456789&client_id=me"),
        "{asked}"
    );
    assert!(grant.to_wire().unwrap().contains("mine"));
    let record = guest.record("the renewal", |record| record.what.text.contains("renewed"));
    assert_eq!((record.what.kind, record.what.decision), (Kind::Request, Decision::Allowed));
    let all = format!("{:?}", guest.end());
    assert!(!all.contains("0123456789"), "{all}");
    assert!(server.asked.try_recv().is_err(), "once: the new ones hold for an hour");
}

#[test]
fn a_token_endpoint_that_the_policy_refuses_is_not_asked_until_it_is_allowed() {
    let (server, folder) = (server("200 OK"), tempfile::tempdir().unwrap());
    let (name, address) = (format!("{NAME}:{}", server.port), format!("127.0.0.1:{}", server.port));
    let mut guest = start(configuration(&server, &[&address], folder.path()));
    let record = guest.record("a refusal", |record| record.what.decision == Decision::Refused);
    assert!(record.what.text.contains("the tokens of mine cannot be renewed"), "{record:?}");
    assert_eq!(record.what.host, NAME);
    assert!(server.asked.try_recv().is_err());
    guest.say(&ToGateway::Policy { policy: Box::new(rules(&[&name, &address], &[])) }, &[]);
    granted(&mut guest);
    assert!(server.asked.recv().unwrap().contains("first-refresh"));
    guest.end();
}

#[test]
fn an_endpoint_that_refuses_is_recorded_and_the_old_tokens_stay() {
    let (server, folder) = (server("400 Bad Request"), tempfile::tempdir().unwrap());
    let (name, address) = (format!("{NAME}:{}", server.port), format!("127.0.0.1:{}", server.port));
    let mut guest = start(configuration(&server, &[&name, &address], folder.path()));
    let record = guest.record("a failure", |record| record.what.decision == Decision::Failed);
    assert!(
        record.what.text.contains("answered 400") && record.what.text.ends_with("tried again in 30 s"),
        "{record:?}"
    );
    assert!(!guest.words.iter().any(|word| matches!(word, FromGateway::Grant { .. })));
    // Other tokens are another matter, and are tried at once.
    let again = ended_login(server.port, 3).to_wire().unwrap();
    guest.say(&ToGateway::Secrets { secrets: SecretText::new(again) }, &[]);
    granted(&mut guest);
    guest.end();
}

/// `viv secret set --oauth` while the tokens of the login before are renewed.
#[test]
fn a_renewal_of_a_login_that_was_ended_meanwhile_brings_nothing() {
    let ((tell, told), folder) = (channel(), tempfile::tempdir().unwrap());
    let server = slow_server("200 OK", Some(told));
    let (name, address) = (format!("{NAME}:{}", server.port), format!("127.0.0.1:{}", server.port));
    let mut guest = start(configuration(&server, &[&name, &address], folder.path()));
    guest.until("the question", |_| server.asked.try_recv().ok());
    let anew = no_login(server.port).to_wire().unwrap();
    guest.say(&ToGateway::Secrets { secrets: SecretText::new(anew) }, &[]);
    guest.say(&ToGateway::Count, &[]);
    guest.word("that it was heard", |word| matches!(word, FromGateway::Counted { .. }));
    tell.send(()).unwrap();
    let record = guest.record("the end of it", |record| record.what.kind == Kind::Request);
    assert!(record.what.text.contains("the login was ended meanwhile"), "{record:?}");
    assert!(!guest.words.iter().any(|word| matches!(word, FromGateway::Grant { .. })));
    guest.end();
}
