//! The name server of the namespace: it knows what the cases tell it, and keeps what it was asked.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// What is answered about a name.
#[derive(Clone, Debug)]
pub enum Answer {
    /// These addresses, those of the family that is asked for.
    Addresses(Vec<IpAddr>),
    /// The first of these to the first question of either family, the second to the next, and so on; the last one for good. What a
    /// server does that binds a name anew after it was judged.
    InTurn(Vec<Vec<IpAddr>>),
    /// Another name.
    Alias(String),
    /// The server fails.
    Failure,
    /// Nothing at all is said.
    Silence,
}

#[derive(Default)]
struct Zone {
    answers: HashMap<String, Answer>,
    asked: Vec<(String, RecordType)>,
}

/// The server; a handle of it.
#[derive(Clone, Default)]
pub struct NameServer {
    zone: Arc<Mutex<Zone>>,
}

impl NameServer {
    /// Says what is answered about a name from now on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.with(|zone| zone.answers.insert(name.to_ascii_lowercase(), answer));
    }

    /// Says that a name has these addresses.
    pub fn addresses(&self, name: &str, addresses: &[IpAddr]) {
        self.set(name, Answer::Addresses(addresses.to_vec()));
    }

    /// How often it was asked about this name or one below it, whatever was asked.
    pub fn asked(&self, name: &str) -> usize {
        let below = format!(".{name}");
        self.with(|zone| zone.asked.iter().filter(|(at, _)| at == name || at.ends_with(&below)).count())
    }

    /// All that was asked so far, in order.
    pub fn questions(&self) -> Vec<(String, RecordType)> {
        self.with(|zone| zone.asked.clone())
    }

    fn with<R>(&self, work: impl FnOnce(&mut Zone) -> R) -> R {
        work(&mut self.zone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is answered to a message; nothing to some.
    fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let query = Message::from_vec(message).ok()?;
        let question = query.queries.first()?;
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.authoritative = true;
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        let name = question.name().to_ascii();
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let kind = question.query_type();
        self.with(|zone| {
            zone.asked.push((name.clone(), kind));
            let mut at = name;
            // An alias leads to another name, and no further than a resolver would go.
            for _ in 0..8 {
                let owner = Name::from_ascii(format!("{at}.")).ok()?;
                let addresses = match zone.answers.get_mut(&at) {
                    None => {
                        reply.metadata.response_code = ResponseCode::NXDomain;
                        break;
                    }
                    Some(Answer::Silence) => return None,
                    Some(Answer::Failure) => {
                        reply.metadata.response_code = ResponseCode::ServFail;
                        break;
                    }
                    Some(Answer::Alias(other)) => {
                        at = other.to_ascii_lowercase();
                        let target = Name::from_ascii(format!("{at}.")).ok()?;
                        reply.add_answer(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target))));
                        continue;
                    }
                    Some(Answer::Addresses(addresses)) => addresses.clone(),
                    Some(Answer::InTurn(turns)) => {
                        let now = turns.first().cloned().unwrap_or_default();
                        if turns.len() > 1 {
                            turns.remove(0);
                        }
                        now
                    }
                };
                for address in addresses {
                    let data = match (kind, address) {
                        (RecordType::A, IpAddr::V4(address)) => RData::A(A(address)),
                        (RecordType::AAAA, IpAddr::V6(address)) => RData::AAAA(AAAA(address)),
                        _ => continue,
                    };
                    reply.add_answer(Record::from_rdata(owner.clone(), TTL, data));
                }
                break;
            }
            reply.to_vec().ok()
        })
    }

    pub(crate) async fn serve(self, at: SocketAddr) -> std::io::Result<()> {
        let (udp, tcp) = (UdpSocket::bind(at).await?, TcpListener::bind(at).await?);
        let other = self.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = tcp.accept().await {
                tokio::spawn(other.clone().serve_connection(connection));
            }
        });
        tokio::spawn(async move {
            let mut message = [0u8; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut message).await {
                if let Some(reply) = message.get(..length).and_then(|message| self.answer(message)) {
                    let _ = udp.send_to(&reply, from).await;
                }
            }
        });
        Ok(())
    }

    async fn serve_connection(self, mut connection: TcpStream) -> std::io::Result<()> {
        loop {
            let mut message = vec![0; connection.read_u16().await?.into()];
            connection.read_exact(&mut message).await?;
            let Some(reply) = self.answer(&message) else { return Ok(()) };
            let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
            connection.write_u16(length).await?;
            connection.write_all(&reply).await?;
        }
    }
}

/// How long an answer holds, in seconds: no longer than the question.
const TTL: u32 = 0;
