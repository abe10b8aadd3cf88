//! The filter is run by an interpreter of the few instructions that it is made of.

use super::*;

/// What the filter says of a call.
fn judge(arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_ne_bytes());
    data.extend_from_slice(&arch.to_ne_bytes());
    data.extend_from_slice(&0u64.to_ne_bytes());
    for argument in arguments {
        data.extend_from_slice(&argument.to_ne_bytes());
    }
    let program = program();
    let mut accumulator = 0;
    let mut place = 0;
    for _ in 0..program.len() {
        let instruction = program[place];
        place += 1;
        let code = u32::from(instruction.code);
        let is = |test: bool| usize::from(if test { instruction.jt } else { instruction.jf });
        if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS {
            let offset = instruction.k as usize;
            let bytes = data[offset..offset + 4].try_into().unwrap();
            accumulator = u32::from_ne_bytes(bytes);
        } else if code == libc::BPF_RET | libc::BPF_K {
            return instruction.k;
        } else if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K {
            place += is(accumulator == instruction.k);
        } else if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K {
            place += is(accumulator >= instruction.k);
        } else if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K {
            place += is(accumulator & instruction.k != 0);
        } else {
            panic!("an instruction that is none of the filter's: {code:#x}");
        }
    }
    panic!("no end");
}

fn call(number: i64, arguments: [u64; 6]) -> u32 {
    judge(ARCHITECTURE, number as u32, arguments)
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

#[test]
fn what_is_on_the_list_is_denied() {
    for &(number, denial) in DENIED.iter().chain(DENIED_HERE) {
        let errno = match denial {
            Forbidden => libc::EPERM,
            Missing => libc::ENOSYS,
        };
        assert_eq!(call(number, [0; 6]), refused(errno), "{number}");
    }
}

#[test]
fn what_programs_live_on_is_allowed() {
    for number in [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_openat,
        libc::SYS_mmap,
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_wait4,
        libc::SYS_kill,
        libc::SYS_futex,
        libc::SYS_connect,
        libc::SYS_epoll_wait,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_memfd_create,
        libc::SYS_socketpair,
    ] {
        assert_eq!(call(number, [0; 6]), ALLOWED, "{number}");
    }
}

#[test]
fn sockets_are_of_few_families() {
    for family in 0..64 {
        let judged = call(libc::SYS_socket, [family, 1, 0, 0, 0, 0]);
        let expected = match FAMILIES.contains(&(family as i32)) {
            true => ALLOWED,
            false => refused(libc::EAFNOSUPPORT),
        };
        assert_eq!(judged, expected, "{family}");
    }
    // The kernel looks at the low half alone (`int`).
    let vsock = libc::AF_VSOCK as u64 | 1 << 32;
    assert_eq!(
        call(libc::SYS_socket, [vsock, 1, 0, 0, 0, 0]),
        refused(libc::EAFNOSUPPORT)
    );
}

#[test]
fn clone_makes_threads_and_processes_but_no_namespaces() {
    let threads = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
    assert_eq!(call(libc::SYS_clone, [threads, 0, 0, 0, 0, 0]), ALLOWED);
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        let flags = flag as u64 | threads;
        assert_eq!(
            call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]),
            refused(libc::EPERM)
        );
    }
}

#[test]
fn nothing_is_typed_for_others() {
    let sti = libc::TIOCSTI;
    assert_eq!(
        call(libc::SYS_ioctl, [0, sti, 0, 0, 0, 0]),
        refused(libc::EPERM)
    );
    assert_eq!(
        call(libc::SYS_ioctl, [0, libc::TIOCGWINSZ, 0, 0, 0, 0]),
        ALLOWED
    );
}

#[test]
fn other_numbers_are_no_way_around() {
    assert_eq!(
        judge(0x4000_0003, libc::SYS_read as u32, [0; 6]),
        libc::SECCOMP_RET_KILL_PROCESS,
        "of 32 bits"
    );
    let x32 = OTHER_NUMBERS | libc::SYS_ptrace as u32;
    assert_eq!(judge(ARCHITECTURE, x32, [0; 6]), refused(libc::ENOSYS));
}

/// The kernel takes programs of at most 4096 instructions (`BPF_MAXINSNS`), as eight bytes each.
#[test]
fn the_kernel_can_be_handed_it() {
    let program = program();
    assert!(program.len() < 4096);
    let bytes = bytes(&program);
    assert_eq!(bytes.len(), program.len() * 8);
    assert_eq!(bytes[4..8], ARCH.to_ne_bytes());
}
