//! The host's TSC: its frequency, and kvmclock's view of it.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The host's time-stamp counter.
#[inline(always)]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC has no preconditions in user space on hosts that do not set CR4.TSD.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The clock of one VM.
#[derive(Debug)]
pub struct Clock {
    khz: u64,
    /// Host TSC when the VM was made: the guest's TSC starts at 0 there.
    origin: u64,
    /// Ticks of the host's TSC for one of this clock.
    slowness: u64,
    /// Wall-clock time at the origin, since 1970.
    wall: Duration,
    mul: u32,
    shift: i8,
}

impl Clock {
    /// A clock that starts now and runs with the host's TSC.
    pub fn new() -> Self {
        Self::slowed(1)
    }

    /// A clock that starts now and runs slower than the host's TSC by a factor, for guests that are looked at closely: they
    /// would do little else than timer ticks. Whoever uses it must not read the host's TSC for the guest.
    pub fn slowed(slowness: u64) -> Self {
        let khz = host_khz();
        let (mul, shift) = scale(khz * 1000);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { khz, origin: host_tsc(), slowness: slowness.max(1), wall, mul, shift }
    }

    /// The time in ticks: the host's TSC, but for a slowed clock.
    #[inline]
    pub fn now(&self) -> u64 {
        let tsc = host_tsc();
        if self.slowness == 1 {
            return tsc;
        }
        self.origin.wrapping_add(tsc.wrapping_sub(self.origin) / self.slowness)
    }

    /// TSC frequency in kHz.
    pub fn khz(&self) -> u64 {
        self.khz
    }

    /// What is added to [`Self::now`] to get the guest's TSC.
    pub fn tsc_offset(&self) -> u64 {
        self.origin.wrapping_neg()
    }

    /// How long `ticks` take on the host.
    pub fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * u128::from(self.slowness) * 1_000_000 / u128::from(self.khz.max(1));
        Duration::from_nanos(nanos.min(u128::from(u64::MAX)) as u64)
    }

    /// The `pvclock_vcpu_time_info` page content (Linux Documentation/virt/kvm/x86/msr.rst): guest TSC 0 is time 0.
    pub fn system_time(&self, guest_tsc_shift: u64) -> [u8; 32] {
        let mut info = [0; 32];
        info[0..4].copy_from_slice(&2u32.to_le_bytes());
        info[8..16].copy_from_slice(&guest_tsc_shift.to_le_bytes());
        info[24..28].copy_from_slice(&self.mul.to_le_bytes());
        info[28] = self.shift as u8;
        // The TSC is stable across vCPUs.
        info[29] = 1;
        info
    }

    /// The `pvclock_wall_clock` content: wall-clock time at kvmclock's zero.
    pub fn wall_clock(&self) -> [u8; 12] {
        let mut info = [0; 12];
        info[0..4].copy_from_slice(&2u32.to_le_bytes());
        info[4..8].copy_from_slice(&(self.wall.as_secs() as u32).to_le_bytes());
        info[8..12].copy_from_slice(&self.wall.subsec_nanos().to_le_bytes());
        info
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// kvmclock's multiplier and shift for a frequency: ns = ((ticks << shift) * mul) >> 32.
fn scale(hz: u64) -> (u32, i8) {
    let mut scaled: u64 = 1_000_000_000;
    let mut ticks = hz.max(1);
    let mut shift = 0i8;
    while ticks > scaled * 2 || ticks >> 32 != 0 {
        ticks >>= 1;
        shift -= 1;
    }
    while ticks <= scaled || scaled >> 32 != 0 {
        if scaled >> 32 != 0 || ticks & 0x8000_0000 != 0 {
            scaled >>= 1;
        } else {
            ticks <<= 1;
        }
        shift += 1;
    }
    (((scaled << 32) / ticks) as u32, shift)
}

/// The host's TSC frequency in kHz: from CPUID where the host says it, measured against the monotonic clock otherwise.
fn host_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let leaf = std::arch::x86_64::__cpuid_count;
        if leaf(0, 0).eax >= 0x15 {
            let tsc = leaf(0x15, 0);
            if tsc.eax != 0 && tsc.ebx != 0 && tsc.ecx != 0 {
                return u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax) / 1000;
            }
        }
        measure_khz()
    })
}

fn measure_khz() -> u64 {
    let sample = || {
        // The tightest of several brackets.
        (0..8)
            .map(|_| {
                let before = host_tsc();
                let at = Instant::now();
                let after = host_tsc();
                (after.wrapping_sub(before), before.wrapping_add(after.wrapping_sub(before) / 2), at)
            })
            .min_by_key(|sample| sample.0)
            .map_or_else(|| (host_tsc(), Instant::now()), |sample| (sample.1, sample.2))
    };
    let (tsc0, at0) = sample();
    std::thread::sleep(Duration::from_millis(20));
    let (tsc1, at1) = sample();
    let nanos = at1.duration_since(at0).as_nanos().max(1);
    (u128::from(tsc1.wrapping_sub(tsc0)) * 1_000_000 / nanos) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slowed_clock_sleeps_longer_and_ticks_less() {
        let (plain, slow) = (Clock::new(), Clock::slowed(8));
        assert_eq!(slow.khz(), plain.khz());
        assert_eq!(slow.duration(1 << 30), plain.duration(8 << 30));
        // What the plain clock measures encloses it: a test can be kept waiting between any two readings.
        let around = plain.now();
        let before = slow.now();
        while plain.now() < around + 1_000_000 {}
        let passed = slow.now() - before;
        let around = plain.now() - around;
        assert!(passed > 0 && passed <= around / 8 + 1, "{passed} of {around}");
    }

    #[test]
    fn the_scale_gives_nanoseconds() {
        for hz in [800_000_000u64, 1_000_000_000, 2_000_000_000, 2_900_000_001, 4_999_000_000] {
            let (mul, shift) = scale(hz);
            let ticks = hz;
            let moved = if shift < 0 { ticks >> -shift } else { ticks << shift };
            let nanos = (u128::from(moved) * u128::from(mul)) >> 32;
            assert!(nanos.abs_diff(1_000_000_000) < 10, "{hz}: {nanos}");
        }
    }
}
