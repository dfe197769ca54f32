//! Replays what fuzzing has collected (`fuzz/corpus`), with the same body, in the normal test run.

#[path = "../../../fuzz/bodies/policy_language.rs"]
mod policy_language;

/// The inputs, and each of them cut short and with one byte changed.
#[test]
fn policy_language_corpus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/policy_language");
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let data = std::fs::read(entry.unwrap().path()).unwrap();
        policy_language::run(&data);
        for at in 0..data.len() {
            policy_language::run(&data[..at]);
            let mut changed = data.clone();
            changed[at] ^= 1 << (at % 8);
            policy_language::run(&changed);
        }
        count += 1;
    }
    assert!(count > 0, "the corpus is empty");
}
