//! Linux: process attributes and limits, then Landlock, then seccomp.

mod files;
mod filter;
mod process;
mod rare;
mod shim;
mod vmm;

use std::os::fd::RawFd;
use std::sync::LazyLock;

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

pub(crate) use files::offered as landlock;

use crate::table::Call;
use crate::{ConfineError, Grants, Report, Role};

/// The system calls of a role.
pub(crate) fn table(role: Role) -> &'static [Call] {
    static VMM: LazyLock<Vec<Call>> = LazyLock::new(|| [vmm::TABLE, process::TABLE].concat());
    static SHIM: LazyLock<Vec<Call>> = LazyLock::new(|| [shim::TABLE, process::TABLE].concat());
    match role {
        Role::Vmm => &VMM,
        Role::Shim => &SHIM,
    }
}

/// What costs no role anything: nothing to be won by set-id programs, by other processes of the user, by core dumps.
pub(crate) fn harden() -> Result<(), ConfineError> {
    set_no_new_privs(true).map_err(refused("no new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("protection from tracing"))?;
    limit(Resource::Core, 0)
}

pub(crate) fn confine(role: Role, grants: &Grants<'_>) -> Result<Report, ConfineError> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    harden()?;
    if let Some(most) = grants.most_descriptors {
        limit(Resource::Nofile, most)?;
    }
    close_on_exec(&grants.inherited).map_err(refused_io("close-on-exec"))?;
    let landlock = files::restrict(role, &grants.directories, threads)?;
    let files = files::sentence(landlock, grants.directories.len());
    let table = table(role);
    #[cfg(feature = "hostile-hook")]
    let table = &*crate::hostile::remaining(table);
    let system_calls = filter::install(table, grants.child)?;
    let layers = vec![
        format!("seccomp with {system_calls} system calls"),
        files,
        "no new privileges".to_owned(),
        "no tracing, no core dumps".to_owned(),
    ];
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

/// See [`crate::keep_descriptors`].
pub(crate) fn keep_descriptors() -> std::io::Result<()> {
    close_on_exec(&[])
}

fn mark_range(first: u32, last: u32) -> std::io::Result<()> {
    // SAFETY: only sets a flag on descriptors, which none of this program's own code relies on being clear.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use libc as c;

    use super::*;
    use crate::{Shown, When};

    /// What neither role may ever do, whatever comes to be needed.
    const NEVER: &[c::c_long] = &[
        c::SYS_socket,
        c::SYS_connect,
        c::SYS_bind,
        c::SYS_listen,
        c::SYS_execve,
        c::SYS_execveat,
        c::SYS_fork,
        c::SYS_vfork,
        c::SYS_ptrace,
        c::SYS_process_vm_readv,
        c::SYS_process_vm_writev,
        c::SYS_process_madvise,
        c::SYS_tkill,
        c::SYS_rt_sigqueueinfo,
        c::SYS_pidfd_send_signal,
        c::SYS_pidfd_getfd,
        c::SYS_unshare,
        c::SYS_setns,
        c::SYS_mount,
        c::SYS_umount2,
        c::SYS_move_mount,
        c::SYS_pivot_root,
        c::SYS_chroot,
        c::SYS_bpf,
        c::SYS_perf_event_open,
        c::SYS_init_module,
        c::SYS_finit_module,
        c::SYS_kexec_load,
        c::SYS_keyctl,
        c::SYS_add_key,
        c::SYS_request_key,
        c::SYS_io_uring_setup,
        c::SYS_io_uring_enter,
        c::SYS_userfaultfd,
        c::SYS_open_by_handle_at,
        c::SYS_personality,
        c::SYS_setuid,
        c::SYS_setgid,
        c::SYS_setresuid,
        c::SYS_capset,
        c::SYS_mknodat,
        c::SYS_fchownat,
        c::SYS_chown,
    ];

    const ROLES: [Role; 2] = [Role::Vmm, Role::Shim];

    #[test]
    fn a_started_program_gets_no_descriptor_of_the_callers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = std::fs::File::open(file.path()).unwrap();
        // As a shell leaves one: `exec 9<FILE`.
        rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&open);
        let has_it = || {
            let seen = std::process::Command::new("readlink").arg(format!("/proc/self/fd/{number}")).output();
            String::from_utf8(seen.unwrap().stdout).unwrap().trim_end() == file.path().to_str().unwrap()
        };
        assert!(has_it(), "it would be seen");
        keep_descriptors().unwrap();
        assert!(!has_it());
    }

    #[test]
    fn no_role_makes_sockets_or_processes() {
        for role in ROLES {
            assert!(table(role).iter().all(|call| !NEVER.contains(&call.number)), "{role:?}");
        }
        // Only a shim takes connections in, and only it signals another process: its vmm.
        for number in [c::SYS_accept4, c::SYS_socketpair, c::SYS_kill] {
            assert!(table(Role::Vmm).iter().all(|call| call.number != number));
        }
        let kill = table(Role::Shim).iter().find(|call| call.number == c::SYS_kill).unwrap();
        assert!(matches!(kill.when, When::KillsChild));
    }

    #[test]
    fn no_memory_becomes_executable() {
        for role in ROLES {
            let maps = [c::SYS_mmap, c::SYS_mprotect];
            let exec = c::PROT_EXEC as u64;
            let lines = table(role).iter().filter(|call| maps.contains(&call.number));
            assert!(lines.clone().count() == 2);
            assert!(
                lines.into_iter().all(|call| matches!(call.when, When::Without(2, bits) if bits == exec))
            );
        }
    }

    /// A call twice, once without conditions, would be without conditions.
    #[test]
    fn a_call_in_several_lines_has_conditions_in_each() {
        for role in ROLES {
            for call in table(role).iter().filter(|call| !matches!(call.when, When::OneOf(..))) {
                let same = table(role).iter().filter(|other| other.number == call.number).count();
                assert_eq!(same, 1, "{role:?}: {}", call.name());
            }
        }
    }

    #[test]
    fn every_line_says_who_needs_it_and_every_rare_one_when() {
        for call in ROLES.into_iter().flat_map(table) {
            assert!(call.who.len() > 3, "{}", call.name());
            if let Shown::Case(_, why) | Shown::Argued(why) = call.shown {
                assert!(why.len() > 20, "{}", call.name());
            }
        }
    }

    /// The vmm opens by `openat2` alone, which its file server makes; a kernel without Landlock would leave it this one.
    #[test]
    fn a_vmm_opens_nothing_by_openat() {
        let opens = [c::SYS_open, c::SYS_openat, c::SYS_creat];
        let lines = table(Role::Vmm).iter().filter(|call| opens.contains(&call.number));
        assert!(lines.into_iter().all(|call| matches!(call.when, When::Refused)));
    }

    #[test]
    fn every_request_is_kvms_or_a_descriptors() {
        for call in ROLES.into_iter().flat_map(table).filter(|call| call.number == c::SYS_ioctl) {
            let When::OneOf(1, requests) = call.when else { panic!("any ioctl may be made") };
            assert!(requests.iter().all(|request| request >> 8 & 0xff == 0xae || *request == c::FIONBIO));
        }
    }
}
