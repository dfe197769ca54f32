//! libFuzzer's entry to everything of the vault that reads a text.
#![no_main]

#[path = "../bodies/vault_text.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
