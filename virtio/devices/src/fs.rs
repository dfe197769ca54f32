//! virtio-fs (virtio 1.3 §5.11): carries FUSE requests to a [`RequestHandler`] and its replies back.
//!
//! A request is copied out of guest memory before it is parsed and its reply is copied in afterwards, so the file server
//! never sees memory that the guest can change. No DAX window yet.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use fuse_wire::RequestHandler;
use guest_memory::GuestRam;
use machine::GuestEvent;
use machine::pci::RestoreError;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::{Chain, QueueError};

/// Bytes of the tag in the configuration space (§5.11.4).
const TAG_LEN: usize = 36;
/// Enough for the guest to send 256 pages at once: it keeps a few descriptors for headers.
const QUEUE_SIZE: u16 = 512;
/// The most bytes of one request or one reply: 1 MiB of data with room for headers, names and attributes.
const MESSAGE_MAX: usize = (1 << 20) + (128 << 10);

static TOO_LARGE: GuestEvent = GuestEvent::new("a FUSE message that is too large");

/// A file system device.
pub struct Fs {
    tag: [u8; TAG_LEN],
    handler: Arc<dyn RequestHandler>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Fs {
    /// A device with this tag (at most 36 bytes) whose requests go to `handler`.
    pub fn new(tag: &str, handler: Arc<dyn RequestHandler>) -> Self {
        let mut bytes = [0; TAG_LEN];
        bytes.iter_mut().zip(tag.bytes()).for_each(|(byte, value)| *byte = value);
        Self { tag: bytes, handler, request: Vec::new(), reply: Vec::new() }
    }

    fn request(&mut self, chain: &mut Chain, ram: &GuestRam) {
        let (request_len, reply_len) = (chain.readable_len() as usize, chain.writable_len() as usize);
        if request_len > MESSAGE_MAX || reply_len > MESSAGE_MAX {
            return TOO_LARGE.note(|| format!("{request_len} and {reply_len} bytes"));
        }
        grow(&mut self.request, request_len);
        grow(&mut self.reply, reply_len);
        let (Some(request), Some(reply)) =
            (self.request.get_mut(..request_len), self.reply.get_mut(..reply_len))
        else {
            return;
        };
        if chain.reader(ram).read(request) != request_len {
            return;
        }
        let written = self.handler.handle(&[IoSlice::new(request)], &mut [IoSliceMut::new(reply)]);
        // Only what this request's handler wrote: what is behind it is of older replies.
        chain.writer(ram).write(reply.get(..written).unwrap_or(&[]));
    }
}

fn grow(buffer: &mut Vec<u8>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

impl Device for Fs {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 26, name: "virtio-fs", class: [1, 0x80, 0] }
    }

    /// The high-priority queue and one for requests.
    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE]
    }

    /// `struct virtio_fs_config`: tag, number of request queues.
    fn config(&self) -> Vec<u8> {
        [&self.tag[..], &1u32.to_le_bytes()].concat()
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| self.request(chain, ram))
    }

    fn reset(&mut self) {
        self.handler.reset();
    }

    /// What the guest has open lives in the file server, so its session is the device's state.
    fn save(&self) -> Result<Vec<u8>, String> {
        Ok(self.handler.save())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        self.handler.restore(state).map_err(|error| RestoreError::Mismatch(error.to_string()))
    }
}
