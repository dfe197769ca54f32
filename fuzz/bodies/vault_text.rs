//! The body of the fuzz target `vault_text`: everything of the vault that reads a text.

use std::time::UNIX_EPOCH;

use vault::binding::{PathPattern, Place};
use vault::oauth::Grant;
use vault::shape::Shape;
use vault::{Body, Credentials, Destination, HostPattern};

/// The first byte chooses the reader.
pub(crate) fn run(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match choice % 6 {
        0 => {
            if let Ok(pattern) = text.parse::<HostPattern>() {
                assert_eq!(pattern.to_string().parse::<HostPattern>().ok(), Some(pattern), "{text:?}");
            }
        }
        1 => {
            if let Ok(place) = text.parse::<Place>() {
                assert_eq!(place.to_string().parse::<Place>().ok(), Some(place), "{text:?}");
            }
            let _ = text.parse::<PathPattern>();
        }
        2 => {
            if let Ok(shape) = text.parse::<Shape>() {
                assert_eq!(shape.derive(&[1; 32], &["a"]).len(), shape.derive(&[2; 32], &["b"]).len());
            }
        }
        3 => {
            if let Ok(set) = Credentials::from_wire(&text) {
                let again = set.to_wire().ok().and_then(|text| Credentials::from_wire(&text).ok());
                assert!(again.is_none_or(|again| again.names() == set.names()));
            }
        }
        4 => drop(Grant::from_wire(&text)),
        _ => token_answer(rest),
    }
}

/// An answer of a token endpoint: what the guest gets has none of the tokens that are kept.
fn token_answer(body: &[u8]) {
    const SET: &str = r#"[{"name":"anthropic","binding":{"hosts":["api.anthropic.com"],"places":["header:authorization"]},"value":{"SignIn":{"endpoint":{"service":"anthropic","hosts":["console.anthropic.com"],"paths":["/t"],"resources":["api.anthropic.com"],"body":"json"},"key":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"sandbox":"box","grant":null}}}]"#;
    let set = Credentials::from_wire(SET).expect("the set of this target");
    let Ok(request) = http::Request::post("/t").body(()) else { return };
    let (mut head, ()) = request.into_parts();
    let to = Destination { host: "console.anthropic.com", port: 443, tls: true };
    let Ok(Body::Token(mut exchange)) = set.place(&to, &mut head, UNIX_EPOCH).map(|placed| placed.body)
    else {
        panic!("no exchange")
    };
    let _ = exchange.request(Some("application/json"), body);
    let _ = exchange.request(None, body);
    if let Ok(Some(kept)) = exchange.response(200, body, UNIX_EPOCH) {
        let renewed = set.with_grant(&kept.grant);
        // What it masks are the tokens; one that is short or a part of ordinary text is none that could be kept apart.
        let mut masked = Vec::new();
        let mut masker = renewed.masker();
        masker.feed(&kept.body, &mut masked);
        masker.finish(&mut masked);
        assert_eq!(masked.len(), kept.body.len());
        for (name, _) in renewed.renewable() {
            let refresh = renewed.refresh(&name).expect("what can be renewed has a request for it");
            let _ = refresh.response(200, body, UNIX_EPOCH);
        }
    }
}
