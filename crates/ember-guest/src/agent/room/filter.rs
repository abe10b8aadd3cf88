//! Which system calls a confined command cannot make (seccomp(2)).
//!
//! A list of what is denied, each with its reason: programs of any language have to run. What takes
//! a capability is denied by the kernel anyhow, and is on the list where a flaw in the kernel would
//! be the way around that. The kernel works out once which calls are always allowed
//! (`kernel/seccomp.c`, `seccomp_cache`), and does not run the filter for them.

use nix::libc::{self, sock_filter};

/// What the call says that it was denied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denial {
    /// `EPERM`: may not.
    Forbidden,
    /// `ENOSYS`: is not there, and something else does instead.
    Missing,
}

use Denial::{Forbidden, Missing};

const DENIED: &[(i64, Denial)] = &[
    // Flags are in memory, where a filter cannot look; the C library goes on with clone(2).
    (libc::SYS_clone3, Missing),
    // Makes sockets, and all else, past this filter.
    (libc::SYS_io_uring_setup, Missing),
    (libc::SYS_io_uring_enter, Missing),
    (libc::SYS_io_uring_register, Missing),
    // Reading, writing and stopping other processes.
    (libc::SYS_ptrace, Forbidden),
    (libc::SYS_process_vm_readv, Forbidden),
    (libc::SYS_process_vm_writev, Forbidden),
    (libc::SYS_process_madvise, Forbidden),
    (libc::SYS_pidfd_getfd, Forbidden),
    (libc::SYS_kcmp, Forbidden),
    // Namespaces, in which one has rights again: of users (user_namespaces(7)), or others'.
    (libc::SYS_unshare, Forbidden),
    (libc::SYS_setns, Forbidden),
    // What is where.
    (libc::SYS_mount, Forbidden),
    (libc::SYS_umount2, Forbidden),
    (libc::SYS_pivot_root, Forbidden),
    (libc::SYS_chroot, Forbidden),
    (libc::SYS_open_tree, Forbidden),
    (libc::SYS_move_mount, Forbidden),
    (libc::SYS_fsopen, Forbidden),
    (libc::SYS_fsconfig, Forbidden),
    (libc::SYS_fsmount, Forbidden),
    (libc::SYS_fspick, Forbidden),
    (libc::SYS_mount_setattr, Forbidden),
    (libc::SYS_swapon, Forbidden),
    (libc::SYS_swapoff, Forbidden),
    (libc::SYS_quotactl, Forbidden),
    // Files by numbers, past directories' permissions and mounts (open_by_handle_at(2)).
    (libc::SYS_open_by_handle_at, Forbidden),
    // Another kernel, more of this one, and its end.
    (libc::SYS_kexec_load, Forbidden),
    (libc::SYS_kexec_file_load, Forbidden),
    (libc::SYS_init_module, Forbidden),
    (libc::SYS_finit_module, Forbidden),
    (libc::SYS_delete_module, Forbidden),
    (libc::SYS_reboot, Forbidden),
    // Programs in the kernel, and looking into it.
    (libc::SYS_bpf, Forbidden),
    (libc::SYS_perf_event_open, Forbidden),
    (libc::SYS_syslog, Forbidden),
    (libc::SYS_acct, Forbidden),
    // Holds the kernel up in the middle of an access: what exploits are made of.
    (libc::SYS_userfaultfd, Forbidden),
    // Keyrings are the user's, in all rooms.
    (libc::SYS_add_key, Forbidden),
    (libc::SYS_request_key, Forbidden),
    (libc::SYS_keyctl, Forbidden),
    // The whole guest's.
    (libc::SYS_settimeofday, Forbidden),
    (libc::SYS_clock_settime, Forbidden),
    (libc::SYS_sethostname, Forbidden),
    (libc::SYS_setdomainname, Forbidden),
    (libc::SYS_fanotify_init, Forbidden),
];

/// What only this architecture has.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[(i64, Denial)] = &[
    // Ports, and segments that the kernel has had much trouble with.
    (libc::SYS_iopl, Forbidden),
    (libc::SYS_ioperm, Forbidden),
    (libc::SYS_modify_ldt, Forbidden),
];

/// Families of sockets that there are: of this machine, of the Internet, and the kernel's answers on
/// interfaces and addresses. No others, vsock above all, at whose other end the host is.
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// Every namespace that clone(2) could make.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `AUDIT_ARCH_X86_64` of `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT`: the same calls, under other numbers.
const OTHER_NUMBERS: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The low half of an argument.
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k: value,
    }
}

const fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

const fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

/// Skips what follows: so many instructions if it is so, so many if not.
const fn jump(test: u32, value: u32, is_so: u8, is_not: u8) -> sock_filter {
    sock_filter {
        code: (libc::BPF_JMP | test | libc::BPF_K) as u16,
        jt: is_so,
        jf: is_not,
        k: value,
    }
}

const ALLOW: sock_filter = answer(libc::SECCOMP_RET_ALLOW);

const fn error(errno: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// The filter, as the kernel takes it.
pub(crate) fn program() -> Vec<sock_filter> {
    let mut all = vec![
        load(ARCH),
        // The numbers of another architecture (`int 0x80`) mean something else.
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        jump(libc::BPF_JGE, OTHER_NUMBERS, 0, 1),
        error(libc::ENOSYS),
    ];
    for &(number, denial) in DENIED.iter().chain(DENIED_HERE) {
        // Numbers of system calls are small.
        all.push(jump(libc::BPF_JEQ, number as u32, 0, 1));
        all.push(error(match denial {
            Forbidden => libc::EPERM,
            Missing => libc::ENOSYS,
        }));
    }
    // The number is loaded up to here, so the calls whose arguments count come last, each with its
    // own end.
    all.extend([
        jump(libc::BPF_JEQ, libc::SYS_socket as u32, 0, 7),
        load(argument(0)),
        jump(libc::BPF_JEQ, FAMILIES[0] as u32, 3, 0),
        jump(libc::BPF_JEQ, FAMILIES[1] as u32, 2, 0),
        jump(libc::BPF_JEQ, FAMILIES[2] as u32, 1, 0),
        jump(libc::BPF_JEQ, FAMILIES[3] as u32, 0, 1),
        ALLOW,
        error(libc::EAFNOSUPPORT),
    ]);
    all.extend([
        jump(libc::BPF_JEQ, libc::SYS_clone as u32, 0, 4),
        load(argument(0)),
        jump(libc::BPF_JSET, NAMESPACES as u32, 0, 1),
        error(libc::EPERM),
        ALLOW,
    ]);
    all.extend([
        jump(libc::BPF_JEQ, libc::SYS_ioctl as u32, 0, 4),
        load(argument(1)),
        // Types into a terminal that others read from.
        jump(libc::BPF_JEQ, libc::TIOCSTI as u32, 0, 1),
        error(libc::EPERM),
        ALLOW,
    ]);
    all.push(ALLOW);
    all
}

/// The same as bytes, for a process that hands it to the kernel itself.
pub(crate) fn bytes(program: &[sock_filter]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size_of_val(program));
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests;
