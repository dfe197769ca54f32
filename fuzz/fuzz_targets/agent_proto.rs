//! libFuzzer's entry to everything that the agent's protocol reads, from either side.
#![no_main]

#[path = "../bodies/agent_proto.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::drive(data));
