//! Small guests that do what a hostile program or kernel may do.

use std::sync::Arc;
use std::sync::atomic::Ordering;

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
        self.go_on()
    }

    fn go_on(&mut self) -> Exit {
        self.cpu.halted = 0;
        self.cpu.kick.store(0, Ordering::SeqCst);
        let env = Env { ram: &self.map, io: &NoIo, watch: &*self.jit, platform: &self.platform };
        self.executor.run(&mut self.cpu, &env)
    }

    /// Stores to pages with code that were reported.
    fn stores(&self) -> u64 {
        self.jit.lock().stats.stores
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

/// Page tables that map the first 2 MiB of linear addresses as 4 KiB pages and the GiB at 1 GiB as large pages, identically
/// except that every large page leads to the 2 MiB at 2 MiB.
fn tables(guest: &mut Guest, rights: u64) {
    let put = |at: u64, value: u64| guest.write(at, &value.to_le_bytes());
    put(TABLES, (TABLES + 0x1000) | 7);
    put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
    put(TABLES + 0x1008, (TABLES + 0x3000) | 7);
    put(TABLES + 0x2000, PT | 7);
    for index in 0..512 {
        put(PT + 8 * index, index << 12 | rights);
        put(TABLES + 0x3000 + 8 * index, 0x20_0080 | rights);
    }
    guest.cpu.cr0 = cr::CR0_PE | cr::CR0_WP | cr::CR0_PG;
    guest.cpu.cr4 |= cr::CR4_PAE | cr::CR4_PGE;
    guest.cpu.cr3 = TABLES;
}

const TABLES: u64 = 0x1_0000;
const PT: u64 = TABLES + 0x4000;
const LARGE: u64 = 0x4000_0000;

#[test]
fn code_in_a_page_table_is_run() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    // In the entry of a page that nobody uses: HLT.
    guest.write(PT + 0xf00, &[0xf4]);
    assert!(matches!(guest.run(PT + 0xf00), Exit::Halt));
    // The walk for this page's code marks its entry, which lies in a page with code, while the lock is held.
    guest.write(CODE, &[0xf4]);
    let before = guest.stores();
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert_eq!(guest.stores(), before + 1);
    // And so does the walk for data: mov rax, [0x9000]; hlt
    guest.write(CODE, &[0x48, 0x8b, 0x04, 0x25, 0, 0x90, 0, 0, 0xf4]);
    let before = guest.stores();
    let mut exit = guest.run(CODE);
    while matches!(exit, Exit::Kicked) {
        exit = guest.go_on();
    }
    assert!(matches!(exit, Exit::Halt));
    assert_eq!(guest.stores(), before + 1);
}

#[test]
fn invlpg_of_a_large_page_drops_its_code() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    guest.write(0x20_0000, &[0xf4]); // hlt
    guest.write(0x40_0000, &[0xff, 0xc0, 0xf4]); // inc eax; hlt
    assert!(matches!(guest.run(LARGE), Exit::Halt));
    guest.write(TABLES + 0x3000, &(0x40_0083u64).to_le_bytes());
    // invlpg [rbx]; hlt - at an address in the page that was not used
    guest.write(CODE, &[0x0f, 0x01, 0x3b, 0xf4]);
    guest.cpu.gpr[reg::RBX] = LARGE + 0x12_3456;
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert!(matches!(guest.run(LARGE), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 1);
}

#[test]
fn code_that_is_not_global_goes_with_cr3() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 0x103);
    let page = 0x9000u64;
    let entry = PT + 8 * (page >> 12);
    guest.write(entry, &(page | 3).to_le_bytes());
    guest.write(page, &[0xf4]);
    guest.write(0xa000, &[0xff, 0xc0, 0xf4]);
    assert!(matches!(guest.run(page), Exit::Halt));
    guest.write(entry, &(0xa003u64).to_le_bytes());
    // mov rbx, cr3; mov cr3, rbx; hlt
    guest.write(CODE, &[0x0f, 0x20, 0xdb, 0x0f, 0x22, 0xdb, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    assert!(matches!(guest.run(page), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 1);
}

#[test]
fn a_jump_is_not_linked_to_another_frame() {
    let mut guest = Guest::new(Tuning::default());
    tables(&mut guest, 3);
    let page = 0x9000u64;
    // mov [rbx], rcx; jmp +0; hlt: the store gives this page another frame, where INC stands behind the jump. Without a
    // flush the jump may lead to either, but the frame's own code must not change.
    guest.write(page, &[0x48, 0x89, 0x0b, 0xeb, 0x00, 0xf4]);
    guest.write(0xa000, &[0x48, 0x89, 0x0b, 0xeb, 0x00, 0xff, 0xc0, 0xf4]);
    guest.cpu.gpr[reg::RBX] = PT + 8 * (page >> 12);
    guest.cpu.gpr[reg::RCX] = 0xa003;
    assert!(matches!(guest.run(page), Exit::Halt));
    guest.cpu.gpr[reg::RAX] = 0;
    // The first frame by another address: it holds no INC.
    guest.write(PT + 8 * (page >> 12), &(page | 3).to_le_bytes());
    // mov rdx, cr3; mov cr3, rdx; hlt
    guest.write(CODE, &[0x0f, 0x20, 0xda, 0x0f, 0x22, 0xda, 0xf4]);
    assert!(matches!(guest.run(CODE), Exit::Halt));
    guest.cpu.gpr[reg::RCX] = page | 3;
    assert!(matches!(guest.run(page), Exit::Halt));
    assert_eq!(guest.cpu.gpr[reg::RAX], 0);
}

#[test]
fn blocks_of_a_unit_are_limited() {
    let mut guest = Guest::new(Tuning { cache_bytes: 0, ..Tuning::default() });
    guest.write(0x20_0000, &vec![0xf4; 0x8000]);
    let most = guest.jit.lock().cache.current_unit().1;
    for at in 0..=most as u64 {
        assert!(matches!(guest.run(0x20_0000 + at), Exit::Halt));
    }
    assert_eq!(guest.jit.lock().cache.current_unit().0, 1, "{most} blocks fill a unit");
}

#[test]
fn a_target_two_gib_behind_the_page() {
    let mut guest = Guest::new(Tuning::default());
    guest.cpu.cpl = 3;
    // lea rax, [rip + 0x7fffffff]; hlt (which is #GP)
    guest.write(CODE + 0x100, &[0x48, 0x8d, 0x05, 0xff, 0xff, 0xff, 0x7f, 0xf4]);
    assert!(matches!(guest.run(CODE + 0x100), Exit::Shutdown));
    assert_eq!(guest.cpu.gpr[reg::RAX], CODE + 0x107 + 0x7fff_ffff);
    assert!(guest.counter("entries into translated code") > 0);
}
