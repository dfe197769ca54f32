//! Runs the fuzz target's body on its corpus, and on every prefix and every single changed byte of it.

#[path = "../../../fuzz/bodies/agent_proto.rs"]
mod body;

use std::path::Path;

#[test]
fn the_corpus_and_what_is_near_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/agent_proto");
    let mut count = 0;
    for entry in std::fs::read_dir(&corpus).expect("the corpus") {
        let seed = std::fs::read(entry.expect("an entry").path()).expect("a file");
        for end in 0..=seed.len() {
            body::drive(&seed[..end]);
        }
        for at in 0..seed.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, seed[at] ^ 1, seed[at].wrapping_add(1)] {
                let mut near = seed.clone();
                near[at] = value;
                body::drive(&near);
            }
        }
        count += 1;
    }
    assert!(count >= 6, "the corpus has {count} seeds");
}
