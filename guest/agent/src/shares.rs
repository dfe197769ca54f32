//! The host's folders: one virtio-fs device, each share bound to its own path.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::sync::{Mutex, PoisonError};

use agent_proto::abi;
use agent_proto::messages::Share;
use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::fail::{Doing, Failure, Outcome};
use crate::mounts::{make_dir, mount_at};

/// What is mounted.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    mounted: Mutex<Mounted>,
}

#[derive(Debug, Default)]
struct Mounted {
    device: bool,
    shares: Vec<Share>,
}

impl Shares {
    /// Mounts the shares that are not mounted yet.
    pub(crate) fn mount(&self, shares: &[Share]) -> Outcome {
        let mut mounted = self.mounted.lock().unwrap_or_else(PoisonError::into_inner);
        for share in shares {
            if mounted.shares.contains(share) {
                continue;
            }
            check(share)?;
            if !mounted.device {
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                mount_at(abi::FS_TAG, abi::FS_ROOT, "virtiofs", flags, "")?;
                mounted.device = true;
            }
            bind(share)?;
            open_the_way(target(share), |path| mounted.shares.iter().any(|s| path.starts_with(target(s))))?;
            mounted.shares.push(share.clone());
        }
        Ok(())
    }
}

/// Refuses what can only be a mistake of the host's: the guest must come up with its own system folders.
fn check(share: &Share) -> Outcome {
    let name = Path::new(&share.name);
    if !matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(only)] if only == name.as_os_str())
    {
        return Err(Failure::new(format!("{:?} cannot be a share's name", share.name)));
    }
    let path = target(share);
    let mut parts = path.components();
    let absolute = parts.next() == Some(Component::RootDir);
    let first = parts.next();
    let plain = parts.all(|part| matches!(part, Component::Normal(_)));
    match first {
        Some(Component::Normal(top)) if absolute && plain && !share.path.contains(&0) => {
            if ["proc", "sys", "dev"].iter().any(|own| top == *own) {
                return Err(Failure::new(format!("A folder cannot be shared at {}", path.display())));
            }
            Ok(())
        }
        _ => Err(Failure::new(format!("{} cannot be a share's path", path.display()))),
    }
}

fn target(share: &Share) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(&share.path))
}

fn bind(share: &Share) -> Outcome {
    let (source, target) = (Path::new(abi::FS_ROOT).join(&share.name), target(share));
    let kind = fs::metadata(&source).doing(format_args!("The share {} is not there", share.name))?;
    if kind.is_dir() {
        make_dir(target)?;
    } else {
        make_dir(target.parent().unwrap_or(Path::new("/")))?;
        if !fs::exists(target).unwrap_or(false) {
            File::create(target).doing(format_args!("Cannot make {}", target.display()))?;
        }
    }
    mount_bind(&source, target).doing(format_args!("Cannot mount {}", target.display()))?;
    if share.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(target, flags, c"")
            .doing(format_args!("Cannot make {} read-only", target.display()))?;
    }
    Ok(())
}

/// Lets everybody pass the guest's own folders above a share: one below `/root` would be out of the user's reach. Folders that belong to
/// other shares are the host's and stay as they are.
fn open_the_way(path: &Path, shared: impl Fn(&Path) -> bool) -> Outcome {
    const SEARCH: u32 = 0o001;
    for folder in path.ancestors().skip(1).filter(|folder| !shared(folder)) {
        let doing = || format!("Cannot let the user pass {}", folder.display());
        let mode = fs::metadata(folder).doing(doing())?.permissions().mode();
        if mode & SEARCH == 0 {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | SEARCH)).doing(doing())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_opened_but_not_through_other_shares() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = dir.path().join("own/shared/inner/target");
        fs::create_dir_all(&deep).expect("folders");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let folders =
            ["own", "own/shared", "own/shared/inner", "own/shared/inner/target"].map(|p| dir.path().join(p));
        for folder in folders.iter().rev() {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("a mode");
        }
        let outside = |path: &Path| path.starts_with(&folders[1]) || !path.starts_with(&folders[0]);
        open_the_way(&deep, outside).expect("opened");
        assert_eq!(folders.each_ref().map(|f| mode(f)), [0o701, 0o700, 0o700, 0o700]);
    }

    #[test]
    fn shares_have_plain_names_and_paths() {
        let share = |name: &str, path: &str| Share { name: name.into(), path: path.into(), read_only: false };
        for good in ["/home/me/src", "/opt", "/procedure"] {
            assert_eq!(check(&share("w0", good)), Ok(()), "{good}");
        }
        for bad in ["/", "", "relative", "/a/../b", "/proc/x", "/sys", "/dev/shm", "/a\0b"] {
            assert!(check(&share("w0", bad)).is_err(), "{bad}");
        }
        for bad in ["", ".", "..", "a/b", "/a", "a/"] {
            assert!(check(&share(bad, "/opt")).is_err(), "{bad}");
        }
    }
}
