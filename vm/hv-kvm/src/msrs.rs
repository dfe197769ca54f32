//! Which MSRs make up a vCPU's saved state.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// IA32_TIME_STAMP_COUNTER: set before everything that is measured against it.
const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE: set last, when the APIC and the TSC are in place.
const TSC_DEADLINE: u32 = 0x6e0;

/// MSRs that are left out: kept in another state element, describing the host rather than the guest's choices, or
/// belonging to what the guest is not offered.
fn is_left_out(index: u32) -> bool {
    matches!(
        index,
        0x1b                          // IA32_APIC_BASE: in System
        | 0xc000_0080                 // IA32_EFER: in System
        | 0x3a                        // IA32_FEATURE_CONTROL: nested virtualization
        | 0x480..=0x493               // VMX capabilities
        | 0xc001_0114 | 0xc001_0117   // SVM
        | 0x8b                        // microcode revision
        | 0x10a                       // IA32_ARCH_CAPABILITIES
        | 0x345                       // IA32_PERF_CAPABILITIES, and the PMU below
        | 0xc1..=0xc8
        | 0x186..=0x18d
        | 0x309..=0x30c
        | 0x329
        | 0x38d..=0x390
        | 0x3f1 | 0x3f6 | 0x600
        | 0x4c1..=0x4c8
        | 0xc001_0000..=0xc001_0007
        | 0xc001_0200..=0xc001_020b
        | 0xc000_0300..=0xc000_0303
        | 0x4000_0000..=0x4000_01ff   // Hyper-V
        | 0x9e                        // SMBASE: no SMM
    )
}

/// The MSRs to save, in the order in which they must be set again: those that KVM lists and that this vCPU, whose CPUID
/// is set, can read.
pub(crate) fn saved(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<u32>, kvm_ioctls::Error> {
    let list = kvm.get_msr_index_list()?;
    let mut indices: Vec<u32> =
        list.as_slice().iter().copied().filter(|index| !is_left_out(*index)).collect();
    indices.retain(|index| read(vcpu, &[*index]).is_ok_and(|values| values.len() == 1));
    indices.sort_by_key(|index| match *index {
        TSC => 0,
        TSC_DEADLINE => 2,
        _ => 1,
    });
    Ok(indices)
}

/// Reads MSRs; the answer is shorter than the question where KVM stopped at one that it does not know.
pub(crate) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, kvm_ioctls::Error> {
    let entries: Vec<_> =
        indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    let count = vcpu.get_msrs(&mut msrs)?;
    Ok(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)).collect())
}

/// Writes MSRs in the order given; the answer is how many were accepted.
pub(crate) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<usize, kvm_ioctls::Error> {
    let entries: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
    vcpu.set_msrs(&msrs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_element_holds_is_left_out() {
        assert!(is_left_out(0x1b) && is_left_out(0xc000_0080));
        assert!(!is_left_out(TSC) && !is_left_out(TSC_DEADLINE) && !is_left_out(0xc000_0082));
    }
}
