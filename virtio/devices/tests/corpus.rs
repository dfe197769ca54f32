//! Replays the fuzzers' corpora, and a few thousand inputs made from a fixed seed.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../../../fuzz/bodies/virtio_device.rs"]
mod device;
#[path = "../../../fuzz/bodies/virtio_queue.rs"]
mod queue;

/// Panics of any thread, a device's too.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
}

fn check(drive: fn(&[u8]), input: &[u8]) {
    count_panics();
    drive(input);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "{input:x?}");
}

fn replay(target: &str, drive: fn(&[u8])) {
    let folder = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        check(drive, &std::fs::read(entry.expect("an entry").path()).expect("the input can be read"));
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus of {target} is empty");
}

/// Inputs of `len` bytes at most from a xorshift generator.
fn random(count: u32, len: usize, drive: fn(&[u8])) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..count {
        let len = next() as usize % len;
        // Half of the bytes are small: they are choices, indices and lengths.
        let bytes: Vec<u8> =
            (0..len).map(|_| if next() & 1 == 0 { next() as u8 & 0x0f } else { next() as u8 }).collect();
        check(drive, &bytes);
    }
}

#[test]
fn the_queues_corpus_holds() {
    replay("virtio_queue", queue::drive);
}

#[test]
fn the_devices_corpus_holds() {
    replay("virtio_device", device::drive);
}

#[test]
fn random_queues_hold() {
    random(3000, 4096, queue::drive);
}

#[test]
fn random_drivers_hold() {
    random(2000, 600, device::drive);
}
