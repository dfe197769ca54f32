//! Credentials in requests: where they get to, and above all where they do not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use http::request::Parts;
use proptest::prelude::*;
use vault::services::{self, Kind};
use vault::sigv4::Keys;
use vault::{Binding, Body, Credential, Credentials, Destination, Refusal, Secret, Value};

const REAL: &str = "ghp_REALREALREALREALREALREALREALREALREAL";
const HOLDER: &str = "ghp_placeholderplaceholderplaceholder0123";
const OTHER_REAL: &str = "sk-ant-api03-REAL-OTHER-VALUE-0123456789";
const OTHER: &str = "sk-ant-api03-placeholder-of-the-other-one";
const AWS_ID: &str = "AKIAPLACEHOLDERABCDE";
const AWS_SECRET: &str = "placeholderplaceholderplaceholder1234567";

fn binding(service: &str) -> Binding {
    let service = services::find(service).unwrap();
    Binding { hosts: service.hosts.clone(), places: service.places.clone(), ..Binding::default() }
}

fn token(name: &str, binding: Binding, placeholder: &str, value: &str) -> Credential {
    let value = Value::Token { placeholder: placeholder.into(), value: Secret::from(value.to_owned()) };
    Credential { name: name.into(), binding, value }
}

fn aws() -> Credential {
    let keys = Keys {
        key_id: Secret::from("AKIAREALREALREALREAL".to_owned()),
        secret: Secret::from("REALSECRETREALSECRETREALSECRETREALSECRET".to_owned()),
        session_token: None,
    };
    let value = Value::Aws { key_id: AWS_ID.into(), secret: AWS_SECRET.into(), keys: keys.into() };
    Credential { name: "aws".into(), binding: binding("aws"), value }
}

fn all() -> Credentials {
    Credentials::new(vec![
        token("github", binding("github"), HOLDER, REAL),
        token("anthropic", binding("anthropic"), OTHER, OTHER_REAL),
        aws(),
    ])
}

fn custom(places: &[&str], change: impl FnOnce(&mut Binding)) -> Credentials {
    let mut binding = Binding {
        hosts: vec!["api.example".parse().unwrap()],
        places: places.iter().map(|place| place.parse().unwrap()).collect(),
        ..Binding::default()
    };
    change(&mut binding);
    Credentials::new(vec![token("mine", binding, HOLDER, REAL)])
}

fn to(host: &str) -> Destination<'_> {
    Destination { host, port: 443, tls: true }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn basic(pair: &str) -> String {
    format!("Basic {}", STANDARD.encode(pair))
}

/// Everything of a head as bytes, with Basic decoded.
fn shown(head: &Parts) -> String {
    let mut text = format!("{} {}", head.method, head.uri);
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let decoded =
            value.strip_prefix("Basic ").and_then(|rest| STANDARD.decode(rest).ok()).unwrap_or_default();
        text.push_str(&format!("\n{name}: {value} {}", String::from_utf8_lossy(&decoded)));
    }
    text
}

#[test]
fn the_value_takes_the_placeholders_place() {
    let set = all();
    for (name, value, wanted) in [
        ("authorization", format!("Bearer {HOLDER}"), format!("Bearer {REAL}")),
        ("Authorization", format!("token {HOLDER}"), format!("token {REAL}")),
        ("authorization", HOLDER.to_owned(), REAL.to_owned()),
        (
            "authorization",
            basic(&format!("x-access-token:{HOLDER}")),
            basic(&format!("x-access-token:{REAL}")),
        ),
        ("authorization", basic(&format!("{HOLDER}:x-oauth-basic")), basic(&format!("{REAL}:x-oauth-basic"))),
        (
            "authorization",
            basic(&format!("u:{HOLDER}")).replace("Basic ", "bAsIc   "),
            basic(&format!("u:{REAL}")),
        ),
        (
            "authorization",
            basic(&format!("us:{HOLDER}")).trim_end_matches('=').to_owned(),
            basic(&format!("us:{REAL}")),
        ),
    ] {
        for host in ["api.github.com", "API.GitHub.com", "github.com."] {
            let mut head = head("GET", "/repos", &[(name, &value)]);
            let placed = set.place(&to(host), &mut head, now()).unwrap();
            assert_eq!(placed.used, ["github"]);
            assert_eq!(head.headers["authorization"], wanted.as_str());
            assert!(head.headers["authorization"].is_sensitive());
        }
    }
}

#[test]
fn a_query_parameter_and_a_header_of_its_own() {
    let set = custom(&["query:key", "header:x-key"], |_| {});
    let mut one = head("GET", &format!("/v1?a=1&key={HOLDER}&b=%20"), &[]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.uri.to_string(), format!("/v1?a=1&key={REAL}&b=%20"));
    let mut one = head("GET", "/v1", &[("X-Key", HOLDER)]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.headers["x-key"], REAL);
    let set = custom(&["header:x-key=Token {value}!"], |_| {});
    let mut one = head("GET", "https://api.example/v1", &[("x-key", HOLDER)]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.headers["x-key"], format!("Token {REAL}!").as_str());
    let set = custom(&["headers"], |_| {});
    let mut one = head("GET", "/v1", &[("x-any", &format!("a={HOLDER};b"))]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.headers["x-any"], format!("a={REAL};b").as_str());
}

#[test]
fn without_a_placeholder_nothing_is_put_in_unless_wanted() {
    let mut one = head("GET", "/", &[]);
    assert!(all().place(&to("api.github.com"), &mut one, now()).unwrap().used.is_empty());
    assert!(one.headers.is_empty());
    let set = custom(&["basic=ci"], |binding| binding.inject = true);
    let mut one = head("GET", "/", &[("authorization", "Bearer guests-own")]);
    assert_eq!(set.place(&to("api.example"), &mut one, now()).unwrap().used, ["mine"]);
    assert_eq!(one.headers["authorization"], basic(&format!("ci:{REAL}")).as_str());
    let set = custom(&["query:key"], |binding| binding.inject = true);
    let mut one = head("GET", "/x?key=a&q=1&%6bey=b", &[]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.uri.query().unwrap(), format!("q=1&key={REAL}"));
    let set = custom(&["header:x-key"], |binding| binding.inject = true);
    let mut one = head("GET", "/x", &[("x-key", "a"), ("X-KEY", "b")]);
    set.place(&to("api.example"), &mut one, now()).unwrap();
    assert_eq!(one.headers.get_all("x-key").iter().collect::<Vec<_>>(), [REAL]);
}

#[test]
fn other_hosts_get_nothing_and_are_an_exfiltration() {
    let set = all();
    for host in [
        "evil.example",
        "api.github.com.evil.example",
        "githubXcom",
        "gist.github.com.",
        "api.anthropic.com",
        "192.0.2.1",
    ] {
        for headers in [
            vec![("authorization", format!("Bearer {HOLDER}"))],
            vec![("cookie", format!("x={HOLDER}"))],
            vec![("x-any", basic(&format!("a:{HOLDER}")))],
        ] {
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let mut one = head("POST", "/", &headers);
            let outcome = set.place(&to(host), &mut one, now());
            if host == "gist.github.com." {
                assert!(outcome.is_ok());
                continue;
            }
            let refusal = outcome.unwrap_err();
            assert!(refusal.is_exfiltration(), "{host}: {refusal}");
            assert_eq!((refusal.secret(), refusal.status()), (Some("github"), 403));
            assert!(!shown(&one).contains("REAL"));
        }
    }
    let escaped: String = HOLDER.bytes().map(|byte| format!("%{byte:02x}")).collect();
    for uri in [format!("/x/{HOLDER}"), format!("/?q={HOLDER}"), format!("/{escaped}")] {
        assert!(
            set.place(&to("evil.example"), &mut head("GET", &uri, &[]), now()).unwrap_err().is_exfiltration()
        );
    }
    assert!(
        set.place(&to("evil.example"), &mut head("GET", "/", &[("authorization", "Bearer own")]), now())
            .unwrap()
            .used
            .is_empty()
    );
}

#[test]
fn nothing_goes_out_without_tls() {
    let set = all();
    let mut one = head("GET", "/", &[("authorization", HOLDER)]);
    let plain = Destination { host: "api.github.com", port: 80, tls: false };
    assert!(matches!(set.place(&plain, &mut one, now()).unwrap_err(), Refusal::Plaintext { .. }));
    let plain = Destination { host: "api.github.com", port: 443, tls: false };
    assert!(set.place(&plain, &mut one, now()).unwrap_err().is_exfiltration());
    assert!(!shown(&one).contains("REAL"));
    let other_port = Destination { host: "api.github.com", port: 8443, tls: true };
    assert!(set.place(&other_port, &mut one, now()).unwrap_err().is_exfiltration());
    let inject = custom(&["basic=ci"], |binding| binding.inject = true);
    let mut one = head("GET", "/", &[]);
    inject.place(&Destination { host: "api.example", port: 443, tls: false }, &mut one, now()).unwrap();
    assert!(one.headers.is_empty());
}

/// CVE-2026-105452: a second credential, of the client's own, passed beside the one that was put in.
#[test]
fn a_credential_of_the_guests_own_does_not_pass_beside_ours() {
    let set = all();
    let ours = format!("Bearer {HOLDER}");
    let foreign: [&[(&str, &str)]; 8] = [
        &[("authorization", &ours), ("authorization", "Bearer evil")],
        &[("authorization", "Bearer evil"), ("Authorization", &ours)],
        &[("authorization", &ours), ("x-api-key", "evil")],
        &[("authorization", &ours), ("Private-Token", "evil")],
        &[("authorization", "Bearer evil")],
        &[("authorization", "Basic ZXZpbDpldmls")],
        &[("authorization", "Basic %%%")],
        &[("X-API-KEY", "evil")],
    ];
    for headers in foreign {
        let mut one = head("POST", "/", headers);
        let refusal = set.place(&to("api.github.com"), &mut one, now()).unwrap_err();
        assert!(
            matches!(refusal, Refusal::Foreign { .. } | Refusal::Repeated { .. }),
            "{headers:?}: {refusal}"
        );
        assert!(!shown(&one).contains("REAL"));
    }
    // More in the header than the placeholder is a second credential too.
    for value in [
        format!("Bearer evil {HOLDER}"),
        format!("Bearer {HOLDER},Bearer evil"),
        format!("{HOLDER}{HOLDER}"),
        basic(&format!("evil{HOLDER}:x")),
        basic(&format!("a:{HOLDER}:b")),
    ] {
        let mut one = head("POST", "/", &[("authorization", &value)]);
        assert_eq!(set.place(&to("api.github.com"), &mut one, now()).unwrap_err().status(), 400, "{value}");
        assert!(!shown(&one).contains("REAL"));
    }
    let relaxed = custom(&["header:authorization"], |binding| binding.allow_other = true);
    let mut one = head("POST", "/", &[("authorization", "Bearer own")]);
    assert!(relaxed.place(&to("api.example"), &mut one, now()).unwrap().used.is_empty());
    let twice = custom(&["query:key"], |_| {});
    for query in [
        format!("key={HOLDER}&key=evil"),
        format!("key={HOLDER}&%6Bey={HOLDER}"),
        "key=evil".to_owned(),
        format!("key=x{HOLDER}"),
    ] {
        let mut one = head("POST", &format!("/?{query}"), &[]);
        assert!(twice.place(&to("api.example"), &mut one, now()).is_err(), "{query}");
        assert!(!shown(&one).contains("REAL"));
    }
}

#[test]
fn limits_of_methods_and_paths_hold() {
    let set = custom(&["header:authorization"], |binding| {
        binding.methods = vec!["GET".into()];
        binding.paths = vec!["/api/**".parse().unwrap()];
    });
    let with = [("authorization", HOLDER)];
    assert_eq!(
        set.place(&to("api.example"), &mut head("GET", "/api/x", &with), now()).unwrap().used,
        ["mine"]
    );
    for (method, path) in [
        ("POST", "/api/x"),
        ("GET", "/other"),
        ("GET", "/api/../other"),
        ("GET", "/api/%2e%2e/other"),
        ("GET", "//api/x"),
    ] {
        let mut one = head(method, path, &with);
        let refusal = set.place(&to("api.example"), &mut one, now()).unwrap_err();
        assert!(matches!(refusal, Refusal::NotForRequest { .. }), "{method} {path}: {refusal}");
        assert!(!shown(&one).contains("REAL"));
    }
}

#[test]
fn aws_requests_are_signed_with_the_real_key() {
    let set = all();
    let authorization = |id: &str| {
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature={}",
            "0".repeat(64)
        )
    };
    let mut one = head(
        "GET",
        "https://b.s3.us-east-1.amazonaws.com/k",
        &[("authorization", &authorization(AWS_ID)), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")],
    );
    let placed = set.place(&to("b.s3.us-east-1.amazonaws.com"), &mut one, now()).unwrap();
    assert_eq!(placed.used, ["aws"]);
    let Body::SigV4(pending) = placed.body else { panic!() };
    pending.sign(&mut one, None).unwrap();
    let text = shown(&one);
    assert!(text.contains("Credential=AKIAREALREALREALREAL/20270115/us-east-1/s3/"), "{text}");
    assert!(!text.contains(AWS_ID) && !text.contains("REALSECRET"));
    let mut one = head("GET", "/k", &[("authorization", &authorization("AKIAEVILEVILEVILEVIL"))]);
    assert!(matches!(
        set.place(&to("sts.amazonaws.com"), &mut one, now()).unwrap_err(),
        Refusal::Foreign { .. }
    ));
    let mut one = head("GET", "/k", &[("authorization", &authorization(AWS_ID))]);
    assert!(set.place(&to("evil.example"), &mut one, now()).unwrap_err().is_exfiltration());
    let v4a = authorization(AWS_ID).replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256");
    let refusal = set
        .place(&to("s3.amazonaws.com"), &mut head("GET", "/k", &[("authorization", &v4a)]), now())
        .unwrap_err();
    assert!(refusal.to_string().contains("SigV4a") && refusal.status() == 501, "{refusal}");
    let presigned = format!(
        "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={AWS_ID}%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Signature=00&versionId=1"
    );
    let mut one = head("GET", &presigned, &[]);
    let Body::SigV4(pending) = set.place(&to("b.s3.amazonaws.com"), &mut one, now()).unwrap().body else {
        panic!()
    };
    pending.sign(&mut one, None).unwrap();
    let text = one.uri.to_string();
    assert!(
        text.starts_with("https://b.s3.amazonaws.com/k?versionId=1&")
            && text.contains("AKIAREAL")
            && !text.contains(AWS_ID),
        "{text}"
    );
}

#[test]
fn what_cannot_be_had_is_told_where_it_is_used() {
    let missing = Value::Missing {
        placeholders: vec![HOLDER.into()],
        why: "op says that you are not signed in".into(),
    };
    let set = Credentials::new(vec![Credential {
        name: "github".into(),
        binding: binding("github"),
        value: missing,
    }]);
    assert!(set.place(&to("api.github.com"), &mut head("GET", "/", &[]), now()).is_ok());
    let refusal = set
        .place(&to("api.github.com"), &mut head("GET", "/", &[("authorization", HOLDER)]), now())
        .unwrap_err();
    assert_eq!(refusal.status(), 502);
    assert!(refusal.to_string().contains("not signed in"));
    assert!(
        set.place(&to("x.example"), &mut head("GET", "/", &[("authorization", HOLDER)]), now())
            .unwrap_err()
            .is_exfiltration()
    );
}

#[test]
fn values_that_come_back_are_masked() {
    let set = all();
    let mut headers = http::HeaderMap::new();
    headers.insert("location", format!("https://x.example/?t={REAL}").parse().unwrap());
    headers.insert("x-basic", basic(&format!("abc:{REAL}")).parse().unwrap());
    headers.insert("x-other", "fine".parse().unwrap());
    assert_eq!(set.mask_headers(&mut headers), 2);
    assert_eq!(headers["location"], format!("https://x.example/?t={HOLDER}").as_str());
    assert!(!headers["x-basic"].to_str().unwrap().contains(&STANDARD.encode(REAL)[4..40]));
    let mut out = Vec::new();
    let mut masker = set.masker();
    for byte in format!("x{REAL}y{OTHER_REAL}").bytes() {
        masker.feed(&[byte], &mut out);
    }
    masker.finish(&mut out);
    assert_eq!(out.len(), 2 + REAL.len() + OTHER_REAL.len());
    assert!(!String::from_utf8(out).unwrap().contains("REAL"));
}

/// Whoever is in the guest has a login's tokens refreshed at will.
#[test]
fn new_values_of_one_name_push_out_no_other_names_old_ones() {
    let secret = |name: &str, value: String| token(name, binding("github"), HOLDER, &value);
    let still =
        Credentials::new(vec![secret("still", "still-0123".into()), secret("login", "login-before".into())]);
    let mut now = Credentials::new(vec![secret("login", "login-0000".into())]).remembering(&still);
    for number in 1..300 {
        now = Credentials::new(vec![secret("login", format!("login-{number:04}"))]).remembering(&now);
    }
    let masked = |now: &Credentials, value: &str| {
        let mut out = Vec::new();
        let mut masker = now.masker();
        masker.feed(value.as_bytes(), &mut out);
        masker.finish(&mut out);
        out != value.as_bytes()
    };
    assert!(masked(&now, "still-0123"), "removed long ago");
    for number in 0..300 {
        assert_eq!(masked(&now, &format!("login-{number:04}")), number >= 235, "{number}");
    }
    // Of very many names the one with most gives way.
    for number in 0..255 {
        let other = secret(&format!("other-{number}"), format!("other-value-{number:04}"));
        now = Credentials::new(vec![other]).remembering(&now);
    }
    assert!(masked(&now, "still-0123") && masked(&now, "other-value-0000") && masked(&now, "login-0299"));
    assert!(!masked(&now, "login-0298"), "there is an end to it");
}

#[test]
fn a_set_survives_the_way_to_the_gateway_and_shows_nothing() {
    let set = all();
    let text = set.to_wire().unwrap();
    assert!(!text.contains("REAL"), "values are not readable at a glance");
    let back = Credentials::from_wire(&text).unwrap();
    assert_eq!(back.names(), ["github", "anthropic", "aws"]);
    let mut one = head("GET", "/", &[("authorization", HOLDER)]);
    assert_eq!(back.place(&to("api.github.com"), &mut one, now()).unwrap().used, ["github"]);
    assert!(!format!("{set:?} {back:?}").contains("REAL"));
    for damaged in ["", "[", "{}", "[{\"name\":\"secret-value\"}]", &text[..text.len() - 1]] {
        let error = Credentials::from_wire(damaged).unwrap_err();
        assert!(!error.to_string().contains("secret-value"), "{error}");
    }
    let long = token("long", binding("github"), HOLDER, &"x".repeat(100_000));
    assert!(Credentials::new(vec![long]).to_wire().is_err());
    assert_eq!(services::find("aws").unwrap().kind, Kind::Aws);
}

#[test]
fn hosts_that_matter_are_known() {
    let set = all();
    for (host, port, is_bound) in [
        ("API.github.com", 443, true),
        ("api.github.com", 80, false),
        ("npm.pkg.github.com", 443, false),
        ("x.y.amazonaws.com", 443, true),
        ("amazonaws.com", 443, false),
        ("evil.example", 443, false),
        ("bad host", 443, false),
    ] {
        assert_eq!(set.is_bound(host, port), is_bound, "{host}:{port}");
    }
    assert_eq!(set.find(format!("{HOLDER}.evil.example").as_bytes()), Some("github"));
    assert_eq!(set.find(b"nothing"), None);
}

proptest! {
    /// The property that everything rests on: whatever the guest sends, a value is in it afterwards only if it goes to a bound host over TLS.
    #[test]
    fn no_value_leaves_for_a_host_that_is_not_bound(
        host in prop_oneof![
            Just("api.github.com".to_owned()), Just("API.GITHUB.COM.".to_owned()), Just("github.com".to_owned()), Just("api.anthropic.com".to_owned()),
            Just("sts.amazonaws.com".to_owned()), Just("evil.example".to_owned()), Just("api.github.com.evil.example".to_owned()), "[a-z.]{0,20}", "\\PC{0,20}",
        ],
        port in prop_oneof![Just(443u16), Just(80), any::<u16>()],
        tls in any::<bool>(),
        method in prop_oneof![Just("GET"), Just("POST"), Just("BREW")],
        headers in proptest::collection::vec((
            prop_oneof![Just("authorization"), Just("Authorization"), Just("x-api-key"), Just("cookie"), Just("host"), Just("x-amz-date"), Just("x-amz-content-sha256")],
            prop_oneof![
                Just(HOLDER.to_owned()), Just(OTHER.to_owned()), Just(format!("Bearer {HOLDER}")), Just(basic(&format!("u:{HOLDER}"))), Just(basic(&format!("{OTHER}:{HOLDER}"))),
                Just(format!("AWS4-HMAC-SHA256 Credential={AWS_ID}/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=00")),
                "[ -~]{0,30}", "(Bearer |Basic |token )?[A-Za-z0-9+/=]{0,40}",
            ],
        ), 0..4),
        query in prop_oneof![Just(String::new()), Just(format!("?key={HOLDER}")), "\\?[a-z=&%0-9]{0,20}"],
    ) {
        let set = all();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let Ok(uri) = format!("/x{query}").parse::<http::Uri>() else { return Ok(()) };
        let mut one = head(method, &uri.to_string(), &headers);
        let destination = Destination { host: &host, port, tls };
        let outcome = set.place(&destination, &mut one, now());
        if let Ok(placed) = outcome
            && let Body::SigV4(pending) = placed.body
        {
            let _ = pending.sign(&mut one, Some(b""));
        }
        let text = shown(&one);
        let is = |names: &[&str]| tls && port == 443 && names.contains(&host.to_ascii_lowercase().trim_end_matches('.'));
        if !is(&["api.github.com", "github.com"]) {
            prop_assert!(!text.contains(REAL), "{} {}", host, text);
        }
        if !is(&["api.anthropic.com"]) {
            prop_assert!(!text.contains(OTHER_REAL), "{} {}", host, text);
        }
        if !is(&["sts.amazonaws.com"]) {
            prop_assert!(!text.contains("AKIAREAL"), "{} {}", host, text);
        }
        prop_assert!(!text.contains("REALSECRET"));
    }

    #[test]
    fn a_placeholder_in_a_body_is_seen_wherever_it_is_cut(
        before in proptest::collection::vec(any::<u8>(), 0..50),
        cuts in proptest::collection::vec(1usize..30, 0..12),
        holder in prop_oneof![Just(HOLDER), Just(OTHER), Just(AWS_ID), Just(AWS_SECRET)],
    ) {
        let set = all();
        let body = [before.as_slice(), holder.as_bytes(), b"tail"].concat();
        let feed = |host: &str| {
            let mut watch = set.watch(&to(host));
            let mut rest = body.as_slice();
            for cut in &cuts {
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                watch.feed(piece)?;
                rest = behind;
            }
            watch.feed(rest)
        };
        prop_assert!(feed("evil.example").unwrap_err().is_exfiltration());
        let home = if holder == HOLDER { "github.com" } else if holder == OTHER { "claude.ai" } else { "x.amazonaws.com" };
        prop_assert!(feed(home).is_ok());
    }
}
