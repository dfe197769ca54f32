//! From the link into the driver's buffers (§5.1.6.3, §5.1.6.4).

use backends::Received;
use guest_memory::GuestRam;
use machine::GuestEvent;
use vm_memory::VolatileSlice;

use super::{Net, RECEIVE, TURN, feature};
use crate::device::Active;
use crate::queue::{Chain, QueueError};

/// Bytes of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;

const FLAG_NEEDS_CSUM: u8 = 1;
const FLAG_DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

static UNFIT: GuestEvent = GuestEvent::new("network frame that does not fit what the driver negotiated");

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The driver has it, or never will.
    Done,
    /// There are not enough buffers yet.
    Starved,
}

impl Net {
    /// Hands the driver frames for one turn; whether there may be more that it can have now.
    pub(super) fn receive(&mut self, active: &mut Active<'_>) -> Result<bool, QueueError> {
        let features = self.features;
        for _ in 0..TURN {
            if active.should_yield() {
                return Ok(false);
            }
            if let Some(frame) = self.received.front_mut() {
                let nothing: &mut [u8] = &mut [];
                let frame = [VolatileSlice::from(frame.as_mut_slice()), VolatileSlice::from(nothing)];
                if deliver(&frame, features, active)? == Fate::Starved {
                    return Ok(false);
                }
                self.received.pop_front();
                continue;
            }
            let Some(link) = &mut self.link else { return Ok(false) };
            let mut result = Ok(Fate::Starved);
            let received = link.receive(&mut |frame| {
                result = deliver(frame, features, active);
                result == Ok(Fate::Done)
            });
            match received {
                Ok(Received::Taken) => {}
                Ok(Received::Left) => return result.map(|_| false),
                Ok(Received::Nothing) => return Ok(false),
                Err(error) => {
                    self.give_up(error);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Puts a frame into as many buffers as it takes, which the driver then sees at once.
fn deliver(
    frame: &[VolatileSlice<'_>; 2],
    features: u64,
    active: &mut Active<'_>,
) -> Result<Fate, QueueError> {
    let len = frame.iter().fold(0usize, |sum, piece| sum.saturating_add(piece.len()));
    let Some(mut header) = header(frame, features) else {
        UNFIT.note(|| format!("offloads of a frame of {len} bytes"));
        return Ok(Fate::Done);
    };
    let mergeable = features & feature::MRG_RXBUF != 0;
    let Some(mut chains) = buffers(len, mergeable, active)? else {
        return Ok(Fate::Starved);
    };
    if chains.is_empty() {
        UNFIT.note(|| format!("a frame of {len} bytes, which is too long for the driver's buffer"));
        return Ok(Fate::Done);
    }
    let [.., low, high] = &mut header;
    [*low, *high] = u16::try_from(chains.len()).unwrap_or(0).to_le_bytes();
    fill(&mut chains, &header, frame, active.ram());
    active.complete_together(RECEIVE, &chains)?;
    Ok(Fate::Done)
}

/// The frame's header as the driver may see it; `None` if it asks for something that was not negotiated.
fn header(frame: &[VolatileSlice<'_>; 2], features: u64) -> Option<[u8; HEADER]> {
    let mut header = [0; HEADER];
    let [first, second] = frame;
    let copied = first.copy_to(&mut header);
    second.copy_to(header.get_mut(copied..)?);
    let [flags, gso, ..] = &mut header;
    let checksums = features & feature::GUEST_CSUM != 0;
    let segments = match *gso {
        GSO_NONE => true,
        GSO_TCPV4 => features & feature::GUEST_TSO4 != 0,
        GSO_TCPV6 => features & feature::GUEST_TSO6 != 0,
        _ => false,
    };
    if !segments || (*flags & FLAG_NEEDS_CSUM != 0 && !checksums) {
        return None;
    }
    *flags &= if checksums { FLAG_NEEDS_CSUM | FLAG_DATA_VALID } else { 0 };
    Some(header)
}

/// Buffers for `len` bytes; none at all if the driver's do not merge and the next one is too short; `None` if there are too few yet.
fn buffers(len: usize, mergeable: bool, active: &mut Active<'_>) -> Result<Option<Vec<Chain>>, QueueError> {
    let mut chains = Vec::new();
    let mut room = 0usize;
    while room < len {
        let next = active.pop(RECEIVE)?;
        let starved = next.is_none();
        if let Some(chain) = next {
            room = room.saturating_add(chain.writable_len() as usize);
            chains.push(chain);
        }
        if starved || (room < len && !mergeable) {
            while let Some(chain) = chains.pop() {
                active.put_back(RECEIVE, chain);
            }
            return Ok((!starved).then_some(chains));
        }
    }
    Ok(Some(chains))
}

/// Writes header and frame into the buffers, one after the other.
fn fill(chains: &mut [Chain], header: &[u8; HEADER], frame: &[VolatileSlice<'_>; 2], ram: &GuestRam) {
    let [first, second] = frame;
    // A header may go over the end of the first piece.
    let over = HEADER.saturating_sub(first.len());
    let mut copy = *header;
    let parts = [
        VolatileSlice::from(copy.as_mut_slice()),
        first.offset(HEADER.min(first.len())).unwrap_or(*first),
        second.offset(over.min(second.len())).unwrap_or(*second),
    ];
    let mut chains = chains.iter_mut();
    let Some(mut chain) = chains.next() else { return };
    for part in parts {
        let mut done = 0;
        while let Some(rest) = part.offset(done).ok().filter(|rest| !rest.is_empty()) {
            let written = chain.append(ram).write_from(&rest);
            done = done.saturating_add(written);
            if written == rest.len() {
                break;
            }
            let Some(next) = chains.next() else { return };
            chain = next;
        }
    }
}
