//! A VM around one guest of the suite: its bus, its vCPUs, and the watchdog that ends a guest which hangs.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::{GuestRam, RangeSpec};
use hv::state::{Gpr, StateElement, StateId, System};
use hv::{ApStartup, CpuIo, Halt, Hypervisor, Limits, Msi, StopToken, Vcpu, VcpuBinder, Vm, VmShape};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::{self, APIC, DONE_PORT, FAIL_PORT, READ_ONLY, READ_ONLY_LEN, RECORD, SILENT, UNEXPECTED};
use crate::{Failure, LIMIT};

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Makes the failure of a case.
pub(crate) fn fail<T>(how: impl Into<String>) -> Outcome<T> {
    Err(Failure::Failed(how.into()))
}

/// Fails the case unless both are equal.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Outcome {
    if got == expected { Ok(()) } else { fail(format!("{what} is {got:#x?}, expected {expected:#x?}")) }
}

/// Fails the case unless the condition holds.
pub(crate) fn ensure(condition: bool, otherwise: &str) -> Outcome {
    if condition { Ok(()) } else { fail(otherwise) }
}

/// What left RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    MmioRead { at: u64, len: usize },
    MmioWrite { at: u64, data: Vec<u8> },
    PortRead { port: u16, len: usize },
    PortWrite { port: u16, data: Vec<u8> },
}

/// The byte that a read from the bus gives at this address.
pub(crate) fn pattern(at: u64) -> u8 {
    (at as u8).wrapping_mul(7) ^ 0xa5
}

/// The little-endian number that a read of `len` bytes gives.
pub(crate) fn pattern_value(at: u64, len: u64) -> u64 {
    (0..len).fold(0, |value, index| value | u64::from(pattern(at + index)) << (8 * index))
}

type Hook = Arc<dyn Fn(&Access) + Send + Sync>;

/// A VM with one guest.
pub(crate) struct Machine {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) ram: GuestRam,
    pub(crate) limits: Limits,
    binders: Mutex<Vec<Option<Box<dyn VcpuBinder>>>>,
    stops: Vec<StopToken>,
    exits: Mutex<Vec<Option<u8>>>,
    log: Mutex<Vec<Access>>,
    hook: Mutex<Option<Hook>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// A VM whose memory holds what the module [`guest`] describes.
    pub(crate) fn new(engine: &dyn Hypervisor, vcpus: u32) -> Outcome<Self> {
        let ram = GuestRam::new(vec![
            RangeSpec { gpa: 0, len: guest::RAM, file: None },
            RangeSpec { gpa: READ_ONLY, len: READ_ONLY_LEN, file: Some(read_only_file()?) },
        ])?;
        guest::install(&ram)?;
        Self::over(engine, vcpus, ram)
    }

    /// A VM over memory that is there already.
    pub(crate) fn over(engine: &dyn Hypervisor, vcpus: u32, ram: GuestRam) -> Outcome<Self> {
        let proposal = engine.propose(&VmShape { vcpus })?;
        let limits = proposal.limits().clone();
        let (vm, binders) = proposal.build(ram.clone())?;
        same("the number of vCPU binders", binders.len(), vcpus as usize)?;
        Ok(Self {
            vm,
            ram,
            limits,
            stops: binders.iter().map(|_| StopToken::new()).collect(),
            exits: Mutex::new(binders.iter().map(|_| None).collect()),
            binders: Mutex::new(binders.into_iter().map(Some).collect()),
            log: Mutex::default(),
            hook: Mutex::default(),
        })
    }

    /// Writes guest code to `at`.
    pub(crate) fn load(
        &self,
        at: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Outcome<()> {
        let bytes = guest::assemble(at, write)?;
        Ok(self.ram.memory().write_slice(&bytes, GuestAddress(at))?)
    }

    /// Binds vCPU `id` to this thread and sets it to start at `entry` in long mode.
    pub(crate) fn boot(&self, id: u32, entry: u64) -> Outcome<Cpu<'_>> {
        let mut cpu = self.bind(id)?;
        cpu.vcpu.set_state(&StateElement::System(guest::long_mode(id)))?;
        cpu.vcpu.set_state(&StateElement::Gpr(guest::registers(id, entry)))?;
        Ok(cpu)
    }

    /// Binds vCPU `id` to this thread as it is.
    pub(crate) fn bind(&self, id: u32) -> Outcome<Cpu<'_>> {
        let binder = lock(&self.binders).get_mut(id as usize).and_then(Option::take);
        let Some(binder) = binder else { return fail(format!("There is no vCPU {id} to bind")) };
        Ok(Cpu { vcpu: binder.bind()?, machine: self, id })
    }

    /// Loads code, runs it on vCPU 0 to its end, and gives the vCPU back for questions.
    pub(crate) fn execute(
        &self,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Outcome<Cpu<'_>> {
        self.load(guest::CODE, write)?;
        let mut cpu = self.boot(0, guest::CODE)?;
        cpu.finish()?;
        Ok(cpu)
    }

    /// Calls `hook` for each access, on the vCPU's thread.
    pub(crate) fn on_access(&self, hook: impl Fn(&Access) + Send + Sync + 'static) {
        *lock(&self.hook) = Some(Arc::new(hook));
    }

    /// Makes a write of `vector` to port 0x10 send this vCPU 0 an MSI.
    pub(crate) fn port_10_signals(&self) {
        let vm = self.vm.clone();
        self.on_access(move |access| {
            if let Access::PortWrite { port: 0x10, data } = access {
                let vector = data.first().copied().unwrap_or_default();
                // A lost interrupt fails the case by itself.
                let _ = vm.signal_msi(Msi { address: APIC, data: vector.into() });
            }
        });
    }

    /// What left RAM so far, apart from the ends of runs.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        lock(&self.log).clone()
    }

    /// Stops vCPU `id` from another thread.
    pub(crate) fn stop(&self, id: u32) {
        if let Some(stop) = self.stops.get(id as usize) {
            stop.request();
        }
        self.vm.kick(id);
    }

    /// The 64-bit value at `gpa`.
    pub(crate) fn read(&self, gpa: u64) -> Outcome<u64> {
        Ok(self.ram.memory().read_obj(GuestAddress(gpa))?)
    }

    /// Writes a 64-bit value to `gpa`.
    pub(crate) fn write(&self, gpa: u64, value: u64) -> Outcome {
        Ok(self.ram.memory().write_obj(value, GuestAddress(gpa))?)
    }

    /// How often the default handler saw this interrupt.
    pub(crate) fn interrupts(&self, vector: u64) -> Outcome<u64> {
        self.read(guest::IRQ_COUNTS + vector * 8)
    }

    /// Whether APs start by INIT and SIPI.
    pub(crate) fn has_sipi(&self) -> bool {
        self.limits.ap_startup == ApStartup::Architectural
    }

    fn note(&self, access: Access) {
        let hook = lock(&self.hook).clone();
        if let Some(hook) = hook {
            hook(&access);
        }
        lock(&self.log).push(access);
    }
}

/// The content of the read-only range: [`pattern`] from its first address.
fn read_only_file() -> Outcome<File> {
    let mut file = crate::sys::nameless_file()?;
    let bytes: Vec<u8> = (0..READ_ONLY_LEN).map(|offset| pattern(READ_ONLY + offset)).collect();
    file.write_all(&bytes)?;
    Ok(file)
}

/// The bus as one vCPU sees it.
struct Bus<'m> {
    machine: &'m Machine,
    id: u32,
}

impl CpuIo for Bus<'_> {
    fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        for (at, byte) in (gpa..).zip(data.iter_mut()) {
            *byte = pattern(at);
        }
        self.machine.note(Access::MmioRead { at: gpa, len: data.len() });
    }

    fn mmio_write(&self, gpa: u64, data: &[u8]) {
        self.machine.note(Access::MmioWrite { at: gpa, data: data.to_vec() });
    }

    fn pio_read(&self, port: u16, data: &mut [u8]) {
        for (at, byte) in (u64::from(port)..).zip(data.iter_mut()) {
            *byte = pattern(at);
        }
        self.machine.note(Access::PortRead { port, len: data.len() });
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        let code = match port {
            DONE_PORT => Some(0),
            FAIL_PORT => data.first().copied(),
            _ => return self.machine.note(Access::PortWrite { port, data: data.to_vec() }),
        };
        if let Some(exit) = lock(&self.machine.exits).get_mut(self.id as usize) {
            *exit = code;
        }
        self.machine.stop(self.id);
    }
}

/// A vCPU on this thread.
pub(crate) struct Cpu<'m> {
    pub(crate) vcpu: Box<dyn Vcpu>,
    machine: &'m Machine,
    id: u32,
}

impl Cpu<'_> {
    /// Runs until something ends the run; fails when nothing does within [`LIMIT`].
    pub(crate) fn run(&mut self) -> Outcome<Halt> {
        let machine = self.machine;
        let id = self.id;
        let Some(stop) = machine.stops.get(id as usize) else { return fail("no stop token") };
        let (finished, wait) = std::sync::mpsc::channel::<()>();
        let (halt, late) = std::thread::scope(|scope| {
            let watchdog = scope.spawn(move || {
                let late = wait.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
                if late {
                    machine.stop(id);
                }
                late
            });
            let halt = self.vcpu.run(&Bus { machine, id }, stop);
            drop(finished);
            (halt, watchdog.join().unwrap_or(true))
        });
        stop.reset();
        let halt = halt?;
        if late {
            return fail(format!("The guest ran for more than {LIMIT:?}; it is at {:#x}", self.gpr()?.rip));
        }
        Ok(halt)
    }

    /// Runs until the guest says that it is done; fails when it ends in another way.
    pub(crate) fn finish(&mut self) -> Outcome {
        let halt = self.run()?;
        let exit = lock(&self.machine.exits).get_mut(self.id as usize).and_then(Option::take);
        match (halt, exit) {
            (Halt::Stopped, Some(0)) => Ok(()),
            (Halt::Stopped, Some(UNEXPECTED)) => {
                let field = |index: u64| self.machine.read(RECORD + 8 * index);
                let (vector, error, rip, cr2) = (field(1)?, field(2)?, field(3)?, field(8)?);
                fail(format!("Unexpected exception {vector} (error {error:#x}) at {rip:#x}, CR2 {cr2:#x}"))
            }
            (Halt::Stopped, Some(SILENT)) => fail("The exception that should come did not"),
            (halt, exit) => fail(format!("The guest ended with {halt:?}, code {exit:x?}")),
        }
    }

    /// The general registers.
    pub(crate) fn gpr(&mut self) -> Outcome<Gpr> {
        match self.vcpu.get_state(StateId::Gpr)? {
            StateElement::Gpr(gpr) if gpr.regs.len() == 16 => Ok(gpr),
            other => fail(format!("The general registers are {other:?}")),
        }
    }

    /// One general register by its number in the encoding (0 = rax, 1 = rcx, 2 = rdx, 3 = rbx, 4 = rsp…).
    pub(crate) fn reg(&mut self, number: usize) -> Outcome<u64> {
        Ok(self.gpr()?.regs.get(number).copied().unwrap_or_default())
    }

    /// Segments, tables and control registers.
    pub(crate) fn system(&mut self) -> Outcome<System> {
        match self.vcpu.get_state(StateId::System)? {
            StateElement::System(system) => Ok(system),
            other => fail(format!("The system registers are {other:?}")),
        }
    }

    /// Changes the system registers.
    pub(crate) fn change_system(&mut self, change: impl FnOnce(&mut System)) -> Outcome {
        let mut system = self.system()?;
        change(&mut system);
        Ok(self.vcpu.set_state(&StateElement::System(system))?)
    }
}
