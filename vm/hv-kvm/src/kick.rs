//! Making a vCPU thread leave `KVM_RUN`: the `immediate_exit` byte of its run page, then a signal.
//!
//! The byte alone misses a vCPU that is in guest code, the signal alone one that is just about to enter it. The vCPU
//! clears the byte *before* it looks at its stop token, a kicker sets it *after* the token: no request is lost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// Where a bound vCPU can be reached; empty while it is bound to no thread.
#[derive(Debug, Default)]
pub(crate) struct KickSlot(Mutex<Option<Bound>>);

#[derive(Debug)]
struct Bound {
    thread: libc::pid_t,
    immediate_exit: ImmediateExit,
}

/// The `immediate_exit` byte of a vCPU's run page, which the kernel reads and both sides write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImmediateExit(*const AtomicU8);

// SAFETY: the pointer is only used for atomic accesses, and only while the run page is mapped (see `KickSlot::unbind`).
unsafe impl Send for ImmediateExit {}

impl ImmediateExit {
    /// The byte in this run page.
    pub(crate) fn of(run: &mut kvm_bindings::kvm_run) -> Self {
        Self((&raw mut run.immediate_exit).cast())
    }

    /// Sets or clears the byte. The vCPU that owns the run page must not have been dropped.
    pub(crate) fn set(self, value: bool) {
        // SAFETY: the run page stays mapped as long as the vCPU lives; a kicker reaches it only through a `KickSlot`,
        // which the vCPU empties before it is dropped.
        unsafe { &*self.0 }.store(value.into(), Ordering::SeqCst);
    }
}

impl KickSlot {
    /// Ties the slot to the calling thread.
    pub(crate) fn bind(&self, immediate_exit: ImmediateExit) {
        install_handler();
        // SAFETY: gettid has no preconditions.
        let thread = unsafe { libc::gettid() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Bound { thread, immediate_exit });
    }

    /// Forgets the thread. No kick reaches it, or the run page, afterwards.
    pub(crate) fn unbind(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Makes the vCPU leave guest code, now or the next time it would enter it.
    pub(crate) fn kick(&self) {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bound) = slot.as_ref() else { return };
        bound.immediate_exit.set(true);
        // SAFETY: signals a thread of this process (it cannot have ended: it would have emptied the slot first) with a
        // signal whose handler does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), bound.thread, signal()) };
    }
}

/// The signal used for kicks.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn ignore(_: libc::c_int) {}

/// Installs the empty handler for the whole process and lets the calling thread receive the signal.
fn install_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; the handler is async-signal-safe because it does nothing. SA_RESTART
        // keeps other system calls of the thread whole; KVM_RUN returns EINTR nevertheless.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &action, std::ptr::null_mut());
        }
    });
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}
