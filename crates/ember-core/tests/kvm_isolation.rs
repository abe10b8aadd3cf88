//! What programs can reach of their guest: nothing but their own.
#![allow(missing_docs, clippy::unwrap_used, reason = "it is a test")]

mod common;

use common::{runtime, template};
use ember_core::{Code, Command};

/// Tries what a program must not be able to do, and says what it could.
const BURGLAR: &str = r#"
import ctypes, errno, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def syscall(number, *arguments):
    values = [ctypes.c_long(it) if isinstance(it, int) else it for it in arguments]
    if libc.syscall(ctypes.c_long(number), *values) < 0:
        return errno.errorcode[ctypes.get_errno()]
    return "done"

def show(name, value):
    print(f"{name}: {value}")

def attempt(name, function):
    try:
        show(name, function())
    except OSError as error:
        show(name, errno.errorcode[error.errno])

status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
    show(field, status[field].strip())
show("processes", sorted(int(it) for it in os.listdir("/proc") if it.isdigit() and int(it) != os.getpid()))
show("first", open("/proc/1/comm").read().strip())
attempt("signal the first", lambda: os.kill(1, 9))
attempt("signal all", lambda: [signal.signal(signal.SIGTERM, signal.SIG_IGN), os.kill(-1, 15)] and "none is there")
attempt("read the first", lambda: open("/proc/1/mem", "rb").read(1))
attempt("its environment", lambda: open("/proc/1/environ", "rb").read(1))
attempt("its files", lambda: os.listdir("/proc/1/fd"))
attempt("its root", lambda: os.listdir("/proc/1/root"))
attempt("vsock", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("crypto sockets", lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))
attempt("local sockets", lambda: socket.socket(socket.AF_UNIX).close() or "done")
attempt("internet sockets", lambda: socket.socket(socket.AF_INET).close() or "done")
for name, call in {
    "ptrace": (101, 16, 1, 0, 0), "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "process_vm_writev": (311, 1, 0, 0, 0, 0, 0), "pidfd_getfd": (438, 0, 0, 0), "kcmp": (312, 1, 1, 0, 0, 0),
    "unshare a user namespace": (272, 0x10000000), "setns": (308, 0, 0), "clone a user namespace": (56, 0x10000011, 0, 0, 0, 0),
    "clone3": (435, 0, 0), "io_uring": (425, 1, 0), "mount": (165, 0, 0, 0, 0, 0), "umount": (166, 0, 0),
    "chroot": (161, b"/"), "open_tree": (428, -100, b"/", 1), "fsopen": (430, b"tmpfs", 0),
    "kexec": (246, 0, 0, 0, 0), "insmod": (175, 0, 0, 0), "rmmod": (176, 0, 0), "reboot": (169, 0, 0, 0, 0),
    "bpf": (321, 0, 0, 0), "perf": (298, 0, 0, 0, 0, 0), "syslog": (103, 3, 0, 0), "userfaultfd": (323, 1),
    "keys": (250, 0, -3, 0), "clock": (227, 0, 0), "host name": (170, b"x", 1), "swap": (167, 0, 0),
    "ports": (172, 3), "handles": (304, 0, 0, 0), "quota": (179, 0, 0, 0, 0), "ldt": (154, 0, 0, 0),
}.items():
    show(name, syscall(*call))
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper",
             "/sys/fs/cgroup/cgroup.subtree_control", "/dev/kmsg", "/dev/mem", "/dev/vda", "/dev/vsock",
             "/run/ember/boot_id", "/proc/1/oom_score_adj"):
    if os.path.exists(path):
        attempt(f"write {path}", lambda: open(path, "wb", 0).write(b"-1000") and "done")
"#;

/// What each has to come to. Those that are not named have to fail with `EPERM`.
fn expected(name: &str, root: bool) -> Vec<&'static str> {
    match name {
        "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => vec!["0000000000000000"],
        "NoNewPrivs" => vec!["1"],
        "Seccomp" => vec!["2"],
        "processes" => vec!["[1]"],
        "first" => vec!["room"],
        // It ignores what it does not handle, and is not its user's.
        "signal the first" if root => vec!["None"],
        "signal all" => vec!["none is there", "ESRCH"],
        // It has none.
        "its files" if root => vec!["[]", "EACCES", "EPERM"],
        "read the first" | "its environment" | "its files" | "its root" => vec!["EACCES", "EPERM"],
        "vsock" | "packets" | "crypto sockets" => vec!["EAFNOSUPPORT"],
        "local sockets" | "internet sockets" => vec!["done"],
        "clone3" | "io_uring" => vec!["ENOSYS"],
        name if name.starts_with("write ") => vec!["EACCES", "EPERM", "EROFS", "EBUSY"],
        _ => vec!["EPERM"],
    }
}

fn check(what: &str, said: &str, root: bool) {
    let mut lines = 0;
    for line in said.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        // The null device takes the place of what root could write to.
        let covered = ["/proc/sysrq-trigger", "/dev/kmsg", "/dev/mem", "/dev/vsock"];
        let place = name.strip_prefix("write ").unwrap_or_default();
        if covered.contains(&place) && value == "done" {
            continue;
        }
        let expected = expected(name, root);
        assert!(
            expected.contains(&value),
            "{what}: {line}, not {expected:?}"
        );
        lines += 1;
    }
    assert!(lines > 50, "{what}: {said}");
}

#[test]
fn programs_reach_nothing_but_their_own() {
    runtime().block_on(async {
        let template = template("python").warm_up(Code::python("")).build();
        let template = template.await.unwrap();
        let sandbox = template.fork().await.unwrap();
        let confined = |user: &str| {
            Command::from_argv(["/usr/bin/python3", "-c", BURGLAR])
                .user(user)
                .confined()
        };
        let warm = sandbox.run(Code::python(BURGLAR)).await.unwrap();
        assert!(warm.success(), "{warm:?}");
        check("warm", &warm.stdout.to_string_lossy(), false);
        let cold = sandbox.exec(confined("user")).await.unwrap();
        assert!(cold.success(), "{cold:?}");
        check("cold", &cold.stdout.to_string_lossy(), false);
        // Root without capabilities, by the caller's wish.
        let root = sandbox.run(Code::python(BURGLAR).user("root")).await.unwrap();
        assert!(root.success(), "{root:?}");
        check("root", &root.stdout.to_string_lossy(), true);

        // Two at once do not see each other, nor each other's memory and queues.
        let waits = "import os, time; open('/tmp/up', 'w'); time.sleep(1000)";
        let other = sandbox.start(Code::python(waits)).await.unwrap();
        let looks = "import os, time\nwhile not os.path.exists('/tmp/up'): time.sleep(0.01)\n\
                     print(os.getpid(), [it for it in os.listdir('/proc') if it.isdigit()])";
        let out = sandbox.run(Code::python(looks)).await.unwrap();
        assert_eq!(out.stdout, "2 ['1', '2']\n", "{out:?}");
        other.kill();

        // The ids of the guest are those that everybody sees.
        let show = "cat /proc/sys/kernel/random/boot_id /etc/machine-id";
        let outside = sandbox.exec(Command::from_argv(["sh", "-c", show])).await.unwrap();
        let inside = "import sys\nfor name in ('/proc/sys/kernel/random/boot_id', '/etc/machine-id'):\n    \
                      sys.stdout.write(open(name).read())";
        let inside = sandbox.run(Code::python(inside)).await.unwrap();
        assert_eq!(inside.stdout, outside.stdout, "{inside:?}");

        // What the administrator mounts is seen by programs that were made ready before.
        let mount = "import ctypes, os; os.mkdir('/data')\n\
                     assert ctypes.CDLL(None).mount(b'none', b'/data', b'tmpfs', 0, None) == 0\n\
                     open('/data/file', 'w').write('shared')";
        let mount = Command::from_argv(["/usr/bin/python3", "-c", mount]);
        let out = sandbox.exec(mount).await.unwrap();
        assert!(out.success(), "{out:?}");
        let out = sandbox.run(Code::python("print(open('/data/file').read())")).await.unwrap();
        assert_eq!(out.stdout, "shared\n", "{out:?}");

        // The operator's commands are not confined.
        let out = sandbox
            .exec(Command::from_argv(["grep", "-E", "CapEff|Seccomp:", "/proc/self/status"]))
            .await
            .unwrap();
        let said = out.stdout.to_string_lossy().into_owned();
        assert!(said.contains("Seccomp:\t0") && !said.contains("CapEff:\t0000000000000000"), "{said}");
        sandbox.close().await;
    });
}
