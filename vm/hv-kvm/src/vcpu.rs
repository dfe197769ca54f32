//! A vCPU on its thread: the run loop that completes I/O and turns everything else into halts.

use std::marker::PhantomData;
use std::sync::Arc;

use guest_memory::RangeKind;
use hv::state::{StateElement, StateError, StateId};
use hv::{CpuIo, Halt, RunError, StopToken, Vcpu};
use kvm_bindings::{KVM_EXIT_IO_IN, KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::kick::ImmediateExit;
use crate::state;
use crate::vm::{Counters, Shared};

/// A vCPU bound to the thread that made this value.
pub(crate) struct KvmVcpu {
    id: u32,
    pub(crate) fd: VcpuFd,
    immediate_exit: ImmediateExit,
    pub(crate) shared: Arc<Shared>,
    /// An exit was answered and KVM has not yet retired its instruction; it does so when it is entered again.
    unfinished: bool,
    not_send: PhantomData<*const ()>,
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        if let Some(slot) = self.shared.kick_slot(self.id) {
            slot.unbind();
        }
    }
}

/// What an entry ended with, apart from accesses, which are complete by then.
enum Left {
    /// An access was answered.
    Access,
    /// A kick, or a signal meant for somebody else.
    Interrupted,
    /// Enter again: a waiting AP was woken.
    Again,
    /// The guest is over.
    Over(Halt),
}

impl KvmVcpu {
    pub(crate) fn new(id: u32, fd: VcpuFd, immediate_exit: ImmediateExit, shared: Arc<Shared>) -> Self {
        Self { id, fd, immediate_exit, shared, unfinished: false, not_send: PhantomData }
    }

    fn enter(&mut self, io: &dyn CpuIo) -> Result<Left, RunError> {
        let counters = &self.shared.counters;
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                Counters::count(&counters.mmio);
                io.mmio_read(gpa, data);
                Ok(Left::Access)
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                if self.shared.ram.kind_at(gpa) == Some(RangeKind::ReadOnly) {
                    Counters::count(&counters.read_only_writes);
                } else {
                    Counters::count(&counters.mmio);
                    io.mmio_write(gpa, data);
                }
                Ok(Left::Access)
            }
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => {
                Counters::count(&counters.pio);
                port_access(self.fd.get_kvm_run(), io);
                Ok(Left::Access)
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::IoapicEoi(_) | VcpuExit::Hlt) => {
                Ok(Left::Again)
            }
            Ok(VcpuExit::Shutdown) => Ok(Left::Over(Halt::TripleFault)),
            Ok(VcpuExit::FailEntry(reason, _)) => Ok(Left::Over(Halt::Crashed(format!(
                "KVM could not enter the guest (hardware reason {reason:#x})"
            )))),
            Ok(VcpuExit::InternalError) => Ok(Left::Over(Halt::Crashed(self.internal_error()))),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => Ok(Left::Over(Halt::Crashed(format!(
                "KVM could not reach the memory behind guest address {gpa:#x}"
            )))),
            Ok(other) => {
                Ok(Left::Over(Halt::Crashed(format!("KVM left the guest for an unknown reason ({other:?})"))))
            }
            Err(error) if error.errno() == libc::EINTR => Ok(Left::Interrupted),
            Err(error) if error.errno() == libc::EAGAIN => Ok(Left::Again),
            // The memory behind a slot cannot be reached: the host is out of it, or a backing file shrank.
            Err(error) if error.errno() == libc::EFAULT => {
                Ok(Left::Over(Halt::Crashed("KVM could not reach the guest's memory".into())))
            }
            Err(error) => Err(RunError::Host { what: "to run the vCPU", source: error.into() }),
        }
    }

    /// A sentence about a KVM_EXIT_INTERNAL_ERROR.
    fn internal_error(&mut self) -> String {
        let rip = self.fd.get_regs().map(|regs| regs.rip).unwrap_or_default();
        // SAFETY: the exit reason says that this member of the union was filled in.
        let error = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let data = error.data.get(..(error.ndata as usize).min(error.data.len())).unwrap_or_default();
        match error.suberror {
            KVM_INTERNAL_ERROR_EMULATION => {
                // data[0] bit 0 says that byte 8 of data is the number of instruction bytes that follow it.
                let bytes: Vec<u8> = data.iter().skip(1).flat_map(|word| word.to_le_bytes()).collect();
                let code = match (data.first().map(|flags| flags & 1), bytes.split_first()) {
                    (Some(1), Some((len, code))) => {
                        code.get(..usize::from(*len).min(code.len())).unwrap_or_default()
                    }
                    _ => &[],
                };
                let hex: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("KVM could not emulate the instruction at {rip:#x} [{}]", hex.join(" "))
            }
            KVM_INTERNAL_ERROR_DELIVERY_EV => {
                format!("KVM could not deliver an event to the guest at {rip:#x}")
            }
            other => format!("KVM failed inside (error {other} at {rip:#x}, {data:x?})"),
        }
    }
}

/// Answers a port access, one element at a time where the instruction had a repeat prefix.
fn port_access(run: &mut kvm_run, io: &dyn CpuIo) {
    // SAFETY: the exit reason says that this member of the union was filled in.
    let access = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(access.size);
    // SAFETY: KVM places the data inside the run mapping, `data_offset` bytes from its start.
    let data = unsafe {
        let start = std::ptr::from_mut(run).cast::<u8>().add(access.data_offset as usize);
        std::slice::from_raw_parts_mut(start, size * access.count as usize)
    };
    for element in data.chunks_exact_mut(size.max(1)) {
        if u32::from(access.direction) == KVM_EXIT_IO_IN {
            io.pio_read(access.port, element);
        } else {
            io.pio_write(access.port, element);
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn CpuIo, stop: &StopToken) -> Result<Halt, RunError> {
        loop {
            if stop.is_requested() {
                if !self.unfinished {
                    return Ok(Halt::Stopped);
                }
                // KVM finishes the instruction, then leaves at once.
                self.immediate_exit.set(true);
            }
            match self.enter(io)? {
                Left::Access => self.unfinished = true,
                Left::Again => self.unfinished = false,
                Left::Interrupted => {
                    Counters::count(&self.shared.counters.kicks_seen);
                    self.unfinished = false;
                    // Before the token is looked at again: see the module `kick`.
                    self.immediate_exit.set(false);
                }
                Left::Over(halt) => {
                    self.unfinished = false;
                    return Ok(halt);
                }
            }
        }
    }

    fn get_state(&mut self, id: StateId) -> Result<StateElement, StateError> {
        state::get(&self.fd, &self.shared.msrs, id)
    }

    fn set_state(&mut self, element: &StateElement) -> Result<(), StateError> {
        state::set(&self.fd, element)
    }

    fn state_ids(&self) -> &'static [StateId] {
        state::ORDER
    }
}
