//! Bytes both ways over links of every kind.

mod common;

use std::time::Duration;

use common::{Net, Weather, config, exchange};
use netstack::{Limits, MTU};
use proptest::prelude::*;

#[test]
fn bytes_arrive_both_ways() {
    for v6 in [false, true] {
        let mut net = Net::usual();
        exchange(&mut net, v6, 3_000_000, 3_000_000, 1 << 20);
        assert!(net.whole > 60_000, "{}", net.whole);
    }
}

#[test]
fn a_peer_behind_a_small_mtu_gets_large_frames_to_be_cut() {
    for v6 in [false, true] {
        let mut net = Net::new(&config(), Limits::default(), 1500);
        exchange(&mut net, v6, 300_000, 3_000_000, 1 << 20);
        assert!(net.whole > 60_000, "{}", net.whole);
        assert_eq!(net.cut, 1500);
        let mut plain = config();
        plain.segmentation = false;
        let mut net = Net::new(&plain, Limits::default(), 1500);
        exchange(&mut net, v6, 300_000, 3_000_000, 1 << 20);
        assert_eq!(net.whole, 1500);
    }
}

#[test]
fn windows_of_one_byte_and_of_none() {
    let mut net = Net::usual();
    exchange(&mut net, false, 300, 300, 1);
    let limits = Limits { buffer_bytes: 0, small_buffer: 1, ..Limits::default() };
    let mut net = Net::new(&config(), limits, MTU);
    exchange(&mut net, false, 300, 300, 5000);
}

#[test]
fn weather() {
    for seed in 1..6 {
        let mut net = Net::usual();
        net.dice.0 = seed * 0x1234_5678_9abc_def1;
        net.weather = Weather { loss: 8, repeat: 8, reorder: 16 };
        exchange(&mut net, seed % 2 == 0, 200_000, 200_000, 65535);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the link loses, repeats or swaps, and however small buffers are: all bytes arrive, in order, once.
    #[test]
    fn any_link(
        v6: bool,
        up in 0usize..60_000,
        down in 0usize..60_000,
        guest_buffer in prop_oneof![500usize..5000, Just(65535usize), Just(1usize << 20)],
        small_buffer in prop_oneof![500usize..5000, Just(65535usize)],
        large: bool,
        segmentation: bool,
        mtu in prop_oneof![Just(1500usize), Just(9000), Just(MTU)],
        calm: bool,
        (loss, repeat, reorder) in (0u8..12, 0u8..24, 0u8..64),
        seed in 1u64..,
    ) {
        // Windows below a segment and reordering together keep two smoltcps repeating themselves for very long.
        let small_buffer = if calm || reorder == 0 { small_buffer } else { 65535 };
        let (handshake, buffer_bytes) = (Duration::from_secs(900), if large { 4 << 20 } else { 0 });
        let limits = Limits { small_buffer, buffer_bytes, handshake, ..Limits::default() };
        let mut link = config();
        link.segmentation = segmentation;
        let mut net = Net::new(&link, limits, mtu);
        net.dice.0 = seed;
        net.weather = if calm { Weather::default() } else { Weather { loss, repeat, reorder } };
        // The guest, smoltcp, takes a FIN for data that it cut at the end of its window; in bad weather more is sent than that.
        let guest_buffer = if calm { guest_buffer } else { 1 << 20 };
        exchange(&mut net, v6, up, down, guest_buffer);
    }
}
