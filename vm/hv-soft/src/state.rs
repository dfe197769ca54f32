//! The vCPU's state as elements of the contract.

use hv::state::{
    self as elements, Debug, Events, Gpr, Msr, Msrs, Run, RunState, StateElement, StateError, StateId,
    System, Xsave,
};
use soft_cpu::cpu::{Cpu, Segment, TableRegister, XSAVE_BYTES, flag, sreg};
use soft_cpu::{Env, Exception, apic, msr};

/// The order in which elements are set: the APIC before the MSRs (the deadline needs the timer's mode), events last.
pub(crate) const ORDER: &[StateId] = &[
    StateId::System,
    StateId::Gpr,
    StateId::Xsave,
    StateId::Apic,
    StateId::Msrs,
    StateId::Debug,
    StateId::Events,
    StateId::Run,
];

fn bad(id: StateId, what: &'static str) -> StateError {
    StateError::Bad { id, what }
}

pub(crate) fn get(
    cpu: &Cpu,
    env: &Env<'_>,
    id: StateId,
    waiting: bool,
    exception: Option<Exception>,
) -> Result<StateElement, StateError> {
    Ok(match id {
        StateId::Gpr => StateElement::Gpr(Gpr { regs: cpu.gpr.to_vec(), rip: cpu.rip, rflags: cpu.rflags }),
        StateId::System => StateElement::System(get_system(cpu)),
        StateId::Xsave => StateElement::Xsave(Xsave { area: cpu.xsave.0.to_vec(), xcr0: cpu.xcr0 }),
        StateId::Msrs => StateElement::Msrs(Msrs {
            msrs: msr::SAVED
                .iter()
                .filter_map(|index| Some(Msr { index: *index, value: msr::read(cpu, env, *index).ok()? }))
                .collect(),
        }),
        StateId::Apic => StateElement::Apic(elements::Apic { registers: apic::save(cpu, env) }),
        StateId::Events => StateElement::Events(Events {
            exception_pending: exception.is_some(),
            exception_vector: exception.map_or(0, |exception| u32::from(exception.vector)),
            exception_error: exception.and_then(|exception| exception.error),
            interrupt: None,
            nmi_pending: apic::nmi_pending(cpu),
            nmi_masked: cpu.nmi_masked != 0,
            interrupt_shadow: cpu.shadow != 0,
        }),
        StateId::Run => {
            let state = match (waiting, cpu.halted) {
                (true, _) => RunState::WaitForStart,
                (false, 0) => RunState::Running,
                (false, _) => RunState::Halted,
            };
            StateElement::Run(Run { state: state as i32 })
        }
        StateId::Debug => {
            let [a, b, c, d] = cpu.dr;
            StateElement::Debug(Debug { regs: vec![a, b, c, d, cpu.dr6, cpu.dr7] })
        }
    })
}

fn get_system(cpu: &Cpu) -> System {
    let segment = |segment: &Segment| elements::Segment {
        selector: u32::from(segment.selector),
        base: segment.base,
        limit: segment.limit,
        attributes: segment.attributes,
    };
    System {
        segments: cpu.seg.iter().map(segment).collect(),
        gdt_base: cpu.gdt.base,
        gdt_limit: u32::from(cpu.gdt.limit),
        idt_base: cpu.idt.base,
        idt_limit: u32::from(cpu.idt.limit),
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        cr8: cpu.apic.cr8(),
        efer: cpu.efer,
        apic_base: cpu.apic.base,
    }
}

pub(crate) fn set(
    cpu: &mut Cpu,
    env: &Env<'_>,
    element: &StateElement,
    waiting: &mut bool,
    exception: &mut Option<Exception>,
) -> Result<(), StateError> {
    let id = element.id();
    match element {
        StateElement::Gpr(gpr) => {
            let regs: [u64; 16] =
                gpr.regs.as_slice().try_into().map_err(|_| bad(id, "number of general registers"))?;
            cpu.gpr = regs;
            cpu.rip = gpr.rip;
            cpu.rflags = gpr.rflags & 0x3f_7fd7 | flag::ONE;
        }
        StateElement::System(system) => set_system(cpu, system)?,
        StateElement::Xsave(xsave) => set_xsave(cpu, xsave)?,
        StateElement::Msrs(msrs) => {
            for entry in &msrs.msrs {
                msr::write(cpu, env, entry.index, entry.value).map_err(|_| bad(id, "register or value"))?;
            }
        }
        StateElement::Apic(page) => {
            if !apic::restore(cpu, env, &page.registers) {
                return Err(bad(id, "length of the register page"));
            }
        }
        StateElement::Events(events) => {
            let vector = u8::try_from(events.exception_vector).map_err(|_| bad(id, "exception vector"))?;
            *exception = events.exception_pending.then_some(Exception {
                vector,
                error: events.exception_error,
                cr2: cpu.cr2,
            });
            if let Some(vector) = events.interrupt {
                let vector = u8::try_from(vector).map_err(|_| bad(id, "interrupt vector"))?;
                cpu.apic.port.request(vector);
            }
            apic::set_nmi_pending(cpu, events.nmi_pending);
            cpu.nmi_masked = u8::from(events.nmi_masked);
            cpu.shadow = u8::from(events.interrupt_shadow);
        }
        StateElement::Run(run) => {
            let state = RunState::try_from(run.state).map_err(|_| bad(id, "state"))?;
            *waiting = state == RunState::WaitForStart;
            cpu.halted = u8::from(state == RunState::Halted);
        }
        StateElement::Debug(debug) => {
            let regs: [u64; 6] =
                debug.regs.as_slice().try_into().map_err(|_| bad(id, "number of debug registers"))?;
            cpu.dr.copy_from_slice(&regs[..4]);
            cpu.dr6 = regs[4];
            cpu.dr7 = regs[5];
        }
    }
    Ok(())
}

fn set_system(cpu: &mut Cpu, system: &System) -> Result<(), StateError> {
    let id = StateId::System;
    if system.segments.len() != cpu.seg.len() {
        return Err(bad(id, "number of segments"));
    }
    let table = |base, limit: u32, what| {
        let limit = u16::try_from(limit).map_err(|_| bad(id, what))?;
        Ok::<_, StateError>(TableRegister { base, limit, pad: [0; 3] })
    };
    let gdt = table(system.gdt_base, system.gdt_limit, "GDT limit")?;
    let idt = table(system.idt_base, system.idt_limit, "IDT limit")?;
    if system.cr3 >> soft_cpu::paging::GPA_BITS != 0 {
        return Err(bad(id, "CR3"));
    }
    if system.efer & soft_cpu::cpu::cr::EFER_LMA != 0 && system.segments[sreg::CS].attributes >> 13 & 1 == 0 {
        return Err(bad(id, "code segment: only 64-bit code runs here"));
    }
    for (segment, wanted) in cpu.seg.iter_mut().zip(&system.segments) {
        *segment = Segment {
            base: wanted.base,
            limit: wanted.limit,
            attributes: wanted.attributes & 0x1_f0ff,
            selector: u16::try_from(wanted.selector).map_err(|_| bad(id, "selector"))?,
            pad: [0; 3],
        };
    }
    cpu.gdt = gdt;
    cpu.idt = idt;
    cpu.cr0 = system.cr0;
    cpu.cr2 = system.cr2;
    cpu.cr3 = system.cr3;
    cpu.cr4 = system.cr4;
    cpu.efer = system.efer;
    apic::force_base(cpu, system.apic_base);
    apic::force_cr8(cpu, system.cr8);
    // A 64-bit stack segment may be null; its DPL then says the level (and the code segment's RPL agrees).
    cpu.cpl = if cpu.seg[sreg::SS].attributes >> 16 & 1 != 0 {
        (cpu.seg[sreg::CS].selector & 3) as u8
    } else {
        (cpu.seg[sreg::SS].attributes >> 5 & 3) as u8
    };
    Ok(())
}

fn set_xsave(cpu: &mut Cpu, xsave: &Xsave) -> Result<(), StateError> {
    let id = StateId::Xsave;
    if xsave.area.len() < 576 {
        return Err(bad(id, "area length"));
    }
    if !matches!(xsave.xcr0, 1 | 3 | 7) {
        return Err(bad(id, "XCR0"));
    }
    let len = xsave.area.len().min(XSAVE_BYTES);
    let mut area = [0; XSAVE_BYTES];
    area[..len].copy_from_slice(&xsave.area[..len]);
    if area[26] != 0 || area[27] != 0 {
        return Err(bad(id, "MXCSR"));
    }
    let present = area[512];
    if present & 1 == 0 {
        // The x87 component is in its initial state.
        area[..24].fill(0);
        area[32..160].fill(0);
        area[0] = 0x7f;
        area[1] = 0x03;
    }
    if present & 2 == 0 {
        area[160..416].fill(0);
    }
    if present & 4 == 0 || len < XSAVE_BYTES {
        area[576..].fill(0);
    }
    area[28..32].copy_from_slice(&[0xff, 0xff, 0, 0]);
    area[512..576].fill(0);
    area[512] = 7;
    cpu.xsave.0 = area;
    cpu.xcr0 = xsave.xcr0;
    Ok(())
}
