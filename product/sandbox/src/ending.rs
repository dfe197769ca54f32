//! How a run ends, in the words that `viv ls` shows behind the state.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// What a kernel prints first when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// Why a run ended, and whether anybody wanted that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) reason: String,
    pub(crate) failed: bool,
}

impl Ending {
    /// As somebody wanted: the user, the guest's root, or nobody any more.
    pub(crate) fn wanted(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), failed: false }
    }

    /// As nobody wanted.
    pub(crate) fn failure(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), failed: true }
    }

    /// The end of a machine that was reset. After a panic that is the kernel's own doing.
    pub(crate) fn reset(panicked: bool) -> Self {
        if panicked { Self::failure("kernel panic") } else { Self::wanted("rebooted") }
    }

    /// The end of a vmm's process that ended in no ordinary way.
    pub(crate) fn of_process(status: ExitStatus) -> Option<Self> {
        if status.success() {
            return None;
        }
        Some(match status.signal() {
            Some(signal) => Self::failure(format!("vmm killed: {}", signal_name(signal))),
            None => Self::failure(format!("vmm ended with {}", status.code().unwrap_or(-1))),
        })
    }
}

/// Whether a line of the console is the beginning of a kernel's panic.
pub(crate) fn is_panic(line: &[u8]) -> bool {
    line.windows(PANIC.len()).any(|words| words == PANIC)
}

fn signal_name(number: i32) -> String {
    signal_hook::low_level::signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processs_end_has_its_signals_name() {
        assert_eq!(Ending::of_process(ExitStatus::from_raw(0)), None);
        let reason = |raw| Ending::of_process(ExitStatus::from_raw(raw)).unwrap().reason;
        assert_eq!(reason(9), "vmm killed: SIGKILL");
        assert_eq!(reason(31 | 128), "vmm killed: SIGSYS");
        assert_eq!(reason(44), "vmm killed: signal 44");
        assert_eq!(reason(3 << 8), "vmm ended with 3");
    }

    #[test]
    fn a_reset_is_a_reboot_unless_the_kernel_panicked() {
        assert!(is_panic(b"[    4.2] Kernel panic - not syncing: sysrq triggered crash"));
        assert!(!is_panic(b"[    4.2] reboot: Restarting system"));
        assert_eq!(Ending::reset(true), Ending::failure("kernel panic"));
        assert_eq!(Ending::reset(false), Ending::wanted("rebooted"));
    }
}
