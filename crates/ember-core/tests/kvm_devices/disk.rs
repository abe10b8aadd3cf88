//! The block device.

use std::os::unix::fs::{FileExt, MetadataExt};

use crate::machine::{DISK_SIZE, Equipped, noise, sha256, shared};

const MIB: u64 = 1 << 20;

#[test]
fn what_the_guest_has_synced_is_in_the_hosts_file_and_the_other_way_round() {
    is_seen_from_both_sides(shared());
}

pub(crate) fn is_seen_from_both_sides(equipped: &Equipped) {
    let ours = noise(1, 2 << 20);
    equipped.disk.write_all_at(&ours, 8 * MIB).unwrap();
    let printed = equipped.machine.python(
        r#"
import fcntl, hashlib, os
disk = os.open("/dev/vdb", os.O_RDWR)
data = os.urandom(2 << 20)
assert os.pwrite(disk, data, 1 << 20) == len(data)
# Not on the bounds of pages, and at the disk's very end.
assert os.pwrite(disk, b"odd", (5 << 20) + 1021) == 3
assert os.pwrite(disk, b"end", (16 << 20) - 3) == 3
os.fsync(disk)
BLKFLSBUF = 0x1261
fcntl.ioctl(disk, BLKFLSBUF)
theirs = os.pread(disk, 2 << 20, 8 << 20)
print(hashlib.sha256(data).hexdigest(), hashlib.sha256(theirs).hexdigest())
print(os.lseek(disk, 0, os.SEEK_END), open("/sys/block/vdb/serial").read())
"#,
    );

    let read = |offset, len| {
        let mut bytes = vec![0; len];
        equipped.disk.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    };
    let written = sha256(&read(MIB, 2 << 20));
    let expected = format!("{written} {}\n{DISK_SIZE} writable", sha256(&ours));
    assert_eq!(printed, expected);
    assert_eq!(read(5 * MIB + 1020, 5), b"\0odd\0");
    assert_eq!(read(DISK_SIZE - 3, 3), b"end");
    // Nothing went where it does not belong.
    assert_eq!(read(8 * MIB, 2 << 20), ours);
    assert_eq!(equipped.disk.metadata().unwrap().len(), DISK_SIZE);
}

#[test]
fn what_the_guest_discards_takes_no_room_on_the_host() {
    gives_back_what_is_discarded(shared());
}

pub(crate) fn gives_back_what_is_discarded(equipped: &Equipped) {
    let data = noise(2, 4 << 20);
    equipped.disk.write_all_at(&data, 11 * MIB).unwrap();
    let blocks = || equipped.disk.metadata().unwrap().blocks();
    let before = blocks();
    equipped.machine.python(
        r#"
import fcntl, os, struct
disk = os.open("/dev/vdb", os.O_RDWR)
BLKDISCARD = 0x1277
fcntl.ioctl(disk, BLKDISCARD, struct.pack("QQ", 12 << 20, 2 << 20))
"#,
    );
    let freed = before - blocks();
    assert_eq!(freed * 512, 2 * MIB, "bytes freed");
    let mut now = vec![0; data.len()];
    equipped.disk.read_exact_at(&mut now, 11 * MIB).unwrap();
    let mut expected = data;
    expected[1 << 20..3 << 20].fill(0);
    assert!(now == expected, "discarded other blocks");
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    cannot_be_written(shared());
}

pub(crate) fn cannot_be_written(equipped: &Equipped) {
    // The descriptor would let the device write.
    let data = noise(3, 1 << 20);
    equipped.read_only_disk.write_all_at(&data, 0).unwrap();
    let printed = equipped.machine.python(
        r#"
import errno, hashlib, os
print(open("/sys/block/vdc/ro").read().strip())
try:
    disk = os.open("/dev/vdc", os.O_RDWR)
    os.pwrite(disk, bytes(4096), 0)
    os.fsync(disk)
except OSError as error:
    assert error.errno in (errno.EPERM, errno.EROFS, errno.EACCES), error
else:
    raise SystemExit("a read-only disk was written")
disk = os.open("/dev/vdc", os.O_RDONLY)
print(hashlib.sha256(os.pread(disk, 1 << 20, 0)).hexdigest())
"#,
    );
    assert_eq!(printed, format!("1\n{}", sha256(&data)));
    let mut now = vec![0; data.len()];
    equipped.read_only_disk.read_exact_at(&mut now, 0).unwrap();
    assert!(now == data, "the file has changed");
}
