//! What CPUID tells the guest: the host's answers, cut to what this CPU does (softcpu.md §2.12).

use std::arch::x86_64::{__cpuid_count, CpuidResult};
use std::sync::OnceLock;

use crate::cpu::{Cpu, XSAVE_BYTES, cr};

/// Whether the host is AMD (or Hygon): copied instructions behave like the host's, so the guest is told its vendor.
pub fn host_is_amd() -> bool {
    static AMD: OnceLock<bool> = OnceLock::new();
    *AMD.get_or_init(|| matches!(__cpuid_count(0, 0).ecx, 0x444d_4163 | 0x656e_6975))
}

/// The answers that do not depend on the vCPU, taken from the host once: CPUID traps when the host is a VM itself.
#[derive(Debug)]
pub struct CpuidTable {
    entries: Vec<(u32, u32, CpuidResult)>,
    vcpus: u32,
    max_basic: u32,
}

const LEAF1_ECX: u32 = 1 << 0
    | 1 << 1
    | 1 << 9
    | 1 << 12
    | 1 << 13
    | 1 << 19
    | 1 << 20
    | 1 << 22
    | 1 << 23
    | 1 << 25
    | 1 << 26
    | 1 << 28
    | 1 << 29
    | 1 << 30;
/// PCID, x2APIC, TSC deadline, hypervisor: ours whatever the host has.
const LEAF1_ECX_SET: u32 = 1 << 17 | 1 << 21 | 1 << 24 | 1 << 31;
/// FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2.
const LEAF1_EDX: u32 = 0x078b_fbfd;
const LEAF7_EBX: u32 = 1 << 3 | 1 << 5 | 1 << 8 | 1 << 18 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 29;
/// FSGSBASE, SMEP, ERMS, INVPCID, SMAP.
const LEAF7_EBX_SET: u32 = 1 << 0 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 20;
/// GFNI, VAES, VPCLMULQDQ.
const LEAF7_ECX: u32 = 1 << 8 | 1 << 9 | 1 << 10;
/// UMIP, RDPID.
const LEAF7_ECX_SET: u32 = 1 << 2 | 1 << 22;
/// FSRM.
const LEAF7_EDX_SET: u32 = 1 << 4;
/// LAHF, ABM, PREFETCHW.
const EXT1_ECX: u32 = 1 << 0 | 1 << 5 | 1 << 8;
/// SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXT1_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;

/// KVM paravirtualization: CLOCKSOURCE2, no I/O delay, stable clock.
const KVM_FEATURES: u32 = 1 << 1 | 1 << 3 | 1 << 24;

const ZERO: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

impl CpuidTable {
    /// The table for a VM of this many vCPUs and TSC frequency.
    pub fn new(vcpus: u32, tsc_khz: u64) -> Self {
        let host = __cpuid_count;
        let amd = host_is_amd();
        let max_basic = if amd { 0xd } else { 0x16 };
        let mut entries = Vec::new();
        let mut put = |leaf, sub, result| entries.push((leaf, sub, result));
        let zero = host(0, 0);
        put(0, 0, CpuidResult { eax: max_basic, ..zero });
        let one = host(1, 0);
        let smp = if vcpus > 1 { 1 << 28 } else { 0 };
        put(
            1,
            0,
            CpuidResult {
                eax: one.eax,
                ebx: 8 << 8 | vcpus.next_power_of_two().min(255) << 16,
                ecx: one.ecx & LEAF1_ECX | LEAF1_ECX_SET,
                edx: one.edx & LEAF1_EDX | smp,
            },
        );
        if !amd {
            put(2, 0, host(2, 0));
            for sub in 0..5 {
                let cache = host(4, sub);
                put(4, sub, CpuidResult { eax: cache.eax & 0x3fff, ..cache });
            }
            put(0x15, 0, crystal(tsc_khz));
            let mhz = (tsc_khz / 1000) as u32;
            put(0x16, 0, CpuidResult { eax: mhz, ebx: mhz, ecx: 100, edx: 0 });
        }
        put(6, 0, CpuidResult { eax: 4, ..ZERO });
        let seven = host(7, 0);
        put(
            7,
            0,
            CpuidResult {
                eax: 0,
                ebx: seven.ebx & LEAF7_EBX | LEAF7_EBX_SET,
                ecx: seven.ecx & LEAF7_ECX | LEAF7_ECX_SET,
                edx: LEAF7_EDX_SET,
            },
        );
        // XSAVEOPT and XGETBV(1); the compacted formats are hidden.
        put(0xd, 1, CpuidResult { eax: 0b101, ..ZERO });
        put(0xd, 2, CpuidResult { eax: 256, ebx: 576, ..ZERO });
        let signature =
            [u32::from_le_bytes(*b"KVMK"), u32::from_le_bytes(*b"VMKV"), u32::from_le_bytes(*b"M\0\0\0")];
        put(
            0x4000_0000,
            0,
            CpuidResult { eax: 0x4000_0001, ebx: signature[0], ecx: signature[1], edx: signature[2] },
        );
        put(0x4000_0001, 0, CpuidResult { eax: KVM_FEATURES, ..ZERO });
        extended(amd, one, vcpus, &mut put);
        Self { entries, vcpus, max_basic }
    }

    fn get(&self, leaf: u32, sub: u32) -> CpuidResult {
        self.entries.iter().find(|entry| entry.0 == leaf && entry.1 == sub).map_or(ZERO, |entry| entry.2)
    }
}

fn extended(amd: bool, one: CpuidResult, vcpus: u32, put: &mut impl FnMut(u32, u32, CpuidResult)) {
    let host = __cpuid_count;
    let base = host(0x8000_0000, 0);
    put(0x8000_0000, 0, CpuidResult { eax: 0x8000_0008, ..base });
    let first = host(0x8000_0001, 0);
    let legacy = if amd { one.edx & LEAF1_EDX & 0x0183_f3ff } else { 0 };
    put(
        0x8000_0001,
        0,
        CpuidResult { eax: first.eax, ebx: 0, ecx: first.ecx & EXT1_ECX, edx: EXT1_EDX | legacy },
    );
    for leaf in 0x8000_0002..=0x8000_0006 {
        put(leaf, 0, host(leaf, 0));
    }
    // Invariant TSC.
    put(0x8000_0007, 0, CpuidResult { edx: 1 << 8, ..ZERO });
    put(
        0x8000_0008,
        0,
        CpuidResult { eax: crate::paging::GPA_BITS | 48 << 8, ecx: if amd { vcpus - 1 } else { 0 }, ..ZERO },
    );
}

/// Leaf 0x15: the TSC's frequency as a "crystal" times a ratio, so that it fits 32 bits.
fn crystal(tsc_khz: u64) -> CpuidResult {
    let hz = tsc_khz * 1000;
    let ratio = hz.div_ceil(u64::from(u32::MAX)).max(1);
    CpuidResult { eax: 1, ebx: ratio as u32, ecx: (hz / ratio) as u32, edx: 0 }
}

/// CPUID as this vCPU sees it.
pub fn query(cpu: &Cpu, table: &CpuidTable, leaf: u32, sub: u32) -> CpuidResult {
    let leaf = match leaf {
        0x4000_0000..=0x4fff_ffff | 0x8000_0000..=0x8000_0008 => leaf,
        // Beyond the last leaf Intel repeats the last basic one; zeros are what AMD gives and harm nobody.
        _ if leaf > table.max_basic => return ZERO,
        _ => leaf,
    };
    let indexed = matches!(leaf, 4 | 7 | 0xb | 0xd);
    let mut result = table.get(leaf, if indexed { sub } else { 0 });
    match leaf {
        1 => {
            result.ebx |= cpu.index << 24;
            if cpu.cr4 & cr::CR4_OSXSAVE != 0 {
                result.ecx |= 1 << 27;
            }
        }
        0xb => {
            let bits = 32 - (table.vcpus - 1).leading_zeros();
            result = match sub {
                0 => CpuidResult { eax: 0, ebx: 1, ecx: 1 << 8, edx: 0 },
                1 => CpuidResult { eax: bits, ebx: table.vcpus, ecx: 2 << 8 | 1, edx: 0 },
                _ => CpuidResult { ecx: sub & 0xff, ..ZERO },
            };
            result.edx = cpu.index;
        }
        0xd if sub == 0 => {
            let enabled = if cpu.xcr0 & 4 != 0 { XSAVE_BYTES as u32 } else { 576 };
            result = CpuidResult { eax: 7, ebx: enabled, ecx: XSAVE_BYTES as u32, edx: 0 };
        }
        _ => {}
    }
    result
}
