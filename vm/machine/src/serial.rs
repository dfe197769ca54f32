//! The first serial port, for what the kernel says before its virtio console is there. Output only; no interrupt line.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use backends::ConsoleBackend;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState as UartState};

use crate::pci::RestoreError;

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

/// The serial port's state, as a snapshot holds it: its registers by their names in the 16550A's data sheet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SerialState {
    /// Divisor latch, both bytes.
    #[prost(uint32, tag = "1")]
    pub divisor: u32,
    /// Interrupt enable.
    #[prost(uint32, tag = "2")]
    pub interrupt_enable: u32,
    /// Interrupt identification.
    #[prost(uint32, tag = "3")]
    pub interrupt_identification: u32,
    /// Line control.
    #[prost(uint32, tag = "4")]
    pub line_control: u32,
    /// Line status.
    #[prost(uint32, tag = "5")]
    pub line_status: u32,
    /// Modem control.
    #[prost(uint32, tag = "6")]
    pub modem_control: u32,
    /// Modem status.
    #[prost(uint32, tag = "7")]
    pub modem_status: u32,
    /// Scratch.
    #[prost(uint32, tag = "8")]
    pub scratch: u32,
    /// Bytes to be read, oldest first (the guest's own, in loopback mode).
    #[prost(bytes = "vec", tag = "9")]
    pub received: Vec<u8>,
}

/// A 16550A at [`crate::layout::SERIAL_PORT`].
pub(crate) struct Serial {
    uart: Mutex<Uart<NoInterrupt, NoEvents, Sink>>,
    output: Arc<dyn ConsoleBackend>,
}

impl Serial {
    pub(crate) fn new(output: Arc<dyn ConsoleBackend>) -> Self {
        Self { uart: Mutex::new(Uart::new(NoInterrupt, Sink(output.clone()))), output }
    }

    pub(crate) fn save(&self) -> SerialState {
        let uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner).state();
        SerialState {
            divisor: u16::from_le_bytes([uart.baud_divisor_low, uart.baud_divisor_high]).into(),
            interrupt_enable: uart.interrupt_enable.into(),
            interrupt_identification: uart.interrupt_identification.into(),
            line_control: uart.line_control.into(),
            line_status: uart.line_status.into(),
            modem_control: uart.modem_control.into(),
            modem_status: uart.modem_status.into(),
            scratch: uart.scratch.into(),
            received: uart.in_buffer,
        }
    }

    pub(crate) fn restore(&self, state: &SerialState) -> Result<(), RestoreError> {
        let mismatch = || RestoreError::Mismatch("the serial port has impossible registers".to_owned());
        let register = |value| u8::try_from(value).map_err(|_| mismatch());
        let [baud_divisor_low, baud_divisor_high] =
            u16::try_from(state.divisor).map_err(|_| mismatch())?.to_le_bytes();
        let state = UartState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: register(state.interrupt_enable)?,
            interrupt_identification: register(state.interrupt_identification)?,
            line_control: register(state.line_control)?,
            line_status: register(state.line_status)?,
            modem_control: register(state.modem_control)?,
            modem_status: register(state.modem_status)?,
            scratch: register(state.scratch)?,
            in_buffer: state.received.clone(),
        };
        // The only error is that more was received than the FIFO holds.
        let uart = Uart::from_state(&state, NoInterrupt, NoEvents, Sink(self.output.clone()))
            .map_err(|_| mismatch())?;
        *self.uart.lock().unwrap_or_else(PoisonError::into_inner) = uart;
        Ok(())
    }

    /// Reads registers from `offset` on, one byte each; beyond the last one reads as ones.
    pub(crate) fn read(&self, offset: u16, data: &mut [u8]) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter_mut().zip(offset..) {
            *byte = if register < crate::layout::SERIAL_PORTS { uart.read(register as u8) } else { 0xff };
        }
    }

    /// Writes registers from `offset` on.
    pub(crate) fn write(&self, offset: u16, data: &[u8]) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, register) in data.iter().zip(offset..) {
            if register < crate::layout::SERIAL_PORTS {
                // The only error is that the output could not be written, which `Sink` never reports.
                let _ = uart.write(register as u8, *byte);
            }
        }
    }
}
