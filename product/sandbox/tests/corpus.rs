//! Replays what fuzzing has collected (`fuzz/corpus`) and what is near it; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/near.rs"]
mod near;
#[path = "../../../fuzz/bodies/sandbox_files.rs"]
mod sandbox_files;
#[path = "../../../fuzz/bodies/sandbox_packet.rs"]
mod sandbox_packet;

#[test]
fn sandbox_files_corpus() {
    near::replay("sandbox_files", sandbox_files::run);
}

#[test]
fn sandbox_packet_corpus() {
    near::replay("sandbox_packet", sandbox_packet::run);
}
