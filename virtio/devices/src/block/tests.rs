use super::*;
use crate::testing::{Buffer, EVENT_INDEX, Guest, INDIRECT, VERSION_1};
use std::io;
use std::sync::{Arc, Mutex};

const SECTORS: u64 = 64;

#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    calls: Vec<String>,
    fails: bool,
    flush_fails: bool,
}

/// A disk in memory that notes what it is asked, shared with the test.
#[derive(Clone, Default)]
struct Memory {
    log: Arc<Mutex<Log>>,
    read_only: bool,
}

impl Memory {
    fn new() -> Self {
        let memory = Self::default();
        memory.log.lock().unwrap().bytes = (0..SECTORS * SECTOR).map(|at| (at / SECTOR) as u8).collect();
        memory
    }

    fn note(&self, call: String) -> io::Result<std::sync::MutexGuard<'_, Log>> {
        let mut log = self.log.lock().unwrap();
        log.calls.push(call);
        if log.fails { Err(io::Error::other("on purpose")) } else { Ok(log) }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap().calls)
    }
}

impl BlockBackend for Memory {
    fn len(&self) -> u64 {
        SECTORS * SECTOR + 100
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let log = self.note(format!("read {offset}"))?;
        let len = buffers[0].len();
        buffers[0].copy_from_slice(&log.bytes[offset as usize..][..len]);
        Ok(())
    }
    fn write(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut log = self.note(format!("write {offset}"))?;
        log.bytes[offset as usize..][..buffers[0].len()].copy_from_slice(&buffers[0]);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let log = self.note("flush".to_owned())?;
        if log.flush_fails { Err(io::Error::other("on purpose")) } else { Ok(()) }
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(format!("discard {offset}+{len}")).map(drop)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(format!("zero {offset}+{len}")).map(drop)
    }
}

/// With a driver that flushes, as Linux's does.
fn guest(memory: &Memory) -> Guest {
    let guest = Guest::new(Block::new(Box::new(memory.clone()), "viv-disk"));
    guest.initialise(VERSION_1 | EVENT_INDEX | INDIRECT | FEATURE_FLUSH);
    guest
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn status(guest: &mut Guest, header: &[u8], data: &[u8]) -> u8 {
    let used = guest.request(0, &[Buffer::Out(header), Buffer::Out(data), Buffer::In(1)]);
    assert_eq!(used.len, 1);
    used.data[0]
}

#[test]
fn sectors_are_read_into_any_split_of_buffers() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    for split in [&[1024u32, 1][..], &[1000, 24, 1], &[512, 513], &[1025], &[1, 1022, 2]] {
        let buffers: Vec<Buffer> = split.iter().map(|len| Buffer::In(*len)).collect();
        let header = header(IN, 5);
        let chain: Vec<Buffer> = std::iter::once(Buffer::Out(&header)).chain(buffers).collect();
        let used = guest.request(0, &chain);
        assert_eq!((used.len, used.data), (1025, [vec![5; 512], vec![6; 512], vec![STATUS_OK]].concat()));
    }
}

#[test]
fn sectors_are_written_and_flushed() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    assert_eq!(status(&mut guest, &header(OUT, 63), &[9; 512]), STATUS_OK);
    assert_eq!(status(&mut guest, &header(FLUSH, 0), &[]), STATUS_OK);
    assert_eq!(memory.calls(), ["write 32256", "flush"]);
    assert_eq!(memory.log.lock().unwrap().bytes[32256..], [9; 512]);
    // A header in two pieces, with data behind it in the same buffer.
    let whole = [header(OUT, 1), vec![7; 512]].concat();
    let used = guest.request(0, &[Buffer::Out(&whole[..9]), Buffer::Out(&whole[9..]), Buffer::In(1)]);
    assert_eq!(used.data, [STATUS_OK]);
    assert_eq!(memory.log.lock().unwrap().bytes[512..1024], [7; 512]);
}

#[test]
fn a_driver_that_cannot_flush_has_its_writes_made_durable_before_they_are_answered() {
    let memory = Memory::new();
    let mut guest = Guest::ready(Block::new(Box::new(memory.clone()), "viv-disk"));
    let zeroes = [0u64.to_le_bytes(), (8u64 | 1 << 32).to_le_bytes()].concat();
    assert_eq!(status(&mut guest, &header(OUT, 1), &[9; 512]), STATUS_OK);
    assert_eq!(status(&mut guest, &header(WRITE_ZEROES, 0), &zeroes), STATUS_OK);
    guest.request(0, &[Buffer::Out(&header(IN, 0)), Buffer::In(512), Buffer::In(1)]);
    assert_eq!(memory.calls(), ["write 512", "flush", "zero 0+4096", "flush", "read 0"]);
    // One that is not made durable has failed.
    memory.log.lock().unwrap().flush_fails = true;
    assert_eq!(status(&mut guest, &header(OUT, 1), &[9; 512]), STATUS_ERROR);
}

#[test]
fn nothing_beyond_the_disk_is_touched() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        let data = [1; 1024];
        assert_eq!(status(&mut guest, &header(OUT, sector), &data), STATUS_ERROR, "{sector}");
        let used = guest.request(0, &[Buffer::Out(&header(IN, sector)), Buffer::In(1024), Buffer::In(1)]);
        assert_eq!(
            (used.len, used.data),
            (1025, [vec![0; 1024], vec![STATUS_ERROR]].concat()),
            "zeros, not rubbish"
        );
    }
    assert_eq!(status(&mut guest, &header(OUT, 0), &[1; 100]), STATUS_ERROR, "half a sector");
    assert!(memory.calls().is_empty());
}

#[test]
fn discards_and_zeroes_are_checked() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    let range = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let two = [range(0, 8, 0), range(16, 1, 0)].concat();
    assert_eq!(status(&mut guest, &header(DISCARD, 0), &two), STATUS_OK);
    assert_eq!(status(&mut guest, &header(WRITE_ZEROES, 0), &range(60, 4, 1)), STATUS_OK);
    assert_eq!(memory.calls(), ["discard 0+4096", "discard 8192+512", "zero 30720+2048"]);
    for (kind, data, answer) in [
        (DISCARD, range(60, 5, 0), STATUS_ERROR),
        (WRITE_ZEROES, range(u64::MAX, 1, 0), STATUS_ERROR),
        (DISCARD, range(0, u32::MAX, 0), STATUS_ERROR),
        (DISCARD, range(0, 8, 1), STATUS_UNSUPPORTED),
        (WRITE_ZEROES, range(0, 8, 2), STATUS_UNSUPPORTED),
        (DISCARD, vec![0; 15], STATUS_ERROR),
        (DISCARD, vec![], STATUS_ERROR),
        (DISCARD, vec![0; 16 * 65], STATUS_ERROR),
    ] {
        assert_eq!(status(&mut guest, &header(kind, 0), &data), answer, "{kind} {data:?}");
    }
    assert!(memory.calls().is_empty());
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let memory = Memory { read_only: true, ..Memory::new() };
    let mut guest = guest(&memory);
    for kind in [OUT, DISCARD, WRITE_ZEROES] {
        assert_ne!(status(&mut guest, &header(kind, 0), &[0; 512]), STATUS_OK);
    }
    assert!(memory.calls().is_empty());
    guest.write(0, &0u32.to_le_bytes());
    let features = u64::from(guest.read32(4));
    assert_eq!(features & (FEATURE_READ_ONLY | FEATURE_DISCARD | FEATURE_WRITE_ZEROES), FEATURE_READ_ONLY);
}

#[test]
fn the_serial_and_the_size_are_told() {
    let mut guest = guest(&Memory::new());
    let used = guest.request(0, &[Buffer::Out(&header(GET_ID, 0)), Buffer::In(20), Buffer::In(1)]);
    assert_eq!(used.data, [&b"viv-disk"[..], &[0; 13]].concat());
    let used = guest.request(0, &[Buffer::Out(&header(GET_ID, 0)), Buffer::In(3), Buffer::In(1)]);
    assert_eq!(used.data, b"viv\0");
    assert_eq!((guest.read32(0x2000), guest.read32(0x2004)), (SECTORS as u32, 0));
}

#[test]
fn odd_requests_are_answered_as_far_as_possible() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    assert_eq!(status(&mut guest, &header(77, 0), &[]), STATUS_UNSUPPORTED);
    let used = guest.request(0, &[Buffer::Out(&[0; 15]), Buffer::In(1)]);
    assert_eq!(used.data, [STATUS_ERROR]);
    let used = guest.request(0, &[Buffer::Out(&header(OUT, 0)), Buffer::Out(&[0; 512])]);
    assert_eq!(used.len, 0, "no room for a status");
    let used = guest.request(0, &[Buffer::In(5)]);
    assert_eq!(used.data, [0, 0, 0, 0, STATUS_ERROR]);
    assert!(memory.calls().is_empty());
}

#[test]
fn the_back_ends_failures_are_passed_on() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    memory.log.lock().unwrap().fails = true;
    assert_eq!(status(&mut guest, &header(OUT, 0), &[0; 512]), STATUS_ERROR);
    assert_eq!(status(&mut guest, &header(FLUSH, 0), &[]), STATUS_ERROR);
    memory.log.lock().unwrap().fails = false;
    assert_eq!(status(&mut guest, &header(OUT, 0), &[0; 512]), STATUS_OK);
}

#[test]
fn a_disk_is_restored_between_any_two_requests() {
    let memory = Memory::new();
    let mut guest = guest(&memory);
    for round in 0..32u8 {
        guest.function.quiesce();
        guest.add(
            0,
            &[Buffer::Out(&header(OUT, round.into())), Buffer::Out(&[round + 100; 512]), Buffer::In(1)],
        );
        guest.ring(0);
        let saved = guest.function.save().unwrap();
        let mut next = Guest::with_ram(Block::new(Box::new(memory.clone()), "viv-disk"), guest.ram.clone());
        next.function.restore(&saved).unwrap();
        next.queues = guest.queues.clone();
        next.function.resume();
        assert_eq!(next.wait(0).data, [STATUS_OK]);
        guest = next;
    }
    assert_eq!(memory.calls().len(), 32);
    assert!((0..32).all(|sector| memory.log.lock().unwrap().bytes[sector * 512] == sector as u8 + 100));
}
