//! Both ends of a link, and someone who writes over its memory.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use backends::FrameLink as _;
use frame_ring::{CAPACITY, Link, MAX_FRAME, MEMORY, MIN_FRAME, Sent, Side};

struct End {
    link: Link,
    /// What it sent and the other end has not received, by length and content.
    under_way: VecDeque<(usize, u8)>,
}

/// Steps of one byte: which end, and what it does.
pub(crate) fn drive(input: &[u8]) {
    let parts = frame_ring::pair().expect("there is memory");
    let bells = [parts.guest_bell, parts.network_bell].map(doorbell::Doorbell::from);
    let memory = File::from(parts.memory);
    let end = |side, mine: usize| {
        let memory = memory.try_clone().expect("there are descriptors").into();
        let link = Link::from_parts(memory, side, bells[mine].clone(), bells[1 - mine].clone());
        End { link: link.expect("it is a link"), under_way: VecDeque::new() }
    };
    let mut ends = [end(Side::Guest, 0), end(Side::Network, 1)];
    let mut spoilt = false;
    let mut buffer = vec![0; MAX_FRAME];
    let mut input = input.iter().copied();
    while let Some(step) = input.next() {
        let this = usize::from(step & 1);
        match step >> 1 & 7 {
            0..=2 => {
                let (Some(low), Some(high)) = (input.next(), input.next()) else { return };
                let len = usize::from(u16::from_le_bytes([low, high])) + usize::from(step >> 4) * 200;
                let frame = vec![low; len];
                let (front, back) = frame.split_at(len / 3);
                let sent = ends[this].link.send(&[front, back]);
                assert!(spoilt || sent.is_ok() == (MIN_FRAME..=MAX_FRAME).contains(&len));
                if sent == Ok(Sent::Taken) {
                    ends[this].under_way.push_back((len, low));
                }
            }
            3 | 4 => {
                let received = ends[this].link.receive(&mut buffer);
                let expected = ends[1 - this].under_way.pop_front();
                if let Ok(Some(len)) = received {
                    assert!((MIN_FRAME..=MAX_FRAME).contains(&len));
                }
                if !spoilt {
                    assert_eq!(received.expect("nobody broke it"), expected.map(|frame| frame.0));
                    let (len, byte) = expected.unwrap_or_default();
                    assert!(buffer[..len].iter().all(|found| *found == byte));
                }
            }
            5 => {
                let copies = ends[this].link.in_flight();
                if !spoilt {
                    let copies = copies.expect("nobody broke it");
                    let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
                    let expected = |end: &End| end.under_way.iter().map(|frame| frame.0).collect::<Vec<_>>();
                    assert_eq!(lengths(&copies.sent), expected(&ends[this]));
                    assert_eq!(lengths(&copies.received), expected(&ends[1 - this]));
                } else if let Ok(copies) = copies {
                    let bytes: usize = copies.sent.iter().chain(&copies.received).map(Vec::len).sum();
                    assert!(bytes <= 2 * CAPACITY as usize);
                }
            }
            6 => {
                let (Some(place), Some(low), Some(high)) = (input.next(), input.next(), input.next()) else {
                    return;
                };
                spoilt = true;
                let value = match step >> 4 {
                    0 => u32::from(low),
                    1 => u32::from(low) << 20 | u32::from(high),
                    2 => (u32::from(low) | u32::from(high) << 8) * 8,
                    3 => !u32::from(low),
                    _ => u32::from(low) << 24 | u32::from(high) << 3,
                };
                let at = match place {
                    0..16 => u64::from(place) * 64,
                    16..128 => 4096 + u64::from(place - 16) * 8,
                    _ => 4096 + u64::from(CAPACITY) + u64::from(place - 128) * 8,
                };
                memory.write_all_at(&value.to_le_bytes(), at % (MEMORY - 4)).expect("it is in the memory");
            }
            _ => drop(bells[this].answer()),
        }
    }
}
