use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use frame_ring::{Link, Pair, Side, pair};

use super::*;
use crate::testing::{Buffer, EVENT_INDEX, Guest, INDIRECT, Used, VERSION_1};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const MTU: u16 = 65_520;
const RX: u16 = RECEIVE as u16;
const TX: u16 = TRANSMIT as u16;
const TRANSPORT: u64 = VERSION_1 | EVENT_INDEX | INDIRECT;
/// Header and frame of a segment as long as IPv4 has it.
const SEGMENT: usize = 12 + 14 + 65_535;

/// The far end of a card, and what the host has of it.
struct Far {
    host: NetHost,
    /// The network's side of the link.
    link: Link,
    memory: File,
    /// How often the card said that the link is broken.
    broken: Arc<AtomicU32>,
    guest_bell: Doorbell,
    network_bell: Doorbell,
}

/// A card with a link, and the link's other side.
fn card() -> (Net, Far) {
    let Pair { memory, guest_bell, network_bell } = pair().unwrap();
    let (guest_bell, network_bell) = (Doorbell::from(guest_bell), Doorbell::from(network_bell));
    let broken = Arc::new(AtomicU32::new(0));
    let counter = broken.clone();
    let on_broken = move || {
        counter.fetch_add(1, Ordering::SeqCst);
    };
    let (card, host) = Net::new(MAC, MTU, guest_bell.clone(), on_broken);
    let other = memory.try_clone().unwrap();
    let link = Link::from_parts(other, Side::Network, network_bell.clone(), guest_bell.clone()).unwrap();
    let far = Far { host, link, memory: File::from(memory), broken, guest_bell, network_bell };
    far.connect();
    (card, far)
}

impl Far {
    fn connect(&self) {
        let memory = self.memory.try_clone().unwrap().into();
        let (mine, theirs) = (self.guest_bell.clone(), self.network_bell.clone());
        self.host.connect(Box::new(Link::from_parts(memory, Side::Guest, mine, theirs).unwrap()));
    }

    /// A far end that was started again.
    fn restart(&mut self) {
        let memory = frame_ring::memory().unwrap();
        self.memory = File::from(memory.try_clone().unwrap());
        let (mine, theirs) = (self.network_bell.clone(), self.guest_bell.clone());
        self.link = Link::from_parts(memory, Side::Network, mine, theirs).unwrap();
        self.connect();
    }

    fn try_take(&mut self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; MAX_FRAME];
        let len = self.link.receive(&mut buffer).unwrap()?;
        buffer.truncate(len);
        Some(buffer)
    }

    /// The next frame that the guest sent.
    fn take(&mut self) -> Vec<u8> {
        eventually("a frame comes", || self.try_take())
    }

    fn give(&mut self, frame: &[u8]) {
        assert_eq!(self.link.send(&[frame]), Ok(Sent::Taken));
    }
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// A driver that negotiated everything.
fn ready(card: Net) -> Guest {
    let features = card.features();
    let guest = Guest::new(card);
    guest.initialise(TRANSPORT | features);
    assert_eq!(guest.status(), 15);
    guest
}

/// A frame without offloads; its bytes depend on `seed`.
fn frame(len: usize, seed: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (seed * 31 + at + (at >> 8)) as u8).collect();
    frame[..12].fill(0);
    frame
}

/// The frame as the driver sees it, in so many buffers.
fn seen(mut frame: Vec<u8>, buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

/// The next frame that the driver got: when it sees the first buffer all others are there, and their number in the header.
fn receive(guest: &mut Guest) -> Vec<u8> {
    let contents = |used: Used| used.data[..used.len as usize].to_vec();
    let mut bytes = contents(guest.wait(RX));
    let mut taken = 1;
    while bytes.len() < 12 || taken < u16::from_le_bytes([bytes[10], bytes[11]]) {
        bytes.extend(contents(guest.poll(RX).expect("all buffers of a frame are given back at once")));
        taken += 1;
    }
    bytes
}

fn status(guest: &Guest) -> u16 {
    guest.read16(0x2006)
}

#[test]
fn the_driver_sees_address_mtu_and_carrier() {
    let (card, _far) = card();
    let guest = ready(card);
    assert_eq!((guest.read32(0x2000), guest.read16(0x2004)), (2, 0x0700));
    assert_eq!((status(&guest), guest.read16(0x2008), guest.read16(0x200a)), (1, 1, MTU));
}

#[test]
fn frames_go_out_whole_whatever_they_are_made_of() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    for round in 0..400usize {
        let len = [26, 60 + round, 1514 + 12, SEGMENT, MAX_FRAME - round][round % 5];
        let sent = frame(len, round);
        let cuts = [round % 27, 12 + round % 14, len / 2 + round % 5].map(|cut| cut.min(len));
        let [a, b, c] = [cuts[0].min(cuts[1]), cuts[1], cuts[2].max(cuts[1])];
        let pieces = [&sent[..a], &sent[a..b], &sent[b..c], &sent[c..]];
        let pieces = pieces.iter().filter(|piece| !piece.is_empty());
        let buffers: Vec<_> = pieces.map(|piece| Buffer::Out(piece)).collect();
        assert_eq!(guest.request(TX, &buffers).len, 0);
        assert!(far.take() == sent, "round {round}");
    }
    assert_eq!(far.try_take(), None);
}

#[test]
fn frames_come_in_through_as_many_buffers_as_they_take() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    for round in 0..200usize {
        // Some lie over the end of the ring, some of those with a split header.
        let len = SEGMENT - 7 * round;
        let sizes = [1 + round % 20, 8191, 10_000, 12_000 + round, 20_000, 30_000];
        for size in sizes {
            guest.add(RX, &[Buffer::In(size as u32 / 2), Buffer::In(size as u32)]);
        }
        guest.ring(RX);
        far.give(&frame(len, round));
        let mut room = 0;
        let count = sizes.iter().take_while(|size| {
            let more = room < len;
            room += *size / 2 + *size;
            more
        });
        let expected = seen(frame(len, round), count.count() as u16);
        assert!(receive(&mut guest) == expected, "round {round}");
        // A short frame takes one buffer of those that are left, if one of them is no longer than that.
        while guest.queues[0].is_offering() {
            far.give(&frame(42, round));
            assert_eq!(receive(&mut guest), seen(frame(42, round), 1));
        }
    }
}

#[test]
fn a_frame_waits_for_enough_buffers() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    far.give(&frame(50_000, 1));
    far.give(&frame(100, 2));
    for _ in 0..4 {
        guest.add(RX, &[Buffer::In(10_000)]);
        guest.ring(RX);
        // Whatever is asked next has been looked at after the buffers.
        let sent = frame(26, 3);
        guest.request(TX, &[Buffer::Out(&sent)]);
        assert_eq!(guest.poll(RX), None);
    }
    guest.add(RX, &[Buffer::In(10_000)]);
    guest.ring(RX);
    assert!(receive(&mut guest) == seen(frame(50_000, 1), 5));
    guest.add(RX, &[Buffer::In(100)]);
    guest.ring(RX);
    assert_eq!(receive(&mut guest), seen(frame(100, 2), 1));
}

#[test]
fn a_full_link_holds_the_driver_back_and_loses_nothing() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    // So many the link holds.
    for number in 0..15 {
        let sent = frame(SEGMENT, number);
        guest.request(TX, &[Buffer::Out(&sent)]);
    }
    let added = 30;
    for number in 15..added {
        let sent = frame(SEGMENT, number);
        guest.add(TX, &[Buffer::Out(&sent)]);
        guest.ring(TX);
    }
    let mut done = 15;
    guest.function.quiesce();
    assert_eq!(guest.poll(TX), None, "there is no room");
    guest.function.resume();
    for number in 0..added {
        assert!(far.take() == frame(SEGMENT, number), "frame {number}");
    }
    while done < added {
        guest.wait(TX);
        done += 1;
    }
    assert_eq!(far.try_take(), None);
}

#[test]
fn what_is_no_frame_is_completed_and_not_sent() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    let before = BAD_FRAME.count();
    let long = vec![0; MAX_FRAME + 1];
    for buffers in [
        vec![Buffer::Out(&long[..25])],
        vec![Buffer::Out(&long)],
        vec![Buffer::In(100)],
        vec![Buffer::Out(&long[..100]), Buffer::In(100)],
    ] {
        let used = guest.request(TX, &buffers);
        assert_eq!(used.len, 0);
    }
    assert!(BAD_FRAME.count() >= before + 4);
    let sent = frame(26, 0);
    guest.request(TX, &[Buffer::Out(&sent)]);
    assert_eq!(far.take(), sent, "nothing came before it");
}

#[test]
fn offloads_come_to_those_who_negotiated_them() {
    let with = |flags: u8, gso: u8, seed| {
        let mut frame = frame(2000, seed);
        frame[..2].copy_from_slice(&[flags, gso]);
        frame
    };
    let all = [with(1, 1, 1), with(2, 0, 2), with(3, 4, 3), with(0, 3, 4), with(0, 5, 5), with(0, 0x81, 6)];
    let last = with(0, 0, 7);
    let checks: [(u64, &[Vec<u8>]); 3] = [
        (feature::MRG_RXBUF, &[with(0, 0, 2)]),
        (feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO6, &[with(2, 0, 2), with(3, 4, 3)]),
        (feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4, &[with(1, 1, 1), with(2, 0, 2)]),
    ];
    for (features, expected) in checks {
        let (card, mut far) = card();
        let mut guest = Guest::new(card);
        guest.initialise(TRANSPORT | features);
        for _ in 0..7 {
            guest.add(RX, &[Buffer::In(2000)]);
        }
        guest.ring(RX);
        all.iter().chain([&last]).for_each(|frame| far.give(frame));
        for frame in expected.iter().chain([&last]) {
            assert!(receive(&mut guest) == seen(frame.clone(), 1));
        }
    }
}

#[test]
fn a_driver_whose_buffers_do_not_merge_gets_what_fits() {
    let (card, mut far) = card();
    let mut guest = Guest::new(card);
    guest.initialise(TRANSPORT);
    guest.add(RX, &[Buffer::In(12), Buffer::In(1514)]);
    guest.add(RX, &[Buffer::In(12), Buffer::In(1514)]);
    guest.ring(RX);
    far.give(&frame(1527, 1));
    far.give(&frame(1526, 2));
    assert_eq!(receive(&mut guest), seen(frame(1526, 2), 1));
    far.give(&frame(26, 3));
    assert_eq!(receive(&mut guest), seen(frame(26, 3), 1));
}

#[test]
fn the_carrier_goes_and_comes_with_the_link() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    let generation = |guest: &Guest| (guest.read32(0x14) >> 8) as u8;
    let (first, signals) = (generation(&guest), guest.vm.messages().len());
    far.host.disconnect();
    eventually("the carrier is gone", || (status(&guest) == 0).then_some(()));
    assert_eq!(generation(&guest), first + 1);
    eventually("the driver is told", || (guest.vm.messages().len() == signals + 1).then_some(()));
    let sent = frame(60, 1);
    guest.request(TX, &[Buffer::Out(&sent)]);
    assert_eq!(far.try_take(), None, "it is lost");
    far.restart();
    eventually("the carrier is back", || (status(&guest) == 1).then_some(()));
    assert_eq!(generation(&guest), first + 2);
    guest.add(RX, &[Buffer::In(200)]);
    far.give(&frame(61, 2));
    let sent = frame(62, 3);
    guest.request(TX, &[Buffer::Out(&sent)]);
    assert_eq!((far.take(), receive(&mut guest)), (sent, seen(frame(61, 2), 1)));
    assert_eq!(far.broken.load(Ordering::SeqCst), 0);
}

#[test]
fn a_far_end_that_was_replaced_at_once_is_reached() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    for round in 0..20 {
        let sent = frame(SEGMENT, round);
        guest.add(RX, &[Buffer::In(100)]);
        guest.request(TX, &[Buffer::Out(&sent)]);
        assert!(far.take() == sent);
        far.restart();
        far.give(&frame(100, round));
        assert_eq!(receive(&mut guest), seen(frame(100, round), 1));
        assert_eq!(status(&guest), 1);
    }
}

#[test]
fn a_broken_link_is_given_up_and_said_once() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    guest.add(RX, &[Buffer::In(2000)]);
    guest.ring(RX);
    // The network's index of what it sent: behind the first ring's four words, 128 bytes apart.
    far.memory.write_all_at(&0xffff_0000u32.to_le_bytes(), 512).unwrap();
    far.guest_bell.ring();
    eventually("the carrier is gone", || (status(&guest) == 0).then_some(()));
    let sent = frame(60, 1);
    guest.request(TX, &[Buffer::Out(&sent)]);
    assert_eq!(far.broken.load(Ordering::SeqCst), 1);
    far.restart();
    far.give(&frame(77, 2));
    assert_eq!(receive(&mut guest), seen(frame(77, 2), 1));
    assert_eq!((far.broken.load(Ordering::SeqCst), guest.status()), (1, 15));
}

#[test]
fn a_card_is_restored_between_any_two_frames() {
    let (first, mut far) = card();
    let mut guest = ready(first);
    for round in 0..40 {
        let [a, b, c] = [3 * round, 3 * round + 1, 3 * round + 2];
        // On the link in both directions when the card stops.
        let sent = frame(1000 + round, a);
        guest.request(TX, &[Buffer::Out(&sent)]);
        far.give(&frame(SEGMENT, b));
        guest.add(RX, &[Buffer::In(40_000)]);
        guest.ring(RX);
        guest.function.quiesce();
        // In the driver's queues only.
        let waiting = frame(2000, c);
        let head = guest.add(TX, &[Buffer::Out(&waiting)]);
        guest.ring(TX);
        assert_eq!((guest.poll(TX), guest.poll(RX)), (None, None), "it is quiet, and one buffer is too few");
        let (card, next_far) = card();
        let mut next = guest.moved_to(card);
        drop(std::mem::replace(&mut far, next_far));
        next.function.resume();
        assert_eq!(next.wait(TX).id, u32::from(head));
        assert!(far.take() == frame(1000 + round, a), "what was on the link comes first");
        assert!(far.take() == waiting);
        next.add(RX, &[Buffer::In(40_000)]);
        next.ring(RX);
        assert!(receive(&mut next) == seen(frame(SEGMENT, b), 2));
        guest = next;
    }
}

#[test]
fn a_full_link_is_saved_and_goes_on_elsewhere() {
    let (first, far) = card();
    let mut guest = ready(first);
    for number in 0..15 {
        let sent = frame(SEGMENT, number);
        guest.request(TX, &[Buffer::Out(&sent)]);
    }
    let mut heads = Vec::new();
    for number in 15..20 {
        let sent = frame(SEGMENT, number);
        heads.push(guest.add(TX, &[Buffer::Out(&sent)]));
    }
    guest.ring(TX);
    // Twice, the second time with nothing of it sent on.
    let (second, _never_connected) = Net::new(MAC, MTU, Doorbell::new().unwrap(), || ());
    let between = guest.moved_to(second);
    drop(far);
    let (third, mut far) = card();
    let mut next = between.moved_to(third);
    next.function.resume();
    for number in 0..20 {
        assert!(far.take() == frame(SEGMENT, number), "frame {number}");
    }
    heads.iter().for_each(|head| assert_eq!(next.wait(TX).id, u32::from(*head)));
}

#[test]
fn states_that_cannot_be_are_refused() {
    for saved in [
        Saved { up: true, sent: vec![vec![0; 25]], received: vec![] },
        Saved { up: true, sent: vec![], received: vec![vec![0; MAX_FRAME + 1]] },
        Saved { up: true, sent: vec![vec![0; MAX_FRAME]; 249], received: vec![] },
    ] {
        let (mut card, _far) = card();
        assert!(card.restore(&saved.encode_to_vec()).is_err());
    }
}

#[test]
fn a_reset_in_the_middle_leaves_a_working_card() {
    let (card, mut far) = card();
    let mut guest = ready(card);
    for round in 0..30 {
        for number in 0..8 {
            let sent = frame(SEGMENT, number);
            guest.add(TX, &[Buffer::Out(&sent)]);
            guest.add(RX, &[Buffer::In(2000)]);
            guest.ring(number as u16 % 2);
        }
        guest.set_status(0);
        while far.try_take().is_some() {}
        guest.queues.fill_with(Default::default);
        guest.initialise(TRANSPORT | feature::MRG_RXBUF | feature::STATUS);
        guest.add(RX, &[Buffer::In(500)]);
        far.give(&frame(300, round));
        let sent = frame(400, round);
        guest.request(TX, &[Buffer::Out(&sent)]);
        assert_eq!(far.take(), sent);
        assert_eq!(receive(&mut guest), seen(frame(300, round), 1));
    }
}
