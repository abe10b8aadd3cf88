//! The serial console: a 16550 UART whose output is kept in a bounded ring.

mod console;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
