//! A guest without devices, descriptor tables or firmware, for tests: some RAM and vCPUs in 64-bit mode.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_memory::{GuestRam, RangeSpec, WriteObserver};
use hv::NoDevices;
use soft_cpu::cpu::{cr, sreg};
use soft_cpu::{ApicPort, Cpu, Env, Executor, Exit, Platform, RamMap};
use vm_memory::{Bytes, GuestAddress};

use crate::{Jit, JitVcpu, Tuning};

/// What the vCPUs of a bare guest share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) ram: GuestRam,
    pub(crate) map: Arc<RamMap>,
    pub(crate) jit: Arc<Jit>,
    platform: Arc<Platform>,
}

impl Shared {
    /// A guest with `len` bytes of RAM at `base`.
    pub(crate) fn new(base: u64, len: u64, vcpus: u32, tuning: Tuning) -> Self {
        let ram = GuestRam::new(vec![RangeSpec { gpa: base, len, file: None }]).unwrap();
        let map = Arc::new(RamMap::new(&ram));
        let jit = Jit::new(map.clone(), tuning).unwrap();
        let ports = (0..vcpus).map(|index| Arc::new(ApicPort::new(index))).collect();
        Self { ram, map, jit, platform: Arc::new(Platform::new(ports)) }
    }

    /// Writes as a device does.
    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(gpa)).unwrap();
        self.jit.written(gpa, bytes.len() as u64);
    }

    pub(crate) fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    /// A vCPU of it for the calling thread, at CPL 0 without an IDT: an exception is a shutdown. Paging is off until a test
    /// turns it on.
    pub(crate) fn vcpu(&self, index: u32) -> Guest {
        let mut cpu = Cpu::new(index);
        cpu.efer = cr::EFER_LMA | cr::EFER_LME;
        cpu.seg[sreg::CS].attributes = 1 << 13 | 0x9b;
        cpu.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        cpu.xcr0 = 7;
        Guest { executor: JitVcpu::new(&self.jit).unwrap(), cpu, vm: self.clone() }
    }
}

/// One vCPU.
pub(crate) struct Guest {
    pub(crate) executor: JitVcpu,
    pub(crate) cpu: Box<Cpu>,
    pub(crate) vm: Shared,
}

impl Guest {
    /// The only vCPU of a guest with 8 MiB of RAM at 0.
    pub(crate) fn new(tuning: Tuning) -> Self {
        Shared::new(0, 0x80_0000, 1, tuning).vcpu(0)
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        self.vm.write(gpa, bytes);
    }

    pub(crate) fn run(&mut self, rip: u64) -> Exit {
        self.cpu.rip = rip;
        self.go_on()
    }

    pub(crate) fn go_on(&mut self) -> Exit {
        self.cpu.halted = 0;
        self.cpu.kick.store(0, Ordering::SeqCst);
        let vm = &self.vm;
        let env = Env { ram: &vm.map, io: &NoDevices, watch: &*vm.jit, platform: &vm.platform };
        self.executor.run(&mut self.cpu, &env)
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.executor.counters().into_iter().find(|(known, _)| known == name).map_or(0, |(_, count)| count)
    }
}
