//! A VM's clocks: the guest TSC, its frequency, and what kvmclock tells the guest of them
//! (Linux Documentation/virt/kvm/x86/msr.rst).
//!
//! The host's TSC is invariant wherever this engine runs, so the guest's TSC is the host's plus an offset, and one pair
//! of readings serves every vCPU for ever (the "stable" kvmclock).

use std::arch::x86_64::_rdtsc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::apic::Now;

/// The clocks of one VM.
#[derive(Clone, Debug)]
pub struct Clock {
    tsc_khz: u64,
    /// Host TSC at which kvmclock reads `base_ns`.
    base_tsc: u64,
    base_ns: u64,
    /// Wall time at kvmclock 0.
    boot_wall: Duration,
}

/// One `pvclock_vcpu_time_info`.
const TIME_INFO_BYTES: usize = 32;
const TSC_STABLE: u8 = 1;

impl Clock {
    /// Measures the TSC against the monotonic clock for `measure` (10 ms give some 5 parts in a million) and starts the
    /// guest's kvmclock at zero.
    pub fn calibrate(measure: Duration) -> Self {
        let (tsc0, ns0) = pair();
        std::thread::sleep(measure);
        let (tsc1, ns1) = pair();
        let ns = u128::from(ns1.saturating_sub(ns0).max(1));
        let tsc_khz = (u128::from(tsc1.saturating_sub(tsc0)) * 1_000_000 / ns).clamp(1_000, 100_000_000) as u64;
        Self { tsc_khz, base_tsc: tsc1, base_ns: 0, boot_wall: wall() }
    }

    /// Continues a saved clock: kvmclock reads `ns` now.
    pub fn resume_at(&mut self, ns: u64) {
        let (tsc, _) = pair();
        self.base_tsc = tsc;
        self.base_ns = ns;
        self.boot_wall = wall().saturating_sub(Duration::from_nanos(ns));
    }

    /// TSC ticks in a millisecond.
    pub fn tsc_khz(&self) -> u64 {
        self.tsc_khz
    }

    /// What kvmclock reads now, in nanoseconds.
    pub fn kvmclock_ns(&self) -> u64 {
        let ticks = u128::from(host_tsc().saturating_sub(self.base_tsc));
        let ns = ticks * 1_000_000 / u128::from(self.tsc_khz);
        self.base_ns.saturating_add(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// The readings that the APIC timer needs, for a vCPU whose TSC is the host's plus `tsc_offset`.
    pub fn now(&self, tsc_offset: u64) -> Now {
        let host = host_tsc();
        Now { ns: self.ns_of(host), tsc: host.wrapping_add(tsc_offset), tsc_khz: self.tsc_khz }
    }

    fn ns_of(&self, host_tsc: u64) -> u64 {
        (u128::from(host_tsc) * 1_000_000 / u128::from(self.tsc_khz)) as u64
    }

    /// How long from now until `ns` of [`Clock::now`]'s time base.
    pub fn until(&self, ns: u64) -> Duration {
        Duration::from_nanos(ns.saturating_sub(self.ns_of(host_tsc())))
    }

    /// The `pvclock_vcpu_time_info` for a vCPU with this TSC offset; `version` must be even.
    pub fn time_info(&self, tsc_offset: u64, version: u32) -> [u8; TIME_INFO_BYTES] {
        let (multiplier, shift) = scale(self.tsc_khz);
        let mut info = [0; TIME_INFO_BYTES];
        info[0..4].copy_from_slice(&version.to_le_bytes());
        info[8..16].copy_from_slice(&self.base_tsc.wrapping_add(tsc_offset).to_le_bytes());
        info[16..24].copy_from_slice(&self.base_ns.to_le_bytes());
        info[24..28].copy_from_slice(&multiplier.to_le_bytes());
        info[28] = shift as u8;
        info[29] = TSC_STABLE;
        info
    }

    /// The `pvclock_wall_clock`: wall time at which kvmclock read zero.
    pub fn wall_info(&self, version: u32) -> [u8; 12] {
        let mut info = [0; 12];
        info[0..4].copy_from_slice(&version.to_le_bytes());
        info[4..8].copy_from_slice(&(self.boot_wall.as_secs() as u32).to_le_bytes());
        info[8..12].copy_from_slice(&self.boot_wall.subsec_nanos().to_le_bytes());
        info
    }
}

/// The host's TSC.
pub fn host_tsc() -> u64 {
    // SAFETY: reading the TSC has no effect; every x86-64 host has it.
    unsafe { _rdtsc() }
}

/// (TSC, monotonic ns) read as close together as a few tries allow.
fn pair() -> (u64, u64) {
    let read = || {
        let before = host_tsc();
        let time = clock_gettime(ClockId::Monotonic);
        let after = host_tsc();
        let ns = (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64);
        (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), ns)
    };
    let best = (0..16).map(|_| read()).min_by_key(|(width, ..)| *width).unwrap_or_else(read);
    (best.1, best.2)
}

fn wall() -> Duration {
    let time = clock_gettime(ClockId::Realtime);
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

/// (multiplier, shift) so that ns = (ticks << shift) * multiplier >> 32, with the multiplier as large as 32 bits allow.
fn scale(tsc_khz: u64) -> (u32, i8) {
    let mut shift = 0_i8;
    let mut khz = u128::from(tsc_khz);
    // The multiplier is 2^32 * 10^6 / khz; it must lie in [2^31, 2^32).
    while khz > 2_000_000 {
        khz /= 2;
        shift -= 1;
    }
    while khz <= 1_000_000 {
        khz *= 2;
        shift += 1;
    }
    let exact = if shift < 0 {
        ((1_000_000_u128 << 32) << shift.unsigned_abs()) / u128::from(tsc_khz)
    } else {
        ((1_000_000_u128 << 32) >> shift) / u128::from(tsc_khz)
    };
    (u32::try_from(exact).unwrap_or(u32::MAX), shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_turns_ticks_into_nanoseconds() {
        for khz in [900_000, 1_000_000, 1_000_001, 2_300_000, 3_799_123, 5_100_000] {
            let (multiplier, shift) = scale(khz);
            let ticks = u128::from(khz) * 1_000; // one second
            let shifted = if shift < 0 { ticks >> shift.unsigned_abs() } else { ticks << shift };
            let ns = shifted * u128::from(multiplier) >> 32;
            assert!(ns.abs_diff(1_000_000_000) < 10, "{khz} kHz: {ns}");
        }
    }

    #[test]
    fn the_guest_reads_what_the_host_means() {
        let clock = Clock::calibrate(Duration::from_millis(1));
        let info = clock.time_info(1_000, 2);
        let field = |at: usize| u64::from_le_bytes(info[at..at + 8].try_into().unwrap());
        assert_eq!(field(8), clock.base_tsc.wrapping_add(1_000));
        assert_eq!((info[0], info[29]), (2, TSC_STABLE));
        assert_eq!(clock.now(7).tsc_khz, clock.tsc_khz());
    }

    #[test]
    fn a_resumed_clock_goes_on() {
        let mut clock = Clock::calibrate(Duration::from_millis(1));
        clock.resume_at(5_000_000_000);
        assert!(clock.kvmclock_ns() >= 5_000_000_000);
        let later = clock.now(0).ns.saturating_add(1_000_000_000);
        assert!(clock.until(later) <= Duration::from_secs(1));
        assert_eq!(clock.until(0), Duration::ZERO);
    }
}
