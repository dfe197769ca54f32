//! Landlock: which files may be opened, and that nothing may be done to the network or to other processes.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath,
    RestrictSelfAttr as _, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use crate::{Access, ConfineError};

/// The version whose rights are not negotiable where the kernel has it: with it truncation is covered, and renames
/// across directories can be allowed.
const REQUIRED: ABI = ABI::V3;
/// The newest version that is made use of.
const WANTED: ABI = ABI::V9;
/// From this version on threads that exist already can be bound, too.
const ALL_THREADS: ABI = ABI::V8;

/// Restricts the process; gives the version in use, or `None` where the kernel has no Landlock.
pub(super) fn restrict(
    directories: &[(BorrowedFd<'_>, Access)],
    threads: usize,
) -> Result<Option<u32>, ConfineError> {
    let available = available();
    if threads > 1 && available < ALL_THREADS {
        return Err(ConfineError::Threads(threads));
    }
    if available == ABI::Unsupported {
        return Ok(None);
    }
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
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(WANTED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(WANTED)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (directory, access) in directories {
        created = created.add_rule(PathBeneath::new(directory, rights(*access))).map_err(failed)?;
    }
    if threads > 1 {
        created =
            created.set_compatibility(CompatLevel::HardRequirement).all_threads(true).map_err(failed)?;
    }
    let status = created.restrict_self().map_err(failed)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(ConfineError::Landlock("the kernel did not enforce it".into()));
    }
    Ok(Some(available as u32))
}

/// The rights beneath a granted directory.
fn rights(access: Access) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    match access {
        Access::ReadOnly => read,
        // No device nodes, nothing to run, no ioctl on devices, no connection to a socket in it.
        Access::ReadWrite => {
            read | AccessFs::WriteFile
                | AccessFs::Truncate
                | AccessFs::RemoveDir
                | AccessFs::RemoveFile
                | AccessFs::MakeDir
                | AccessFs::MakeReg
                | AccessFs::MakeSym
                | AccessFs::MakeFifo
                | AccessFs::MakeSock
                | AccessFs::Refer
        }
    }
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
    fn no_share_may_run_files_or_make_devices() {
        let forbidden = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
        for access in [Access::ReadOnly, Access::ReadWrite] {
            assert!((rights(access) & forbidden).is_empty());
        }
    }

    #[test]
    fn a_read_only_share_cannot_be_changed() {
        assert!((rights(Access::ReadOnly) & AccessFs::from_write(WANTED)).is_empty());
    }
}
