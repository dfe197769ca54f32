//! The engine and the two phases of building a VM.

use std::sync::Arc;

use guest_memory::GuestRam;
use hv::{
    ApStartup, Availability, CreateVmError, Hypervisor, Limits, ProtoVm, Unavailable, VcpuBinder, Vm, VmShape,
};
use soft_jit::Tuning;

use crate::vcpu::Binder;
use crate::vm::SoftVm;

/// What executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorKind {
    /// The binary translator.
    Translator(Tuning),
    /// The interpreter, for tests and for finding defects of the translator.
    Interpreter,
}

impl ExecutorKind {
    /// The translator, unless one looks for a defect: `VIV_SOFT_EXECUTOR=interp`, or a list of tuning words for the
    /// translator ([`Tuning::parse`]).
    fn from_environment() -> Self {
        match std::env::var("VIV_SOFT_EXECUTOR").as_deref() {
            Ok("interp") => Self::Interpreter,
            Ok(words) => Self::Translator(Tuning::parse(words).unwrap_or_default()),
            Err(_) => Self::Translator(Tuning::default()),
        }
    }
}

/// The software CPU.
#[derive(Clone, Debug)]
pub struct SoftEngine {
    executor: ExecutorKind,
}

impl Default for SoftEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl SoftEngine {
    /// The engine as the product uses it.
    pub fn new() -> Self {
        Self { executor: ExecutorKind::from_environment() }
    }

    /// The engine with a given executor.
    pub fn with_executor(executor: ExecutorKind) -> Self {
        Self { executor }
    }
}

const MAX_VCPUS: u32 = 64;

impl Hypervisor for SoftEngine {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn probe(&self) -> Result<Availability, Unavailable> {
        let missing: Vec<&str> = [
            ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("CMPXCHG16B", std::arch::is_x86_feature_detected!("cmpxchg16b")),
        ]
        .into_iter()
        .filter_map(|(name, present)| (!present).then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(Unavailable {
                reason: format!("The processor lacks {}", missing.join(", ")),
                hint: "Use a machine with a processor made after 2013".to_owned(),
            });
        }
        // Made and dropped: whether a host gives executable memory is not written down in any one place.
        soft_cpu::StubMemory::new().map_err(|error| Unavailable {
            reason: format!("The host gives no executable memory, which translated code needs ({error})"),
            hint: "Allow it for viv: sysctl vm.memfd_noexec below 2, SELinux's execmem, no filter of mmap"
                .to_owned(),
        })?;
        Ok(Availability { details: "Software x86-64 CPU by binary translation".to_owned() })
    }

    fn propose(&self, shape: &VmShape) -> Result<Box<dyn ProtoVm>, CreateVmError> {
        if shape.vcpus == 0 || shape.vcpus > MAX_VCPUS {
            return Err(CreateVmError::Unsupported {
                engine: "soft",
                what: format!("run {} vCPUs; it has 1 to {MAX_VCPUS}", shape.vcpus),
            });
        }
        Ok(Box::new(Proposal {
            vcpus: shape.vcpus,
            executor: self.executor,
            limits: Limits {
                gpa_bits: soft_cpu::paging::GPA_BITS as u8,
                max_vcpus: MAX_VCPUS,
                ap_startup: ApStartup::Mailbox,
                // Retpolines unbalance calls and returns, page-table isolation doubles CR3 loads, and there is no
                // 32-bit code here.
                kernel_args: "mitigations=off ia32_emulation=0",
            },
        }))
    }
}

struct Proposal {
    vcpus: u32,
    executor: ExecutorKind,
    limits: Limits,
}

impl ProtoVm for Proposal {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn build(
        self: Box<Self>,
        memory: GuestRam,
    ) -> Result<(Arc<dyn Vm>, Vec<Box<dyn VcpuBinder>>), CreateVmError> {
        let vm = Arc::new(SoftVm::new(&memory, self.vcpus, self.executor)?);
        let binders = (0..self.vcpus)
            .map(|index| Box::new(Binder::new(vm.clone(), index)) as Box<dyn VcpuBinder>)
            .collect();
        Ok((vm, binders))
    }
}
