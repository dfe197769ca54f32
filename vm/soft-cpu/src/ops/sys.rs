//! System instructions that are not segment loads or far transfers.

use std::sync::atomic::Ordering;

use crate::alu::mask;
use crate::cpu::{Cpu, TlbEvent, cr, flag, reg, sreg};
use crate::decode::{Insn, Opnd, linear};
use crate::env::Env;
use crate::exception::{Exception, vector};
use crate::ops::int::{read_op, set_reg, write_dst};
use crate::paging::{GPA_BITS, is_canonical};
use crate::{apic, cpuid, mem, msr};

type Done = Result<(), Exception>;

fn privileged(cpu: &Cpu) -> Done {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::gp(0)) }
}

/// #GP for SGDT, SIDT, SLDT, STR, SMSW outside ring 0 under UMIP.
pub(crate) fn umip(cpu: &Cpu) -> Done {
    if cpu.cpl != 0 && cpu.cr4 & cr::CR4_UMIP != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

/// Whether the port may be used: IOPL, then the TSS's bitmap.
pub(crate) fn check_io(cpu: &mut Cpu, env: &Env<'_>, port: u16, size: u8) -> Done {
    if u64::from(cpu.cpl) <= (cpu.rflags & flag::IOPL) >> 12 {
        return Ok(());
    }
    let tr = cpu.seg[sreg::TR];
    let limit = u64::from(tr.limit);
    if limit < 0x67 {
        return Err(Exception::gp(0));
    }
    let map = mem::system_read(cpu, env, tr.base.wrapping_add(0x66), 2)?;
    let at = map + u64::from(port >> 3);
    if at + 1 > limit {
        return Err(Exception::gp(0));
    }
    let bits = mem::system_read(cpu, env, tr.base.wrapping_add(at), 2)? >> (port & 7);
    if bits & ((1 << size) - 1) != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

pub(crate) fn port_in(env: &Env<'_>, port: u16, size: u8) -> u64 {
    let mut data = [0; 8];
    env.io.pio_read(port, &mut data[..size as usize]);
    u64::from_le_bytes(data)
}

pub(crate) fn port_out(env: &Env<'_>, port: u16, value: u64, size: u8) {
    env.io.pio_write(port, &value.to_le_bytes()[..size as usize]);
}

fn port_of(cpu: &Cpu, insn: &Insn, operand: usize) -> u16 {
    if insn.ops[operand] == Opnd::Imm { insn.imm as u16 & 0xff } else { cpu.gpr[reg::RDX] as u16 }
}

/// IN: `sub` is the size.
pub(crate) fn port_read(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let port = port_of(cpu, insn, 1);
    check_io(cpu, env, port, insn.sub)?;
    let value = port_in(env, port, insn.sub);
    set_reg(cpu, Opnd::Reg(reg::RAX as u8), value, insn.sub);
    Ok(())
}

/// OUT: `sub` is the size.
pub(crate) fn port_write(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let port = port_of(cpu, insn, 0);
    check_io(cpu, env, port, insn.sub)?;
    port_out(env, port, cpu.gpr[reg::RAX], insn.sub);
    Ok(())
}

pub(crate) fn hlt(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)?;
    cpu.halted = 1;
    Ok(())
}

pub(crate) fn cli(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if u64::from(cpu.cpl) > (cpu.rflags & flag::IOPL) >> 12 {
        return Err(Exception::gp(0));
    }
    cpu.rflags &= !flag::IF;
    Ok(())
}

pub(crate) fn sti(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if u64::from(cpu.cpl) > (cpu.rflags & flag::IOPL) >> 12 {
        return Err(Exception::gp(0));
    }
    if cpu.rflags & flag::IF == 0 {
        cpu.rflags |= flag::IF;
        cpu.shadow = 1;
        cpu.window_opened();
    }
    Ok(())
}

/// PAUSE: lets another vCPU have the host's core (the translator leaves one in 64 to the interpreter).
pub(crate) fn pause(_cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    std::thread::yield_now();
    Ok(())
}

fn guest_tsc(cpu: &Cpu, env: &Env<'_>) -> Result<u64, Exception> {
    if cpu.cr4 & cr::CR4_TSD != 0 && cpu.cpl != 0 {
        return Err(Exception::gp(0));
    }
    Ok(env.platform.clock.now().wrapping_add(cpu.tsc_offset))
}

/// RDTSC, and RDTSCP with `AUX`.
pub(crate) fn rdtsc<const AUX: bool>(cpu: &mut Cpu, env: &Env<'_>, _insn: &Insn) -> Done {
    let tsc = guest_tsc(cpu, env)?;
    cpu.gpr[reg::RAX] = tsc & 0xffff_ffff;
    cpu.gpr[reg::RDX] = tsc >> 32;
    if AUX {
        cpu.gpr[reg::RCX] = cpu.tsc_aux;
    }
    Ok(())
}

pub(crate) fn rdpid(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    set_reg(cpu, insn.ops[0], cpu.tsc_aux, 8);
    Ok(())
}

pub(crate) fn cpuid_op(cpu: &mut Cpu, env: &Env<'_>, _insn: &Insn) -> Done {
    let (leaf, sub) = (cpu.gpr[reg::RAX] as u32, cpu.gpr[reg::RCX] as u32);
    let result = cpuid::query(cpu, &env.platform.cpuid, leaf, sub);
    cpu.gpr[reg::RAX] = u64::from(result.eax);
    cpu.gpr[reg::RBX] = u64::from(result.ebx);
    cpu.gpr[reg::RCX] = u64::from(result.ecx);
    cpu.gpr[reg::RDX] = u64::from(result.edx);
    Ok(())
}

pub(crate) fn rdmsr(cpu: &mut Cpu, env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)?;
    let value = msr::read(cpu, env, cpu.gpr[reg::RCX] as u32)?;
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

pub(crate) fn wrmsr(cpu: &mut Cpu, env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)?;
    let value = (cpu.gpr[reg::RAX] & 0xffff_ffff) | cpu.gpr[reg::RDX] << 32;
    msr::write(cpu, env, cpu.gpr[reg::RCX] as u32, value)
}

pub(crate) fn swapgs(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)?;
    std::mem::swap(&mut cpu.seg[sreg::GS].base, &mut cpu.kernel_gs_base);
    Ok(())
}

/// RDFSBASE, RDGSBASE.
pub(crate) fn rd_base<const REGISTER: usize>(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    if cpu.cr4 & cr::CR4_FSGSBASE == 0 {
        return Err(Exception::ud());
    }
    set_reg(cpu, insn.ops[0], cpu.seg[REGISTER].base, insn.size);
    Ok(())
}

/// WRFSBASE, WRGSBASE.
pub(crate) fn wr_base<const REGISTER: usize>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    if cpu.cr4 & cr::CR4_FSGSBASE == 0 {
        return Err(Exception::ud());
    }
    let value = read_op(cpu, env, insn, 0, insn.size)?;
    if !is_canonical(value) {
        return Err(Exception::gp(0));
    }
    cpu.seg[REGISTER].base = value;
    Ok(())
}

pub(crate) fn mov_from_cr(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let Opnd::Cr(number) = insn.ops[1] else { return Err(Exception::ud()) };
    let value = match number {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.cr8(),
        _ => return Err(Exception::ud()),
    };
    set_reg(cpu, insn.ops[0], value, 8);
    Ok(())
}

pub(crate) fn mov_to_cr(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let Opnd::Cr(number) = insn.ops[0] else { return Err(Exception::ud()) };
    let value = read_op(cpu, env, insn, 1, 8)?;
    match number {
        0 => set_cr0(cpu, value),
        2 => {
            cpu.cr2 = value;
            Ok(())
        }
        3 => set_cr3(cpu, value),
        4 => set_cr4(cpu, value),
        8 => {
            if value > 15 {
                return Err(Exception::gp(0));
            }
            apic::set_tpr(cpu, (value << 4) as u8);
            Ok(())
        }
        _ => Err(Exception::ud()),
    }
}

fn set_cr0(cpu: &mut Cpu, value: u64) -> Done {
    const KEPT: u64 = 0xe005_003f;
    let gp = Err(Exception::gp(0));
    if value >> 32 != 0 || value & 1 << 29 != 0 && value & 1 << 30 == 0 {
        return gp;
    }
    if value & cr::CR0_PG != 0 && value & cr::CR0_PE == 0 {
        return gp;
    }
    if cpu.cr0 & cr::CR0_PG != 0 && value & cr::CR0_PG == 0 {
        // Leaving paging from 64-bit code is not possible (and PCIDE forbids it too).
        return gp;
    }
    if cpu.cr0 & cr::CR0_PG == 0 && value & cr::CR0_PG != 0 {
        if cpu.cr4 & cr::CR4_PAE == 0 {
            return gp;
        }
        if cpu.efer & cr::EFER_LME != 0 {
            cpu.efer |= cr::EFER_LMA;
        }
    }
    let value = value & KEPT | cr::CR0_ET;
    if (value ^ cpu.cr0) & (cr::CR0_PG | cr::CR0_WP | cr::CR0_PE) != 0 {
        cpu.tlb_event(TlbEvent::All);
    }
    cpu.cr0 = value;
    Ok(())
}

fn set_cr3(cpu: &mut Cpu, value: u64) -> Done {
    let pcide = cpu.cr4 & cr::CR4_PCIDE != 0;
    let keep = pcide && value >> 63 != 0;
    let value = if pcide { value & !(1 << 63) } else { value };
    if value >> GPA_BITS != 0 {
        return Err(Exception::gp(0));
    }
    cpu.cr3 = value;
    let pcid = cpu.pcid();
    cpu.tlb_event(TlbEvent::Cr3 { pcid, flush: !keep });
    Ok(())
}

fn set_cr4(cpu: &mut Cpu, value: u64) -> Done {
    // VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP.
    const ALLOWED: u64 = 0x0037_0fff;
    let turns_on = value & !cpu.cr4;
    if value & !ALLOWED != 0
        || cpu.efer & cr::EFER_LMA != 0 && value & cr::CR4_PAE == 0
        || turns_on & cr::CR4_PCIDE != 0 && (cpu.cr3 & 0xfff != 0 || cpu.efer & cr::EFER_LMA == 0)
    {
        return Err(Exception::gp(0));
    }
    let paging = 1 << 4 | cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PCIDE | cr::CR4_SMEP | cr::CR4_SMAP;
    let changed = value ^ cpu.cr4;
    cpu.cr4 = value;
    if changed & paging != 0 {
        cpu.tlb_event(TlbEvent::All);
    }
    Ok(())
}

/// SMSW.
pub(crate) fn smsw(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    umip(cpu)?;
    let size = if insn.ops[0] == Opnd::Mem { 2 } else { insn.size };
    let value = cpu.cr0 & mask(size);
    write_dst(cpu, env, insn, value, size)
}

pub(crate) fn lmsw(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let value = read_op(cpu, env, insn, 0, 2)?;
    cpu.cr0 = (cpu.cr0 & !0xe) | (value & 0xf);
    Ok(())
}

pub(crate) fn clts(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)?;
    cpu.cr0 &= !cr::CR0_TS;
    Ok(())
}

fn debug_index(cpu: &Cpu, op: Opnd) -> Result<usize, Exception> {
    let Opnd::Dr(number) = op else { return Err(Exception::ud()) };
    match number {
        0..=3 | 6 | 7 => Ok(number as usize),
        4 | 5 if cpu.cr4 & cr::CR4_DE == 0 => Ok(number as usize + 2),
        _ => Err(Exception::ud()),
    }
}

pub(crate) fn mov_from_dr(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let value = match debug_index(cpu, insn.ops[1])? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        index => cpu.dr[index & 3],
    };
    set_reg(cpu, insn.ops[0], value, 8);
    Ok(())
}

pub(crate) fn mov_to_dr(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let value = read_op(cpu, env, insn, 1, 8)?;
    match debug_index(cpu, insn.ops[0])? {
        6 | 7 if value >> 32 != 0 => return Err(Exception::gp(0)),
        6 => cpu.dr6 = (value & 0xe00f) | 0xffff_0ff0,
        7 => cpu.dr7 = (value & 0xffff_2fff) | 0x400,
        index => cpu.dr[index & 3] = value,
    }
    Ok(())
}

/// LGDT (`INTERRUPT` = false), LIDT.
pub(crate) fn load_table<const INTERRUPT: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let at = linear(cpu, insn);
    let mut bytes = [0; 10];
    mem::read_bytes(cpu, env, at, &mut bytes, insn.stack)?;
    let mut base = [0; 8];
    base.copy_from_slice(&bytes[2..]);
    let base = u64::from_le_bytes(base);
    if !is_canonical(base) {
        return Err(Exception::gp(0));
    }
    let table = if INTERRUPT { &mut cpu.idt } else { &mut cpu.gdt };
    table.base = base;
    table.limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    Ok(())
}

/// SGDT, SIDT.
pub(crate) fn store_table<const INTERRUPT: bool>(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    umip(cpu)?;
    let table = if INTERRUPT { cpu.idt } else { cpu.gdt };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let at = linear(cpu, insn);
    mem::write_bytes(cpu, env, at, &bytes, insn.stack)
}

pub(crate) fn invlpg(cpu: &mut Cpu, _env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let event = TlbEvent::Page { linear: linear(cpu, insn), pcid: cpu.pcid() };
    cpu.tlb_event(event);
    Ok(())
}

pub(crate) fn invpcid(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    privileged(cpu)?;
    let kind = read_op(cpu, env, insn, 0, 8)?;
    let at = linear(cpu, insn);
    let mut bytes = [0; 16];
    mem::read_bytes(cpu, env, at, &mut bytes, insn.stack)?;
    let mut half = [0; 8];
    half.copy_from_slice(&bytes[..8]);
    let pcid = u64::from_le_bytes(half);
    half.copy_from_slice(&bytes[8..]);
    let linear = u64::from_le_bytes(half);
    let no_pcids = cpu.cr4 & cr::CR4_PCIDE == 0;
    let event = match kind {
        0 | 1 if pcid >> 12 != 0 || no_pcids && pcid != 0 => return Err(Exception::gp(0)),
        0 if !is_canonical(linear) => return Err(Exception::gp(0)),
        0 => TlbEvent::Page { linear, pcid: pcid as u16 },
        1 => TlbEvent::Pcid(pcid as u16),
        2 => TlbEvent::All,
        3 => TlbEvent::NonGlobal,
        _ => return Err(Exception::gp(0)),
    };
    cpu.tlb_event(event);
    Ok(())
}

/// WBINVD, INVD: caches are coherent here.
pub(crate) fn privileged_nop(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    privileged(cpu)
}

/// RDPMC: no counters.
pub(crate) fn rdpmc(_cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    Err(Exception::gp(0))
}

pub(crate) fn xgetbv(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if cpu.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    let value = match cpu.gpr[reg::RCX] as u32 {
        // XINUSE: no component is tracked as initial.
        0 | 1 => cpu.xcr0,
        _ => return Err(Exception::gp(0)),
    };
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

pub(crate) fn xsetbv(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    if cpu.cr4 & cr::CR4_OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    privileged(cpu)?;
    let value = (cpu.gpr[reg::RAX] & 0xffff_ffff) | cpu.gpr[reg::RDX] << 32;
    if cpu.gpr[reg::RCX] as u32 != 0 || !matches!(value, 1 | 3 | 7) {
        return Err(Exception::gp(0));
    }
    cpu.xcr0 = value;
    Ok(())
}

/// VMCALL, VMMCALL: KVM's hypercalls, of which none is offered.
pub(crate) fn hypercall(cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    const ENOSYS: i64 = -1000;
    const EPERM: i64 = -1;
    cpu.gpr[reg::RAX] = if cpu.cpl == 0 { ENOSYS } else { EPERM } as u64;
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB, CLDEMOTE: a read of the byte, for its faults.
pub(crate) fn cache_line(cpu: &mut Cpu, env: &Env<'_>, insn: &Insn) -> Done {
    let at = linear(cpu, insn);
    mem::read(cpu, env, at, 1, insn.stack).map(|_| ())
}

/// MFENCE, LFENCE, SFENCE.
pub(crate) fn fence(_cpu: &mut Cpu, _env: &Env<'_>, _insn: &Insn) -> Done {
    std::sync::atomic::fence(Ordering::SeqCst);
    Ok(())
}

/// The trap after an instruction that began with TF set.
pub(crate) fn single_step(cpu: &mut Cpu) -> Exception {
    cpu.dr6 |= 1 << 14;
    Exception::plain(vector::DB)
}
