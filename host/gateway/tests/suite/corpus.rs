//! Replays what fuzzing has collected (`fuzz/corpus`) and what is near it; see `fuzz/README.md`.

#[path = "../../../../fuzz/bodies/gateway_control.rs"]
mod gateway_control;
#[path = "../../../../fuzz/bodies/gateway_dns.rs"]
mod gateway_dns;
#[path = "../../../../fuzz/bodies/gateway_hello.rs"]
mod gateway_hello;
#[path = "../../../../fuzz/bodies/near.rs"]
mod near;

#[test]
fn gateway_control_corpus() {
    near::replay("gateway_control", gateway_control::run);
}

#[test]
fn gateway_dns_corpus() {
    near::replay("gateway_dns", gateway_dns::run);
}

#[test]
fn gateway_hello_corpus() {
    near::replay("gateway_hello", gateway_hello::run);
}
