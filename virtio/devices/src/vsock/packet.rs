//! The vsock packet header (virtio 1.3 §5.10.6).

/// Bytes of the header.
pub(super) const HEADER: usize = 44;
/// Most bytes of data in a packet from the guest.
pub(super) const DATA_MAX: usize = 64 << 10;
/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// The stream socket type.
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// SHUTDOWN: the sender takes no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender gives no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// A header. Every field is the sender's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) from_cid: u64,
    pub(super) to_cid: u64,
    pub(super) from_port: u32,
    pub(super) to_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    /// `None` for a number that is not defined.
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) buffer: u32,
    pub(super) forwarded: u32,
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8; HEADER], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let kinds = u32_at(bytes, 28);
        let (kind, operation) = (kinds as u16, (kinds >> 16) as u16);
        Self {
            from_cid: u64_at(bytes, 0),
            to_cid: u64_at(bytes, 8),
            from_port: u32_at(bytes, 16),
            to_port: u32_at(bytes, 20),
            len: u32_at(bytes, 24),
            kind,
            operation: Operation::ALL.into_iter().find(|known| known.number() == operation),
            flags: u32_at(bytes, 32),
            buffer: u32_at(bytes, 36),
            forwarded: u32_at(bytes, 40),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.from_cid.to_le_bytes());
        bytes.extend(self.to_cid.to_le_bytes());
        bytes.extend(self.from_port.to_le_bytes());
        bytes.extend(self.to_port.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.operation.map_or(0, Operation::number).to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buffer.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_a_round_trip() {
        for operation in Operation::ALL {
            let header = Header {
                from_cid: 0x1122_3344_5566_7788,
                to_cid: 2,
                from_port: 3,
                to_port: 4,
                len: 5,
                kind: STREAM,
                operation: Some(operation),
                flags: 7,
                buffer: 8,
                forwarded: 9,
            };
            let bytes: [u8; HEADER] = header.encode().try_into().unwrap();
            assert_eq!(Header::parse(&bytes), header);
        }
        assert_eq!(Header::parse(&[0xff; HEADER]).operation, None);
    }
}
