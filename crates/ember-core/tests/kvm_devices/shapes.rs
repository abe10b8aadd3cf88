//! Guests of every size, guests that are paused at work, and every way into a kernel.

use std::thread;
use std::time::Duration;

use ember_core::{Assets, Kernel};
use ember_vmm::kernel::KernelImage;

use crate::machine::{Machine, shared};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Looks whether the guest has `count` processors and whether each of them works.
fn has_processors(machine: &Machine, count: u8) {
    let printed = machine.python(
        r#"
import os
print(os.sysconf("SC_NPROCESSORS_ONLN"))
for cpu in sorted(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, {cpu})
    # The last but 14 of the fields behind the program's name.
    print(open("/proc/self/stat").read().rpartition(")")[2].split()[36])
"#,
    );
    let expected: Vec<String> = (0..count).map(|cpu| cpu.to_string()).collect();
    assert_eq!(printed, format!("{count}\n{}", expected.join("\n")));
}

#[test]
fn a_guest_has_as_many_processors_as_it_was_given() {
    // Others have 1 and 4.
    has_processors(&shared().machine, 2);
    has_processors(&Machine::boot(|config| config.vcpus = 32), 32);
}

#[test]
fn a_guest_boots_in_64_mib() {
    let machine = Machine::boot(|config| config.memory_bytes = 64 * MIB);
    has_processors(&machine, 1);
}

/// Fills 200 MiB, each page with its own number, and says where the highest of them is: the page's
/// number and its physical address (the kernel's `Documentation/admin-guide/mm/pagemap.rst`). Also
/// how much memory there is, and where it ends.
const FILL: &str = r#"
import mmap, struct, sys
PAGE = 4096
pages = (200 << 20) // PAGE
memory = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(pages):
    memory[page * PAGE:page * PAGE + 16] = struct.pack("QQ", 0x656d626572, page)
for line in open("/proc/self/maps"):
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    if end - start == pages * PAGE:
        break
with open("/proc/self/pagemap", "rb") as pagemap:
    pagemap.seek(start // PAGE * 8)
    entries = struct.unpack(f"{pages}Q", pagemap.read(pages * 8))
frames = [entry & ((1 << 55) - 1) for entry in entries]
highest = max(frames)
ram = [line.split()[0] for line in open("/proc/iomem") if "System RAM" in line]
ram = [tuple(int(part, 16) for part in area.split("-")) for area in ram]
total = sum(last - first + 1 for first, last in ram)
print(frames.index(highest), highest * PAGE, total, ram[-1][1] + 1, flush=True)
for page in range(pages):
    expected = struct.pack("QQ", 0x656d626572, page)
    assert memory[page * PAGE:page * PAGE + 16] == expected, page
print("intact", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_guest_has_memory_beyond_4_gib() {
    let machine = Machine::boot(|config| config.memory_bytes = 5 * GIB);
    let (mut program, line) = machine.start_python(FILL);
    let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    let [page, address, total, end] = numbers[..] else {
        panic!("{line}");
    };
    assert_eq!(program.line(), "intact");
    assert!(total > 5 * GIB - MIB && total <= 5 * GIB, "{total} bytes");
    // The hole below 4 GiB takes none of it away, but moves its end.
    assert!(end > 5 * GIB, "memory ends at {end:#x}");
    assert!(address > 4 * GIB, "the highest page is at {address:#x}");

    machine.vm.pause().unwrap();
    let bytes = machine.vm.read_memory(address, 16).unwrap();
    // The kernel takes what it needs for itself from the very top.
    let top = machine.vm.read_memory(end - MIB, 1 << 20).unwrap();
    let beyond = machine.vm.read_memory(end, 1);
    machine.vm.resume().unwrap();
    let expected = [0x65_6d62_6572_u64, page].map(u64::to_le_bytes).concat();
    assert_eq!(bytes, expected);
    assert!(top.iter().any(|byte| *byte != 0), "nothing at {end:#x}");
    beyond.unwrap_err();
}

/// Four processes, each on a processor of its own, that compute the same checksum over and over and
/// count. Says where in physical memory they count.
const BUSY: &str = r#"
import hashlib, mmap, os, struct, sys, time, zlib
counters = mmap.mmap(-1, 4096)
counters[0:4096] = bytes(4096)
block = bytes(range(256)) * 16
expected = zlib.crc32(block)

def work(cpu):
    os.sched_setaffinity(0, {cpu})
    before = time.monotonic_ns()
    for count in range(1, 1 << 60):
        assert zlib.crc32(block) == expected
        now = time.monotonic_ns()
        assert now >= before, (now, before)
        before = now
        # One store, which is never seen by halves.
        counters[cpu * 64:cpu * 64 + 8] = struct.pack("Q", count)
        if counters[1024]:
            os._exit(0)

workers = []
for cpu in range(4):
    pid = os.fork()
    if pid == 0:
        try:
            work(cpu)
        finally:
            os._exit(1)
    workers.append(pid)
while not all(counters[cpu * 64] for cpu in range(4)):
    time.sleep(0.01)
for line in open("/proc/self/maps"):
    if "/dev/zero" in line:
        start = int(line.split("-")[0], 16)
        break
with open("/proc/self/pagemap", "rb") as pagemap:
    pagemap.seek(start // 4096 * 8)
    entry = struct.unpack("Q", pagemap.read(8))[0]
print((entry & ((1 << 55) - 1)) * 4096, flush=True)
sys.stdin.read()
counters[1024] = 1
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers], flush=True)
"#;

#[test]
fn a_busy_guest_is_paused_50_times_and_loses_nothing() {
    let machine = Machine::boot(|config| config.vcpus = 4);
    has_processors(&machine, 4);
    let (mut program, address) = machine.start_python(BUSY);
    let address: u64 = address.parse().unwrap();
    let counters = || {
        let bytes = machine.vm.read_memory(address, 256).unwrap();
        [0, 1, 2, 3].map(|cpu| u64::from_le_bytes(bytes[cpu * 64..][..8].try_into().unwrap()))
    };

    let first = counters();
    let mut before = first;
    for _ in 0..50 {
        machine.vm.pause().unwrap();
        let paused = counters();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(counters(), paused, "a paused guest went on");
        machine.vm.resume().unwrap();
        for cpu in 0..4 {
            assert!(paused[cpu] >= before[cpu], "{paused:?} after {before:?}");
        }
        before = paused;
        machine.ping();
    }
    let last = counters();
    for cpu in 0..4 {
        assert!(last[cpu] > first[cpu], "{last:?} after {first:?}");
    }
    program.go_on();
    assert_eq!(program.line(), "[0, 0, 0, 0]");
}

/// Who the kernel was told that its boot loader is: Linux's PVH entry says Xen's (0xb) of itself,
/// the 64-bit boot protocol has what Ember wrote.
fn boot_loader(machine: &Machine) -> u32 {
    let program = r#"print(open("/proc/sys/kernel/bootloader_type").read())"#;
    machine.python(program).parse().unwrap()
}

#[test]
fn a_kernel_is_entered_by_pvh() {
    assert_eq!(boot_loader(&shared().machine), 0xb0);
}

#[test]
fn a_kernel_without_a_pvh_note_is_entered_by_the_64_bit_boot_protocol() {
    let kernel = Assets::of_user().unwrap().kernel(&Kernel::tuned()).unwrap();
    let mut bytes = std::fs::read(kernel.image).unwrap();
    // XEN_ELFNOTE_PHYS32_ENTRY: the sizes of name and value, its number, its name.
    let mut note = [4_u32, 8, 18].map(u32::to_le_bytes).concat();
    note.extend(b"Xen\0");
    let places: Vec<usize> = (0..bytes.len() - note.len())
        .step_by(4)
        .filter(|place| bytes[*place..].starts_with(&note))
        .collect();
    assert_eq!(places.len(), 1, "{places:?}");
    bytes[places[0] + 8] = 0xff;

    let kernel = KernelImage::from_bytes(bytes).unwrap();
    let machine = Machine::boot(|config| config.kernel = kernel);
    assert_eq!(boot_loader(&machine) & 0xf0, 0xf0);
}

#[test]
fn a_bzimage_whose_packing_is_not_known_unpacks_itself() {
    let assets = Assets::of_user().unwrap();
    let stock = assets.kernel(&Kernel::stock()).unwrap();
    let mut bytes = std::fs::read(stock.image.with_file_name("vmlinuz")).unwrap();
    // `payload_offset` of the setup header (the kernel's `Documentation/arch/x86/boot.rst`): the
    // payload seems to begin one byte later, with no known magic. Its own unpacker does not look
    // here.
    let offset = u32::from_le_bytes(bytes[0x248..][..4].try_into().unwrap());
    bytes[0x248..][..4].copy_from_slice(&(offset + 1).to_le_bytes());

    let kernel = KernelImage::from_bytes(bytes).unwrap();
    assert!(kernel.vmlinux().is_none(), "it was unpacked on the host");
    let machine = Machine::boot(|config| {
        config.kernel = kernel;
        config.initramfs = assets.initramfs(&stock).unwrap();
    });
    assert_eq!(boot_loader(&machine) & 0xf0, 0xf0);
}
