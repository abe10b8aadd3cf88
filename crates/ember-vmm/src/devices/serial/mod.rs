//! The serial console: a 16550 UART whose output is kept in a bounded ring.

mod console;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ember_snapshot::state::SerialState;
use serde_bytes::ByteBuf;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event_loop::{EventHandler, EventRegistry};

use console::ConsoleWriter;
pub use console::{Console, ConsoleConfig, ConsoleSink};

/// Raises the UART's interrupt line.
#[derive(Clone, Debug)]
struct InterruptLine(Arc<EventFd>);

impl Trigger for InterruptLine {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The UART and what it is connected to.
pub(crate) struct SerialDevice {
    uart: Mutex<Serial<InterruptLine, NoEvents, ConsoleWriter>>,
    line: Arc<EventFd>,
    console: Console,
}

impl std::fmt::Debug for SerialDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialDevice")
            .field("console", &self.console)
            .finish_non_exhaustive()
    }
}

impl SerialDevice {
    /// A UART whose output goes where `config` says.
    pub(crate) fn new(config: ConsoleConfig) -> io::Result<Self> {
        let line = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (console, writer) = Console::new(config)?;
        let uart = Serial::new(InterruptLine(Arc::clone(&line)), writer);
        Ok(Self {
            uart: Mutex::new(uart),
            line,
            console,
        })
    }

    /// A UART as it was saved, with another far end.
    pub(crate) fn restore(config: ConsoleConfig, saved: &SerialState) -> io::Result<Self> {
        let line = Arc::new(EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?);
        let (console, writer) = Console::new(config)?;
        let state = vm_superio::serial::SerialState {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: saved.in_buffer.to_vec(),
        };
        let uart = Serial::from_state(&state, InterruptLine(Arc::clone(&line)), NoEvents, writer)
            .map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}"))
        })?;
        Ok(Self {
            uart: Mutex::new(uart),
            line,
            console,
        })
    }

    /// The registers, to be saved. Input that waits on the far end is not the guest's yet.
    pub(crate) fn save(&self) -> SerialState {
        let state = self.uart().state();
        SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: ByteBuf::from(state.in_buffer),
        }
    }

    /// Raises the interrupt line if the guest has not seen all that it is to see: an interrupt that
    /// was on its way when the device was saved is not part of what was saved.
    pub(crate) fn raise_unseen(&self) {
        // Bit 0 of the interrupt identification register is zero while an interrupt is pending.
        if self.uart().state().interrupt_identification & 1 == 0 {
            let _ = self.line.write(1);
        }
    }

    /// The eventfd that raises the UART's interrupt line.
    pub(crate) fn interrupt_line(&self) -> &EventFd {
        &self.line
    }

    /// The far end of the line.
    pub(crate) fn console(&self) -> &Console {
        &self.console
    }

    /// Registers what the device thread must watch.
    pub(crate) fn attach(&self, events: &EventRegistry) -> io::Result<()> {
        events.add_eventfd(self.console.wake(), 0)
    }

    /// The guest reads the register at `offset`.
    pub(crate) fn read(&self, offset: u8) -> u8 {
        let mut uart = self.uart();
        let value = uart.read(offset);
        // The guest made room, or asks: hand over what waits.
        self.console
            .feed(&mut |bytes| uart.enqueue_raw_bytes(bytes).unwrap_or(0));
        value
    }

    /// The guest writes the register at `offset`.
    pub(crate) fn write(&self, offset: u8, value: u8) {
        // It fails only when the interrupt line cannot be raised, which means that it is raised.
        let _ = self.uart().write(offset, value);
    }

    fn uart(&self) -> MutexGuard<'_, Serial<InterruptLine, NoEvents, ConsoleWriter>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventHandler for SerialDevice {
    fn ready(&self, _token: u32, _readiness: EventSet) {
        self.console.deliver_output();
        let mut uart = self.uart();
        self.console
            .feed(&mut |bytes| uart.enqueue_raw_bytes(bytes).unwrap_or(0));
    }
}
