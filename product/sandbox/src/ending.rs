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

    /// Notes a reason beside what is known already: the first one stays, but a failure replaces what was wanted.
    pub(crate) fn note(noted: &mut Option<Self>, reason: Self) {
        if noted.as_ref().is_none_or(|before| reason.failed && !before.failed) {
            *noted = Some(reason);
        }
    }

    /// How a run ended, of all that is known when the vmm is gone: `noted`, why it ends as far as the shim knew before; how the
    /// vmm's `process` ended, when not by itself and not by the shim; whether the guest reset its machine, and whether its kernel
    /// panicked. What nobody wanted comes before what somebody did: a machine that breaks while it goes down has failed.
    pub(crate) fn of_run(noted: Option<Self>, process: Option<Self>, reset: bool, panicked: bool) -> Self {
        if reset && panicked {
            return Self::failure("kernel panic");
        }
        let (failed, wanted) = match noted {
            Some(noted) if noted.failed => (Some(noted), None),
            noted => (None, noted),
        };
        failed
            .or(process)
            .or(wanted)
            .or_else(|| reset.then(|| Self::wanted("rebooted")))
            .unwrap_or_else(|| Self::failure("the virtual machine ended"))
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
        assert_eq!(Ending::of_run(None, None, true, true), Ending::failure("kernel panic"));
        assert_eq!(Ending::of_run(None, None, true, false), Ending::wanted("rebooted"));
    }

    #[test]
    fn what_breaks_while_it_goes_down_is_named() {
        let asked = || Some(Ending::wanted("asked to stop"));
        let killed = || Ending::of_process(ExitStatus::from_raw(31));
        assert_eq!(Ending::of_run(asked(), None, false, false), Ending::wanted("asked to stop"));
        assert_eq!(Ending::of_run(asked(), None, true, false), Ending::wanted("asked to stop"));
        assert_eq!(Ending::of_run(asked(), killed(), false, false), Ending::failure("vmm killed: SIGSYS"));
        assert_eq!(Ending::of_run(asked(), None, true, true), Ending::failure("kernel panic"));
        // What the vmm has said says more than how it ended then.
        let failed = Ending::failure("the guest's kernel crashed (triple fault)");
        let ended = Ending::of_process(ExitStatus::from_raw(1 << 8));
        assert_eq!(Ending::of_run(Some(failed.clone()), ended, false, false), failed);
        assert!(Ending::of_run(None, None, false, false).failed);
    }

    #[test]
    fn a_failure_replaces_a_wish_and_no_other_failure() {
        let mut noted = Some(Ending::wanted("idle"));
        Ending::note(&mut noted, Ending::failure("first"));
        Ending::note(&mut noted, Ending::failure("second"));
        Ending::note(&mut noted, Ending::wanted("powered off"));
        assert_eq!(noted, Some(Ending::failure("first")));
    }
}
