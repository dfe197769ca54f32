//! What this process may use of the host, and with that what a sandbox may have (`docs/sandboxes.md`).

use std::fs;
use std::path::{Path, PathBuf};

/// Smallest memory that a guest with Docker comes up with.
pub const LEAST_MEMORY: u64 = 256 << 20;
/// Smallest disk: Docker's own folders and the first image's layers have room.
pub const LEAST_DISK: u64 = 1 << 30;
/// Largest disk: what ext4 takes with the block size that the guest makes it with, also when it is small.
pub const MOST_DISK: u64 = 16 << 40;
/// Most vCPUs, whatever the host has: what every engine takes.
pub(crate) const MOST_CPUS: u32 = 64;

/// Kept of a control group's limit for the processes of a sandbox: who oversteps it is killed, and the guest with it. The software CPU
/// takes some 420 MiB when its caches are full (measured), for which a default leaves room from a limit of 1 GiB on.
const BESIDE: u64 = 64 << 20;

/// Where control groups are seen.
const GROUPS: &str = "/sys/fs/cgroup";

/// CPUs that a sandbox may have: those of the host that this process may run on, as far as control groups let it.
pub fn cpus() -> u32 {
    let all = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
    all.min(MOST_CPUS)
}

/// Bytes of memory that a sandbox may have: the host's, or what control groups leave of it for this process and for a sandbox's own.
pub fn memory() -> u64 {
    let (all, limited) = available();
    if limited { all.saturating_sub(BESIDE) } else { all }
}

/// Bytes of memory that there are for this process, and whether a control group limits them.
fn available() -> (u64, bool) {
    let host = crate::sys::host_memory();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match group_limit(Path::new(GROUPS), &own) {
        Some(limit) if limit < host => (limit, true),
        _ => (host, false),
    }
}

/// The smallest limit of the groups that a process is in, of both versions; `own` is its `/proc/self/cgroup`.
fn group_limit(root: &Path, own: &str) -> Option<u64> {
    let limits = own.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // In a container the groups above its own are not seen, or its own group is seen as the root.
        let folders: Vec<PathBuf> = Path::new(group)
            .ancestors()
            .map(|group| root.join(group.strip_prefix("/").unwrap_or(group)))
            .collect();
        folders
            .into_iter()
            .filter_map(|folder| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok())
            .collect()
    });
    limits.min()
}

/// What a new sandbox gets when the user does not say: (vCPUs, memory in bytes, disk in bytes). All processors; half of
/// the memory, at most 8 GiB and at least 512 MiB, which a control group's limit does not have to give; 64 GiB of disk, of which only
/// what is used takes room.
pub fn defaults() -> (u32, u64, u64) {
    let (all, limited) = available();
    (cpus(), default_memory(all, limited), 64 << 30)
}

fn default_memory(all: u64, limited: bool) -> u64 {
    let least = if limited { LEAST_MEMORY } else { 512 << 20 };
    (all / 2).clamp(least, 8 << 30).min(all.max(LEAST_MEMORY)) & !((2 << 20) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = |own: &str| group_limit(root.path(), own);
        assert_eq!(limit("0::/a/b\n"), None);
        write("memory.max", "max\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "1073741824\n");
        assert_eq!(limit("0::/a/b\n"), Some(1 << 30));
        write("memory.max", "536870912\n");
        assert_eq!(limit("0::/a/b\n"), Some(512 << 20));
        assert_eq!(limit("0::/../not/seen\n"), Some(512 << 20), "a container's own group is the root");
        // Version 1, beside an empty version 2.
        write("memory/docker/x/memory.limit_in_bytes", "268435456\n");
        assert_eq!(limit("12:cpu,cpuacct:/docker/x\n5:memory:/docker/x\n"), Some(256 << 20));
        assert_eq!(limit("nonsense\n\n::\n"), limit("0::/\n"));
    }

    #[test]
    fn a_small_host_is_not_promised_away() {
        for (host, expected) in [
            (64 << 30, 8 << 30),
            (8 << 30, 4 << 30),
            (600 << 20, 512 << 20),
            (300 << 20, 300 << 20),
            (100 << 20, LEAST_MEMORY),
        ] {
            assert_eq!(default_memory(host, false), expected, "{host}");
        }
        // The whole of a container's limit would have the container's processes killed.
        for (limit, expected) in [(3 << 30, 3 << 29), (1 << 30, 512 << 20), (512 << 20, LEAST_MEMORY)] {
            assert_eq!(default_memory(limit, true), expected, "{limit}");
        }
    }
}
