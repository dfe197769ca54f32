//! Replays what fuzzing has collected (`fuzz/corpus`), with the same bodies, in the normal test run.

#[path = "../../../fuzz/bodies/debian_deb.rs"]
mod debian_deb;
#[path = "../../../fuzz/bodies/debian_text.rs"]
mod debian_text;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        run(&std::fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 0, "the corpus of {target} is empty");
}

#[test]
fn debian_text_corpus() {
    replay("debian_text", debian_text::run);
}

#[test]
fn debian_deb_corpus() {
    replay("debian_deb", debian_deb::run);
}
