//! virtio-net (virtio 1.3 §5.1) with one pair of queues, over a [`FrameLink`].
//!
//! A frame is copied once in each direction, between the guest's buffers and the link. Nothing in it is looked at but, on the way to the
//! guest, the header of the offloads, which has to fit what the driver negotiated. A direction without room waits: a chain of the
//! driver's stays in its queue until the link has room, a frame stays on the link until the driver has buffers.
//!
//! The link may go and another one come; meanwhile the driver sees no carrier, and what it sends is lost.

mod host;
mod receive;

use std::collections::VecDeque;
use std::sync::Arc;

use backends::{FrameLink, LinkError, MAX_FRAME, MIN_FRAME, Sent};
use doorbell::Doorbell;
use guest_memory::GuestRam;
use machine::GuestEvent;
use machine::pci::RestoreError;
use prost::Message;
use vm_memory::VolatileSlice;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::{Chain, QueueError};
pub use host::NetHost;
use host::{Change, Inbox};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// Frames in one direction before the other one has its turn.
const TURN: usize = 64;
/// Most bytes of frames in a saved state: what a link can hold, and what an earlier one left.
const SAVED_MAX: usize = 16 << 20;

/// Feature bits (§5.1.3).
mod feature {
    pub(super) const CSUM: u64 = 1 << 0;
    pub(super) const GUEST_CSUM: u64 = 1 << 1;
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const GUEST_TSO4: u64 = 1 << 7;
    pub(super) const GUEST_TSO6: u64 = 1 << 8;
    pub(super) const HOST_TSO4: u64 = 1 << 11;
    pub(super) const HOST_TSO6: u64 = 1 << 12;
    /// The far end takes a segment as a whole, so that it does not matter in which of its parts a congestion mark would be.
    pub(super) const HOST_ECN: u64 = 1 << 13;
    pub(super) const MRG_RXBUF: u64 = 1 << 15;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// The status field's bit for a link that is up (§5.1.4).
const LINK_UP: u16 = 1;

static BAD_FRAME: GuestEvent = GuestEvent::new("network frame of impossible length");

/// The card's own state in a snapshot: a link itself is not part of it.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    /// What the driver was told of the link.
    #[prost(bool, tag = "1")]
    up: bool,
    /// Frames that the driver sent and the far end had not taken.
    #[prost(bytes = "vec", repeated, tag = "2")]
    sent: Vec<Vec<u8>>,
    /// Frames for which the driver had no buffers yet.
    #[prost(bytes = "vec", repeated, tag = "3")]
    received: Vec<Vec<u8>>,
}

/// A network card.
pub struct Net {
    mac: [u8; 6],
    mtu: u16,
    inbox: Arc<Inbox>,
    on_broken: Box<dyn Fn() + Send>,
    link: Option<Box<dyn FrameLink>>,
    /// Frames of a saved state, which go before the link's own.
    sent: VecDeque<Vec<u8>>,
    received: VecDeque<Vec<u8>>,
    /// What the driver negotiated.
    features: u64,
    /// What the driver is told of the link.
    up: bool,
    config_changed: bool,
}

impl Net {
    /// A card without a link, and the host's handle to give it one. All its links ring `bell`. `on_broken` is called when the far end
    /// broke the link, which the card has then given up.
    pub fn new(
        mac: [u8; 6],
        mtu: u16,
        bell: Doorbell,
        on_broken: impl Fn() + Send + 'static,
    ) -> (Self, NetHost) {
        let inbox = Arc::new(Inbox::new(bell));
        let card = Self {
            mac,
            mtu,
            inbox: inbox.clone(),
            on_broken: Box::new(on_broken),
            link: None,
            sent: VecDeque::new(),
            received: VecDeque::new(),
            features: 0,
            up: false,
            config_changed: false,
        };
        (card, NetHost(inbox))
    }

    /// Takes another link, or none, if the host said so.
    fn take_change(&mut self) {
        match self.inbox.take() {
            Some(Change::Connect(link)) => self.link = Some(link),
            Some(Change::Disconnect) => self.link = None,
            None => {}
        }
        if self.link.is_none() {
            // As lost as what is sent now.
            self.sent.clear();
        }
        self.show_link();
    }

    fn show_link(&mut self) {
        let up = self.link.is_some();
        self.config_changed |= up != self.up;
        self.up = up;
    }

    fn give_up(&mut self, error: LinkError) {
        tracing::warn!(%error, "The network is gone");
        self.link = None;
        self.show_link();
        (self.on_broken)();
    }

    /// Serves both directions in turns, until there is nothing to do in either.
    fn work(&mut self, active: &mut Active<'_>) -> Result<(), QueueError> {
        self.take_change();
        loop {
            let more_to_send = self.transmit(active)?;
            let more_to_receive = self.receive(active)?;
            if active.should_yield() || !(more_to_send || more_to_receive) {
                return Ok(());
            }
        }
    }

    /// Sends what the driver has for one turn; whether there may be more that can be sent now.
    fn transmit(&mut self, active: &mut Active<'_>) -> Result<bool, QueueError> {
        while let Some(frame) = self.sent.pop_front() {
            if self.send(frame.len(), &mut copier(&frame)) == Sent::Full {
                self.sent.push_front(frame);
                return Ok(false);
            }
        }
        for _ in 0..TURN {
            if active.should_yield() {
                return Ok(false);
            }
            let Some(chain) = active.pop(TRANSMIT)? else { return Ok(false) };
            if self.send_chain(&chain, active.ram()) == Sent::Full {
                active.put_back(TRANSMIT, chain);
                return Ok(false);
            }
            active.complete(TRANSMIT, chain)?;
        }
        Ok(true)
    }

    fn send_chain(&mut self, chain: &Chain, ram: &GuestRam) -> Sent {
        let len = chain.readable_len() as usize;
        if !(MIN_FRAME..=MAX_FRAME).contains(&len) || chain.writable_len() != 0 {
            BAD_FRAME.note(|| format!("{len} bytes to send, {} to write", chain.writable_len()));
            return Sent::Taken;
        }
        let mut reader = chain.reader(ram);
        self.send(len, &mut |piece| {
            reader.read_into(piece);
        })
    }

    /// Sends a frame; without a link it is lost.
    fn send(&mut self, len: usize, fill: &mut dyn FnMut(&VolatileSlice<'_>)) -> Sent {
        match self.link.as_mut().map(|link| link.send(len, fill)) {
            Some(Ok(sent)) => sent,
            Some(Err(error)) => {
                self.give_up(error);
                Sent::Taken
            }
            None => Sent::Taken,
        }
    }
}

/// Copies a frame piece by piece.
fn copier(mut frame: &[u8]) -> impl FnMut(&VolatileSlice<'_>) {
    move |piece| {
        piece.copy_from(frame);
        frame = frame.get(piece.len()..).unwrap_or(&[]);
    }
}

impl Device for Net {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 1, name: "virtio-net", class: [2, 0, 0] }
    }

    fn features(&self) -> u64 {
        use feature::*;
        let checksums = CSUM | GUEST_CSUM;
        let segments = HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_TSO4 | GUEST_TSO6;
        checksums | segments | MTU | MAC | MRG_RXBUF | STATUS
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    /// `struct virtio_net_config` (§5.1.4) as far as the features reach.
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(12);
        config.extend(self.mac);
        config.extend((if self.up { LINK_UP } else { 0 }).to_le_bytes());
        config.extend(1u16.to_le_bytes()); // max_virtqueue_pairs
        config.extend(self.mtu.to_le_bytes());
        config
    }

    fn config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    fn bell(&self) -> Option<Doorbell> {
        Some(self.inbox.bell().clone())
    }

    /// A new driver sees at once whether there is a link.
    fn start(&mut self, features: u64) {
        self.features = features;
        self.take_change();
    }

    fn serve(&mut self, _index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        self.work(active)
    }

    /// Frames of a saved state were for the driver that is gone, or from it.
    fn reset(&mut self) {
        self.features = 0;
        self.sent.clear();
        self.received.clear();
    }

    /// Frames in flight in both directions belong to the state. A link that cannot be looked into has none.
    fn save(&self) -> Result<Vec<u8>, String> {
        let link = self.link.as_ref().and_then(|link| link.in_flight().ok()).unwrap_or_default();
        // What an earlier state left to be sent goes behind what is on the link already.
        let sent = link.sent.into_iter().chain(self.sent.iter().cloned()).collect();
        let received = self.received.iter().cloned().chain(link.received).collect();
        Ok(Saved { up: self.up, sent, received }.encode_to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved = Saved::decode(state).map_err(RestoreError::Decode)?;
        let mut frames = saved.sent.iter().chain(&saved.received);
        let bytes = frames.clone().fold(0usize, |sum, frame| sum.saturating_add(frame.len()));
        if bytes > SAVED_MAX || !frames.all(|frame| (MIN_FRAME..=MAX_FRAME).contains(&frame.len())) {
            return Err(RestoreError::Mismatch("impossible network frames".to_owned()));
        }
        self.sent = saved.sent.into();
        self.received = saved.received.into();
        // What is new since then the driver is told when it runs again.
        self.config_changed |= saved.up != self.up;
        self.up = saved.up;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
