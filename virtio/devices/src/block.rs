//! virtio-blk (virtio 1.3 §5.2) with flush, discard and write-zeroes, over a [`BlockBackend`].
//!
//! Requests are done one after the other on the device's thread, so "between two requests" is a real state: nothing is in
//! flight then, and the device has no state of its own beside its queue.

use std::io::{IoSlice, IoSliceMut};

use backends::BlockBackend;
use guest_memory::GuestRam;
use machine::GuestEvent;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::{Chain, QueueError, Reader, Writer};

const SECTOR: u64 = 512;
const QUEUE_SIZE: u16 = 256;
/// Most data segments of a request: with header and status within the queue's size.
const SEGMENTS_MAX: u32 = 254;
/// Bytes copied at a time between guest memory and the back end.
const PIECE: usize = 256 << 10;
/// Sectors and ranges of one discard or write-zeroes request.
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
const DISCARD_RANGES_MAX: u32 = 64;
/// Bytes of the identity string (§5.2.6).
const ID_LEN: usize = 20;

const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

static BAD_REQUEST: GuestEvent = GuestEvent::new("malformed block request");

/// Why a request is answered with an error.
enum Failure {
    /// The request makes no sense.
    Malformed(&'static str),
    /// The device does not do that.
    Unsupported,
    /// The back end failed.
    Host(std::io::Error),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Host(error)
    }
}

/// A disk.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    id: [u8; ID_LEN],
    buffer: Vec<u8>,
    /// The driver knows no flush: what it writes is made durable before it is answered (§5.2.6.2).
    writes_through: bool,
    /// Reports of back-end failures, bounded as the guest can repeat them.
    failures: GuestEvent,
}

impl Block {
    /// A disk over `backend`, whose length is rounded down to whole sectors. The guest sees the first 20 bytes of
    /// `serial`.
    pub fn new(backend: Box<dyn BlockBackend>, serial: &str) -> Self {
        let mut id = [0; ID_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(byte, value)| *byte = value);
        let failures = GuestEvent::new("a disk's back end failed");
        Self { backend, id, buffer: vec![0; PIECE], writes_through: false, failures }
    }

    fn sectors(&self) -> u64 {
        self.backend.len().checked_div(SECTOR).unwrap_or(0)
    }

    /// The byte range of `len` bytes from `sector`, if it is on the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, Failure> {
        let inside = len.is_multiple_of(SECTOR)
            && sector
                .checked_add(len.checked_div(SECTOR).unwrap_or(0))
                .is_some_and(|end| end <= self.sectors());
        let start = sector.checked_mul(SECTOR).filter(|_| inside);
        start.ok_or(Failure::Malformed("a range beyond the disk"))
    }

    fn request(&mut self, chain: &mut Chain, ram: &GuestRam) {
        let Some(data_len) = chain.writable_len().checked_sub(1) else {
            BAD_REQUEST.note(|| "no room for the status".to_owned());
            return;
        };
        let readable = chain.readable_len();
        let mut header = [0; 16];
        let mut status = STATUS_ERROR;
        if chain.reader(ram).read(&mut header) == header.len() {
            let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
            let (kind, sector) = (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(sector));
            let data_in = readable.saturating_sub(16);
            let result = match kind {
                IN => self.read(chain, ram, sector, data_len),
                OUT => self.write(&mut payload(chain, ram), sector, data_in),
                FLUSH => self.backend.flush().map_err(Failure::Host),
                GET_ID => self.identify(&mut chain.writer(ram), data_len),
                DISCARD => self.discard(&mut payload(chain, ram), data_in, false),
                WRITE_ZEROES => self.discard(&mut payload(chain, ram), data_in, true),
                _ => Err(Failure::Unsupported),
            };
            let result = result.and_then(|()| self.write_through(kind));
            status = self.status(kind, sector, result);
        } else {
            BAD_REQUEST.note(|| format!("a header of {readable} bytes"));
        }
        finish(chain, ram, data_len, status);
    }

    /// Makes durable what a request of this kind wrote, for a driver that cannot ask for it.
    fn write_through(&self, kind: u32) -> Result<(), Failure> {
        if self.writes_through && matches!(kind, OUT | WRITE_ZEROES) {
            self.backend.flush()?;
        }
        Ok(())
    }

    fn status(&self, kind: u32, sector: u64, result: Result<(), Failure>) -> u8 {
        match result {
            Ok(()) => STATUS_OK,
            Err(Failure::Unsupported) => STATUS_UNSUPPORTED,
            Err(Failure::Malformed(what)) => {
                BAD_REQUEST.note(|| format!("type {kind}, sector {sector}: {what}"));
                STATUS_ERROR
            }
            Err(Failure::Host(error)) => {
                self.failures.note(|| format!("type {kind}, sector {sector}: {error}"));
                STATUS_ERROR
            }
        }
    }

    fn read(&mut self, chain: &mut Chain, ram: &GuestRam, sector: u64, len: u32) -> Result<(), Failure> {
        let mut at = self.range(sector, len.into())?;
        let mut left = len as usize;
        let mut writer = chain.writer(ram);
        while left > 0 {
            let Some(piece) = self.buffer.get_mut(..left.min(PIECE)) else { break };
            self.backend.read(at, &mut [IoSliceMut::new(piece)])?;
            writer.write(piece);
            at = at.saturating_add(piece.len() as u64);
            left = left.saturating_sub(piece.len());
        }
        Ok(())
    }

    fn write(&mut self, data: &mut Reader<'_>, sector: u64, len: u32) -> Result<(), Failure> {
        let mut at = self.range(sector, len.into())?;
        if self.backend.read_only() {
            return Err(Failure::Malformed("a write to a read-only disk"));
        }
        let mut left = len as usize;
        while left > 0 {
            let Some(piece) = self.buffer.get_mut(..left.min(PIECE)) else { break };
            if data.read(piece) != piece.len() {
                return Err(Failure::Malformed("less data than it says"));
            }
            self.backend.write(at, &[IoSlice::new(piece)])?;
            at = at.saturating_add(piece.len() as u64);
            left = left.saturating_sub(piece.len());
        }
        Ok(())
    }

    fn identify(&self, writer: &mut Writer<'_>, len: u32) -> Result<(), Failure> {
        let id = self.id.get(..ID_LEN.min(len as usize)).unwrap_or(&[]);
        writer.write(id);
        Ok(())
    }

    /// Discard and write-zeroes: a list of `{ u64 sector, u32 sectors, u32 flags }`.
    fn discard(&mut self, data: &mut Reader<'_>, len: u32, zeroes: bool) -> Result<(), Failure> {
        const RANGE: u32 = 16;
        if self.backend.read_only() {
            return Err(Failure::Malformed("a discard on a read-only disk"));
        }
        let count = len.checked_div(RANGE).unwrap_or(0);
        if count == 0 || count > DISCARD_RANGES_MAX || !len.is_multiple_of(RANGE) {
            return Err(Failure::Malformed("a bad number of ranges"));
        }
        for _ in 0..count {
            let Some(bytes) = data.read_array::<16>() else {
                return Err(Failure::Malformed("less data than it says"));
            };
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            // Bit 0 (unmap) is for write-zeroes only (§5.2.6.2).
            if flags & !u32::from(zeroes) != 0 {
                return Err(Failure::Unsupported);
            }
            if sectors > DISCARD_SECTORS_MAX {
                return Err(Failure::Malformed("a range that is too long"));
            }
            let len = u64::from(sectors).saturating_mul(SECTOR);
            let at = self.range(sector, len)?;
            if zeroes { self.backend.write_zeroes(at, len)? } else { self.backend.discard(at, len)? }
        }
        Ok(())
    }
}

/// The readable bytes after the header.
fn payload<'a>(chain: &'a Chain, ram: &'a GuestRam) -> Reader<'a> {
    let mut reader = chain.reader(ram);
    let _header = reader.read_array::<16>();
    reader
}

/// Writes the status byte, the last writable byte, behind the data. What the data part lacks (a failed read) becomes
/// zeros, so that the bytes counted as written are all written.
fn finish(chain: &mut Chain, ram: &GuestRam, data_len: u32, status: u8) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut writer = chain.append(ram);
    let mut missing = writer.remaining().saturating_sub(1);
    debug_assert!(missing <= data_len as usize);
    while missing > 0 {
        let piece = ZEROS.get(..missing.min(ZEROS.len())).unwrap_or(&ZEROS);
        if writer.write(piece) == 0 {
            return;
        }
        missing = missing.saturating_sub(piece.len());
    }
    writer.write(&[status]);
}

impl Device for Block {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 2, name: "virtio-blk", class: [1, 0x80, 0] }
    }

    fn features(&self) -> u64 {
        let common = FEATURE_SEG_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH;
        if self.backend.read_only() {
            common | FEATURE_READ_ONLY
        } else {
            common | FEATURE_DISCARD | FEATURE_WRITE_ZEROES
        }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    /// `struct virtio_blk_config` (§5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend(self.sectors().to_le_bytes()); // capacity
        config.extend(0u32.to_le_bytes()); // size_max
        config.extend(SEGMENTS_MAX.to_le_bytes()); // seg_max
        config.extend([0; 4]); // geometry
        config.extend((SECTOR as u32).to_le_bytes()); // blk_size
        config.extend([0; 8]); // topology
        config.extend([0; 2]); // writeback, unused
        config.extend(1u16.to_le_bytes()); // num_queues
        config.extend(DISCARD_SECTORS_MAX.to_le_bytes());
        config.extend(DISCARD_RANGES_MAX.to_le_bytes());
        config.extend(8u32.to_le_bytes()); // discard_sector_alignment: 4 KiB
        config.extend(DISCARD_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        config.extend(DISCARD_RANGES_MAX.to_le_bytes());
        config.push(1); // write_zeroes_may_unmap
        config.extend([0; 3]);
        config
    }

    fn start(&mut self, features: u64) {
        self.writes_through = features & FEATURE_FLUSH == 0;
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| self.request(chain, ram))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests;
