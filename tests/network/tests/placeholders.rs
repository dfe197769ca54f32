//! Games around a placeholder: other cases, duplicates, disguises, pieces, compression. The value goes to its host in its field and
//! nowhere else, and what comes back of it is the placeholder.

use std::io::Write as _;
use std::sync::Arc;

use e2e::{Case, Verdict, ensure};
use flate2::write::GzEncoder;
use network::{Answers, How, Named, Net, Raw, to_heads};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("fields_that_repeat_or_disguise_a_placeholder_get_no_value", fields),
    ("pieces_and_chunk_borders_hide_no_placeholder", pieces),
    ("what_is_compressed_carries_no_value", compressed),
];

const TLS: How<'static> = How { port: None, alpn: &["http/1.1"], six: false };
const VALUE: &str = "value-in-a-game-of-headers";

/// Answers a request when all of it is there.
fn ok() -> Answers {
    Arc::new(|heard| {
        let whole = if heard.starts_with(b"POST") { &b"\r\n0\r\n\r\n"[..] } else { b"\r\n\r\n" };
        heard.ends_with(whole).then(|| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec())
    })
}

/// A host that a secret is bound to, and one that it is not; both are looked into.
fn hosts(net: &Net, name: &str, answers: Answers) -> Result<(String, Raw, String, Raw), Verdict> {
    let (bound, other) = (format!("bound.{name}.example"), format!("other.{name}.example"));
    let (own, trap) = (net.raw(&bound, TLS, answers)?, net.raw(&other, TLS, ok())?);
    net.allow(&["--path", "/**", &format!("{bound}:443")])?;
    net.allow(&["--path", "/**", &format!("{other}:443")])?;
    net.keep(name, &bound, &name.to_uppercase(), VALUE)?;
    Ok((bound, own, other, trap))
}

/// One request on a connection of its own.
fn say(host: &str, request: &str) -> Value {
    let request = request.replacen("HOST", host, 1);
    json!({ "to": [host, 443], "tls": host, "say": [format!("{request}\r\nConnection: close\r\n\r\n")] })
}

/// The same with a body: more fields, and what follows the head.
fn post(host: &str, fields: &str, body: &str) -> Value {
    let head = format!("POST /a HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n\r\n");
    json!({ "to": [host, 443], "tls": host, "say": [format!("{head}{body}\r\n\r\n")] })
}

/// Fields with the placeholder `P`, and what becomes of the request: a status, and whether the value goes out.
const FIELDS: [(&str, u16, bool); 14] = [
    ("Authorization: Bearer P", 200, true),
    ("aUTHORIZATION: bEARER P", 200, true),
    ("Authorization:\tBearer \t P", 200, true),
    ("Authorization: Bearer P\r\nAuthorization: Bearer P", 403, false),
    ("Authorization: Bearer P\r\nauthorization: Bearer mine", 403, false),
    ("AUTHORIZATION: Bearer mine\r\nAuthorization: Bearer P", 403, false),
    ("Authorization: Bearer P, Bearer mine", 400, false),
    ("Authorization: Bearer P\r\nX-Api-Key: mine", 403, false),
    ("Authorization : Bearer P", 400, false),
    ("Authorization: Bearer\r\n P", 400, false),
    ("Authorization: Bearer P\r\nAuthorization\0: x", 400, false),
    ("Authorization: Bearer P\rX-A: b", 400, false),
    // Unless a secret says in which field it goes, each single one will do.
    ("X-Authorization: P", 200, true),
    ("X-A: P\r\nx-a: P", 403, false),
];

fn fields(net: &Net) -> Case {
    let (bound, own, other, trap) = hosts(net, "games", ok())?;
    let request =
        |fields: &str| format!("GET /a HTTP/1.1\r\nHost: HOST\r\n{}", fields.replace('P', "HOLDER[GAMES]"));
    // `P` stands in no other word of these.
    let mut all: Vec<Value> = FIELDS.map(|(fields, ..)| say(&bound, &request(fields))).into();
    // The same towards another host: none of it passes, but for the two that are no requests.
    all.extend(FIELDS.map(|(fields, ..)| say(&other, &request(fields))));
    // In the target, as it is and in disguise; in the name of a field.
    for target in ["/HOLDER[GAMES]", "/a?b=HOLDER[GAMES]", "/a?HOLDER[GAMES]=b"] {
        all.push(say(&other, &format!("GET {target} HTTP/1.1\r\nHost: HOST")));
    }
    all.push(say(&other, "GET /control HTTP/1.1\r\nHost: HOST"));
    let spoken = net.speak(&all);
    net.viv_ok(&["secret", "rm", "-f", "games"])?;
    let spoken = spoken?;
    let mut sent = 0;
    for ((fields, status, goes_out), spoken) in FIELDS.iter().zip(&spoken) {
        ensure(spoken.statuses() == [*status], format!("{fields}: {spoken:?}"))?;
        sent += usize::from(*goes_out);
    }
    let heard = own.text();
    ensure(heard.matches(VALUE).count() == sent, format!("{sent} of: {heard}"))?;
    let lines = heard.lines().filter(|line| line.contains(VALUE));
    let fields = ["authorization:", "x-authorization:"];
    let is_field = |line: &str| fields.iter().any(|field| line.to_ascii_lowercase().starts_with(field));
    ensure(lines.clone().count() == sent && lines.clone().all(is_field), &heard)?;
    ensure(!heard.contains("mine"), &heard)?;
    let rest = spoken.get(FIELDS.len()..).unwrap_or_default();
    let (last, refused) = rest.split_last().ok_or_else(|| Verdict::Wrong("nothing was said".into()))?;
    for spoken in refused {
        let got = spoken.statuses();
        ensure(got == [403] || got == [400], format!("{spoken:?}"))?;
    }
    ensure(last.statuses() == [200], format!("{last:?}"))?;
    let heard = trap.text();
    let lines: Vec<&str> = heard.lines().filter(|line| line.ends_with("HTTP/1.1")).collect();
    ensure(lines == ["GET /control HTTP/1.1"], &heard)?;
    net.recorded(&other, "an attempt to get it out", |record| {
        record["kind"] == "Exfiltration" && record["decision"] == "Refused" && record["status"] == 403
    })?;
    net.recorded(&bound, "a request with the value", |record| {
        record["decision"] == "Allowed" && record["text"].as_str().is_some_and(|text| text.contains("games"))
    })?;
    let log = format!("{:?}", net.log()?);
    ensure(!log.contains(VALUE), "the value is in the log")
}

fn pieces(net: &Net) -> Case {
    let (bound, own, other, trap) = hosts(net, "pieces", ok())?;
    let coding = "Transfer-Encoding: chunked";
    let chunked = |host: &str, size: u32| post(host, coding, &format!("CHUNKS[{size}:x HOLDER[PIECES] x]0"));
    let mut all: Vec<Value> = [1, 2, 7, 19, 1000].map(|size| chunked(&other, size)).into();
    // In a trailer, behind a body that is whole; and in a body that comes in two parts.
    all.push(post(&other, &format!("{coding}\r\nTrailer: X-A"), "1\r\nx\r\n0\r\nX-A: HOLDER[PIECES]"));
    let head =
        format!("POST /a HTTP/1.1\r\nHost: {other}\r\nConnection: close\r\nContent-Length: 4000\r\n\r\n");
    let parts = [format!("{head}{}", "x".repeat(3000)), format!("HOLDER[PIECES]{}", "x".repeat(1000))];
    let [first, second] = parts;
    all.push(json!({ "to": [other, 443], "tls": other, "say": [first, { "pause": 0.2 }, second] }));
    // To its own host a body goes as it is: a body is no place for the value.
    all.push(chunked(&bound, 7));
    let spoken = net.speak(&all);
    net.viv_ok(&["secret", "rm", "-f", "pieces"])?;
    let spoken = spoken?;
    let (last, refused) = spoken.split_last().ok_or_else(|| Verdict::Wrong("nothing was said".into()))?;
    for spoken in refused {
        ensure(spoken.statuses() == [403], format!("{spoken:?}"))?;
    }
    ensure(last.statuses() == [200], format!("{last:?}"))?;
    // What went on before it was found is no whole request, and has no placeholder in it.
    for heard in trap.heard() {
        let heard = String::from_utf8_lossy(&heard);
        ensure(!heard.contains(VALUE) && !heard.ends_with("\r\n0\r\n\r\n"), heard)?;
    }
    ensure(!own.text().contains(VALUE) && own.text().starts_with("POST /a HTTP/1.1"), own.text())?;
    let mut found = 0;
    e2e::eventually("each attempt in the log", || {
        let records = net.records(&other).unwrap_or_default();
        let counts = records.iter().filter(|record| record["kind"] == "Exfiltration");
        found = counts.filter_map(|record| record["count"].as_u64()).sum();
        found == refused.len() as u64
    })
    .map_err(|_| Verdict::Wrong(format!("{found} of {} attempts are in the log", refused.len())))
}

/// Says what it was shown, compressed if the client would have it so.
fn echoing() -> Answers {
    to_heads(|head| {
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(':'));
            fields
                .find(|(other, _)| other.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().to_owned())
        };
        let text = format!("you said {}", field("authorization").unwrap_or_default());
        let compress = field("accept-encoding").is_some_and(|codings| codings.contains("gzip"));
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        let body = match compress.then(|| encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()))
        {
            Some(Ok(packed)) => packed,
            _ => text.into_bytes(),
        };
        let coding = if compress { "Content-Encoding: gzip\r\n" } else { "" };
        let mut answer =
            format!("HTTP/1.1 200 OK\r\n{coding}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend(body);
        answer
    })
}

fn compressed(net: &Net) -> Case {
    let (bound, own, other, trap) = hosts(net, "packed", echoing())?;
    let packed = |host: &str| {
        post(host, "Content-Encoding: gzip\r\nTransfer-Encoding: chunked", "GZIP[HOLDER[PACKED]]0")
    };
    // Nobody looks into what is compressed: it passes, and is worth nothing.
    let spoken = net.speak(&[packed(&other), packed(&bound)]);
    // The host itself says the value back, as compressed as it was asked to.
    let ask = "curl -sS -m 60 -H \"Authorization: Bearer $PACKED\"";
    let said = net.guest(&format!(
        "echo $PACKED; {ask} --compressed https://{bound}/; echo; {ask} -H 'Accept-Encoding: gzip' https://{bound}/ | (zcat -f || cat); echo; \
         {ask} -H 'ACCEPT-encoding: br;q=0' -H 'accept-ENCODING: gzip;q=1, *' https://{bound}/ | (zcat -f || cat)"
    ));
    net.viv_ok(&["secret", "rm", "-f", "packed"])?;
    let (spoken, said) = (spoken?, said?.text());
    ensure(spoken.iter().all(|one| one.statuses() == [200]), format!("{spoken:?}"))?;
    ensure(!trap.text().contains(VALUE) && trap.text().contains("gzip"), trap.text())?;
    let heard = own.text();
    ensure(heard.matches(&format!("Bearer {VALUE}")).count() == 3, heard)?;
    let (placeholder, answers) = said.split_once('\n').unwrap_or_default();
    ensure(placeholder.len() > 8 && answers.lines().count() == 3 && !said.contains(VALUE), &said)?;
    ensure(answers.lines().all(|line| line.starts_with("you said Bearer ")), said)
}
