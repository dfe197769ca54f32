//! HTTP/1.1 and HTTP/2 by rules on requests, and TLS that passes through.

use e2e::{Case, Verdict, ensure};
use http::{Method, Version};
use network::{How, NAME, Named, Net, echo};
use serde_json::Value;

pub(crate) const CASES: &[Named] = &[
    ("a_plain_allow_passes_tls_through_untouched", passed_through),
    ("a_rule_on_requests_lets_a_get_through_and_no_post", by_method),
    ("a_rule_on_paths_holds_for_each_request_of_a_connection", by_path),
    ("a_host_without_a_rule_is_not_asked_for", no_rule),
];

/// `curl` that says what a connection came to: protocol, status, issuer.
const CURL: &str = "curl -sS -m 60 -w '\\n%{http_version} %{http_code}'";

/// The SHA-256 of the certificate that the guest is shown, in hexadecimal.
fn shown(net: &Net, host: &str) -> Result<String, Verdict> {
    net.guest_ok(&format!(
        "openssl s_client -connect {host}:443 -servername {host} </dev/null 2>/dev/null | openssl x509 -outform DER | base64 -w0"
    ))
}

fn encoded(der: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(der)
}

fn passed_through(net: &Net) -> Case {
    let host = "plain.example";
    let site = net.site(host, How::default(), echo())?;
    net.allow(&["plain.example:443"])?;
    ensure(shown(net, host)? == encoded(&site.certificate), "the guest sees the server's own certificate")?;
    let said = net.guest_ok(&format!("{CURL} -d body https://{host}/a/b"))?;
    ensure(said == "POST /a/b HTTP/2.0\nbody\n2 200", said)?;
    let said = net.guest_ok(&format!("{CURL} --http1.1 https://{host}/a/b"))?;
    ensure(said == "GET /a/b HTTP/1.1\n\n1.1 200", said)
}

fn by_method(net: &Net) -> Case {
    let host = "inspected.example";
    let site = net.site(host, How::default(), echo())?;
    net.allow(&["--method", "GET", "--path", "/open/**", "inspected.example:443"])?;
    ensure(shown(net, host)? != encoded(&site.certificate), "the connection is looked into")?;
    for (flag, version) in [("--http2", "2"), ("--http1.1", "1.1")] {
        let said = net.guest_ok(&format!("{CURL} {flag} 'https://{host}/open/a?b=c'"))?;
        ensure(said.starts_with("GET /open/a HTTP/") && said.ends_with(&format!("{version} 200")), said)?;
        let said = net.guest_ok(&format!("{CURL} {flag} -d data https://{host}/open/a"))?;
        let (body, status) = said.rsplit_once('\n').unwrap_or_default();
        ensure(status == format!("{version} 403"), &said)?;
        let body: Value = serde_json::from_str(body)?;
        let text = body.to_string();
        ensure(text.contains(host) && text.contains("viv policy allow") && text.contains("POST"), text)?;
    }
    let seen = site.seen();
    ensure(
        seen.len() == 2
            && seen.iter().all(|one| one.method == Method::GET && one.target.query() == Some("b=c")),
        format!("{seen:?}"),
    )?;
    ensure(seen.iter().any(|one| one.version == Version::HTTP_2), format!("HTTP/2 upstream: {seen:?}"))?;
    // Both are in the log, with what came of them.
    net.recorded(host, "a request let through", |record| {
        record["method"] == "GET" && record["status"] == 200
    })?;
    net.recorded(host, "a request refused", |record| record["method"] == "POST" && record["status"] == 403)?;
    // A path that was not tried yet: the same is told once.
    let post = format!("curl -sS -m 60 -d data https://{host}/told");
    let hint = net.told(&post, "POST inspected.example/told  (")?;
    let rule = "inspected.example:443 --method POST --path /told";
    ensure(hint.contains(&format!("allow: viv policy allow --sandbox {NAME} {rule}")), hint)
}

fn by_path(net: &Net) -> Case {
    let host = "paths.example";
    let site = net.site(host, How::default(), echo())?;
    net.allow(&["paths.example:443"])?;
    net.deny(&["--path", "/closed/**", "paths.example:443"])?;
    // One connection, several requests.
    let said = net.guest_ok(&format!(
        "curl -sS -m 60 -o /dev/null -o /dev/null -o /dev/null -w '%{{http_code}} %{{num_connects}}\\n' \
         https://{host}/open https://{host}/closed/x https://{host}/%63losed/y https://{host}/open/again -o /dev/null"
    ))?;
    ensure(said == "200 1\n403 0\n403 0\n200 0", said)?;
    let paths: Vec<String> = site.seen().iter().map(|one| one.target.path().to_owned()).collect();
    ensure(paths == ["/open", "/open/again"], format!("{paths:?}"))
}

fn no_rule(net: &Net) -> Case {
    let host = "unknown.example";
    let site = net.site(host, How::default(), echo())?;
    let said = net.guest(&format!("curl -sS -m 60 https://{host}/; echo $?"))?;
    ensure(said.text() == "6", format!("{said:?}"))?;
    ensure(net.names.asked(host) == 0, "the name server was asked")?;
    ensure(site.connections() == 0, "the server was connected to")
}
