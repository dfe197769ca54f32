//! Replays what fuzzing has collected (`fuzz/corpus`) and what is near it; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/near.rs"]
mod near;
#[path = "../../../fuzz/bodies/vault_head.rs"]
mod vault_head;
#[path = "../../../fuzz/bodies/vault_text.rs"]
mod vault_text;

#[test]
fn vault_head_corpus() {
    near::replay("vault_head", vault_head::run);
}

#[test]
fn vault_text_corpus() {
    near::replay("vault_text", vault_text::run);
}
