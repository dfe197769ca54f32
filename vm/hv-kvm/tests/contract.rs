//! The contract suite on this host's KVM. Two kinds of host are known not to be able to pass all of it: a KVM that
//! emulates ring-0 code, as some clouds have it, and a true KVM on a CPU that is itself emulated by QEMU. What they
//! lack is skipped by name and counted. On any other KVM nothing is skipped.

use std::sync::Arc;
use std::time::Duration;

/// What a KVM that emulates ring-0 code cannot do (measured on Linux 6.18 in a cloud VM without nested virtualization).
const EMULATION_LACKS: &[(&str, &str)] = &[
    ("io::mmio_from_ring_3", "INT n"),
    ("interrupts::nested_priorities", "priorities while a handler runs"),
    ("exceptions::breakpoint", "INT3"),
    ("exceptions::bad_memory_type", "checks of the PAT"),
    ("exceptions::device_not_available", "x87 instructions"),
    ("exceptions::page_fault_across_pages", "whole stores across pages"),
    ("exceptions::simd_exception", "LDMXCSR"),
    ("exceptions::privileged_in_ring_3", "the right exception for HLT in ring 3"),
    ("exceptions::software_interrupt_from_ring_3", "INT n"),
    ("registers::system_call_and_return", "SYSRET"),
    ("registers::extended_control_register", "XGETBV"),
    ("registers::x87_and_sse", "x87 instructions"),
    ("state::every_element_round_trips", "x87 instructions"),
    ("state::sse_registers_move", "LDMXCSR"),
    ("smp::compare_exchange", "CMPXCHG16B"),
    ("timers::tsc_can_be_set", "a time stamp counter of the guest's own"),
];

/// What the CPU that QEMU's TCG emulates does otherwise than a real one (QEMU 10).
const TCG_LACKS: &[(&str, &str)] = &[
    ("exceptions::stack_fault", "#SS for non-canonical addresses"),
    ("exceptions::page_fault_of_read_modify_write", "the write bit in the error code"),
    ("exceptions::simd_exception", "#XM"),
    ("exceptions::alignment_check", "#AC"),
    ("registers::non_canonical_msr", "the check of LSTAR"),
    // Under nested paging it keeps 4 KiB pieces of a large page, and INVLPG drops the one that it names.
    ("paging::code_of_a_remapped_large_page", "INVLPG of a whole large page"),
];

fn main() {
    let emulated = hv_kvm::measure_ring0(Duration::from_millis(250)).is_ok_and(|speed| speed.is_emulated());
    let tcg = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("QEMU TCG CPU"));
    hv_contract::main(Arc::new(hv_kvm::KvmEngine::new()), |case| {
        let find = |table: &'static [(&str, &str)]| {
            table.iter().find(|(name, _)| *name == case).map(|entry| entry.1)
        };
        let emulation = emulated.then(|| find(EMULATION_LACKS)).flatten();
        let by_tcg = tcg.then(|| find(TCG_LACKS)).flatten();
        match (emulation, by_tcg) {
            (Some(what), _) => Some(format!("this /dev/kvm emulates ring-0 code, without {what}")),
            (_, Some(what)) => Some(format!("this CPU is emulated by QEMU, without {what}")),
            _ => None,
        }
    })
}
