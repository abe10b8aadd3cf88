//! A VM, as async code can hold one: its end can be awaited, and it is freed on another thread.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ember_vmm::ExitReason;
use tokio::sync::watch;

use super::vm::{ConsoleTail, GuestVm};
use crate::error::Error;

/// How long a guest whose agent has hung up is given to end, so that the reason can be told. It has
/// little left to do, but on a busy host that takes its time: its devices were shut down first.
const LAST_WORDS: Duration = Duration::from_secs(20);
/// How many of the console's last lines a message shows.
const SHOWN_LINES: usize = 20;

/// A VM that nobody has to wait for: dropping this ends it and returns at once.
#[derive(Debug)]
pub(crate) struct Machine {
    /// There until it is closed or dropped; shared while its state is being taken.
    vm: Option<Arc<GuestVm>>,
    watcher: Watcher,
}

/// Knows whether, and why, a VM has ended; also when the VM is gone.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    ended: watch::Receiver<Option<ExitReason>>,
    console: ConsoleTail,
}

/// The host's end of the guest channel, once there is one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(Arc<Mutex<Option<UnixStream>>>);

impl Line {
    /// Remembers `stream`, to be hung up when the VM ends.
    pub(crate) fn set(&self, stream: UnixStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    /// Ends the channel: whoever reads it gets what has arrived, and then its end.
    fn hang_up(&self) {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stream) = stream {
            // It fails if the other end was first.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Machine {
    /// Watches over `vm`. When it ends, `line` is hung up: the VM outlives its guest, and with it
    /// the channel's other end, so that nobody would notice.
    pub(crate) fn new(vm: GuestVm, line: Line) -> Self {
        let (sender, ended) = watch::channel(None);
        vm.on_exit(Box::new(move |reason| {
            // In this order: whoever sees the channel end can learn why.
            sender.send_replace(Some(reason.clone()));
            line.hang_up();
        }));
        let watcher = Watcher {
            ended,
            console: vm.console_tail(),
        };
        Self {
            vm: Some(Arc::new(vm)),
            watcher,
        }
    }

    pub(crate) fn watcher(&self) -> &Watcher {
        &self.watcher
    }

    /// The VM, to be paused and looked at.
    pub(crate) fn vm(&self) -> Option<Arc<GuestVm>> {
        self.vm.clone()
    }

    /// Lets the guest run, with another generation id than before if there is a new one, which is
    /// to be [announced](GuestVm::announce). Does not wait.
    pub(crate) fn start(&self, generation_id: Option<[u8; 16]>) -> Result<(), Error> {
        match &self.vm {
            Some(vm) => vm.start(generation_id),
            None => Ok(()),
        }
    }

    /// Ends the guest without freeing the VM.
    pub(crate) fn stop(&self) {
        if let Some(vm) = &self.vm {
            vm.stop();
        }
    }

    /// Ends the guest and frees everything that the VM held, right here.
    pub(crate) fn end(mut self) {
        if let Some(vm) = self.vm.take() {
            GuestVm::end(vm);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let Some(vm) = self.vm.take() else { return };
        vm.stop();
        if let GuestVm::Remote(_) = *vm {
            // Its process was killed, and the kernel frees what it held. Who reaps it is not here.
            return;
        }
        // Joining the VM's threads and closing its descriptors waits for the kernel, some tens of
        // milliseconds: not on a thread that runs other futures. If there is no other thread to be
        // had, the closure is dropped, and the VM with it, right here.
        let reaper = thread::Builder::new().name("ember-reaper".to_owned());
        drop(reaper.spawn(move || drop(vm)));
    }
}

impl Watcher {
    /// Waits for the VM to end.
    pub(crate) async fn ended(&self) -> ExitReason {
        let mut ended = self.ended.clone();
        let reason = ended.wait_for(Option::is_some).await;
        match reason {
            Ok(reason) => reason.clone().unwrap_or(ExitReason::Stopped),
            // Gone without a word: it was dropped before it could say so.
            Err(_) => ExitReason::Stopped,
        }
    }

    /// Whether the VM has not ended yet.
    pub(crate) fn is_alive(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Why the VM ended, if it has or does within a moment.
    pub(crate) async fn last_words(&self) -> Option<ExitReason> {
        tokio::time::timeout(LAST_WORDS, self.ended()).await.ok()
    }

    /// The console's last lines, indented, after a line that says so; nothing if there are none.
    pub(crate) fn console_tail(&self) -> String {
        console_tail(&self.console.bytes())
    }
}

fn console_tail(bytes: &[u8]) -> String {
    // A guest writes what it likes, and this goes to terminals.
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    if shown.is_empty() {
        return String::new();
    }
    let mut tail = String::from("\nThe guest's console ended with:");
    for line in shown {
        tail.push_str("\n  | ");
        tail.push_str(line);
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consoles_tail_is_its_last_lines_without_what_steers_a_terminal() {
        let mut console = String::new();
        for number in 0..100 {
            console.push_str(&format!("[ 0.1] line {number}\r\n\r\n"));
        }
        console.push_str("\x1b[2J\x07the end \u{9b}31m\n");
        let tail = console_tail(console.as_bytes());
        let lines: Vec<&str> = tail.lines().collect();
        assert_eq!(lines.len(), 2 + SHOWN_LINES, "{tail}");
        assert_eq!(lines[2], "  | [ 0.1] line 81");
        assert_eq!(lines[lines.len() - 1], "  | [2Jthe end 31m");
        assert_eq!(console_tail(b"\r\n \n"), "");
    }
}
