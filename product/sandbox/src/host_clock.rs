//! The host's wall clock. When it jumps, because the host slept or somebody set it, the guest's is set again: a guest counts by
//! clocks that stand still while its host sleeps. Nothing polls: the kernel tells.

use std::io;
use std::os::fd::OwnedFd;

use crate::launch::VmmLine;
use crate::steward;

/// Hears of the wall clock's jumps.
#[derive(Debug)]
pub(crate) struct HostClock(OwnedFd);

impl HostClock {
    /// Listens from now on.
    pub(crate) fn watch() -> io::Result<Self> {
        crate::sys::wall_clock_jumps().map(Self)
    }

    /// Sets the guest's clock after each jump, for as long as this process lives.
    pub(crate) fn follow(&self, line: &VmmLine) {
        loop {
            if let Err(error) = crate::sys::wait_for_jump(&self.0) {
                return tracing::warn!(%error, "Jumps of the host's clock are not heard any more");
            }
            match steward::reach(line).and_then(|mut control| control.set_clock()) {
                Ok(()) => tracing::info!("The host's clock has jumped, the guest's is set"),
                Err(error) => {
                    tracing::warn!(%error, "The guest's clock could not be set after a jump of the host's")
                }
            }
        }
    }
}
