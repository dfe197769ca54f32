//! Floods from the guest's root. What they cost is bounded, each decision is counted, and afterwards the guest's own traffic goes on.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use e2e::{Case, Verdict, ensure};
use network::{How, Named, Net, SILENT, Wire, echo, listens};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("a_hundred_thousand_half_open_flows_are_bounded_and_counted", half_open),
    ("a_flood_of_questions_is_bounded_and_counted", questions),
    ("slow_senders_hold_up_nobody", slow),
];

const CLEAR: How<'static> = How { port: None, alpn: &[], six: false };

/// How often an ordinary request may find all places taken: each time the guest's kernel tries again, for both families.
const ATTEMPTS: u64 = 16;

/// The sum of what these records count.
fn sum(records: &[Value]) -> u64 {
    records.iter().filter_map(|record| record["count"].as_u64()).sum()
}

/// Records that came after those of before: how often a limit was hit belongs to the sandbox, not to a name.
fn fresh(net: &Net, after: u64) -> Result<Vec<Value>, Verdict> {
    let mut log = net.log()?;
    log.retain(|record| record["seq"].as_u64().is_some_and(|seq| seq > after));
    Ok(log)
}

fn last(net: &Net) -> Result<u64, Verdict> {
    Ok(net.log()?.iter().filter_map(|record| record["seq"].as_u64()).max().unwrap_or(0))
}

/// Waits until as many were counted as were sent; the records.
fn counted(net: &Net, after: u64, sent: u64, is_one: impl Fn(&Value) -> bool) -> Result<Vec<Value>, Verdict> {
    counted_with(net, after, sent, 0, is_one)
}

/// As [`counted`], where so many of the guest's ordinary attempts may have been counted beside those.
fn counted_with(
    net: &Net,
    after: u64,
    sent: u64,
    beside: u64,
    is_one: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>, Verdict> {
    let mut records = Vec::new();
    e2e::eventually("a record of each", || {
        records = fresh(net, after).unwrap_or_default();
        records.retain(&is_one);
        sum(&records) >= sent
    })
    .map_err(|_| Verdict::Wrong(format!("{} of {sent} are counted: {records:#?}", sum(&records))))?;
    ensure(
        (sent..=sent + beside).contains(&sum(&records)),
        format!("{} of {sent} are counted: {records:#?}", sum(&records)),
    )?;
    Ok(records)
}

/// An ordinary request, which must work now or soon: a program that is refused, and a kernel that gets no answer, try again.
fn ordinary(net: &Net, host: &str) -> Case {
    let retry = "--connect-timeout 100 --retry 60 --retry-delay 1 --retry-connrefused";
    let said = net.guest(&format!("curl -s -m 100 {retry} http://{host}/"))?;
    ensure(said.text() == "GET / HTTP/1.1", format!("{host}: {said:?}"))
}

fn half_open(net: &Net) -> Case {
    // This side has an end of each connection.
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most.map(|most| most.min(65536)), maximum: most });
    let (answers, too, silent) = ("answers.flood.example", "too.flood.example", "silent.flood.example");
    let raw = net.raw(answers, How { port: Some(7000), alpn: &[], six: false }, listens())?;
    net.names.addresses(too, &[raw.address.ip()]);
    let [a, b, c, _] = SILENT.0.octets();
    net.names.addresses(silent, &[IpAddr::V4(Ipv4Addr::new(a, b, c, 9))]);
    let other = net.site("beside.flood.example", CLEAR, echo())?;
    net.allow(&["*.flood.example:7000"])?;
    net.allow(&["beside.flood.example:80"])?;
    ordinary(net, &other.name)?;
    let (gateway, after) = (net.gateway()?, last(net)?);
    let begun = Instant::now();
    let said = net.attacked("flood.py", &["syn", "90000", "7000", answers, too])?;
    ensure(said == json!({ "sent": 90_000 }), said.to_string())?;
    let held = net.gateway()?;
    eprintln!("half-open: {gateway:?}, then {held:?}, {} connections upstream", raw.connections());
    // `netstack::Limits::tcp_flows`, and what is not of the flood: datagrams to the name server.
    ensure(held.flows < 4096 + 16, format!("{held:?}"))?;
    // What is half open for a minute is given up, and its place is free again.
    let most = 4096 * (1 + begun.elapsed().as_secs() as usize / 60);
    ensure((1..=most).contains(&raw.connections()), format!("{} connections", raw.connections()))?;
    ordinary(net, &other.name)?;
    // Each SYN is in the log once: by its name's decision, or by the limit that it met.
    let is_one = |record: &Value| {
        let ours = record["host"].as_str().is_some_and(|host| [answers, too, silent].contains(&host));
        let limit = record["text"].as_str().is_some_and(|text| text.contains("too many TCP connections"));
        ours && record["kind"] != "Dns" && record["kind"] != "Ended" || record["kind"] == "Limit" && limit
    };
    let records = counted_with(net, after, 90_000, ATTEMPTS, is_one)?;
    ensure(records.iter().any(|record| record["kind"] == "Limit"), format!("{records:#?}"))?;
    let opened: Vec<Value> = records.into_iter().filter(|record| record["decision"] == "Allowed").collect();
    ensure(
        sum(&opened) == raw.connections() as u64,
        format!("{} connections: {opened:#?}", raw.connections()),
    )?;
    ensure(raw.text().is_empty(), "something was said")?;
    // Towards a server that never answers each waits for it, until a rule ends that.
    let said = net.attacked("flood.py", &["syn", "10000", "7000", silent])?;
    ensure(said == json!({ "sent": 10_000 }), said.to_string())?;
    net.forget("*.flood.example:7000")?;
    ordinary(net, &other.name)?;
    ensure(other.connections() >= 3, "the ordinary requests did not reach their server")?;
    counted_with(net, after, 100_000, 2 * ATTEMPTS, is_one)?;
    e2e::eventually("the flows end", || net.gateway().is_ok_and(|now| now.flows < 16))
        .map_err(|_| Verdict::Wrong(format!("{:?}", net.gateway())))?;
    gateway.holds(net)
}

fn questions(net: &Net) -> Case {
    let other = net.site("beside.deluge.example", CLEAR, echo())?;
    net.allow(&["beside.deluge.example:80"])?;
    ordinary(net, &other.name)?;
    let (gateway, after) = (net.gateway()?, last(net)?);
    let wire = Wire::tap()?;
    let begun = Instant::now();
    let said = net.attacked("flood.py", &["questions", "20000", "deluge.example"])?;
    ensure(said["sent"] == 20_000, said.to_string())?;
    ordinary(net, &other.name)?;
    // Refused one by one, folded by their zone, or dropped by a limit.
    let is_one = |record: &Value| match record["kind"].as_str() {
        Some("Dns") => {
            record["host"].as_str().is_some_and(|host| host.ends_with("deluge.example"))
                && record["decision"] == "Refused"
        }
        // Limits, too, fold where there are too many different records.
        Some("Limit") => {
            ["DNS", "**"].iter().any(|host| record["host"] == *host)
                || record.to_string().contains("datagrams")
        }
        _ => false,
    };
    let records = counted(net, after, 20_000, is_one)?;
    // How many different ones a log has to hold is bounded: a thousand and 200 more each second.
    let most = 1100 + 210 * (1 + begun.elapsed().as_secs() as usize);
    ensure(records.len() < most, format!("{} records", records.len()))?;
    let asked = net.names.questions();
    let asked: Vec<_> = asked.iter().filter(|(name, _)| name.ends_with("deluge.example")).collect();
    ensure(asked.iter().all(|(name, _)| *name == other.name) && !asked.is_empty(), format!("{asked:?}"))?;
    let frames = wire.frames()?;
    ensure(frames.have("\u{6}beside") && !frames.have("\u{9}esc"), "a question is on the wire")?;
    ensure(other.connections() >= 2, "the ordinary requests did not reach their server")?;
    gateway.holds(net)
}

fn slow(net: &Net) -> Case {
    let host = "slow.example";
    let other = net.site("quick.example", CLEAR, echo())?;
    let mut servers = Vec::new();
    for port in [80, 443, 7] {
        servers.push(net.raw(host, How { port: Some(port), alpn: &[], six: false }, listens())?);
    }
    // One name, three servers: each port is served at one of the addresses.
    let addresses: Vec<IpAddr> = servers.iter().map(|raw| raw.address.ip()).collect();
    net.names.addresses(host, &addresses);
    // Looked into; looked into under TLS; passed through, once it is known what for.
    net.allow(&["--path", "/open/**", "slow.example:80"])?;
    net.allow(&["--path", "/open/**", "slow.example:443"])?;
    net.allow(&["slow.example:7"])?;
    net.allow(&["quick.example:80"])?;
    ordinary(net, &other.name)?;
    let (gateway, after) = (net.gateway()?, last(net)?);
    let said = net.attacked("flood.py", &["slow", "150", host, &other.name])?;
    // All were held at once, and none of the others waited for them. Questions by TCP have a limit of their own; a connection that is
    // silent for ten seconds makes room.
    let questions = said["questions"].as_u64().unwrap_or(0);
    ensure(said["held"] == 450 && (64..80).contains(&questions), said.to_string())?;
    ensure(said["statuses"] == json!([200, 200, 200]), said.to_string())?;
    for raw in &servers {
        ensure(
            raw.connections() == 150 && raw.text().is_empty(),
            format!("{}: {}", raw.address, raw.connections()),
        )?;
    }
    let is_one = |record: &Value| record["kind"] == "Limit" && record.to_string().contains("DNS connections");
    counted(net, after, 80 - questions, is_one)?;
    ordinary(net, &other.name)?;
    // When their ends are gone, so are they.
    e2e::eventually("the flows end", || net.gateway().is_ok_and(|now| now.flows < 16))
        .map_err(|_| Verdict::Wrong(format!("{:?}", net.gateway())))?;
    gateway.holds(net)
}
