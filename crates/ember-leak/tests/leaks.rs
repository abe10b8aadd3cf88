//! Each kind of leak is made, found, and, once it is undone, found no more.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ember_leak::{CheckError, Kind, LeakGate, Leaks, isolated, isolated_namespaces};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A gate that does not wait.
fn gate() -> LeakGate {
    LeakGate::builder().settle(Duration::ZERO).arm().unwrap()
}

fn leaks(gate: &LeakGate) -> Leaks {
    match gate.check() {
        Err(CheckError::Leaked(leaks)) => leaks,
        Err(error) => panic!("{error:?}"),
        Ok(()) => panic!("nothing was found"),
    }
}

/// Checks that nothing but one kind of thing was found, `count` of it, and that the message names
/// it.
fn expect(gate: &LeakGate, kind: Kind, count: usize, name: &str) {
    let leaks = leaks(gate);
    assert_eq!(leaks.kinds(), BTreeSet::from([kind]), "{leaks}");
    let new: usize = leaks.iter().map(|leak| leak.new.len()).sum();
    assert_eq!(new, count, "{leaks}");
    assert!(leaks.to_string().contains(name), "{leaks}");
}

#[test]
fn nothing_is_found_where_nothing_is() {
    isolated!(|| {
        let gate = gate();
        // Everything that this does is undone.
        drop(File::open("/proc/self/maps").unwrap());
        thread::spawn(|| {}).join().unwrap();
        drop(vec![1u8; 1 << 20]);
        Command::new("true").status().unwrap();
        LeakGate::check(&gate).unwrap();
    });
}

#[test]
fn a_file_left_open_is_found() {
    isolated!(|| {
        let gate = gate();
        let file = File::open("/dev/null").unwrap();
        expect(&gate, Kind::Descriptor, 1, "/dev/null");
        drop(file);
        gate.check().unwrap();
    });
}

#[test]
fn sockets_are_told_from_those_that_were_there() {
    isolated!(|| {
        let _before = UnixStream::pair().unwrap();
        let gate = gate();
        let pair = UnixStream::pair().unwrap();
        expect(&gate, Kind::Descriptor, 2, "2 before, 4 now");
        drop(pair);
        gate.check().unwrap();
    });
}

#[test]
fn a_thread_that_runs_on_is_found() {
    isolated!(|| {
        let gate = gate();
        let (stop, stopped) = mpsc::channel::<()>();
        let builder = thread::Builder::new().name("left-behind".to_owned());
        let thread = builder.spawn(move || stopped.recv()).unwrap();
        let found = leaks(&gate);
        assert_eq!(found.kinds(), BTreeSet::from([Kind::Thread]), "{found}");
        drop(stop);
        let _ = thread.join().unwrap();
        LeakGate::check(&gate).unwrap();
    });
}

#[test]
fn a_memfd_left_mapped_is_found() {
    isolated!(|| {
        let gate = gate();
        let length = NonZeroUsize::new(1 << 20).unwrap();
        let memfd = memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC).unwrap();
        File::from(memfd.try_clone().unwrap())
            .set_len(1 << 20)
            .unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice, of which no reference is made.
        let mapping =
            unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &memfd, 0) }.unwrap();
        drop::<OwnedFd>(memfd);
        expect(&gate, Kind::Mapping, 1, "guest-memory");
        // SAFETY: exactly what was mapped above.
        unsafe { munmap(mapping, length.get()) }.unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn anonymous_memory_of_the_smallest_guest_is_found() {
    isolated!(|| {
        let gate = gate();
        let length = NonZeroUsize::new(64 << 20).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice, of which no reference is made.
        let mapping = unsafe { mmap_anonymous(None, length, protection, flags) }.unwrap();
        expect(&gate, Kind::AnonymousMemory, 1, "KiB now");
        // SAFETY: exactly what was mapped above.
        unsafe { munmap(mapping, length.get()) }.unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn a_child_is_found_alive_and_dead() {
    isolated!(|| {
        let gate = gate();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        expect(&gate, Kind::Process, 1, "sleep");
        child.kill().unwrap();
        let wait_for_end = Duration::from_millis(200);
        thread::sleep(wait_for_end);
        expect(&gate, Kind::Process, 1, "dead and not waited for");
        child.wait().unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn a_child_that_was_given_away_is_found() {
    isolated!(|| {
        let gate = gate();
        // The shell ends; what it started goes on as a child of another process.
        let script = "sleep 60 > /dev/null & echo $!";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut id = String::new();
        shell
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut id)
            .unwrap();
        shell.wait().unwrap();
        expect(&gate, Kind::Process, 1, "sleep");
        assert!(
            Command::new("kill")
                .arg(id.trim())
                .status()
                .unwrap()
                .success()
        );
        let ends_soon = Duration::from_millis(200);
        thread::sleep(ends_soon);
        gate.check().unwrap();
    });
}

#[test]
fn a_mount_is_found() {
    isolated_namespaces!(|| {
        let place = tempfile::tempdir().unwrap();
        let gate = gate();
        mount_tmpfs(place.path().to_str().unwrap());
        expect(&gate, Kind::Mount, 1, place.path().to_str().unwrap());
        nix::mount::umount(place.path()).unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn a_network_interface_is_found() {
    isolated_namespaces!(|| {
        let gate = gate();
        ip(&["link", "add", "ember-test", "type", "veth"]);
        expect(&gate, Kind::NetworkInterface, 2, "ember-test");
        ip(&["link", "del", "ember-test"]);
        gate.check().unwrap();
    });
}

#[test]
fn a_cgroup_is_found() {
    isolated_namespaces!(|| {
        // A directory where cgroups are, which needs no privilege over real ones.
        mount_tmpfs("/sys/fs/cgroup");
        let gate = gate();
        fs::create_dir("/sys/fs/cgroup/ember-1234").unwrap();
        expect(&gate, Kind::Cgroup, 1, "/sys/fs/cgroup/ember-1234");
        fs::remove_dir("/sys/fs/cgroup/ember-1234").unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn a_file_is_found() {
    isolated!(|| {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("old"), "").unwrap();
        let builder = LeakGate::builder()
            .directory(place.path())
            .settle(Duration::ZERO);
        let gate = builder.arm().unwrap();
        fs::create_dir(place.path().join("run")).unwrap();
        fs::write(place.path().join("run/socket"), "").unwrap();
        expect(&gate, Kind::File, 2, "run/socket");
        fs::remove_dir_all(place.path().join("run")).unwrap();
        gate.check().unwrap();
    });
}

#[test]
fn what_goes_away_in_time_is_no_leak() {
    isolated!(|| {
        let gate = LeakGate::arm().unwrap();
        thread::spawn(|| thread::sleep(Duration::from_millis(300)));
        gate.check().unwrap();
    });
}

#[test]
#[should_panic(expected = "did not pass in a process of its own")]
fn a_body_that_fails_fails_the_test() {
    isolated!(|| panic!("as intended"));
}

fn mount_tmpfs(place: &str) {
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("test"), place, Some("tmpfs"), flags, None::<&str>).unwrap();
}

fn ip(arguments: &[&str]) {
    assert!(
        Command::new("ip")
            .args(arguments)
            .status()
            .unwrap()
            .success()
    );
}
