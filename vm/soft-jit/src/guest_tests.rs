//! Small guests that do what a hostile program or kernel may do.

use std::sync::Arc;

use guest_memory::{GuestRam, RangeSpec, WriteObserver};
use hv::CpuIo;
use iced_x86::CpuidFeature;
use soft_cpu::cpu::{cr, reg, sreg};
use soft_cpu::{ApicPort, Cpu, Env, Executor, Exit, Platform, RamMap};
use vm_memory::{Bytes, GuestAddress};

use crate::{Jit, JitVcpu, Tuning};

const CODE: u64 = 0x8000;

struct NoIo;
impl CpuIo for NoIo {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, _: u16, _: &[u8]) {}
}

/// One vCPU at CPL 0 in 64-bit mode, without an IDT: an exception is a shutdown. Paging is off until a test turns it on.
struct Guest {
    ram: GuestRam,
    map: Arc<RamMap>,
    jit: Arc<Jit>,
    executor: JitVcpu,
    platform: Platform,
    cpu: Box<Cpu>,
}

impl Guest {
    fn new(tuning: Tuning) -> Self {
        let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x80_0000, file: None }]).unwrap();
        let map = Arc::new(RamMap::new(&ram));
        let jit = Jit::new(map.clone(), tuning).unwrap();
        let executor = JitVcpu::new(&jit).unwrap();
        let platform = Platform::new(vec![Arc::new(ApicPort::new(0))]);
        let mut cpu = Cpu::new(0);
        cpu.efer = cr::EFER_LMA | cr::EFER_LME;
        cpu.seg[sreg::CS].attributes = 1 << 13 | 0x9b;
        cpu.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
        cpu.xcr0 = 7;
        Self { ram, map, jit, executor, platform, cpu }
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        self.ram.memory().write_slice(bytes, GuestAddress(gpa)).unwrap();
        self.jit.written(gpa, bytes.len() as u64);
    }

    fn run(&mut self, rip: u64) -> Exit {
        self.cpu.rip = rip;
        let env = Env { ram: &self.map, io: &NoIo, watch: &*self.jit, platform: &self.platform };
        self.executor.run(&mut self.cpu, &env)
    }

    fn counter(&self, name: &str) -> u64 {
        self.executor.counters().into_iter().find(|(known, _)| known == name).map_or(0, |(_, count)| count)
    }
}

#[test]
fn what_the_host_lacks_is_not_translated() {
    // adcx rax, rbx (66 48 0f 38 f6 c3); hlt
    let code = [0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc3, 0xf4];
    let mut steps = Vec::new();
    for host_has in [(|_| true) as fn(CpuidFeature) -> bool, |feature| feature != CpuidFeature::ADX] {
        let mut guest = Guest::new(Tuning::default());
        guest.jit.lock().translator.host_has = host_has;
        guest.write(CODE, &code);
        guest.cpu.gpr[reg::RAX] = 5;
        guest.cpu.gpr[reg::RBX] = 6;
        assert!(matches!(guest.run(CODE), Exit::Halt));
        assert_eq!(guest.cpu.gpr[reg::RAX], 11);
        steps.push(guest.counter("interpreted instructions"));
    }
    // HLT, and ADCX where the host has none.
    assert_eq!(steps, [1, 2]);
}

#[test]
fn an_undefined_opcode_in_the_cache_goes_to_the_interpreter() {
    let mut guest = Guest::new(Tuning::default());
    // inc eax; hlt
    guest.write(CODE, &[0xff, 0xc0, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    {
        let mut shared = guest.jit.lock();
        let mut blocks = (0..4).filter_map(|id| shared.block(id));
        let at = blocks.find(|block| block.key.gpa == CODE).unwrap().at;
        drop(blocks);
        shared.cache.write(at, &[0x0f, 0x0b]);
    }
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 2);
}
