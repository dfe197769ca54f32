//! What processes cost the host, by `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// What some processes have used since their starts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    /// Times that one of their threads was put on a CPU.
    pub(crate) switches: u64,
    /// CPU time.
    pub(crate) nanoseconds: u64,
}

/// Of all threads of these processes.
pub(crate) fn of(pids: &[u64]) -> Result<Costs> {
    let mut sum = Costs::default();
    for pid in pids {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("a process has ended")?;
        for task in tasks.flatten() {
            // "time on CPU, time waiting (both in nanoseconds), time slices"; a thread may have ended meanwhile.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
            let mut fields = text.split_ascii_whitespace().filter_map(|field| field.parse::<u64>().ok());
            sum.nanoseconds += fields.next().unwrap_or(0);
            sum.switches += fields.nth(1).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// Bytes of a process's own: its share of each mapping, but for guest RAM and the base image, which all sandboxes share.
pub(crate) fn memory(pid: u64) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    Ok(own_bytes(&smaps))
}

fn own_bytes(smaps: &str) -> u64 {
    let (mut counts, mut sum) = (true, 0);
    for line in smaps.lines() {
        // A mapping's first line has its addresses; the others begin with a name and a colon.
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            counts = !line.contains("/memfd:vivarium-ram") && !line.contains("base.erofs");
        } else if counts && first == "Pss:" {
            let kib = line.split_ascii_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
            sum += kib.unwrap_or(0) << 10;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::own_bytes;

    #[test]
    fn guest_ram_and_the_base_image_do_not_count() {
        let smaps = "55-66 r-xp 0 fe:00 1 /usr/bin/viv\nSize: 8 kB\nPss: 4 kB\nVmFlags: rd\n\
                     7f-80 rw-s 0 00:01 2 /memfd:vivarium-ram (deleted)\nPss: 1000 kB\n\
                     81-82 r--s 0 fe:00 3 /c/base.erofs\nPss: 500 kB\n\
                     83-84 rw-p 0 00:00 0 \nPss: 2 kB\nPss_Dirty: 2 kB\n";
        assert_eq!(own_bytes(smaps), 6 << 10);
    }
}
