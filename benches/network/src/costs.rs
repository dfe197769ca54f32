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
        let mut sum = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")?.flatten() {
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

/// The one child of a process.
pub(crate) fn child(parent: u32) -> Result<u32> {
    let wanted = parent.to_string();
    fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // "pid (name) state parent …"
            stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(&wanted)
        })
        .with_context(|| format!("process {parent} has no child"))
}

#[cfg(test)]
mod tests {
    use super::kib;

    #[test]
    fn lines_of_proc_are_read() {
        assert_eq!(kib("VmHWM:\t  12 kB\nVmRSS:\t   5 kB\n", "VmRSS:").unwrap(), 5 << 10);
        assert!(kib("VmHWM:\t  12 kB\n", "VmRSS:").is_err());
    }
}
