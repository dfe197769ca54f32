//! What is near the inputs of a corpus: the stand-in for a fuzzer where there is none.

use std::time::{Duration, Instant};

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

/// Replays every input of a target's corpus, then what is near: a thousand times, or as long as `VIV_FUZZ_SECONDS` says.
pub(crate) fn replay(target: &str, mut run: impl FnMut(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut inputs = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        inputs.push(std::fs::read(&path).unwrap());
        run(inputs.last().unwrap());
    }
    inputs.sort();
    assert!(inputs.len() > 3, "{} inputs", inputs.len());
    let seconds = std::env::var("VIV_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (begun, mut count) = (Instant::now(), 0u64);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    while seconds.map_or(count < 1000, |seconds| begun.elapsed() < Duration::from_secs(seconds)) {
        let input = near(&inputs, &mut chance);
        // What a panic was about can be read from here, and becomes an input of the corpus.
        std::fs::write(
            std::env::temp_dir().join(format!("viv-fuzz-{target}-{}", std::process::id())),
            &input,
        )
        .unwrap();
        run(&input);
        count += 1;
    }
    let _ =
        std::fs::remove_file(std::env::temp_dir().join(format!("viv-fuzz-{target}-{}", std::process::id())));
    println!("{target}: {count} inputs near {} of the corpus", inputs.len());
}

/// One or two inputs, changed in a few places.
fn near(inputs: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = inputs[chance.below(inputs.len())].clone();
    for _ in 0..=chance.below(6) {
        let at = chance.below(bytes.len() + 1);
        let len = chance.below(9).min(bytes.len() - at);
        match chance.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..at + len)),
            2 => {
                let other = &inputs[chance.below(inputs.len())];
                let from = chance.below(other.len() + 1);
                let len = chance.below(64).min(other.len() - from);
                bytes.splice(at..at, other[from..from + len].iter().copied());
            }
            3 => {
                let edges: [&[u8]; 8] = [
                    b"0",
                    b"-1",
                    b"1e999",
                    b"18446744073709551616",
                    b"null",
                    b"\"\"",
                    b"[]",
                    b"\xff\xff\xff\xff",
                ];
                bytes.splice(at..at + len, edges[chance.below(8)].iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = if chance.below(2) == 0 {
                        chance.below(256) as u8
                    } else {
                        *byte ^ 1 << chance.below(8)
                    };
                }
            }
        }
    }
    bytes
}
