//! The local APIC (Intel SDM 3A chapter 12): xAPIC page and x2APIC MSRs, interrupts between vCPUs, MSIs, the timer.
//!
//! What other threads touch is in [`Inbox`] and atomic, posted-interrupt style: a sender sets a bit in the IRR and then
//! notifies the vCPU; no lock is taken on either side. The rest belongs to the vCPU's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst};

/// Register offsets in the xAPIC page; the x2APIC MSR is `0x800 + offset / 16`.
mod offset {
    pub(super) const ID: u32 = 0x20;
    pub(super) const VERSION: u32 = 0x30;
    pub(super) const TPR: u32 = 0x80;
    pub(super) const APR: u32 = 0x90;
    pub(super) const PPR: u32 = 0xa0;
    pub(super) const EOI: u32 = 0xb0;
    pub(super) const RRD: u32 = 0xc0;
    pub(super) const LDR: u32 = 0xd0;
    pub(super) const DFR: u32 = 0xe0;
    pub(super) const SVR: u32 = 0xf0;
    pub(super) const ISR: u32 = 0x100;
    pub(super) const TMR: u32 = 0x180;
    pub(super) const IRR: u32 = 0x200;
    pub(super) const ESR: u32 = 0x280;
    pub(super) const LVT_CMCI: u32 = 0x2f0;
    pub(super) const ICR_LOW: u32 = 0x300;
    pub(super) const ICR_HIGH: u32 = 0x310;
    pub(super) const LVT_TIMER: u32 = 0x320;
    pub(super) const LVT_ERROR: u32 = 0x370;
    pub(super) const TIMER_INITIAL: u32 = 0x380;
    pub(super) const TIMER_CURRENT: u32 = 0x390;
    pub(super) const TIMER_DIVIDE: u32 = 0x3e0;
    pub(super) const SELF_IPI: u32 = 0x3f0;
}

const VERSION: u32 = 0x0005_0014; // six LVT entries, integrated APIC
const LVT_MASKED: u32 = 1 << 16;
const SVR_ENABLED: u32 = 1 << 8;
const BASE_BSP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_ADDRESS: u64 = 0xfee0_0000;
/// LVT entries by offset: CMCI is kept but not offered.
const LVT_COUNT: usize = 6;

/// Delivery modes of an ICR, an LVT entry or an MSI (SDM 3A §12.6.1).
mod delivery {
    pub(super) const FIXED: u32 = 0;
    pub(super) const LOWEST: u32 = 1;
    pub(super) const NMI: u32 = 4;
}

/// How a vCPU's APIC currently answers; published for senders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// IA32_APIC_BASE.EN is 0.
    Disabled = 0,
    /// The MMIO page.
    XApic = 1,
    /// MSRs.
    X2Apic = 2,
}

/// What other threads may touch of one local APIC.
#[derive(Debug)]
pub struct Inbox {
    id: u32,
    irr: [AtomicU32; 8],
    nmi: AtomicBool,
    mode: AtomicU8,
    enabled: AtomicBool,
    ldr: AtomicU32,
    dfr: AtomicU32,
}

impl Inbox {
    fn new(id: u32) -> Self {
        Self {
            id,
            irr: Default::default(),
            nmi: AtomicBool::new(false),
            mode: AtomicU8::new(Mode::XApic as u8),
            enabled: AtomicBool::new(false),
            ldr: AtomicU32::new(0),
            dfr: AtomicU32::new(u32::MAX),
        }
    }

    /// Requests a fixed interrupt. The caller notifies the vCPU afterwards.
    pub fn post(&self, vector: u8) {
        self.irr[usize::from(vector / 32)].fetch_or(1 << (vector % 32), SeqCst);
    }

    /// Requests an NMI. The caller notifies the vCPU afterwards.
    pub fn post_nmi(&self) {
        self.nmi.store(true, SeqCst);
    }

    /// Takes a requested NMI.
    pub fn take_nmi(&self) -> bool {
        self.nmi.swap(false, SeqCst)
    }

    /// Whether an NMI is requested.
    pub fn nmi_pending(&self) -> bool {
        self.nmi.load(SeqCst)
    }

    fn highest(&self) -> Option<u8> {
        self.irr.iter().enumerate().rev().find_map(|(index, word)| top(word.load(SeqCst), index))
    }

    fn matches(&self, destination: u32, logical: bool) -> bool {
        let x2 = self.mode.load(SeqCst) == Mode::X2Apic as u8;
        if destination == u32::MAX || (!x2 && destination == 0xff) {
            return true;
        }
        if !logical {
            return destination == self.id;
        }
        let ldr = self.ldr.load(SeqCst);
        if x2 {
            // SDM 3A §12.12.10.2: cluster in the high half, one bit per APIC in the low half.
            return ldr >> 16 == destination >> 16 && ldr & destination & 0xffff != 0;
        }
        let mine = ldr >> 24;
        match self.dfr.load(SeqCst) >> 28 {
            0xf => mine & destination & 0xff != 0,
            0 => mine >> 4 == destination >> 4 & 0xf && mine & destination & 0xf != 0,
            _ => false,
        }
    }
}

/// Every local APIC of a VM: routes messages to inboxes.
pub struct ApicBus {
    inboxes: Vec<Arc<Inbox>>,
    notify: Box<dyn Fn(u32) + Send + Sync>,
    turn: AtomicU32,
}

impl ApicBus {
    /// A bus for `count` vCPUs with APIC ids 0 to `count - 1`. `notify` is called with a vCPU's number after something
    /// was posted to it, on the sender's thread.
    pub fn new(count: u32, notify: Box<dyn Fn(u32) + Send + Sync>) -> Self {
        Self { inboxes: (0..count).map(|id| Arc::new(Inbox::new(id))).collect(), notify, turn: AtomicU32::new(0) }
    }

    /// The inbox of a vCPU.
    pub fn inbox(&self, index: u32) -> Option<&Arc<Inbox>> {
        self.inboxes.get(index as usize)
    }

    /// Delivers an MSI (SDM 3A §12.11); whatever names no APIC or no known delivery mode is dropped, as on hardware.
    pub fn signal_msi(&self, msi: hv::Msi) {
        // Bits 5-11 carry destination bits 8-14, as KVM's extended destination id does.
        let destination = (msi.address >> 12 & 0xff) as u32 | ((msi.address >> 5 & 0x7f) as u32) << 8;
        self.route(Message {
            vector: msi.data as u8,
            mode: msi.data >> 8 & 7,
            destination,
            logical: msi.address & 4 != 0,
            lowest_hint: msi.address & 8 != 0,
        });
    }

    fn route(&self, message: Message) {
        let mut targets = self
            .inboxes
            .iter()
            .filter(|inbox| {
                inbox.mode.load(SeqCst) != Mode::Disabled as u8 && inbox.matches(message.destination, message.logical)
            })
            .peekable();
        if targets.peek().is_none() {
            return;
        }
        if message.mode == delivery::LOWEST || (message.lowest_hint && message.logical) {
            let all: Vec<_> = targets.collect();
            let turn = self.turn.fetch_add(1, SeqCst) as usize % all.len();
            if let Some(inbox) = all.get(turn) {
                self.hand_over(inbox, delivery::FIXED, message.vector);
            }
            return;
        }
        targets.for_each(|inbox| self.hand_over(inbox, message.mode, message.vector));
    }

    fn hand_over(&self, inbox: &Inbox, mode: u32, vector: u8) {
        match mode {
            delivery::FIXED | delivery::LOWEST if vector >= 16 && inbox.enabled.load(SeqCst) => inbox.post(vector),
            delivery::NMI => inbox.post_nmi(),
            // INIT and start-up IPIs: APs start through the mailbox. SMI, ExtINT: nothing here sends them.
            _ => return,
        }
        (self.notify)(inbox.id);
    }
}

struct Message {
    vector: u8,
    mode: u32,
    destination: u32,
    logical: bool,
    lowest_hint: bool,
}

/// A register write or read that the APIC refuses: #GP for an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The clock readings that the timer needs.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic host time in nanoseconds.
    pub ns: u64,
    /// The guest's TSC.
    pub tsc: u64,
    /// TSC ticks in a millisecond.
    pub tsc_khz: u64,
}

/// One local APIC, the part of its vCPU's thread.
pub struct LocalApic {
    bus: Arc<ApicBus>,
    inbox: Arc<Inbox>,
    base: u64,
    tpr: u8,
    isr: [u32; 8],
    svr: u32,
    esr: u32,
    esr_latched: u32,
    icr: u64,
    lvt: [u32; LVT_COUNT],
    cmci: u32,
    initial: u32,
    divide: u32,
    due_ns: u64,
    armed: bool,
    tsc_deadline: u64,
}

impl LocalApic {
    /// The APIC of vCPU `index` after reset (SDM 3A §12.4.7.1): xAPIC mode, software-disabled.
    ///
    /// # Panics
    /// If the bus has no such vCPU.
    pub fn new(bus: Arc<ApicBus>, index: u32) -> Self {
        let inbox = bus.inbox(index).expect("a vCPU of this VM").clone();
        let base = BASE_ADDRESS | BASE_ENABLED | if index == 0 { BASE_BSP } else { 0 };
        Self {
            bus,
            inbox,
            base,
            tpr: 0,
            isr: [0; 8],
            svr: 0xff,
            esr: 0,
            esr_latched: 0,
            icr: 0,
            lvt: [LVT_MASKED; LVT_COUNT],
            cmci: LVT_MASKED,
            initial: 0,
            divide: 0,
            due_ns: 0,
            armed: false,
            tsc_deadline: 0,
        }
    }

    /// What other threads may touch.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// The bus that this APIC is on.
    pub fn bus(&self) -> &Arc<ApicBus> {
        &self.bus
    }

    /// The current mode.
    pub fn mode(&self) -> Mode {
        match (self.base & BASE_ENABLED != 0, self.base & BASE_X2APIC != 0) {
            (false, _) => Mode::Disabled,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE: refuses reserved bits, another address and the transitions of SDM 3A table 12-5.
    pub fn set_base(&mut self, value: u64) -> Result<(), Refused> {
        const KNOWN: u64 = BASE_BSP | BASE_X2APIC | BASE_ENABLED;
        let mode = value & (BASE_ENABLED | BASE_X2APIC);
        let legal = value & !KNOWN == BASE_ADDRESS
            && mode != BASE_X2APIC
            && !(self.mode() == Mode::X2Apic && mode == BASE_ENABLED)
            && !(self.mode() == Mode::Disabled && mode == BASE_ENABLED | BASE_X2APIC);
        if !legal {
            return Err(Refused);
        }
        self.force_base(value);
        Ok(())
    }

    fn force_base(&mut self, value: u64) {
        self.base = value & !BASE_BSP | if self.inbox.id == 0 { BASE_BSP } else { 0 };
        if self.mode() == Mode::X2Apic {
            let id = self.inbox.id;
            self.inbox.ldr.store((id >> 4) << 16 | 1 << (id & 15), SeqCst);
        }
        self.publish();
    }

    fn publish(&self) {
        self.inbox.mode.store(self.mode() as u8, SeqCst);
        self.inbox.enabled.store(self.svr & SVR_ENABLED != 0, SeqCst);
    }

    /// CR8: the high four bits of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    /// Writes CR8 (already checked to be below 16).
    pub fn set_cr8(&mut self, value: u64) {
        self.tpr = (value as u8 & 15) << 4;
    }

    fn in_service(&self) -> u8 {
        self.isr.iter().enumerate().rev().find_map(|(index, word)| top(*word, index)).unwrap_or(0)
    }

    fn ppr(&self) -> u8 {
        let isr = self.in_service();
        if self.tpr >> 4 >= isr >> 4 { self.tpr } else { isr & 0xf0 }
    }

    /// The vector that would be delivered now if interrupts are on.
    pub fn pending(&self) -> Option<u8> {
        self.requested().filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// The highest requested vector, whatever the task priority says.
    pub fn requested(&self) -> Option<u8> {
        if self.svr & SVR_ENABLED == 0 || self.mode() == Mode::Disabled {
            return None;
        }
        self.inbox.highest()
    }

    /// Takes the vector of [`LocalApic::pending`] into service.
    pub fn accept(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        let (index, bit) = (usize::from(vector / 32), 1 << (vector % 32));
        self.inbox.irr[index].fetch_and(!bit, SeqCst);
        self.isr[index] |= bit;
        Some(vector)
    }

    /// Reads the MMIO page: 32 bits at a multiple of 16; anything else reads as zero. Zero outside xAPIC mode.
    pub fn read_mmio(&mut self, at: u32, now: Now) -> u32 {
        if self.mode() != Mode::XApic || at % 16 != 0 {
            return 0;
        }
        match at {
            offset::ID => self.inbox.id << 24,
            offset::ICR_HIGH => (self.icr >> 32) as u32,
            offset::DFR => self.inbox.dfr.load(SeqCst),
            _ => self.read(at, now).unwrap_or(0),
        }
    }

    /// Writes the MMIO page.
    pub fn write_mmio(&mut self, at: u32, value: u32, now: Now) {
        if self.mode() != Mode::XApic || at % 16 != 0 {
            return;
        }
        match at {
            offset::ICR_LOW => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value);
                self.send((self.icr >> 56) as u32, value);
            }
            offset::ICR_HIGH => self.icr = self.icr & 0xffff_ffff | u64::from(value) << 32,
            offset::LDR => self.inbox.ldr.store(value & 0xff00_0000, SeqCst),
            offset::DFR => self.inbox.dfr.store(value | 0x0fff_ffff, SeqCst),
            offset::ESR => (self.esr_latched, self.esr) = (self.esr, 0),
            // Registers that are read-only or absent ignore writes here; only MSRs fault.
            _ => drop(self.write(at, value, now)),
        }
    }

    /// Reads MSR 0x800-0x8ff.
    pub fn read_msr(&mut self, index: u32, now: Now) -> Result<u64, Refused> {
        if self.mode() != Mode::X2Apic {
            return Err(Refused);
        }
        match msr_offset(index)? {
            offset::ID => Ok(u64::from(self.inbox.id)),
            offset::ICR_LOW => Ok(self.icr),
            offset::ICR_HIGH | offset::DFR | offset::EOI | offset::SELF_IPI => Err(Refused),
            at => self.read(at, now).map(u64::from),
        }
    }

    /// Writes MSR 0x800-0x8ff.
    pub fn write_msr(&mut self, index: u32, value: u64, now: Now) -> Result<(), Refused> {
        if self.mode() != Mode::X2Apic {
            return Err(Refused);
        }
        match msr_offset(index)? {
            offset::ICR_LOW => {
                self.icr = value & !(1 << 12);
                self.send((value >> 32) as u32, value as u32);
                Ok(())
            }
            offset::SELF_IPI if value <= 0xff => {
                self.bus.hand_over(&self.inbox, delivery::FIXED, value as u8);
                Ok(())
            }
            offset::EOI | offset::ESR if value != 0 => Err(Refused),
            offset::ESR => {
                (self.esr_latched, self.esr) = (self.esr, 0);
                Ok(())
            }
            at if value >> 32 == 0 => self.write(at, value as u32, now),
            _ => Err(Refused),
        }
    }

    fn read(&self, at: u32, now: Now) -> Result<u32, Refused> {
        Ok(match at {
            offset::VERSION => VERSION,
            offset::TPR => u32::from(self.tpr),
            offset::APR | offset::RRD | offset::EOI => 0,
            offset::PPR => u32::from(self.ppr()),
            offset::LDR => self.inbox.ldr.load(SeqCst),
            offset::SVR => self.svr,
            offset::ISR..offset::TMR => word(at, offset::ISR).map_or(0, |index| self.isr[index]),
            offset::TMR..offset::IRR => 0, // every source here is edge-triggered
            offset::IRR..offset::ESR => word(at, offset::IRR).map_or(0, |index| self.inbox.irr[index].load(SeqCst)),
            offset::ESR => self.esr_latched,
            offset::ICR_LOW => self.icr as u32,
            offset::LVT_CMCI => self.cmci,
            offset::LVT_TIMER..=offset::LVT_ERROR => self.lvt[lvt_index(at)?],
            offset::TIMER_INITIAL => self.initial,
            offset::TIMER_CURRENT => self.current_count(now),
            offset::TIMER_DIVIDE => self.divide,
            _ => return Err(Refused),
        })
    }

    fn write(&mut self, at: u32, value: u32, now: Now) -> Result<(), Refused> {
        match at {
            offset::TPR => self.tpr = value as u8,
            offset::EOI => self.end_of_interrupt(),
            offset::SVR => {
                self.svr = value & 0x1ff;
                if self.svr & SVR_ENABLED == 0 {
                    self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
                }
                self.publish();
            }
            offset::LVT_CMCI => self.cmci = value | LVT_MASKED,
            offset::LVT_TIMER..=offset::LVT_ERROR => self.write_lvt(at, value)?,
            offset::TIMER_INITIAL => {
                if self.timer_mode() != TimerMode::Deadline {
                    self.initial = value;
                    self.due_ns = now.ns.saturating_add(self.period_ns());
                    self.armed = value != 0;
                }
            }
            offset::TIMER_DIVIDE => self.divide = value & 0xb,
            _ => return Err(Refused),
        }
        Ok(())
    }

    fn write_lvt(&mut self, at: u32, value: u32) -> Result<(), Refused> {
        let index = lvt_index(at)?;
        let before = self.timer_mode();
        let software_off = if self.svr & SVR_ENABLED == 0 { LVT_MASKED } else { 0 };
        let known = if at == offset::LVT_TIMER { 0x7_00ff } else { 0x1_a7ff };
        self.lvt[index] = value & known | software_off;
        if self.timer_mode() != before {
            // SDM 3A §12.5.4.1: a change of mode disarms the timer.
            self.armed = false;
            self.tsc_deadline = 0;
            self.initial = 0;
        }
        Ok(())
    }

    fn end_of_interrupt(&mut self) {
        if let Some(index) = self.isr.iter().rposition(|word| *word != 0) {
            let highest = 31 - self.isr[index].leading_zeros();
            self.isr[index] &= !(1 << highest);
        }
    }

    fn send(&mut self, destination: u32, low: u32) {
        let (vector, mode) = (low as u8, low >> 8 & 7);
        if (mode == delivery::FIXED || mode == delivery::LOWEST) && vector < 16 {
            self.esr |= 1 << 5; // send illegal vector
            return;
        }
        let me = self.inbox.clone();
        match low >> 18 & 3 {
            0 => self.bus.route(Message { vector, mode, destination, logical: low & 1 << 11 != 0, lowest_hint: false }),
            1 => self.bus.hand_over(&me, mode, vector),
            shorthand => {
                for inbox in &self.bus.inboxes {
                    if shorthand == 2 || inbox.id != me.id {
                        self.bus.hand_over(inbox, mode, vector);
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TimerMode {
    OneShot,
    Periodic,
    Deadline,
}

/// The timer (SDM 3A §12.5.4). Its input clock is 1 GHz, as KVM's is.
impl LocalApic {
    fn timer_mode(&self) -> TimerMode {
        match self.lvt[0] >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            _ => TimerMode::Deadline,
        }
    }

    fn divisor(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn period_ns(&self) -> u64 {
        u64::from(self.initial).saturating_mul(self.divisor()).max(1)
    }

    fn current_count(&self, now: Now) -> u32 {
        if !self.armed {
            return 0;
        }
        (self.due_ns.saturating_sub(now.ns) / self.divisor()) as u32
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE: arms with the guest TSC value, disarms with 0, is ignored in the other modes.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.timer_mode() == TimerMode::Deadline {
            self.tsc_deadline = value;
            self.armed = value != 0;
        }
    }

    /// When the timer fires next, in nanoseconds of [`Now::ns`]; `None` if it is not armed.
    pub fn deadline_ns(&self, now: Now) -> Option<u64> {
        if !self.armed {
            return None;
        }
        if self.timer_mode() == TimerMode::Deadline {
            let ticks = u128::from(self.tsc_deadline.saturating_sub(now.tsc));
            let wait = (ticks * 1_000_000).div_ceil(u128::from(now.tsc_khz.max(1)));
            return Some(now.ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        Some(self.due_ns)
    }

    /// Fires the timer if its time has come: posts its vector to this APIC (without notifying) and says so.
    pub fn run_timer(&mut self, now: Now) -> bool {
        if !self.deadline_ns(now).is_some_and(|due| due <= now.ns) {
            return false;
        }
        match self.timer_mode() {
            TimerMode::Periodic => {
                // Missed periods are merged into one interrupt, as a masked CPU would see them.
                let periods = now.ns.saturating_sub(self.due_ns) / self.period_ns() + 1;
                self.due_ns = self.due_ns.saturating_add(periods.saturating_mul(self.period_ns()));
            }
            TimerMode::OneShot => self.armed = false,
            TimerMode::Deadline => (self.armed, self.tsc_deadline) = (false, 0),
        }
        let vector = self.lvt[0] as u8;
        if self.lvt[0] & LVT_MASKED == 0 && vector >= 16 {
            self.inbox.post(vector);
        }
        true
    }
}

/// Saved state in the xAPIC register layout.
impl LocalApic {
    /// The register page, 1,024 bytes; the rest of the state is IA32_APIC_BASE and IA32_TSC_DEADLINE.
    pub fn save(&self, now: Now) -> Vec<u8> {
        let mut page = vec![0; 1024];
        let mut put = |at: u32, value: u32| {
            if let Some(bytes) = page.get_mut(at as usize..at as usize + 4) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(offset::ID, if self.mode() == Mode::X2Apic { self.inbox.id } else { self.inbox.id << 24 });
        put(offset::DFR, self.inbox.dfr.load(SeqCst));
        put(offset::ICR_HIGH, (self.icr >> 32) as u32);
        for at in (offset::VERSION..0x400).step_by(16).filter(|at| ![offset::DFR, offset::ICR_HIGH].contains(at)) {
            put(at, self.read(at, now).unwrap_or(0));
        }
        page
    }

    /// Takes a page made by [`LocalApic::save`] together with the APIC base.
    pub fn restore(&mut self, base: u64, page: &[u8], now: Now) -> Result<(), Refused> {
        let get = |at: u32| -> Result<u32, Refused> {
            let bytes = page.get(at as usize..at as usize + 4).ok_or(Refused)?;
            Ok(u32::from_le_bytes(bytes.try_into().map_err(|_| Refused)?))
        };
        if base & !(BASE_BSP | BASE_X2APIC | BASE_ENABLED) != BASE_ADDRESS || page.len() != 1024 {
            return Err(Refused);
        }
        self.inbox.ldr.store(get(offset::LDR)?, SeqCst);
        self.inbox.dfr.store(get(offset::DFR)? | 0x0fff_ffff, SeqCst);
        self.tpr = get(offset::TPR)? as u8;
        self.svr = get(offset::SVR)? & 0x1ff;
        self.icr = u64::from(get(offset::ICR_HIGH)?) << 32 | u64::from(get(offset::ICR_LOW)?);
        for index in 0..8 {
            self.isr[index as usize] = get(offset::ISR + index * 16)?;
            self.inbox.irr[index as usize].store(get(offset::IRR + index * 16)?, SeqCst);
        }
        for (index, entry) in self.lvt.iter_mut().enumerate() {
            *entry = get(offset::LVT_TIMER + index as u32 * 16)?;
        }
        self.cmci = get(offset::LVT_CMCI)? | LVT_MASKED;
        self.esr_latched = get(offset::ESR)?;
        self.divide = get(offset::TIMER_DIVIDE)? & 0xb;
        self.initial = get(offset::TIMER_INITIAL)?;
        let left = u64::from(get(offset::TIMER_CURRENT)?).saturating_mul(self.divisor());
        self.armed = left != 0 && self.timer_mode() != TimerMode::Deadline;
        self.due_ns = now.ns.saturating_add(left);
        self.tsc_deadline = 0;
        self.force_base(base);
        Ok(())
    }
}

fn top(word: u32, index: usize) -> Option<u8> {
    (word != 0).then(|| (index as u32 * 32 + 31 - word.leading_zeros()) as u8)
}

fn word(at: u32, start: u32) -> Option<usize> {
    let index = (at - start) / 16;
    (index < 8).then_some(index as usize)
}

fn lvt_index(at: u32) -> Result<usize, Refused> {
    let index = at.checked_sub(offset::LVT_TIMER).ok_or(Refused)? / 16;
    if (index as usize) < LVT_COUNT { Ok(index as usize) } else { Err(Refused) }
}

fn msr_offset(index: u32) -> Result<u32, Refused> {
    let register = index.checked_sub(0x800).ok_or(Refused)?;
    if register < 0x40 { Ok(register * 16) } else { Err(Refused) }
}

#[cfg(test)]
mod tests;
