//! Raw frames from the guest's root: under other names, tagged, broken, of other protocols. Each attempt carries a mark that must not
//! cross the namespace's interface, and the same program gets through with what it may send.

use std::net::SocketAddr;

use e2e::{Case, Verdict, ensure};
use network::{How, Named, Net, Raw, Wire, datagrams, listens};
use serde_json::{Value, json};

pub(crate) const CASES: &[Named] = &[
    ("frames_under_another_address_reach_nobody", strangers),
    ("tagged_cut_and_damaged_frames_reach_nobody", broken),
    ("no_protocol_but_tcp_and_udp_gets_out", protocols),
];

const PORT: u16 = 9000;

/// Messages of ICMPv6 among the attempts whose types have no meaning here: they are dropped.
const UNKNOWN: u64 = 9;

/// A name with a server for datagrams and connections, which it allows.
fn server(net: &Net, name: &str) -> Result<Raw, Verdict> {
    let raw = net.raw(name, How { port: Some(PORT), alpn: &[], six: false }, listens())?;
    datagrams(SocketAddr::new(raw.address.ip(), PORT))?;
    let port = format!("{name}:{PORT}");
    net.allow(&[&port])?;
    net.allow(&["--protocol", "udp", &port])?;
    Ok(raw)
}

/// Runs one group of attempts. Nothing of them is outside or comes back, all controls got through.
fn attempt(net: &Net, what: &str, name: &str) -> Result<Value, Verdict> {
    let raw = server(net, name)?;
    let gateway = net.gateway()?;
    let wire = Wire::tap()?;
    let said = net.attacked("frames.py", &[what, name, &PORT.to_string()])?;
    let frames = wire.frames()?;
    ensure(said["controls"] == json!([true, true, true, true, true, true, true]), said.to_string())?;
    ensure(said["attempts"].as_u64().is_some_and(|count| count > 20), said.to_string())?;
    for (what, none) in
        [("echoed", json!(0)), ("answered", json!(0)), ("dhcp", json!(0)), ("opened", json!([]))]
    {
        ensure(said[what] == none, format!("{what}: {said}"))?;
    }
    // The one answer is the control's.
    ensure(said["arp"] == 1 && said["others"] == json!([]), said.to_string())?;
    ensure(!frames.have("escape-"), "an attempt is on the wire")?;
    for number in ["udp-0", "udp-1", "unsummed"] {
        ensure(frames.have(&format!("control-{what}-{number}")), format!("{number} is not on the wire"))?;
    }
    ensure(frames.odd_protocols().is_empty(), format!("{:?}", frames.odd_protocols()))?;
    // Both connections of the controls, and no other.
    ensure(raw.connections() == 2, format!("{:?}", raw.heard()))?;
    net.recorded(name, "the control's datagrams", |record| {
        record["kind"] == "Datagram" && record["decision"] == "Allowed"
    })?;
    if what == "protocols" {
        for told in ["ICMP passes to nobody", "IP protocol 47 passes to nobody"] {
            let is_it = |record: &Value| record["text"].as_str().is_some_and(|text| text.starts_with(told));
            net.recorded(name, told, is_it)?;
        }
    }
    let records = net.records(name)?;
    let passes = |record: &Value| match record["decision"].as_str() {
        Some("Allowed") => true,
        // A frame that is no packet has no record; a packet of another protocol has.
        _ => {
            what == "protocols"
                && record["text"].as_str().is_some_and(|text| text.contains("passes to nobody"))
        }
    };
    ensure(records.iter().all(passes), format!("{records:?}"))?;
    gateway.holds(net)?;
    Ok(said)
}

fn strangers(net: &Net) -> Case {
    let said = attempt(net, "strangers", "strangers.example")?;
    ensure(said["prohibited"] == 0, said.to_string())
}

fn broken(net: &Net) -> Case {
    let said = attempt(net, "broken", "broken.example")?;
    ensure(said["prohibited"] == 0, said.to_string())
}

fn protocols(net: &Net) -> Case {
    let said = attempt(net, "protocols", "protocols.example")?;
    // Each is told that it may not, but for messages of ICMPv6 that nobody knows.
    ensure(
        said["prohibited"]
            .as_u64()
            .zip(said["attempts"].as_u64())
            .is_some_and(|(told, all)| told + UNKNOWN == all),
        said.to_string(),
    )
}
