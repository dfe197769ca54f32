//! Landlock: which files may be opened, and that nothing may be done to the network or to other processes.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath,
    RestrictSelfAttr as _, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use crate::{Access, ConfineError, Role};

/// The version whose rights are not negotiable where the kernel has it: with it truncation is covered, and renames
/// across directories can be allowed.
const REQUIRED: ABI = ABI::V3;
/// The newest version that is made use of.
const WANTED: ABI = ABI::V9;
/// From this version on threads that exist already can be bound, too.
const ALL_THREADS: ABI = ABI::V8;

/// Restricts the process; gives the version in use, or `None` where the kernel has no Landlock.
pub(super) fn restrict(
    role: Role,
    directories: &[(BorrowedFd<'_>, Access)],
    threads: usize,
) -> Result<Option<u32>, ConfineError> {
    let available = available();
    if threads > 1 && available < ALL_THREADS {
        return Err(ConfineError::Threads(threads));
    }
    let Some(version) = offered() else { return Ok(None) };
    let failed = |error: landlock::RulesetError| ConfineError::Landlock(Box::new(error));
    let required = if available >= REQUIRED { AccessFs::from_all(REQUIRED) } else { BitFlags::empty() };
    let mut ruleset = Ruleset::default();
    if !required.is_empty() {
        ruleset = ruleset
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(required)
            .map_err(failed)?;
    }
    let mut created = ruleset
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))
        .and_then(|ruleset| ruleset.handle_access(network(role)))
        .and_then(|ruleset| ruleset.scope(scopes(role)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (directory, access) in directories {
        created = created.add_rule(PathBeneath::new(directory, rights(role, *access))).map_err(failed)?;
    }
    if threads > 1 {
        created =
            created.set_compatibility(CompatLevel::HardRequirement).all_threads(true).map_err(failed)?;
    }
    let status = created.restrict_self().map_err(failed)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(ConfineError::Landlock("the kernel did not enforce it".into()));
    }
    Ok(Some(version))
}

/// What is in force, for `viv diagnose`: also what a version before the required one leaves open that nothing else closes.
/// (What later versions add, TCP, devices and signals, the filter has already.)
pub(super) fn sentence(version: Option<u32>, directories: usize) -> String {
    let Some(version) = version else { return "no Landlock: this kernel has none".to_owned() };
    let lacks = match version {
        0..=1 => {
            ", which does not keep read-only files from being truncated and lets no file move between folders of a share"
        }
        2 => ", which does not keep read-only files from being truncated",
        _ => "",
    };
    let reach = match directories {
        0 => "no files at all".to_owned(),
        1 => "1 directory".to_owned(),
        count => format!("{count} directories"),
    };
    format!("Landlock version {version} on {reach}{lacks}")
}

/// A right beneath a granted directory, and who needs it.
type Right = (AccessFs, &'static str);

/// Either role, beneath every directory.
const READING: &[Right] = &[
    (AccessFs::ReadFile, "vmm: the guest reads a shared file; shim: it opens a log again, and its own state"),
    (
        AccessFs::ReadDir,
        "vmm: the guest lists a shared folder; shim: the folder is opened to make a file's name durable",
    ),
];

/// The vmm, beneath a share that may be written. Not among them: running a file, device nodes, `ioctl` on devices,
/// connecting to a socket.
const VMM_WRITING: &[Right] = &[
    (AccessFs::WriteFile, "the guest writes a shared file"),
    (AccessFs::Truncate, "the guest truncates a shared file"),
    (AccessFs::RemoveDir, "the guest removes or moves a folder"),
    (AccessFs::RemoveFile, "the guest removes or moves a file"),
    (AccessFs::MakeDir, "the guest makes or moves a folder"),
    (AccessFs::MakeReg, "the guest makes, moves or links a file"),
    (AccessFs::MakeSym, "the guest makes or moves a symbolic link"),
    (AccessFs::MakeFifo, "the guest moves a pipe that the host made; `mknod` is not in the filter"),
    (AccessFs::MakeSock, "the guest moves a socket that the host made; `bind` is not in the filter"),
    (AccessFs::Refer, "the guest moves or links from one folder of a share to another"),
];

/// The shim, beneath the sandbox's folder.
const SHIM_WRITING: &[Right] = &[
    (AccessFs::WriteFile, "logs, the state's file, the disk's description"),
    (AccessFs::Truncate, "a file that replaces another is begun empty"),
    (AccessFs::MakeReg, "the same files are made anew beside the old ones and renamed"),
    (AccessFs::RemoveFile, "the old ones are replaced; the control socket is removed at the end"),
];

/// What of TCP is refused.
fn network(role: Role) -> BitFlags<AccessNet> {
    match role {
        Role::Vmm | Role::Shim => AccessNet::from_all(WANTED),
        // To connect is what they are for; nobody connects to them but over what was handed to them.
        Role::Keeper | Role::Gateway => AccessNet::BindTcp.into(),
    }
}

/// The rights beneath a granted directory.
fn rights(role: Role, access: Access) -> BitFlags<AccessFs> {
    let writing: &[Right] = match (access, role) {
        (Access::ReadWrite, Role::Vmm) => VMM_WRITING,
        (Access::ReadWrite, Role::Shim) => SHIM_WRITING,
        // The two others get no directories.
        (Access::ReadOnly, _) | (_, Role::Keeper | Role::Gateway) => &[],
    };
    READING.iter().chain(writing).map(|(right, _)| *right).collect()
}

/// What is cut off from processes outside.
fn scopes(role: Role) -> BitFlags<Scope> {
    match role {
        // A keeper's child is within its scope.
        Role::Vmm | Role::Keeper | Role::Gateway => Scope::from_all(WANTED),
        // It must kill its vmm, which started before it was confined; the filter lets it signal no other process.
        Role::Shim => Scope::from_all(WANTED) & !Scope::Signal,
    }
}

/// The version that the kernel offers, as a number.
pub(crate) fn offered() -> Option<u32> {
    Some(available() as u32).filter(|version| *version > 0)
}

/// The version that the kernel offers.
fn available() -> ABI {
    // SAFETY: with no attributes and this flag (LANDLOCK_CREATE_RULESET_VERSION) the call only answers a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, 1) };
    i32::try_from(version).ok().filter(|version| *version > 0).map_or(ABI::Unsupported, ABI::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_role_may_run_files_or_make_devices() {
        let forbidden = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
        for role in [Role::Vmm, Role::Shim, Role::Keeper, Role::Gateway] {
            for access in [Access::ReadOnly, Access::ReadWrite] {
                assert!((rights(role, access) & forbidden).is_empty());
            }
        }
    }

    #[test]
    fn a_read_only_share_cannot_be_changed() {
        for role in [Role::Vmm, Role::Shim, Role::Keeper, Role::Gateway] {
            assert!((rights(role, Access::ReadOnly) & AccessFs::from_write(WANTED)).is_empty());
        }
    }

    /// The right to truncate came with version 3, the one to move between directories with version 2.
    #[test]
    fn what_an_old_version_lacks_is_said() {
        let lacks = |version| {
            let said = sentence(Some(version), 2);
            assert!(said.starts_with(&format!("Landlock version {version} on 2 directories")), "{said}");
            (said.contains("truncated"), said.contains("move"))
        };
        assert_eq!([1, 2, 3, 7].map(lacks), [(true, true), (true, false), (false, false), (false, false)]);
        assert!(!AccessFs::from_all(ABI::V2).contains(AccessFs::Truncate));
        assert!(AccessFs::from_all(REQUIRED).contains(AccessFs::Truncate | AccessFs::Refer));
        assert!(!AccessFs::from_all(ABI::V1).contains(AccessFs::Refer));
        assert!(sentence(None, 2).contains("no Landlock"));
        assert_eq!(sentence(Some(7), 1), "Landlock version 7 on 1 directory");
    }

    #[test]
    fn only_who_has_the_network_may_connect_and_nobody_may_bind() {
        for role in [Role::Vmm, Role::Shim, Role::Keeper, Role::Gateway] {
            assert!(network(role).contains(AccessNet::BindTcp));
            let connects = matches!(role, Role::Keeper | Role::Gateway);
            assert_ne!(network(role).contains(AccessNet::ConnectTcp), connects, "{role:?}");
        }
    }

    #[test]
    fn only_a_shim_signals_other_processes() {
        for role in [Role::Vmm, Role::Keeper, Role::Gateway] {
            assert!(scopes(role).contains(Scope::Signal));
        }
        assert!(!scopes(Role::Shim).contains(Scope::Signal));
    }
}
