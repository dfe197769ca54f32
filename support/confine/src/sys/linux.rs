//! Linux: process attributes and limits, then Landlock, then seccomp.

mod calls;
mod files;
mod filter;

use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

use crate::{ConfineError, Grants, Report, Role};

pub(crate) fn confine(role: Role, grants: &Grants<'_>) -> Result<Report, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    set_no_new_privs(true).map_err(refused("no new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("protection from tracing"))?;
    limit(Resource::Core, 0)?;
    if let Some(most) = grants.most_descriptors {
        limit(Resource::Nofile, most)?;
    }
    close_on_exec(&grants.inherited).map_err(refused_io("close-on-exec"))?;
    let mut layers = vec!["no new privileges".to_owned(), "no tracing, no core dumps".to_owned()];
    if role == Role::Shim {
        return Ok(Report { layers, landlock: None, system_calls: 0 });
    }
    let landlock = files::restrict(&grants.directories, threads)?;
    layers.insert(
        0,
        match landlock {
            Some(version) => {
                format!("Landlock version {version} on {} directories", grants.directories.len())
            }
            None => "no Landlock: this kernel has none".to_owned(),
        },
    );
    let system_calls = filter::install(calls::VMM)?;
    layers.insert(0, format!("seccomp with {system_calls} system calls"));
    Ok(Report { layers, landlock, system_calls })
}

fn refused(layer: &'static str) -> impl Fn(rustix::io::Errno) -> ConfineError {
    move |error| ConfineError::Refused { layer, source: error.into() }
}

fn refused_io(layer: &'static str) -> impl Fn(std::io::Error) -> ConfineError {
    move |source| ConfineError::Refused { layer, source }
}

/// Lowers a limit, never raises it.
fn limit(resource: Resource, most: u64) -> Result<(), ConfineError> {
    let maximum = getrlimit(resource).maximum.map_or(most, |old| old.min(most));
    let limit = Rlimit { current: Some(maximum), maximum: Some(maximum) };
    setrlimit(resource, limit).map_err(refused("a resource limit"))
}

/// Marks every descriptor above 2 that is not listed.
fn close_on_exec(listed: &[RawFd]) -> std::io::Result<()> {
    let mut keep: Vec<u32> = listed.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    keep.sort_unstable();
    let mut from = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3) {
        if fd > from {
            mark_range(from, fd - 1)?;
        }
        from = from.max(fd.saturating_add(1));
    }
    mark_range(from, u32::MAX)
}

fn mark_range(first: u32, last: u32) -> std::io::Result<()> {
    // SAFETY: only sets a flag on descriptors, which none of this program's own code relies on being clear.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
