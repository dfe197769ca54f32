//! Signing in inside a guest: tokens stay on the host, are renewed by the gateway, and are there again after a restart.

use std::sync::{Arc, Mutex, PoisonError};

use e2e::{Case, Verdict, ensure, eventually, say};
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use network::{How, NAME, Named, Net, Site, answer, echo, handler};
use serde_json::Value;

pub(crate) const CASES: &[Named] = &[
    ("tokens_of_a_login_stay_here_and_are_renewed_and_kept", attended),
    ("tokens_that_were_renewed_without_a_session_are_kept_by_stop", unattended),
];

/// The token endpoint of a service that is known, and its API.
const AUTH: &str = "console.anthropic.com";
const API: &str = "api.anthropic.com";

/// What the token endpoint was sent.
type Asked = Arc<Mutex<Vec<String>>>;

fn asked(all: &Asked) -> Vec<String> {
    all.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Both servers. The first tokens hold for so many seconds, the others for an hour.
fn service(net: &Net, life: u32) -> Result<(Asked, Site), Verdict> {
    let all = Asked::default();
    let said = all.clone();
    let endpoint = handler(move |request: Request<Incoming>| {
        let said = said.clone();
        async move {
            let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push(String::from_utf8_lossy(&body).into_owned());
            let (number, life) = (said.len(), if said.len() == 1 { life } else { 3600 });
            let text = format!(
                r#"{{"access_token":"real-access-{number}-0123456789","refresh_token":"real-refresh-{number}-0123456789","expires_in":{life}}}"#
            );
            let mut answer = answer(StatusCode::OK, text);
            answer.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            answer
        }
    });
    net.site(AUTH, How::default(), endpoint)?;
    Ok((all, net.site(API, How::default(), echo())?))
}

/// Signs in and leaves what the guest got in a file.
const LOGIN: &str = r#"curl -sS -m 60 -H 'content-type: application/json' -d '{"grant_type":"authorization_code","code":"c","client_id":"me"}' https://console.anthropic.com/v1/oauth/token > ~/login; cat ~/login"#;
/// Uses it.
const USE: &str = r#"curl -sS -m 60 -o /dev/null -w '%{http_code}' -H "authorization: Bearer $(sed 's/.*access_token":"\([^"]*\)".*/\1/' ~/login)" https://api.anthropic.com/v1/me"#;

fn last_credential(api: &Site) -> Option<String> {
    Some(api.seen().last()?.headers.get(AUTHORIZATION)?.to_str().ok()?.to_owned())
}

fn is_signed_in(net: &Net, sandbox: &str) -> Result<bool, Verdict> {
    let row: Value = serde_json::from_str(&net.viv_ok(&["secret", "ls", "--json"])?)?;
    Ok(row["signed_in"].as_array().is_some_and(|all| all.iter().any(|name| name == sandbox)))
}

fn attended(net: &Net) -> Case {
    let (all, api) = service(net, 2)?;
    for host in [AUTH, API] {
        net.allow(&[&format!("{host}:443")])?;
    }
    net.viv_ok(&["secret", "set", "anthropic", "--oauth"])?;
    // The session goes on until there are others.
    let enough = net.shared().join("renewed");
    let wait =
        "end=$(($(date +%s) + 100)); until [ -e renewed ] || [ $(date +%s) -gt $end ]; do sleep 0.5; done";
    let shown = std::thread::scope(|scope| {
        let session = scope.spawn(|| net.guest_ok(&format!("{LOGIN}; {wait}")));
        let renewed = eventually("the renewal", || asked(&all).len() == 2);
        std::fs::write(&enough, "")?;
        let shown = session.join().map_err(|_| Verdict::Wrong("the session panicked".into()))?;
        renewed.and(shown)
    })?;
    ensure(shown.contains("access_token") && !shown.contains("real-"), &shown)?;
    let renewed = asked(&all);
    ensure(renewed.len() == 2 && renewed[1].contains("real-refresh-1"), format!("{renewed:?}"))?;
    net.recorded(AUTH, "the renewal", |record| {
        record["text"].as_str().is_some_and(|text| text.contains("renewed"))
    })?;
    // The guest's first sentinel stands for the newest token, now and after a restart.
    for _ in 0..2 {
        ensure(net.guest_ok(USE)? == "200", "it is let through")?;
        let got = last_credential(&api);
        ensure(got.as_deref() == Some("Bearer real-access-2-0123456789"), format!("{got:?}"))?;
        ensure(is_signed_in(net, NAME)?, "it is kept")?;
        net.viv_ok(&["stop", NAME])?;
    }
    ensure(asked(&all).len() == 2, "no further renewal within the hour")?;
    net.viv_ok(&["secret", "rm", "-f", "anthropic"]).map(|_| ())
}

fn unattended(net: &Net) -> Case {
    let (all, api) = service(net, 40)?;
    let folder = net.world.project("unattended");
    let name = "shell-unattended";
    let said = say(net.world.viv(&folder, ["run", "-d", "shell", "."]), b"")?;
    ensure(said.code == 0, format!("{said:?}"))?;
    for host in [AUTH, API] {
        net.viv_ok(&["policy", "allow", "--sandbox", name, &format!("{host}:443")])?;
    }
    net.viv_ok(&["secret", "set", "anthropic", "--oauth"])?;
    net.viv_ok(&["exec", name, "bash", "-c", LOGIN])?;
    ensure(asked(&all).len() == 1, "the session ended before the renewal")?;
    eventually("the renewal", || asked(&all).len() == 2)?;
    let recorded = || {
        let log = net.viv_ok(&["policy", "log", "--json", name]);
        log.is_ok_and(|log| log.contains("the gateway renewed the tokens"))
    };
    eventually("the record of it", recorded)?;
    net.viv_ok(&["stop", name])?;
    ensure(net.viv_ok(&["exec", name, "bash", "-c", USE])? == "200", "it is let through")?;
    let got = last_credential(&api);
    ensure(got.as_deref() == Some("Bearer real-access-2-0123456789"), format!("{got:?}"))?;
    net.viv_ok(&["secret", "rm", "-f", "anthropic"])?;
    net.viv_ok(&["rm", "-f", name]).map(|_| ())
}
