//! The far end of the serial line: a ring of the last output, an optional live sink, and input.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How many bytes of input may wait for the guest.
const INPUT_LIMIT: usize = 4096;

/// Receives console output as it comes, on the device thread. It must not block.
pub type ConsoleSink = Box<dyn FnMut(&[u8]) + Send>;

/// What a guest's serial console is connected to.
pub struct ConsoleConfig {
    /// How many bytes of the latest output are kept for [`Console::tail`].
    pub keep_bytes: usize,
    /// Who else gets the output, live.
    pub sink: Option<ConsoleSink>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            keep_bytes: 16 * 1024,
            sink: None,
        }
    }
}

impl fmt::Debug for ConsoleConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleConfig")
            .field("keep_bytes", &self.keep_bytes)
            .field("sink", &self.sink.is_some())
            .finish()
    }
}

/// A guest's serial console. A clone is another handle on the same console.
#[derive(Clone)]
pub struct Console {
    shared: Arc<Shared>,
}

struct Shared {
    lines: Mutex<Lines>,
    sink: Mutex<Option<ConsoleSink>>,
    has_sink: bool,
    keep_bytes: usize,
    /// The device thread was told that something waits for it.
    told: AtomicBool,
    wake: EventFd,
}

struct Lines {
    output: VecDeque<u8>,
    /// How many bytes at the end of `output` the sink has not seen.
    undelivered: usize,
    input: VecDeque<u8>,
}

impl Console {
    pub(super) fn new(config: ConsoleConfig) -> io::Result<(Self, ConsoleWriter)> {
        let shared = Arc::new(Shared {
            lines: Mutex::new(Lines {
                output: VecDeque::new(),
                undelivered: 0,
                input: VecDeque::new(),
            }),
            has_sink: config.sink.is_some(),
            sink: Mutex::new(config.sink),
            keep_bytes: config.keep_bytes.max(1),
            told: AtomicBool::new(false),
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        Ok((
            Self {
                shared: Arc::clone(&shared),
            },
            ConsoleWriter { shared },
        ))
    }

    /// The latest output, oldest byte first, at most as much as was configured to be kept.
    pub fn tail(&self) -> Vec<u8> {
        self.shared.lines().output.iter().copied().collect()
    }

    /// Types `bytes` on the guest's console. Returns how many were taken; the rest does not fit
    /// until the guest reads.
    pub fn write_input(&self, bytes: &[u8]) -> usize {
        let mut lines = self.shared.lines();
        let room = INPUT_LIMIT.saturating_sub(lines.input.len());
        let taken = bytes.len().min(room);
        lines.input.extend(bytes.iter().take(taken));
        drop(lines);
        self.shared.tell();
        taken
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.shared.wake
    }

    /// Hands input that waits to `accept`, which says how much it took.
    pub(super) fn feed(&self, accept: &mut dyn FnMut(&[u8]) -> usize) {
        let mut lines = self.shared.lines();
        if lines.input.is_empty() {
            return;
        }
        let taken = accept(lines.input.make_contiguous());
        lines.input.drain(..taken);
    }

    /// Gives the sink what it has not seen. If the guest wrote more than is kept since the last
    /// time, the oldest of it is lost.
    pub(super) fn deliver_output(&self) {
        let _ = self.shared.wake.read();
        self.shared.told.store(false, Ordering::SeqCst);
        let mut sink = self
            .shared
            .sink
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = sink.as_mut() {
            let mut lines = self.shared.lines();
            let start = lines.output.len() - lines.undelivered;
            let bytes: Vec<u8> = lines.output.range(start..).copied().collect();
            lines.undelivered = 0;
            drop(lines);
            if !bytes.is_empty() {
                sink(&bytes);
            }
        }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("kept", &self.shared.lines().output.len())
            .finish()
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        if !self.told.swap(true, Ordering::SeqCst) {
            let _ = self.wake.write(1);
        }
    }
}

/// The UART's end. Writing never blocks: a vCPU thread does it.
pub(super) struct ConsoleWriter {
    shared: Arc<Shared>,
}

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.shared.lines();
        lines.output.extend(bytes);
        let excess = lines.output.len().saturating_sub(self.shared.keep_bytes);
        lines.output.drain(..excess);
        lines.undelivered = (lines.undelivered + bytes.len()).min(lines.output.len());
        drop(lines);
        if self.shared.has_sink {
            self.shared.tell();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_latest_bytes_and_the_sink_gets_each_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let copy = Arc::clone(&seen);
        let sink: ConsoleSink = Box::new(move |bytes| copy.lock().unwrap().extend(bytes));
        let (console, mut writer) = Console::new(ConsoleConfig {
            keep_bytes: 8,
            sink: Some(sink),
        })
        .unwrap();
        writer.write_all(b"hello ").unwrap();
        console.deliver_output();
        writer.write_all(b"world").unwrap();
        console.deliver_output();
        console.deliver_output();
        assert_eq!(console.tail(), b"lo world");
        assert_eq!(*seen.lock().unwrap(), b"hello world");
        writer.write_all(b"0123456789abcdef").unwrap();
        console.deliver_output();
        assert_eq!(console.tail(), b"89abcdef");
        assert!(seen.lock().unwrap().ends_with(b"world89abcdef"));
    }

    #[test]
    fn input_is_bounded() {
        let (console, _writer) = Console::new(ConsoleConfig::default()).unwrap();
        assert_eq!(console.write_input(&[b'x'; INPUT_LIMIT + 10]), INPUT_LIMIT);
        assert_eq!(console.write_input(b"y"), 0);
        let mut got = 0;
        console.feed(&mut |bytes| {
            got = bytes.len();
            100
        });
        assert_eq!(got, INPUT_LIMIT);
        assert_eq!(console.write_input(&[b'y'; 200]), 100);
    }
}
