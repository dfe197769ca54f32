//! A device's thread: parked on the bells of its queues, and out of the way between any two chains when someone wants the
//! device itself (reset, quiesce, save).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use doorbell::{Doorbell, Event, Interest, Waiter};
use guest_memory::GuestRam;
use machine::pci::{Msix, RestoreError};

use crate::device::{Active, Device, FIRST_TOKEN};
use crate::queue::{Interrupt, NO_VECTOR, Queue, note_broken};

/// Tokens: queues by number, then these.
const TOKEN_CONTROL: u64 = FIRST_TOKEN - 1;
const TOKEN_DEVICE: u64 = FIRST_TOKEN - 2;

/// A device and its queues; whoever holds the lock works on it.
pub(crate) struct Cell {
    pub(crate) device: Box<dyn Device>,
    /// `Some` for each queue in use; empty while the driver is not ready.
    pub(crate) queues: Vec<Option<Queue>>,
    /// Requests may be served.
    pub(crate) running: bool,
    /// Held still by [`Worker::quiesce`].
    quiet: bool,
}

struct Shared {
    /// Taken before the cell by everyone, so that the thread cannot starve those who want the device.
    gate: Mutex<()>,
    cell: Mutex<Cell>,
    /// How many want the device; the thread leaves it at the next chain border.
    wanted: AtomicUsize,
    waiter: Arc<Waiter>,
    bells: Vec<Doorbell>,
    control: Doorbell,
    device_bell: Option<Doorbell>,
    ram: GuestRam,
    msix: Arc<Msix>,
    /// The vector for configuration changes and device trouble.
    config_vector: AtomicU16,
    needs_reset: AtomicBool,
    config: Mutex<Config>,
    over: AtomicBool,
    name: &'static str,
}

/// The configuration space as the driver reads it.
struct Config {
    bytes: Vec<u8>,
    /// Counts its changes (virtio 1.3 §2.5.1).
    generation: u8,
}

/// The worker of one device.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// A worker without a thread; fails only when the process is out of descriptors.
    pub(crate) fn new(
        mut device: Box<dyn Device>,
        ram: &GuestRam,
        msix: &Arc<Msix>,
    ) -> std::io::Result<Self> {
        let waiter = Arc::new(Waiter::new()?);
        let bells = device.queues().iter().map(|_| Doorbell::new()).collect::<std::io::Result<Vec<_>>>()?;
        for (token, bell) in (0..).zip(&bells) {
            waiter.add(bell, token, Interest::READ)?;
        }
        let control = Doorbell::new()?;
        waiter.add(&control, TOKEN_CONTROL, Interest::READ)?;
        let device_bell = device.bell();
        if let Some(bell) = &device_bell {
            waiter.add(bell, TOKEN_DEVICE, Interest::READ)?;
        }
        device.attach(&waiter);
        let name = device.identity().name;
        let config = Mutex::new(Config { bytes: device.config(), generation: 0 });
        let cell = Cell { device, queues: Vec::new(), running: false, quiet: false };
        let shared = Shared {
            gate: Mutex::new(()),
            cell: Mutex::new(cell),
            wanted: AtomicUsize::new(0),
            waiter,
            bells,
            control,
            device_bell,
            ram: ram.clone(),
            msix: msix.clone(),
            config_vector: AtomicU16::new(NO_VECTOR),
            needs_reset: AtomicBool::new(false),
            config,
            over: AtomicBool::new(false),
            name,
        };
        Ok(Self { shared: Arc::new(shared), thread: Mutex::new(None) })
    }

    /// The bell of each queue.
    pub(crate) fn bells(&self) -> &[Doorbell] {
        &self.shared.bells
    }

    /// Whether the device gave up on its driver.
    pub(crate) fn needs_reset(&self) -> bool {
        self.shared.needs_reset.load(Ordering::SeqCst)
    }

    pub(crate) fn set_needs_reset(&self, needed: bool) {
        self.shared.needs_reset.store(needed, Ordering::SeqCst);
    }

    /// Looks at the configuration space and at the count of its changes.
    pub(crate) fn config<T>(&self, look: impl FnOnce(&[u8], u8) -> T) -> T {
        let config = locked(&self.shared.config);
        look(&config.bytes, config.generation)
    }

    /// Has the device take its saved state.
    pub(crate) fn restore(&self, state: &[u8]) -> Result<(), RestoreError> {
        self.with(|cell| {
            let result = cell.device.restore(state);
            self.shared.publish_config(&mut *cell.device);
            result
        })
    }

    /// Works on the device itself, between two chains.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Cell) -> T) -> T {
        self.shared.wanted.fetch_add(1, Ordering::SeqCst);
        let gate = locked(&self.shared.gate);
        let mut cell = locked(&self.shared.cell);
        drop(gate);
        let result = work(&mut cell);
        drop(cell);
        self.shared.wanted.fetch_sub(1, Ordering::SeqCst);
        // The thread may have left work behind for us.
        self.shared.control.ring();
        result
    }

    /// Takes the queues into use and starts serving, unless it is held still.
    pub(crate) fn start(&self, queues: Vec<Option<Queue>>, features: u64, config_vector: u16) {
        self.shared.config_vector.store(config_vector, Ordering::SeqCst);
        self.with(|cell| {
            cell.queues = queues;
            cell.device.start(features);
            self.shared.publish_config(&mut *cell.device);
            cell.running = true;
        });
        self.ensure_thread();
    }

    /// Gives the device back as new.
    pub(crate) fn reset(&self) {
        self.with(|cell| {
            cell.running = false;
            cell.queues.clear();
            cell.device.reset();
        });
        self.shared.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.set_needs_reset(false);
    }

    /// Holds the device still between two chains.
    pub(crate) fn quiesce(&self) {
        self.with(|cell| cell.quiet = true);
    }

    /// Undoes [`Worker::quiesce`].
    pub(crate) fn resume(&self) {
        self.with(|cell| cell.quiet = false);
    }

    /// Gives up on the driver: the device needs a reset (virtio 1.3 §2.1.2).
    pub(crate) fn fail(&self) {
        self.with(|cell| self.shared.fail(cell));
    }

    fn ensure_thread(&self) {
        let mut thread = locked(&self.thread);
        // One that could not wait any more has ended.
        if thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let shared = self.shared.clone();
            let body = move || {
                // A device that panics is broken until its driver resets it, and then served again by this thread; the rest
                // of the machine goes on.
                while catch_unwind(AssertUnwindSafe(|| shared.run())).is_err() {
                    tracing::error!(device = shared.name, "The device's thread panicked");
                    // Should even this panic, the flag is set.
                    let _ = catch_unwind(AssertUnwindSafe(|| shared.fail(&mut shared.own())));
                }
            };
            match std::thread::Builder::new().name(self.shared.name.to_owned()).spawn(body) {
                Ok(handle) => *thread = Some(handle),
                Err(error) => {
                    tracing::error!(device = self.shared.name, %error, "The device's thread could not be started");
                    self.fail();
                }
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn shut_down(&self) {
        self.shared.over.store(true, Ordering::SeqCst);
        self.shared.control.ring();
        if let Some(thread) = locked(&self.thread).take() {
            // Its panics were caught and said.
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    /// The cell, for the device's thread.
    fn own(&self) -> MutexGuard<'_, Cell> {
        let gate = locked(&self.gate);
        let cell = locked(&self.cell);
        drop(gate);
        cell
    }

    fn fail(&self, cell: &mut Cell) {
        self.needs_reset.store(true, Ordering::SeqCst);
        Interrupt::new(self.msix.clone(), self.config_vector.load(Ordering::SeqCst)).raise();
        cell.device.abandon();
    }

    /// Shows the driver the configuration space as it is now, and tells it when that is another one.
    fn publish_config(&self, device: &mut dyn Device) {
        if !device.config_changed() {
            return;
        }
        let mut config = locked(&self.config);
        config.bytes = device.config();
        config.generation = config.generation.wrapping_add(1);
        drop(config);
        Interrupt::new(self.msix.clone(), self.config_vector.load(Ordering::SeqCst)).raise();
    }

    fn run(&self) {
        let mut events = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            if let Err(error) = self.waiter.wait(&mut events, None) {
                tracing::error!(device = self.name, %error, "The device's thread cannot wait");
                return self.fail(&mut self.own());
            }
            self.serve(&events);
        }
    }

    fn serve(&self, events: &[Event]) {
        let cell = &mut *self.own();
        // Bells are answered before their queues are looked at, so that a ring in between is not lost.
        let mut all = false;
        for event in events {
            match event.token {
                TOKEN_CONTROL => all |= self.control.answer(),
                TOKEN_DEVICE => all |= self.device_bell.as_ref().is_some_and(Doorbell::answer),
                queue => {
                    if let Some(bell) = usize::try_from(queue).ok().and_then(|queue| self.bells.get(queue)) {
                        bell.answer();
                    }
                }
            }
        }
        if !cell.running || cell.quiet || self.needs_reset.load(Ordering::SeqCst) {
            // Level-triggered sources of the device would be reported again at once: wait for the one who holds it.
            if events.iter().any(|event| event.token >= FIRST_TOKEN) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            return;
        }
        let mut active = Active::new(&mut cell.queues, &self.ram, &self.wanted);
        let result = if all {
            (0..self.bells.len()).try_for_each(|queue| cell.device.serve(queue, &mut active))
        } else {
            Ok(())
        };
        let result = result.and_then(|()| {
            events.iter().try_for_each(|event| match event.token {
                FIRST_TOKEN.. => cell.device.ready(*event, &mut active),
                TOKEN_DEVICE | TOKEN_CONTROL => Ok(()),
                queue if !all => cell.device.serve(queue as usize, &mut active),
                _ => Ok(()),
            })
        });
        self.publish_config(&mut *cell.device);
        if let Err(error) = result {
            note_broken(self.name, error);
            self.fail(cell);
        }
    }
}
