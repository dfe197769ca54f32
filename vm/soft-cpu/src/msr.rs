//! Model-specific registers (Intel SDM 4). A register that is not here, a reserved bit or a non-canonical address is #GP,
//! which Linux's safe accessors expect.

use vm_memory::{Bytes, GuestAddress};

use crate::apic::Refused;
use crate::clock::host_tsc;
use crate::cpu::{Cpu, TlbEvent, cr, sreg};
use crate::env::Env;

/// MSR numbers.
pub mod index {
    /// Time-stamp counter.
    pub const TSC: u32 = 0x10;
    /// APIC base.
    pub const APIC_BASE: u32 = 0x1b;
    /// SYSENTER code segment.
    pub const SYSENTER_CS: u32 = 0x174;
    /// SYSENTER stack.
    pub const SYSENTER_ESP: u32 = 0x175;
    /// SYSENTER entry.
    pub const SYSENTER_EIP: u32 = 0x176;
    /// Miscellaneous enables.
    pub const MISC_ENABLE: u32 = 0x1a0;
    /// Page attribute table.
    pub const PAT: u32 = 0x277;
    /// Default memory type.
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    /// TSC deadline of the APIC timer.
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// Extended features.
    pub const EFER: u32 = 0xc000_0080;
    /// SYSCALL segments.
    pub const STAR: u32 = 0xc000_0081;
    /// SYSCALL entry.
    pub const LSTAR: u32 = 0xc000_0082;
    /// SYSCALL entry from compatibility mode.
    pub const CSTAR: u32 = 0xc000_0083;
    /// SYSCALL flag mask.
    pub const FMASK: u32 = 0xc000_0084;
    /// FS base.
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base.
    pub const GS_BASE: u32 = 0xc000_0101;
    /// The other GS base.
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// TSC_AUX.
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// KVM wall clock.
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    /// KVM system time.
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;

    pub(super) const MICROCODE_UPDATE: u32 = 0x79;
    pub(super) const MICROCODE_REVISION: u32 = 0x8b;
    pub(super) const PLATFORM_ID: u32 = 0x17;
    pub(super) const MTRR_CAP: u32 = 0xfe;
    pub(super) const DEBUG_CTL: u32 = 0x1d9;
    pub(super) const KVM_WALL_CLOCK_OLD: u32 = 0x11;
    pub(super) const KVM_SYSTEM_TIME_OLD: u32 = 0x12;
    pub(super) const X2APIC: std::ops::RangeInclusive<u32> = 0x800..=0x8ff;
    /// AMD: SYSCFG, HWCR, NB_CFG, PATCH_LEVEL is 0x8b, LS_CFG, DC_CFG, DE_CFG, BU_CFG2: read as zero, writes are dropped.
    pub(super) const AMD_QUIET: [u32; 7] =
        [0xc001_0010, 0xc001_0015, 0xc001_001f, 0xc001_1020, 0xc001_1022, 0xc001_1029, 0xc001_102a];
}

/// The MSRs that have no other home in [`Cpu`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MsrState {
    /// IA32_SYSENTER_CS, kept, without effect.
    pub sysenter_cs: u64,
    /// IA32_SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// IA32_SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// IA32_MISC_ENABLE.
    pub misc_enable: u64,
    /// IA32_MTRR_DEF_TYPE.
    pub mtrr_def_type: u64,
    /// IA32_DEBUGCTL, kept, without effect.
    pub debug_ctl: u64,
    /// KVM system time: guest-physical address and enable bit.
    pub kvm_system_time: u64,
    /// KVM wall clock: guest-physical address.
    pub kvm_wall_clock: u64,
}

impl Default for MsrState {
    fn default() -> Self {
        Self {
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            misc_enable: 1, // fast strings
            mtrr_def_type: 0x806, // on, write-back
            debug_ctl: 0,
            kvm_system_time: 0,
            kvm_wall_clock: 0,
        }
    }
}

/// The MSRs that a snapshot keeps, in the order in which they are set again. EFER and the bases in `System` come with it.
pub const SAVED: &[u32] = &[
    index::TSC,
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::MISC_ENABLE,
    index::PAT,
    index::MTRR_DEF_TYPE,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::FMASK,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
    index::TSC_DEADLINE,
    index::KVM_WALL_CLOCK,
    index::KVM_SYSTEM_TIME,
];

/// Whether bits 63-47 are alike.
fn canonical(value: u64) -> bool {
    (value as i64) << 16 >> 16 == value as i64
}

/// RDMSR.
pub fn read(cpu: &mut Cpu, msr: u32) -> Result<u64, Refused> {
    Ok(match msr {
        index::TSC => host_tsc().wrapping_add(cpu.tsc_offset),
        index::APIC_BASE => cpu.apic.base(),
        index::SYSENTER_CS => cpu.msr.sysenter_cs,
        index::SYSENTER_ESP => cpu.msr.sysenter_esp,
        index::SYSENTER_EIP => cpu.msr.sysenter_eip,
        index::MISC_ENABLE => cpu.msr.misc_enable,
        index::PAT => cpu.pat,
        index::MTRR_DEF_TYPE => cpu.msr.mtrr_def_type,
        index::DEBUG_CTL => cpu.msr.debug_ctl,
        index::MTRR_CAP | index::PLATFORM_ID => 0,
        index::MICROCODE_REVISION => 1 << 32,
        index::TSC_DEADLINE => cpu.apic.tsc_deadline(),
        index::EFER => cpu.efer,
        index::STAR => cpu.star,
        index::LSTAR => cpu.lstar,
        index::CSTAR => cpu.cstar,
        index::FMASK => cpu.fmask,
        index::FS_BASE => cpu.seg[sreg::FS].base,
        index::GS_BASE => cpu.seg[sreg::GS].base,
        index::KERNEL_GS_BASE => cpu.kernel_gs_base,
        index::TSC_AUX => cpu.tsc_aux,
        index::KVM_WALL_CLOCK | index::KVM_WALL_CLOCK_OLD => cpu.msr.kvm_wall_clock,
        index::KVM_SYSTEM_TIME | index::KVM_SYSTEM_TIME_OLD => cpu.msr.kvm_system_time,
        _ if index::X2APIC.contains(&msr) => {
            let now = cpu.clock.now(cpu.tsc_offset);
            cpu.apic.read_msr(msr, now)?
        }
        _ if index::AMD_QUIET.contains(&msr) => 0,
        _ => return Err(Refused),
    })
}

/// WRMSR. Changes of translations are recorded in [`Cpu::tlb_events`].
pub fn write(cpu: &mut Cpu, env: &Env<'_>, msr: u32, value: u64) -> Result<(), Refused> {
    match msr {
        index::EFER => return write_efer(cpu, value),
        index::APIC_BASE => return cpu.apic.set_base(value),
        index::TSC_DEADLINE => cpu.apic.set_tsc_deadline(value),
        index::KVM_WALL_CLOCK | index::KVM_WALL_CLOCK_OLD => write_wall_clock(cpu, env, value),
        index::KVM_SYSTEM_TIME | index::KVM_SYSTEM_TIME_OLD => write_system_time(cpu, env, value),
        _ if index::X2APIC.contains(&msr) => {
            let now = cpu.clock.now(cpu.tsc_offset);
            return cpu.apic.write_msr(msr, value, now);
        }
        index::MICROCODE_UPDATE | index::MICROCODE_REVISION => {}
        _ if index::AMD_QUIET.contains(&msr) => {}
        _ => *register(cpu, msr, value)? = stored(msr, value),
    }
    Ok(())
}

fn stored(msr: u32, value: u64) -> u64 {
    if msr == index::TSC { value.wrapping_sub(host_tsc()) } else { value }
}

/// The plain register behind an MSR, after its value was found legal.
fn register(cpu: &mut Cpu, msr: u32, value: u64) -> Result<&mut u64, Refused> {
    let (place, legal) = match msr {
        index::TSC => (&mut cpu.tsc_offset, true),
        index::SYSENTER_CS => (&mut cpu.msr.sysenter_cs, true),
        index::SYSENTER_ESP => (&mut cpu.msr.sysenter_esp, canonical(value)),
        index::SYSENTER_EIP => (&mut cpu.msr.sysenter_eip, canonical(value)),
        index::MISC_ENABLE => (&mut cpu.msr.misc_enable, true),
        index::PAT => (&mut cpu.pat, pat_is_legal(value)),
        index::MTRR_DEF_TYPE => (&mut cpu.msr.mtrr_def_type, value & !0xcff == 0 && memory_type(value as u8)),
        index::DEBUG_CTL => (&mut cpu.msr.debug_ctl, value & !0xffff == 0),
        index::STAR => (&mut cpu.star, true),
        index::LSTAR => (&mut cpu.lstar, canonical(value)),
        index::CSTAR => (&mut cpu.cstar, canonical(value)),
        index::FMASK => (&mut cpu.fmask, value >> 32 == 0),
        index::FS_BASE => (&mut cpu.seg[sreg::FS].base, canonical(value)),
        index::GS_BASE => (&mut cpu.seg[sreg::GS].base, canonical(value)),
        index::KERNEL_GS_BASE => (&mut cpu.kernel_gs_base, canonical(value)),
        index::TSC_AUX => (&mut cpu.tsc_aux, value >> 32 == 0),
        _ => return Err(Refused),
    };
    if legal { Ok(place) } else { Err(Refused) }
}

fn memory_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// SDM 3A §13.12.2: eight types, 7 (UC-) allowed besides those of the MTRRs.
fn pat_is_legal(value: u64) -> bool {
    value.to_le_bytes().iter().all(|entry| memory_type(*entry) || *entry == 7)
}

fn write_efer(cpu: &mut Cpu, value: u64) -> Result<(), Refused> {
    const WRITABLE: u64 = cr::EFER_SCE | cr::EFER_LME | cr::EFER_NXE;
    let reserved = value & !(WRITABLE | cr::EFER_LMA) != 0;
    let moves_lme = (value ^ cpu.efer) & cr::EFER_LME != 0 && cpu.cr0 & cr::CR0_PG != 0;
    if reserved || moves_lme {
        return Err(Refused);
    }
    if (value ^ cpu.efer) & cr::EFER_NXE != 0 {
        cpu.tlb_events.push(TlbEvent::All);
    }
    cpu.efer = value & WRITABLE | cpu.efer & cr::EFER_LMA;
    Ok(())
}

fn write_wall_clock(cpu: &mut Cpu, env: &Env<'_>, value: u64) {
    cpu.msr.kvm_wall_clock = value;
    put(env, value & !3, &cpu.clock.wall_info(2));
}

fn write_system_time(cpu: &mut Cpu, env: &Env<'_>, value: u64) {
    cpu.msr.kvm_system_time = value;
    if value & 1 != 0 {
        put(env, value & !3, &cpu.clock.time_info(cpu.tsc_offset, 2));
    }
}

/// A guest that names an address outside RAM gets nothing, as under KVM.
fn put(env: &Env<'_>, gpa: u64, bytes: &[u8]) {
    if env.ram.ram().is_writable(gpa, bytes.len() as u64) {
        let _ = env.ram.ram().memory().write_slice(bytes, GuestAddress(gpa));
    }
}
