//! Drives the real `viv` as a user does. `cargo test -p e2e`; a name's part as argument chooses cases.
//!
//! One point of the promise each: set-up and sessions, Docker and tools, the workspace, several sandboxes, places and limits. What cannot be
//! tried on this machine is skipped with its reason, and counted.

mod crowd;
mod damaged;
mod disk;
mod docker;
mod life;
mod many;
mod network;
mod places;
mod secrets;
mod sessions;
mod trust;
mod workspace;

use std::process::ExitCode;

/// A case and its name.
pub(crate) use e2e::Named;

fn main() -> ExitCode {
    e2e::run_in_lanes(
        &[("sessions", sessions::FIRST)],
        &[
            &[
                ("sessions", sessions::CASES),
                ("docker", docker::CASES),
                ("many", many::CASES),
                ("life", life::CASES),
                ("crowd", crowd::CASES),
                ("damaged", damaged::CASES),
                ("disk", disk::CASES),
                ("trust", trust::CASES),
            ],
            &[
                ("workspace", workspace::CASES),
                ("network", network::CASES),
                ("secrets", secrets::CASES),
                ("secrets", secrets::program::CASES),
                ("secrets", secrets::keychain::CASES),
                ("places", places::CASES),
            ],
        ],
    )
}
