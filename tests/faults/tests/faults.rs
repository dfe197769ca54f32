//! What the host may do to a sandbox: kill its processes, fill its disk, stop it. `cargo test -p faults`; a name's part as argument
//! chooses cases, `VIV_TESTS=all` makes the runs long, `VIV_FAULTS_SEED` has a run again.

mod flush;
mod full;
mod kills;
mod limit;
mod setup;
mod suspend;

use std::process::ExitCode;

use e2e::Named;

fn main() -> ExitCode {
    e2e::run(&[
        ("kills", kills::CASES),
        ("full", full::CASES),
        ("limit", limit::CASES),
        ("flush", flush::CASES),
        ("suspend", suspend::CASES),
        ("setup", setup::CASES),
    ])
}
