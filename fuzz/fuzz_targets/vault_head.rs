//! libFuzzer's entry to the placing of credentials, AWS signatures, the finder of placeholders and the masker.
#![no_main]

#[path = "../bodies/vault_head.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
