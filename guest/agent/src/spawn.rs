//! Starting processes: what happens in the child between fork and exec, and how its failures come back.
//!
//! After fork in a program with threads only system calls are safe: no allocation, no locks. So everything is prepared before, and
//! the closures here make system calls only. The standard library hands a failing closure's error number back to the parent; the step at which it failed travels in its upper half.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Uid};

use crate::sys;

/// Below this, an error number is the kernel's own and comes from exec itself.
const STEP: i32 = 1 << 16;

/// What a child does before it becomes the program.
#[derive(Debug, Default)]
pub(crate) struct Preparation {
    /// Joins this control group (its open `cgroup.procs`).
    pub(crate) group: Option<File>,
    /// Takes its standard input as controlling terminal.
    pub(crate) terminal: bool,
    /// Becomes this user; in this order: groups, group, user.
    pub(crate) user: Option<Ids>,
    /// Changes into this folder, as the user.
    pub(crate) cwd: Option<CString>,
    /// Finds this descriptor as number 3 (socket activation).
    pub(crate) third: Option<OwnedFd>,
    /// What the out-of-memory killer adds to its badness.
    pub(crate) oom_score: &'static [u8],
}

/// Numbers of a user.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// The step at which a process could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Group,
    Session,
    User,
    Cwd,
    Descriptor,
    /// Starting the program itself, or forking.
    Exec,
}

const STEPS: [Step; 5] = [Step::Group, Step::Session, Step::User, Step::Cwd, Step::Descriptor];

/// The step in an error of [`Command::spawn`] and the kernel's own error.
pub(crate) fn what_failed(error: &io::Error) -> (Step, io::Error) {
    let raw = error.raw_os_error().unwrap_or(0);
    let step = usize::try_from(raw / STEP - 1).ok().and_then(|n| STEPS.get(n).copied());
    match step {
        Some(step) => (step, io::Error::from_raw_os_error(raw % STEP)),
        None => (
            Step::Exec,
            error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error),
        ),
    }
}

fn at(step: Step) -> impl Fn(rustix::io::Errno) -> io::Error {
    move |e| {
        let number = STEPS.iter().position(|s| *s == step).unwrap_or(0) as i32 + 1;
        io::Error::from_raw_os_error(number * STEP + e.raw_os_error())
    }
}

/// Makes a command prepare itself: default signals, a session of its own, and what `preparation` says.
pub(crate) fn prepare(command: &mut Command, preparation: Preparation) {
    let ids = preparation.user.as_ref().map(|ids| {
        let groups: Vec<Gid> = ids.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid), groups)
    });
    let work = move || {
        sys::default_signals();
        if let Some(group) = &preparation.group {
            rustix::io::write(group, b"0").map_err(at(Step::Group))?;
        }
        if !preparation.oom_score.is_empty() {
            write_file(c"/proc/self/oom_score_adj", preparation.oom_score).map_err(at(Step::Group))?;
        }
        rustix::process::setsid().map_err(at(Step::Session))?;
        if preparation.terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at(Step::Session))?;
        }
        if let Some(third) = &preparation.third {
            become_third(third).map_err(at(Step::Descriptor))?;
        }
        if let Some((uid, gid, groups)) = &ids {
            // The system calls act on one thread; after fork there is one.
            rustix::thread::set_thread_groups(groups).map_err(at(Step::User))?;
            rustix::thread::set_thread_res_gid(*gid, *gid, *gid).map_err(at(Step::User))?;
            rustix::thread::set_thread_res_uid(*uid, *uid, *uid).map_err(at(Step::User))?;
        }
        if let Some(cwd) = &preparation.cwd {
            rustix::process::chdir(cwd.as_c_str()).map_err(at(Step::Cwd))?;
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls on values made before the fork; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(work) };
}

/// Makes a command run in another root.
pub(crate) fn chroot_into(command: &mut Command, root: &'static str) {
    let root = CString::new(root).unwrap_or_default();
    let work = move || {
        rustix::process::chroot(root.as_c_str())?;
        rustix::process::chdir(c"/")?;
        Ok(())
    };
    // SAFETY: the closure only makes system calls on a string made before the fork.
    unsafe { command.pre_exec(work) };
}

fn write_file(path: &CStr, bytes: &[u8]) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, bytes)?;
    Ok(())
}

/// Gives a descriptor the number 3, which survives exec.
fn become_third(fd: &OwnedFd) -> rustix::io::Result<()> {
    if fd.as_raw_fd() == 3 {
        return rustix::io::fcntl_setfd(fd.as_fd(), rustix::io::FdFlags::empty());
    }
    // SAFETY: PID 1 keeps number 3 taken by a descriptor of its own from its first line on (see `boot`), so in a child it is open and
    // nothing of the standard library's. It is never dropped here, so never closed.
    let mut owned = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(3) });
    rustix::io::dup2(fd, &mut owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_travels_with_the_error() {
        let sent = at(Step::Cwd)(rustix::io::Errno::NOENT);
        let (step, error) = what_failed(&sent);
        assert_eq!((step, error.kind()), (Step::Cwd, io::ErrorKind::NotFound));
        let (step, error) = what_failed(&io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!((step, error.kind()), (Step::Exec, io::ErrorKind::PermissionDenied));
        assert_eq!(what_failed(&io::ErrorKind::InvalidInput.into()).0, Step::Exec);
    }
}
