use super::*;
use crate::binding::Binding;
use crate::credentials::{Body, Credential, Credentials, Destination, Value as Held};
use crate::services;

const ACCESS: &str = "sk-ant-oat01-REAL-access-token-0123456789";
const REFRESH: &str = "sk-ant-ort01-REAL-refresh-token-0123456789";

fn sign_in(service: &str) -> SignIn {
    let endpoint = services::endpoint(service).unwrap().clone();
    SignIn { endpoint, key: [9; 32], sandbox: "box".into(), grant: None }
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn answer() -> Vec<u8> {
    format!(
        r#"{{"token_type":"Bearer","access_token":"{ACCESS}","expires_in":28800,"refresh_token":"{REFRESH}","scope":"user:inference","account":{{"uuid":"u","email_address":"a@b.example"}}}}"#
    )
    .into_bytes()
}

fn string(body: &[u8], field: &str) -> String {
    serde_json::from_slice::<Value>(body).unwrap()[field].as_str().unwrap().to_owned()
}

#[test]
fn tokens_stay_and_sentinels_go() {
    let sign_in = sign_in("anthropic");
    let exchange = Exchange::new("anthropic", &sign_in, now());
    let kept = exchange.response(200, &answer(), now()).unwrap().unwrap();
    let text = String::from_utf8(kept.body.clone()).unwrap();
    assert!(!text.contains("REAL"), "{text}");
    let sentinel = string(&kept.body, "access_token");
    assert!(sentinel.starts_with("sk-ant-oat01-") && sentinel.len() == ACCESS.len().max(13 + 32));
    assert!(text.contains("a@b.example") && text.contains("28800"));
    assert_eq!(kept.grant.ends(), Some(now() + Duration::from_secs(28800)));
    let again = exchange.response(200, &answer(), now()).unwrap().unwrap();
    assert_eq!(string(&again.body, "access_token"), sentinel, "the same each time");
}

#[test]
fn the_guests_own_renewal_works_with_sentinels() {
    let mut sign_in = sign_in("anthropic");
    let kept = Exchange::new("anthropic", &sign_in, now()).response(200, &answer(), now()).unwrap().unwrap();
    let sentinel = string(&kept.body, "refresh_token");
    sign_in.grant = Some(kept.grant);
    let mut exchange = Exchange::new("anthropic", &sign_in, now());
    let body = format!(r#"{{"grant_type":"refresh_token","refresh_token":"{sentinel}","client_id":"c1"}}"#);
    let sent = exchange.request(Some("application/json; charset=utf-8"), body.as_bytes()).unwrap();
    assert_eq!(string(&sent, "refresh_token"), REFRESH);
    let body = format!(
        "grant_type=refresh_token&refresh_token={}&client_id=c%31",
        utf8_percent_encode(&sentinel, UNRESERVED)
    );
    let sent = exchange.request(Some("application/x-www-form-urlencoded"), body.as_bytes()).unwrap();
    assert_eq!(&*sent, format!("grant_type=refresh_token&refresh_token={REFRESH}&client_id=c%31").as_bytes());
    // The answer has a new access token and leaves the refresh token out.
    let kept = exchange
        .response(200, br#"{"access_token":"new-real-access-token-000000000000","expires_in":"60"}"#, now())
        .unwrap()
        .unwrap();
    let renewed = SignIn { grant: Some(kept.grant), ..sign_in.duplicate() };
    let refresh = renewed.refresh().unwrap();
    let body: Value = serde_json::from_slice(&refresh.body).unwrap();
    assert_eq!((body["refresh_token"].as_str(), body["client_id"].as_str()), (Some(REFRESH), Some("c1")));
    assert_eq!(
        (refresh.host.as_str(), refresh.port, refresh.path.as_str()),
        ("console.anthropic.com", 443, "/v1/oauth/token")
    );
    assert_eq!(renewed.ends(), Some(now() + Duration::from_secs(60)));
}

#[test]
fn a_jwt_keeps_its_claims_and_loses_its_signature() {
    let claims = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"chatgpt_account_id":"acct","exp":1}"#)
    );
    let real = format!("{claims}.c2lnbmF0dXJlLXRoYXQtaXMtcmVhbC1hbmQtbG9uZy1lbm91Z2g");
    let mut sign_in = sign_in("openai");
    let body = serde_json::to_vec(
        &serde_json::json!({"id_token": real, "access_token": real, "refresh_token": "rt_abc"}),
    )
    .unwrap();
    let kept = Exchange::new("openai", &sign_in, now()).response(200, &body, now()).unwrap().unwrap();
    let shown = string(&kept.body, "id_token");
    assert!(shown.starts_with(&format!("{claims}.")) && shown != real && !shown.contains("c2lnbmF0dXJl"));
    assert_ne!(shown, string(&kept.body, "access_token"), "each field has its own");
    // A renewed token has other claims; the old sentinel goes on working.
    sign_in.grant = Some(kept.grant);
    let other = format!(
        "{}.{}.bmV3",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256"}"#),
        URL_SAFE_NO_PAD.encode(r#"{"exp":2}"#)
    );
    let body = serde_json::to_vec(&serde_json::json!({"id_token": other})).unwrap();
    let kept = Exchange::new("openai", &sign_in, now()).response(200, &body, now()).unwrap().unwrap();
    sign_in.grant = Some(kept.grant);
    let ids: Vec<&str> = sign_in
        .all_pairs()
        .filter(|(value, _)| value.expose() == other.as_bytes())
        .map(|(_, sentinel)| sentinel)
        .collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], shown);
}

#[test]
fn answers_without_tokens_pass_and_strange_ones_do_not() {
    let sign_in = sign_in("github");
    let exchange = Exchange::new("github", &sign_in, now());
    let response = |status, body: &[u8]| exchange.response(status, body, now());
    assert!(
        response(400, br#"{"error":"invalid_grant","error_description":"the refresh_token is old"}"#)
            .unwrap()
            .is_none()
    );
    assert!(
        response(502, b"<html>no such gateway</html>").unwrap().is_none()
            && response(500, b"").unwrap().is_none()
    );
    // An error that comes with a token grants nothing and shows nothing.
    let cut = answer()[..80].to_vec();
    for error in [answer(), cut, [answer(), b"garbage".to_vec()].concat(), b"\x1f\x8b\x08\0".to_vec()] {
        assert!(response(400, &error).is_err() && response(302, &error).is_err(), "{error:?}");
    }
    assert!(response(200, br#"{"access_token":["real"]}"#).is_err());
    assert!(response(200, br#"{"error":"authorization_pending"}"#).unwrap().is_none());
    assert!(response(200, b"error=authorization_pending&x=y").unwrap().is_none());
    let kept = response(200, b"access_token=gho_REALREALREAL&scope=repo&token_type=bearer").unwrap().unwrap();
    let text = String::from_utf8(kept.body).unwrap();
    assert!(
        text.starts_with("access_token=gho_")
            && !text.contains("REAL")
            && text.ends_with("&scope=repo&token_type=bearer")
    );
    for strange in [
        &b"\x1f\x8b\x08access_token"[..],
        b"<html>access_token=x</html>",
        b"",
        b"{\"access_token\":\"x\"",
        b"eyJhY2Nlc3M=",
        b"x=y",
    ] {
        assert!(response(200, strange).is_err(), "{strange:?}");
    }
    assert!(response(200, &vec![b'x'; MAX_BODY + 1]).is_err());
    let deep = format!("{}1{}", "[".repeat(50), "]".repeat(50));
    assert!(response(200, deep.as_bytes()).is_err());
    let nested = response(200, br#"{"authed_user":{"access_token":"xoxp-real-token"}}"#).unwrap().unwrap();
    assert!(!String::from_utf8(nested.body).unwrap().contains("real"));
}

#[test]
fn a_renewal_that_fails_says_so() {
    let mut sign_in = sign_in("anthropic");
    sign_in.grant = Exchange::new("anthropic", &sign_in, now())
        .response(200, &answer(), now())
        .unwrap()
        .map(|kept| kept.grant);
    let refresh = sign_in.refresh().unwrap();
    let refusal = refresh.response(401, b"{}", now()).unwrap_err();
    assert!(refusal.to_string().contains("sign in again") && !refusal.to_string().contains("REAL"));
    assert!(refresh.response(200, b"{}", now()).is_err());
    assert!(!format!("{refresh:?} {:?}", refresh.sign_in).contains("REAL"));
    let text = sign_in.grant.as_ref().unwrap().to_wire().unwrap();
    let back = Grant::from_wire(&text).unwrap();
    assert_eq!(back.ends(), sign_in.ends());
    assert!(!format!("{back:?}").contains("REAL"));
}

#[test]
fn an_exchange_is_seen_however_its_path_is_spelt() {
    let endpoint = services::endpoint("github").unwrap();
    let (host, known) = (endpoint.hosts[0].to_string(), endpoint.paths[0].clone());
    let under = known.replacen('_', "%5F", 1);
    for path in [
        known.clone(),
        format!("{known}/"),
        format!("/{known}"),
        format!("{known}.json"),
        under,
        known.to_uppercase(),
        known.replacen('_', "%255f", 1),
        format!("{known}%20"),
        format!("{known}%09/"),
        format!("/x/..{known};v=1"),
    ] {
        assert!(endpoint.takes(&host, 443, &path), "{path}");
    }
    assert!(!endpoint.takes(&host, 443, &format!("{known}s")) && !endpoint.takes(&host, 443, "/"));
}

#[test]
fn a_login_that_holds_is_not_replaced_by_another_one() {
    let mut sign_in = sign_in("anthropic");
    let kept = Exchange::new("anthropic", &sign_in, now()).response(200, &answer(), now()).unwrap().unwrap();
    let sentinel = string(&kept.body, "refresh_token");
    sign_in.grant = Some(kept.grant);
    let ask = |now, kind: &str, body: &str| {
        Exchange::new("anthropic", &sign_in, now).request(Some(kind), body.as_bytes()).map(drop)
    };
    let (json, form) = ("application/json", "application/x-www-form-urlencoded");
    let others = [
        (json, r#"{"grant_type":"authorization_code","code":"theirs","client_id":"c"}"#.to_owned()),
        (json, r#"{"grant_type":"refresh_token","refresh_token":"theirs"}"#.to_owned()),
        // With the sentinel somewhere, and in fields that some servers read otherwise.
        (
            json,
            format!(r#"{{"grant_type":"authorization_code","code":"theirs","refresh_token":"{sentinel}"}}"#),
        ),
        (
            json,
            format!(
                r#"{{"grant_type":"refresh_token","refresh_token":"theirs","refresh_token":"{sentinel}"}}"#
            ),
        ),
        (
            json,
            format!(r#"{{"grant_type":"refresh_token","grant\u005ftype":"x","refresh_token":"{sentinel}"}}"#),
        ),
        (form, "grant_type=authorization_code&code=theirs".to_owned()),
        (form, format!("grant_type=refresh_token&refresh_token=theirs&refresh%5Ftoken={sentinel}")),
        (form, format!("grant_type=urn:device&x={sentinel}")),
        (form, String::new()),
        (json, "[]".to_owned()),
    ];
    for (kind, body) in &others {
        let refusal = ask(now(), kind, body).unwrap_err();
        assert_eq!(refusal, Refusal::SignedIn { secret: "anthropic".into() }, "{body}");
    }
    ask(
        now(),
        json,
        &format!(r#"{{"grant_type":"refresh_token","refresh_token":"{sentinel}","scope":"a b"}}"#),
    )
    .unwrap();
    // One that has ended, which the gateway could not renew, is no login.
    let later = now() + Duration::from_secs(28800);
    assert!(others.iter().all(|(kind, body)| ask(later, kind, body).is_ok()));
}

fn set() -> Credentials {
    let binding = Binding {
        hosts: vec!["api.anthropic.com".parse().unwrap()],
        places: vec!["header:authorization".parse().unwrap()],
        ..Binding::default()
    };
    let value = Held::SignIn(sign_in("anthropic"));
    Credentials::new(vec![Credential { name: "anthropic".into(), binding, value }])
}

fn placed(set: &Credentials, method: &str, host: &str, path: &str) -> Result<Body, Refusal> {
    let (mut head, ()) = http::Request::builder().method(method).uri(path).body(()).unwrap().into_parts();
    let to = Destination { host, port: 443, tls: true };
    set.place(&to, &mut head, now()).map(|placed| placed.body)
}

#[test]
fn an_exchange_is_seen_whatever_its_method_and_at_each_host() {
    for method in ["POST", "GET", "PUT", "HEAD", "OPTIONS", "X"] {
        let body = placed(&set(), method, "console.anthropic.com", "/v1/oauth/token?x=y").unwrap();
        assert!(matches!(body, Body::Token(_)), "{method}");
    }
    for host in ["platform.claude.com", "api.anthropic.com", "claude.ai"] {
        assert!(matches!(placed(&set(), "POST", host, "/v1/oauth/token").unwrap(), Body::Token(_)), "{host}");
    }
    assert!(matches!(placed(&set(), "POST", "api.anthropic.com", "/v1/messages").unwrap(), Body::Stream));
    let google = services::endpoint("google").unwrap();
    for (host, path) in [
        ("oauth2.googleapis.com", "/token"),
        ("accounts.google.com", "/o/oauth2/token"),
        ("www.googleapis.com", "/oauth2/v4/token"),
    ] {
        assert!(google.takes(host, 443, path), "{host}");
    }
}

#[test]
fn a_login_makes_no_further_keys() {
    for path in ["/api/oauth/claude_cli/create_api_key", "/api//oauth/claude_cli/create%5Fapi_key/"] {
        let refusal = placed(&set(), "POST", "api.anthropic.com", path).unwrap_err();
        assert!(matches!(refusal, Refusal::Mints { .. }) && refusal.status() == 403, "{path}: {refusal}");
    }
}

#[test]
fn a_login_that_began_before_another_one_does_not_replace_it() {
    let set = set();
    let begin = || match placed(&set, "POST", "console.anthropic.com", "/v1/oauth/token").unwrap() {
        Body::Token(mut exchange) => {
            exchange.request(Some("application/json"), br#"{"grant_type":"authorization_code"}"#).unwrap();
            exchange
        }
        other => panic!("{other:?}"),
    };
    let (first, second) = (begin(), begin());
    let kept = first.response(200, &answer(), now()).unwrap().unwrap();
    set.may_keep(&first, now()).unwrap();
    let set = set.with_grant(&kept.grant);
    let refusal = set.may_keep(&second, now()).unwrap_err();
    assert_eq!(refusal, Refusal::SignedIn { secret: "anthropic".into() });
    set.may_keep(&second, now() + Duration::from_secs(28800)).unwrap();
}
