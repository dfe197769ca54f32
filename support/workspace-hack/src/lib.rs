//! Nothing but features (a "workspace hack"): the program is built with those of its third-party crates that tests switch on, so
//! that `cargo build -p viv` takes what `cargo test --workspace` has compiled, and the other way round. Without it some 180 crates
//! were compiled twice in each run of the tests.
