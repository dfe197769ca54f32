//! What the guest uses, from `/proc`.

use std::fs;

use agent_proto::messages::Metrics;
use rustix::time::{ClockId, clock_gettime};

/// Clock ticks of `/proc/stat` a second (`USER_HZ`, the same on every Linux that matters).
const TICKS: u64 = 100;

/// Takes the figures now.
pub(crate) fn measure() -> Metrics {
    let up = clock_gettime(ClockId::Boottime);
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (disk_total, disk_used) = disk();
    Metrics {
        uptime_ms: up.tv_sec.unsigned_abs() * 1000 + up.tv_nsec.unsigned_abs() / 1_000_000,
        cpu_ms: busy_ticks(&stat) * 1000 / TICKS,
        cpus: stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu ")).count() as u32,
        memory_total: kibibytes(&meminfo, "MemTotal:"),
        memory_available: kibibytes(&meminfo, "MemAvailable:"),
        disk_total,
        disk_used,
        processes: fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| is_process(&e.file_name()))
            .count() as u32,
        load_milli: load(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
    }
}

fn is_process(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

fn disk() -> (u64, u64) {
    rustix::fs::statvfs("/").map_or((0, 0), |fs| {
        (
            fs.f_blocks.saturating_mul(fs.f_frsize),
            fs.f_blocks.saturating_sub(fs.f_bfree).saturating_mul(fs.f_frsize),
        )
    })
}

/// All but idle and waiting: user, nice, system, irq, softirq, steal (guest time is in user already).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let fields = line.split_whitespace().map(|field| field.parse().unwrap_or(0u64));
    fields.enumerate().filter(|(n, _)| [0, 1, 2, 5, 6, 7].contains(n)).map(|(_, ticks)| ticks).sum()
}

fn kibibytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

fn load(loadavg: &str) -> u32 {
    let one = loadavg.split_whitespace().next().unwrap_or_default();
    let (whole, part) = one.split_once('.').unwrap_or((one, "0"));
    let hundredths = part.parse::<u32>().unwrap_or(0);
    whole.parse::<u32>().unwrap_or(0).saturating_mul(1000).saturating_add(hundredths.saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_text() {
        assert_eq!(busy_ticks("cpu  10 1 5 1000 7 2 3 4 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n"), 25);
        assert_eq!(
            kibibytes("MemTotal:       2048 kB\nMemAvailable: 1024 kB\n", "MemAvailable:"),
            1024 * 1024
        );
        assert_eq!(load("1.25 0.00 0.00 1/100 5\n"), 1250);
        assert_eq!((busy_ticks(""), kibibytes("", "MemTotal:"), load("")), (0, 0, 0));
    }

    #[test]
    fn this_machine_has_figures() {
        let metrics = measure();
        assert!(metrics.cpus > 0 && metrics.memory_total > metrics.memory_available && metrics.uptime_ms > 0);
        assert!(metrics.processes > 0 && metrics.disk_total >= metrics.disk_used);
    }
}
