//! Replays what fuzzing has collected (`fuzz/corpus`) and what is near it; see `fuzz/README.md`.

#[path = "../../../fuzz/bodies/near.rs"]
mod near;
#[path = "../../../fuzz/bodies/ssh_agent.rs"]
mod ssh_agent_body;

#[test]
fn ssh_agent_corpus() {
    near::replay("ssh_agent", ssh_agent_body::run);
}
