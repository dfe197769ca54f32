//! Mounting: thin words over the system calls, and the file systems that every Linux program expects.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::fail::{Doing, Failure, Outcome};

/// Nothing on it can be a device, set an id, or run.
const INERT: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Mounts a file system, making its mount point.
pub(crate) fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, data: &str) -> Outcome {
    make_dir(target)?;
    let data = CString::new(data).map_err(|_| Failure::new("A mount option holds a NUL"))?;
    mount(source, target, kind, flags, data.as_c_str()).doing(format_args!("Cannot mount {kind} on {target}"))
}

/// Makes a folder and what is missing above it, 0755.
pub(crate) fn make_dir(path: impl AsRef<Path>) -> Outcome {
    let path = path.as_ref();
    fs::create_dir_all(path).doing(format_args!("Cannot make the folder {}", path.display()))
}

/// Moves a mounted tree.
pub(crate) fn move_to(from: &str, to: &str) -> Outcome {
    make_dir(to)?;
    mount_move(from, to).doing(format_args!("Cannot move {from} to {to}"))
}

/// `/proc`, `/sys` and `/dev`, in the initial RAM disk.
pub(crate) fn mount_early() -> Outcome {
    mount_at("proc", "/proc", "proc", INERT, "")?;
    mount_at("sysfs", "/sys", "sysfs", INERT, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0755")
}

/// Everything else that belongs into `/dev`, `/run`, `/tmp` and `/sys`, in the new root.
pub(crate) fn mount_late() -> Outcome {
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", "mqueue", INERT, "")?;
    mount_at("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=0755,size=20%")?;
    mount_at("tmpfs", "/run/lock", "tmpfs", INERT, "mode=1777,size=5m")?;
    mount_at("tmpfs", "/tmp", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777,size=50%")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", INERT, "nsdelegate,memory_recursiveprot")?;
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/core", "/proc/kcore"),
    ] {
        // There already after a restart of the same devtmpfs.
        let _ = symlink(target, link);
    }
    // What udev would do: the nodes of modules that load on first use, and who may use them.
    make_dir("/dev/net")?;
    let _ =
        mknodat(CWD, "/dev/net/tun", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(10, 200));
    for node in ["/dev/net/tun", "/dev/fuse"] {
        let _ = fs::set_permissions(node, fs::Permissions::from_mode(0o666));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_with_what_is_above_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let deep = dir.path().join("a/b/c");
        make_dir(&deep).expect("made");
        make_dir(&deep).expect("made before");
        fs::write(dir.path().join("file"), "").expect("a file");
        assert!(make_dir(dir.path().join("file/below")).is_err());
    }
}
