//! Replays what the fuzzer found or started from; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/disk_folder.rs"]
mod folder;
#[path = "../../../fuzz/bodies/disk_json.rs"]
mod json;

/// Every input of a target's corpus.
fn replay(target: &str, body: fn(&[u8])) {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/");
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{corpus}{target}")).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        body(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 5, "{count} inputs");
}

#[test]
fn every_description_of_the_corpus_holds() {
    replay("disk_json", json::run);
}

#[test]
fn every_folder_of_the_corpus_holds() {
    replay("disk_folder", folder::run);
}
