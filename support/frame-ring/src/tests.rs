//! Links in real shared memory, each side with a mapping of its own.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use doorbell::{Doorbell, Interest, Waiter};

use super::*;

/// Both sides of a new link, and its memory.
fn link() -> (Link, Link, File) {
    let Pair { memory, guest_bell, network_bell } = pair().unwrap();
    let (guest_bell, network_bell) = (Doorbell::from(guest_bell), Doorbell::from(network_bell));
    let clone = || memory.try_clone().unwrap();
    let guest = Link::from_parts(clone(), Side::Guest, guest_bell.clone(), network_bell.clone()).unwrap();
    let network = Link::from_parts(clone(), Side::Network, network_bell, guest_bell).unwrap();
    (guest, network, File::from(memory))
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add((at ^ at >> 8) as u8)).collect()
}

fn received(link: &mut Link) -> Option<Vec<u8>> {
    let mut buffer = vec![0; MAX_FRAME];
    let len = link.receive(&mut buffer).unwrap()?;
    buffer.truncate(len);
    Some(buffer)
}

#[test]
fn frames_arrive_whole_and_in_order_both_ways() {
    let (mut guest, mut network, _) = link();
    for round in 0..200usize {
        for (len, seed) in [(MIN_FRAME, 1), (MAX_FRAME, 2), (27 + round, 3), (60_000 + 13 * round, 4)] {
            let sent = frame(len, seed);
            let cut = round * 7 % len;
            assert_eq!(guest.send(&[&sent[..cut], &[], &sent[cut..]]), Ok(Sent::Taken));
            assert_eq!(network.send(&[&sent]), Ok(Sent::Taken));
        }
        for (len, seed) in [(MIN_FRAME, 1), (MAX_FRAME, 2), (27 + round, 3), (60_000 + 13 * round, 4)] {
            assert!(received(&mut network).unwrap() == frame(len, seed));
            assert!(received(&mut guest).unwrap() == frame(len, seed));
        }
        assert_eq!((received(&mut guest), received(&mut network)), (None, None));
    }
}

#[test]
fn a_full_ring_takes_no_more_and_rings_when_half_is_free() {
    let (mut guest, mut network, _) = link();
    let mut sent = 0;
    while guest.send(&[&frame(MAX_FRAME, sent)]) == Ok(Sent::Taken) {
        sent += 1;
    }
    assert_eq!(usize::from(sent), CAPACITY as usize / (MAX_FRAME + 8));
    let mut taken = 0;
    while !guest.bell().answer() {
        assert!(received(&mut network).unwrap() == frame(MAX_FRAME, taken));
        taken += 1;
    }
    assert_eq!(taken, sent.div_ceil(2));
    assert_eq!(guest.send(&[&frame(MAX_FRAME, 0)]), Ok(Sent::Taken));
}

#[test]
fn impossible_lengths_are_refused_and_break_nothing() {
    let (mut guest, mut network, _) = link();
    for len in [0, MIN_FRAME - 1, MAX_FRAME + 1, CAPACITY as usize] {
        assert!(guest.send(&[&frame(len, 0)]).is_err());
    }
    guest.send(&[&frame(100, 1)]).unwrap();
    guest.send(&[&frame(99, 2)]).unwrap();
    assert!(network.receive(&mut [0; 99]).is_err(), "too short a buffer");
    assert_eq!(received(&mut network), Some(frame(99, 2)));
}

#[test]
fn what_is_in_flight_can_be_copied_and_stays() {
    let (mut guest, mut network, _) = link();
    (0..20).for_each(|_| drop((guest.send(&[&frame(60_000, 0)]), received(&mut network))));
    guest.send(&[&frame(1000, 1)]).unwrap();
    guest.send(&[&frame(60_000, 2)]).unwrap();
    network.send(&[&frame(77, 3)]).unwrap();
    let both = backends::FrameLink::in_flight(&guest).unwrap();
    assert!(both.sent == [frame(1000, 1), frame(60_000, 2)] && both.received == [frame(77, 3)]);
    assert!(received(&mut network).unwrap() == frame(1000, 1));
    let both = backends::FrameLink::in_flight(&network).unwrap();
    assert!(both.received == [frame(60_000, 2)] && both.sent == [frame(77, 3)]);
    assert_eq!(received(&mut guest), Some(frame(77, 3)));
}

#[test]
fn a_side_that_was_started_again_goes_on_with_new_memory() {
    let (mut guest, network, _) = link();
    guest.send(&[&frame(100, 1)]).unwrap();
    let (mine, theirs) = (network.bell().clone(), guest.bell().clone());
    drop(network);
    let memory = memory().unwrap();
    let clone = memory.try_clone().unwrap();
    let mut network = Link::from_parts(clone, Side::Network, mine.clone(), theirs.clone()).unwrap();
    network.send(&[&frame(101, 2)]).unwrap();
    let mut guest = Link::from_parts(memory, Side::Guest, theirs, mine).unwrap();
    assert_eq!(received(&mut network), None, "what was in flight is lost");
    assert_eq!(received(&mut guest), Some(frame(101, 2)));
    guest.send(&[&frame(102, 3)]).unwrap();
    assert!(network.bell().answer());
    assert_eq!(received(&mut network), Some(frame(102, 3)));
}

#[test]
fn the_memory_keeps_its_length() {
    let memory = File::from(memory().unwrap());
    assert_eq!(memory.metadata().unwrap().len(), MEMORY);
    assert!(memory.set_len(MEMORY - 1).is_err() && memory.set_len(MEMORY + 1).is_err());
    let bell = Doorbell::new().unwrap();
    let other = rustix::fs::memfd_create("other", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    assert!(Link::from_parts(other, Side::Guest, bell.clone(), bell).is_err());
}

#[test]
fn a_broken_ring_closes_the_link_for_good() {
    let (mut guest, mut network, memory) = link();
    guest.send(&[&frame(100, 1)]).unwrap();
    // The length of the first record.
    memory.write_all_at(&(1u32 << 20).to_le_bytes(), 4096).unwrap();
    let broken = network.receive(&mut vec![0; MAX_FRAME]);
    assert!(broken.is_err());
    memory.write_all_at(&100u32.to_le_bytes(), 4096).unwrap();
    assert_eq!(network.receive(&mut vec![0; MAX_FRAME]), broken);
    assert!(network.send(&[&frame(100, 1)]).is_err());
    // The other side has nothing to complain about.
    assert_eq!(guest.send(&[&frame(100, 1)]), Ok(Sent::Taken));
    // The network's count of what it received, which no record ends at.
    memory.write_all_at(&4100u32.to_le_bytes(), 128).unwrap();
    while guest.send(&[&frame(MAX_FRAME, 1)]) == Ok(Sent::Taken) {}
    assert!(guest.send(&[&frame(100, 1)]).is_err());
}

/// Receives `count` frames of different lengths, echoes every one, and sleeps when there is nothing to do.
fn echo(link: &mut Link, count: u32) -> u32 {
    let waiter = Waiter::new().unwrap();
    waiter.add(link.bell(), 0, Interest::READ).unwrap();
    let (mut buffer, mut events, mut wakes) = (vec![0; MAX_FRAME], Vec::new(), 0);
    let mut wait = |link: &Link| {
        waiter.wait(&mut events, None).unwrap();
        link.bell().answer();
        wakes += 1;
    };
    for _ in 0..count {
        let len = loop {
            match link.receive(&mut buffer).unwrap() {
                Some(len) => break len,
                None => wait(link),
            }
        };
        while link.send(&[&buffer[..len]]).unwrap() == Sent::Full {
            wait(link);
        }
    }
    wakes
}

/// Two threads, each of which sleeps on its bell whenever it finds no frame or no room. A lost wake-up would hang both.
#[test]
fn nothing_is_lost_between_two_that_sleep() {
    const COUNT: u32 = 30_000;
    let (mut guest, mut network, _) = link();
    let thread = std::thread::spawn(move || echo(&mut network, COUNT));
    let waiter = Waiter::new().unwrap();
    waiter.add(guest.bell(), 0, Interest::READ).unwrap();
    let length = |number: u32| MIN_FRAME + (number.wrapping_mul(2_654_435_761) >> 16) as usize % (4000);
    let (mut sent, mut back, mut events) = (0, 0, Vec::new());
    let mut buffer = vec![0; MAX_FRAME];
    while back < COUNT {
        while sent < COUNT && guest.send(&[&frame(length(sent), sent as u8)]).unwrap() == Sent::Taken {
            sent += 1;
        }
        while let Some(len) = guest.receive(&mut buffer).unwrap() {
            assert!(buffer[..len] == frame(length(back), back as u8), "frame {back}");
            back += 1;
        }
        if back < COUNT {
            waiter.wait(&mut events, None).unwrap();
            guest.bell().answer();
        }
    }
    let wakes = thread.join().unwrap();
    assert!(wakes < COUNT, "{wakes} wake-ups for {COUNT} frames");
}
