//! What CPUID answers (Intel SDM 2A, CPUID; `reference/softcpu.md` §2.12).
//!
//! The guest sees the host's vendor, family and model, because copied instructions behave like the host's, and those of
//! the host's features that this CPU can run: x86-64-v3 and the crypto and bit extensions coded with legacy or VEX
//! prefixes. Hidden: everything EVEX, AMX, TSX, CET, PKU, MPX, XSAVES, MONITOR, virtualization, performance counters,
//! machine checks. A KVM signature with kvmclock gives the TSC's frequency and makes Linux use the x2APIC.

use std::arch::x86_64::__cpuid_count;

/// Bits of guest-physical address that the guest is told of.
pub const PHYSICAL_BITS: u32 = crate::paging::GPA_BITS;
/// Bits of linear address.
const LINEAR_BITS: u32 = 48;

/// eax, ebx, ecx, edx.
pub type Leaf = [u32; 4];

/// What the answers depend on besides the leaf.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The vCPU's number = APIC id.
    pub index: u32,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// CR4.OSXSAVE is set.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
}

/// The host's answers, read once: CPUID traps where the host is itself a VM.
#[derive(Clone, Debug)]
pub struct Cpuid {
    basic: [Leaf; 0x0e],
    features: Leaf,
    caches: Vec<Leaf>,
    extended: [Leaf; 9],
    amd_caches: Vec<Leaf>,
}

const MAX_BASIC: u32 = 0x0d;
const MAX_EXTENDED: u32 = 0x8000_0008;
const MAX_KVM: u32 = 0x4000_0001;

/// Leaf 1 ecx: SSE3, PCLMULQDQ, SSSE3, FMA, CMPXCHG16B, PCID, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const ECX_1: u32 = 1 | 1 << 1 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 17 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23
    | 1 << 25 | 1 << 26 | 1 << 28 | 1 << 29 | 1 << 30;
/// Ours whatever the host has: x2APIC, TSC-deadline timer, hypervisor.
const ECX_1_OURS: u32 = 1 << 21 | 1 << 24 | 1 << 31;
const ECX_1_OSXSAVE: u32 = 1 << 27;
/// Leaf 1 edx: FPU, DE, PSE, TSC, MSR, PAE, CX8, APIC, SEP, MTRR, PGE, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2.
const EDX_1: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
    | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
const EDX_1_HTT: u32 = 1 << 28;
/// Leaf 7 ebx: FSGSBASE, BMI1, AVX2, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA.
const EBX_7: u32 = 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23
    | 1 << 24 | 1 << 29;
/// Done in software, so offered whatever the host has: FSGSBASE, SMEP, INVPCID, SMAP.
const EBX_7_OURS: u32 = 1 | 1 << 7 | 1 << 10 | 1 << 20;
/// Leaf 7 ecx: GFNI, VAES, VPCLMULQDQ.
const ECX_7: u32 = 1 << 8 | 1 << 9 | 1 << 10;
/// UMIP and RDPID, done in software.
const ECX_7_OURS: u32 = 1 << 2 | 1 << 22;
/// Leaf 7 edx: FSRM.
const EDX_7: u32 = 1 << 4;
/// Leaf 0x80000001 ecx: LAHF, LZCNT, PREFETCHW.
const ECX_EXT: u32 = 1 | 1 << 5 | 1 << 8;
/// Leaf 0x80000001 edx, ours: SYSCALL, NX, 1 GB pages, RDTSCP, long mode.
const EDX_EXT_OURS: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// The bits of 0x80000001 edx that repeat leaf 1 edx on AMD.
const EDX_EXT_AMD: u32 = 0x0183_f3ff & EDX_1;

const XCR0_KNOWN: u32 = 0b111;

impl Cpuid {
    /// Reads the host's answers.
    pub fn of_host() -> Self {
        let read = |leaf, sub| {
            let answer = __cpuid_count(leaf, sub);
            [answer.eax, answer.ebx, answer.ecx, answer.edx]
        };
        let max = read(0, 0)[0];
        let max_extended = read(0x8000_0000, 0)[0];
        let basic = std::array::from_fn(|leaf| if leaf as u32 <= max { read(leaf as u32, 0) } else { [0; 4] });
        let extended = std::array::from_fn(|index| {
            let leaf = 0x8000_0000 + index as u32;
            if leaf <= max_extended { read(leaf, 0) } else { [0; 4] }
        });
        let caches = |leaf, known: bool| {
            let some = |answer: &Leaf| answer[0] & 0x1f != 0;
            if known { (0..8).map(|sub| read(leaf, sub)).take_while(some).collect() } else { Vec::new() }
        };
        let features = if max >= 7 { read(7, 0) } else { [0; 4] };
        Self {
            basic,
            features,
            caches: caches(4, max >= 4 && is_intel(&basic[0])),
            extended,
            amd_caches: caches(0x8000_001d, max_extended >= 0x8000_001d && !is_intel(&basic[0])),
        }
    }

    /// What the guest gets.
    pub fn answer(&self, leaf: u32, sub: u32, asker: Asker) -> Leaf {
        match leaf {
            0..=MAX_BASIC => self.basic(leaf, sub, asker),
            0x4000_0000..=MAX_KVM => kvm(leaf),
            0x8000_0000..=MAX_EXTENDED => self.extended(leaf),
            0x8000_001d => cache(&self.amd_caches, sub, asker),
            // Above the largest basic leaf Intel answers with that leaf's data, AMD with zeros; zeros harm nobody.
            _ => [0; 4],
        }
    }

    fn basic(&self, leaf: u32, sub: u32, asker: Asker) -> Leaf {
        let host = self.basic.get(leaf as usize).copied().unwrap_or_default();
        match leaf {
            0 => [MAX_BASIC, host[1], host[2], host[3]],
            1 => {
                let threads = asker.vcpus.min(0xff);
                let ecx = host[2] & ECX_1 | ECX_1_OURS | if asker.osxsave { ECX_1_OSXSAVE } else { 0 };
                let edx = host[3] & EDX_1 | if threads > 1 { EDX_1_HTT } else { 0 };
                [host[0], asker.index << 24 | threads << 16 | host[1] & 0xff00, ecx, edx]
            }
            2 => host,
            4 => cache(&self.caches, sub, asker),
            6 => [1 << 2, 0, 0, 0], // ARAT
            7 if sub == 0 => {
                let [_, ebx, ecx, edx] = self.features;
                [0, ebx & EBX_7 | EBX_7_OURS, ecx & ECX_7 | ECX_7_OURS, edx & EDX_7]
            }
            0xb => topology(sub, asker),
            0xd => xsave(sub, asker, self.basic[1][2] & 1 << 28 != 0),
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32) -> Leaf {
        let host = self.extended.get((leaf & 0xff) as usize).copied().unwrap_or_default();
        match leaf {
            0x8000_0000 => [MAX_EXTENDED, host[1], host[2], host[3]],
            0x8000_0001 => {
                let repeated = if is_intel(&self.basic[0]) { 0 } else { host[3] & EDX_EXT_AMD };
                [host[0], 0, host[2] & ECX_EXT, EDX_EXT_OURS | repeated]
            }
            0x8000_0007 => [0, 0, 0, 1 << 8], // invariant TSC
            0x8000_0008 => [PHYSICAL_BITS | LINEAR_BITS << 8, 0, 0, 0],
            _ => host,
        }
    }
}

fn is_intel(leaf0: &Leaf) -> bool {
    leaf0[1] == u32::from_le_bytes(*b"Genu")
}

/// A deterministic-cache leaf with the guest's sharing: L1 and L2 belong to one vCPU, the rest to all.
fn cache(host: &[Leaf], sub: u32, asker: Asker) -> Leaf {
    let Some(mut answer) = host.get(sub as usize).copied() else { return [0; 4] };
    let sharing = if answer[0] >> 5 & 7 >= 3 { asker.vcpus.clamp(1, 0x1000) - 1 } else { 0 };
    let cores = asker.vcpus.clamp(1, 64) - 1;
    answer[0] = answer[0] & 0x3fff | sharing << 14 | cores << 26;
    answer
}

/// One thread in a core, all cores in one package.
fn topology(sub: u32, asker: Asker) -> Leaf {
    let bits = u32::BITS - asker.vcpus.max(1).saturating_sub(1).leading_zeros();
    match sub {
        0 => [0, 1, 1 << 8, asker.index],
        1 => [bits, asker.vcpus, 1 | 2 << 8, asker.index],
        _ => [0, 0, sub & 0xff, asker.index],
    }
}

fn xsave(sub: u32, asker: Asker, avx: bool) -> Leaf {
    let known = if avx { XCR0_KNOWN } else { XCR0_KNOWN & !4 };
    let bytes = |xcr0: u32| if xcr0 & 4 != 0 { crate::cpu::XSAVE_BYTES as u32 } else { 576 };
    match sub {
        0 => [known, bytes(asker.xcr0 as u32), bytes(known), 0],
        // XSAVEOPT, XSAVEC, XGETBV with ecx = 1.
        1 => [0b111, bytes(asker.xcr0 as u32), 0, 0],
        2 if avx => [256, 576, 0, 0],
        _ => [0; 4],
    }
}

/// Linux Documentation/virt/kvm/x86/cpuid.rst.
fn kvm(leaf: u32) -> Leaf {
    const CLOCK: u32 = 1;
    const NOP_IO_DELAY: u32 = 1 << 1;
    const CLOCK2: u32 = 1 << 3;
    const MSI_EXT_DEST_ID: u32 = 1 << 15;
    const CLOCK_STABLE: u32 = 1 << 24;
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    if leaf == 0x4000_0000 {
        return [MAX_KVM, word(b"KVMK"), word(b"VMKV"), word(b"M\0\0\0")];
    }
    [CLOCK | NOP_IO_DELAY | CLOCK2 | MSI_EXT_DEST_ID | CLOCK_STABLE, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: Asker = Asker { index: 2, vcpus: 3, osxsave: true, xcr0: 7 };

    #[test]
    fn no_leaf_offers_what_the_decoder_refuses() {
        let cpuid = Cpuid::of_host();
        let one = cpuid.answer(1, 0, ASKER);
        assert_eq!(one[2] & (1 << 3 | 1 << 5), 0, "MONITOR, VMX");
        let seven = cpuid.answer(7, 0, ASKER);
        let hidden = 1 << 4 | 1 << 11 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 21 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30 | 1 << 31;
        assert_eq!(seven[1] & hidden, 0, "HLE, RTM, MPX, AVX-512");
        assert_eq!(seven[2] & (1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16), 0, "PKU, WAITPKG, CET, LA57");
        assert_eq!(cpuid.answer(7, 1, ASKER), [0; 4]);
        assert_eq!(cpuid.answer(0xd, 1, ASKER)[0] & 1 << 3, 0, "XSAVES");
        assert_eq!(cpuid.answer(0x8000_0001, 0, ASKER)[2] & 1 << 2, 0, "SVM");
    }

    #[test]
    fn each_vcpu_finds_its_own_id() {
        let cpuid = Cpuid::of_host();
        assert_eq!(cpuid.answer(1, 0, ASKER)[1] >> 24, 2);
        assert_eq!(cpuid.answer(0xb, 0, ASKER), [0, 1, 0x100, 2]);
        assert_eq!(cpuid.answer(0xb, 1, ASKER), [2, 3, 0x201, 2]);
        assert_eq!(cpuid.answer(0xb, 1, Asker { vcpus: 1, ..ASKER })[0], 0);
    }

    #[test]
    fn the_xsave_sizes_follow_xcr0() {
        let cpuid = Cpuid::of_host();
        let small = cpuid.answer(0xd, 0, Asker { xcr0: 3, ..ASKER });
        assert_eq!(small[1], 576);
        assert_eq!(cpuid.answer(0xd, 0, ASKER)[2], if small[0] & 4 != 0 { 832 } else { 576 });
    }

    #[test]
    fn osxsave_mirrors_cr4() {
        let cpuid = Cpuid::of_host();
        assert_ne!(cpuid.answer(1, 0, ASKER)[2] & ECX_1_OSXSAVE, 0);
        assert_eq!(cpuid.answer(1, 0, Asker { osxsave: false, ..ASKER })[2] & ECX_1_OSXSAVE, 0);
    }

    #[test]
    fn any_leaf_has_an_answer() {
        let cpuid = Cpuid::of_host();
        for base in [0, 0x4000_0000, 0x8000_0000_u32, 0xffff_ff00] {
            for leaf in base..base.saturating_add(0x100) {
                for sub in [0, 1, 2, 3, 7, u32::MAX] {
                    cpuid.answer(leaf, sub, ASKER);
                }
            }
        }
    }
}
