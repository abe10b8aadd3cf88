//! What the fuzz targets call. Not part of the interface.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "finding panics"
)]

use std::io::Cursor;

use crate::format::{Snapshot, decode_state, encode_state, repair::repair};
use crate::memory::{LayeredMemory, MemoryImage};
use crate::pages::PAGE_SIZE;
use crate::source::PageSource;

/// How much memory of a guest is really loaded.
const MAX_LOADED: u64 = 256 * PAGE_SIZE;

/// A snapshot file: as it is, and with its checksums made right.
pub fn snapshot(data: &[u8]) {
    read(data);
    let mut repaired = data.to_vec();
    if repair(&mut repaired).is_some() {
        read(&repaired);
    }
}

fn read(bytes: &[u8]) {
    let Ok(snapshot) = Snapshot::decode(&mut Cursor::new(bytes), bytes.len() as u64) else {
        return;
    };
    // What was understood takes no more room than what was read: extents and checksums are wider
    // in memory, by a third, and no stored page appears twice.
    let index = &snapshot.index;
    assert!(index.extents().len() <= bytes.len() / 24);
    assert!(index.stored_pages() * PAGE_SIZE <= bytes.len() as u64);

    if let Some(disk) = &snapshot.disk {
        assert!(disk.index.extents().len() <= bytes.len() / 24);
        assert!(disk.index.stored_pages() * PAGE_SIZE <= bytes.len() as u64);
    }

    let layer = snapshot.layer(Box::new(bytes.to_vec()));
    let Ok(memory) = LayeredMemory::new(vec![layer]) else {
        return;
    };
    assert_eq!(memory.index().stored_pages(), index.stored_pages());
    let last = (memory.bytes() / PAGE_SIZE - 1) * PAGE_SIZE;
    let mut page = [0; PAGE_SIZE as usize];
    let _ = memory.read_at(0, &mut page);
    let _ = memory.read_at(last, &mut page);
    if memory.bytes() <= MAX_LOADED
        && let Ok(image) = MemoryImage::load(&memory)
    {
        // What was loaded is what is read page by page.
        let mut loaded = [0; PAGE_SIZE as usize];
        image
            .read_at(last, &mut loaded)
            .expect("a page of the image");
        assert_eq!(loaded, page);
    }
}

/// A machine's state. What was understood is written, and understood again.
pub fn state(data: &[u8]) {
    if let Ok(state) = decode_state(data) {
        let bytes = encode_state(&state).expect("a state can be written");
        assert_eq!(decode_state(&bytes).expect("what was written"), state);
    }
}
