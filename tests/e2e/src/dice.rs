//! Random numbers that can be had again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Random numbers (splitmix64) from a seed that is said, so that a run can be had again: `VIV_FAULTS_SEED`.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Begins with the seed that was asked for, or one of the time, and says it.
    pub fn new() -> Self {
        let asked = std::env::var("VIV_FAULTS_SEED").ok().and_then(|text| text.parse().ok());
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
        let seed = asked.unwrap_or_else(now);
        eprintln!("VIV_FAULTS_SEED={seed}");
        Self::of(seed)
    }

    /// Begins with this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % limit.max(1)
    }

    /// Waits for a random time up to `most`, and says how long.
    pub fn wait(&mut self, most: Duration) -> Duration {
        let time = Duration::from_micros(self.below(most.as_micros() as u64));
        std::thread::sleep(time);
        time
    }
}

impl Default for Dice {
    fn default() -> Self {
        Self::new()
    }
}
