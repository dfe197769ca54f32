//! The contract suite on this host's KVM. A KVM that emulates ring-0 code, as some clouds have it, cannot pass all of
//! it: what it is known to lack is skipped by name and counted. On a true KVM nothing is skipped.

use std::sync::Arc;
use std::time::Duration;

/// What a KVM that emulates ring-0 code (measured: Linux 6.18's software KVM of a cloud VM) cannot do, by case.
const EMULATION_LACKS: &[(&str, &str)] = &[];

fn main() {
    let emulated = hv_kvm::measure_ring0(Duration::from_millis(250)).is_ok_and(|speed| speed.is_emulated());
    hv_contract::main(Arc::new(hv_kvm::KvmEngine::new()), |case| {
        let gap = EMULATION_LACKS.iter().find(|(name, _)| emulated && *name == case)?;
        Some(format!("this /dev/kvm emulates ring-0 code: {}", gap.1))
    })
}
