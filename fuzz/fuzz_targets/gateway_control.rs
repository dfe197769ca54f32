//! libFuzzer's entry to the body of the same name.
#![no_main]

#[path = "../bodies/gateway_control.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
