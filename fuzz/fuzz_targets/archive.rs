//! What a guest sends of its files: archives, records and notes.
#![no_main]

use ember_guest::archive::{Caps, read_each};
use ember_guest::protocol::{FileNote, FileRecords};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let caps = Caps {
        bytes: 1 << 20,
        entries: 100,
    };
    let mut bytes = 0;
    let _ = read_each(data, caps, |member, contents| {
        // Its path leads nowhere else, and it has no more than was said.
        assert!(!member.path.starts_with(b"/"));
        assert!(member.path.split(|&byte| byte == b'/').all(|name| name != b".."));
        let mut all = Vec::new();
        std::io::Read::read_to_end(contents, &mut all)?;
        assert_eq!(all.len() as u64, member.size);
        bytes += member.size;
        Ok(true)
    });
    assert!(bytes <= caps.bytes);

    let mut records = FileRecords::default();
    for part in data.chunks(100) {
        records.feed(part);
        while let Ok(Some(_)) = records.next_entry() {}
    }
    let mut records = FileRecords::default();
    records.feed(data);
    while let Ok(Some(_)) = records.next_event() {}
    let _ = FileNote::decode_all(data).count();
});
