//! Tests of the devices that need no file of their own: rng, pmem, console, fs.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};

use backends::{ConsoleBackend, EntropySource};
use fuse_wire::RequestHandler;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::QueueError;
use crate::testing::{Buffer, Guest};
use crate::{Console, Fs, Pmem, Rng};

struct Counting(u8);

impl EntropySource for Counting {
    fn fill(&self, bytes: &mut [u8]) -> std::io::Result<()> {
        if self.0 == 0 {
            return Err(std::io::Error::other("none"));
        }
        bytes.fill(self.0);
        Ok(())
    }
}

#[test]
fn random_bytes_fill_the_buffer_up_to_a_limit() {
    let mut guest = Guest::ready(Rng::new(Box::new(Counting(7))));
    let used = guest.request(0, &[Buffer::In(10), Buffer::In(20)]);
    assert_eq!((used.len, used.data), (30, vec![7; 30]));
    let used = guest.request(0, &[Buffer::In(5000)]);
    assert_eq!((used.len, &used.data[4095..4097]), (4096, &[7, 0xa5][..]));
    assert_eq!(guest.request(0, &[Buffer::Out(&[1])]).len, 0);
    let mut dry = Guest::ready(Rng::new(Box::new(Counting(0))));
    assert_eq!(dry.request(0, &[Buffer::In(10)]).len, 0);
}

#[test]
fn a_random_source_is_restored_between_any_two_requests() {
    let mut guest = Guest::ready(Rng::new(Box::new(Counting(1))));
    for number in 1..33u8 {
        assert_eq!(guest.request(0, &[Buffer::In(3)]).data, [number; 3]);
        guest.function.quiesce();
        let heads = [guest.add(0, &[Buffer::In(8)]), guest.add(0, &[Buffer::In(2), Buffer::In(2)])];
        guest.ring(0);
        assert_eq!(guest.poll(0), None, "it is quiet");
        let mut next = guest.moved_to(Rng::new(Box::new(Counting(number + 1))));
        next.function.resume();
        for (head, len) in heads.into_iter().zip([8, 4]) {
            let used = next.wait(0);
            assert_eq!((used.id, used.data), (u32::from(head), vec![number + 1; len]));
        }
        guest = next;
    }
}

#[test]
fn persistent_memory_is_restored_between_any_two_requests() {
    let pmem = || Pmem::new(0x40_0000_0000, 0x20_0000);
    let mut guest = Guest::ready(pmem());
    for _ in 0..32 {
        assert_eq!(guest.request(0, &[Buffer::Out(&[0; 4]), Buffer::In(4)]).data, [0; 4]);
        guest.function.quiesce();
        let heads = [0u32, 1]
            .map(|request| guest.add(0, &[Buffer::Out(&request.to_le_bytes()), Buffer::In(4)]))
            .map(u32::from);
        guest.ring(0);
        assert_eq!(guest.poll(0), None, "it is quiet");
        let mut next = guest.moved_to(pmem());
        next.function.resume();
        for (head, answer) in heads.into_iter().zip([0u8, 0xff]) {
            let used = next.wait(0);
            assert_eq!((used.id, used.data), (head, vec![answer; 4]));
        }
        guest = next;
    }
}

#[test]
fn flushes_of_persistent_memory_succeed_and_nothing_else_does() {
    let mut guest = Guest::ready(Pmem::new(0x40_0000_0000, 0x20_0000));
    assert_eq!((guest.read32(0x2004), guest.read32(0x2008)), (0x40, 0x20_0000));
    assert_eq!(guest.request(0, &[Buffer::Out(&[0; 4]), Buffer::In(4)]).data, [0; 4]);
    assert_eq!(guest.request(0, &[Buffer::Out(&[1, 0, 0, 0]), Buffer::In(4)]).data, [0xff; 4]);
    assert_eq!(guest.request(0, &[Buffer::Out(&[0; 3]), Buffer::In(4)]).data, [0xff; 4]);
    assert_eq!(guest.request(0, &[Buffer::Out(&[0; 4])]).len, 0);
}

#[derive(Default)]
struct Screen(Mutex<Vec<u8>>);

impl ConsoleBackend for Screen {
    fn output(&self, bytes: &[u8]) {
        self.0.lock().unwrap().extend_from_slice(bytes);
    }
}

#[test]
fn the_console_carries_bytes_both_ways() {
    let screen = Arc::new(Screen::default());
    let (console, input) = Console::new(screen.clone()).unwrap();
    assert_eq!(input.write(b"early "), 6);
    let mut guest = Guest::ready(console);
    let text: Vec<u8> = (0..10_000u32).map(|byte| byte as u8).collect();
    guest.request(1, &[Buffer::Out(&text[..1]), Buffer::Out(&text[1..])]);
    assert_eq!(*screen.0.lock().unwrap(), text);
    guest.set_status(0);
    assert_eq!(input.write(b"typed"), 5);
    guest.queues.fill_with(Default::default);
    guest.initialise(crate::testing::VERSION_1);
    let used = guest.request(0, &[Buffer::In(3)]);
    assert_eq!((used.len, used.data), (3, b"ear".to_vec()));
    assert_eq!(guest.request(0, &[Buffer::In(20)]).data[..8], *b"ly typed");
    guest.add(0, &[Buffer::In(8)]);
    input.write(b"later");
    assert_eq!(guest.wait(0).data, b"later\xa5\xa5\xa5");
}

#[test]
fn input_that_nobody_reads_is_bounded() {
    let (_console, input) = Console::new(Arc::new(Screen::default())).unwrap();
    assert_eq!(input.write(&[0; 100_000]), 65_536);
    assert_eq!(input.write(&[0; 1]), 0);
}

#[test]
fn unread_input_survives_save_and_restore() {
    let (console, input) = Console::new(Arc::new(Screen::default())).unwrap();
    let guest = Guest::ready(console);
    input.write(b"unread");
    guest.function.quiesce();
    let saved = guest.function.save().unwrap();
    let (console, _) = Console::new(Arc::new(Screen::default())).unwrap();
    let mut next = Guest::with_ram(console, guest.ram.clone());
    next.function.restore(&saved).unwrap();
    next.queues = guest.queues.clone();
    next.function.resume();
    assert_eq!(next.request(0, &[Buffer::In(6)]).data, b"unread");
}

#[test]
fn a_console_is_restored_with_output_and_room_for_input_waiting() {
    let new = || {
        let screen = Arc::new(Screen::default());
        let (console, input) = Console::new(screen.clone()).unwrap();
        (console, input, screen)
    };
    let (console, mut input, mut screen) = new();
    let mut guest = Guest::ready(console);
    for round in 0..16u8 {
        let room = guest.add(0, &[Buffer::In(4)]);
        guest.ring(0);
        // Answered after the room for input was looked at: there is nothing to put into it.
        guest.request(1, &[Buffer::Out(&[round])]);
        guest.function.quiesce();
        let waiting = guest.add(1, &[Buffer::Out(&[round, 1]), Buffer::Out(&[round, 2])]);
        guest.ring(1);
        // Typed while it is quiet: the next device has it, and only that one.
        assert_eq!(input.write(&[round, 3]), 2);
        assert_eq!((guest.poll(0), guest.poll(1)), (None, None), "it is quiet");
        let (console, next_input, next_screen) = new();
        let mut next = guest.moved_to(console);
        next.function.resume();
        assert_eq!(next.wait(1).id, u32::from(waiting));
        assert_eq!(*next_screen.0.lock().unwrap(), [round, 1, round, 2]);
        let used = next.wait(0);
        assert_eq!((used.id, used.len, used.data), (room.into(), 2, vec![round, 3, 0xa5, 0xa5]));
        let before = if round == 0 { vec![] } else { vec![round - 1, 1, round - 1, 2] };
        assert_eq!(*screen.0.lock().unwrap(), [before, vec![round]].concat(), "output comes out once");
        (guest, input, screen) = (next, next_input, next_screen);
    }
}

/// Answers each request with its bytes plus one; remembers resets, which are its session.
#[derive(Default)]
struct PlusOne(Mutex<u32>);

impl RequestHandler for PlusOne {
    fn handle(&self, request: &[IoSlice<'_>], reply: &mut [IoSliceMut<'_>]) -> usize {
        let bytes: Vec<u8> =
            request.iter().flat_map(|slice| slice.iter().map(|byte| byte.wrapping_add(1))).collect();
        let len = bytes.len().min(reply[0].len());
        reply[0][..len].copy_from_slice(&bytes[..len]);
        len
    }
    fn reset(&self) {
        *self.0.lock().unwrap() += 1;
    }
    fn save(&self) -> Vec<u8> {
        self.0.lock().unwrap().to_le_bytes().to_vec()
    }
    fn restore(&self, state: &[u8]) -> Result<(), fuse_wire::RestoreError> {
        let state = state.try_into().map_err(|_| fuse_wire::RestoreError::Damaged("its length"))?;
        let number = u32::from_le_bytes(state);
        if number == 13 {
            return Err(fuse_wire::RestoreError::Unfit("unlucky"));
        }
        *self.0.lock().unwrap() = number;
        Ok(())
    }
}

#[test]
fn file_requests_are_carried_whole() {
    let handler = Arc::new(PlusOne::default());
    let mut guest = Guest::ready(Fs::new("vivarium", handler.clone()));
    assert_eq!(guest.read32(0x2000), u32::from_le_bytes(*b"viva"));
    assert_eq!(guest.read32(0x2024), 1, "request queues");
    let resets = *handler.0.lock().unwrap();
    for queue in 0..2 {
        let used =
            guest.request(queue, &[Buffer::Out(&[1, 2]), Buffer::Out(&[3]), Buffer::In(2), Buffer::In(5)]);
        assert_eq!((used.len, used.data), (3, vec![2, 3, 4, 0xa5, 0xa5, 0xa5, 0xa5]));
        assert_eq!(guest.request(queue, &[Buffer::Out(&[1, 2])]).len, 0);
    }
    let large = guest.request(1, &[Buffer::Out(&vec![5; 1 << 20]), Buffer::In(1 << 20)]);
    assert_eq!((large.len, large.data[(1 << 20) - 1]), (1 << 20, 6));
    let small = guest.request(1, &[Buffer::Out(&[9]), Buffer::In(100)]);
    assert_eq!((small.len, &small.data[..2]), (1, &[10, 0xa5][..]), "nothing of the older reply");
    let too_large = guest.request(1, &[Buffer::Out(&[9]), Buffer::In(2 << 20)]);
    assert_eq!(too_large.len, 0);
    guest.set_status(0);
    assert_eq!(*handler.0.lock().unwrap(), resets + 1);
}

#[test]
fn a_file_systems_session_moves_with_the_device() {
    let handler = Arc::new(PlusOne::default());
    let mut guest = Guest::ready(Fs::new("vivarium", handler.clone()));
    guest.request(1, &[Buffer::Out(&[1]), Buffer::In(1)]);
    *handler.0.lock().unwrap() = 77;
    guest.function.quiesce();
    let saved = guest.function.save().unwrap();
    let successor = Arc::new(PlusOne::default());
    let next = Guest::with_ram(Fs::new("vivarium", successor.clone()), guest.ram.clone());
    next.function.restore(&saved).unwrap();
    assert_eq!(*successor.0.lock().unwrap(), 77);
    *handler.0.lock().unwrap() = 13;
    let unlucky = guest.function.save().unwrap();
    let next = Guest::with_ram(Fs::new("vivarium", Arc::new(PlusOne::default())), guest.ram.clone());
    assert!(next.function.restore(&unlucky).is_err(), "the file server refused");
}

/// Says which server it is.
struct Numbered(u8);

impl RequestHandler for Numbered {
    fn handle(&self, request: &[IoSlice<'_>], reply: &mut [IoSliceMut<'_>]) -> usize {
        let bytes = [&[self.0], &request[0][..]].concat();
        reply[0][..bytes.len()].copy_from_slice(&bytes);
        bytes.len()
    }
    fn reset(&self) {}
    fn save(&self) -> Vec<u8> {
        vec![1, 2, 3]
    }
    fn restore(&self, state: &[u8]) -> Result<(), fuse_wire::RestoreError> {
        assert_eq!(state, [1, 2, 3]);
        Ok(())
    }
}

#[test]
fn a_file_system_is_restored_between_any_two_requests() {
    let device = |number| Fs::new("vivarium", Arc::new(Numbered(number)));
    let mut guest = Guest::ready(device(0));
    for number in 0..32u8 {
        assert_eq!(guest.request(1, &[Buffer::Out(&[7]), Buffer::In(2)]).data, [number, 7]);
        guest.function.quiesce();
        let waiting = [(0, 5), (1, 6), (1, 8)]
            .map(|(queue, byte)| (queue, byte, guest.add(queue, &[Buffer::Out(&[byte]), Buffer::In(2)])));
        guest.ring(1);
        guest.ring(0);
        assert_eq!((guest.poll(0), guest.poll(1)), (None, None), "it is quiet");
        let mut next = guest.moved_to(device(number + 1));
        next.function.resume();
        for (queue, byte, head) in waiting {
            let used = next.wait(queue);
            assert_eq!((used.id, used.data), (u32::from(head), vec![number + 1, byte]));
        }
        guest = next;
    }
}

/// Panics at its first request.
struct PanicsOnce(bool);

impl Device for PanicsOnce {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 4, name: "panics-once", class: [0xff, 0, 0] }
    }
    fn queues(&self) -> Vec<u16> {
        vec![64]
    }
    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(index, |chain, ram| {
            assert!(std::mem::replace(&mut self.0, true), "the first request");
            chain.writer(ram).write(b"fine");
        })
    }
    fn reset(&mut self) {}
}

#[test]
fn a_device_that_panicked_serves_again_after_a_reset() {
    let mut guest = Guest::ready(PanicsOnce(false));
    guest.add(0, &[Buffer::In(4)]);
    guest.ring(0);
    guest.wait_for_needs_reset();
    guest.queues.fill_with(Default::default);
    guest.initialise(crate::testing::VERSION_1);
    assert_eq!(guest.request(0, &[Buffer::In(4)]).data, b"fine");
}
