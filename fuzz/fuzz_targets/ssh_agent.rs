//! libFuzzer's entry to the filter of the SSH agent's protocol.
#![no_main]

#[path = "../bodies/ssh_agent.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
