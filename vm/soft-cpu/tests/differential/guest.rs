//! Runs one instruction through `step`, in a ring-3 guest whose pages lie at the linear addresses that the native run uses.

use guest_memory::{GuestRam, RangeSpec};
use hv::NoDevices;
use soft_cpu::cpu::{cr, sreg};
use soft_cpu::env::NoWatch;
use soft_cpu::platform::Platform;
use soft_cpu::{Cpu, Env, RamMap, Segment, Step, TlbEvent};
use vm_memory::{Bytes, GuestAddress};

use crate::{CODE, DATA, DATA_BYTES, FLAGS, Machine};

const CODE_GPA: u64 = 0x10_0000;
const DATA_GPA: u64 = 0x20_0000;
const TABLES: u64 = 0x1000;

pub(crate) struct Guest {
    ram: GuestRam,
    map: RamMap,
    cpu: Box<Cpu>,
    platform: Platform,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x40_0000, file: None }]).expect("RAM");
        let map = RamMap::new(&ram);
        map_pages(&ram, CODE & !0xfff, CODE_GPA, 1, 0);
        map_pages(&ram, DATA, DATA_GPA, DATA_BYTES as u64 / 0x1000, 1);
        let mut cpu = Cpu::new(0);
        let platform = Platform::new(vec![cpu.apic.port.clone()]);
        cpu.cr0 = cr::CR0_PE | cr::CR0_MP | cr::CR0_ET | cr::CR0_NE | cr::CR0_WP | cr::CR0_PG;
        cpu.cr3 = TABLES;
        cpu.cr4 = cr::CR4_PAE | cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE | cr::CR4_FSGSBASE;
        cpu.efer = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        cpu.xcr0 = 7;
        let segment =
            |attributes, selector| Segment { limit: u32::MAX, attributes, selector, ..Segment::default() };
        cpu.seg[sreg::CS] = segment(0xa0fb, 0x33);
        for index in [sreg::SS, sreg::DS, sreg::ES, sreg::FS, sreg::GS] {
            cpu.seg[index] = segment(0xc0f3, 0x2b);
        }
        cpu.cpl = 3;
        Self { ram, map, cpu, platform }
    }

    pub(crate) fn run(&mut self, bytes: &[u8], machine: &mut Machine) -> Result<(), String> {
        let memory = self.ram.memory();
        memory.write_slice(bytes, GuestAddress(CODE_GPA + (CODE & 0xfff))).expect("code page");
        memory.write_slice(&machine.data[..], GuestAddress(DATA_GPA)).expect("data pages");
        let cpu = &mut self.cpu;
        cpu.gpr = machine.gpr;
        cpu.rflags = machine.flags & FLAGS | 0x202;
        cpu.rip = CODE;
        cpu.xsave.0.copy_from_slice(&machine.xsave[..]);
        cpu.tlb_events.push(TlbEvent::All);
        let env = Env { ram: &self.map, io: &NoDevices, watch: &NoWatch, platform: &self.platform };
        let next = CODE + bytes.len() as u64;
        // A REP instruction may be done in pieces.
        for _ in 0..64 {
            let step = soft_cpu::exec::step(cpu, &env);
            if step != Step::Done || (cpu.rip != CODE && cpu.rip != next) {
                // There is no IDT: an exception ends in a shutdown.
                return Err(format!("{step:?} at rip {:#x}, cr2 {:#x}", cpu.rip, cpu.cr2));
            }
            if cpu.rip == next {
                break;
            }
        }
        machine.gpr = cpu.gpr;
        machine.flags = cpu.rflags & FLAGS;
        machine.xsave.copy_from_slice(&cpu.xsave.0[..]);
        memory.read_slice(&mut machine.data[..], GuestAddress(DATA_GPA)).expect("data pages");
        Ok(())
    }
}

/// Maps pages of one 2 MiB region with tables of its own; `slot` keeps the tables of two regions apart.
fn map_pages(ram: &GuestRam, linear: u64, gpa: u64, pages: u64, slot: u64) {
    let (pdpt, directory, table) = (TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000 + slot * 0x1000);
    let put = |at: u64, value: u64| ram.memory().write_obj(value, GuestAddress(at)).expect("tables");
    put(TABLES, pdpt | 7);
    put(pdpt, directory | 7);
    put(directory + (linear >> 21 & 511) * 8, table | 7);
    for page in 0..pages {
        put(table + ((linear >> 12 & 511) + page) * 8, (gpa + page * 0x1000) | 7);
    }
}
