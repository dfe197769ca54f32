//! The guest agent (PID 1).
fn main() {}
