//! What carries data where there is no connection: questions for names, datagrams; and addresses that look like something else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use e2e::{Case, Verdict, ensure};
use network::{Answer, How, NAME_SERVER, Named, Net, Wire, datagrams, echo, wrong};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("a_dns_tunnel_carries_nothing", dns),
    ("a_udp_tunnel_carries_nothing", udp),
    ("an_address_in_disguise_is_that_address", disguised),
    ("a_guarded_address_among_others_is_left_out", mixed),
];

const PLAIN: How<'static> = How { port: Some(8088), alpn: &[], six: false };

fn dns(net: &Net) -> Case {
    let host = "control-made.zone.example";
    let site = net.site(host, PLAIN, echo())?;
    net.allow(&["*.zone.example:8088"])?;
    let wire = Wire::tap()?;
    let server = NAME_SERVER.to_string();
    let said = net.attacked("names.py", &["dns", "tunnel.example", "zone.example", &server])?;
    // NXDOMAIN, whatever was asked of whom; REFUSED for a transfer, NOTIMP for what is no question.
    ensure(said["refused"] == json!([[3, 0, null]]), said.to_string())?;
    ensure(said["odd"] == json!([5, 4, 4]), said.to_string())?;
    // A name that may be asked for has an address of the gateway's making, and no data.
    ensure(said["address"].as_str().is_some_and(|address| address.starts_with("198.18.")), said.to_string())?;
    ensure(said["others"] == json!([[0, 0]]), said.to_string())?;
    let ends = said["elsewhere"].as_array().cloned().unwrap_or_default();
    ensure(ends.len() == 5 && ends.iter().all(|end| end == "ConnectionRefusedError"), said.to_string())?;
    let questions = net.names.questions();
    let asked =
        questions.iter().filter(|(name, _)| name.contains("escape") || name.ends_with("tunnel.example"));
    ensure(asked.count() == 0, "the name server was asked")?;
    ensure(!wire.frames()?.have("escape-"), "a question is on the wire")?;
    // A connection does make a question: the tap and the server see it.
    let said = net.guest(&format!("curl -sS -m 60 http://{host}:8088/"))?;
    ensure(said.text() == "GET / HTTP/1.1" && (1..=2).contains(&site.connections()), format!("{said:?}"))?;
    ensure(net.names.asked(host) > 0 && wire.frames()?.have("control-made"), "the control made no question")?;
    // Four servers, UDP and TCP, ten questions each; the three odd ones are answered without a look at the name.
    let mut records = Vec::new();
    e2e::eventually("all questions in the log", || {
        records = net.log().unwrap_or_default();
        records.retain(|record| record["host"].as_str().is_some_and(|host| host.ends_with("tunnel.example")));
        records.iter().filter_map(|record| record["count"].as_u64()).sum::<u64>() == 4 * 2 * 10
    })
    .map_err(|_| Verdict::Wrong(format!("{records:?}")))?;
    let refused = |record: &Value| record["kind"] == "Dns" && record["decision"] == "Refused";
    ensure(records.iter().all(refused), format!("{records:?}"))
}

fn udp(net: &Net) -> Case {
    let (allowed, refused) = ("datagrams-allowed.example", "datagrams-refused.example");
    let (good, trap) = (net.address(false), net.address(false));
    net.names.addresses(allowed, &[good]);
    net.names.addresses(refused, &[trap]);
    for (address, port) in
        [(good, 51820), (trap, 51820), (trap, 443), (Ipv4Addr::new(10, 1, 2, 3).into(), 443)]
    {
        datagrams(SocketAddr::new(address, port))?;
    }
    net.allow(&["--protocol", "udp", &format!("{allowed}:51820")])?;
    // A rule about connections is none about datagrams: QUIC falls back at once.
    net.allow(&[&format!("{refused}:*")])?;
    let wire = Wire::tap()?;
    let said = net.attacked("names.py", &["udp", allowed, refused, &trap.to_string()])?;
    ensure(said["tried"] == 60 && said["refused"] == 60, said.to_string())?;
    ensure(said["allowed"].as_u64().is_some_and(|length| length > 10), said.to_string())?;
    let frames = wire.frames()?;
    ensure(!frames.have("escape-") && frames.have("control-51820"), "a datagram is on the wire")?;
    for host in [refused.to_owned(), trap.to_string(), "10.1.2.3".into(), "198.18.99.99".into()] {
        net.recorded(&host, "the refused datagrams", |record| {
            record["kind"] == "Datagram" && record["decision"] == "Refused" && record["port"] == 51820
        })?;
    }
    Ok(())
}

/// Spellings of 10.1.2.3 and of the metadata service's address that a program may be given, and IPv6 addresses that hold one of them.
const SPELLINGS: [&str; 13] = [
    "10.1.2.3",
    "167838211",
    "0x0a010203",
    "012.1.2.3",
    "10.66051",
    "10.1.515",
    "[::ffff:10.1.2.3]",
    "[::ffff:a01:203]",
    "[64:ff9b::a01:203]",
    "[fd00:ec2::254]",
    "2852039166",
    "0xa9.0xfe.0xa9.0xfe",
    "[::ffff:a9fe:a9fe]",
];

/// The same in packets of IPv6, which a program cannot send, but root can.
const PACKETS: [&str; 5] =
    ["::ffff:10.1.2.3", "::ffff:169.254.169.254", "64:ff9b::a01:203", "2002:a01:203::1", "::10.1.2.3"];

fn disguised(net: &Net) -> Case {
    let mut traps = Vec::new();
    for address in ["10.1.2.3", "169.254.169.254", "64:ff9b::a01:203", "fd00:ec2::254"] {
        let address: IpAddr = address.parse().map_err(|error| wrong(&error))?;
        traps.push(net.site_at("trap", address, PLAIN, echo())?);
    }
    // There are rules about others: the addresses do not hang upon the sandbox's having none.
    net.allow(&["192.0.2.0/24:8088"])?;
    let get = |spelling: &str| format!("curl -gsS -m 60 http://{spelling}:8088/ 2>/dev/null; echo $?\n");
    let said = net.guest(&SPELLINGS.map(get).concat())?;
    ensure(said.text() == ["7"; SPELLINGS.len()].join("\n"), format!("{said:?}"))?;
    let words = [&["syn", "8088"][..], &PACKETS[..]].concat();
    let packets = |net: &Net| net.attacked("names.py", &words);
    let said = packets(net)?;
    ensure(PACKETS.iter().all(|packet| said[packet] == "reset"), said.to_string())?;
    ensure(traps.iter().all(|trap| trap.connections() == 0), "a trap was reached")?;
    net.recorded("10.1.2.3", "the refusal", |record| {
        record["decision"] == "Refused" && record["kind"] == "Connect" && record["port"] == 8088
    })?;
    // With a rule about the one address its spellings are that address, and the others are still none.
    net.allow(&["10.1.2.3/32:8088"])?;
    let said = net.guest(&SPELLINGS.map(get).concat());
    let packets = packets(net);
    net.forget("10.1.2.3/32:8088")?;
    net.forget("192.0.2.0/24:8088")?;
    let (said, packets) = (said?.text(), packets?);
    let expected = SPELLINGS.map(|spelling| match spelling {
        "[64:ff9b::a01:203]"
        | "[fd00:ec2::254]"
        | "2852039166"
        | "0xa9.0xfe.0xa9.0xfe"
        | "[::ffff:a9fe:a9fe]" => "7",
        _ => "GET / HTTP/1.1\n0",
    });
    ensure(said == expected.join("\n"), said)?;
    ensure(packets["::ffff:10.1.2.3"] == "open", packets.to_string())?;
    ensure(packets["::ffff:169.254.169.254"] == "reset", packets.to_string())?;
    ensure(traps.iter().skip(1).all(|trap| trap.connections() == 0), "a trap was reached")
}

fn mixed(net: &Net) -> Case {
    let at = How { port: Some(8089), ..PLAIN };
    let good = net.site("mixed.example", at, echo())?;
    let guarded = ["10.1.2.3", "127.0.0.1", "169.254.169.254"].map(|text| text.parse::<IpAddr>());
    let guarded = guarded.into_iter().collect::<Result<Vec<_>, _>>().map_err(|error| wrong(&error))?;
    let mut traps = Vec::new();
    for address in &guarded {
        traps.push(net.site_at("trap", *address, at, echo())?);
    }
    let mut all = guarded.clone();
    all.push(good.address.ip());
    net.names.addresses("mixed.example", &all);
    net.names.addresses("inner.example", &guarded);
    net.names.set("outer.example", Answer::Alias("inner.example".into()));
    net.allow(&["mixed.example:8089"])?;
    net.allow(&["outer.example:8089"])?;
    let get = |name: &str| format!("curl -sS -m 60 http://{name}:8089/ 2>/dev/null; echo $?; ");
    let said = net.guest(&["mixed.example", "mixed.example", "outer.example"].map(get).concat())?;
    ensure(said.text() == "GET / HTTP/1.1\n0\nGET / HTTP/1.1\n0\n7", format!("{said:?}"))?;
    ensure((2..=4).contains(&good.connections()), format!("{} connections", good.connections()))?;
    ensure(traps.iter().all(|trap| trap.connections() == 0), "a guarded address was reached")?;
    net.recorded("outer.example", "the guard's rule", |record| {
        record["decision"] == "Refused" && record.to_string().contains("floor/guard:")
    })
    .map(|_| ())
}
