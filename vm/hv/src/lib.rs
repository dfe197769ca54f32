//! The engine contract: what a hypervisor, hardware or software, gives the machine above it.
//!
//! Shaped after what four engines can all honour (DESIGN §2):
//!
//! | | KVM | soft | Hypervisor.framework | WHP |
//! |---|---|---|---|---|
//! | two-phase build | `KVM_CREATE_VM` in `build` | trivial | `hv_vm_create` in `build` | properties are set in `build`, before `WHvSetupPartition` freezes them |
//! | vCPU bound to a thread | not needed | `gs` base is the thread's | `hv_vcpu_create` in `bind` | not needed |
//! | MMIO/PIO | exit, then [`CpuIo`] | call from translated code | ESR decoded in the back end | `WHvEmulatorTryMmioEmulation` in the back end |
//! | doorbells | ioeventfd | none: the write reaches [`CpuIo`] | none: the write reaches [`CpuIo`] | `WHvRegisterPartitionDoorbellEvent` |
//! | MSIs | `KVM_SIGNAL_MSI` | the APIC's own port | `hv_gic_send_msi` | `WHvRequestInterrupt` |
//! | kick | `immediate_exit` + signal | a byte in the vCPU state | `hv_vcpus_exit` | `WHvCancelRunVirtualProcessor` |
//! | APs start | INIT/SIPI in the kernel | ACPI mailbox, [`Vm::wake_ap`] | PSCI `CPU_ON` in the back end | INIT/SIPI in the hypervisor |
//! | power off, reset | ACPI ports, [`CpuIo`] | ACPI ports, [`CpuIo`] | PSCI `SYSTEM_OFF`, `SYSTEM_RESET`: [`Halt`] | ACPI ports, [`CpuIo`] |
//! | dirty log | `KVM_GET_DIRTY_LOG` | a byte a page | `hv_vm_protect`, and the faults in the back end | `WHvQueryGpaRangeDirtyBitmap` |
//!
//! Only *halts* come back from [`Vcpu::run`]: a back end completes MMIO and port I/O itself through [`CpuIo`], so no exit
//! type has to be the union of four hypervisors. State is a set of typed, versioned [`state::StateElement`]s; no raw
//! kernel struct ever leaves a back end.
//!
//! No type here belongs to one operating system: what a back end rings is a [`doorbell::Doorbell`], whose `sys` modules
//! know that it is an eventfd on Linux and will know that it is an event object on Windows.
//!
//! # An arm64 guest
//! Hypervisor.framework runs arm64 guests. Such a back end has no ports, so [`CpuIo`]'s port half is never called. PSCI
//! (Arm DEN 0022) is the engine's own: guests call it by HVC, which Hypervisor.framework hands to the back end. `CPU_ON` writes
//! entry and context id into the target, which waits in its [`Vcpu::run`], and lets it go; so its
//! [`Limits::ap_startup`] is [`ApStartup::Architectural`] and [`Vm::wake_ap`] is not used. `CPU_OFF` makes a vCPU wait
//! again; `SYSTEM_OFF` and `SYSTEM_RESET` end the run with [`Halt::PowerOff`] and [`Halt::Reset`]. MSIs go to the
//! framework's GICv3, whose message address the machine puts into the guest's tables as it does the APIC's. The state
//! elements are laid out in [`state`].

pub mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use doorbell::Doorbell;
use guest_memory::GuestRam;

use crate::state::{StateElement, StateError, StateId};

/// An engine on this host.
pub trait Hypervisor: Send + Sync {
    /// The engine's name as users type it after `--engine`.
    fn name(&self) -> &'static str;

    /// Whether the engine can be used here. Cheap; does not create a VM.
    fn probe(&self) -> Result<Availability, Unavailable>;

    /// First phase: asks for a VM of this shape; the answer states its limits and nothing is fixed yet.
    fn propose(&self, shape: &VmShape) -> Result<Box<dyn ProtoVm>, CreateVmError>;
}

/// A usable engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// What was found, in words for `viv diagnose`.
    pub details: String,
}

/// Why an engine cannot be used, and what would mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// One sentence that names the cause.
    pub reason: String,
    /// What the user can do about it.
    pub hint: String,
}

/// What is asked of [`Hypervisor::propose`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmShape {
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
}

/// How application processors are started on this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApStartup {
    /// The engine emulates the architecture's own way by itself: INIT and SIPI on x86-64, PSCI `CPU_ON` on arm64.
    Architectural,
    /// Through the ACPI multiprocessor wake-up mailbox (ACPI 6.4 §5.2.12.19): the machine offers the mailbox page as
    /// MMIO and calls [`Vm::wake_ap`].
    Mailbox,
}

/// What the machine layout must know before it is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bits of guest-physical address.
    pub gpa_bits: u8,
    /// Most vCPUs in one VM.
    pub max_vcpus: u32,
    /// How APs start.
    pub ap_startup: ApStartup,
    /// Words to add to the guest kernel's command line for this engine.
    pub kernel_args: &'static str,
}

/// A VM between its two phases.
pub trait ProtoVm: Send {
    /// What the engine can do.
    fn limits(&self) -> &Limits;

    /// Second phase: creates the VM over this memory. Binders come in vCPU order; vCPU `n` has APIC id `n`. vCPU 0 is
    /// runnable, the others wait to be started as [`Limits::ap_startup`] says.
    fn build(self: Box<Self>, memory: GuestRam) -> Result<Built, CreateVmError>;
}

/// What [`ProtoVm::build`] makes: the VM, and a binder for each vCPU.
pub type Built = (Arc<dyn Vm>, Vec<Box<dyn VcpuBinder>>);

/// A vCPU that has no thread yet.
pub trait VcpuBinder: Send {
    /// Binds the vCPU to the calling thread, which alone may use it from now on.
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, CreateVmError>;
}

/// A vCPU on its thread. Not `Send`.
pub trait Vcpu {
    /// Runs guest code until `stop` is requested or the guest ends. HLT is waited for inside. When it returns, the vCPU
    /// is at an instruction boundary and its whole state can be read. Resumes where it was when called again.
    fn run(&mut self, io: &dyn CpuIo, stop: &StopToken) -> Result<Halt, RunError>;

    /// Reads one element of the state.
    fn get_state(&mut self, id: StateId) -> Result<StateElement, StateError>;

    /// Writes one element of the state.
    fn set_state(&mut self, element: &StateElement) -> Result<(), StateError>;

    /// The elements this engine keeps, in the order in which they must be set again.
    fn state_ids(&self) -> &'static [StateId];
}

/// Accesses that leave RAM. Called on the vCPU's thread, from several threads at once; must answer any size (1, 2, 4, 8
/// bytes), offset and alignment, and must not panic.
pub trait CpuIo: Sync {
    /// Fills `data` with what the device at `gpa` gives.
    fn mmio_read(&self, gpa: u64, data: &mut [u8]);
    /// Gives `data` to the device at `gpa`.
    fn mmio_write(&self, gpa: u64, data: &[u8]);
    /// Fills `data` (1, 2 or 4 bytes) from an I/O port.
    fn pio_read(&self, port: u16, data: &mut [u8]);
    /// Writes `data` (1, 2 or 4 bytes) to an I/O port.
    fn pio_write(&self, port: u16, data: &[u8]);
}

/// A bus with nothing on it: what is read is all ones, as nobody drives the lines, and what is written is gone. For where no
/// device is to be touched, such as reading a vCPU's state, and for guests that have none.
#[derive(Clone, Copy, Debug)]
pub struct NoDevices;

impl CpuIo for NoDevices {
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}

    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn pio_write(&self, _port: u16, _data: &[u8]) {}
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    /// The stop token was requested.
    Stopped,
    /// The guest shut the CPU down (triple fault).
    TripleFault,
    /// The guest powered the machine off by a call to the engine (PSCI `SYSTEM_OFF`); a guest with ACPI registers does it
    /// through [`CpuIo`].
    PowerOff,
    /// The guest asked for a reset by a call to the engine (PSCI `SYSTEM_RESET`).
    Reset,
    /// The engine cannot go on with this guest; the sentence says why. Never a panic of the process.
    Crashed(String),
}

/// An MSI as the guest programmed it: the interrupt is delivered to the APIC(s) that `address` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Message address (0xfee…).
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// A running VM, shared by all threads.
pub trait Vm: Send + Sync {
    /// Makes a vCPU leave guest code soon and look at its stop token; harmless when it is not running.
    fn kick(&self, vcpu: u32);

    /// Delivers an MSI. Callable from any thread; never blocks on a vCPU.
    fn signal_msi(&self, msi: Msi) -> Result<(), RunError>;

    /// Starts AP `apic_id` at guest-linear = guest-physical address `entry` with interrupts off (only with
    /// [`ApStartup::Mailbox`]). The rest of its state is what it was given by [`Vcpu::set_state`]: the machine sets 64-bit
    /// mode with an identity map before it lets the guest run. Callable from within [`CpuIo`]; an AP that runs already is
    /// left alone.
    fn wake_ap(&self, apic_id: u32, entry: u64) -> Result<(), RunError>;

    /// The engine's doorbells, if it can ring a bell without leaving to [`CpuIo`].
    fn doorbells(&self) -> Option<&dyn Doorbells> {
        None
    }

    /// Starts or stops logging the pages that vCPUs and devices write; see [`Vm::take_dirty`].
    fn log_dirty(&self, on: bool) -> Result<(), RunError>;

    /// Takes and clears the dirty bitmap of the RAM range that starts at `gpa`, one bit per 4 KiB page, vCPU and device
    /// writes together. It may name pages that were only read; all zero while the log is off.
    fn take_dirty(&self, gpa: u64) -> Result<Vec<u64>, RunError>;

    /// What the engine counted (unknown instructions by name, exits, flushes…), for `viv diagnose`.
    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// Rings a bell when the guest writes an address, without a vCPU exit to [`CpuIo`].
pub trait Doorbells {
    /// Has 1- to 8-byte writes at `gpa` ring `bell`; the value written is ignored.
    fn register(&self, gpa: u64, bell: &Doorbell) -> Result<(), RunError>;
    /// Undoes [`Doorbells::register`].
    fn unregister(&self, gpa: u64, bell: &Doorbell) -> Result<(), RunError>;
}

/// Asks vCPUs to leave guest code. Request it, then [`Vm::kick`] each vCPU.
#[derive(Debug, Default)]
pub struct StopToken(AtomicBool);

impl StopToken {
    /// A token that is not requested.
    pub fn new() -> Self {
        Self::default()
    }
    /// Requests the stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    /// Takes the request back, for the next run.
    pub fn reset(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
    /// Whether a stop is requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Why a VM or vCPU could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateVmError {
    /// The engine cannot do what was asked.
    #[error("The {engine} engine cannot {what}")]
    Unsupported {
        /// The engine's name.
        engine: &'static str,
        /// The wish, to follow "cannot".
        what: String,
    },
    /// The host refused.
    #[error("The host refused {what}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
}

/// Why an operation on a running VM failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host refused.
    #[error("The host refused {what}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
    /// The arguments name something that does not exist.
    #[error("{0}")]
    Invalid(String),
}
