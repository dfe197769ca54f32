//! vCPU state as typed, versioned elements.
//!
//! A snapshot holds (id, version, bytes) triples; the bytes are the protobuf encoding of the structs here, whose field
//! numbers never change meaning. Each engine converts its own representation to and from these; see
//! [`crate::Vcpu::get_state`].
//!
//! # arm64
//! Today's elements are x86-64's. Those of an arm64 guest come with the engine that keeps them, as ids and structs of
//! their own; nothing of x86-64's changes, and a snapshot, whose architecture is part of its key, holds one kind only.
//! Ids up to 63 are x86-64's, those from 64 on arm64's; [`Run`] has the same meaning for both (WFI halts):
//!
//! | id | element | contents |
//! |---|---|---|
//! | 64 | core registers | X0-X30, SP_EL0, SP_EL1, PC, PSTATE |
//! | 65 | SIMD | V0-V31 as 16 bytes each, FPSR, FPCR |
//! | 66 | system registers | pairs like [`Msr`]: the 16 bits that name the register in MRS (op0, op1, CRn, CRm, op2), value; EL1 and EL0 |
//! | 67 | virtual timer | CNTV_CTL_EL0, CNTV_CVAL_EL0, and the guest's CNTVCT_EL0 when it was saved, from which the offset is set anew |
//! | 68 | GIC, this vCPU's | its redistributor's SGI and PPI registers (GICR_*), ICC_*_EL1, active priorities included |
//! | 69 | GIC, the VM's | the distributor's registers (GICD_*): enabled, pending, active, priority, route of each SPI |
//! | 70 | debug | DBGBVRn, DBGBCRn, DBGWVRn, DBGWCRn, MDSCR |
//!
//! Element 69 is the VM's; vCPU 0 has it in its [`crate::Vcpu::state_ids`], before its own GIC element. Hypervisor.framework gives
//! all of them register by register (`hv_vcpu_get_reg`, `hv_vcpu_get_sys_reg`, `hv_gic_get_distributor_reg`,
//! `hv_gic_get_redistributor_reg`, `hv_gic_get_icc_reg`); its opaque `hv_gic_state` is not used.

use prost::Message;

/// Names one element. The numbers are part of the snapshot format; see the module's text for those of arm64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum StateId {
    /// [`Gpr`]
    Gpr = 1,
    /// [`System`]
    System = 2,
    /// [`Xsave`]
    Xsave = 3,
    /// [`Msrs`]
    Msrs = 4,
    /// [`Apic`]
    Apic = 5,
    /// [`Events`]
    Events = 6,
    /// [`Run`]
    Run = 7,
    /// [`struct@Debug`]
    Debug = 8,
}

/// One element of a vCPU's state.
#[derive(Clone, Debug, PartialEq)]
pub enum StateElement {
    /// General registers.
    Gpr(Gpr),
    /// Segments, tables, control registers.
    System(System),
    /// x87, SSE, AVX.
    Xsave(Xsave),
    /// Model-specific registers.
    Msrs(Msrs),
    /// Local APIC.
    Apic(Apic),
    /// Events that wait for delivery.
    Events(Events),
    /// Whether the vCPU runs.
    Run(Run),
    /// Debug registers.
    Debug(Debug),
}

/// General-purpose registers in encoding order (rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 … r15).
#[derive(Clone, PartialEq, Message)]
pub struct Gpr {
    /// The 16 registers.
    #[prost(fixed64, repeated, tag = "1")]
    pub regs: Vec<u64>,
    /// Address of the next instruction.
    #[prost(fixed64, tag = "2")]
    pub rip: u64,
    /// RFLAGS, bit 1 set.
    #[prost(fixed64, tag = "3")]
    pub rflags: u64,
}

/// A segment register with its hidden part (Intel SDM 3A §3.4.3).
#[derive(Clone, PartialEq, Message)]
pub struct Segment {
    /// Selector, 16 bits.
    #[prost(uint32, tag = "1")]
    pub selector: u32,
    /// Linear base.
    #[prost(fixed64, tag = "2")]
    pub base: u64,
    /// Limit in bytes, granularity applied.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
    /// Bits 8-15 and 20-23 of the descriptor's second word, shifted down by 8 (type, S, DPL, P, then AVL, L, D/B, G at
    /// bits 12-15); bit 16 = unusable.
    #[prost(uint32, tag = "4")]
    pub attributes: u32,
}

/// Segments, descriptor tables and control registers.
#[derive(Clone, PartialEq, Message)]
pub struct System {
    /// es, cs, ss, ds, fs, gs, ldtr, tr in this order.
    #[prost(message, repeated, tag = "1")]
    pub segments: Vec<Segment>,
    /// GDTR base.
    #[prost(fixed64, tag = "2")]
    pub gdt_base: u64,
    /// GDTR limit.
    #[prost(uint32, tag = "3")]
    pub gdt_limit: u32,
    /// IDTR base.
    #[prost(fixed64, tag = "4")]
    pub idt_base: u64,
    /// IDTR limit.
    #[prost(uint32, tag = "5")]
    pub idt_limit: u32,
    /// CR0.
    #[prost(fixed64, tag = "6")]
    pub cr0: u64,
    /// CR2.
    #[prost(fixed64, tag = "7")]
    pub cr2: u64,
    /// CR3.
    #[prost(fixed64, tag = "8")]
    pub cr3: u64,
    /// CR4.
    #[prost(fixed64, tag = "9")]
    pub cr4: u64,
    /// CR8 (task priority).
    #[prost(fixed64, tag = "10")]
    pub cr8: u64,
    /// EFER.
    #[prost(fixed64, tag = "11")]
    pub efer: u64,
    /// IA32_APIC_BASE.
    #[prost(fixed64, tag = "12")]
    pub apic_base: u64,
}

/// Extended state in the standard (non-compacted) XSAVE layout (Intel SDM 1 §13.4) and XCR0.
#[derive(Clone, PartialEq, Message)]
pub struct Xsave {
    /// The area; at least 576 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub area: Vec<u8>,
    /// XCR0.
    #[prost(fixed64, tag = "2")]
    pub xcr0: u64,
}

/// One MSR.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Msr {
    /// Index.
    #[prost(uint32, tag = "1")]
    pub index: u32,
    /// Value.
    #[prost(fixed64, tag = "2")]
    pub value: u64,
}

/// Model-specific registers. Setting replaces those named and leaves the rest.
#[derive(Clone, PartialEq, Message)]
pub struct Msrs {
    /// The registers, in the order to be set.
    #[prost(message, repeated, tag = "1")]
    pub msrs: Vec<Msr>,
}

/// The local APIC's register page in the xAPIC layout (1 KiB), whatever mode it is in.
#[derive(Clone, PartialEq, Message)]
pub struct Apic {
    /// 1,024 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub registers: Vec<u8>,
}

/// Events that wait for delivery, and interrupt shadows.
#[derive(Clone, PartialEq, Message)]
pub struct Events {
    /// An exception waits.
    #[prost(bool, tag = "1")]
    pub exception_pending: bool,
    /// Its vector.
    #[prost(uint32, tag = "2")]
    pub exception_vector: u32,
    /// Its error code, if it has one.
    #[prost(uint32, optional, tag = "3")]
    pub exception_error: Option<u32>,
    /// An external interrupt was accepted and waits for injection; its vector.
    #[prost(uint32, optional, tag = "4")]
    pub interrupt: Option<u32>,
    /// An NMI waits.
    #[prost(bool, tag = "5")]
    pub nmi_pending: bool,
    /// NMIs are masked until IRET.
    #[prost(bool, tag = "6")]
    pub nmi_masked: bool,
    /// The instruction after STI or MOV SS is next.
    #[prost(bool, tag = "7")]
    pub interrupt_shadow: bool,
}

/// Whether the vCPU runs.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Run {
    /// See [`RunState`].
    #[prost(enumeration = "RunState", tag = "1")]
    pub state: i32,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum RunState {
    /// Executes instructions.
    Running = 0,
    /// Executed HLT and waits for an interrupt.
    Halted = 1,
    /// An AP that was not started.
    WaitForStart = 2,
}

/// DR0-DR3, DR6, DR7.
#[derive(Clone, PartialEq, Message)]
pub struct Debug {
    /// Six values: DR0, DR1, DR2, DR3, DR6, DR7.
    #[prost(fixed64, repeated, tag = "1")]
    pub regs: Vec<u64>,
}

/// Why an element could not be read or set.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The engine does not keep it.
    #[error("The engine keeps no {0:?} state")]
    Unknown(StateId),
    /// A value cannot be accepted.
    #[error("The {id:?} state has a bad {what}")]
    Bad {
        /// The element.
        id: StateId,
        /// What is wrong in it.
        what: &'static str,
    },
    /// The bytes were written by a newer version.
    #[error("The {id:?} state has version {version}; this program knows up to {known}")]
    Newer {
        /// The element.
        id: StateId,
        /// Its version.
        version: u16,
        /// The newest known.
        known: u16,
    },
    /// The bytes cannot be decoded.
    #[error("The {id:?} state cannot be decoded")]
    Decode {
        /// The element.
        id: StateId,
        /// The cause.
        #[source]
        source: prost::DecodeError,
    },
    /// The host refused.
    #[error("The host refused the {id:?} state")]
    Host {
        /// The element.
        id: StateId,
        /// Its reason.
        #[source]
        source: std::io::Error,
    },
}

/// The version that [`StateElement::encode`] writes for every element today.
pub const VERSION: u16 = 1;

/// An element as a snapshot holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Which element.
    pub id: u16,
    /// The version of its encoding.
    pub version: u16,
    /// The encoding.
    pub bytes: Vec<u8>,
}

macro_rules! elements {
    ($($name:ident),*) => {
        impl StateId {
            /// Every id.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            fn decode(self, bytes: &[u8]) -> Result<StateElement, prost::DecodeError> {
                Ok(match self { $(Self::$name => StateElement::$name($name::decode(bytes)?)),* })
            }
        }

        impl StateElement {
            /// Which element this is.
            pub fn id(&self) -> StateId {
                match self { $(Self::$name(_) => StateId::$name),* }
            }

            /// The element as a snapshot holds it.
            pub fn encode(&self) -> Encoded {
                let bytes = match self { $(Self::$name(value) => value.encode_to_vec()),* };
                Encoded { id: self.id() as u16, version: VERSION, bytes }
            }
        }
    };
}
elements!(Gpr, System, Xsave, Msrs, Apic, Events, Run, Debug);

impl Encoded {
    /// The element that was encoded; `None` for an id that this program does not know.
    pub fn decode(&self) -> Option<Result<StateElement, StateError>> {
        let id = *StateId::ALL.iter().find(|id| **id as u16 == self.id)?;
        if self.version > VERSION {
            return Some(Err(StateError::Newer { id, version: self.version, known: VERSION }));
        }
        Some(id.decode(&self.bytes).map_err(|source| StateError::Decode { id, source }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_back_as_they_were() {
        for element in [
            StateElement::Gpr(Gpr { regs: (0..16).collect(), rip: u64::MAX, rflags: 2 }),
            StateElement::Events(Events { exception_error: Some(0), ..Events::default() }),
            StateElement::Run(Run { state: RunState::WaitForStart.into() }),
        ] {
            let encoded = element.encode();
            assert_eq!((encoded.id, encoded.version), (element.id() as u16, VERSION));
            assert_eq!(encoded.decode().unwrap().unwrap(), element);
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let encoded = StateElement::Run(Run::default()).encode();
        let newer = Encoded { version: VERSION + 1, ..encoded.clone() }.decode().unwrap();
        assert!(
            matches!(newer, Err(StateError::Newer { id: StateId::Run, version, known }) if version == VERSION + 1 && known == VERSION)
        );
        let damaged = Encoded { bytes: vec![0xff; 3], ..encoded.clone() }.decode().unwrap();
        assert!(matches!(damaged, Err(StateError::Decode { id: StateId::Run, .. })));
        assert!(Encoded { id: 64, ..encoded }.decode().is_none(), "an id of another architecture");
    }

    #[test]
    fn the_numbers_of_a_snapshot_stay() {
        let numbers: Vec<(StateId, u16)> = StateId::ALL.iter().map(|id| (*id, *id as u16)).collect();
        let fixed = [
            (StateId::Gpr, 1),
            (StateId::System, 2),
            (StateId::Xsave, 3),
            (StateId::Msrs, 4),
            (StateId::Apic, 5),
            (StateId::Events, 6),
            (StateId::Run, 7),
            (StateId::Debug, 8),
        ];
        assert_eq!(numbers, fixed);
    }
}
