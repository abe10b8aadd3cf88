//! Files that somebody damaged, or made.

use proptest::prelude::*;

use super::*;
use crate::format::container::Section;
use crate::format::sections::{self, IdHasher};

/// A section: id, version, whether it is skippable, and content.
pub(super) type Part = (u32, u16, bool, Vec<u8>);

/// A file with these sections (id, version, skippable, content) and everything right about its
/// frame. Page data has id 1, and that of a disk 7.
fn crafted(sections: &[(u32, u16, bool, &[u8])]) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    let mut id = IdHasher::new();
    let mut written = Vec::new();
    for &(number, version, skippable, content) in sections {
        let data = sections::is_pages(number);
        let section = Section {
            id: number,
            version,
            skippable,
            offset: (HEADER_BYTES + body.len()) as u64,
            length: content.len() as u64,
            checksum: if data { 0 } else { crc32c::crc32c(content) },
        };
        id.section(&section);
        if !data {
            id.content(content);
        }
        written.push(section);
        body.extend(content);
    }
    let header = Header {
        file_bytes: (HEADER_BYTES + body.len()) as u64,
        id: id.finish(),
        sections: written,
    };
    let mut bytes = header.encode().unwrap().to_vec();
    bytes.extend(body);
    bytes
}

/// The sections of the sample's base.
fn parts(bytes: &[u8]) -> Vec<Part> {
    let header = bytes.first_chunk().unwrap();
    let header = Header::decode(header, bytes.len() as u64).unwrap();
    let range = |section: &Section| {
        let start = usize::try_from(section.offset).unwrap();
        start..start + usize::try_from(section.length).unwrap()
    };
    let sections = header.sections.iter();
    sections
        .map(|section| {
            let content = bytes[range(section)].to_vec();
            (section.id, section.version, section.skippable, content)
        })
        .collect()
}

/// The sample's base with its sections changed by `change`.
fn altered(change: impl FnOnce(&mut Vec<Part>)) -> Vec<u8> {
    altered_from(&base_bytes(), change)
}

/// A file with its sections changed by `change`.
pub(super) fn altered_from(bytes: &[u8], change: impl FnOnce(&mut Vec<Part>)) -> Vec<u8> {
    let mut parts = parts(bytes);
    change(&mut parts);
    let borrowed: Vec<_> = parts
        .iter()
        .map(|(id, version, skippable, content)| (*id, *version, *skippable, &content[..]))
        .collect();
    crafted(&borrowed)
}

/// The content of section `id`.
pub(super) fn content(parts: &mut [Part], id: u32) -> &mut Vec<u8> {
    &mut parts.iter_mut().find(|part| part.0 == id).unwrap().3
}

#[test]
fn the_crafted_file_is_the_real_one() {
    assert_eq!(altered(|_| ()), base_bytes());
}

#[test]
fn no_flipped_bit_outside_page_data_goes_unnoticed() {
    let bytes = base_bytes();
    let snapshot = decode(&bytes).unwrap();
    let data = usize::try_from(snapshot.data_offset).unwrap();
    let after = data + 3 * 4096;
    for at in (0..data)
        .step_by(7)
        .chain((0..200).chain(after..bytes.len()))
    {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(decode(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn no_shortened_or_lengthened_file_is_read() {
    let bytes = base_bytes();
    for length in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(decode(&longer).is_err());
    // A file that shrinks between the look at its length and the reading.
    let length = bytes.len() as u64;
    let result = Snapshot::decode(&mut Cursor::new(&bytes[..bytes.len() - 1]), length);
    assert!(matches!(result, Err(FormatError::Damaged(_))), "{result:?}");
}

#[test]
fn other_versions_are_refused_by_name() {
    let mut bytes = base_bytes();
    for version in [0, 2, u32::MAX] {
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        let error = decode(&bytes).unwrap_err();
        assert!(
            matches!(error, FormatError::Version { found } if found == version),
            "{error}"
        );
    }
    for (id, name) in [(2, "manifest"), (3, "machine state"), (5, "memory index")] {
        for version in [0, 2] {
            let bytes = altered(|parts| {
                parts.iter_mut().find(|part| part.0 == id).unwrap().1 = version;
            });
            let error = decode(&bytes).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(
                matches!(error, FormatError::SectionVersion { .. }),
                "{error}"
            );
        }
    }
    // What one can do without is done without.
    let bytes = altered(|parts| parts.last_mut().unwrap().1 = 9);
    assert_eq!(decode(&bytes).unwrap().contents.working_set, None);
}

#[test]
fn unknown_sections_are_passed_over_only_if_they_say_so() {
    let with = |skippable| altered(|parts| parts.push((99, 1, skippable, b"future".to_vec())));
    decode(&with(true)).unwrap();
    assert!(matches!(
        decode(&with(false)),
        Err(FormatError::UnknownSection(99))
    ));
    // They are part of what the id names.
    let mut damaged = with(true);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(matches!(decode(&damaged), Err(FormatError::Checksum("id"))));
}

#[test]
fn what_is_missing_is_named() {
    for (id, name) in [
        (1, "page data"),
        (2, "manifest"),
        (3, "machine state"),
        (4, "guest section"),
        (5, "memory index"),
    ] {
        let bytes = altered(|parts| parts.retain(|part| part.0 != id));
        let error = decode(&bytes).unwrap_err();
        assert!(
            matches!(error, FormatError::MissingSection(found) if found == name),
            "{error}"
        );
    }
    let bytes = altered(|parts| parts.retain(|part| part.0 != 6));
    assert_eq!(decode(&bytes).unwrap().contents.working_set, None);
}

#[test]
fn sections_that_contradict_each_other_are_refused() {
    let manifest = |from: &'static str, to: &'static str| {
        altered(|parts| {
            let text = content(parts, 2);
            let changed = String::from_utf8(text.clone()).unwrap().replace(from, to);
            assert_ne!(changed.as_bytes(), text);
            *text = changed.into_bytes();
        })
    };
    for bytes in [
        manifest("\"memory_bytes\": 32768", "\"memory_bytes\": 65536"),
        manifest("\"vcpus\": 2", "\"vcpus\": 3"),
        manifest("\"memory_hash\"", "\"other_hash\""),
        // The page data is a page shorter than the index says.
        altered(|parts| content(parts, 1).truncate(4096)),
        // The working set goes beyond the memory.
        altered(|parts| content(parts, 6)[8] = 200),
    ] {
        let error = decode(&bytes).unwrap_err();
        let contradiction = matches!(
            error,
            FormatError::Contradiction(_) | FormatError::WorkingSet(_)
        );
        assert!(contradiction, "{error}");
    }
}

#[test]
fn sections_that_overlap_or_lie_outside_are_refused() {
    let header = |sections: &[(u64, u64)]| {
        let sections = (1..).zip(sections).map(|(id, &(offset, length))| Section {
            id,
            version: 1,
            skippable: false,
            offset,
            length,
            checksum: 0,
        });
        let header = Header {
            file_bytes: 10_000,
            id: [0; 32].into(),
            sections: sections.collect(),
        };
        Header::decode(&header.encode().unwrap(), 10_000).is_ok()
    };
    assert!(header(&[(4096, 10), (4106, 10), (9_999, 1)]));
    assert!(header(&[(4096, 0), (4096, 0), (10_000, 0)]));
    assert!(!header(&[(4095, 10)]));
    assert!(!header(&[(0, 10)]));
    assert!(!header(&[(4096, 10), (4105, 10)]));
    assert!(!header(&[(5000, 10), (4096, 10)]));
    assert!(!header(&[(10_000, 1)]));
    assert!(!header(&[(u64::MAX, 1)]));
    assert!(!header(&[(4096, u64::MAX)]));
}

#[test]
fn a_state_of_lies_is_refused_at_once() {
    let good = encode_state(&sample::state()).unwrap();
    assert_eq!(decode_state(&good).unwrap(), sample::state());
    for length in 0..good.len() {
        assert!(decode_state(&good[..length]).is_err(), "{length} bytes");
    }
    let mut more = good.clone();
    more.push(0);
    assert!(matches!(decode_state(&more), Err(FormatError::Damaged(_))));
    // As many vCPUs as a number can say, and nothing of them.
    let mut bytes = vec![0];
    bytes.extend([0xff; 9]);
    bytes.push(1);
    assert!(decode_state(&bytes).is_err());
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        at in 0..9000_usize,
    ) {
        let _ = decode_state(&bytes);
        let mut page = [0; HEADER_BYTES];
        page[..bytes.len()].copy_from_slice(&bytes);
        let _ = Header::decode(&page, 1 << 40);
        // Anything in the place of a section.
        for id in 2..=6 {
            let _ = decode(&altered(|parts| *content(parts, id) = bytes.clone()));
        }
        // Anything within the state, which no checksum then catches.
        let result = decode(&altered(|parts| {
            let state = content(parts, 3);
            let start = at.min(state.len());
            let end = (start + bytes.len()).min(state.len());
            state[start..end].copy_from_slice(&bytes[..end - start]);
        }));
        let _ = result;
    }
}
