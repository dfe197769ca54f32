//! What a virtio device is to the transport: identity, features, queues, configuration space, and work on its own thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use doorbell::{Doorbell, Event, Waiter};
use guest_memory::GuestRam;
use machine::pci::RestoreError;

use crate::queue::{Chain, Queue, QueueError};

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// Virtio device id (virtio 1.3 §5).
    pub id: u16,
    /// Its name in messages and thread names; at most 15 bytes.
    pub name: &'static str,
    /// PCI class, subclass and programming interface.
    pub class: [u8; 3],
}

/// A virtio device. The transport owns its status, features and queues; the device sees chains.
///
/// One thread serves a device. It may be stopped between any two chains: [`Device::serve`] returns early when
/// [`Active::should_yield`] says so and is called again later.
pub trait Device: Send + 'static {
    /// What it is.
    fn identity(&self) -> DeviceIdentity;

    /// Device-specific feature bits; the transport adds its own.
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, a power of two.
    fn queues(&self) -> Vec<u16>;

    /// The configuration space. Asked for once, and when [`Device::config_changed`] says so.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Whether the configuration space is another one than when this was last asked. Asked after each call that may change it; the
    /// driver is told.
    fn config_changed(&mut self) -> bool {
        false
    }

    /// Called once, before anything else, with the set its thread waits on. Tokens below [`FIRST_TOKEN`] are taken.
    fn attach(&mut self, waiter: &Arc<Waiter>) {
        let _ = waiter;
    }

    /// A bell that others ring to have every queue served.
    fn bell(&self) -> Option<Doorbell> {
        None
    }

    /// The driver is ready, with these features negotiated.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// Serves queue `index` until it is empty or the thread is wanted elsewhere.
    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError>;

    /// A descriptor that the device added to its waiter is ready.
    fn ready(&mut self, event: Event, active: &mut Active<'_>) -> Result<(), QueueError> {
        let _ = (event, active);
        Ok(())
    }

    /// The driver reset the device: everything it began is over.
    fn reset(&mut self);

    /// The device gave up on its driver, which has to reset it before anything goes on (virtio 1.3 §2.1.2): ends what others
    /// wait for.
    fn abandon(&mut self) {}

    /// The device's own state, without its queues; called between two requests. The error says why it has none.
    fn save(&self) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }

    /// Takes what [`Device::save`] gave; after [`Device::start`], if the driver was ready.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let _ = state;
        Ok(())
    }
}

/// The first token that a device may use in its waiter.
pub const FIRST_TOKEN: u64 = 1 << 16;

/// A device's queues while its driver is ready.
#[derive(Debug)]
pub struct Active<'a> {
    queues: &'a mut [Option<Queue>],
    ram: &'a GuestRam,
    wanted: &'a AtomicUsize,
}

impl<'a> Active<'a> {
    /// The queues of a running device; `wanted` counts those who want its thread to pause.
    pub(crate) fn new(queues: &'a mut [Option<Queue>], ram: &'a GuestRam, wanted: &'a AtomicUsize) -> Self {
        Self { queues, ram, wanted }
    }

    /// Guest memory, in which chains lie.
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// Whether the thread is wanted elsewhere: return after this chain.
    pub fn should_yield(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// The next chain of a queue; `None` too if the driver left the queue out.
    pub fn pop(&mut self, queue: usize) -> Result<Option<Chain>, QueueError> {
        match self.queues.get_mut(queue) {
            Some(Some(queue)) => queue.pop(),
            _ => Ok(None),
        }
    }

    /// Gives a chain back to the driver.
    pub fn complete(&mut self, queue: usize, chain: Chain) -> Result<(), QueueError> {
        match self.queues.get_mut(queue) {
            Some(Some(queue)) => queue.complete(chain),
            _ => Ok(()),
        }
    }

    /// Gives chains back to the driver, who sees all of them or none.
    pub fn complete_together(&mut self, queue: usize, chains: &[Chain]) -> Result<(), QueueError> {
        match self.queues.get_mut(queue) {
            Some(Some(queue)) => queue.complete_together(chains),
            _ => Ok(()),
        }
    }

    /// Puts the chain that was popped last back; the one before it may follow.
    pub fn put_back(&mut self, queue: usize, chain: Chain) {
        if let Some(Some(queue)) = self.queues.get_mut(queue) {
            queue.put_back(chain);
        }
    }

    /// Pops chains of a queue one by one, has `work` fill each and completes it, until the queue is empty or the thread
    /// is wanted.
    pub fn each(
        &mut self,
        queue: usize,
        mut work: impl FnMut(&mut Chain, &GuestRam),
    ) -> Result<(), QueueError> {
        while !self.should_yield()
            && let Some(mut chain) = self.pop(queue)?
        {
            work(&mut chain, self.ram);
            self.complete(queue, chain)?;
        }
        Ok(())
    }
}
