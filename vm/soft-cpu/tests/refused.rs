//! Instructions that the interpreter must refuse, and those it must ignore, whatever the processor beneath it can do.

use guest_memory::{GuestRam, RangeSpec};
use hv::NoDevices;
use soft_cpu::cpu::{cr, sreg};
use soft_cpu::env::NoWatch;
use soft_cpu::{Cpu, Env, Platform, RamMap, Step};
use vm_memory::{Bytes, GuestAddress};

const CODE: u64 = 0x1000;

/// Runs one instruction at CPL 3 without an IDT, where every exception is a shutdown, and returns the CPU after it.
fn run(bytes: &[u8]) -> (Step, Box<Cpu>) {
    let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x10_0000, file: None }]).expect("RAM");
    ram.memory().write_slice(bytes, GuestAddress(CODE)).expect("code");
    let map = RamMap::new(&ram);
    let mut cpu = Cpu::new(0);
    cpu.efer = cr::EFER_LMA | cr::EFER_LME;
    cpu.seg[sreg::CS].attributes = 1 << 13 | 0xfb;
    cpu.cr4 = cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
    cpu.xcr0 = 7;
    cpu.cpl = 3;
    cpu.rip = CODE;
    cpu.gpr.fill(0x8000);
    // Every element of every mask is selected, and every index is 0.
    cpu.xsave.0[160..416].fill(0x80);
    cpu.xsave.0[576..832].fill(0x80);
    let platform = Platform::new(vec![cpu.apic.port.clone()]);
    let env = Env { ram: &map, io: &NoDevices, watch: &NoWatch, platform: &platform };
    let step = soft_cpu::exec::step(&mut cpu, &env);
    (step, cpu)
}

#[test]
fn evex_gathers_are_undefined() {
    for bytes in [
        &[0x62, 0xf2, 0x7d, 0x49, 0x92, 0x0c, 0x90][..], // vgatherdps zmm1{k1}, [rax+zmm2*4]
        &[0x62, 0xf2, 0x7d, 0x29, 0x92, 0x0c, 0x90],     // vgatherdps ymm1{k1}, [rax+ymm2*4]
        &[0x62, 0xf2, 0x7d, 0x09, 0x90, 0x0c, 0x90],     // vpgatherdd xmm1{k1}, [rax+xmm2*4]
        &[0x62, 0xf2, 0xfd, 0x49, 0x93, 0x0c, 0xd0],     // vgatherqpd zmm1{k1}, [rax+zmm2*8]
    ] {
        assert_eq!(run(bytes).0, Step::Shutdown, "{bytes:02x?}");
    }
}

#[test]
fn reserved_nops_do_nothing() {
    for bytes in [
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8][..], // rdsspq rax
        &[0xf3, 0x0f, 0x1e, 0xc8],           // rdsspd eax
        &[0x0f, 0x18, 0x35, 0, 0, 0, 0],     // prefetchit1 [rip]
        &[0x0f, 0x18, 0x3d, 0, 0, 0, 0],     // prefetchit0 [rip]
        &[0xf3, 0x0f, 0x1e, 0xfa],           // endbr64
        &[0x66, 0x0f, 0x1f, 0x44, 0, 0],     // nop word [rax+rax]
    ] {
        let (step, cpu) = run(bytes);
        assert_eq!(step, Step::Done, "{bytes:02x?}");
        assert_eq!(cpu.rip, CODE + bytes.len() as u64, "{bytes:02x?}");
        assert!(cpu.gpr.iter().all(|value| *value == 0x8000), "{bytes:02x?}");
    }
}
