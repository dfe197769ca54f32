//! The local APIC (Intel SDM 3A chapter 11) in xAPIC and x2APIC mode, and message routing between vCPUs.
//!
//! Requests come from any thread as bits set in [`ApicPort`]; everything else belongs to the vCPU's thread.

mod timer;

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crate::cpu::{Cpu, flag};
use crate::env::Env;
use crate::exception::{Exception, deliver_interrupt};
use crate::exec::Step;

pub use self::timer::{disarm_thread, rearm_thread, sleep_ticks};
pub(crate) use self::timer::{set_tsc_deadline, tsc_changed, tsc_deadline};

/// The part of an APIC that other threads reach.
#[derive(Debug)]
pub struct ApicPort {
    id: u32,
    irr: [AtomicU32; 8],
    nmi: AtomicBool,
    software_enabled: AtomicBool,
    x2apic: AtomicBool,
    logical: AtomicU32,
    flat: AtomicBool,
    /// When the next timer event is by the VM's clock, `u64::MAX` for none.
    pub(crate) deadline: AtomicU64,
    /// The timer thread watches the deadline.
    pub(crate) armed: AtomicBool,
    kick: AtomicPtr<AtomicU8>,
    thread: OnceLock<Thread>,
}

impl ApicPort {
    /// The port of the APIC with this id.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            irr: Default::default(),
            nmi: AtomicBool::new(false),
            software_enabled: AtomicBool::new(false),
            x2apic: AtomicBool::new(false),
            logical: AtomicU32::new(0),
            flat: AtomicBool::new(true),
            deadline: AtomicU64::new(u64::MAX),
            armed: AtomicBool::new(false),
            kick: AtomicPtr::new(std::ptr::null_mut()),
            thread: OnceLock::new(),
        }
    }

    /// Names the byte and the thread that [`Self::kick`] reaches. `kick` must live as long as this port is used.
    ///
    /// # Safety
    /// `kick` must point to an `AtomicU8` that outlives every use of this port.
    pub unsafe fn attach(&self, kick: *mut AtomicU8, thread: Thread) {
        self.kick.store(kick, Ordering::SeqCst);
        let _ = self.thread.set(thread);
    }

    /// Undoes [`Self::attach`] for the kick byte.
    pub fn detach(&self) {
        self.kick.store(std::ptr::null_mut(), Ordering::SeqCst);
    }

    /// Gets the vCPU out of its executor or its wait.
    pub fn kick(&self) {
        let byte = self.kick.load(Ordering::SeqCst);
        if !byte.is_null() {
            // SAFETY: `attach` promised that the byte lives as long as the port is used.
            unsafe { (*byte).store(1, Ordering::SeqCst) };
        }
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Requests a vector.
    pub fn request(&self, vector: u8) {
        self.irr[(vector >> 5) as usize].fetch_or(1 << (vector & 31), Ordering::SeqCst);
        self.kick();
    }

    fn request_nmi(&self) {
        self.nmi.store(true, Ordering::SeqCst);
        self.kick();
    }

    fn matches(&self, message: &Message) -> bool {
        let x2apic = self.x2apic.load(Ordering::Relaxed);
        if !message.logical {
            return message.destination == self.id
                || message.destination == u32::MAX
                || message.destination == 0xff && (!x2apic || message.short);
        }
        let logical = self.logical.load(Ordering::Relaxed);
        if x2apic {
            let cluster = message.destination >> 16 == logical >> 16;
            return cluster && message.destination & logical & 0xffff != 0;
        }
        let (wanted, own) = (message.destination & 0xff, logical >> 24);
        if self.flat.load(Ordering::Relaxed) {
            wanted & own != 0
        } else {
            wanted >> 4 == own >> 4 && wanted & own & 0xf != 0
        }
    }
}

/// An interrupt on its way to one or more APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC id or logical destination.
    pub destination: u32,
    /// The destination is logical.
    pub logical: bool,
    /// The destination has 8 bits only (xAPIC, MSI), so that 0xff is everyone.
    pub short: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority, 4 NMI. Others are ignored.
    pub mode: u8,
    /// The vector.
    pub vector: u8,
}

impl Message {
    /// The message of an MSI (Intel SDM 3A §11.11).
    pub fn from_msi(address: u64, data: u32) -> Self {
        Self {
            destination: (address >> 12 & 0xff) as u32,
            logical: address >> 2 & 1 != 0,
            short: true,
            mode: (data >> 8 & 7) as u8,
            vector: data as u8,
        }
    }
}

fn send(port: &ApicPort, mode: u8, vector: u8) {
    match mode {
        0 | 1 if vector >= 16 => port.request(vector),
        4 => port.request_nmi(),
        _ => {}
    }
}

pub(crate) fn route(ports: &[Arc<ApicPort>], message: Message) {
    for port in ports.iter().filter(|port| port.matches(&message)) {
        if message.mode != 4 && !port.software_enabled.load(Ordering::Relaxed) {
            continue;
        }
        send(port, message.mode, message.vector);
        if message.mode == 1 {
            return;
        }
    }
}

/// The vCPU's own part.
#[derive(Debug)]
pub struct Apic {
    /// The shared part.
    pub port: Arc<ApicPort>,
    /// IA32_APIC_BASE.
    pub base: u64,
    tpr: u8,
    svr: u32,
    esr: u32,
    isr: [u32; 8],
    icr: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    initial_count: u32,
    divide: u32,
    /// IA32_TSC_DEADLINE in guest terms.
    tsc_deadline: u64,
}

const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_BSP: u64 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
impl Apic {
    /// An APIC after reset.
    pub fn new(id: u32) -> Self {
        Self::with_port(Arc::new(ApicPort::new(id)))
    }

    /// An APIC after reset over a port that others know already.
    pub fn with_port(port: Arc<ApicPort>) -> Self {
        let id = port.id;
        Self {
            port,
            base: 0xfee0_0000 | BASE_ENABLE | if id == 0 { BASE_BSP } else { 0 },
            tpr: 0,
            svr: 0xff,
            esr: 0,
            isr: [0; 8],
            icr: 0,
            lvt: [LVT_MASKED; 6],
            initial_count: 0,
            divide: 0,
            tsc_deadline: 0,
        }
    }

    /// The task priority as CR8 has it.
    pub fn cr8(&self) -> u64 {
        u64::from(self.tpr >> 4)
    }

    fn x2apic(&self) -> bool {
        self.base & (BASE_ENABLE | BASE_X2APIC) == BASE_ENABLE | BASE_X2APIC
    }

    fn in_service(&self) -> u8 {
        highest(|index| self.isr[index]).unwrap_or(0)
    }

    fn ppr(&self) -> u8 {
        let service = self.in_service() & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr } else { service }
    }

    fn requested(&self) -> Option<u8> {
        highest(|index| self.port.irr[index].load(Ordering::SeqCst))
    }

    fn publish(&self) {
        self.port
            .software_enabled
            .store(self.svr & 0x100 != 0 && self.base & BASE_ENABLE != 0, Ordering::SeqCst);
        self.port.x2apic.store(self.x2apic(), Ordering::SeqCst);
        if self.x2apic() {
            let id = self.port.id;
            self.port.logical.store((id >> 4) << 16 | 1 << (id & 15), Ordering::SeqCst);
        }
    }
}

fn highest(word: impl Fn(usize) -> u32) -> Option<u8> {
    (0..8).rev().find_map(|index| {
        let bits = word(index);
        (bits != 0).then(|| (index * 32) as u8 + (31 - bits.leading_zeros()) as u8)
    })
}

/// What [`poll_interrupts`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Nothing to deliver now (`cpu.irq_window` says whether something is blocked).
    Idle,
    /// An interrupt or NMI was delivered.
    Delivered,
    /// One waits for the end of the STI/MOV SS shadow: execute one instruction and poll again.
    Shadow,
    /// The delivery ended in a triple fault.
    Shutdown,
}

/// Delivers at most one interrupt. To be called at an instruction boundary after `cpu.kick` was cleared.
pub fn poll_interrupts(cpu: &mut Cpu, env: &Env<'_>) -> Poll {
    timer::check(cpu, env);
    if cpu.apic.port.nmi.load(Ordering::SeqCst) && cpu.nmi_masked == 0 {
        if cpu.shadow != 0 {
            return Poll::Shadow;
        }
        cpu.apic.port.nmi.store(false, Ordering::SeqCst);
        cpu.nmi_masked = 1;
        return delivered(deliver_interrupt(cpu, env, 2));
    }
    cpu.irq_window = 0;
    let Some(vector) = cpu.apic.requested() else { return Poll::Idle };
    if vector & 0xf0 <= cpu.apic.ppr() & 0xf0 || cpu.rflags & flag::IF == 0 {
        cpu.irq_window = 1;
        return Poll::Idle;
    }
    if cpu.shadow != 0 {
        cpu.irq_window = 1;
        return Poll::Shadow;
    }
    let (word, bit) = ((vector >> 5) as usize, 1u32 << (vector & 31));
    cpu.apic.port.irr[word].fetch_and(!bit, Ordering::SeqCst);
    cpu.apic.isr[word] |= bit;
    cpu.irq_window = u8::from(cpu.apic.requested().is_some());
    delivered(deliver_interrupt(cpu, env, vector))
}

fn delivered(step: Step) -> Poll {
    if step == Step::Shutdown { Poll::Shutdown } else { Poll::Delivered }
}

/// CR8 or the TPR register.
pub(crate) fn set_tpr(cpu: &mut Cpu, value: u8) {
    let lowered = value < cpu.apic.tpr;
    cpu.apic.tpr = value;
    if lowered {
        cpu.window_opened();
    }
}

fn eoi(cpu: &mut Cpu) {
    let vector = cpu.apic.in_service();
    cpu.apic.isr[(vector >> 5) as usize] &= !(1 << (vector & 31));
    cpu.window_opened();
}

fn send_ipi(cpu: &mut Cpu, env: &Env<'_>, icr: u64) {
    cpu.apic.icr = icr & !(1 << 12);
    let mode = (icr >> 8 & 7) as u8;
    let vector = icr as u8;
    let own = cpu.apic.port.id;
    let ports = &env.platform.ports;
    match icr >> 18 & 3 {
        1 => send(&cpu.apic.port, mode, vector),
        2 => ports.iter().for_each(|port| send(port.as_ref(), mode, vector)),
        3 => ports.iter().filter(|port| port.id != own).for_each(|port| send(port, mode, vector)),
        _ => {
            let x2apic = cpu.apic.x2apic();
            let destination = if x2apic { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
            let logical = icr >> 11 & 1 != 0;
            route(ports, Message { destination, logical, short: !x2apic, mode, vector });
        }
    }
}

fn read_register(cpu: &Cpu, env: &Env<'_>, index: u32) -> Option<u32> {
    let apic = &cpu.apic;
    Some(match index {
        0x02 if apic.x2apic() => apic.port.id,
        0x02 => apic.port.id << 24,
        0x03 => 0x0005_0014,
        0x08 => u32::from(apic.tpr),
        0x0a => u32::from(apic.ppr()),
        0x0d => apic.port.logical.load(Ordering::Relaxed),
        0x0e if !apic.x2apic() => {
            if apic.port.flat.load(Ordering::Relaxed) {
                u32::MAX
            } else {
                0x0fff_ffff
            }
        }
        0x0f => apic.svr,
        0x10..0x18 => apic.isr[(index & 7) as usize],
        // Every interrupt here is edge-triggered.
        0x18..0x20 => 0,
        0x20..0x28 => apic.port.irr[(index & 7) as usize].load(Ordering::SeqCst),
        0x28 => apic.esr,
        0x30 => apic.icr as u32,
        0x31 if !apic.x2apic() => (apic.icr >> 32) as u32,
        0x32..0x38 => apic.lvt[(index - 0x32) as usize],
        0x38 => apic.initial_count,
        0x39 => timer::current_count(cpu, env),
        0x3e => apic.divide,
        _ => return None,
    })
}

fn write_register(cpu: &mut Cpu, env: &Env<'_>, index: u32, value: u32) -> Option<()> {
    match index {
        0x02 | 0x03 => {}
        0x08 => set_tpr(cpu, value as u8),
        0x0b => eoi(cpu),
        0x0d if !cpu.apic.x2apic() => cpu.apic.port.logical.store(value & 0xff00_0000, Ordering::SeqCst),
        0x0e if !cpu.apic.x2apic() => cpu.apic.port.flat.store(value >> 28 == 0xf, Ordering::SeqCst),
        0x0f => {
            cpu.apic.svr = value & 0x3ff;
            if value & 0x100 == 0 {
                cpu.apic.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
            }
            cpu.apic.publish();
        }
        0x28 => cpu.apic.esr = 0,
        0x30 => {
            let icr = (cpu.apic.icr & !0xffff_ffff) | u64::from(value);
            send_ipi(cpu, env, icr);
        }
        0x31 => cpu.apic.icr = (cpu.apic.icr & 0xffff_ffff) | u64::from(value) << 32,
        0x32 => timer::set_lvt(cpu, env, value),
        0x33..0x38 => cpu.apic.lvt[(index - 0x32) as usize] = value & 0x1_f7ff,
        0x38 => timer::start_count(cpu, env, value),
        0x39 => {}
        0x3e => timer::set_divide(cpu, env, value),
        _ => return None,
    }
    Some(())
}

/// The offset in the APIC page, if `gpa` lies in it.
pub(crate) fn page_offset(cpu: &Cpu, gpa: u64) -> Option<u64> {
    let base = cpu.apic.base;
    (base & BASE_ENABLE != 0 && base & BASE_X2APIC == 0 && gpa & !0xfff == base & 0x3fff_ffff_f000)
        .then_some(gpa & 0xfff)
}

pub(crate) fn mmio_read(cpu: &Cpu, env: &Env<'_>, offset: u64) -> u64 {
    u64::from(read_register(cpu, env, (offset >> 4) as u32).unwrap_or(0))
}

pub(crate) fn mmio_write(cpu: &mut Cpu, env: &Env<'_>, offset: u64, value: u32) {
    let _ = write_register(cpu, env, (offset >> 4) as u32, value);
}

/// RDMSR 0x800-0x8ff.
pub(crate) fn read_msr(cpu: &Cpu, env: &Env<'_>, msr: u32) -> Result<u64, Exception> {
    let gp = Exception::gp(0);
    if !cpu.apic.x2apic() {
        return Err(gp);
    }
    match msr & 0xff {
        0x30 => Ok(cpu.apic.icr),
        0x0b | 0x3f | 0x0e => Err(gp),
        index => read_register(cpu, env, index).map(u64::from).ok_or(gp),
    }
}

/// WRMSR 0x800-0x8ff.
pub(crate) fn write_msr(cpu: &mut Cpu, env: &Env<'_>, msr: u32, value: u64) -> Result<(), Exception> {
    let gp = Exception::gp(0);
    if !cpu.apic.x2apic() {
        return Err(gp);
    }
    match msr & 0xff {
        0x30 => send_ipi(cpu, env, value),
        0x3f => send(&cpu.apic.port.clone(), 0, value as u8),
        index => {
            let read_only = matches!(index, 0x02 | 0x03 | 0x0a | 0x0d | 0x10..0x28 | 0x39);
            if value >> 32 != 0 || read_only || matches!(index, 0x0b | 0x28) && value != 0 {
                return Err(gp);
            }
            return write_register(cpu, env, index, value as u32).ok_or(gp);
        }
    }
    Ok(())
}

/// WRMSR IA32_APIC_BASE.
pub(crate) fn set_base(cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
    let old = cpu.apic.base;
    let (enable, x2apic) = (value & BASE_ENABLE != 0, value & BASE_X2APIC != 0);
    let reserved = !((1u64 << crate::paging::GPA_BITS) - 1) | 0x2ff;
    let from_x2 = old & BASE_X2APIC != 0 && enable && !x2apic;
    let off_to_x2 = old & BASE_ENABLE == 0 && x2apic;
    if value & reserved != 0 || x2apic && !enable || from_x2 || off_to_x2 {
        return Err(Exception::gp(0));
    }
    cpu.apic.base = (value & !BASE_BSP) | (old & BASE_BSP);
    cpu.apic.publish();
    // The APIC page may appear or vanish from under cached translations; it is never cached, so nothing to drop.
    Ok(())
}

/// The register page in xAPIC layout, for snapshots.
pub fn save(cpu: &Cpu, env: &Env<'_>) -> Vec<u8> {
    let mut page = vec![0; 1024];
    for index in 0..0x40u32 {
        let value = match index {
            0x31 => (cpu.apic.icr >> 32) as u32,
            0x02 => cpu.apic.port.id << if cpu.apic.x2apic() { 0 } else { 24 },
            0x0e => {
                if cpu.apic.port.flat.load(Ordering::Relaxed) {
                    u32::MAX
                } else {
                    0x0fff_ffff
                }
            }
            0x39 => timer::count_to_save(cpu, env),
            _ => read_register(cpu, env, index).unwrap_or(0),
        };
        let at = (index * 16) as usize;
        page[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// Restores what [`save`] gave; [`Apic::base`] must be set before, IA32_TSC_DEADLINE after.
pub fn restore(cpu: &mut Cpu, env: &Env<'_>, page: &[u8]) -> bool {
    let Some(page) = page.get(..1024) else { return false };
    let word = |index: usize| {
        let at = index * 16;
        u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]])
    };
    let apic = &mut cpu.apic;
    apic.tpr = word(0x08) as u8;
    apic.svr = word(0x0f) & 0x3ff;
    apic.esr = word(0x28);
    apic.icr = u64::from(word(0x30)) | u64::from(word(0x31)) << 32;
    for index in 0..8 {
        apic.isr[index] = word(0x10 + index);
        apic.port.irr[index].store(word(0x20 + index), Ordering::SeqCst);
    }
    for index in 0..6 {
        apic.lvt[index] = word(0x32 + index);
    }
    apic.initial_count = word(0x38);
    apic.divide = word(0x3e) & 0xb;
    apic.port.logical.store(word(0x0d), Ordering::SeqCst);
    apic.port.flat.store(word(0x0e) >> 28 == 0xf, Ordering::SeqCst);
    apic.publish();
    timer::restore_count(cpu, env, word(0x39));
    true
}

/// Whether an NMI waits.
pub fn nmi_pending(cpu: &Cpu) -> bool {
    cpu.apic.port.nmi.load(Ordering::SeqCst)
}

/// Sets or clears the waiting NMI.
pub fn set_nmi_pending(cpu: &Cpu, pending: bool) {
    cpu.apic.port.nmi.store(pending, Ordering::SeqCst);
}

/// Sets IA32_APIC_BASE as a restored state says.
pub fn force_base(cpu: &mut Cpu, value: u64) {
    cpu.apic.base = value;
    cpu.apic.publish();
}

/// Sets the task priority as a restored state says.
pub fn force_cr8(cpu: &mut Cpu, value: u64) {
    cpu.apic.tpr = (value << 4) as u8;
}
