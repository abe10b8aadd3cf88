//! Indexes and the layers they describe.

use super::*;
use crate::pages::PAGE_SIZE;

/// An index as bytes: the head, extents as (start, pages, kind), checksums.
fn encoded(head: [u64; 3], extents: &[[u64; 3]], checksums: usize) -> Vec<u8> {
    let numbers = head.iter().chain(extents.iter().flatten());
    let mut bytes: Vec<u8> = numbers.flat_map(|number| number.to_le_bytes()).collect();
    bytes.resize(bytes.len() + checksums * 4, 0);
    bytes
}

const BYTES: u64 = 100 * PAGE_SIZE;

#[test]
fn the_encoding_is_what_is_on_disk() {
    let parent = image(&[1, 1, 1, 1]);
    let current = image(&[1, 2, 0, 0]);
    let (index, data) =
        write_diff(&parent, &current, &PageSet::all(BYTES / 25), Vec::new()).unwrap();
    assert_eq!(data, page(2));
    let mut expected = encoded([4 * PAGE_SIZE, 1, 2], &[[1, 1, 0], [2, 2, 1]], 0);
    expected.extend(crc32c::crc32c(&page(2)).to_le_bytes());
    assert_eq!(index.encode(), expected);
    assert_eq!(LayerIndex::decode(&expected), Ok(index));
}

#[test]
fn only_sensible_indexes_are_read() {
    let decode = |head, extents: &[[u64; 3]], checksums| {
        LayerIndex::decode(&encoded(head, extents, checksums)).map(|index| index.stored_pages())
    };
    assert_eq!(decode([BYTES, 0, 0], &[], 0), Ok(0));
    assert_eq!(decode([BYTES, 1, 2], &[[0, 2, 0], [2, 98, 1]], 2), Ok(2));
    // Sizes and kinds that do not exist.
    assert_eq!(decode([0, 0, 0], &[], 0), Err(InvalidIndex::Size(0)));
    assert_eq!(
        decode([BYTES + 1, 0, 0], &[], 0),
        Err(InvalidIndex::Size(BYTES + 1))
    );
    assert_eq!(
        decode([u64::MAX - 4095, 0, 0], &[], 0),
        Err(InvalidIndex::Size(u64::MAX - 4095))
    );
    assert_eq!(decode([BYTES, 2, 0], &[], 0), Err(InvalidIndex::Kind(2)));
    assert_eq!(
        decode([BYTES, 1, 1], &[[0, 1, 2]], 0),
        Err(InvalidIndex::Extent(0))
    );
    // A base has nothing to make zero.
    assert_eq!(
        decode([BYTES, 0, 1], &[[0, 1, 1]], 0),
        Err(InvalidIndex::Extent(0))
    );
    // Empty, backwards, overlapping, beyond the end.
    for extents in [
        [[0, 0, 0], [1, 1, 0]],
        [[5, 1, 0], [4, 1, 0]],
        [[0, 3, 0], [2, 1, 0]],
    ] {
        let result = decode([BYTES, 0, 2], &extents, 4);
        assert!(
            matches!(result, Err(InvalidIndex::Extent(_))),
            "{extents:?}"
        );
    }
    for extent in [[100, 1, 0], [99, 2, 0], [u64::MAX, 1, 0], [1, u64::MAX, 0]] {
        assert_eq!(
            decode([BYTES, 0, 1], &[extent], 1),
            Err(InvalidIndex::Extent(0))
        );
    }
    // More or less than it says, in particular so much more that it cannot be.
    for (count, checksums) in [(0, 0), (2, 1), (1, 0), (1, 2), (u64::MAX, 1), (1 << 61, 1)] {
        let result = decode([BYTES, 0, count], &[[0, 1, 0]], checksums);
        assert!(
            matches!(result, Err(InvalidIndex::Length { .. })),
            "{count} {checksums} {result:?}"
        );
    }
    assert!(LayerIndex::decode(&[0; 23]).is_err());
}

#[test]
fn layers_that_do_not_belong_together_are_refused() {
    let index = |pages, kind| LayerIndex::new(pages * PAGE_SIZE, kind, Vec::new(), Vec::new());
    let (base, diff) = (index(4, LayerKind::Base), index(4, LayerKind::Diff));
    let merge = |layers: &[&LayerIndex]| PageIndex::merge(layers.iter().copied()).map(drop);
    assert_eq!(merge(&[&base, &diff, &diff]), Ok(()));
    assert_eq!(merge(&[]), Err(InvalidChain::Empty));
    assert_eq!(merge(&[&diff]), Err(InvalidChain::Kind(0)));
    assert_eq!(merge(&[&base, &diff, &base]), Err(InvalidChain::Kind(2)));
    let other = index(5, LayerKind::Diff);
    assert_eq!(
        merge(&[&base, &other]),
        Err(InvalidChain::Size {
            layer: 1,
            expected: 4 * PAGE_SIZE,
            found: 5 * PAGE_SIZE
        })
    );
}

#[test]
fn a_layer_has_its_pages_in_order() {
    let mut writer = LayerWriter::new(Vec::new(), 4 * PAGE_SIZE, LayerKind::Base).unwrap();
    writer.page(1, &page(1)).unwrap();
    assert!(matches!(
        writer.page(1, &page(1)),
        Err(MemoryError::Order(1))
    ));
    assert!(matches!(
        writer.page(4, &page(1)),
        Err(MemoryError::Range { .. })
    ));
    assert!(matches!(
        writer.page(u64::MAX, &page(1)),
        Err(MemoryError::Range { .. })
    ));
    writer.page(3, &page(1)).unwrap();
    assert_eq!(writer.finish().0.extents().len(), 2);
}

#[test]
fn a_diff_has_only_what_differs() {
    let parent = image(&[1, 2, 3, 0]);
    let current = image(&[1, 9, 0, 0]);
    // Page 1 is not said to have changed.
    let changed = [run(0, 1), run(2, 2)].into_iter().collect();
    let (index, data) = write_diff(&parent, &current, &changed, Vec::new()).unwrap();
    assert_eq!(data.len(), 0);
    assert_eq!(
        index.extents(),
        [Extent {
            run: run(2, 1),
            content: Content::Zero
        }]
    );
    let beyond = [run(4, 1)].into_iter().collect();
    let error = write_diff(&parent, &current, &beyond, Vec::new()).unwrap_err();
    assert!(matches!(error, MemoryError::Range { .. }), "{error}");
}

#[test]
fn a_damaged_page_is_never_loaded() {
    let (index, mut bytes) = write_base(&image(&[1, 2, 3]), Vec::new()).unwrap();
    bytes[PAGE + 17] ^= 1;
    let layered = LayeredMemory::new(vec![Layer::new(index.clone(), Box::new(bytes.clone()), 0)]);
    let layered = layered.unwrap();
    // Those beside it are there.
    layered.read_at(0, &mut [0; PAGE]).unwrap();
    let error = layered.read_at(PAGE_SIZE, &mut [0; PAGE]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(
        error.to_string().contains("stored page 1 is damaged"),
        "{error}"
    );
    assert!(MemoryImage::load(&layered).is_err());

    // A file that was cut off.
    bytes.truncate(2 * PAGE);
    let layered = LayeredMemory::new(vec![Layer::new(index, Box::new(bytes), 0)]).unwrap();
    assert!(MemoryImage::load(&layered).is_err());
}

#[test]
fn a_layered_memory_is_read_by_whole_pages_within_it() {
    let (index, bytes) = write_base(&image(&[1, 0, 3]), Vec::new()).unwrap();
    let layered = LayeredMemory::new(vec![Layer::new(index, Box::new(bytes), 0)]).unwrap();
    let mut buffer = [9; 2 * PAGE];
    layered.read_at(PAGE_SIZE, &mut buffer).unwrap();
    assert_eq!(buffer[..PAGE], page(0));
    assert_eq!(buffer[PAGE..], page(3));
    layered.read_at(0, &mut []).unwrap();
    for (offset, length) in [
        (2 * PAGE_SIZE, 2 * PAGE),
        (1, PAGE),
        (0, 1),
        (u64::MAX, PAGE),
    ] {
        assert!(layered.read_at(offset, &mut buffer[..length]).is_err());
    }
}
