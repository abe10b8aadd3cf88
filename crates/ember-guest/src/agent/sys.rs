//! System calls that no crate wraps, each behind a function that cannot be misused.
#![allow(
    unsafe_code,
    reason = "system calls without a safe wrapper; no pointer outlives a call"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::libc;
use zeroize::Zeroize;

use crate::protocol::{PtySize, Status};

/// A child that has ended.
#[derive(Debug)]
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    pub(crate) status: Status,
    pub(crate) user: Duration,
    pub(crate) system: Duration,
    pub(crate) peak_rss: u64,
}

/// Takes leave of one child that has ended, if any has.
pub(crate) fn reap() -> Option<Reaped> {
    wait(-1, libc::WNOHANG)
}

/// Waits for a child that is about to end.
pub(crate) fn reap_child(pid: i32) -> Option<Reaped> {
    wait(pid, 0)
}

fn wait(which: i32, options: i32) -> Option<Reaped> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live memory of the right type, of which an `rusage` of
        // zeroes is a valid value too.
        let pid = unsafe {
            libc::wait4(
                which,
                &raw mut status,
                options | libc::__WALL,
                usage.as_mut_ptr(),
            )
        };
        if pid < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
            continue;
        }
        if pid <= 0 {
            return None;
        }
        // SAFETY: zeroed above, and written by the call that succeeded.
        let usage = unsafe { usage.assume_init() };
        // Without WUNTRACED and WCONTINUED, a child that is reported has ended (wait4(2)).
        let status = if libc::WIFSIGNALED(status) {
            Status::Signaled(libc::WTERMSIG(status) as u8)
        } else {
            Status::Exited(libc::WEXITSTATUS(status) as u8)
        };
        return Some(Reaped {
            pid,
            status,
            user: duration(usage.ru_utime),
            system: duration(usage.ru_stime),
            peak_rss: u64::try_from(usage.ru_maxrss)
                .unwrap_or(0)
                .saturating_mul(1024),
        });
    }
}

fn duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// Changes the size of a terminal, which tells its foreground processes (`SIGWINCH`).
pub(crate) fn set_terminal_size(terminal: BorrowedFd<'_>, size: PtySize) -> io::Result<()> {
    let size = window_size(size);
    // SAFETY: TIOCSWINSZ reads a `winsize`, which lives across the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// A terminal's size as the kernel has it.
pub(crate) fn window_size(size: PtySize) -> libc::winsize {
    libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// Undoes what a parent left behind: signals that it ignored, and open files that commands would
/// inherit. A kernel starts PID 1 without either.
pub(crate) fn forget_parent() {
    // The kernel's `sigaction` of zeroes: SIG_DFL, no flags, no mask. Not the C library's, which
    // keeps two signals for itself.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: reads that structure, which lives across the call. It fails for the two signals
        // that cannot be changed, which is well.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    // SAFETY: no pointers. Kernels before 5.11 cannot; it is for tests alone.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    };
}

/// Closes every descriptor there is.
pub(crate) fn close_all() {
    // SAFETY: no pointers. Nothing of this process uses a descriptor after that.
    unsafe { libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0) };
}

/// Brings the loopback interface up, which gives it 127.0.0.1 and ::1.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an `ifreq` of zeroes is a valid one, of a nameless interface.
    let mut request = unsafe { MaybeUninit::<libc::ifreq>::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`, which lives across the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sends a signal, by its number, to a process group. That it has ended is no error.
pub(crate) fn signal_group(leader: i32, number: u8) {
    // SAFETY: no pointers. A failure means that there is nobody to signal.
    unsafe { libc::killpg(leader, i32::from(number)) };
}

/// Adds bytes to the kernel's random numbers, counted as fully random, and makes its generator
/// take them at once (random(4)).
pub(crate) fn add_entropy(random: BorrowedFd<'_>, entropy: &[u8]) -> io::Result<()> {
    const CAPACITY: usize = 64;
    /// `struct rand_pool_info` of `linux/random.h`, with room.
    #[repr(C)]
    struct PoolInfo {
        bits: i32,
        length: i32,
        bytes: [u8; CAPACITY],
    }
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203; // _IOW('R', 3, int[2])
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207; // _IO('R', 7)
    for part in entropy.chunks(CAPACITY) {
        // At most `CAPACITY`.
        let length = part.len() as i32;
        let mut info = PoolInfo {
            bits: length * 8,
            length,
            bytes: [0; CAPACITY],
        };
        info.bytes[..part.len()].copy_from_slice(part);
        // SAFETY: RNDADDENTROPY reads the two numbers and `length` bytes behind them, which are
        // there and live across the call.
        let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) };
        info.bytes.zeroize();
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: no argument.
    match unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first page of a file, shared with everybody who looks at the file.
#[derive(Debug)]
pub(crate) struct Mapping(std::ptr::NonNull<u8>);

impl Mapping {
    /// What is mapped at a time: the smallest page there is.
    const LENGTH: usize = 4096;

    /// Of a file that can be read and written, and that is not empty.
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match std::ptr::NonNull::new(start.cast()) {
            Some(page) if start != libc::MAP_FAILED => Ok(Self(page)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes the file's first bytes, at most a page of them.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for (index, byte) in bytes.iter().take(Self::LENGTH).enumerate() {
            // SAFETY: within the page, by the line above.
            let place = unsafe { self.0.add(index) };
            // SAFETY: within the mapping, which lasts as long as this value; volatile, because
            // others read the page. The file would have to be cut to nothing for the page to be
            // gone, and it is the agent's.
            unsafe { place.write_volatile(*byte) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that `of` made, which nothing refers to.
        unsafe { libc::munmap(self.0.as_ptr().cast(), Self::LENGTH) };
    }
}

/// A descriptor that has just been received from a socket.
pub(crate) fn received(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has made it for this process in the call that returned its number, and
    // nobody else has seen that.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Limits what another process may use, soft and hard.
pub(crate) fn limit_process(
    pid: i32,
    resource: nix::sys::resource::Resource,
    limit: u64,
) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: limit,
        rlim_max: limit,
    };
    // SAFETY: reads an `rlimit64`, which lives across the call; nothing is written.
    let result =
        unsafe { libc::prlimit64(pid, resource as _, &raw const limit, std::ptr::null_mut()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
