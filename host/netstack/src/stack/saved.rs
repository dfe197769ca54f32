//! What outlives the process: which connections the guest believes to have.
//!
//! Their bytes are not saved. After a restore every one of them is reset, so that the guest's programs learn at once what they
//! would otherwise find out by waiting. Pending flows and datagrams are not saved either: the guest repeats them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use prost::Message;
use smoltcp::wire::TcpSeqNumber;

use super::{FinalReset, Stack};
use crate::event::Protocol;
use crate::flow::FlowKey;
use crate::table::Kind;

/// A connection.
#[derive(Clone, PartialEq, Message)]
struct SavedFlow {
    /// The guest's port.
    #[prost(uint32, tag = "1")]
    guest_port: u32,
    /// The other end's address: 4 or 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    address: Vec<u8>,
    /// The other end's port.
    #[prost(uint32, tag = "3")]
    port: u32,
    /// The sequence number that the guest waits for.
    #[prost(fixed32, tag = "4")]
    seq: u32,
    /// What the guest has been acknowledged.
    #[prost(fixed32, tag = "5")]
    ack: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Saved {
    #[prost(message, repeated, tag = "1")]
    flows: Vec<SavedFlow>,
}

/// Why a saved state was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// It is not one.
    #[error("the network stack's saved state is damaged: {0}")]
    Damaged(String),
    /// There are flows already.
    #[error("the network stack is in use")]
    InUse,
}

impl Stack {
    /// The connections to be reset after a restore.
    pub fn save(&self) -> Vec<u8> {
        let open = self.table.iter().filter_map(|(_, entry)| match &entry.kind {
            Kind::Tcp(tcp) if !tcp.done => Some((entry.key, tcp.next, tcp.ack)),
            _ => None,
        });
        // A reset that has not gone out yet is still owed.
        let owed = self.resets.iter().filter_map(|reset| Some((reset.key, reset.seq, reset.ack?)));
        let flows = open.chain(owed).map(|(key, seq, ack)| SavedFlow {
            guest_port: key.guest_port.into(),
            address: match key.remote.ip() {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            },
            port: key.remote.port().into(),
            seq: seq.0.cast_unsigned(),
            ack: ack.0.cast_unsigned(),
        });
        Saved { flows: flows.collect() }.encode_to_vec()
    }

    /// Takes what [`Stack::save`] gave: the next frames out are resets of those connections. For a stack without flows.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if self.table.len() != 0 {
            return Err(RestoreError::InUse);
        }
        let saved = Saved::decode(state).map_err(|error| RestoreError::Damaged(error.to_string()))?;
        let most = self.limits.tcp_flows.saturating_add(self.limits.out_frames);
        if saved.flows.len() > most.saturating_mul(2) {
            return Err(RestoreError::Damaged(format!("{} flows", saved.flows.len())));
        }
        let resets: Option<Vec<FinalReset>> = saved.flows.iter().map(reset).collect();
        let resets = resets.ok_or_else(|| RestoreError::Damaged("an impossible address".to_owned()))?;
        self.resets.extend(resets);
        Ok(())
    }
}

fn reset(flow: &SavedFlow) -> Option<FinalReset> {
    let address = match *flow.address.as_slice() {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        ref bytes => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    if address.is_unspecified() || address.is_multicast() {
        return None;
    }
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    let remote = SocketAddr::new(address, port(flow.port)?);
    let key = FlowKey { protocol: Protocol::Tcp, guest_port: port(flow.guest_port)?, remote };
    let number = |number: u32| TcpSeqNumber(number.cast_signed());
    Some(FinalReset { key, seq: number(flow.seq), ack: Some(number(flow.ack)) })
}
