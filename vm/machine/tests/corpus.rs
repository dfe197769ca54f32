//! Replays what fuzzing has collected (`fuzz/corpus`) and what is near it; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/kernel_elf.rs"]
mod kernel_elf;
#[path = "../../../fuzz/bodies/near.rs"]
mod near;

#[test]
fn kernel_elf_corpus() {
    near::replay("kernel_elf", kernel_elf::run);
}
