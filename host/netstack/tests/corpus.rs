//! Replays the fuzzer's corpus, changes it at random, and tries inputs made from a fixed seed.
//!
//! `VIV_FUZZ_SECONDS=300` changes the corpus for that long instead of a few thousand times.

#[path = "../../../fuzz/bodies/netstack_frames.rs"]
mod body;

use std::time::{Duration, Instant};

fn corpus() -> Vec<Vec<u8>> {
    let folder = format!("{}/../../fuzz/corpus/netstack_frames", env!("CARGO_MANIFEST_DIR"));
    let entries = std::fs::read_dir(folder).expect("the corpus is there");
    let mut inputs: Vec<Vec<u8>> =
        entries.map(|entry| std::fs::read(entry.unwrap().path()).expect("the input can be read")).collect();
    inputs.sort();
    assert!(!inputs.is_empty());
    inputs
}

fn check(input: &[u8]) {
    if std::panic::catch_unwind(|| body::drive(input)).is_err() {
        panic!("{}", input.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    }
}

fn generator() -> impl FnMut() -> usize {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) as usize
    }
}

#[test]
fn the_corpus_holds() {
    for input in corpus() {
        check(&input);
    }
}

#[test]
fn changed_inputs_hold() {
    let seconds = std::env::var("VIV_FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let inputs = corpus();
    let mut next = generator();
    for round in 0.. {
        match until {
            Some(until) if Instant::now() >= until => return eprintln!("{round} inputs"),
            None if round == 3000 => return,
            _ => {}
        }
        let mut input = inputs[next() % inputs.len()].clone();
        for _ in 0..1 + next() % 8 {
            let at = next() % (input.len() + 1);
            match next() % 5 {
                0 if at < input.len() => input[at] = next() as u8,
                1 if at < input.len() => input[at] ^= 1 << (next() % 8),
                2 => drop(input.splice(at..at, (0..next() % 7).map(|i| (i * 37) as u8).collect::<Vec<_>>())),
                3 => drop(input.drain(at..(at + next() % 9).min(input.len()))),
                _ => {
                    let other = &inputs[next() % inputs.len()];
                    let from = next() % other.len();
                    input.splice(at..at, other[from..].iter().copied().take(40).collect::<Vec<_>>());
                }
            }
        }
        input.truncate(2000);
        check(&input);
    }
}

#[test]
fn random_inputs_hold() {
    let mut next = generator();
    for _ in 0..3000 {
        let len = next() % 700;
        // Half of the bytes are small: they are choices.
        let input: Vec<u8> =
            (0..len).map(|_| if next() & 1 == 0 { next() as u8 & 15 } else { next() as u8 }).collect();
        check(&input);
    }
}
