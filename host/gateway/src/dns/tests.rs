use std::collections::HashMap;

use hickory_proto::op::Query;

use super::*;

/// A zone that knows what it is told.
#[derive(Default)]
struct Known {
    names: HashMap<Name, (Ipv4Addr, Ipv6Addr)>,
    asked: Vec<String>,
    refused: Vec<String>,
}

impl Known {
    fn with(name: &str) -> Self {
        let addresses = ("198.18.0.4".parse().unwrap(), "fd76:6976::4".parse().unwrap());
        Self { names: HashMap::from([(Name::parse(name).unwrap(), addresses)]), ..Self::default() }
    }
}

impl Zone for Known {
    fn addresses(&mut self, name: &Name) -> Found {
        self.asked.push(name.as_str().to_owned());
        self.names.get(name).map_or(Found::Refused, |(v4, v6)| Found::Addresses(*v4, *v6))
    }

    fn refused(&mut self, name: &str) {
        self.refused.push(name.to_owned());
    }

    fn pointer(&mut self, address: IpAddr) -> Option<Name> {
        let found = self.names.iter().find(|(_, (v4, v6))| address == *v4 || address == *v6);
        found.map(|(name, _)| name.clone())
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(WireName::from_ascii(name).unwrap(), kind));
    message
}

fn ask(zone: &mut Known, message: &Message) -> Message {
    Message::from_vec(&answer(&message.to_vec().unwrap(), zone).unwrap()).unwrap()
}

fn code(zone: &mut Known, name: &str, kind: RecordType) -> (ResponseCode, usize) {
    let reply = ask(zone, &query(name, kind));
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (7, MessageType::Response));
    (reply.metadata.response_code, reply.answers.len())
}

#[test]
fn an_allowed_name_has_its_addresses_and_nothing_else() {
    let mut zone = Known::with("a.example.com");
    let reply = ask(&mut zone, &query("A.exAMple.com.", RecordType::A));
    let [record] = reply.answers.as_slice() else { panic!("{reply}") };
    assert_eq!((&record.data, record.ttl), (&RData::A(A("198.18.0.4".parse().unwrap())), TTL));
    // The case of the question comes back: some resolvers check it.
    assert_eq!(record.name.to_ascii(), "A.exAMple.com.");
    assert!(reply.metadata.recursion_available && !reply.metadata.authentic_data);
    let reply = ask(&mut zone, &query("a.example.com.", RecordType::AAAA));
    assert_eq!(reply.answers[0].data, RData::AAAA(AAAA("fd76:6976::4".parse().unwrap())));
    use RecordType::{HTTPS, MX, NS, SOA, SRV, SVCB, TXT};
    for kind in [HTTPS, SVCB, TXT, MX, SRV, NS, SOA, RecordType::Unknown(65_399)] {
        assert_eq!(code(&mut zone, "a.example.com.", kind), (ResponseCode::NoError, 0), "{kind}");
    }
    let any = ask(&mut zone, &query("a.example.com.", RecordType::ANY));
    assert!(matches!(any.answers[0].data, RData::HINFO(_)));
}

#[test]
fn a_refused_name_does_not_exist_for_any_type() {
    let mut zone = Known::with("a.example.com");
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::ANY] {
        assert_eq!(code(&mut zone, "b.example.com.", kind), (ResponseCode::NXDomain, 0), "{kind}");
    }
    assert_eq!(zone.asked.len(), 5);
}

#[test]
fn what_is_no_host_name_is_refused_without_being_looked_up() {
    let mut zone = Known::with("a.example.com");
    let names: [&[&[u8]]; 6] = [
        &[],
        &[b"a.b", b"example", b"com"],
        &[b"x\0", b"example", b"com"],
        &[b"sp ace", b"example"],
        &[b"\x1b[31m", b"example"],
        &[b"1", b"2", b"3", b"4"],
    ];
    for labels in names {
        let mut wire = Vec::new();
        for label in labels {
            wire.push(u8::try_from(label.len()).unwrap());
            wire.extend_from_slice(label);
        }
        let message = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &wire, &[0, 0, 1, 0, 1]].concat();
        let reply = Message::from_vec(&answer(&message, &mut zone).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{labels:?}");
    }
    assert!(zone.asked.is_empty());
    assert_eq!(zone.refused.len(), names.len());
    assert!(zone.refused.iter().all(|name| name.chars().all(|c| !c.is_control())), "{:?}", zone.refused);
}

#[test]
fn pointers_of_synthetic_addresses_are_names() {
    let mut zone = Known::with("a.example.com");
    let v6 = "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.7.9.6.6.7.d.f.ip6.arpa.";
    for name in ["4.0.18.198.in-addr.arpa.", v6] {
        let reply = ask(&mut zone, &query(name, RecordType::PTR));
        assert_eq!(reply.answers[0].data.to_string(), "a.example.com.", "{name}");
        assert_eq!(code(&mut zone, name, RecordType::TXT), (ResponseCode::NoError, 0));
    }
    for name in [
        "8.8.8.8.in-addr.arpa.",
        "18.198.in-addr.arpa.",
        "x.in-addr.arpa.",
        "999.0.18.198.in-addr.arpa.",
        "ip6.arpa.",
    ] {
        assert_eq!(code(&mut zone, name, RecordType::PTR), (ResponseCode::NXDomain, 0), "{name}");
    }
}

#[test]
fn names_with_answers_of_their_own() {
    let mut zone = Known::default();
    for name in ["localhost.", "deep.LOCALHOST."] {
        let reply = ask(&mut zone, &query(name, RecordType::A));
        assert_eq!(reply.answers[0].data, RData::A(A(Ipv4Addr::LOCALHOST)));
    }
    assert_eq!(code(&mut zone, "use-application-dns.net.", RecordType::A), (ResponseCode::NXDomain, 0));
    assert!(zone.asked.is_empty());
}

#[test]
fn odd_messages_get_the_answer_that_their_standard_says() {
    let mut zone = Known::with("a.example.com");
    let normal = query("a.example.com.", RecordType::A);
    let code = |zone: &mut Known, message: &Message| ask(zone, message).metadata.response_code;
    let mut message = normal.clone();
    message.metadata.op_code = OpCode::Status;
    assert_eq!(code(&mut zone, &message), ResponseCode::NotImp);
    let mut message = normal.clone();
    message.add_query(normal.queries[0].clone());
    assert_eq!(code(&mut zone, &message), ResponseCode::FormErr);
    let mut message = normal.clone();
    message.queries.clear();
    assert_eq!(code(&mut zone, &message), ResponseCode::FormErr);
    let mut message = normal.clone();
    message.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&mut zone, &message), ResponseCode::Refused);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&mut zone, &query("a.example.com.", kind)), ResponseCode::Refused);
    }
    let mut message = normal.clone();
    let mut edns = Edns::new();
    edns.set_version(1);
    message.set_edns(edns);
    let reply = ask(&mut zone, &message);
    // Its low four bits are those of NOERROR (RFC 6891 §6.1.3).
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(zone.asked.is_empty());
}

#[test]
fn no_answer_to_answers_and_to_what_is_too_short_or_long() {
    let mut zone = Known::with("a.example.com");
    let bytes = query("a.example.com.", RecordType::A).to_vec().unwrap();
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(answer(&response, &mut zone), None);
    assert_eq!(answer(&bytes[..11], &mut zone), None);
    let long = [bytes.clone(), vec![0; LONGEST]].concat();
    assert_eq!(answer(&long, &mut zone), None);
    // Cut off behind the header: a format error, with the question's number.
    let reply = Message::from_vec(&answer(&bytes[..20], &mut zone).unwrap()).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::FormErr));
}

#[test]
fn names_in_circles_end() {
    let mut zone = Known::default();
    // A label that points at itself, and two that point at each other.
    for tail in [&[0xc0, 12][..], &[0xc0, 14, 0xc0, 12]] {
        let message = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], tail, &[0, 1, 0, 1]].concat();
        let reply = Message::from_vec(&answer(&message, &mut zone).unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::FormErr);
    }
}

#[test]
fn answers_fit_the_smallest_datagram() {
    let label = "x".repeat(63);
    let name = format!("{label}.{label}.{label}.{}", "y".repeat(61));
    let mut zone = Known::with(&name);
    for kind in [RecordType::A, RecordType::AAAA, RecordType::ANY] {
        let mut message = query(&format!("{name}."), kind);
        message.set_edns(Edns::new());
        assert!(answer(&message.to_vec().unwrap(), &mut zone).unwrap().len() <= 512, "{kind}");
    }
}
