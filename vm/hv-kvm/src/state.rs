//! KVM's structures to and from the contract's state elements.

use hv::state::{
    Apic, Debug, Events, Gpr, Msr, Msrs, Run, RunState, Segment, StateElement, StateError, StateId, System,
    Xsave,
};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

use crate::msrs;

/// The order in which the elements must be set: CR4 and XCR0 before the extended state, the APIC before the deadline
/// MSR, events when everything they touch is in place, the run state last.
pub(crate) const ORDER: &[StateId] = &[
    StateId::System,
    StateId::Apic,
    StateId::Msrs,
    StateId::Xsave,
    StateId::Gpr,
    StateId::Debug,
    StateId::Events,
    StateId::Run,
];

/// The first three bits of XCR0: x87, SSE, AVX. x87 must always be on.
const XCR0_X87: u64 = 1;

pub(crate) fn get(fd: &VcpuFd, saved_msrs: &[u32], id: StateId) -> Result<StateElement, StateError> {
    Ok(match id {
        StateId::Gpr => StateElement::Gpr(gpr(&fd.get_regs().map_err(host(id))?)),
        StateId::System => StateElement::System(system(&fd.get_sregs().map_err(host(id))?)),
        StateId::Xsave => {
            let area = fd.get_xsave().map_err(host(id))?;
            let xcrs = fd.get_xcrs().map_err(host(id))?;
            let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
            let xcr0 =
                xcrs.xcrs.iter().take(count).find(|xcr| xcr.xcr == 0).map_or(XCR0_X87, |xcr| xcr.value);
            let area = area.region.iter().flat_map(|word| word.to_le_bytes()).collect();
            StateElement::Xsave(Xsave { area, xcr0 })
        }
        StateId::Msrs => {
            let values = msrs::read(fd, saved_msrs).map_err(host(id))?;
            let msrs = values.into_iter().map(|(index, value)| Msr { index, value }).collect();
            StateElement::Msrs(Msrs { msrs })
        }
        StateId::Apic => {
            let page = fd.get_lapic().map_err(host(id))?;
            StateElement::Apic(Apic { registers: page.regs.iter().map(|byte| *byte as u8).collect() })
        }
        StateId::Events => StateElement::Events(events(&fd.get_vcpu_events().map_err(host(id))?)),
        StateId::Run => {
            let state = match fd.get_mp_state().map_err(host(id))?.mp_state {
                KVM_MP_STATE_HALTED => RunState::Halted,
                KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => RunState::WaitForStart,
                _ => RunState::Running,
            };
            StateElement::Run(Run { state: state.into() })
        }
        StateId::Debug => {
            let regs = fd.get_debug_regs().map_err(host(id))?;
            let [a, b, c, d] = regs.db;
            StateElement::Debug(Debug { regs: vec![a, b, c, d, regs.dr6, regs.dr7] })
        }
    })
}

pub(crate) fn set(fd: &VcpuFd, element: &StateElement) -> Result<(), StateError> {
    let id = element.id();
    let bad = |what| StateError::Bad { id, what };
    match element {
        StateElement::Gpr(gpr) => fd.set_regs(&kvm_regs_from(gpr).ok_or(bad("number of registers"))?),
        StateElement::System(system) => fd.set_sregs(&kvm_sregs_from(system).ok_or(bad("segment or table"))?),
        StateElement::Xsave(xsave) => return set_xsave(fd, xsave),
        StateElement::Msrs(msrs) => {
            let values: Vec<_> = msrs.msrs.iter().map(|msr| (msr.index, msr.value)).collect();
            let count = msrs::write(fd, &values).map_err(host(id))?;
            return if count == values.len() { Ok(()) } else { Err(bad("register or value")) };
        }
        StateElement::Apic(apic) => {
            let mut page = kvm_lapic_state { regs: [0; 1024] };
            if apic.registers.len() != page.regs.len() {
                return Err(bad("length"));
            }
            for (to, from) in page.regs.iter_mut().zip(&apic.registers) {
                *to = *from as _;
            }
            fd.set_lapic(&page)
        }
        StateElement::Events(events) => fd.set_vcpu_events(&kvm_events_from(events).ok_or(bad("vector"))?),
        StateElement::Run(run) => {
            let state = RunState::try_from(run.state).map_err(|_| bad("run state"))?;
            let mp_state = match state {
                RunState::Running => KVM_MP_STATE_RUNNABLE,
                RunState::Halted => KVM_MP_STATE_HALTED,
                RunState::WaitForStart => KVM_MP_STATE_UNINITIALIZED,
            };
            fd.set_mp_state(kvm_mp_state { mp_state })
        }
        StateElement::Debug(debug) => {
            let [a, b, c, d, dr6, dr7] = debug.regs[..] else { return Err(bad("number of registers")) };
            fd.set_debug_regs(&kvm_debugregs { db: [a, b, c, d], dr6, dr7, ..Default::default() })
        }
    }
    .map_err(host(id))
}

fn host(id: StateId) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |error| StateError::Host { id, source: error.into() }
}

fn set_xsave(fd: &VcpuFd, xsave: &Xsave) -> Result<(), StateError> {
    let id = StateId::Xsave;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    if let Some(first) = xcrs.xcrs.first_mut() {
        first.value = xsave.xcr0;
    }
    fd.set_xcrs(&xcrs).map_err(host(id))?;
    let mut area = kvm_xsave::default();
    let (words, rest) = xsave.area.as_chunks::<4>();
    if xsave.area.len() < 576
        || !rest.is_empty()
        || words.iter().skip(area.region.len()).any(|word| *word != [0; 4])
    {
        return Err(StateError::Bad { id, what: "length" });
    }
    for (to, from) in area.region.iter_mut().zip(words) {
        *to = u32::from_le_bytes(*from);
    }
    // SAFETY: the guest has no dynamically enabled features (AMX is not asked for), so KVM reads the 4 KiB of `region`.
    unsafe { fd.set_xsave(&area) }.map_err(host(id))
}

fn gpr(regs: &kvm_regs) -> Gpr {
    Gpr {
        regs: vec![
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

fn kvm_regs_from(gpr: &Gpr) -> Option<kvm_regs> {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = gpr.regs[..] else {
        return None;
    };
    let (rip, rflags) = (gpr.rip, gpr.rflags);
    Some(kvm_regs {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    })
}

fn segment(from: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value & 1) << at;
    Segment {
        selector: from.selector.into(),
        base: from.base,
        limit: from.limit,
        attributes: u32::from(from.type_ & 0xf)
            | bit(from.s, 4)
            | u32::from(from.dpl & 3) << 5
            | bit(from.present, 7)
            | bit(from.avl, 12)
            | bit(from.l, 13)
            | bit(from.db, 14)
            | bit(from.g, 15)
            | bit(from.unusable, 16),
    }
}

fn kvm_segment_from(from: &Segment) -> Option<kvm_segment> {
    let bit = |at: u32| (from.attributes >> at & 1) as u8;
    Some(kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: u16::try_from(from.selector).ok()?,
        type_: (from.attributes & 0xf) as u8,
        present: bit(7),
        dpl: (from.attributes >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    })
}

fn system(sregs: &kvm_sregs) -> System {
    System {
        segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs, &sregs.ldt, &sregs.tr]
            .map(segment)
            .into(),
        gdt_base: sregs.gdt.base,
        gdt_limit: sregs.gdt.limit.into(),
        idt_base: sregs.idt.base,
        idt_limit: sregs.idt.limit.into(),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
    }
}

fn kvm_sregs_from(system: &System) -> Option<kvm_sregs> {
    let [es, cs, ss, ds, fs, gs, ldt, tr] = &system.segments[..] else { return None };
    let table = |base, limit: u32| {
        Some(kvm_bindings::kvm_dtable { base, limit: u16::try_from(limit).ok()?, padding: [0; 3] })
    };
    Some(kvm_sregs {
        cs: kvm_segment_from(cs)?,
        ds: kvm_segment_from(ds)?,
        es: kvm_segment_from(es)?,
        fs: kvm_segment_from(fs)?,
        gs: kvm_segment_from(gs)?,
        ss: kvm_segment_from(ss)?,
        tr: kvm_segment_from(tr)?,
        ldt: kvm_segment_from(ldt)?,
        gdt: table(system.gdt_base, system.gdt_limit)?,
        idt: table(system.idt_base, system.idt_limit)?,
        cr0: system.cr0,
        cr2: system.cr2,
        cr3: system.cr3,
        cr4: system.cr4,
        cr8: system.cr8,
        efer: system.efer,
        apic_base: system.apic_base,
        // A pending interrupt travels in Events.
        interrupt_bitmap: [0; 4],
    })
}

fn events(from: &kvm_vcpu_events) -> Events {
    let exception = from.exception.injected != 0 || from.exception.pending != 0;
    Events {
        exception_pending: exception,
        exception_vector: if exception { from.exception.nr.into() } else { 0 },
        exception_error: (exception && from.exception.has_error_code != 0)
            .then_some(from.exception.error_code),
        interrupt: (from.interrupt.injected != 0).then_some(from.interrupt.nr.into()),
        nmi_pending: from.nmi.pending != 0 || from.nmi.injected != 0,
        nmi_masked: from.nmi.masked != 0,
        interrupt_shadow: from.interrupt.shadow != 0,
    }
}

fn kvm_events_from(from: &Events) -> Option<kvm_vcpu_events> {
    let mut to = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if from.exception_pending {
        to.exception.injected = 1;
        to.exception.nr = u8::try_from(from.exception_vector).ok().filter(|vector| *vector < 32)?;
        to.exception.has_error_code = from.exception_error.is_some().into();
        to.exception.error_code = from.exception_error.unwrap_or_default();
    }
    if let Some(vector) = from.interrupt {
        to.interrupt.injected = 1;
        to.interrupt.nr = u8::try_from(vector).ok()?;
    }
    to.nmi.pending = from.nmi_pending.into();
    to.nmi.masked = from.nmi_masked.into();
    to.interrupt.shadow = from.interrupt_shadow.into();
    Some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_survives_the_round_trip() {
        let code = Segment { selector: 8, base: 0x1000, limit: 0xffff_ffff, attributes: 0xa09b };
        assert_eq!(segment(&kvm_segment_from(&code).unwrap()), code);
        let unusable = Segment { selector: 0, base: 0, limit: 0, attributes: 1 << 16 };
        assert_eq!(segment(&kvm_segment_from(&unusable).unwrap()), unusable);
    }

    #[test]
    fn events_survive_the_round_trip() {
        let waiting = Events {
            exception_pending: true,
            exception_vector: 14,
            exception_error: Some(2),
            interrupt: Some(0x40),
            nmi_pending: true,
            nmi_masked: true,
            interrupt_shadow: true,
        };
        assert_eq!(events(&kvm_events_from(&waiting).unwrap()), waiting);
        assert!(kvm_events_from(&Events { interrupt: Some(256), ..Default::default() }).is_none());
    }

    #[test]
    fn a_short_register_list_is_refused() {
        assert!(kvm_regs_from(&Gpr { regs: vec![0; 15], rip: 0, rflags: 2 }).is_none());
        assert!(kvm_sregs_from(&System::default()).is_none());
    }
}
