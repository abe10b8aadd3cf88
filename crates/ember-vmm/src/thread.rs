//! The threads of a VM: named, without the application's signals, and never gone without a word.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// Enough for the work of one exit or event with room to spare; what is not used is not touched.
const STACK_BYTES: usize = 256 * 1024;

/// Runs `body` on a thread of its own. If it panics, which is a bug of ours, `failed` is called
/// with what it said, so that the VM ends instead of hanging.
pub(crate) fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
    failed: impl FnOnce(String) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let label = name.clone();
    Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // What the body shares is behind mutexes whose poison is ignored, and `failed` ends the VM.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                failed(format!(
                    "thread {label} panicked: {}",
                    message(panic.as_ref())
                ));
            }
        })
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
