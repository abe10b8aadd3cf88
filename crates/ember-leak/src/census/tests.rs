use super::process::{Stat, class_of_descriptor, parse_mappings};
use super::system::parse_mount;
use super::*;

fn census(items: &[(Kind, &str, &str)]) -> Census {
    let mut census = Census::default();
    for (kind, class, identity) in items {
        let (class, identity) = ((*class).to_owned(), (*identity).to_owned());
        census.add(*kind, vec![Item { class, identity }]);
    }
    census
}

#[test]
fn more_of_a_class_is_a_leak_and_the_new_one_is_named() {
    let before = census(&[(Kind::Descriptor, "socket", "3 → socket:[1]")]);
    let after = census(&[
        (Kind::Descriptor, "socket", "3 → socket:[1]"),
        (Kind::Descriptor, "socket", "4 → socket:[2]"),
    ]);
    let leaks = after.beyond(&before);
    assert_eq!(leaks.len(), 1);
    assert_eq!(leaks[0].count, (1, 2));
    assert_eq!(leaks[0].new, ["4 → socket:[2]"]);
    assert_eq!(
        leaks[0].to_string(),
        "descriptor: socket: 1 before, 2 now\n    4 → socket:[2]"
    );
}

#[test]
fn a_replacement_is_no_leak_and_neither_is_less() {
    let before = census(&[(Kind::Thread, "pool", "1"), (Kind::Thread, "other", "2")]);
    let after = census(&[(Kind::Thread, "pool", "3")]);
    assert_eq!(after.beyond(&before), []);
}

#[test]
fn the_same_class_of_another_kind_is_something_else() {
    let before = census(&[(Kind::Descriptor, "/dev/kvm", "1")]);
    let after = census(&[(Kind::Mapping, "/dev/kvm", "1")]);
    assert_eq!(after.beyond(&before).len(), 1);
}

#[test]
fn anonymous_memory_may_grow_a_little() {
    let with = |bytes, count| Census {
        anonymous: Anonymous { bytes, count },
        ..Census::default()
    };
    let before = with(1 << 20, 10);
    let grown = with(
        (1 << 20) + ANONYMOUS_BYTES_TOLERANCE,
        10 + ANONYMOUS_COUNT_TOLERANCE,
    );
    assert_eq!(grown.beyond(&before), []);
    assert_eq!(
        with((2 << 20) + ANONYMOUS_BYTES_TOLERANCE, 10)
            .beyond(&before)
            .len(),
        1
    );
    assert_eq!(
        with(1 << 20, 11 + ANONYMOUS_COUNT_TOLERANCE)
            .beyond(&before)
            .len(),
        1
    );
}

#[test]
fn descriptors_are_told_by_what_they_refer_to() {
    for (target, class) in [
        ("socket:[4711]", "socket"),
        ("pipe:[1]", "pipe"),
        ("anon_inode:[eventfd]", "anon_inode:[eventfd]"),
        ("anon_inode:kvm-vm", "anon_inode:kvm-vm"),
        ("/memfd:guest (deleted)", "/memfd:guest (deleted)"),
        ("/tmp/a:[1x]", "/tmp/a:[1x]"),
    ] {
        assert_eq!(class_of_descriptor(target), class);
    }
}

#[test]
fn a_name_with_anything_in_it_is_read() {
    let line = "42 (a) (b c) Z 7 8 9 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 123456 0 0";
    let stat = Stat::parse(line).unwrap();
    assert_eq!(stat.name, "a) (b c");
    assert_eq!(
        (stat.id, stat.state, stat.parent, stat.group),
        (42, 'Z', 7, 8)
    );
    assert_eq!(stat.started, 123_456);
    assert_eq!(Stat::parse("42 (cut"), None);
}

#[test]
fn mappings_of_files_count_one_by_one_and_others_together() {
    let (items, anonymous) = parse_mappings(
        "7f0000000000-7f0000021000 rw-p 00000000 00:00 0 \n\
         7f0000021000-7f0004000000 ---p 00000000 00:00 0 \n\
         7f1000000000-7f1004000000 rw-s 00000000 00:01 12   /memfd:guest (deleted)\n\
         7f2000000000-7f2000003000 rw-s 00000000 00:0f 13   anon_inode:kvm-vcpu:0\n\
         7f3000000000-7f3000003000 r-xp 00000000 08:01 14   /usr/lib/libc.so.6\n\
         7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0    [stack]\n",
    );
    let classes: Vec<_> = items.iter().map(|item| item.class.as_str()).collect();
    assert_eq!(classes, ["/memfd:guest (deleted)", "anon_inode:kvm-vcpu:0"]);
    assert_eq!(
        anonymous,
        Anonymous {
            bytes: 0x21000,
            count: 1
        }
    );
}

#[test]
fn a_mount_is_told_by_its_place() {
    let item = parse_mount("36 35 98:0 /a /mnt/b rw,noatime master:1 - ext4 /dev/x rw").unwrap();
    assert_eq!(item.class, "/mnt/b");
    assert_eq!(item.identity, "mount 36, ext4 /dev/x rw");
}
