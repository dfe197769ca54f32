//! The vCPU's state block. Translated code reaches it through `offset_of!`, so the layout is `repr(C)` and every field that
//! such code may touch is public.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::sync::atomic::{AtomicU8, Ordering};

/// Indices into [`Cpu::gpr`].
pub mod reg {
    /// rax
    pub const RAX: usize = 0;
    /// rcx
    pub const RCX: usize = 1;
    /// rdx
    pub const RDX: usize = 2;
    /// rbx
    pub const RBX: usize = 3;
    /// rsp
    pub const RSP: usize = 4;
    /// rbp
    pub const RBP: usize = 5;
    /// rsi
    pub const RSI: usize = 6;
    /// rdi
    pub const RDI: usize = 7;
    /// r11
    pub const R11: usize = 11;
}

/// Indices into [`Cpu::seg`].
pub mod sreg {
    /// es
    pub const ES: usize = 0;
    /// cs
    pub const CS: usize = 1;
    /// ss
    pub const SS: usize = 2;
    /// ds
    pub const DS: usize = 3;
    /// fs
    pub const FS: usize = 4;
    /// gs
    pub const GS: usize = 5;
    /// ldtr
    pub const LDTR: usize = 6;
    /// tr
    pub const TR: usize = 7;
}

/// RFLAGS bits.
pub mod flag {
    /// Carry.
    pub const CF: u64 = 1;
    /// Always one.
    pub const ONE: u64 = 2;
    /// Parity.
    pub const PF: u64 = 1 << 2;
    /// Adjust.
    pub const AF: u64 = 1 << 4;
    /// Zero.
    pub const ZF: u64 = 1 << 6;
    /// Sign.
    pub const SF: u64 = 1 << 7;
    /// Trap (single step).
    pub const TF: u64 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u64 = 1 << 9;
    /// Direction.
    pub const DF: u64 = 1 << 10;
    /// Overflow.
    pub const OF: u64 = 1 << 11;
    /// I/O privilege level.
    pub const IOPL: u64 = 3 << 12;
    /// Nested task.
    pub const NT: u64 = 1 << 14;
    /// Resume.
    pub const RF: u64 = 1 << 16;
    /// Virtual 8086.
    pub const VM: u64 = 1 << 17;
    /// Alignment check; with SMAP, permits supervisor access to user pages.
    pub const AC: u64 = 1 << 18;
    /// Virtual interrupt.
    pub const VIF: u64 = 1 << 19;
    /// Virtual interrupt pending.
    pub const VIP: u64 = 1 << 20;
    /// CPUID may be used.
    pub const ID: u64 = 1 << 21;
    /// The six status flags.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

/// CR0, CR4 and EFER bits.
pub mod cr {
    /// CR0.PE
    pub const CR0_PE: u64 = 1;
    /// CR0.MP
    pub const CR0_MP: u64 = 1 << 1;
    /// CR0.EM
    pub const CR0_EM: u64 = 1 << 2;
    /// CR0.TS
    pub const CR0_TS: u64 = 1 << 3;
    /// CR0.ET
    pub const CR0_ET: u64 = 1 << 4;
    /// CR0.NE
    pub const CR0_NE: u64 = 1 << 5;
    /// CR0.WP
    pub const CR0_WP: u64 = 1 << 16;
    /// CR0.AM
    pub const CR0_AM: u64 = 1 << 18;
    /// CR0.PG
    pub const CR0_PG: u64 = 1 << 31;
    /// CR4.TSD
    pub const CR4_TSD: u64 = 1 << 2;
    /// CR4.DE
    pub const CR4_DE: u64 = 1 << 3;
    /// CR4.PAE
    pub const CR4_PAE: u64 = 1 << 5;
    /// CR4.PGE
    pub const CR4_PGE: u64 = 1 << 7;
    /// CR4.PCE
    pub const CR4_PCE: u64 = 1 << 8;
    /// CR4.OSFXSR
    pub const CR4_OSFXSR: u64 = 1 << 9;
    /// CR4.OSXMMEXCPT
    pub const CR4_OSXMMEXCPT: u64 = 1 << 10;
    /// CR4.UMIP
    pub const CR4_UMIP: u64 = 1 << 11;
    /// CR4.FSGSBASE
    pub const CR4_FSGSBASE: u64 = 1 << 16;
    /// CR4.PCIDE
    pub const CR4_PCIDE: u64 = 1 << 17;
    /// CR4.OSXSAVE
    pub const CR4_OSXSAVE: u64 = 1 << 18;
    /// CR4.SMEP
    pub const CR4_SMEP: u64 = 1 << 20;
    /// CR4.SMAP
    pub const CR4_SMAP: u64 = 1 << 21;
    /// EFER.SCE
    pub const EFER_SCE: u64 = 1;
    /// EFER.LME
    pub const EFER_LME: u64 = 1 << 8;
    /// EFER.LMA
    pub const EFER_LMA: u64 = 1 << 10;
    /// EFER.NXE
    pub const EFER_NXE: u64 = 1 << 11;
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// As in [`hv::state::Segment`]: type, S, DPL, P in bits 0-7, AVL, L, D/B, G in 12-15, bit 16 = unusable.
    pub attributes: u32,
    /// The selector.
    pub selector: u16,
    /// Padding.
    pub pad: [u16; 3],
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TableRegister {
    /// Linear base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
    /// Padding.
    pub pad: [u16; 3],
}

/// What an instruction did to translations. Whoever keeps a TLB drains [`Cpu::tlb_events`] after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlbEvent {
    /// Every translation, global ones too (CR0/CR4/EFER paging bits changed, INVPCID 2).
    All,
    /// Every translation that is not global, of every PCID (INVPCID 3).
    NonGlobal,
    /// The translations of one PCID that are not global (INVPCID 1).
    Pcid(u16),
    /// CR3 was loaded; the new PCID is current now. `flush` = drop this PCID's translations that are not global.
    Cr3 {
        /// The PCID now current (0 without CR4.PCIDE).
        pcid: u16,
        /// Whether that PCID's translations are dropped.
        flush: bool,
    },
    /// One linear address in one PCID, and global translations of it (INVLPG: the current PCID; INVPCID 0).
    Page {
        /// Any address in the page.
        linear: u64,
        /// The PCID concerned.
        pcid: u16,
    },
}

/// x87, SSE and AVX state in the standard XSAVE layout: legacy area, header, YMM high halves at 576.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct XsaveArea(pub [u8; XSAVE_BYTES]);

/// Bytes of the area that are used: 512 legacy, 64 header, 256 YMM high halves.
pub const XSAVE_BYTES: usize = 832;

/// Bytes at the end of [`Cpu`] that belong to the translator (TLBs, jump caches, homes…), 64-byte aligned, zero at first.
pub const JIT_AREA_BYTES: usize = 1 << 20;

/// The translator's part of the state block.
#[repr(C, align(4096))]
pub struct JitArea(pub [u8; JIT_AREA_BYTES]);

/// One vCPU. Big; made on the heap by [`Cpu::new`] and never moved. All fields are canonical whenever an executor is not
/// running.
#[repr(C, align(4096))]
pub struct Cpu {
    /// General registers in encoding order.
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    /// RFLAGS, complete: IF, TF, DF, AC, IOPL and the status flags are here.
    pub rflags: u64,
    /// Other threads store 1 here to get the vCPU out of its executor; see [`crate::exec::Executor::run`].
    pub kick: AtomicU8,
    /// An interrupt waits for IF, the shadow or the task priority: whoever opens the window sets `kick`.
    pub irq_window: u8,
    /// The next instruction is in the shadow of STI or MOV SS.
    pub shadow: u8,
    /// HLT was executed; cleared by the delivery of an interrupt.
    pub halted: u8,
    /// Current privilege level (0 or 3 in practice), kept equal to SS.DPL.
    pub cpl: u8,
    /// NMIs are masked until IRET.
    pub nmi_masked: u8,
    /// Padding.
    pub pad0: [u8; 2],
    /// es, cs, ss, ds, fs, gs, ldtr, tr.
    pub seg: [Segment; 8],
    /// GDTR.
    pub gdt: TableRegister,
    /// IDTR.
    pub idt: TableRegister,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3; bits 0-11 are the PCID with CR4.PCIDE. Bit 63 is never kept.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub fmask: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// Guest TSC = host TSC + this.
    pub tsc_offset: u64,
    /// IA32_TSC_AUX.
    pub tsc_aux: u64,
    /// IA32_PAT; kept, without effect.
    pub pat: u64,
    /// XCR0.
    pub xcr0: u64,
    /// DR0-DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// x87, SSE, AVX.
    pub xsave: XsaveArea,
    /// What happened to translations since the last drain.
    pub tlb_events: Vec<TlbEvent>,
    /// This vCPU's number, which is its APIC id.
    pub index: u32,
    /// The local APIC.
    pub apic: crate::apic::Apic,
    /// MSRs that are only kept.
    pub msrs: crate::msr::StoredMsrs,
    /// The interpreter's own caches.
    pub interp: crate::exec::InterpState,
    /// The translator's.
    pub jit: JitArea,
}

impl Cpu {
    /// A vCPU in 64-bit mode at reset-like values: paging off in the sense that CR0.PG is 0 until the state is set.
    pub fn new(index: u32) -> Box<Self> {
        let layout = Layout::new::<Self>();
        // SAFETY: the layout is not of size zero; the fields that must not be zero are written before the box is made.
        unsafe {
            let memory = alloc_zeroed(layout).cast::<Self>();
            if memory.is_null() {
                handle_alloc_error(layout);
            }
            (&raw mut (*memory).tlb_events).write(Vec::new());
            (&raw mut (*memory).interp).write(crate::exec::InterpState::default());
            (&raw mut (*memory).apic).write(crate::apic::Apic::new(index));
            (&raw mut (*memory).msrs).write(crate::msr::StoredMsrs::default());
            let mut cpu = Box::from_raw(memory);
            cpu.reset(index);
            cpu
        }
    }

    fn reset(&mut self, index: u32) {
        self.index = index;
        self.rflags = flag::ONE;
        self.cr0 = cr::CR0_ET | cr::CR0_NE;
        self.pat = 0x0007_0406_0007_0406;
        self.xcr0 = 1;
        self.dr6 = 0xffff_0ff0;
        self.dr7 = 0x400;
        self.xsave.0[0] = 0x7f; // FCW 0x37f
        self.xsave.0[1] = 0x03;
        self.xsave.0[24] = 0x80; // MXCSR 0x1f80
        self.xsave.0[25] = 0x1f;
        self.xsave.0[28] = 0xff; // MXCSR_MASK
        self.xsave.0[29] = 0xff;
        self.xsave.0[512] = 7; // XSTATE_BV: every component comes from this image
    }

    /// Gives the interpreter its executable memory; without this it makes its own at first use.
    pub fn set_stub_memory(&mut self, memory: crate::stub::StubMemory) {
        self.interp.stubs.arena = Some(memory);
    }

    /// Notes what happened to translations: drops the interpreter's own and tells whoever drains `tlb_events`.
    pub(crate) fn tlb_event(&mut self, event: TlbEvent) {
        self.interp.tlb.apply(event);
        if self.tlb_events.len() >= 64 {
            // Nobody drains, or nobody did for long: one entry says it all (CR3 itself is in `cr3`).
            self.tlb_events.clear();
            self.tlb_events.push(TlbEvent::All);
        }
        self.tlb_events.push(event);
    }

    /// IF was set, the priority lowered or an interrupt ended: if one waits for that, the executor must leave.
    pub(crate) fn window_opened(&mut self) {
        if self.irq_window != 0 {
            self.kick.store(1, Ordering::SeqCst);
        }
    }

    /// The current PCID, 0 without CR4.PCIDE.
    pub fn pcid(&self) -> u16 {
        if self.cr4 & cr::CR4_PCIDE != 0 { (self.cr3 & 0xfff) as u16 } else { 0 }
    }
}
