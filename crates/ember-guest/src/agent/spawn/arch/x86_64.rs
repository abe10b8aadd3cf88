//! clone3(2) with a stack of its own, which no C library offers as a function.
#![allow(
    unsafe_code,
    reason = "a system call that comes back twice has to be assembly"
)]

use std::arch::asm;
use std::ffi::c_void;

use nix::libc;

/// Makes a process that calls `entry(argument)` on the stack that `arguments` names, and returns
/// what the kernel returned to the caller: the process's number, or a negated error.
///
/// # Safety
/// `arguments` has to name a stack that nothing else uses for as long as the process runs on it,
/// and `argument` has to be what `entry` expects, for as long. With `CLONE_VM`, the caller must
/// be the only thread and `CLONE_VFORK` set, so that nothing but `entry` runs until it is done.
pub(in super::super) unsafe fn clone_onto(
    arguments: &libc::clone_args,
    entry: extern "C" fn(*const c_void) -> !,
    argument: *const c_void,
) -> i64 {
    let result: i64;
    // SAFETY: the parent's side is a plain system call, which changes rax, rcx and r11 and reads
    // `arguments`. The child's side never comes back: it runs `entry` on a stack of its own, whose
    // top is aligned to 16 bytes as the call instruction needs it (System V ABI, 3.2.2), with the
    // frame pointer cleared to end backtraces (3.4.1).
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}
