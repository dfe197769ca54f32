//! How fast this `/dev/kvm` runs ring-0 code.
//!
//! A KVM without hardware virtualization beneath it emulates every ring-0 instruction (some 580 ns each), lacks some of
//! them, and would take minutes to boot a kernel. A tiny guest that counts to a few thousand in ring 0 tells.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guest_memory::{GuestRam, RangeSpec};
use hv::state::{Gpr, Segment, StateElement, System};
use hv::{CpuIo, CreateVmError, Halt, Hypervisor, StopToken, VmShape};
use vm_memory::{Bytes, GuestAddress};

use crate::KvmEngine;

/// Nanoseconds per instruction above which ring-0 code is called emulated.
pub const EMULATED_NS: f64 = 50.0;

/// Rounds of the two-instruction loop that is timed.
const ROUNDS: u32 = 8_000;
/// Most runs of it.
const REPEATS: u32 = 6;
const DONE_PORT: u16 = 0xf4;

/// What [`measure_ring0`] found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Mean nanoseconds per ring-0 instruction; a lower bound if the measurement was cut off.
    pub ns_per_instr: f64,
    /// The guest came to its end before the deadline.
    pub completed: bool,
}

impl Speed {
    /// Whether ring-0 code is emulated rather than run by the hardware.
    pub fn is_emulated(&self) -> bool {
        !self.completed || self.ns_per_instr > EMULATED_NS
    }
}

/// Times ring-0 code in a tiny guest on `/dev/kvm`. Comes back soon after `deadline` whatever KVM does with the guest.
///
/// # Errors
/// KVM cannot make the VM at all.
pub fn measure_ring0(deadline: Duration) -> Result<Speed, CreateVmError> {
    measure_on(&KvmEngine::new(), deadline)
}

struct Timer {
    stop: StopToken,
    done: AtomicBool,
    late: AtomicBool,
}

impl CpuIo for Timer {
    fn mmio_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _: u64, _: &[u8]) {}
    fn pio_read(&self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn pio_write(&self, port: u16, _: &[u8]) {
        if port == DONE_PORT {
            self.done.store(true, Ordering::SeqCst);
            self.stop.request();
        }
    }
}

fn measure_on(engine: &dyn Hypervisor, deadline: Duration) -> Result<Speed, CreateVmError> {
    let start = Instant::now();
    let refused = |what: &'static str| move |source: std::io::Error| CreateVmError::Host { what, source };
    let ram = GuestRam::new(vec![RangeSpec { gpa: 0, len: 0x1_0000, file: None }])
        .map_err(|error| refused("memory")(std::io::Error::other(error)))?;
    write_guest(&ram).map_err(|error| refused("memory")(std::io::Error::other(error)))?;
    let (vm, binders) = engine.propose(&VmShape { vcpus: 1 })?.build(ram)?;
    let binder =
        binders.into_iter().next().ok_or_else(|| refused("a vCPU")(std::io::ErrorKind::NotFound.into()))?;

    let timer = Timer { stop: StopToken::new(), done: AtomicBool::new(false), late: AtomicBool::new(false) };
    let (finished, wait) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let timer = &timer;
        let vm = &vm;
        scope.spawn(move || {
            // Repeated, because a kick that comes before the vCPU is bound is lost, and between two runs is taken back.
            let mut left = deadline.saturating_sub(start.elapsed());
            while wait.recv_timeout(left) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                timer.late.store(true, Ordering::SeqCst);
                timer.stop.request();
                vm.kick(0);
                left = Duration::from_millis(5);
            }
        });
        let measured = time_rounds(binder, timer);
        drop(finished);
        measured
    })
}

/// Runs a few rounds to warm up, then the timed ones.
fn time_rounds(binder: Box<dyn hv::VcpuBinder>, timer: &Timer) -> Result<Speed, CreateVmError> {
    let mut vcpu = binder.bind()?;
    let state = |error: hv::state::StateError| CreateVmError::Host {
        what: "the vCPU's state",
        source: std::io::Error::other(error),
    };
    vcpu.set_state(&StateElement::System(long_mode())).map_err(state)?;
    let mut run = |rounds: u32| -> Result<(Duration, bool), CreateVmError> {
        let mut gpr = Gpr { regs: vec![0; 16], rip: CODE, rflags: 2 };
        if let Some(rcx) = gpr.regs.get_mut(1) {
            *rcx = rounds.into();
        }
        vcpu.set_state(&StateElement::Gpr(gpr)).map_err(state)?;
        timer.done.store(false, Ordering::SeqCst);
        if timer.late.load(Ordering::SeqCst) {
            timer.stop.request();
        }
        let start = Instant::now();
        let halt = vcpu.run(timer, &timer.stop);
        let took = start.elapsed();
        Ok((took, matches!(halt, Ok(Halt::Stopped)) && timer.done.load(Ordering::SeqCst)))
    };
    let (warm, completed) = run(ROUNDS / 20)?;
    if !completed {
        return Ok(Speed { ns_per_instr: per_instruction(warm, ROUNDS / 20), completed });
    }
    timer.stop.reset();
    // The fastest of several: a busy host takes the CPU away for longer than a run lasts.
    let mut best = Speed { ns_per_instr: f64::INFINITY, completed: false };
    for _ in 0..REPEATS {
        let (took, completed) = run(ROUNDS)?;
        let speed = Speed { ns_per_instr: per_instruction(took, ROUNDS), completed };
        if speed.completed && speed.ns_per_instr < best.ns_per_instr {
            best = speed;
        }
        // Cut off: later runs would be, too.
        if !completed {
            return Ok(if best.completed { best } else { speed });
        }
        if !best.is_emulated() {
            break;
        }
        timer.stop.reset();
    }
    Ok(best)
}

fn per_instruction(took: Duration, rounds: u32) -> f64 {
    took.as_nanos() as f64 / f64::from(rounds * 2)
}

const GDT: u64 = 0x1000;
const PML4: u64 = 0x2000;
const CODE: u64 = 0x5000;

/// A 2 MiB identity map and a loop: `l: dec ecx; jnz l; out 0xf4, al; s: jmp s`.
fn write_guest(ram: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    let memory = ram.memory();
    memory.write_obj(0x3003u64, GuestAddress(PML4))?;
    memory.write_obj(0x4003u64, GuestAddress(0x3000))?;
    memory.write_obj(0x83u64, GuestAddress(0x4000))?;
    memory.write_slice(&[0xff, 0xc9, 0x75, 0xfc, 0xe6, DONE_PORT as u8, 0xeb, 0xfe], GuestAddress(CODE))
}

/// Flat 64-bit segments and paging on.
fn long_mode() -> System {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    let data = || flat(0x10, 0xc093);
    System {
        segments: vec![
            data(),
            flat(0x8, 0xa09b),
            data(),
            data(),
            data(),
            data(),
            Segment { selector: 0, base: 0, limit: 0, attributes: 1 << 16 },
            Segment { selector: 0x18, base: GDT + 0x100, limit: 0x67, attributes: 0x8b },
        ],
        gdt_base: GDT,
        gdt_limit: 0x1f,
        cr0: 0x8000_0031,
        cr3: PML4,
        cr4: 0x20,
        efer: 0x500,
        apic_base: 0xfee0_0900,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_or_unfinished_means_emulated() {
        assert!(Speed { ns_per_instr: 580.0, completed: true }.is_emulated());
        assert!(Speed { ns_per_instr: 1.0, completed: false }.is_emulated());
        assert!(!Speed { ns_per_instr: 17.0, completed: true }.is_emulated());
    }
}
