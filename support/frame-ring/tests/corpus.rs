//! Replays the fuzzer's corpus, and some thousand inputs made from a fixed seed.

#[path = "../../../fuzz/bodies/frame_ring.rs"]
mod body;

#[test]
fn the_corpus_holds() {
    let folder = format!("{}/../../fuzz/corpus/frame_ring", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is there") {
        body::drive(&std::fs::read(entry.expect("an entry").path()).expect("the input can be read"));
        inputs += 1;
    }
    assert!(inputs > 0, "the corpus is empty");
}

/// Inputs from a xorshift generator; every second one leaves the memory alone, so that what arrives is compared.
#[test]
fn random_steps_hold() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..2000 {
        let steps = next() % 200;
        let mut input = Vec::new();
        for _ in 0..steps {
            let step = next() as u8;
            let spoils = step >> 1 & 7 == 6;
            if round % 2 == 0 && spoils {
                continue;
            }
            input.push(step);
            let more = match step >> 1 & 7 {
                0..=2 => 2,
                6 => 3,
                _ => 0,
            };
            // Half of the places are words of the rings.
            let small = next() & 1 == 0;
            input.extend((0..more).map(|_| if small { next() as u8 & 15 } else { next() as u8 }));
        }
        body::drive(&input);
    }
}
