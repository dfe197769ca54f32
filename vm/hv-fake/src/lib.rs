//! An engine for tests: its vCPUs run a Rust closure instead of instructions, its VM records what it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use guest_memory::GuestRam;
use hv::state::{StateElement, StateError, StateId};
use hv::{
    ApStartup, Availability, CpuIo, CreateVmError, Halt, Hypervisor, Limits, Msi, ProtoVm, RunError,
    StopToken, Unavailable, Vcpu, VcpuBinder, Vm, VmShape,
};

/// What a fake processor does when it first runs; it then waits to be stopped, unless this says how it ends.
pub type Script = Box<dyn FnOnce(&dyn CpuIo) -> Option<Halt> + Send>;

/// The engine. Scripts are taken by vCPU number; a vCPU without one only waits.
pub struct FakeHypervisor {
    /// How application processors start.
    pub ap_startup: ApStartup,
    vm: Arc<FakeVm>,
    scripts: Mutex<BTreeMap<u32, Script>>,
}

impl FakeHypervisor {
    /// An engine whose vCPUs run these scripts.
    pub fn new(scripts: impl IntoIterator<Item = (u32, Script)>) -> Self {
        Self {
            ap_startup: ApStartup::Mailbox,
            vm: Arc::default(),
            scripts: Mutex::new(scripts.into_iter().collect()),
        }
    }

    /// The VM that [`ProtoVm::build`] gives.
    pub fn vm(&self) -> Arc<FakeVm> {
        self.vm.clone()
    }
}

impl Hypervisor for FakeHypervisor {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn probe(&self) -> Result<Availability, Unavailable> {
        Ok(Availability { details: "for tests".to_owned() })
    }
    fn propose(&self, shape: &VmShape) -> Result<Box<dyn ProtoVm>, CreateVmError> {
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(FakeProto {
            limits: Limits { gpa_bits: 46, max_vcpus: 8, ap_startup: self.ap_startup, kernel_args: "fake=1" },
            vm: self.vm.clone(),
            scripts: (0..shape.vcpus).map(|id| scripts.remove(&id)).collect(),
        }))
    }
}

struct FakeProto {
    limits: Limits,
    vm: Arc<FakeVm>,
    scripts: Vec<Option<Script>>,
}

impl ProtoVm for FakeProto {
    fn limits(&self) -> &Limits {
        &self.limits
    }
    fn build(self: Box<Self>, _: GuestRam) -> Result<(Arc<dyn Vm>, Vec<Box<dyn VcpuBinder>>), CreateVmError> {
        let vm = self.vm;
        let binder = |script| Box::new(FakeBinder { vm: vm.clone(), script }) as Box<dyn VcpuBinder>;
        let binders = self.scripts.into_iter().map(binder).collect();
        Ok((vm, binders))
    }
}

struct FakeBinder {
    vm: Arc<FakeVm>,
    script: Option<Script>,
}

impl VcpuBinder for FakeBinder {
    fn bind(self: Box<Self>) -> Result<Box<dyn Vcpu>, CreateVmError> {
        Ok(Box::new(FakeVcpu { vm: self.vm, script: self.script, state: BTreeMap::new() }))
    }
}

struct FakeVcpu {
    vm: Arc<FakeVm>,
    script: Option<Script>,
    state: BTreeMap<u16, StateElement>,
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, io: &dyn CpuIo, stop: &StopToken) -> Result<Halt, RunError> {
        if let Some(halt) = self.script.take().and_then(|script| script(io)) {
            return Ok(halt);
        }
        let mut recorded = self.vm.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        while !stop.is_requested() {
            recorded = self.vm.kicked.wait(recorded).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(Halt::Stopped)
    }
    fn get_state(&mut self, id: StateId) -> Result<StateElement, StateError> {
        self.state.get(&(id as u16)).cloned().ok_or(StateError::Unknown(id))
    }
    fn set_state(&mut self, element: &StateElement) -> Result<(), StateError> {
        self.state.insert(element.id() as u16, element.clone());
        Ok(())
    }
    fn state_ids(&self) -> &'static [StateId] {
        &[StateId::System, StateId::Gpr]
    }
}

#[derive(Default)]
struct Recorded {
    messages: Vec<Msi>,
    woken: Vec<(u32, u64)>,
}

/// A VM that records.
#[derive(Default)]
pub struct FakeVm {
    recorded: Mutex<Recorded>,
    kicked: Condvar,
    signalled: Condvar,
}

impl FakeVm {
    /// The messages delivered so far.
    pub fn messages(&self) -> Vec<Msi> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).messages.clone()
    }

    /// Waits until at least `count` messages were delivered.
    pub fn wait_for_messages(&self, count: usize) {
        let recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = self.signalled.wait_while(recorded, |recorded| recorded.messages.len() < count);
        drop(enough.unwrap_or_else(PoisonError::into_inner));
    }

    /// The processors woken so far: APIC id and entry.
    pub fn woken(&self) -> Vec<(u32, u64)> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).woken.clone()
    }
}

impl Vm for FakeVm {
    fn kick(&self, _: u32) {
        // Under the lock, so that a vCPU that has just looked at its token is already waiting.
        let _recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        self.kicked.notify_all();
    }
    fn signal_msi(&self, msi: Msi) -> Result<(), RunError> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).messages.push(msi);
        self.signalled.notify_all();
        Ok(())
    }
    fn wake_ap(&self, apic_id: u32, entry: u64) -> Result<(), RunError> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).woken.push((apic_id, entry));
        Ok(())
    }
    fn log_dirty(&self, _: bool) -> Result<(), RunError> {
        Ok(())
    }
    fn take_dirty(&self, gpa: u64) -> Result<Vec<u64>, RunError> {
        Err(RunError::Invalid(format!("No dirty log at {gpa:#x}")))
    }
}
