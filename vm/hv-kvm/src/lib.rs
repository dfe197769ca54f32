//! The `kvm` engine: the contract of [`hv`] on Linux's KVM.
//!
//! The local APICs live in the kernel (`KVM_CAP_SPLIT_IRQCHIP`); there is no PIC, no PIT and no I/O APIC, so every
//! interrupt is a message (`KVM_SIGNAL_MSI`) or the APIC's own timer. HLT, INIT and SIPI are handled in the kernel.
//! The guest is hostile: whatever it makes KVM report ends in a [`hv::Halt`], never in a panic. KVM itself is trusted.
//!
//! The presence of `/dev/kvm` proves little: some clouds offer one that emulates ring-0 code one instruction at a time.
//! [`measure_ring0`] tells the two apart by speed.
#![expect(
    unsafe_code,
    reason = "maps guest memory into KVM, shares the kvm_run page and signals vCPU threads"
)]

mod cpuid;
mod kick;
mod msrs;
mod speed;
mod state;
mod vcpu;
mod vm;

use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use hv::{Availability, CreateVmError, Hypervisor, ProtoVm, Unavailable, VmShape};
use kvm_ioctls::{Cap, Kvm};

pub use speed::{EMULATED_NS, Speed, measure_ring0};

/// The name of the engine.
const NAME: &str = "kvm";

/// What the engine cannot do without, and what each is called in a message.
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::SplitIrqchip, "split interrupt controllers"),
    (Cap::SignalMsi, "message-signalled interrupts"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::ReadonlyMem, "read-only memory"),
    (Cap::UserMemory, "user memory"),
    (Cap::Xsave, "extended state"),
    (Cap::Xcrs, "extended control registers"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::MpState, "vCPU run states"),
];

/// KVM on this host.
#[derive(Debug, Default)]
pub struct KvmEngine {
    device: Option<OwnedFd>,
}

impl KvmEngine {
    /// The engine on `/dev/kvm`, which is opened by [`Hypervisor::probe`] and [`Hypervisor::propose`].
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine on a descriptor of `/dev/kvm` that somebody else opened, for a process that may not open it itself.
    pub fn with_device(device: OwnedFd) -> Self {
        Self { device: Some(device) }
    }

    fn open(&self) -> std::io::Result<Kvm> {
        use std::os::fd::FromRawFd;
        Ok(match &self.device {
            // SAFETY: the descriptor was just duplicated and is owned by nobody else.
            Some(device) => unsafe { Kvm::from_raw_fd(device.try_clone()?.into_raw_fd()) },
            None => Kvm::new()?,
        })
    }
}

impl Hypervisor for KvmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<Availability, Unavailable> {
        let kvm = self.open().map_err(|error| unavailable(&error))?;
        if kvm.get_api_version() != 12 {
            return Err(Unavailable {
                reason: format!("/dev/kvm speaks version {} of its interface, not 12", kvm.get_api_version()),
                hint: "Use a Linux kernel of 2.6.22 or later".into(),
            });
        }
        if let Some((_, what)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Unavailable {
                reason: format!("This kernel's KVM offers no {what}"),
                hint: "Use a Linux kernel of 4.14 or later".into(),
            });
        }
        Ok(Availability {
            details: format!(
                "/dev/kvm (descriptor {}), up to {} vCPUs",
                kvm.as_raw_fd(),
                kvm.get_max_vcpus()
            ),
        })
    }

    fn propose(&self, shape: &VmShape) -> Result<Box<dyn ProtoVm>, CreateVmError> {
        let kvm = self.open().map_err(|source| CreateVmError::Host { what: "/dev/kvm", source })?;
        Ok(Box::new(vm::Proposal::new(kvm, shape)?))
    }
}

fn unavailable(error: &std::io::Error) -> Unavailable {
    use std::os::unix::fs::MetadataExt;
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let owner = std::fs::metadata("/dev/kvm").ok().map(|device| device.gid());
    because(error, owner.and_then(|gid| group_of(&groups, gid)))
}

/// The name of a group that is not root's, in the words of `/etc/group`.
fn group_of(groups: &str, gid: u32) -> Option<&str> {
    let id = gid.to_string();
    let line = groups.lines().find(|line| line.split(':').nth(2) == Some(&id)).filter(|_| gid != 0)?;
    line.split(':').next()
}

/// `group` is whose members may open the device, if there is such a group.
fn because(error: &std::io::Error, group: Option<&str>) -> Unavailable {
    let rights = group.map_or_else(
        || "Ask for rights on it: sudo setfacl -m u:$USER:rw /dev/kvm".to_owned(),
        |group| format!("Add the user to its group: sudo usermod -aG {group} $USER, then log in again"),
    );
    let (reason, hint) = match error.kind() {
        std::io::ErrorKind::NotFound => (
            "There is no /dev/kvm".to_owned(),
            "Turn on hardware virtualization in the firmware, or on a cloud VM ask for nested virtualization",
        ),
        std::io::ErrorKind::PermissionDenied => {
            ("This user may not open /dev/kvm".to_owned(), rights.as_str())
        }
        _ => (format!("/dev/kvm cannot be opened: {error}"), "Load the module kvm_intel or kvm_amd"),
    };
    Unavailable { reason, hint: hint.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_own_hint() {
        let groups = "root:x:0:\nkvm:x:106:u\n";
        let hint = |kind: std::io::ErrorKind| because(&kind.into(), group_of(groups, 106)).hint;
        assert!(hint(std::io::ErrorKind::PermissionDenied).contains("usermod -aG kvm"));
        let of_root = because(&std::io::ErrorKind::PermissionDenied.into(), group_of(groups, 0));
        assert!(of_root.hint.contains("setfacl"), "{of_root:?}");
        assert!(hint(std::io::ErrorKind::NotFound).contains("firmware"));
    }
}
