//! virtio-console (virtio 1.3 §5.3) with one port: `hvc0`.
//!
//! Output goes to a [`ConsoleBackend`], which bounds what it keeps. Input waits in a bounded buffer until the guest
//! offers room.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backends::ConsoleBackend;
use doorbell::Doorbell;
use machine::pci::RestoreError;
use prost::Message;

use crate::device::{Active, Device, DeviceIdentity};
use crate::queue::QueueError;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUE_SIZE: u16 = 64;
/// Bytes of input that wait at most.
const INPUT_MAX: usize = 64 << 10;
/// Bytes copied at a time.
const PIECE: usize = 4096;

/// The console's own state in a snapshot.
#[derive(Clone, PartialEq, Message)]
struct Saved {
    /// Input that the guest has not read.
    #[prost(bytes = "vec", tag = "1")]
    input: Vec<u8>,
}

#[derive(Debug)]
struct Input {
    waiting: Mutex<VecDeque<u8>>,
    bell: Doorbell,
}

impl Input {
    fn locked(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Types into a console. Clones type into the same one.
#[derive(Clone, Debug)]
pub struct ConsoleInput(Arc<Input>);

impl ConsoleInput {
    /// Queues bytes for the guest; gives how many were taken, as the buffer is bounded. Never blocks.
    pub fn write(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.0.locked();
        let room = INPUT_MAX.saturating_sub(waiting.len());
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or(&[]);
        waiting.extend(taken);
        drop(waiting);
        self.0.bell.ring();
        taken.len()
    }
}

/// A console with one port.
pub struct Console {
    output: Arc<dyn ConsoleBackend>,
    input: Arc<Input>,
}

impl Console {
    /// A console that writes to `output`, and the handle to type into it. Fails only when the process is out of
    /// descriptors.
    pub fn new(output: Arc<dyn ConsoleBackend>) -> std::io::Result<(Self, ConsoleInput)> {
        let input = Arc::new(Input { waiting: Mutex::default(), bell: Doorbell::new()? });
        Ok((Self { output, input: input.clone() }, ConsoleInput(input)))
    }

    fn receive(&self, active: &mut Active<'_>) -> Result<(), QueueError> {
        let mut waiting = self.input.locked();
        while !waiting.is_empty()
            && !active.should_yield()
            && let Some(mut chain) = active.pop(RECEIVE)?
        {
            let mut writer = chain.writer(active.ram());
            let taken = writer.write(waiting.as_slices().0);
            waiting.drain(..taken);
            active.complete(RECEIVE, chain)?;
        }
        Ok(())
    }

    fn transmit(&self, active: &mut Active<'_>) -> Result<(), QueueError> {
        active.each(TRANSMIT, |chain, ram| {
            let mut piece = [0; PIECE];
            let mut reader = chain.reader(ram);
            loop {
                let len = reader.read(&mut piece);
                match piece.get(..len) {
                    None | Some([]) => return,
                    Some(bytes) => self.output.output(bytes),
                }
            }
        })
    }
}

impl Device for Console {
    fn identity(&self) -> DeviceIdentity {
        DeviceIdentity { id: 3, name: "virtio-console", class: [7, 0x80, 0] }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE]
    }

    /// `struct virtio_console_config`; without SIZE, MULTIPORT and EMERG_WRITE nothing in it is valid.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn bell(&self) -> Option<Doorbell> {
        Some(self.input.bell.clone())
    }

    fn serve(&mut self, index: usize, active: &mut Active<'_>) -> Result<(), QueueError> {
        match index {
            RECEIVE => self.receive(active),
            _ => self.transmit(active),
        }
    }

    /// What was typed stays for the next driver: a driver begins with a reset.
    fn reset(&mut self) {}

    fn save(&self) -> Result<Vec<u8>, String> {
        Ok(Saved { input: self.input.locked().iter().copied().collect() }.encode_to_vec())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved = Saved::decode(state).map_err(RestoreError::Decode)?;
        if saved.input.len() > INPUT_MAX {
            return Err(RestoreError::Mismatch("too much console input".to_owned()));
        }
        *self.input.locked() = saved.input.into();
        Ok(())
    }
}
