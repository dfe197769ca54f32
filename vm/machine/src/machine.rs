//! A machine: built from its parts, run with one thread a vCPU, paused and stopped from outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backends::ConsoleBackend;
use guest_memory::{GuestRam, MapError, RangeSpec};
use hv::state::{StateElement, StateError};
use hv::{ApStartup, CreateVmError, Halt, Hypervisor, Vcpu, VcpuBinder, Vm, VmShape};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{self, BootError, Entry};
use crate::control::{Control, Exit};
use crate::mailbox::Mailbox;
use crate::pci::{PciBus, PciDevice, SlotError};
use crate::platform::{DevicesState, Platform};
use crate::serial::Serial;
use crate::{acpi, layout};

/// The machine's own words on the kernel command line: reset through the register that the FADT names. Without them
/// Linux tries the real-mode entry of a BIOS, which is not there, and hangs instead of resetting.
const OWN_WORDS: &str = "reboot=a";

/// What a machine is made of, besides its devices.
pub struct MachineConfig {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Guest RAM in MiB, at least 64.
    pub memory_mib: u64,
    /// The uncompressed kernel, an x86-64 ELF.
    pub kernel: File,
    /// The initial RAM file system.
    pub initramfs: Option<File>,
    /// The kernel's command line; the machine's own words come before it and the engine's behind it.
    pub cmdline: String,
    /// Takes what the guest writes to its serial port, a few bytes at a time on vCPU threads.
    pub serial: Arc<dyn ConsoleBackend>,
    /// The VM generation id.
    pub generation_id: [u8; 16],
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The shape is outside what the machine or engine can do.
    #[error("The machine cannot have {0}")]
    Shape(String),
    /// The engine refused.
    #[error("The VM could not be created")]
    Engine(#[from] CreateVmError),
    /// Guest memory could not be had.
    #[error("Guest memory could not be set up")]
    Memory(#[from] MapError),
    /// The guest could not be loaded.
    #[error("The guest could not be loaded")]
    Boot(#[from] BootError),
    /// A device cannot be plugged in.
    #[error("A device could not be plugged in")]
    Slot(#[from] SlotError),
    /// A persistent memory file cannot be used.
    #[error("The persistent memory file cannot be used")]
    Pmem(#[source] std::io::Error),
}

/// Where a persistent memory range lies in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Collects devices, then builds the machine.
pub struct MachineBuilder {
    config: MachineConfig,
    devices: BTreeMap<u8, Box<dyn PciDevice>>,
    pmem: Vec<RangeSpec>,
    pmem_end: u64,
}

impl MachineBuilder {
    /// A machine without devices.
    pub fn new(config: MachineConfig) -> Self {
        Self { config, devices: BTreeMap::new(), pmem: Vec::new(), pmem_end: layout::PMEM }
    }

    /// Maps a file read-only into the guest as persistent memory, for a virtio-pmem device. Its length must be a positive
    /// multiple of [`layout::PMEM_ALIGN`], and it must not shrink while the machine runs.
    pub fn pmem(&mut self, file: File) -> Result<PmemRange, BuildError> {
        let len = file.metadata().map_err(BuildError::Pmem)?.len();
        let gpa = self.pmem_end;
        let end = gpa.checked_add(len).filter(|end| *end <= layout::PMEM_END);
        match end {
            Some(end) if len > 0 && len.is_multiple_of(layout::PMEM_ALIGN) => self.pmem_end = end,
            _ => return Err(BuildError::Shape(format!("persistent memory of {len} bytes"))),
        }
        self.pmem.push(RangeSpec { gpa, len, file: Some(file) });
        Ok(PmemRange { gpa, len })
    }

    /// Plugs a device into a PCI slot from 1 to 31.
    pub fn device(&mut self, slot: u8, device: Box<dyn PciDevice>) -> Result<(), BuildError> {
        if slot == 0 || slot >= layout::PCI_SLOTS {
            return Err(SlotError::Missing(slot).into());
        }
        match self.devices.entry(slot) {
            std::collections::btree_map::Entry::Occupied(_) => Err(SlotError::Taken(slot).into()),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(device);
                Ok(())
            }
        }
    }

    /// Creates the VM, loads the guest and attaches the devices. Starts no thread of its own.
    pub fn build(self, engine: &dyn Hypervisor) -> Result<Machine, BuildError> {
        let Self { mut config, devices, pmem, .. } = self;
        let proto = engine.propose(&VmShape { vcpus: config.vcpus })?;
        let limits = proto.limits().clone();
        let bytes = config.memory_mib.saturating_mul(layout::MIB);
        if config.vcpus == 0 || config.vcpus > limits.max_vcpus {
            return Err(BuildError::Shape(format!(
                "{} vCPUs; the engine has up to {}",
                config.vcpus, limits.max_vcpus
            )));
        }
        if !(64 * layout::MIB..=layout::HIGH_RAM_END - layout::HIGH_RAM).contains(&bytes) {
            return Err(BuildError::Shape(format!("{} MiB of memory", config.memory_mib)));
        }
        if limits.gpa_bits < layout::GPA_BITS {
            return Err(BuildError::Shape(format!("only {} address bits", limits.gpa_bits)));
        }
        let ram = guest_ram(bytes, pmem)?;
        let (vm, binders) = proto.build(ram.clone())?;
        let cmdline = [OWN_WORDS, config.cmdline.trim(), limits.kernel_args].join(" ");
        let entry = boot::load(&ram, bytes, &mut config.kernel, config.initramfs.as_mut(), cmdline.trim())
            .map_err(BuildError::Boot)?;
        let write = |at: u64, data: &[u8]| {
            ram.memory()
                .write_slice(data, GuestAddress(at))
                .map_err(|error| BuildError::Boot(BootError::Memory(error)))
        };
        write(layout::ACPI_TABLES, &acpi::tables(config.vcpus, limits.ap_startup))?;
        write(layout::VM_GENERATION_ID, &config.generation_id)?;
        let control = Arc::new(Control::new(vm.clone(), config.vcpus));
        let mailbox = (limits.ap_startup == ApStartup::Mailbox).then(|| Mailbox::new(vm.clone()));
        let platform = Arc::new(Platform {
            pci: PciBus::new(devices, &ram, &vm)?,
            serial: Serial::new(config.serial),
            mailbox,
            control: control.clone(),
        });
        Ok(Machine { vm, ram, control, platform, binders, entry })
    }
}

fn guest_ram(bytes: u64, pmem: Vec<RangeSpec>) -> Result<GuestRam, MapError> {
    let (low, high) = layout::split_ram(bytes);
    let mut ranges = vec![RangeSpec { gpa: 0, len: low, file: None }];
    if high > 0 {
        ranges.push(RangeSpec { gpa: layout::HIGH_RAM, len: high, file: None });
    }
    ranges.extend(pmem);
    GuestRam::new(ranges)
}

/// A machine that is ready to run.
pub struct Machine {
    vm: Arc<dyn Vm>,
    ram: GuestRam,
    control: Arc<Control>,
    platform: Arc<Platform>,
    binders: Vec<Box<dyn VcpuBinder>>,
    entry: Entry,
}

/// Controls a machine from other threads. Clones are the same machine.
#[derive(Clone)]
pub struct MachineHandle {
    vm: Arc<dyn Vm>,
    ram: GuestRam,
    control: Arc<Control>,
    platform: Arc<Platform>,
    vcpus: u32,
}

impl Machine {
    /// A handle for other threads.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            vm: self.vm.clone(),
            ram: self.ram.clone(),
            control: self.control.clone(),
            platform: self.platform.clone(),
            vcpus: self.binders.len() as u32,
        }
    }

    /// Starts paused: no guest instruction runs before [`MachineHandle::resume`].
    pub fn start_paused(&self) {
        self.control.start_paused();
    }

    /// Runs the guest to its end: starts a thread for each vCPU, waits, ends the devices' threads. Blocks.
    pub fn run(self) -> Exit {
        let Self { control, platform, binders, entry, .. } = self;
        let alive = AtomicU32::new(binders.len() as u32);
        let exit = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (id, binder) in (0..).zip(binders) {
                let (control, platform, alive) = (&*control, &*platform, &alive);
                let body = move || {
                    let _gone = OnDrop(|| {
                        // A vCPU's thread that dies in any way, a panic too, ends the machine.
                        control.end(Exit::Crashed(format!("vCPU {id} ended")));
                        alive.fetch_sub(1, Ordering::SeqCst);
                    });
                    control.end(run_vcpu(id, binder, platform, control, entry));
                };
                match std::thread::Builder::new().name(format!("vcpu{id}")).spawn_scoped(scope, body) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => {
                        alive.fetch_sub(1, Ordering::SeqCst);
                        let what = format!("The thread of vCPU {id} could not be started: {error}");
                        control.end(Exit::Crashed(what));
                    }
                }
            }
            let exit = control.wait_for_end(|| alive.load(Ordering::SeqCst) == 0);
            // Joined one by one: the scope would pass a panic on, and the machine's end says it already.
            threads.into_iter().for_each(|thread| drop(thread.join()));
            exit
        });
        platform.pci.functions().for_each(|function| function.shut_down());
        exit
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// One vCPU's life; what it gives counts only if nothing ended the machine before.
fn run_vcpu(
    id: u32,
    binder: Box<dyn VcpuBinder>,
    platform: &Platform,
    control: &Control,
    entry: Entry,
) -> Exit {
    let crashed =
        |what: &str, error: &dyn std::error::Error| Exit::Crashed(format!("vCPU {id} {what}: {error}"));
    let mut vcpu = match binder.bind() {
        Ok(vcpu) => vcpu,
        Err(error) => return crashed("could not be bound", &error),
    };
    // A processor that waits for INIT and SIPI starts from its reset state.
    if id == 0 || platform.mailbox.is_some() {
        for element in boot::start_state(entry, id == 0) {
            if let Err(error) = vcpu.set_state(&element) {
                return crashed("could not be set up", &error);
            }
        }
    }
    while control.may_run(id, &mut *vcpu) {
        match vcpu.run(platform, &control.token) {
            Ok(Halt::Stopped) => {}
            Ok(Halt::TripleFault) => return Exit::TripleFault,
            Ok(Halt::PowerOff) => return Exit::PowerOff,
            Ok(Halt::Reset) => return Exit::Reset,
            Ok(Halt::Crashed(reason)) => return Exit::Crashed(reason),
            Err(error) => return crashed("failed", &error),
        }
    }
    Exit::Stopped
}

impl MachineHandle {
    /// Ends the machine without asking the guest. [`Machine::run`] then returns [`Exit::Stopped`].
    pub fn stop(&self) {
        self.control.end(Exit::Stopped);
    }

    /// Whether the machine has ended: whoever waits for something on behalf of the guest waits in vain.
    pub fn has_ended(&self) -> bool {
        self.control.has_ended()
    }

    /// Brings every vCPU to an instruction boundary, then every device to rest between two requests; `false` if the
    /// machine has ended.
    pub fn pause(&self) -> bool {
        let paused = self.control.pause();
        if paused {
            self.platform.pci.functions().for_each(|function| function.quiesce());
        }
        paused
    }

    /// Goes on after [`MachineHandle::pause`] or [`Machine::start_paused`].
    pub fn resume(&self) {
        self.platform.pci.functions().for_each(|function| function.resume());
        self.control.resume();
    }

    /// The state of a vCPU, in the order in which it must be set again; `None` unless paused.
    pub fn vcpu_state(&self, vcpu: u32) -> Option<Result<Vec<StateElement>, StateError>> {
        self.on_vcpu(vcpu, |vcpu| vcpu.state_ids().iter().map(|id| vcpu.get_state(*id)).collect())
    }

    /// Sets a vCPU's state; `None` unless paused.
    pub fn set_vcpu_state(&self, vcpu: u32, elements: Vec<StateElement>) -> Option<Result<(), StateError>> {
        self.on_vcpu(vcpu, move |vcpu| elements.iter().try_for_each(|element| vcpu.set_state(element)))
    }

    fn on_vcpu<T: Send + 'static>(
        &self,
        id: u32,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Option<T> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        let job = Box::new(move |vcpu: &mut dyn Vcpu| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(vcpu));
        });
        if !self.control.on_vcpu(id, job) {
            return None;
        }
        result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The state of every device; only while paused.
    pub fn save_devices(&self) -> Result<DevicesState, crate::pci::SaveError> {
        self.platform.save()
    }

    /// Sets the state of every device of a machine that was started paused; after an error it must not be run.
    pub fn restore_devices(&self, state: &DevicesState) -> Result<(), crate::pci::RestoreError> {
        self.platform.restore(state)
    }

    /// What the engine counted, for `viv diagnose`.
    pub fn counters(&self) -> Vec<(String, u64)> {
        self.vm.counters()
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Guest memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

#[cfg(test)]
mod tests;
