//! The local APIC (Intel SDM 3A chapter 11) in xAPIC and x2APIC mode, its timer, and message routing between vCPUs.
//!
//! Requests come from any thread as bits set in [`ApicPort`]; everything else belongs to the vCPU's thread.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use crate::cpu::{Cpu, flag};
use crate::env::Env;
use crate::exception::{Exception, deliver_interrupt};
use crate::exec::Step;

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
/// A timer event that comes so much too late tells the guest that it was stopped.
const STOPPED_SECONDS: u64 = 2;

/// The APIC timer's input frequency: one tick per nanosecond.
const TIMER_HZ: u64 = 1_000_000_000;

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
    check_timer(cpu, env);
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

/// How long a halted vCPU may sleep, in ticks of the clock; `None` = until it is kicked.
pub fn sleep_ticks(cpu: &Cpu, env: &Env<'_>) -> Option<u64> {
    let deadline = cpu.apic.port.deadline.load(Ordering::SeqCst);
    (deadline != u64::MAX).then(|| deadline.saturating_sub(env.platform.clock.now()))
}

/// The vCPU sleeps by itself until its deadline: the timer thread need not wake it.
pub fn disarm_thread(cpu: &Cpu) {
    cpu.apic.port.armed.store(false, Ordering::SeqCst);
}

/// Undoes [`disarm_thread`].
pub fn rearm_thread(cpu: &Cpu, env: &Env<'_>) {
    let deadline = cpu.apic.port.deadline.load(Ordering::SeqCst);
    if deadline != u64::MAX {
        arm(cpu, env, deadline);
    }
}

fn arm(cpu: &Cpu, env: &Env<'_>, deadline: u64) {
    let port = &cpu.apic.port;
    port.deadline.store(deadline, Ordering::SeqCst);
    port.armed.store(deadline != u64::MAX, Ordering::SeqCst);
    if deadline != u64::MAX {
        env.platform.deadline_changed(deadline);
    }
}

fn timer_mode(apic: &Apic) -> u32 {
    apic.lvt[0] >> 17 & 3
}

fn divisor(apic: &Apic) -> u64 {
    let code = (apic.divide & 3) | (apic.divide >> 1 & 4);
    if code == 7 { 1 } else { 2 << code }
}

/// Ticks of the clock for the whole count.
fn period(apic: &Apic, env: &Env<'_>) -> u64 {
    let nanos =
        u128::from(apic.initial_count) * u128::from(divisor(apic)) * 1_000_000_000 / u128::from(TIMER_HZ);
    (nanos * u128::from(env.platform.clock.khz()) / 1_000_000) as u64
}

fn check_timer(cpu: &mut Cpu, env: &Env<'_>) {
    let deadline = cpu.apic.port.deadline.load(Ordering::Relaxed);
    if deadline == u64::MAX {
        return;
    }
    if env.platform.clock.now() < deadline {
        // The timer thread kicked too early: by the TSC of its core, which may be ahead of this one's. It disarmed.
        if !cpu.apic.port.armed.load(Ordering::SeqCst) {
            arm(cpu, env, deadline);
        }
        return;
    }
    // That late only when this thread did not run: the process was stopped, or the host slept.
    if env.platform.clock.now().saturating_sub(deadline) > STOPPED_SECONDS * 1000 * env.platform.clock.khz() {
        crate::msr::note_stop(cpu, env);
    }
    let next = match timer_mode(&cpu.apic) {
        1 => {
            let period = period(&cpu.apic, env).max(1000);
            let now = env.platform.clock.now();
            // A guest that was stopped for long gets one tick, not all that it missed.
            if now - deadline > 16 * period { now + period } else { deadline + period }
        }
        _ => u64::MAX,
    };
    cpu.apic.tsc_deadline = 0;
    arm(cpu, env, next);
    if cpu.apic.lvt[0] & LVT_MASKED == 0 {
        let vector = cpu.apic.lvt[0] as u8;
        cpu.apic.port.irr[(vector >> 5) as usize].fetch_or(1 << (vector & 31), Ordering::SeqCst);
    }
}

fn start_count(cpu: &mut Cpu, env: &Env<'_>) {
    let apic = &cpu.apic;
    if timer_mode(apic) == 2 {
        return;
    }
    let now = env.platform.clock.now();
    let deadline = if apic.initial_count == 0 { u64::MAX } else { now.saturating_add(period(apic, env)) };
    arm(cpu, env, deadline);
}

/// The timer counts at another speed: also what is left of a count that runs. One that has run out stays so (Intel SDM 3A 11.5.4).
fn set_divide(cpu: &mut Cpu, env: &Env<'_>, value: u32) {
    let before = divisor(&cpu.apic);
    cpu.apic.divide = value & 0xb;
    let after = divisor(&cpu.apic);
    let deadline = cpu.apic.port.deadline.load(Ordering::SeqCst);
    if timer_mode(&cpu.apic) == 2 || deadline == u64::MAX || after == before {
        return;
    }
    let now = env.platform.clock.now();
    let left = u128::from(deadline.saturating_sub(now)) * u128::from(after) / u128::from(before);
    let left = u64::try_from(left).unwrap_or(u64::MAX);
    arm(cpu, env, now.saturating_add(left).min(u64::MAX - 1));
}

/// Whether a count runs.
fn counts(cpu: &Cpu) -> bool {
    timer_mode(&cpu.apic) != 2 && cpu.apic.port.deadline.load(Ordering::Relaxed) != u64::MAX
}

fn current_count(cpu: &Cpu, env: &Env<'_>) -> u32 {
    let apic = &cpu.apic;
    let deadline = apic.port.deadline.load(Ordering::Relaxed);
    if timer_mode(apic) == 2 || apic.initial_count == 0 || deadline == u64::MAX {
        return 0;
    }
    let left = deadline.saturating_sub(env.platform.clock.now());
    let nanos = u128::from(left) * 1_000_000 / u128::from(env.platform.clock.khz().max(1));
    (nanos / u128::from(divisor(apic))).min(u128::from(apic.initial_count)) as u32
}

/// IA32_TSC_DEADLINE.
pub(crate) fn set_tsc_deadline(cpu: &mut Cpu, env: &Env<'_>, value: u64) {
    if timer_mode(&cpu.apic) != 2 {
        return;
    }
    cpu.apic.tsc_deadline = value;
    let deadline = if value == 0 { u64::MAX } else { value.wrapping_sub(cpu.tsc_offset).min(u64::MAX - 1) };
    arm(cpu, env, deadline);
    if deadline <= env.platform.clock.now() {
        cpu.kick.store(1, Ordering::SeqCst);
    }
}

/// After a change of the guest's TSC: a deadline is a value of it, which the host's reaches at another time now.
pub(crate) fn tsc_changed(cpu: &mut Cpu, env: &Env<'_>) {
    if cpu.apic.tsc_deadline != 0 {
        set_tsc_deadline(cpu, env, cpu.apic.tsc_deadline);
    }
}

pub(crate) fn tsc_deadline(cpu: &Cpu) -> u64 {
    cpu.apic.tsc_deadline
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
        0x39 => current_count(cpu, env),
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
        0x32 => {
            let before = timer_mode(&cpu.apic);
            cpu.apic.lvt[0] = value & 0x7_10ff;
            // A count goes on once as it does again and again; a deadline is none (Intel SDM 3A 11.5.4.1).
            if (timer_mode(&cpu.apic) == 2) != (before == 2) {
                cpu.apic.tsc_deadline = 0;
                cpu.apic.initial_count = 0;
                arm(cpu, env, u64::MAX);
            }
        }
        0x33..0x38 => cpu.apic.lvt[(index - 0x32) as usize] = value & 0x1_f7ff,
        0x38 => {
            cpu.apic.initial_count = value;
            start_count(cpu, env);
        }
        0x39 => {}
        0x3e => set_divide(cpu, env, value),
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
            // Of a count that is due something is left, or it would not come.
            0x39 => current_count(cpu, env).max(u32::from(counts(cpu))),
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
    arm(cpu, env, u64::MAX);
    if cpu.apic.initial_count != 0 && timer_mode(&cpu.apic) != 2 {
        let count = cpu.apic.initial_count;
        let left = word(0x39).min(count);
        let whole = period(&cpu.apic, env);
        let rest = (u128::from(whole) * u128::from(left) / u128::from(count)) as u64;
        if left != 0 || timer_mode(&cpu.apic) == 1 {
            arm(cpu, env, env.platform.clock.now().saturating_add(rest));
        }
    }
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

#[cfg(test)]
mod tests {
    use guest_memory::{GuestRam, RangeSpec};
    use hv::NoDevices;

    use super::*;
    use crate::env::NoWatch;
    use crate::msr::{self, number};
    use crate::{Platform, RamMap};

    /// A vCPU whose timer is in TSC-deadline mode.
    fn with_timer(test: impl FnOnce(&mut Cpu, &Env<'_>)) {
        let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x1_0000, file: None }]).expect("RAM");
        let map = RamMap::new(&ram);
        let mut cpu = Cpu::new(0);
        cpu.apic.lvt[0] = 2 << 17 | 0x40;
        let platform = Platform::new(vec![cpu.apic.port.clone()]);
        let env = Env { ram: &map, io: &NoDevices, watch: &NoWatch, platform: &platform };
        test(&mut cpu, &env);
    }

    const FAR: u64 = 1 << 50;

    #[test]
    fn a_write_of_the_tsc_moves_a_pending_deadline() {
        with_timer(|cpu, env| {
            msr::write(cpu, env, number::TSC, 0).expect("TSC");
            msr::write(cpu, env, number::TSC_DEADLINE, FAR).expect("deadline");
            let before = env.platform.clock.now();
            msr::write(cpu, env, number::TSC, FAR / 2).expect("TSC");
            let after = env.platform.clock.now();
            let deadline = cpu.apic.port.deadline.load(Ordering::SeqCst);
            assert!((before..=after).contains(&(deadline - FAR / 2)), "{before} {deadline} {after}");
            assert_eq!((tsc_deadline(cpu), cpu.kick.load(Ordering::SeqCst)), (FAR, 0));
            // Set past it, it is due at once.
            msr::write(cpu, env, number::TSC, FAR + 1).expect("TSC");
            assert_eq!(cpu.kick.load(Ordering::SeqCst), 1);
            poll_interrupts(cpu, env);
            assert_eq!((tsc_deadline(cpu), cpu.apic.port.deadline.load(Ordering::SeqCst)), (0, u64::MAX));
        });
    }

    #[test]
    fn a_guest_that_was_stopped_is_told_so() {
        const PAGE: u64 = 0x2000;
        with_timer(|cpu, env| {
            let flags = |env: &Env<'_>| {
                let span = env.ram.lookup(PAGE + 29).expect("RAM");
                // SAFETY: the span has at least this one byte.
                unsafe { crate::rawmem::load(span.host, 1) }
            };
            msr::write(cpu, env, number::TSC, FAR).expect("TSC");
            msr::write(cpu, env, number::KVM_SYSTEM_TIME, PAGE | 1).expect("kvmclock");
            let second = 1000 * env.platform.clock.khz();
            // A little late, then as late as after a stop of the process.
            for (late, expected) in [(second, 1), (10 * second, 3)] {
                msr::write(cpu, env, number::TSC_DEADLINE, FAR - late).expect("deadline");
                poll_interrupts(cpu, env);
                assert_eq!(tsc_deadline(cpu), 0);
                assert_eq!(flags(env), expected);
            }
        });
    }

    #[test]
    fn a_divisor_changes_a_count_that_runs_and_starts_none() {
        with_timer(|cpu, env| {
            const WHOLE: u64 = 4_000_000_000;
            let write =
                |cpu: &mut Cpu, index, value| write_register(cpu, env, index, value).expect("a register");
            let deadline = |cpu: &Cpu| cpu.apic.port.deadline.load(Ordering::SeqCst);
            write(cpu, 0x32, 0x40);
            write(cpu, 0x3e, 0xb);
            assert_eq!(deadline(cpu), u64::MAX, "nothing was counted yet");
            let begun = env.platform.clock.now();
            write(cpu, 0x38, WHOLE as u32);
            let one = deadline(cpu);
            write(cpu, 0x3e, 0xb);
            assert_eq!(deadline(cpu), one, "the same divisor");
            // A quarter of the speed: what is left takes four times as long.
            write(cpu, 0x3e, 0x1);
            let now = env.platform.clock.now();
            let (longest, shortest) = (begun + 4 * (one - begun), now + 4 * (one - now));
            assert!((shortest..=longest).contains(&deadline(cpu)), "{shortest} {} {longest}", deadline(cpu));
            assert!((1..=WHOLE).contains(&u64::from(current_count(cpu, env))));
            // Again and again, or once: it goes on. In the other mode there is none.
            let slow = deadline(cpu);
            for lvt in [1 << 17 | 0x40, 0x40] {
                write(cpu, 0x32, lvt);
                assert_eq!((deadline(cpu), timer_mode(&cpu.apic)), (slow, lvt >> 17));
            }
            write(cpu, 0x32, 2 << 17 | 0x40);
            write(cpu, 0x3e, 0xb);
            write(cpu, 0x32, 0x40);
            assert_eq!((deadline(cpu), cpu.apic.initial_count), (u64::MAX, 0));
            write(cpu, 0x38, WHOLE as u32);
            // One that is due is saved as such.
            cpu.apic.port.deadline.store(1, Ordering::SeqCst);
            assert_eq!(save(cpu, env)[0x390..0x394], [1, 0, 0, 0]);
            let page = save(cpu, env);
            assert!(restore(cpu, env, &page) && deadline(cpu) != u64::MAX);
            cpu.apic.port.deadline.store(0, Ordering::SeqCst);
            poll_interrupts(cpu, env);
            assert_eq!((deadline(cpu), cpu.apic.requested()), (u64::MAX, Some(0x40)), "it has run out");
            for divide in [0x1, 0xb, 0x3] {
                write(cpu, 0x3e, divide);
                assert_eq!((deadline(cpu), current_count(cpu, env)), (u64::MAX, 0), "{divide:#x}");
            }
        });
    }

    #[test]
    fn a_deadline_that_is_not_due_is_watched_again() {
        with_timer(|cpu, env| {
            msr::write(cpu, env, number::TSC, 0).expect("TSC");
            msr::write(cpu, env, number::TSC_DEADLINE, FAR).expect("deadline");
            // What the timer thread does when it takes the deadline for due.
            cpu.apic.port.armed.store(false, Ordering::SeqCst);
            poll_interrupts(cpu, env);
            assert!(cpu.apic.port.armed.load(Ordering::SeqCst));
            assert_ne!(cpu.apic.port.deadline.load(Ordering::SeqCst), u64::MAX);
        });
    }
}
