//! What the translator needs of the host's threads: the `gs` base, a private stack, and signals that stand for guest
//! exceptions.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::Once;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use crate::layout::EXIT_SITE_SLOT;

/// The private stack of a vCPU, between two guard pages.
#[derive(Debug)]
pub(crate) struct Stack {
    base: *mut u8,
}

const STACK_BYTES: usize = 256 << 10;
const GUARD_BYTES: usize = 64 << 10;

impl Stack {
    pub(crate) fn new() -> std::io::Result<Self> {
        let len = STACK_BYTES + 2 * GUARD_BYTES;
        // SAFETY: a fresh mapping at an address the kernel chooses.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)? };
        let stack = Self { base: base.cast() };
        // SAFETY: the range lies inside the mapping just made.
        unsafe {
            mprotect(
                stack.base.add(GUARD_BYTES).cast(),
                STACK_BYTES,
                MprotectFlags::READ | MprotectFlags::WRITE,
            )?;
        }
        Ok(stack)
    }

    /// The address from which it grows down; 64 bytes are kept free above.
    pub(crate) fn top(&self) -> u64 {
        self.base as u64 + (GUARD_BYTES + STACK_BYTES - 64) as u64
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the whole mapping made in `new`; its thread is not in translated code (it is running this).
        let _ = unsafe { munmap(self.base.cast(), STACK_BYTES + 2 * GUARD_BYTES) };
    }
}

/// Sets the calling thread's `gs` base, which Rust's runtime on Linux does not use.
pub(crate) fn set_gs_base(address: u64) {
    const ARCH_SET_GS: c_int = 0x1001;
    thread_local!(static CURRENT: Cell<u64> = const { Cell::new(0) });
    if CURRENT.get() == address {
        return;
    }
    // SAFETY: changes only the gs base, which nothing else in the process uses.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, address) };
    CURRENT.set(address);
}

thread_local! {
    /// Translated code that the thread may be in, and where to send it when it faults.
    static CODE: Cell<(u64, u64, u64)> = const { Cell::new((0, 0, 0)) };
    static BUS_ERROR: Cell<bool> = const { Cell::new(false) };
}

static mut PREVIOUS: [libc::sigaction; 4] = unsafe_zeroed();
const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGFPE, libc::SIGBUS, libc::SIGILL];

const fn unsafe_zeroed() -> [libc::sigaction; 4] {
    // SAFETY: sigaction is plain old data; all-zero means the default action.
    unsafe { std::mem::zeroed() }
}

/// Whether translated code on this thread has met a page that the host could not give. The registers of its instruction
/// may hold host addresses: the guest must not go on.
pub(crate) fn bus_error() -> bool {
    BUS_ERROR.get()
}

/// Prepares the calling thread for faults inside `range`: they continue at `thunk`.
pub(crate) fn handle_faults(range: Range<u64>, thunk: u64) {
    static INSTALL: Once = Once::new();
    thread_local!(static STACK: Cell<*mut c_void> = const { Cell::new(std::ptr::null_mut()) });
    INSTALL.call_once(|| {
        for (index, signal) in SIGNALS.into_iter().enumerate() {
            // SAFETY: installs a handler with valid arguments; PREVIOUS is written only here, under the Once.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                let previous = (&raw mut PREVIOUS).cast::<libc::sigaction>().add(index);
                libc::sigaction(signal, &action, previous);
            }
        }
    });
    if STACK.get().is_null() {
        let len = 256 << 10;
        // SAFETY: fresh memory that is never given back: the thread may take signals until it ends.
        unsafe {
            let mut old: libc::stack_t = std::mem::zeroed();
            if libc::sigaltstack(std::ptr::null(), &mut old) == 0
                && old.ss_flags & libc::SS_DISABLE == 0
                && old.ss_size >= len
            {
                STACK.set(old.ss_sp);
            } else if let Ok(memory) = mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            ) {
                let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: len };
                libc::sigaltstack(&stack, std::ptr::null_mut());
                STACK.set(memory);
            }
        }
    }
    CODE.set((range.start, range.end, thunk));
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes valid pointers; thread-locals here are const-initialized and need no allocation.
    unsafe {
        let ucontext = context.cast::<libc::ucontext_t>();
        let rip = &mut (*ucontext).uc_mcontext.gregs[libc::REG_RIP as usize];
        let (start, end, thunk) = CODE.get();
        if thunk != 0 && (start..end).contains(&(*rip as u64)) {
            let at = *rip as u64;
            std::arch::asm!("mov gs:[{slot}], {at}", slot = in(reg) EXIT_SITE_SLOT as i64, at = in(reg) at);
            *rip = thunk as i64;
            if signal == libc::SIGBUS {
                BUS_ERROR.set(true);
            }
            return;
        }
        let index = SIGNALS.iter().position(|known| *known == signal).unwrap_or(0);
        let previous = (&raw const PREVIOUS).cast::<libc::sigaction>().add(index).read();
        match previous.sa_sigaction {
            libc::SIG_DFL | libc::SIG_IGN => {
                // Default action: on return the instruction faults again and the process dies as it should.
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
            handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
