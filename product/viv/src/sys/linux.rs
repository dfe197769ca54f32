//! Linux.

use std::ffi::CStr;

/// Gives this process its name in `ps` and `top`: it was started as /proc/self/exe, which says nothing there.
pub(crate) fn name_process(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}

/// Keeps this process out of core dumps and its memory from processes of the same user (prctl(2), PR_SET_DUMPABLE). Programs that it starts are
/// as they would be otherwise, which a limit on core files would not leave them.
pub(crate) fn forbid_dumps() {
    // It fails for no value of that list.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
