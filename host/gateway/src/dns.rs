//! Answers to the guest's DNS questions, whatever server it asked. No question ever leaves the gateway.
//!
//! | question | answer |
//! |---|---|
//! | A, AAAA of a name that policy knows | its synthetic address, for a minute |
//! | any other type of such a name (HTTPS and SVCB too: no ECH keys, no hints; TXT, MX…: a name carries no data) | no data |
//! | ANY of such a name | HINFO `RFC8482` |
//! | PTR of a synthetic address | its name |
//! | a name that policy refuses, a PTR of another address, what is no host name | NXDOMAIN |
//! | a name of one label that the host's table does not have | NXDOMAIN |
//! | `localhost` and names below it (RFC 6761) | the guest's own loopback addresses |
//! | `use-application-dns.net` | NXDOMAIN: browsers then leave their own DNS over HTTPS off |
//! | another class, zone transfers | REFUSED |
//! | not a query | NOTIMP |
//! | not one question, malformed | FORMERR |
//! | an answer, fewer bytes than a header, more than [`LONGEST`] | nothing |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, HINFO, PTR};
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use policy::Name;

use crate::names::TTL;

/// Bytes of the longest message that is read.
pub const LONGEST: usize = 4096;
/// Bytes of a DNS header (RFC 1035 §4.1.1).
const HEADER: usize = 12;
/// Firefox's and others' question for whether the network wants them to use the system's DNS.
const CANARY: &str = "use-application-dns.net";

/// What answers come from.
pub trait Zone {
    /// The addresses of a name, if the guest may have it. Whatever is decided is written down here.
    fn addresses(&mut self, name: &Name) -> Found;
    /// A name that cannot be one of a host was asked for.
    fn refused(&mut self, name: &str);
    /// The name of a synthetic address.
    fn pointer(&mut self, address: IpAddr) -> Option<Name>;
}

/// What there is of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// These addresses.
    Addresses(Ipv4Addr, Ipv6Addr),
    /// Nothing: the name does not exist for the guest.
    Refused,
    /// Nothing for the moment.
    Exhausted,
}

/// The answer to a message, if it gets one.
pub fn answer(message: &[u8], zone: &mut impl Zone) -> Option<Vec<u8>> {
    let (header, _) = message.split_first_chunk::<HEADER>()?;
    let [high, low, flags, ..] = *header;
    // An answer to an answer could go on for ever.
    if flags & 0x80 != 0 || message.len() > LONGEST {
        return None;
    }
    let Ok(query) = Message::from_vec(message) else {
        let id = u16::from_be_bytes([high, low]);
        let mut malformed = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        malformed.metadata.recursion_available = true;
        return malformed.to_vec().ok();
    };
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    respond(&query, zone).to_vec().ok()
}

fn respond(query: &Message, zone: &mut impl Zone) -> Message {
    let metadata = &query.metadata;
    let mut reply = Message::response(metadata.id, metadata.op_code);
    reply.metadata = Metadata::response_from_request(metadata);
    reply.metadata.recursion_available = true;
    if let Some(edns) = &query.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(LONGEST as u16);
        if edns.version() > 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            reply.set_edns(ours);
            return reply;
        }
        reply.set_edns(ours);
    }
    if metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return reply;
    }
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return reply;
    };
    reply.add_query(question.clone());
    let kind = question.query_type();
    if question.query_class() != DNSClass::IN || matches!(kind, RecordType::AXFR | RecordType::IXFR) {
        reply.metadata.response_code = ResponseCode::Refused;
        return reply;
    }
    match data(question.name(), kind, zone) {
        Ok(Some(data)) => {
            reply.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
        }
        Ok(None) => {}
        Err(code) => reply.metadata.response_code = code,
    }
    reply
}

/// What a name has of a type.
fn data(asked: &WireName, kind: RecordType, zone: &mut impl Zone) -> Result<Option<RData>, ResponseCode> {
    if let Some(found) = pointer(asked, kind, zone) {
        return found;
    }
    let text = asked.to_ascii();
    let Ok(name) = Name::parse(&text) else {
        zone.refused(&text);
        return Err(ResponseCode::NXDomain);
    };
    let (v4, v6) = if name.labels().next_back() == Some("localhost") {
        (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    } else if name.as_str() == CANARY {
        return Err(ResponseCode::NXDomain);
    } else {
        match zone.addresses(&name) {
            Found::Addresses(v4, v6) => (v4, v6),
            Found::Refused => return Err(ResponseCode::NXDomain),
            Found::Exhausted => return Err(ResponseCode::ServFail),
        }
    };
    Ok(match kind {
        RecordType::A => Some(RData::A(A(v4))),
        RecordType::AAAA => Some(RData::AAAA(AAAA(v6))),
        RecordType::ANY => Some(RData::HINFO(HINFO::new("RFC8482".into(), String::new()))),
        _ => None,
    })
}

/// The answer for a name of the reverse zones, if it is one.
fn pointer(
    asked: &WireName,
    kind: RecordType,
    zone: &mut impl Zone,
) -> Option<Result<Option<RData>, ResponseCode>> {
    let reverse = ["in-addr.arpa.", "ip6.arpa."];
    let text = asked.to_ascii().to_ascii_lowercase();
    if !reverse.iter().any(|zone| text.trim_end_matches('.').ends_with(zone.trim_end_matches('.'))) {
        return None;
    }
    let address =
        asked.parse_arpa_name().ok().filter(|network| network.prefix_len() == network.max_prefix_len());
    let name = address.and_then(|network| zone.pointer(network.addr()));
    let Some(name) = name.and_then(|name| WireName::from_ascii(format!("{}.", name.as_str())).ok()) else {
        zone.refused(&text);
        return Some(Err(ResponseCode::NXDomain));
    };
    Some(Ok((kind == RecordType::PTR).then_some(RData::PTR(PTR(name)))))
}

#[cfg(test)]
mod tests;
