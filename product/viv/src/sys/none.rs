//! Systems where a process is started by its own name.

use std::ffi::CStr;

/// Nothing: `ps` shows the program and its role.
pub(crate) fn name_process(_name: &CStr) {}

/// Nothing: there is no such call.
pub(crate) fn forbid_dumps() {}
