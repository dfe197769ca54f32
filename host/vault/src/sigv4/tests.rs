//! Against AWS's own vectors: the Signature Version 4 test suite, and the examples of the S3 API reference for chunks.

use http::Request;
use serde_json::Value;

use super::*;

const SUITE: &str = include_str!("../../tests/data/aws-signing-test-suite.json");
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn cases() -> Vec<Value> {
    let suite: Value = serde_json::from_str(SUITE).unwrap();
    suite["cases"].as_array().unwrap().clone()
}

/// A head as the suite writes it, with the body.
fn parsed(text: &str) -> (Parts, String) {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    // A folded line belongs to the header before it.
    let head = head.trim_end().replace("\n ", " ");
    let mut lines = head.lines();
    let (method, rest) = lines.next().unwrap().split_once(' ').unwrap();
    let target = rest.strip_suffix(" HTTP/1.1").unwrap();
    // What is no URI is encoded by every client.
    let target: String = target
        .chars()
        .map(|c| {
            if c == ' ' || !c.is_ascii() {
                utf8_percent_encode(&c.to_string(), UNRESERVED).to_string()
            } else {
                c.to_string()
            }
        })
        .collect();
    let mut request = Request::builder().method(method).uri(target);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        request = request.header(name, value);
    }
    (request.body(()).unwrap().into_parts().0, body.to_owned())
}

fn time(date: &str) -> SystemTime {
    let text = format!(
        "{}-{}-{}T{}:{}:{}Z",
        &date[..4],
        &date[4..6],
        &date[6..8],
        &date[9..11],
        &date[11..13],
        &date[13..15]
    );
    humantime::parse_rfc3339(&text).unwrap()
}

fn keys(token: Option<&str>) -> Keys {
    Keys {
        key_id: Secret::from("AKIDEXAMPLE".to_owned()),
        secret: Secret::from(SECRET.to_owned()),
        session_token: token.map(|token| Secret::from(token.to_owned())),
    }
}

fn signed_names(canonical: &str) -> Vec<String> {
    let line = canonical.trim_end().lines().rev().nth(1).unwrap();
    line.split(';').map(str::to_owned).collect()
}

#[test]
fn canonical_requests_and_signatures_of_the_suite() {
    let mut count = 0;
    for case in cases().iter().filter(|case| case.get("context").is_some()) {
        let (name, context) = (case["name"].as_str().unwrap(), &case["context"]);
        let (mut head, body) = parsed(case["request"].as_str().unwrap());
        let wanted = case["header-canonical-request"].as_str().unwrap();
        head.headers.insert(DATE, HeaderValue::from_static("20150830T123600Z"));
        let token = context["credentials"]["token"].as_str();
        if let Some(token) = token.filter(|_| context["omit_session_token"] != true) {
            head.headers.insert(TOKEN, HeaderValue::from_str(token).unwrap());
        }
        let hash = hex_of_sha256(if context["sign_body"] == true { body.as_bytes() } else { b"" });
        if wanted.contains("x-amz-content-sha256") {
            head.headers.insert(CONTENT_SHA256, HeaderValue::from_str(&hash).unwrap());
        }
        let rules = PathRules { normalizes: context["normalize"] == true, encodes_twice: false };
        let canonical = CanonicalRequest::new(&head, None, &signed_names(wanted), &hash, rules).unwrap();
        assert_eq!(canonical.text, wanted, "{name}");
        let scope = Scope { region: "us-east-1".into(), service: "service".into() };
        let text = string_to_sign("20150830T123600Z", &scope.on("20150830"), &canonical.text);
        assert_eq!(text, case["header-string-to-sign"].as_str().unwrap(), "{name}");
        let key = SigningKey::derive(&Secret::from(SECRET.to_owned()), "20150830", &scope);
        assert_eq!(key.sign(&text), case["header-signature"].as_str().unwrap().trim(), "{name}");
        count += 1;
    }
    assert_eq!(count, 38);
}

#[test]
fn what_is_encoded_is_encoded_once_more_but_for_s3() {
    let mut count = 0;
    for case in cases().iter().filter(|case| case.get("context").is_none()) {
        let (head, _) = parsed(case["request"].as_str().unwrap());
        let wanted = case["header-canonical-request"].as_str().unwrap().lines().nth(1).unwrap();
        assert_eq!(canonical::path(head.uri.path(), PathRules::of("execute-api")), wanted);
        count += 1;
    }
    assert_eq!(count, 2);
    let s3 = PathRules::of("s3");
    for (raw, wanted) in [
        ("/a%20b/c%2Fd", "/a%20b/c%2Fd"),
        ("//a/../b/./", "//a/../b/./"),
        ("/(x)*", "/%28x%29%2A"),
        ("", "/"),
    ] {
        // S3 reads an encoded slash as part of a name; in a canonical request it is a slash again only if it was one.
        let wanted = wanted.replace("%2F", "/");
        assert_eq!(canonical::path(raw, s3), wanted, "{raw}");
    }
}

/// Each signed request of the suite is signed again, with the same key, and must come out the same.
#[test]
fn signed_requests_of_the_suite_are_signed_anew() {
    let (mut in_headers, mut in_queries) = (0, 0);
    for case in cases()
        .iter()
        .filter(|case| case.get("context").is_some_and(|context| context["omit_session_token"] != true))
    {
        let name = case["name"].as_str().unwrap();
        let token = case["context"]["credentials"]["token"].as_str();
        for kind in ["header", "query"] {
            let (mut head, body) = parsed(case[&format!("{kind}-signed-request")].as_str().unwrap());
            let path = head.uri.path();
            if case["context"]["normalize"] != true || path.contains('%') {
                // Those paths are for S3's rules, or come out otherwise when encoded twice.
                continue;
            }
            let Found::V4(claim) = find(&head).unwrap() else { panic!("{name}: no claim") };
            assert_eq!(claim.key_id, "AKIDEXAMPLE");
            let pending = Pending::new("aws", claim, keys(token), &head, time("20150830T123600Z")).unwrap();
            let body = if case["context"]["sign_body"] == true { body } else { String::new() };
            head.headers.remove(DATE);
            assert!(pending.sign(&mut head, Some(body.as_bytes())).unwrap().is_none());
            let wanted = case[&format!("{kind}-signature")].as_str().unwrap().trim();
            if kind == "header" {
                let value = head.headers[AUTHORIZATION].to_str().unwrap();
                assert!(value.ends_with(&format!("Signature={wanted}")), "{name}: {value}");
                in_headers += 1;
            } else {
                assert!(
                    head.uri.query().unwrap().ends_with(&format!("X-Amz-Signature={wanted}")),
                    "{name}: {}",
                    head.uri
                );
                in_queries += 1;
            }
        }
    }
    assert!(in_headers >= 25 && in_queries >= 25, "{in_headers} {in_queries}");
}

#[test]
fn the_guests_key_date_and_token_are_gone() {
    let text = "GET /x HTTP/1.1\nHost:s3.amazonaws.com\nx-amz-date:19700101T000000Z\nx-amz-security-token:guests\nx-amz-content-sha256:UNSIGNED-PAYLOAD\nauthorization:AWS4-HMAC-SHA256 Credential=AKIAPLACEHOLDER/19700101/eu-west-1/s3/aws4_request,SignedHeaders=host;x-amz-date;x-amz-security-token,Signature=00";
    let (mut head, _) = parsed(text);
    let Found::V4(claim) = find(&head).unwrap() else { panic!() };
    let pending = Pending::new("aws", claim, keys(None), &head, time("20260101T000000Z")).unwrap();
    assert_eq!(pending.payload(), Payload::Declared);
    pending.sign(&mut head, None).unwrap();
    let all = format!(
        "{:?}",
        head.headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes().escape_ascii().to_string()))
            .collect::<Vec<_>>()
    );
    assert!(!all.contains("guests") && !all.contains("PLACEHOLDER") && !all.contains("19700101"), "{all}");
    assert!(all.contains("AKIDEXAMPLE/20260101/eu-west-1/s3/aws4_request"), "{all}");
    assert!(all.contains("SignedHeaders=host;x-amz-content-sha256;x-amz-date,"), "{all}");
    assert!(!all.contains(SECRET));
}

fn s3_put(word: &str, more: &str) -> (Parts, Pending) {
    // The reference signs the length in one example and not in the other.
    let length = if more.is_empty() { "content-length;" } else { "" };
    let listed = format!(
        "content-encoding;{length}host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class"
    );
    let text = format!(
        "PUT /examplebucket/chunkObject.txt HTTP/1.1\nHost:s3.amazonaws.com\nx-amz-date:20130524T000000Z\nx-amz-storage-class:REDUCED_REDUNDANCY\ncontent-encoding:aws-chunked\nx-amz-decoded-content-length:66560\ncontent-length:66824\nx-amz-content-sha256:{word}{more}\nauthorization:AWS4-HMAC-SHA256 Credential=AKIDPLACEHOLDER/20130524/us-east-1/s3/aws4_request,SignedHeaders={listed},Signature=00"
    );
    let (head, _) = parsed(&text);
    let Found::V4(claim) = find(&head).unwrap() else { panic!() };
    let keys = Keys {
        key_id: Secret::from("AKIAIOSFODNN7EXAMPLE".to_owned()),
        secret: Secret::from("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
        session_token: None,
    };
    let pending = Pending::new("aws", claim, keys, &head, time("20130524T000000Z")).unwrap();
    assert_eq!(pending.payload(), Payload::Chunked);
    (head, pending)
}

fn chunked(trailer: &str) -> Vec<u8> {
    let old = "0".repeat(64);
    let mut body = Vec::new();
    for size in [65536usize, 1024] {
        body.extend_from_slice(format!("{size:x};chunk-signature={old}\r\n").as_bytes());
        body.extend(std::iter::repeat_n(b'a', size));
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("0;chunk-signature={old}\r\n{trailer}\r\n").as_bytes());
    body
}

/// "Example: PUT Object" of "Signature calculations for the Authorization header: multiple chunks".
#[test]
fn the_chunks_of_the_s3_reference() {
    let (mut head, pending) = s3_put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "");
    let mut signer = pending.sign(&mut head, None).unwrap().unwrap();
    let value = head.headers[AUTHORIZATION].to_str().unwrap();
    assert!(
        value.ends_with("Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"),
        "{value}"
    );
    let body = chunked("");
    let mut out = Vec::new();
    for piece in body.chunks(777) {
        signer.feed(piece, &mut out).unwrap();
    }
    signer.finish().unwrap();
    assert_eq!(out.len(), body.len());
    let text = String::from_utf8(out).unwrap();
    for (size, signature) in [
        ("10000", "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
        ("400", "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
        ("0", "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
    ] {
        assert!(text.contains(&format!("{size};chunk-signature={signature}\r\n")), "{size}");
    }
}

/// The same with a trailer: "Signature calculations … trailing headers".
#[test]
fn the_trailer_of_the_s3_reference() {
    let (mut head, pending) =
        s3_put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "\nx-amz-trailer:x-amz-checksum-crc32c");
    let mut signer = pending.sign(&mut head, None).unwrap().unwrap();
    let value = head.headers[AUTHORIZATION].to_str().unwrap();
    assert!(
        value.ends_with("Signature=106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"),
        "{value}"
    );
    let trailer = format!("x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:{}\r\n", "0".repeat(64));
    let body = chunked(&trailer);
    let mut out = Vec::new();
    for piece in body.chunks(1) {
        signer.feed(piece, &mut out).unwrap();
    }
    signer.finish().unwrap();
    assert_eq!(out.len(), body.len());
    let text = String::from_utf8(out).unwrap();
    for signature in [
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
        "x-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
    ] {
        assert!(text.contains(signature), "{signature}");
    }
}

#[test]
fn bodies_that_are_not_what_they_say_are_refused() {
    let good = chunked("");
    let mut longer = good.clone();
    longer.extend_from_slice(b"x");
    let mut inside = good.clone();
    inside[66_000] = b'b';
    inside.remove(100);
    for body in [
        longer,
        inside,
        b"5\r\nhello\r\n".to_vec(),
        b"zz;chunk-signature=00\r\n".to_vec(),
        vec![b'a'; 9000],
        chunked("x:y\r\n"),
    ] {
        let (mut head, pending) = s3_put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "");
        let mut signer = pending.sign(&mut head, None).unwrap().unwrap();
        let refusal = signer.feed(&body, &mut Vec::new()).unwrap_err();
        assert_eq!(refusal.status(), 400, "{refusal}");
        assert!(signer.feed(b"x", &mut Vec::new()).is_err() && signer.finish().is_err());
    }
    let (mut head, pending) = s3_put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "");
    let mut signer = pending.sign(&mut head, None).unwrap().unwrap();
    let huge = format!("ffffffff;chunk-signature={}\r\n", "0".repeat(64));
    assert_eq!(signer.feed(huge.as_bytes(), &mut Vec::new()).unwrap_err().status(), 413);
    let (mut head, pending) = s3_put("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "");
    let mut signer = pending.sign(&mut head, None).unwrap().unwrap();
    signer.feed(&good[..good.len() - 3], &mut Vec::new()).unwrap();
    assert!(signer.finish().is_err(), "it broke off");
}

#[test]
fn what_cannot_be_signed_anew_is_told() {
    let with = |value: &str| parsed(&format!("GET /x HTTP/1.1\nHost:a.example\nauthorization:{value}")).0;
    assert_eq!(
        find(&with(
            "AWS4-ECDSA-P256-SHA256 Credential=A/20260101/s3/aws4_request, SignedHeaders=host, Signature=0"
        ))
        .unwrap(),
        Found::V4a
    );
    assert_eq!(find(&with("AWS AKIA:sig=")).unwrap(), Found::V2);
    assert_eq!(find(&with("Bearer x")).unwrap(), Found::Nothing);
    let good = "Credential=AK/20260101/r/s/aws4_request, SignedHeaders=host, Signature=0";
    assert!(matches!(find(&with(&format!("AWS4-HMAC-SHA256 {good}"))).unwrap(), Found::V4(_)));
    for bad in [
        "",
        "Credential=AK/20260101/r/s/aws4_request",
        "Credential=AK/2026/r/s/aws4_request, SignedHeaders=host, Signature=0",
        "Credential=AK/20260101/r/s/aws4_request/x, SignedHeaders=host, Signature=0",
        "Credential=AK/20260101/r/s/aws5_request, SignedHeaders=host, Signature=0",
        "Credential=AK/20260101/r\u{e9}/s/aws4_request, SignedHeaders=host, Signature=0",
        "Credential=AK/20260101/r/s/aws4_request, SignedHeaders=, Signature=0",
        "Credential=AK/20260101/r/s/aws4_request, SignedHeaders=a b, Signature=0",
        "Credential=AK/20260101/r/s/aws4_request, SignedHeaders=host, Signature=0, Signature=1",
        "Credential=AK/20260101/r/s/aws4_request, SignedHeaders=host, Signature=0, Evil=1",
    ] {
        assert!(find(&with(&format!("AWS4-HMAC-SHA256 {bad}"))).is_err(), "{bad}");
    }
    let (head, _) = parsed(&format!(
        "GET /x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0 HTTP/1.1\nHost:a\nauthorization:AWS4-HMAC-SHA256 {good}"
    ));
    assert!(find(&head).is_err(), "twice");
    for hash in ["STREAMING-AWS4-HMAC-SHA256-EVENTS", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "nonsense"]
    {
        let (head, _) = parsed(&format!(
            "GET /x HTTP/1.1\nHost:a\nx-amz-content-sha256:{hash}\nauthorization:AWS4-HMAC-SHA256 {good}"
        ));
        let Found::V4(claim) = find(&head).unwrap() else { panic!() };
        assert!(Pending::new("aws", claim, keys(None), &head, UNIX_EPOCH).is_err(), "{hash}");
    }
}

#[test]
fn a_body_without_a_hash_must_be_there_and_not_too_long() {
    let text = "POST / HTTP/1.1\nHost:sts.amazonaws.com\nauthorization:AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/sts/aws4_request, SignedHeaders=host, Signature=0";
    let pending = || {
        let (head, _) = parsed(text);
        let Found::V4(claim) = find(&head).unwrap() else { panic!() };
        (Pending::new("aws", claim, keys(None), &head, time("20260101T000000Z")).unwrap(), head)
    };
    let (one, mut head) = pending();
    assert_eq!(one.payload(), Payload::Undeclared);
    assert!(one.sign(&mut head, None).is_err());
    let (one, mut head) = pending();
    let refusal = one.sign(&mut head, Some(&vec![0; MAX_BUFFERED + 1])).unwrap_err();
    assert_eq!(refusal.status(), 413);
    let (one, mut head) = pending();
    one.sign(&mut head, Some(b"Action=GetCallerIdentity&Version=2011-06-15")).unwrap();
    assert!(head.headers[AUTHORIZATION].is_sensitive());
}

#[test]
fn clocks_may_be_anywhere() {
    assert_eq!(amz_date(time("20150830T123600Z")).unwrap(), "20150830T123600Z");
    assert!(amz_date(UNIX_EPOCH - Duration::from_secs(1)).is_err());
    assert!(amz_date(UNIX_EPOCH + Duration::from_secs(253_402_300_800)).is_err());
}
