//! Replays what the fuzzer found or started from; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/disk_json.rs"]
mod body;

#[test]
fn every_input_of_the_corpus_holds() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/disk_json");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        body::run(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 5, "{count} inputs");
}
