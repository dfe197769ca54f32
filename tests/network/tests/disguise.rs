//! Connections and requests that say to be for another host than they go to.

use e2e::{Case, Verdict, ensure};
use network::{How, Named, Net, Wire, echo, repeats, to_heads};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("a_hello_for_no_name_or_another_goes_nowhere", hellos),
    ("a_hello_that_hides_its_name_is_looked_into", encrypted),
    ("fronting_is_misdirected", fronting),
    ("connect_and_foreign_targets_lead_nowhere", targets),
];

/// Hellos that are for the flow's name, however they are written, and what the server's answer begins with.
const GOOD: [(&str, &str); 4] = [
    ("good", "\u{16}\u{3}"),
    ("bytewise", "\u{16}\u{3}"),
    ("record-bytes", "\u{16}\u{3}"),
    ("capitals", "\u{16}\u{3}"),
];

/// Hellos that are not, and what the log says of them.
const BAD: [(&str, &str); 13] = [
    ("other", "other.hello.example"),
    ("unknown", "escape-name.example"),
    ("none", "SNI"),
    ("address", "SNI"),
    ("two-names", "begins wrong"),
    ("twice", "begins wrong"),
    ("odd-name", "begins wrong"),
    ("empty-name", "begins wrong"),
    ("oversized", "begins wrong"),
    ("alert-first", "before the ClientHello"),
    ("spec-first", "before the ClientHello"),
    ("damaged", "begins wrong"),
    // Nobody speaks it any more, but servers may still take it.
    ("sslv2", "SSL 2.0"),
];

fn hellos(net: &Net) -> Case {
    let (host, port) = ("hello.example", 443);
    let plain = How { port: Some(port), alpn: &[], six: false };
    let raw = net.raw(host, plain, repeats())?;
    // The other name is allowed, too, and served at another address.
    let other = net.raw("other.hello.example", plain, repeats())?;
    net.allow(&["hello.example:443"])?;
    net.allow(&["other.hello.example:443"])?;
    let say = |hello: &str, enough: Option<&str>| {
        let mut said = json!({ "to": [host, port], "hello": hello, "server": host });
        match enough {
            Some(enough) => said["enough"] = enough.into(),
            // It is never whole: nothing comes, until the guest gives up.
            None if hello == "cut" => said["patience"] = 1.into(),
            None => {}
        }
        said
    };
    let wire = Wire::tap()?;
    let mut all: Vec<Value> = GOOD.map(|(hello, enough)| say(hello, Some(enough))).into();
    all.extend(BAD.map(|(hello, _)| say(hello, None)));
    all.push(say("cut", None));
    let spoken = net.speak(&all)?;
    let mut count = 0;
    e2e::eventually("a record of each", || {
        let records = net.records(host).unwrap_or_default();
        let refused =
            records.iter().filter(|record| record["kind"] == "Tls" && record["decision"] == "Refused");
        count = refused.filter_map(|record| record["count"].as_u64()).sum();
        count == BAD.len() as u64 + 1
    })
    .map_err(|_| Verdict::Wrong(format!("{count} are in the log: {:?}", net.records(host))))?;
    let heard = raw.heard();
    ensure(heard.len() == all.len(), format!("{} connections of {}", heard.len(), all.len()))?;
    let names = GOOD.iter().chain(&BAD).map(|(hello, _)| *hello).chain(["cut"]);
    for ((name, spoken), heard) in names.zip(&spoken).zip(&heard) {
        let good = GOOD.iter().any(|(good, _)| *good == name);
        let end = if good {
            "enough"
        } else if name == "cut" {
            "silence"
        } else {
            "reset"
        };
        ensure(spoken.end == end, format!("{name}: {spoken:?}"))?;
        ensure(heard.is_empty() != good, format!("{name}: the server heard {heard:?}"))?;
        ensure(good || spoken.heard.is_empty(), format!("{name}: {spoken:?}"))?;
    }
    ensure(other.connections() == 0, "the other name's server was connected to")?;
    let frames = wire.frames()?;
    ensure(!frames.have("escape-") && !frames.have("control-suites"), "a hello is on the wire")?;
    for (name, text) in BAD {
        net.recorded(host, name, |record| {
            record["kind"] == "Tls"
                && record["decision"] == "Refused"
                && record["text"].as_str().is_some_and(|said| said.contains(text))
        })?;
    }
    Ok(())
}

fn encrypted(net: &Net) -> Case {
    let host = "hidden.example";
    let site = net.site(host, How::default(), echo())?;
    net.allow(&["hidden.example:443"])?;
    let wire = Wire::tap()?;
    let say =
        |hello: &str| json!({ "to": [host, 443], "hello": hello, "server": host, "enough": "\u{16}\u{3}" });
    let spoken = net.speak(&[say("encrypted"), say("encrypted-other")])?;
    // The outer name is the flow's: the handshake is the gateway's own from there on, and the hidden one counts for nothing.
    ensure(spoken.iter().map(|one| one.end.as_str()).eq(["enough", "reset"]), format!("{spoken:?}"))?;
    ensure(!wire.frames()?.have("escape-encrypted"), "the hidden hello is on the wire")?;
    ensure(
        site.connections() == 2 && site.seen().is_empty(),
        format!("{} {:?}", site.connections(), site.seen()),
    )?;
    net.recorded(host, "the other name", |record| {
        record["decision"] == "Refused" && record.to_string().contains("other.hidden.example")
    })?;
    // The server itself, without: its own certificate is what the guest sees.
    let said = net.guest_ok(&format!("curl -sS -m 60 https://{host}/"))?;
    ensure(said == "GET / HTTP/2.0", said)
}

fn fronting(net: &Net) -> Case {
    let (front, behind, plain) = ("front.example", "behind.example", "plainfront.example");
    let site = net.site(front, How::default(), echo())?;
    let other = net.site(behind, How::default(), echo())?;
    let clear = net.site(plain, How { alpn: &[], ..How::default() }, echo())?;
    net.allow(&["--path", "/open/**", "front.example:443"])?;
    net.allow(&["behind.example:443"])?;
    net.allow(&["plainfront.example:80"])?;
    let code = "curl -sS -m 60 -o /dev/null -w '%{http_code} '";
    let host = format!("-H 'Host: {behind}'");
    let said = net.guest(&format!(
        "{code} --http1.1 https://{front}/open/a; {code} --http2 https://{front}/open/a; {code} http://{plain}/a; \
         {code} --http1.1 {host} https://{front}/open/escape; {code} --http2 {host} https://{front}/open/escape; \
         {code} {host} http://{plain}/escape; {code} -H 'Host: {front}' http://{plain}/escape; \
         {code} --connect-to {behind}:443:{front}:443 https://{behind}/open/escape; echo $?"
    ))?;
    // The last one asks in its handshake for a name that is allowed, on the other one's flow.
    ensure(said.text() == "200 200 200 421 421 421 421 000 35", format!("{said:?}"))?;
    for (name, site, requests) in [(front, &site, 2), (behind, &other, 0), (plain, &clear, 1)] {
        let seen = site.seen();
        ensure(seen.len() == requests, format!("{name}: {seen:?}"))?;
        ensure(!format!("{seen:?}").contains("escape"), format!("{name}: {seen:?}"))?;
    }
    ensure(other.connections() == 0, "the host behind was connected to")?;
    for host in [front, plain] {
        net.recorded(host, "the misdirected request", |record| {
            record["kind"] == "Request"
                && record["decision"] == "Refused"
                && record["status"] == 421
                && record["text"].as_str().is_some_and(|text| text.contains(behind))
        })?;
    }
    net.recorded(front, "the other name's handshake", |record| {
        record["decision"] == "Refused" && record["status"].is_null() && record.to_string().contains(behind)
    })
    .map(|_| ())
}

/// The lines of a request, and the status that comes of it.
const TARGETS: [(&str, u16); 20] = [
    ("GET /open/a HTTP/1.1\r\nHost: target.example", 200),
    ("GET http://target.example/open/b HTTP/1.1\r\nHost: target.example", 200),
    ("GET HTTP://TARGET.EXAMPLE:80/open/c HTTP/1.1\r\nHost: target.example", 200),
    ("CONNECT behind.example:443 HTTP/1.1\r\nHost: behind.example:443", 405),
    ("CONNECT target.example:80 HTTP/1.1\r\nHost: target.example", 405),
    ("CONNECT 10.1.2.3:22 HTTP/1.1\r\nHost: target.example", 405),
    ("GET http://behind.example/open/escape HTTP/1.1\r\nHost: target.example", 421),
    ("GET http://target.example/open/escape HTTP/1.1\r\nHost: behind.example", 421),
    ("GET https://target.example/open/escape HTTP/1.1\r\nHost: target.example", 421),
    ("GET http://target.example:81/open/escape HTTP/1.1\r\nHost: target.example:81", 421),
    ("GET http://target.example@behind.example/open/escape HTTP/1.1\r\nHost: target.example", 400),
    ("GET /open/escape HTTP/1.1\r\nHost: target.example\r\nHost: behind.example", 400),
    ("GET /open/escape HTTP/1.1\r\nHost: target.example, behind.example", 400),
    ("GET /open/escape HTTP/1.1\r\nX-Host: target.example", 400),
    ("OPTIONS * HTTP/1.1\r\nHost: target.example", 400),
    ("GET http://target.example/closed/escape HTTP/1.1\r\nHost: target.example", 403),
    ("GET /open/../closed/escape HTTP/1.1\r\nHost: target.example", 400),
    ("GET /open/%2e%2e/closed/escape HTTP/1.1\r\nHost: target.example", 400),
    ("GET /open/..%2fclosed/escape HTTP/1.1\r\nHost: target.example", 400),
    ("GET /open/a HTTP/1.1\r\nHost: target.example\r\nX-Original-URL: /closed/escape", 403),
];

fn targets(net: &Net) -> Case {
    let (host, passed) = ("target.example", "proxylike.example");
    let ok = || to_heads(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let raw = net.raw(host, How { alpn: &[], ..How::default() }, ok())?;
    // A port on which nothing is looked into: somebody could wait there who connects on.
    let proxy = net.raw(passed, How { port: Some(3128), alpn: &[], six: false }, ok())?;
    net.allow(&["--path", "/open/**", "target.example:80"])?;
    net.allow(&["proxylike.example:3128"])?;
    let say = |host: &str, port: u16, lines: &str| json!({ "to": [host, port], "say": [format!("{lines}\r\nConnection: close\r\n\r\n")] });
    let mut all: Vec<Value> = TARGETS.map(|(lines, _)| say(host, 80, lines)).into();
    all.push(say(passed, 3128, "GET /a HTTP/1.1\r\nHost: proxylike.example:3128"));
    all.push(say(passed, 3128, "CONNECT escape.example:443 HTTP/1.1\r\nHost: escape.example:443"));
    all.push(say(passed, 3128, "GET http://escape.example/ HTTP/1.1\r\nHost: escape.example"));
    let spoken = net.speak(&all)?;
    let expected = TARGETS.iter().map(|(lines, status)| (*lines, *status));
    let others = [("a plain request", 200), ("CONNECT", 405), ("an absolute URI", 421)];
    for ((lines, status), spoken) in expected.chain(others).zip(&spoken) {
        ensure(spoken.statuses() == [status], format!("{lines}: {spoken:?}"))?;
    }
    let (heard, passed_on) = (raw.text(), proxy.text());
    let lines: Vec<&str> = heard.lines().filter(|line| line.ends_with("HTTP/1.1")).collect();
    ensure(lines == ["GET /open/a HTTP/1.1", "GET /open/b HTTP/1.1", "GET /open/c HTTP/1.1"], &heard)?;
    ensure(passed_on.starts_with("GET /a HTTP/1.1") && !passed_on.contains("escape"), passed_on)?;
    for (host, status) in [(host, 405), (host, 421), (host, 403), (passed, 405), (passed, 421)] {
        net.recorded(host, "the refused target", |record| {
            record["decision"] == "Refused" && record["status"] == status
        })?;
    }
    Ok(())
}
