//! A disk that remembers what it was asked, in order, so that every moment at which the host's power could fail can be had again.
//!
//! What was written before the last flush is there afterwards. Of what came later any part may be: all, nothing, some requests, some
//! sectors of a request. What a discarded range reads as is not said at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backends::BlockBackend;
use e2e::Dice;

const SECTOR: usize = 512;

/// What a discarded range reads as: nothing that a file system has a use for.
const GARBAGE: u8 = 0xde;

/// What happened, as it did.
#[derive(Clone, Debug)]
enum Event {
    Write {
        offset: usize,
        bytes: Vec<u8>,
    },
    Discard {
        offset: usize,
        len: usize,
    },
    /// All that was asked before is durable.
    Flush,
    /// The guest said that it knows this record to be durable.
    Said(u64),
}

/// What a guest asked of its disk, and what it said meanwhile.
#[derive(Debug, Default)]
pub struct Ledger {
    events: Vec<Event>,
    /// The console's last line, as far as it has come.
    line: Vec<u8>,
}

impl Ledger {
    /// Hears the console: a line that is a number is a record.
    pub fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                let number = std::str::from_utf8(&line).ok().and_then(|text| text.trim().parse().ok());
                self.events.extend(number.map(Event::Said));
            } else {
                self.line.push(*byte);
            }
        }
    }

    /// How many moments there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing has happened.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// How many flushes there were.
    pub fn flushes(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Flush)).count()
    }

    /// How many discards there were.
    pub fn discards(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Discard { .. })).count()
    }

    /// The moment at which the first record was said.
    pub fn first_record(&self) -> Option<usize> {
        self.events.iter().position(|event| matches!(event, Event::Said(_)))
    }

    /// The moment before the next flush, when most is open: nothing was flushed since the one before.
    pub fn before_flush(&self, moment: usize) -> usize {
        let after = self.events.iter().skip(moment);
        after.take_while(|event| !matches!(event, Event::Flush)).count() + moment
    }

    /// The last record that was said before a moment; 0 for none.
    pub fn said(&self, moment: usize) -> u64 {
        let said = self.events.iter().take(moment).rev().find_map(|event| match event {
            Event::Said(number) => Some(*number),
            _ => None,
        });
        said.unwrap_or(0)
    }

    /// A disk of `len` bytes as it may be when the power failed at this moment, and how many requests were not durable yet.
    pub fn cut(&self, moment: usize, len: usize, dice: &mut Dice) -> (Vec<u8>, usize) {
        let before = self.events.get(..moment).unwrap_or(&self.events);
        let flushed = before.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let (durable, open) = before.split_at(flushed);
        let mut image = vec![0; len];
        durable.iter().for_each(|event| apply(&mut image, event, |_| true));
        // Also all of it and nothing of it.
        let share = [0, 1, 2, 3, 4][usize::try_from(dice.below(5)).unwrap_or(0)];
        for event in open {
            match dice.below(4) < share {
                // In parts, now and then: a sector is whole or not there.
                true if dice.below(8) == 0 => apply(&mut image, event, |_| dice.below(2) == 0),
                true => apply(&mut image, event, |_| true),
                false => {}
            }
        }
        let open = open.iter().filter(|event| matches!(event, Event::Write { .. } | Event::Discard { .. }));
        (image, open.count())
    }
}

/// Does a request to those sectors of the image that are `kept`.
fn apply(image: &mut [u8], event: &Event, mut kept: impl FnMut(usize) -> bool) {
    match event {
        Event::Write { offset, bytes } => {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if kept(number) {
                    let at = offset + number * SECTOR;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Event::Discard { offset, len } => image[*offset..offset + len].fill(GARBAGE),
        Event::Flush | Event::Said(_) => {}
    }
}

/// A disk whose requests are noted before they are done.
#[derive(Debug)]
pub struct Recording<B> {
    disk: B,
    ledger: Arc<Mutex<Ledger>>,
}

impl<B: BlockBackend> Recording<B> {
    /// Over a disk that reads as zeros.
    pub fn new(disk: B, ledger: Arc<Mutex<Ledger>>) -> Self {
        Self { disk, ledger }
    }

    fn note(&self, event: Event) {
        lock(&self.ledger).events.push(event);
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<B: BlockBackend> BlockBackend for Recording<B> {
    fn len(&self) -> u64 {
        self.disk.len()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.disk.read(offset, buffers)
    }

    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        self.note(Event::Write { offset: place(offset), bytes });
        self.disk.write(offset, buffers)
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()?;
        self.note(Event::Flush);
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Event::Discard { offset: place(offset), len: place(len) });
        self.disk.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Event::Write { offset: place(offset), bytes: vec![0; place(len)] });
        self.disk.write_zeroes(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sector: usize, byte: u8, sectors: usize) -> Event {
        Event::Write { offset: sector * SECTOR, bytes: vec![byte; sectors * SECTOR] }
    }

    #[test]
    fn a_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
        let mut ledger = Ledger { events: vec![write(0, 1, 2), Event::Flush], line: Vec::new() };
        ledger.hear(b"[ 1.0] booting\r\n7\r");
        ledger.hear(b"\n");
        ledger.events.extend([write(1, 2, 2), Event::Discard { offset: 0, len: SECTOR }, Event::Flush]);
        assert_eq!((ledger.len(), ledger.flushes(), ledger.discards()), (6, 2, 1));
        assert_eq!((ledger.first_record(), ledger.said(2), ledger.said(3)), (Some(2), 0, 7));
        assert_eq!([2, 3, 5, 6].map(|moment| ledger.before_flush(moment)), [5, 5, 5, 6]);
        let mut dice = Dice::of(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let (image, open) = ledger.cut(5, 4 * SECTOR, &mut dice);
            assert_eq!(open, 2);
            let sectors: Vec<u8> = image.iter().copied().step_by(SECTOR).collect();
            assert!(image.chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            seen.insert(sectors);
        }
        let all: Vec<[u8; 4]> = [1, GARBAGE]
            .into_iter()
            .flat_map(|first| [[1, 0], [1, 2], [2, 0], [2, 2]].map(|[a, b]| [first, a, b, 0]))
            .collect();
        assert!(seen.iter().all(|sectors| all.iter().any(|one| one[..] == sectors[..])), "{seen:?}");
        assert_eq!(seen.len(), all.len(), "each of them");
        assert_eq!(ledger.cut(6, 4 * SECTOR, &mut dice).1, 0, "behind the last flush nothing is open");
    }
}
