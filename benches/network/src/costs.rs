//! What a process costs the host, by `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// What a process has used since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    /// Times that one of its threads was put on a CPU.
    pub(crate) switches: u64,
    /// CPU time, the kernel's for it included.
    pub(crate) nanoseconds: u64,
}

impl Costs {
    /// Of all threads of a process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        Self::of_threads(pid, |_| true)
    }

    /// Of a VMM's threads that run no guest code: devices, timers, QEMU's main loop.
    pub(crate) fn beside_vcpus(pid: u32) -> Result<Self> {
        // "vcpu0" with us, "CPU 0/TCG" with QEMU.
        Self::of_threads(pid, |name| !name.starts_with("vcpu") && !name.starts_with("CPU "))
    }

    /// Of those threads of a process whose names are wanted.
    fn of_threads(pid: u32, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")?.flatten() {
            if !fs::read_to_string(task.path().join("comm")).is_ok_and(|name| wanted(&name)) {
                continue;
            }
            // "time on CPU, time waiting (both in nanoseconds), time slices"; a thread may have ended meanwhile.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let mut fields = text.split_ascii_whitespace().filter_map(|field| field.parse::<u64>().ok());
            sum.nanoseconds += fields.next().unwrap_or(0);
            sum.switches += fields.nth(1).unwrap_or(0);
        }
        Ok(sum)
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            switches: self.switches.saturating_sub(before.switches),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
        }
    }
}

/// Bytes of a process that are resident, shared ones included.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status"))?, "VmRSS:")
}

/// Bytes of a process's own: its share of each mapping.
pub(crate) fn share(pid: u32) -> Result<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Pss:")
}

fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib << 10)
}

/// Resident bytes of a process without code, translated code, and mappings of half a GiB and more, which are guest RAM and images.
pub(crate) fn data(pid: u32) -> Result<u64> {
    Ok(data_in(&fs::read_to_string(format!("/proc/{pid}/smaps"))?))
}

fn data_in(smaps: &str) -> u64 {
    let (mut counts, mut sum) = (false, 0);
    for line in smaps.lines() {
        let kib = |text: &str| text.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0);
        if let Some(size) = line.strip_prefix("Size:") {
            counts &= kib(size) < 512 << 10;
        } else if let Some(resident) = line.strip_prefix("Rss:") {
            sum += if counts { kib(resident) << 10 } else { 0 };
        } else if let Some((range, rest)) = line.split_once(' ')
            && !range.ends_with(':')
        {
            // "begin-end rwxp offset device inode path"
            counts = rest.as_bytes().get(2) != Some(&b'x');
        }
    }
    sum
}

/// The one child of a process.
pub(crate) fn child(parent: u32) -> Result<u32> {
    children(parent)?.first().copied().with_context(|| format!("process {parent} has no child"))
}

/// All children of a process.
pub(crate) fn children(parent: u32) -> Result<Vec<u32>> {
    let wanted = parent.to_string();
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // "pid (name) state parent …"
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(&wanted)
        });
    Ok(pids.collect())
}

#[cfg(test)]
mod tests {
    use super::{data_in, kib};

    #[test]
    fn lines_of_proc_are_read() {
        assert_eq!(kib("VmHWM:\t  12 kB\nVmRSS:\t   5 kB\n", "VmRSS:").unwrap(), 5 << 10);
        assert!(kib("VmHWM:\t  12 kB\n", "VmRSS:").is_err());
    }

    #[test]
    fn code_and_guest_ram_are_no_data() {
        let mapping = |rights: &str, size: u64, resident: u64| {
            format!("7f00-7f01 {rights} 0 0:0 0 name\nSize: {size} kB\nRss: {resident} kB\nVmFlags: rd wr\n")
        };
        let smaps = mapping("rw-p", 100, 3) + &mapping("rwxp", 100, 5) + &mapping("rw-s", 1 << 20, 7);
        assert_eq!(data_in(&(smaps + &mapping("rw-p", 8, 8))), 11 << 10);
    }
}
