//! Linux.

use std::ffi::CStr;

/// Gives this process its name in `ps` and `top`: it was started as /proc/self/exe, which says nothing there.
pub(crate) fn name_process(name: &CStr) {
    let _ = rustix::thread::set_name(name);
}
