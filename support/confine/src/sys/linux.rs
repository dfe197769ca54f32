//! Linux: process attributes and limits, then Landlock, then seccomp.

mod files;
mod filter;
mod gateway;
mod process;
mod rare;
mod shim;
mod vmm;

use std::os::fd::RawFd;
use std::sync::LazyLock;

use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_dumpable_behavior,
    set_parent_process_death_signal, setrlimit,
};
use rustix::thread::set_no_new_privs;

pub(crate) use files::offered as landlock;

use crate::table::Call;
use crate::{ConfineError, Forked, Grants, Report, Role};

/// The system calls of a role.
pub(crate) fn table(role: Role) -> &'static [Call] {
    static VMM: LazyLock<Vec<Call>> = LazyLock::new(|| [vmm::TABLE, process::TABLE].concat());
    static SHIM: LazyLock<Vec<Call>> = LazyLock::new(|| [shim::TABLE, process::TABLE].concat());
    static KEEPER: LazyLock<Vec<Call>> =
        LazyLock::new(|| [gateway::KEEPER, gateway::TABLE, process::TABLE].concat());
    static GATEWAY: LazyLock<Vec<Call>> = LazyLock::new(|| [gateway::TABLE, process::TABLE].concat());
    match role {
        Role::Vmm => &VMM,
        Role::Shim => &SHIM,
        Role::Keeper => &KEEPER,
        Role::Gateway => &GATEWAY,
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

/// The memory that a gateway can make its own, in bytes: twice what the HTTP/2 windows of its inspected connections come to at the very most,
/// and five times what a flood of others does (`docs/network.md`). What a guest finds beside them costs it its network for a moment, and not
/// the host its memory.
const GATEWAY_MEMORY: u64 = 2 << 30;

/// See [`crate::become_keeper`].
pub(crate) fn become_keeper() -> Result<Report, ConfineError> {
    match std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count) {
        1 => {
            limit(Resource::Data, GATEWAY_MEMORY)?;
            confine(Role::Keeper, &Grants::default())
        }
        threads => Err(ConfineError::Threads(threads)),
    }
}

/// See [`crate::Keeper::fork`].
pub(crate) fn fork() -> Result<Forked, ConfineError> {
    let keeper = getpid();
    // SAFETY: a `Keeper` has one thread and can make no other (its table), so that the child has all that it can wait for.
    match unsafe { libc::fork() } {
        -1 => Err(refused_io("another process")(std::io::Error::last_os_error())),
        0 => match become_gateway(keeper) {
            Ok(()) => Ok(Forked::Child),
            // Nothing of the keeper's is this process's to do.
            Err(error) => {
                eprintln!("{error}");
                std::process::exit(1)
            }
        },
        child => Ok(Forked::Keeper(child.unsigned_abs())),
    }
}

fn become_gateway(keeper: Pid) -> Result<(), ConfineError> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(refused("an end with the keeper"))?;
    // It may have ended before that.
    if getppid() != Some(keeper) {
        return Err(refused("a keeper")(rustix::io::Errno::SRCH));
    }
    // All but the filter it has from its keeper.
    filter::install(table(Role::Gateway), None).map(|_| ())
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

    /// Of those, what who has the network does all the same, and who starts it.
    const GATEWAYS: &[c::c_long] = &[c::SYS_socket, c::SYS_connect];
    const ROLES: [Role; 4] = [Role::Vmm, Role::Shim, Role::Keeper, Role::Gateway];

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
            let is_gateway = matches!(role, Role::Keeper | Role::Gateway);
            let never = |call: &&Call| {
                NEVER.contains(&call.number) && !(is_gateway && GATEWAYS.contains(&call.number))
            };
            assert_eq!(table(role).iter().find(never).map(Call::name), None, "{role:?}");
        }
        // Who has the network has no file, and no process but itself.
        let files = [c::SYS_open, c::SYS_openat, c::SYS_openat2, c::SYS_creat, c::SYS_unlink, c::SYS_rename];
        let others = [c::SYS_clone, c::SYS_kill, c::SYS_pipe2, c::SYS_wait4, c::SYS_seccomp];
        for number in files.into_iter().chain(others) {
            assert!(table(Role::Gateway).iter().all(|call| call.number != number));
        }
        for number in files {
            assert!(table(Role::Keeper).iter().all(|call| call.number != number));
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
