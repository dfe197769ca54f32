//! What the guest is told about its CPU: what KVM supports, without nested virtualization and without a PMU, and with
//! the topology of this VM (one package, one thread per core).
//!
//! Leaves are named after the Intel SDM volume 2A, "CPUID", and AMD's APM volume 3, appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Most vCPUs that the topology leaves can tell (8-bit APIC ids, 255 is the broadcast id).
pub(crate) const MAX_VCPUS: u32 = 254;

const MONITOR: u32 = 1 << 3;
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;
const SVM: u32 = 1 << 2;
/// Asynchronous page faults (bits 4, 10 and 14 of the KVM feature leaf): they would leave requests in guest memory
/// that a saved state does not describe.
const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// The CPUID of vCPU 0 in a VM of `vcpus`; `deadline` says that the APIC timer has TSC-deadline mode, which KVM reports
/// elsewhere.
pub(crate) fn for_guest(host: &CpuId, vcpus: u32, deadline: bool) -> Result<CpuId, String> {
    let mut entries: Vec<kvm_cpuid_entry2> = host.as_slice().to_vec();
    // Rebuilt or withheld below: extended topology, PMU, SVM, architectural LBR, memory encryption, Hyper-V.
    entries.retain(|entry| {
        !matches!(
            entry.function,
            0xb | 0x1f | 0xa | 0x1c | 0x8000_000a | 0x8000_001f | 0x8000_0022 | 0x8000_0026
        )
    });
    for entry in &mut entries {
        adjust(entry, vcpus, deadline);
    }
    let shift = vcpus.next_power_of_two().trailing_zeros();
    let max_leaf = entries.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    if max_leaf >= 0xb {
        entries.push(topology(0, 0, 1, 1));
        entries.push(topology(1, shift, vcpus, 2));
        entries.push(topology(2, 0, 0, 0));
    }
    CpuId::from_entries(&entries).map_err(|error| format!("{error:?}"))
}

fn adjust(entry: &mut kvm_cpuid_entry2, vcpus: u32, deadline: bool) {
    let cores = vcpus.next_power_of_two() - 1;
    match entry.function {
        // Leaf 0x1f and beyond describe nothing that leaf 0xb does not.
        0 => entry.eax = entry.eax.min(0x1e),
        1 => {
            entry.ebx = entry.ebx & 0xffff | vcpus.next_power_of_two().min(255) << 16;
            entry.ecx &= !(VMX | MONITOR | TSC_DEADLINE);
            entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
            entry.edx = if vcpus > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Deterministic cache parameters: levels 1 and 2 belong to one core, the last level to all.
        4 if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cores } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14 | cores.min(63) << 26;
        }
        0x4000_0001 => entry.eax &= !ASYNC_PF,
        0x8000_0001 => entry.ecx &= !SVM,
        // Number of threads in the package, minus one, and the width of the core id.
        0x8000_0008 => {
            let bits = vcpus.next_power_of_two().trailing_zeros();
            entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (vcpus - 1) & 0xff;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cores } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | shared << 14;
        }
        _ => {}
    }
}

/// One level of the extended topology (leaf 0xb): 1 = threads of a core, 2 = cores of the package, 0 = the end.
fn topology(index: u32, shift: u32, count: u32, kind: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    }
}

/// The CPUID of one vCPU: the VM's with this APIC id.
pub(crate) fn for_vcpu(cpuid: &CpuId, apic_id: u32) -> CpuId {
    let mut cpuid = cpuid.clone();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ebx = entry.ebx & 0x00ff_ffff | apic_id << 24,
            0xb => entry.edx = apic_id,
            0x8000_001e => {
                entry.eax = apic_id;
                entry.ebx = apic_id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

/// Bits of a guest-physical address; 36 where the CPU does not say.
pub(crate) fn physical_address_bits(cpuid: &CpuId) -> u8 {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    entry.map_or(36, |entry| (entry.eax & 0xff) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let leaf = |function, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0x20, 0, 0, 0),
            leaf(1, 0, 0, VMX | MONITOR, 0),
            leaf(0x1f, 7, 7, 7, 7),
            leaf(0x8000_0001, 0, 0, SVM | 1, 0),
            leaf(0x8000_0008, 48, 0, 0, 0),
            leaf(0x8000_000a, 1, 1, 1, 1),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).copied()
    }

    #[test]
    fn nested_virtualization_is_withheld() {
        let cpuid = for_guest(&host(), 2, true).unwrap();
        let one = find(&cpuid, 1, 0).unwrap();
        assert_eq!(one.ecx & (VMX | MONITOR), 0);
        assert_eq!(one.ecx & (HYPERVISOR | TSC_DEADLINE), HYPERVISOR | TSC_DEADLINE);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).unwrap().ecx, 1);
        assert!(find(&cpuid, 0x8000_000a, 0).is_none() && find(&cpuid, 0x1f, 0).is_none());
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_everywhere() {
        let cpuid = for_vcpu(&for_guest(&host(), 3, false).unwrap(), 2);
        assert_eq!(find(&cpuid, 1, 0).unwrap().ebx >> 24, 2);
        assert_eq!(find(&cpuid, 0xb, 0).unwrap().edx, 2);
        let cores = find(&cpuid, 0xb, 1).unwrap();
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(physical_address_bits(&cpuid), 48);
    }
}
