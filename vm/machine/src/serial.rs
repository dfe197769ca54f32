//! The first serial port, for what the kernel says before the agent speaks. Output only; no interrupt line.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use backends::ConsoleBackend;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};

struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;
    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

struct Sink(Arc<dyn ConsoleBackend>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A 16550A at [`crate::layout::SERIAL_PORT`].
pub(crate) struct Serial(Mutex<Uart<NoInterrupt, NoEvents, Sink>>);

impl Serial {
    pub(crate) fn new(output: Arc<dyn ConsoleBackend>) -> Self {
        Self(Mutex::new(Uart::new(NoInterrupt, Sink(output))))
    }

    /// Reads registers from `offset` on, one byte each; beyond the last one reads as ones.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter_mut().zip(offset..) {
            *byte = if register < crate::layout::SERIAL_PORTS { uart.read(register as u8) } else { 0xff };
        }
    }

    /// Writes registers from `offset` on.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) {
        let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter().zip(offset..) {
            if register < crate::layout::SERIAL_PORTS {
                // The only error is that the output could not be written, which `Sink` never reports.
                let _ = uart.write(register as u8, *byte);
            }
        }
    }
}
