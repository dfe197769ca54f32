//! Any bytes as a DNS message of the guest's. An answer is one message, to this question, with the addresses of an allowed
//! name or none; nothing is answered to answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway::dns::{self, Found, Zone};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use policy::Name;

/// Knows every name that has an `a` in it.
#[derive(Default)]
struct HalfOfAll {
    looked_up: usize,
}

impl Zone for HalfOfAll {
    fn addresses(&mut self, name: &Name) -> Found {
        self.looked_up += 1;
        assert!(!name.as_str().is_empty() && name.as_str().len() <= 253);
        match name.as_str() {
            known if known.contains('a') => {
                Found::Addresses(Ipv4Addr::new(198, 18, 0, 4), Ipv6Addr::LOCALHOST)
            }
            full if full.contains('z') => Found::Exhausted,
            _ => Found::Refused,
        }
    }

    fn refused(&mut self, name: &str) {
        assert!(name.chars().all(|c| !c.is_control()), "{name:?} would be written into a log");
    }

    fn pointer(&mut self, address: IpAddr) -> Option<Name> {
        (address == Ipv4Addr::new(198, 18, 0, 4)).then(|| Name::parse("a.example").expect("a name"))
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut zone = HalfOfAll::default();
    let Some(bytes) = dns::answer(data, &mut zone) else { return };
    let answer = Message::from_vec(&bytes).expect("an answer is a message");
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(bytes.get(..2), data.get(..2), "the question's number");
    assert!(answer.answers.len() <= 1 && answer.authorities.is_empty() && zone.looked_up <= 1);
    assert!(bytes.len() <= 600, "{} bytes", bytes.len());
    if !answer.answers.is_empty() {
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.queries.len(), 1);
    }
    // Answers do not begin a conversation between name servers.
    assert_eq!(dns::answer(&bytes, &mut zone), None);
}
