//! Building a VM, its memory slots, interrupts, doorbells and dirty log.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use doorbell::Doorbell;
use guest_memory::{GuestRam, PAGE_SIZE, RangeKind};
use hv::{
    ApStartup, Built, CreateVmError, Doorbells, Limits, Msi, ProtoVm, RunError, Vcpu, VcpuBinder, Vm, VmShape,
};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY,
    kvm_enable_cap, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

use crate::kick::{ImmediateExit, KickSlot};
use crate::vcpu::KvmVcpu;
use crate::{NAME, cpuid, msrs};

/// Three pages below 4 GiB that Intel CPUs without unrestricted guests need for real mode, and one for its page table.
/// No RAM may lie there; the machine's layout has its firmware hole at this place.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Interrupt routes that KVM keeps free for an I/O APIC outside of it.
const IOAPIC_PINS: u64 = 24;

/// What the engine counts. Every field is a number of events since the VM was made.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) mmio: AtomicU64,
    pub(crate) pio: AtomicU64,
    pub(crate) kicks_seen: AtomicU64,
    pub(crate) read_only_writes: AtomicU64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the VM and its vCPUs share.
#[derive(Debug)]
pub(crate) struct Shared {
    fd: VmFd,
    pub(crate) ram: GuestRam,
    pub(crate) msrs: Vec<u32>,
    pub(crate) counters: Counters,
    kicks: Vec<KickSlot>,
    logging: AtomicBool,
}

impl Shared {
    pub(crate) fn kick_slot(&self, vcpu: u32) -> Option<&KickSlot> {
        self.kicks.get(vcpu as usize)
    }
}

/// A VM that was asked for and not made yet.
pub(crate) struct Proposal {
    kvm: Kvm,
    vcpus: u32,
    cpuid: CpuId,
    limits: Limits,
}

impl Proposal {
    pub(crate) fn new(kvm: Kvm, shape: &VmShape) -> Result<Self, CreateVmError> {
        let max_vcpus = kvm.get_max_vcpus() as u32;
        if shape.vcpus == 0 || shape.vcpus > max_vcpus.min(cpuid::MAX_VCPUS) {
            let what = format!("run {} vCPUs in one VM (1 to {max_vcpus})", shape.vcpus);
            return Err(CreateVmError::Unsupported { engine: NAME, what });
        }
        let host =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("the list of CPU features"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let cpuid =
            cpuid::for_guest(&host, shape.vcpus, deadline).map_err(|what| CreateVmError::Unsupported {
                engine: NAME,
                what: format!("describe the CPU to the guest: {what}"),
            })?;
        let limits = Limits {
            gpa_bits: cpuid::physical_address_bits(&cpuid),
            max_vcpus: max_vcpus.min(cpuid::MAX_VCPUS),
            ap_startup: ApStartup::Architectural,
            kernel_args: "",
        };
        Ok(Self { kvm, vcpus: shape.vcpus, cpuid, limits })
    }

    fn make_vm(&self) -> Result<VmFd, CreateVmError> {
        let vm = self.kvm.create_vm().map_err(refused("a VM"))?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(refused("the identity map"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(refused("the task state pages"))?;
        let cap =
            kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [IOAPIC_PINS, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).map_err(refused("local APICs in the kernel"))?;
        Ok(vm)
    }
}

impl ProtoVm for Proposal {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn build(self: Box<Self>, memory: GuestRam) -> Result<Built, CreateVmError> {
        let fd = self.make_vm()?;
        for slot in 0..memory.ranges().len() {
            set_slot(&fd, &memory, slot, false).map_err(refused("guest memory"))?;
        }
        let mut vcpus = Vec::new();
        for id in 0..self.vcpus {
            let vcpu = fd.create_vcpu(id.into()).map_err(refused("a vCPU"))?;
            // Before any MSR: since Linux 6.13 which MSRs exist depends on it.
            vcpu.set_cpuid2(&cpuid::for_vcpu(&self.cpuid, id)).map_err(refused("the CPU features"))?;
            vcpus.push(vcpu);
        }
        let msrs = vcpus
            .first()
            .map(|vcpu| msrs::saved(&self.kvm, vcpu))
            .transpose()
            .map_err(refused("the MSRs"))?;
        let shared = Arc::new(Shared {
            fd,
            ram: memory,
            msrs: msrs.unwrap_or_default(),
            counters: Counters::default(),
            kicks: (0..self.vcpus).map(|_| KickSlot::default()).collect(),
            logging: AtomicBool::new(false),
        });
        let binders = (0..)
            .zip(vcpus)
            .map(|(id, fd)| Box::new(Binder { id, fd, shared: shared.clone() }) as Box<dyn VcpuBinder>)
            .collect();
        Ok((Arc::new(KvmVm(shared)), binders))
    }
}

/// Makes a `map_err` closure for [`CreateVmError::Host`].
fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> CreateVmError {
    move |error| CreateVmError::Host { what, source: error.into() }
}

/// Makes a `map_err` closure for [`RunError::Host`].
fn run_refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> RunError {
    move |error| RunError::Host { what, source: error.into() }
}

/// Gives (or gives again, with other flags) range `index` of the memory to KVM as slot `index`.
fn set_slot(fd: &VmFd, ram: &GuestRam, index: usize, log: bool) -> Result<(), kvm_ioctls::Error> {
    let invalid = || kvm_ioctls::Error::new(libc::EINVAL);
    let &(gpa, len, kind) = ram.ranges().get(index).ok_or_else(invalid)?;
    let host = ram.memory().get_host_address(GuestAddress(gpa)).map_err(|_| invalid())?;
    let region = kvm_userspace_memory_region {
        slot: index as u32,
        flags: match (kind, log) {
            (RangeKind::ReadOnly, _) => KVM_MEM_READONLY,
            (RangeKind::Ram, true) => KVM_MEM_LOG_DIRTY_PAGES,
            (RangeKind::Ram, false) => 0,
        },
        guest_phys_addr: gpa,
        memory_size: len,
        userspace_addr: host as u64,
    };
    // SAFETY: the range is mapped for `len` bytes from `host` and stays so while `Shared`, which holds a clone of the
    // memory, lives; the VM descriptor lives no longer than that.
    unsafe { fd.set_user_memory_region(region) }
}

struct Binder {
    id: u32,
    fd: VcpuFd,
    shared: Arc<Shared>,
}

impl VcpuBinder for Binder {
    fn bind(mut self: Box<Self>) -> Result<Box<dyn Vcpu>, CreateVmError> {
        let immediate_exit = ImmediateExit::of(self.fd.get_kvm_run());
        if let Some(slot) = self.shared.kick_slot(self.id) {
            slot.bind(immediate_exit);
        }
        Ok(Box::new(KvmVcpu::new(self.id, self.fd, immediate_exit, self.shared)))
    }
}

/// A running VM.
struct KvmVm(Arc<Shared>);

impl KvmVm {
    fn slot_of(&self, gpa: u64) -> Result<(usize, u64, RangeKind), RunError> {
        let mut ranges = self.0.ram.ranges().iter().enumerate();
        let found = ranges.find(|(_, range)| range.0 == gpa);
        found
            .map(|(slot, range)| (slot, range.1, range.2))
            .ok_or_else(|| RunError::Invalid(format!("No memory range starts at {gpa:#x}")))
    }
}

impl Vm for KvmVm {
    fn kick(&self, vcpu: u32) {
        if let Some(slot) = self.0.kick_slot(vcpu) {
            slot.kick();
        }
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), RunError> {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        // A message that no APIC accepts is dropped, as on a real bus.
        self.0.fd.signal_msi(message).map(|_| ()).map_err(run_refused("a message-signalled interrupt"))
    }

    fn wake_ap(&self, _apic_id: u32, _entry: u64) -> Result<(), RunError> {
        Err(RunError::Invalid("KVM starts its processors by INIT and SIPI".into()))
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(self)
    }

    fn log_dirty(&self, on: bool) -> Result<(), RunError> {
        for (slot, &(gpa, _, kind)) in self.0.ram.ranges().iter().enumerate() {
            if kind == RangeKind::Ram {
                set_slot(&self.0.fd, &self.0.ram, slot, on).map_err(run_refused("the dirty log"))?;
                if let Some(log) = self.0.ram.dirty_log(gpa) {
                    log.set_enabled(on);
                }
            }
        }
        self.0.logging.store(on, Ordering::SeqCst);
        Ok(())
    }

    fn take_dirty(&self, gpa: u64) -> Result<Vec<u64>, RunError> {
        let (slot, len, kind) = self.slot_of(gpa)?;
        let words = len.div_ceil(PAGE_SIZE * 64) as usize;
        let mut bits = self.0.ram.dirty_log(gpa).map(|log| log.take()).unwrap_or_else(|| vec![0; words]);
        if kind == RangeKind::Ram && self.0.logging.load(Ordering::SeqCst) {
            let written =
                self.0.fd.get_dirty_log(slot as u32, len as usize).map_err(run_refused("the dirty log"))?;
            for (word, more) in bits.iter_mut().zip(written) {
                *word |= more;
            }
        }
        Ok(bits)
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let counters = &self.0.counters;
        [
            ("MMIO exits", &counters.mmio),
            ("port exits", &counters.pio),
            ("kicks", &counters.kicks_seen),
            ("dropped writes to read-only memory", &counters.read_only_writes),
        ]
        .map(|(name, counter)| (name.to_owned(), counter.load(Ordering::Relaxed)))
        .into()
    }
}

/// Lends a bell's eventfd to a kvm-ioctls call without taking it over.
fn with_event<T>(bell: &Doorbell, call: impl FnOnce(&EventFd) -> T) -> T {
    // SAFETY: the descriptor is borrowed for the call and `ManuallyDrop` keeps it from being closed.
    let event = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(bell.as_fd().as_raw_fd()) });
    call(&event)
}

impl Doorbells for KvmVm {
    fn register(&self, gpa: u64, bell: &Doorbell) -> Result<(), RunError> {
        with_event(bell, |event| self.0.fd.register_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch))
            .map_err(run_refused("a doorbell"))
    }

    fn unregister(&self, gpa: u64, bell: &Doorbell) -> Result<(), RunError> {
        with_event(bell, |event| self.0.fd.unregister_ioevent(event, &IoEventAddress::Mmio(gpa), NoDatamatch))
            .map_err(run_refused("a doorbell"))
    }
}
