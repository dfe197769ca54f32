//! The body of the fuzz target `vault_head`: a request of a guest, to one of some hosts, and what its body and the answer are.

use std::time::{Duration, UNIX_EPOCH};

use vault::sigv4::{Keys, Payload};
use vault::{Binding, Body, Credential, Credentials, Destination, Secret, Value};

const REAL: &str = "REAL-REAL-value-of-a-token";
const HOLDER: &str = "ghp_placeholder0123456789";
const KEY_ID: &str = "AKIAPLACEHOLDER00000";

fn binding(hosts: &str, places: &[&str]) -> Binding {
    let places = places.iter().filter_map(|place| place.parse().ok()).collect();
    Binding { hosts: hosts.parse().into_iter().collect(), places, ..Binding::default() }
}

fn set() -> Credentials {
    let token = Value::Token { placeholder: HOLDER.into(), value: Secret::from(REAL.to_owned()) };
    let keys = Keys {
        key_id: Secret::from("AKIAREALREALREALREAL".to_owned()),
        secret: Secret::from("REAL-REAL-secret-access-key-of-a-user".to_owned()),
        session_token: Some(Secret::from("REAL-REAL-session-token".to_owned())),
    };
    let aws = Value::Aws {
        key_id: KEY_ID.into(),
        secret: "placeholder-secret-access-key-0123456789".into(),
        keys: keys.into(),
    };
    Credentials::new(vec![
        Credential {
            name: "token".into(),
            binding: binding("api.example", &["headers", "query:key"]),
            value: token,
        },
        Credential { name: "aws".into(), binding: binding("**.aws.example", &["sigv4"]), value: aws },
    ])
}

/// The first byte chooses the host, the first line is `METHOD TARGET`, headers follow up to an empty line, then the body.
pub(crate) fn run(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let hosts = [
        "api.example",
        "API.Example.",
        "s3.aws.example",
        "evil.example",
        "api.example.evil.example",
        "[::1]",
    ];
    let host = hosts[usize::from(*choice) % hosts.len()];
    let tls = choice & 0x80 == 0;
    if rest.windows(9).any(|window| window == b"REAL-REAL")
        || rest.windows(8).any(|window| window == b"AKIAREAL")
    {
        return;
    }
    let at = rest.windows(2).position(|pair| pair == b"\n\n").unwrap_or(rest.len());
    let (text, body) = rest.split_at(at);
    let body = body.get(2..).unwrap_or_default();
    let mut lines = text.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let space = first.iter().position(|byte| *byte == b' ').unwrap_or(first.len());
    let (method, target) = first.split_at(space);
    let mut request = http::Request::builder().method(method).uri(target.get(1..).unwrap_or_default());
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        request = request.header(name, value.get(1..).unwrap_or_default());
    }
    let Ok(request) = request.body(()) else { return };
    let (mut head, ()) = request.into_parts();
    let set = set();
    let to = Destination { host, port: 443, tls };
    let mut signer = None;
    if let Ok(placed) = set.place(&to, &mut head, UNIX_EPOCH + Duration::from_secs(1_800_000_000))
        && let Body::SigV4(pending) = placed.body
    {
        let whole = (pending.payload() == Payload::Undeclared).then_some(body);
        if let Ok(made) = pending.sign(&mut head, whole) {
            signer = made;
        }
    }
    check_head(&head, host, tls);
    if let Some(mut signer) = signer {
        let (mut one, mut fed) = (Vec::new(), Ok(()));
        for piece in body.chunks(7) {
            fed = fed.and_then(|()| signer.feed(piece, &mut one));
        }
        if fed.is_ok() && signer.finish().is_ok() {
            assert_eq!(one.len(), body.len(), "a signed body changed its length");
        }
    }
    let mut watch = set.watch(&to);
    let found = body.chunks(5).any(|piece| watch.feed(piece).is_err());
    let holds = |text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    if !host.to_ascii_lowercase().starts_with("api.example") || host.contains("evil") {
        assert!(found || !holds(HOLDER), "a placeholder got past");
    }
    let (mut masker, mut shown) = (set.masker(), Vec::new());
    let body = [body, REAL.as_bytes(), body].concat();
    for piece in body.chunks(3) {
        masker.feed(piece, &mut shown);
    }
    masker.finish(&mut shown);
    assert_eq!(shown.len(), body.len(), "a masked body changed its length");
    assert!(!shown.windows(REAL.len()).any(|window| window == REAL.as_bytes()), "a value got past the mask");
}

fn check_head(head: &http::request::Parts, host: &str, tls: bool) {
    let holds = |text: &str| {
        let target = head.uri.to_string();
        let mut values = head.headers.values().map(|value| value.as_bytes()).chain([target.as_bytes()]);
        values.any(|value| value.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    let is_api = tls && matches!(host, "api.example" | "API.Example.");
    assert!(is_api || !holds(REAL), "a value for {host}");
    assert!((tls && host == "s3.aws.example") || !holds("AKIAREALREALREALREAL"), "a key id for {host}");
    assert!(!holds("REAL-REAL-secret-access-key"), "the secret key itself");
}
