//! Switches of the translator. Every optimisation can be turned off, so that a suite can run with all of them off, with
//! all on, and a defect can be pinned to one of them.

/// What the translator does beyond the plain scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Most guest instructions in a block, at least 1. 1 = one instruction per block (for bisection).
    pub block_limit: usize,
    /// Direct jumps inside a page are patched to lead to their target.
    pub chain: bool,
    /// Indirect and page-crossing jumps probe the jump cache in line.
    pub jump_cache: bool,
    /// Status flags are taken as dead at returns and indirect jumps. Off = live ("strict flags").
    pub flags_dead_at_return: bool,
    /// The same for CPL 3 code, where programs in assembly and some compilers do keep flags across a return (Go's duffzero;
    /// something in Node.js).
    pub flags_dead_at_user_return: bool,
    /// Flags that a look-ahead shows dead are not preserved. Off = every memory access preserves them.
    pub liveness: bool,
    /// Frequent system instructions are done in line rather than by the interpreter.
    pub inline_system: bool,
    /// Blocks go on past conditional branches that are not taken.
    pub extend: bool,
    /// Every emitted block is read again by the verifier; a block it refuses is a defect and stops the VM.
    pub verify: bool,
    /// Interpreted instructions are counted by name (slow).
    pub count: bool,
    /// Each block is also interpreted, and compared (very slow). Jumps are neither linked nor found in the jump cache.
    pub lockstep: bool,
    /// The guest's clock is slow ([`soft_cpu::clock::Clock::slowed`]), so that a guest that is compared does not spend its
    /// time on timer ticks. RDTSC is left to the interpreter.
    pub slow_clock: bool,
    /// Code cache size in bytes, rounded up to whole units.
    pub cache_bytes: usize,
    /// Translates the first as the second, which is wrong, for tests of what finds wrong translations.
    #[cfg(test)]
    pub(crate) defect: Option<(iced_x86::Code, iced_x86::Code)>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            block_limit: 32,
            chain: true,
            jump_cache: true,
            flags_dead_at_return: true,
            flags_dead_at_user_return: false,
            liveness: true,
            inline_system: true,
            extend: true,
            verify: cfg!(any(debug_assertions, test)),
            count: false,
            lockstep: false,
            slow_clock: false,
            cache_bytes: 256 << 20,
            #[cfg(test)]
            defect: None,
        }
    }
}

impl Tuning {
    /// Every optimisation off.
    pub fn plain() -> Self {
        Self {
            block_limit: 32,
            chain: false,
            jump_cache: false,
            flags_dead_at_return: false,
            flags_dead_at_user_return: false,
            liveness: false,
            inline_system: false,
            extend: false,
            verify: true,
            count: false,
            lockstep: false,
            slow_clock: false,
            cache_bytes: 256 << 20,
            #[cfg(test)]
            defect: None,
        }
    }

    /// The default, changed by a comma-separated list such as `no-chain,strict-flags,verify,block=1,cache=8M`; words it
    /// does not know are returned as the error.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut tuning = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "plain" => tuning = Self::plain(),
                "no-chain" => tuning.chain = false,
                "no-jump-cache" => tuning.jump_cache = false,
                "strict-flags" => tuning.flags_dead_at_return = false,
                "loose-user-flags" => tuning.flags_dead_at_user_return = true,
                "no-liveness" => tuning.liveness = false,
                "no-inline-system" => tuning.inline_system = false,
                "no-extend" => tuning.extend = false,
                "verify" => tuning.verify = true,
                "count" => tuning.count = true,
                // A routine may store the flags it was entered with, dead or not (`pushfq`): they must be kept.
                "lockstep" => (tuning.lockstep, tuning.flags_dead_at_return) = (true, false),
                "slow-clock" => tuning.slow_clock = true,
                "no-verify" => tuning.verify = false,
                _ => {
                    if let Some(count) = word.strip_prefix("block=").and_then(|n| n.parse().ok()) {
                        tuning.block_limit = std::cmp::max(count, 1);
                    } else if let Some(mib) = word
                        .strip_prefix("cache=")
                        .and_then(|n| n.strip_suffix('M'))
                        .and_then(|n| n.parse::<usize>().ok())
                    {
                        tuning.cache_bytes = mib.clamp(4, 1024) << 20;
                    } else {
                        return Err(word.to_owned());
                    }
                }
            }
        }
        Ok(tuning)
    }
}
