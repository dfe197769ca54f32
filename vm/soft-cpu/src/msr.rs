//! Model-specific registers. What is unknown raises #GP, which Linux's accessors survive, and is counted.

use crate::apic;
use crate::cpu::{Cpu, TlbEvent, cr, sreg};
use crate::env::Env;
use crate::exception::Exception;
use crate::paging::is_canonical;

/// Architectural MSR numbers that others name.
pub mod number {
    /// IA32_TIME_STAMP_COUNTER
    pub const TSC: u32 = 0x10;
    /// IA32_APIC_BASE
    pub const APIC_BASE: u32 = 0x1b;
    /// IA32_PAT
    pub const PAT: u32 = 0x277;
    /// IA32_TSC_DEADLINE
    pub const TSC_DEADLINE: u32 = 0x6e0;
    /// EFER
    pub const EFER: u32 = 0xc000_0080;
    /// STAR
    pub const STAR: u32 = 0xc000_0081;
    /// LSTAR
    pub const LSTAR: u32 = 0xc000_0082;
    /// CSTAR
    pub const CSTAR: u32 = 0xc000_0083;
    /// SFMASK
    pub const FMASK: u32 = 0xc000_0084;
    /// FS base
    pub const FS_BASE: u32 = 0xc000_0100;
    /// GS base
    pub const GS_BASE: u32 = 0xc000_0101;
    /// Kernel GS base
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// TSC_AUX
    pub const TSC_AUX: u32 = 0xc000_0103;
    /// kvmclock wall clock
    pub const KVM_WALL_CLOCK: u32 = 0x4b56_4d00;
    /// kvmclock system time
    pub const KVM_SYSTEM_TIME: u32 = 0x4b56_4d01;
}

/// MSRs that are only kept.
#[derive(Debug, Default)]
pub struct StoredMsrs {
    sysenter: [u64; 3],
    mtrr: [u64; 16],
    mtrr_fixed: [u64; 11],
    mtrr_default: u64,
    misc_enable: u64,
    kvm_wall: u64,
    kvm_time: u64,
    mcg_status: u64,
}

const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// The MSRs of a snapshot, in the order in which they must be set.
pub const SAVED: &[u32] = &[
    number::EFER,
    number::STAR,
    number::LSTAR,
    number::CSTAR,
    number::FMASK,
    number::KERNEL_GS_BASE,
    number::TSC_AUX,
    number::PAT,
    number::TSC,
    0x174,
    0x175,
    0x176,
    0x1a0,
    0x2ff,
    number::KVM_WALL_CLOCK,
    number::KVM_SYSTEM_TIME,
    number::TSC_DEADLINE,
];

/// RDMSR.
pub fn read(cpu: &Cpu, env: &Env<'_>, msr: u32) -> Result<u64, Exception> {
    use number as n;
    Ok(match msr {
        n::TSC => env.platform.clock.now().wrapping_add(cpu.tsc_offset),
        n::APIC_BASE => cpu.apic.base,
        n::PAT => cpu.pat,
        n::TSC_DEADLINE => apic::tsc_deadline(cpu),
        n::EFER => cpu.efer,
        n::STAR => cpu.star,
        n::LSTAR => cpu.lstar,
        n::CSTAR => cpu.cstar,
        n::FMASK => cpu.fmask,
        n::FS_BASE => cpu.seg[sreg::FS].base,
        n::GS_BASE => cpu.seg[sreg::GS].base,
        n::KERNEL_GS_BASE => cpu.kernel_gs_base,
        n::TSC_AUX => cpu.tsc_aux,
        0x11 | n::KVM_WALL_CLOCK => cpu.msrs.kvm_wall,
        0x12 | n::KVM_SYSTEM_TIME => cpu.msrs.kvm_time,
        0x174..=0x176 => cpu.msrs.sysenter[(msr - 0x174) as usize],
        0x1a0 => cpu.msrs.misc_enable | 1,
        // MTRRcap: 8 variable ranges, fixed ranges, write-combining.
        0xfe => 0x508,
        0x2ff => cpu.msrs.mtrr_default,
        0x200..=0x20f => cpu.msrs.mtrr[(msr - 0x200) as usize],
        0x179 | 0x17b => 0,
        0x17a => cpu.msrs.mcg_status,
        // Microcode revision, platform id, energy unit and the like: Linux reads them without care.
        0x8b | 0x17 | 0xc001_0015 | 0xc001_0010 | 0xc001_1029 | 0xc001_0007 => 0,
        0x800..=0x8ff => return apic::read_msr(cpu, env, msr),
        _ => {
            if let Some(index) = MTRR_FIXED.iter().position(|fixed| *fixed == msr) {
                return Ok(cpu.msrs.mtrr_fixed[index]);
            }
            env.platform.count(&format!("rdmsr {msr:#x}"));
            return Err(Exception::gp(0));
        }
    })
}

fn canonical(value: u64) -> Result<u64, Exception> {
    if is_canonical(value) { Ok(value) } else { Err(Exception::gp(0)) }
}

/// WRMSR.
pub fn write(cpu: &mut Cpu, env: &Env<'_>, msr: u32, value: u64) -> Result<(), Exception> {
    use number as n;
    match msr {
        n::TSC => {
            cpu.tsc_offset = value.wrapping_sub(env.platform.clock.now());
            apic::tsc_changed(cpu, env);
        }
        n::APIC_BASE => apic::set_base(cpu, value)?,
        n::PAT => {
            let valid = value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7));
            if !valid {
                return Err(Exception::gp(0));
            }
            cpu.pat = value;
        }
        n::TSC_DEADLINE => apic::set_tsc_deadline(cpu, env, value),
        n::EFER => set_efer(cpu, value)?,
        n::STAR => cpu.star = value,
        n::LSTAR => cpu.lstar = canonical(value)?,
        n::CSTAR => cpu.cstar = canonical(value)?,
        n::FMASK => cpu.fmask = value & 0xffff_ffff,
        n::FS_BASE => cpu.seg[sreg::FS].base = canonical(value)?,
        n::GS_BASE => cpu.seg[sreg::GS].base = canonical(value)?,
        n::KERNEL_GS_BASE => cpu.kernel_gs_base = canonical(value)?,
        n::TSC_AUX => {
            if value >> 32 != 0 {
                return Err(Exception::gp(0));
            }
            cpu.tsc_aux = value;
        }
        0x11 | n::KVM_WALL_CLOCK => {
            cpu.msrs.kvm_wall = value;
            write_physical(env, value & !3, &env.platform.clock.wall_clock());
        }
        0x12 | n::KVM_SYSTEM_TIME => {
            cpu.msrs.kvm_time = value;
            if value & 1 != 0 {
                // The zero of kvmclock in this vCPU's TSC.
                let zero = cpu.tsc_offset.wrapping_sub(env.platform.clock.tsc_offset());
                write_physical(env, value & !1, &env.platform.clock.system_time(zero));
            }
        }
        0x174..=0x176 => cpu.msrs.sysenter[(msr - 0x174) as usize] = value,
        0x1a0 => cpu.msrs.misc_enable = value,
        0x2ff => cpu.msrs.mtrr_default = value,
        0x200..=0x20f => cpu.msrs.mtrr[(msr - 0x200) as usize] = value,
        0x17a => cpu.msrs.mcg_status = value,
        0x8b | 0x17b | 0xc001_0015 | 0xc001_1029 => {}
        0x800..=0x8ff => return apic::write_msr(cpu, env, msr, value),
        _ => {
            if let Some(index) = MTRR_FIXED.iter().position(|fixed| *fixed == msr) {
                cpu.msrs.mtrr_fixed[index] = value;
                return Ok(());
            }
            env.platform.count(&format!("wrmsr {msr:#x}"));
            return Err(Exception::gp(0));
        }
    }
    Ok(())
}

/// Tells the guest that it did not run for a while (`PVCLOCK_GUEST_STOPPED`, which `KVM_KVMCLOCK_CTRL` sets): its watchdogs
/// look at that before they take the time that has passed for a CPU that is stuck. The guest clears it.
pub(crate) fn note_stop(cpu: &Cpu, env: &Env<'_>) {
    const FLAGS: u64 = 29;
    const STABLE_AND_STOPPED: u8 = 1 | 2;
    let page = cpu.msrs.kvm_time;
    if page & 1 != 0 {
        write_physical(env, (page & !1).wrapping_add(FLAGS), &[STABLE_AND_STOPPED]);
    }
}

fn set_efer(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let allowed = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
    let lme_changes = (value ^ cpu.efer) & cr::EFER_LME != 0 && cpu.cr0 & cr::CR0_PG != 0;
    if value & !allowed != 0 || lme_changes {
        return Err(Exception::gp(0));
    }
    let value = (value & !cr::EFER_LMA) | (cpu.efer & cr::EFER_LMA);
    if (value ^ cpu.efer) & cr::EFER_NXE != 0 {
        cpu.tlb_event(TlbEvent::All);
    }
    cpu.efer = value;
    Ok(())
}

/// Writes guest-physical memory for the platform (kvmclock pages); what is not RAM is skipped.
fn write_physical(env: &Env<'_>, gpa: u64, data: &[u8]) {
    let Some(span) = env.ram.lookup(gpa) else { return };
    if !span.writable || span.len < data.len() as u64 {
        return;
    }
    for (index, byte) in data.iter().enumerate() {
        // SAFETY: the span is writable for at least `data.len()` bytes.
        unsafe { crate::rawmem::store(span.host.add(index), u64::from(*byte), 1) };
    }
    let first = (data.len() as u64).min(4096 - (gpa & 0xfff));
    env.note_store(gpa, first);
    if first < data.len() as u64 {
        env.note_store(gpa + first, data.len() as u64 - first);
    }
}
