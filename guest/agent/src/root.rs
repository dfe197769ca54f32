//! The root file system: the shared read-only base below, the sandbox's own disk above it, Docker's data on the disk directly.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use agent_proto::abi::serial;
use rustix::mount::{MountFlags, mount_bind, mount_remount};
use rustix::process::{chdir, chroot};

use crate::cmdline::Cmdline;
use crate::console::log;
use crate::devices::Devices;
use crate::fail::{Doing, Failure, Outcome};
use crate::mounts::{make_dir, mount_at, move_to};
use crate::reaper::Reaper;
use crate::sys::Ended;
use std::sync::Arc;

const BASE: &str = "/base";
const DISK: &str = "/disk";
const NEW_ROOT: &str = "/root";
/// Where the disk is to be seen, by root only, once the root has been switched.
pub(crate) const DISK_AFTER: &str = "/run/vivarium/disk";
/// Below Docker's and containerd's own folders lies the disk itself: overlays do not stack well on an overlay.
const DIRECT: [(&str, &str); 2] = [("docker", "/var/lib/docker"), ("containerd", "/var/lib/containerd")];

/// What the root was made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Root {
    /// `pmem` or `blk`.
    pub(crate) base: &'static str,
    /// Whether this boot made the disk's file system.
    pub(crate) first_boot: bool,
    /// Whether there is a disk at all.
    pub(crate) has_disk: bool,
    /// Whether the last run ended without unmounting it.
    pub(crate) was_cut_off: bool,
}

/// Mounts base and upper layer and makes them the root of every process.
pub(crate) fn assemble(devices: &Devices, cmdline: &Cmdline, reaper: &Arc<Reaper>) -> Outcome<Root> {
    let base = mount_base(devices)?;
    let disk = Devices::disk(serial::DISK).filter(|_| !cmdline.root_in_memory);
    let found = match &disk {
        Some(device) => mount_disk(device, cmdline.disk_is_made, reaper)?,
        None => {
            mount_at("tmpfs", DISK, "tmpfs", MountFlags::empty(), "mode=0755,size=80%")?;
            Content::Blank
        }
    };
    log("base and disk mounted");
    for folder in ["upper", "work"] {
        make_dir(format!("{DISK}/{folder}"))?;
    }
    let layers =
        format!("lowerdir={BASE},upperdir={DISK}/upper,workdir={DISK}/work,redirect_dir=on,index=off");
    mount_at("overlay", NEW_ROOT, "overlay", MountFlags::NOATIME, &layers)?;
    for (name, path) in DIRECT {
        let (from, to) = (format!("{DISK}/{name}"), format!("{NEW_ROOT}{path}"));
        make_dir(&from)?;
        make_dir(&to)?;
        fs::set_permissions(&from, fs::Permissions::from_mode(0o711))
            .doing("Cannot set Docker's folder's mode")?;
        mount_bind(from.as_str(), to.as_str()).doing(format_args!("Cannot mount {path}"))?;
    }
    switch()?;
    Ok(Root {
        base,
        first_boot: found == Content::Blank,
        has_disk: disk.is_some(),
        was_cut_off: found == Content::Ext4 { clean: false },
    })
}

fn mount_base(devices: &Devices) -> Outcome<&'static str> {
    if let Some(device) = Devices::disk(serial::BASE) {
        mount_at(&device.to_string_lossy(), BASE, "erofs", MountFlags::RDONLY, "")?;
        return Ok("blk");
    }
    if !devices.has_pmem() {
        return Err(Failure::new("There is no device with the base image"));
    }
    let device = Devices::wait_for_pmem()?;
    mount_at(&device.to_string_lossy(), BASE, "erofs", MountFlags::RDONLY, "dax=always")?;
    Ok("pmem")
}

/// Mounts the disk, after making its file system if it is blank and `made` does not say that there was one. Returns what was on it.
fn mount_disk(device: &Path, made: bool, reaper: &Arc<Reaper>) -> Outcome<Content> {
    let path = device.to_string_lossy();
    let found = content(device)?;
    match found {
        Content::Ext4 { .. } => {}
        Content::Blank if made => {
            return Err(Failure::new(
                "The sandbox's disk is damaged: it is blank where its file system begins; it is left alone",
            ));
        }
        Content::Blank => make_file_system(&path, reaper)?,
        Content::Other => {
            return Err(Failure::new(
                "The sandbox's disk is damaged: what is on it is not ext4; it is left alone",
            ));
        }
    }
    mount_at(&path, DISK, "ext4", MountFlags::NOATIME, "discard,errors=remount-ro").map_err(|error| {
        Failure::new(format!("The sandbox's disk may be damaged: {error}; it is left alone"))
    })?;
    Ok(found)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Blank,
    /// `clean`: unmounted, with nothing left in its journal.
    Ext4 {
        clean: bool,
    },
    Other,
}

/// What is on a disk, by its first 64 KiB: a file system of any kind has its mark there.
fn content(device: &Path) -> Outcome<Content> {
    const MAGIC_AT: usize = 1024 + 0x38;
    /// `s_feature_incompat`, and its bit that says that the journal is to be replayed.
    const FEATURES_AT: usize = 1024 + 0x60;
    const RECOVER: u8 = 4;
    let mut start = vec![0u8; 64 * 1024];
    let disk = File::open(device).doing("Cannot open the sandbox's disk")?;
    disk.read_exact_at(&mut start, 0).doing("Cannot read the sandbox's disk")?;
    if start.get(MAGIC_AT..MAGIC_AT + 2) == Some(&[0x53, 0xef]) {
        Ok(Content::Ext4 { clean: start.get(FEATURES_AT).is_some_and(|features| features & RECOVER == 0) })
    } else if start.iter().all(|b| *b == 0) {
        Ok(Content::Blank)
    } else {
        Ok(Content::Other)
    }
}

/// Runs the base's own mke2fs in it. The disk is known to read as zeros, so nothing has to be zeroed, now or later.
fn make_file_system(device: &str, reaper: &Arc<Reaper>) -> Outcome {
    let inside = format!("{BASE}/dev");
    mount_bind("/dev", inside.as_str()).doing("Cannot show the devices to mke2fs")?;
    let mut command = Command::new("/usr/sbin/mke2fs");
    command
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "vivarium"])
        .args(["-E", "assume_storage_prezeroed=1,lazy_itable_init=1,nodiscard"])
        .arg(device)
        .env_clear()
        .env("MKE2FS_SYNC", "0")
        .stdin(Stdio::null());
    crate::spawn::chroot_into(&mut command, BASE);
    let ended = reaper.spawn(&mut command).doing("Cannot run mke2fs").map(|child| child.wait());
    rustix::mount::unmount(inside.as_str(), rustix::mount::UnmountFlags::DETACH)
        .doing("Cannot hide the devices again")?;
    match ended? {
        Ended::Code(0) => Ok(()),
        other => Err(Failure::new(format!("mke2fs could not make the disk's file system ({other:?})"))),
    }
}

/// Gives back to the host what the disk does not use. Freed blocks are given back as they are freed, but those of a run that was
/// cut off may have been missed. Runs beside everything else; what fails is only noted.
pub(crate) fn trim_disk(reaper: &Arc<Reaper>) {
    let mut command = Command::new("/usr/sbin/fstrim");
    command.arg(DISK_AFTER).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match reaper.spawn(&mut command).map(|child| child.wait()) {
        Ok(Ended::Code(0)) => log("the disk was trimmed after a run that was cut off"),
        Ok(other) => log(format_args!("the disk could not be trimmed: {other:?}")),
        Err(error) => log(format_args!("the disk could not be trimmed: {error}")),
    }
}

/// Makes [`NEW_ROOT`] the root, as `switch_root` does it: move the mount over `/` and change into it.
fn switch() -> Outcome {
    for path in ["/proc", "/sys", "/dev"] {
        move_to(path, &format!("{NEW_ROOT}{path}"))?;
    }
    // The files of the initial RAM disk are memory; the agent's own stays as long as it runs.
    let _ = fs::remove_file("/init");
    chdir(NEW_ROOT).doing("Cannot enter the new root")?;
    // Opened before the move, because afterwards nothing leads there.
    let disk = File::open(DISK).doing("Cannot hold on to the disk")?;
    rustix::mount::mount_move(".", "/").doing("Cannot move the new root into place")?;
    chroot(".").doing("Cannot change the root")?;
    chdir("/").doing("Cannot enter the root")?;
    crate::mounts::mount_late()?;
    show_disk(&disk)
}

/// Shows the disk at [`DISK_AFTER`]: shutting down has to reach it.
fn show_disk(disk: &File) -> Outcome {
    make_dir(DISK_AFTER)?;
    fs::set_permissions("/run/vivarium", fs::Permissions::from_mode(0o711)).doing("Cannot set a mode")?;
    let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(disk));
    mount_bind(from.as_str(), DISK_AFTER).doing("Cannot show the disk")?;
    fs::set_permissions(DISK_AFTER, fs::Permissions::from_mode(0o700)).doing("Cannot set a mode")
}

/// Makes the disk read-only, so that it is clean. For the very end.
pub(crate) fn seal_disk() -> Outcome {
    mount_remount(DISK_AFTER, MountFlags::RDONLY, c"").doing("Cannot make the disk read-only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_blank_disk_is_blank() {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = dir.path().join("disk");
        let write = |at: usize, bytes: &[u8]| {
            let mut content = vec![0u8; 128 * 1024];
            content[at..at + bytes.len()].copy_from_slice(bytes);
            fs::write(&disk, content).expect("a file");
            content_of(&disk)
        };
        fn content_of(disk: &Path) -> Content {
            content(disk).expect("readable")
        }
        assert_eq!(write(0, &[]), Content::Blank);
        assert_eq!(write(1024 + 0x38, &[0x53, 0xef]), Content::Ext4 { clean: true });
        let mut unclean = [0u8; 0x29];
        (unclean[0], unclean[1], unclean[0x28]) = (0x53, 0xef, 4);
        assert_eq!(write(1024 + 0x38, &unclean), Content::Ext4 { clean: false });
        assert_eq!(write(512, b"EFI PART"), Content::Other);
        assert_eq!(write(65_000, &[1]), Content::Other);
    }
}
