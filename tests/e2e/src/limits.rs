//! Limits that a program under test is put under, as containers and hardened systems have them.
//!
//! They bind a process for good, so that a process of its own must take them on: this test program, started again with
//! [`WORD`], which then becomes the program under test.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The first argument of this program when it shall take on limits.
const WORD: &str = "--under-limits";

/// What a program under test may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// What Docker's default seccomp profile refuses to a container without added capabilities, by its documentation
    /// ("Significant syscalls blocked by the default profile"), with `EPERM`; and `clone3` with `ENOSYS`. As root also
    /// the capabilities that such a container lacks are taken.
    Docker,
    /// Executable mappings of shared memory, as an SELinux policy without `execmem` refuses them, with `EACCES`.
    NoExecutableMemory,
}

/// Capabilities that a Docker container's root has.
const DOCKER_CAPABILITIES: &str = "-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,+net_bind_service,+sys_chroot,+kill,+audit_write";

/// Calls that Docker's profile refuses whatever their arguments are.
const DOCKER_REFUSES: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Flags of `clone` that ask for a new namespace.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

impl Limits {
    /// A command that runs another one under the limits, with its folder and environment.
    ///
    /// # Errors
    /// This program's own path is not known.
    pub fn on(self, command: &Command) -> std::io::Result<Command> {
        let mut limited = if self == Self::Docker && rustix::process::geteuid().is_root() {
            let mut outer = Command::new("setpriv");
            outer.args(["--no-new-privs", "--inh-caps", "-all", "--bounding-set", DOCKER_CAPABILITIES]);
            outer.arg(std::env::current_exe()?);
            outer
        } else {
            Command::new(std::env::current_exe()?)
        };
        limited.args([WORD, self.name()]).arg(command.get_program()).args(command.get_args());
        limited.env_clear();
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                limited.env(name, value);
            }
        }
        if let Some(folder) = command.get_current_dir() {
            limited.current_dir(folder);
        }
        Ok(limited)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::NoExecutableMemory => "no-executable-memory",
        }
    }

    fn take_on(self) -> Result<(), Box<dyn std::error::Error>> {
        match self {
            Self::Docker => {
                let refused = DOCKER_REFUSES.iter().map(|call| (*call, Vec::new()));
                apply(refused.collect(), libc::EPERM)?;
                let namespaces = NAMESPACES
                    .iter()
                    .map(|flag| {
                        let flag = u64::from(flag.unsigned_abs());
                        let set = SeccompCondition::new(0, Len::Dword, Op::MaskedEq(flag), flag)?;
                        SeccompRule::new(vec![set])
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                apply(BTreeMap::from([(libc::SYS_clone, namespaces)]), libc::EPERM)?;
                apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
            }
            Self::NoExecutableMemory => {
                let bits = |argument, bits: i32| {
                    let bits = u64::from(bits.unsigned_abs());
                    SeccompCondition::new(argument, Len::Dword, Op::MaskedEq(bits), bits)
                };
                let shared = SeccompRule::new(vec![bits(2, libc::PROT_EXEC)?, bits(3, libc::MAP_SHARED)?])?;
                apply(BTreeMap::from([(libc::SYS_mmap, vec![shared])]), libc::EACCES)
            }
        }
    }
}

fn apply(refused: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), Box<dyn std::error::Error>> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram = SeccompFilter::new(refused, SeccompAction::Allow, refuse, arch)?.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

/// Becomes the program that the command line names, if it begins with [`WORD`].
pub(crate) fn become_limited() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != WORD {
        return None;
    }
    let name = arguments.next().unwrap_or_default();
    let limits = [Limits::Docker, Limits::NoExecutableMemory].into_iter().find(|one| name == one.name());
    let error = match (limits.map(Limits::take_on), arguments.next()) {
        (Some(Ok(())), Some(program)) => Command::new(program).args(arguments).exec().to_string(),
        (Some(Err(error)), _) => error.to_string(),
        _ => "no such limits, or no program".to_owned(),
    };
    eprintln!("{WORD}: {error}");
    Some(ExitCode::FAILURE)
}
