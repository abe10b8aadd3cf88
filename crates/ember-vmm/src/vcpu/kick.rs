//! Getting a vCPU thread out of the guest, from any thread.
//!
//! `KVM_RUN` returns with `EINTR` when a signal is pending or when `kvm_run.immediate_exit` is set
//! (kernel `Documentation/virt/kvm/api.rst`, section 5). A signal alone can arrive just before the
//! ioctl and be lost, so the kicker sets the flag first and then sends the signal: whichever comes
//! in time ends the run.
#![allow(unsafe_code, reason = "signals and the byte that KVM reads")]

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VcpuFd;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Where to kick one vCPU: its thread and its `immediate_exit` byte.
#[derive(Debug, Default)]
pub(crate) struct KickTarget(Mutex<Option<Target>>);

#[derive(Debug)]
struct Target {
    thread: libc::pthread_t,
    immediate_exit: *const AtomicU8,
}

// SAFETY: the pointer is dereferenced only under the mutex, and only while the vCPU thread that
// registered it is alive and holds the mapping (see `Registration`).
unsafe impl Send for Target {}

/// The vCPU thread can be kicked until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    target: &'a KickTarget,
    immediate_exit: *const AtomicU8,
}

impl KickTarget {
    /// Makes the calling thread, which is about to run `vcpu`, the one that is kicked. The vCPU
    /// must outlive the registration, which the caller ensures by dropping it first.
    pub(crate) fn register(&self, vcpu: &mut VcpuFd) -> Registration<'_> {
        let byte: *mut u8 = &raw mut vcpu.get_kvm_run().immediate_exit;
        let immediate_exit = byte.cast::<AtomicU8>().cast_const();
        // SAFETY: asks for the caller's own handle and has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target {
            thread,
            immediate_exit,
        });
        Registration {
            target: self,
            immediate_exit,
        }
    }

    /// Makes the vCPU leave the guest as soon as possible; it does nothing if its thread is gone.
    pub(crate) fn kick(&self, signal: i32) {
        let target = self.lock();
        if let Some(target) = target.as_ref() {
            // SAFETY: the registration is alive, since the mutex is held and it would have taken
            // the target away, so the `kvm_run` page is still mapped.
            let immediate_exit = unsafe { &*target.immediate_exit };
            immediate_exit.store(1, Ordering::SeqCst);
            // SAFETY: for the same reason the thread has not ended, so its handle is valid.
            let result = unsafe { libc::pthread_kill(target.thread, signal) };
            debug_assert_eq!(
                result, 0,
                "the kick signal was validated when the VM was built"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Target>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration<'_> {
    /// Forgets a kick that was taken.
    pub(crate) fn clear(&self) {
        self.set(0);
    }

    /// Makes the next `KVM_RUN` return at once, after completing the access it owes the guest.
    pub(crate) fn exit_immediately(&self) {
        self.set(1);
    }

    fn set(&self, value: u8) {
        // SAFETY: the vCPU outlives this registration, by the contract of `register`.
        let immediate_exit = unsafe { &*self.immediate_exit };
        immediate_exit.store(value, Ordering::SeqCst);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        *self.target.lock() = None;
    }
}

/// The default kick signal: the last but one real-time signal, which few programs use.
pub fn default_kick_signal() -> i32 {
    libc::SIGRTMAX() - 1
}

extern "C" fn ignore(_signal: libc::c_int) {}

/// Makes sure that `signal` interrupts system calls and does nothing else.
///
/// # Errors
/// `InvalidInput` if the signal is not a real-time signal or the application has a handler of its
/// own for it, which is left alone.
pub(crate) fn install_handler(signal: i32) -> io::Result<()> {
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "signal {signal} is not a real-time signal ({} to {})",
                libc::SIGRTMIN(),
                libc::SIGRTMAX()
            ),
        ));
    }
    let ours = ignore as extern "C" fn(libc::c_int) as usize;
    // SAFETY: all zeroes is a valid `sigaction`: default action, empty mask, no flags.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads the present one into a valid place.
    let read = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut previous) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    if previous.sa_sigaction == ours {
        return Ok(());
    }
    if previous.sa_sigaction != libc::SIG_DFL && previous.sa_sigaction != libc::SIG_IGN {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the application has a handler for signal {signal}; choose another one"),
        ));
    }
    // SAFETY: all zeroes is a valid `sigaction`; without SA_RESTART the signal interrupts.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = ours;
    // SAFETY: the action is complete, and its handler does nothing, so it is async-signal-safe.
    let set = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Keeps the application's signals off the calling thread: its handlers are not meant to run here.
/// Those a thread raises by a fault of its own cannot be blocked and are not.
pub(crate) fn block_application_signals() {
    // It fails only for an unknown `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
}

/// Blocks everything but the kick signal on the calling thread.
pub(crate) fn block_all_but(signal: i32) {
    block_application_signals();
    // SAFETY: all zeroes is a valid set, which the next call initialises properly.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place for a signal set.
    unsafe { libc::sigemptyset(&raw mut set) };
    // SAFETY: `set` was initialised; the number was validated when the VM was built.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: `set` was initialised, and no old set is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) };
}
