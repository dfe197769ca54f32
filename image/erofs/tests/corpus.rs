//! Replays what fuzzing has collected (`fuzz/corpus`), with the same bodies, in the normal test run.

#[path = "../../../fuzz/bodies/erofs_image.rs"]
mod erofs_image;
#[path = "../../../fuzz/bodies/erofs_tar.rs"]
mod erofs_tar;

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
fn erofs_tar_corpus() {
    replay("erofs_tar", erofs_tar::run);
}

#[test]
fn erofs_image_corpus() {
    replay("erofs_image", erofs_image::run);
}
