//! Segment descriptors (Intel SDM 3A §3.4.5, §7.2) in 64-bit mode.

use crate::cpu::{Cpu, Segment, sreg};
use crate::env::Env;
use crate::exception::Exception;
use crate::mem;

/// Attributes of the flat 64-bit code segment of `dpl`.
pub(crate) const fn code64(dpl: u8) -> u32 {
    0xa09b | (dpl as u32) << 5
}

/// Attributes of the flat data segment of `dpl`.
pub(crate) const fn data(dpl: u8) -> u32 {
    0xc093 | (dpl as u32) << 5
}

/// Marks a segment register that holds a null selector.
pub(crate) const UNUSABLE: u32 = 1 << 16;

/// A descriptor as read from a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) raw: u64,
    /// Its linear address.
    pub(crate) at: u64,
}

impl Descriptor {
    pub(crate) fn attributes(self) -> u32 {
        (((self.raw >> 40) & 0xff) | ((self.raw >> 52) & 0xf) << 12) as u32
    }
    pub(crate) fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }
    pub(crate) fn present(self) -> bool {
        self.raw >> 47 & 1 != 0
    }
    /// Code or data, not a system descriptor.
    pub(crate) fn is_segment(self) -> bool {
        self.raw >> 44 & 1 != 0
    }
    pub(crate) fn kind(self) -> u8 {
        (self.raw >> 40 & 0xf) as u8
    }
    pub(crate) fn is_code(self) -> bool {
        self.is_segment() && self.kind() & 8 != 0
    }
    pub(crate) fn conforming(self) -> bool {
        self.kind() & 4 != 0
    }
    pub(crate) fn long(self) -> bool {
        self.raw >> 53 & 1 != 0 && self.raw >> 54 & 1 == 0
    }
    pub(crate) fn base(self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56 & 0xff) << 24
    }
    pub(crate) fn limit(self) -> u32 {
        let raw = ((self.raw & 0xffff) | (self.raw >> 48 & 0xf) << 16) as u32;
        if self.raw >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }
    pub(crate) fn segment(self, selector: u16) -> Segment {
        Segment {
            base: self.base(),
            limit: self.limit(),
            attributes: self.attributes(),
            selector,
            pad: [0; 3],
        }
    }
}

/// The table a selector points into: (base, limit).
fn table(cpu: &Cpu, selector: u16) -> (u64, u32) {
    if selector & 4 != 0 {
        let ldt = &cpu.seg[sreg::LDTR];
        if ldt.selector & !3 == 0 { (0, 0) } else { (ldt.base, ldt.limit) }
    } else {
        (cpu.gdt.base, u32::from(cpu.gdt.limit))
    }
}

/// Reads the descriptor of a selector; `None` outside the table.
pub(crate) fn lookup(cpu: &mut Cpu, env: &Env<'_>, selector: u16) -> Result<Option<Descriptor>, Exception> {
    let (base, limit) = table(cpu, selector);
    let offset = u64::from(selector & !7);
    if offset + 7 > u64::from(limit) || (limit == 0) {
        return Ok(None);
    }
    let at = base.wrapping_add(offset);
    Ok(Some(Descriptor { raw: mem::system_read(cpu, env, at, 8)?, at }))
}

/// The high half of a 16-byte system descriptor (bits 32-63 of its base).
pub(crate) fn high_base(cpu: &mut Cpu, env: &Env<'_>, descriptor: Descriptor) -> Result<u64, Exception> {
    Ok(mem::system_read(cpu, env, descriptor.at.wrapping_add(8), 4)? << 32)
}

/// Sets the accessed bit of a code or data descriptor if it is clear.
pub(crate) fn set_accessed(
    cpu: &mut Cpu,
    env: &Env<'_>,
    descriptor: &mut Descriptor,
) -> Result<(), Exception> {
    if descriptor.raw >> 40 & 1 == 0 {
        descriptor.raw |= 1 << 40;
        let byte = (descriptor.raw >> 40) as u8;
        mem::system_write(cpu, env, descriptor.at.wrapping_add(5), &[byte], false)?;
    }
    Ok(())
}

const fn error(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// MOV/POP/LxS to es, ss, ds, fs, gs.
pub(crate) fn load(cpu: &mut Cpu, env: &Env<'_>, register: usize, selector: u16) -> Result<(), Exception> {
    let rpl = (selector & 3) as u8;
    if selector & !3 == 0 {
        if register == sreg::SS && (cpu.cpl == 3 || rpl != cpu.cpl) {
            return Err(Exception::gp(0));
        }
        let dpl = if register == sreg::SS { u32::from(cpu.cpl) << 5 } else { 0 };
        // Intel clears the base with the selector; AMD keeps it. Both are seen by nobody who sets the base afterwards.
        let base = if crate::cpuid::host_is_amd() { cpu.seg[register & 7].base } else { 0 };
        cpu.seg[register & 7] = Segment { base, limit: 0, attributes: UNUSABLE | dpl, selector, pad: [0; 3] };
        return Ok(());
    }
    let Some(mut descriptor) = lookup(cpu, env, selector)? else {
        return Err(Exception::gp(error(selector)));
    };
    let gp = Exception::gp(error(selector));
    if !descriptor.is_segment() {
        return Err(gp);
    }
    if register == sreg::SS {
        if rpl != cpu.cpl || descriptor.dpl() != cpu.cpl || descriptor.is_code() || descriptor.kind() & 2 == 0
        {
            return Err(gp);
        }
        if !descriptor.present() {
            return Err(Exception::ss(error(selector)));
        }
    } else {
        let readable = !descriptor.is_code() || descriptor.kind() & 2 != 0;
        let conforming = descriptor.is_code() && descriptor.conforming();
        if !readable || !conforming && (rpl > descriptor.dpl() || cpu.cpl > descriptor.dpl()) {
            return Err(gp);
        }
        if !descriptor.present() {
            return Err(Exception::np(error(selector)));
        }
    }
    set_accessed(cpu, env, &mut descriptor)?;
    cpu.seg[register & 7] = descriptor.segment(selector);
    Ok(())
}

/// Checks a code selector for a far transfer; `outer` allows a return to a less privileged level. Returns the segment
/// and the new CPL.
pub(crate) fn check_code(
    cpu: &mut Cpu,
    env: &Env<'_>,
    selector: u16,
    returning: bool,
) -> Result<(Segment, u8), Exception> {
    if selector & !3 == 0 {
        return Err(Exception::gp(0));
    }
    let gp = Exception::gp(error(selector));
    let Some(mut descriptor) = lookup(cpu, env, selector)? else { return Err(gp) };
    let rpl = (selector & 3) as u8;
    if !descriptor.is_code() {
        return Err(gp);
    }
    let level = if returning {
        if rpl < cpu.cpl {
            return Err(gp);
        }
        let bad = if descriptor.conforming() { descriptor.dpl() > rpl } else { descriptor.dpl() != rpl };
        if bad {
            return Err(gp);
        }
        rpl
    } else {
        let bad = if descriptor.conforming() {
            descriptor.dpl() > cpu.cpl
        } else {
            rpl > cpu.cpl || descriptor.dpl() != cpu.cpl
        };
        if bad {
            return Err(gp);
        }
        cpu.cpl
    };
    if !descriptor.present() {
        return Err(Exception::np(error(selector)));
    }
    // This CPU runs 64-bit code only: compatibility-mode segments are refused.
    if !descriptor.long() {
        return Err(gp);
    }
    set_accessed(cpu, env, &mut descriptor)?;
    Ok((descriptor.segment((selector & !3) | u16::from(level)), level))
}

/// Checks a stack selector for a return to `level`; null is allowed below ring 3.
pub(crate) fn check_stack(
    cpu: &mut Cpu,
    env: &Env<'_>,
    selector: u16,
    level: u8,
) -> Result<Segment, Exception> {
    let gp = Exception::gp(error(selector));
    if selector & !3 == 0 {
        if level == 3 || (selector & 3) as u8 != level {
            return Err(gp);
        }
        return Ok(Segment {
            base: 0,
            limit: 0,
            attributes: UNUSABLE | u32::from(level) << 5,
            selector,
            pad: [0; 3],
        });
    }
    let Some(mut descriptor) = lookup(cpu, env, selector)? else { return Err(gp) };
    if (selector & 3) as u8 != level
        || !descriptor.is_segment()
        || descriptor.is_code()
        || descriptor.kind() & 2 == 0
        || descriptor.dpl() != level
    {
        return Err(gp);
    }
    if !descriptor.present() {
        return Err(Exception::ss(error(selector)));
    }
    set_accessed(cpu, env, &mut descriptor)?;
    Ok(descriptor.segment(selector))
}

/// After a return to an outer level: data segments that it may not use become null.
pub(crate) fn drop_inner(cpu: &mut Cpu) {
    for register in [sreg::ES, sreg::DS, sreg::FS, sreg::GS] {
        let segment = &mut cpu.seg[register];
        let dpl = (segment.attributes >> 5 & 3) as u8;
        let conforming_code = segment.attributes & 0x1c == 0x1c;
        if segment.selector & !3 != 0 && dpl < cpu.cpl && !conforming_code {
            segment.selector = 0;
            segment.attributes = UNUSABLE;
        }
    }
}

/// Sets CPL and the flat segments of SYSCALL and SYSRET.
pub(crate) fn set_flat(cpu: &mut Cpu, cs: u16, ss: u16, level: u8) {
    cpu.cpl = level;
    cpu.seg[sreg::CS] =
        Segment { base: 0, limit: u32::MAX, attributes: code64(level), selector: cs, pad: [0; 3] };
    cpu.seg[sreg::SS] =
        Segment { base: 0, limit: u32::MAX, attributes: data(level), selector: ss, pad: [0; 3] };
}
