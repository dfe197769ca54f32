//! The timer of the local APIC (Intel SDM 3A 11.5.4): counts, once or again and again, and deadlines of the TSC.

use std::sync::atomic::Ordering;

use super::{Apic, LVT_MASKED};
use crate::cpu::Cpu;
use crate::env::Env;

/// A timer event that comes so much too late tells the guest that it was stopped.
const STOPPED_SECONDS: u64 = 2;

/// The APIC timer's input frequency: one tick per nanosecond.
const TIMER_HZ: u64 = 1_000_000_000;

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

/// Raises the timer's interrupt if it is due.
pub(super) fn check(cpu: &mut Cpu, env: &Env<'_>) {
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

/// A write of the initial count, which begins it.
pub(super) fn start_count(cpu: &mut Cpu, env: &Env<'_>, value: u32) {
    cpu.apic.initial_count = value;
    let apic = &cpu.apic;
    if timer_mode(apic) == 2 {
        return;
    }
    let now = env.platform.clock.now();
    let deadline = if apic.initial_count == 0 { u64::MAX } else { now.saturating_add(period(apic, env)) };
    arm(cpu, env, deadline);
}

/// The timer counts at another speed: also what is left of a count that runs. One that has run out stays so (Intel SDM 3A 11.5.4).
pub(super) fn set_divide(cpu: &mut Cpu, env: &Env<'_>, value: u32) {
    let before = divisor(&cpu.apic);
    cpu.apic.divide = value & 0xb;
    let after = divisor(&cpu.apic);
    let Some(deadline) = end_of_count(cpu).filter(|_| after != before) else { return };
    let now = env.platform.clock.now();
    let left = u128::from(deadline.saturating_sub(now)) * u128::from(after) / u128::from(before);
    let left = u64::try_from(left).unwrap_or(u64::MAX);
    arm(cpu, env, now.saturating_add(left).min(u64::MAX - 1));
}

/// When the count that runs has run out, by the VM's clock.
fn end_of_count(cpu: &Cpu) -> Option<u64> {
    let deadline = cpu.apic.port.deadline.load(Ordering::Relaxed);
    (timer_mode(&cpu.apic) != 2 && deadline != u64::MAX).then_some(deadline)
}

/// What is left of the count.
pub(super) fn current_count(cpu: &Cpu, env: &Env<'_>) -> u32 {
    let Some(deadline) = end_of_count(cpu) else { return 0 };
    let left = deadline.saturating_sub(env.platform.clock.now());
    let nanos = u128::from(left) * 1_000_000 / u128::from(env.platform.clock.khz().max(1));
    (nanos / u128::from(divisor(&cpu.apic))).min(u128::from(cpu.apic.initial_count)) as u32
}

/// The same for a snapshot: of a count that is due something is left, or it would not come.
pub(super) fn count_to_save(cpu: &Cpu, env: &Env<'_>) -> u32 {
    current_count(cpu, env).max(u32::from(end_of_count(cpu).is_some()))
}

/// Goes on with what was left of a count; all else of the timer must be restored before.
pub(super) fn restore_count(cpu: &Cpu, env: &Env<'_>, left: u32) {
    arm(cpu, env, u64::MAX);
    if cpu.apic.initial_count != 0 && timer_mode(&cpu.apic) != 2 {
        let count = cpu.apic.initial_count;
        let left = left.min(count);
        let whole = period(&cpu.apic, env);
        let rest = (u128::from(whole) * u128::from(left) / u128::from(count)) as u64;
        if left != 0 || timer_mode(&cpu.apic) == 1 {
            arm(cpu, env, env.platform.clock.now().saturating_add(rest));
        }
    }
}

/// A write of the timer's entry in the local vector table. A count goes on once as it does again and again; a deadline is none (Intel
/// SDM 3A 11.5.4.1).
pub(super) fn set_lvt(cpu: &mut Cpu, env: &Env<'_>, value: u32) {
    let before = timer_mode(&cpu.apic);
    cpu.apic.lvt[0] = value & 0x7_10ff;
    if (timer_mode(&cpu.apic) == 2) != (before == 2) {
        cpu.apic.tsc_deadline = 0;
        cpu.apic.initial_count = 0;
        arm(cpu, env, u64::MAX);
    }
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

#[cfg(test)]
mod tests {
    use guest_memory::{GuestRam, RangeSpec};
    use hv::NoDevices;

    use super::super::{poll_interrupts, restore, save, write_register};
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
