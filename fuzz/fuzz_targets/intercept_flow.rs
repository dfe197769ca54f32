//! libFuzzer's entry to the body of the same name.
#![no_main]

#[path = "../bodies/intercept_flow.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
