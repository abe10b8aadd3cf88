use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::pages::{PageRun, PageSet};
use crate::source::PageSource;

mod layers;

pub(super) const PAGE: usize = PAGE_SIZE as usize;

/// A page that is full of `value`.
pub(super) fn page(value: u8) -> [u8; PAGE] {
    [value; PAGE]
}

/// A memory with one value a page.
pub(super) fn image(values: &[u8]) -> MemoryImage {
    let mut builder = MemoryBuilder::new(values.len() as u64 * PAGE_SIZE).unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|value| page(*value)).collect();
    builder.write(0, &bytes).unwrap();
    builder.seal().unwrap()
}

/// The value of each page, if all of its bytes are the same.
pub(super) fn values(source: &dyn PageSource, pages: usize) -> Vec<u8> {
    let mut bytes = vec![0; pages * PAGE];
    source.read_at(0, &mut bytes).unwrap();
    bytes
        .chunks(PAGE)
        .map(|page| {
            assert!(page.iter().all(|byte| *byte == page[0]));
            page[0]
        })
        .collect()
}

pub(super) fn run(start: u64, pages: u64) -> PageRun {
    PageRun::new(start, pages).unwrap()
}

#[test]
fn only_sizes_that_a_memory_can_have() {
    for bytes in [0, 1, PAGE_SIZE + 1, MAX_MEMORY_BYTES + PAGE_SIZE, u64::MAX] {
        let error = MemoryBuilder::new(bytes).unwrap_err();
        assert!(
            matches!(error, MemoryError::Size(size) if size == bytes),
            "{error}"
        );
    }
    // A memory of zeroes costs nothing, however large.
    let image = MemoryBuilder::new(1 << 40).unwrap().seal().unwrap();
    assert_eq!(image.bytes(), 1 << 40);
    assert_eq!(image.allocated_bytes().unwrap(), 0);
    assert!(image.data_pages().unwrap().is_empty());
    image.hash().unwrap();
}

#[test]
fn what_is_written_is_there_and_zeroes_take_no_room() {
    let image = image(&[0, 1, 1, 0, 0, 2]);
    assert_eq!(values(&image, 6), [0, 1, 1, 0, 0, 2]);
    assert_eq!(image.data_pages().unwrap().runs(), [run(1, 2), run(5, 1)]);
    assert_eq!(image.allocated_bytes().unwrap(), 3 * PAGE_SIZE);
}

#[test]
fn only_whole_pages_within_the_memory_are_written() {
    let mut builder = MemoryBuilder::new(2 * PAGE_SIZE).unwrap();
    let two = [1; 2 * PAGE];
    for (offset, pages) in [
        (1, &two[..PAGE]),
        (0, &two[..PAGE - 1]),
        (PAGE_SIZE, &two[..]),
        (2 * PAGE_SIZE, &two[..PAGE]),
        (u64::MAX - PAGE_SIZE + 1, &two[..PAGE]),
    ] {
        let error = builder.write(offset, pages).unwrap_err();
        assert!(matches!(error, MemoryError::Range { .. }), "{error}");
    }
    builder.write(2 * PAGE_SIZE, &[]).unwrap();
    assert_eq!(builder.seal().unwrap().allocated_bytes().unwrap(), 0);
}

#[test]
fn an_image_can_be_changed_by_nobody() {
    use std::os::unix::fs::FileExt;
    let image = image(&[1, 2]);
    let file = image.file();
    assert_eq!(
        file.write_all_at(&page(9), 0).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );
    assert!(file.set_len(PAGE_SIZE).is_err());
    assert!(file.set_len(3 * PAGE_SIZE).is_err());
    assert_eq!(values(&image, 2), [1, 2]);
    // Also who gets the file from elsewhere can rely on it.
    let other = MemoryImage::from_file(file.try_clone().unwrap()).unwrap();
    assert_eq!(other.bytes(), 2 * PAGE_SIZE);
    assert_eq!(other.hash().unwrap(), image.hash().unwrap());
}

#[test]
fn a_memory_is_put_together_by_two() {
    let base = image(&[1, 2, 3, 4]);
    let builder = MemoryBuilder::from_image(&base).unwrap();
    let shared = builder.share().unwrap();
    // Its size is what it is, whoever else has it.
    assert!(shared.set_len(PAGE_SIZE).is_err());
    let mut other = MemoryBuilder::from_shared(shared).unwrap();
    assert_eq!(other.bytes(), 4 * PAGE_SIZE);
    other
        .write(PAGE_SIZE, &[page(7), page(0)].concat())
        .unwrap();
    let sealed = builder.seal().unwrap();
    assert_eq!(values(&sealed, 4), [1, 7, 0, 4]);
    let error = other.write(0, &page(9)).unwrap_err();
    assert!(matches!(error, MemoryError::Io { .. }), "{error}");
    assert_eq!(values(&sealed, 4), [1, 7, 0, 4]);
    assert_eq!(values(&base, 4), [1, 2, 3, 4]);
}

#[test]
fn what_can_still_change_is_no_image() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    assert!(matches!(
        MemoryImage::from_file(file),
        Err(MemoryError::NotSealed)
    ));
    let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
    let memfd = std::fs::File::from(rustix::fs::memfd_create(c"test", flags).unwrap());
    memfd.set_len(PAGE_SIZE).unwrap();
    rustix::fs::fcntl_add_seals(&memfd, rustix::fs::SealFlags::WRITE).unwrap();
    assert!(matches!(
        MemoryImage::from_file(memfd),
        Err(MemoryError::NotSealed)
    ));
}

#[test]
fn a_copy_has_the_same_content_and_the_same_holes() {
    let original = image(&[0, 1, 0, 0, 2, 3]);
    let mut builder = MemoryBuilder::from_image(&original).unwrap();
    builder.write(4 * PAGE_SIZE, &page(0)).unwrap();
    builder.write(0, &page(7)).unwrap();
    let copy = builder.seal().unwrap();
    assert_eq!(values(&copy, 6), [7, 1, 0, 0, 0, 3]);
    assert_eq!(values(&original, 6), [0, 1, 0, 0, 2, 3]);
    // The page that was made zero is a hole now.
    assert_eq!(copy.allocated_bytes().unwrap(), 3 * PAGE_SIZE);
}

#[test]
fn a_copy_goes_beyond_a_chunk() {
    let values_: Vec<u8> = (0..700_u32).map(|number| (number % 251) as u8).collect();
    let original = image(&values_);
    let copy = MemoryBuilder::from_image(&original)
        .unwrap()
        .seal()
        .unwrap();
    assert_eq!(values(&copy, 700), values_);
    assert_eq!(copy.hash().unwrap(), original.hash().unwrap());
}

#[test]
fn the_hash_is_that_of_the_content() {
    let one = image(&[0, 1, 2, 0]);
    let hash = one.hash().unwrap();
    assert_eq!(one.compute_hash().unwrap(), hash);
    // Zeroes that are stored make no difference.
    let mut builder = MemoryBuilder::from_image(&image(&[5, 1, 2, 5])).unwrap();
    builder.write(0, &page(0)).unwrap();
    builder.write(3 * PAGE_SIZE, &page(0)).unwrap();
    assert_eq!(builder.seal().unwrap().hash().unwrap(), hash);
    // What, where and how much do.
    for other in [
        &[0, 1, 3, 0][..],
        &[1, 2, 0, 0],
        &[0, 2, 1, 0],
        &[0, 1, 2],
        &[0, 1, 2, 0, 0],
    ] {
        assert_ne!(image(other).hash().unwrap(), hash, "{other:?}");
    }
}

#[test]
fn the_hash_never_changes_its_meaning() {
    // Snapshots on disk name their memory by it. If this fails, the format has changed.
    let hash = image(&[0, 1, 2, 0]).hash().unwrap();
    assert_eq!(
        hash.to_string(),
        "6ed6210a9be1f022acc077b0a2a542fcffb5b73b25d1cee29dd7ae62b38429a6"
    );
    assert_eq!(hash.to_string().parse::<MemoryHash>().unwrap(), hash);
    for text in ["", "12", &"g".repeat(64), &"A".repeat(64), &"0".repeat(66)] {
        assert_eq!(text.parse::<MemoryHash>(), Err(crate::InvalidDigest));
    }
}

/// A source that counts how many bytes were asked of it.
struct Counting(Vec<u8>, std::sync::Arc<AtomicU64>);

impl PageSource for Counting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(offset, buf)
    }
}

#[test]
fn loading_reads_each_page_once_however_deep_the_chain_is() {
    let read = std::sync::Arc::new(AtomicU64::new(0));
    let base = image(&[1; 32]);
    let layer = |index, bytes| Layer::new(index, Box::new(Counting(bytes, read.clone())), 0);
    let (index, bytes) = write_base(&base, Vec::new()).unwrap();
    let mut layers = vec![layer(index, bytes)];
    let mut below = base;
    for depth in 0..8_u8 {
        let mut builder = MemoryBuilder::from_image(&below).unwrap();
        builder.write(0, &vec![depth + 2; 20 * PAGE]).unwrap();
        let above = builder.seal().unwrap();
        let (index, bytes) =
            write_diff(&below, &above, &PageSet::all(above.bytes()), Vec::new()).unwrap();
        assert_eq!(index.stored_pages(), 20);
        layers.push(layer(index, bytes));
        below = above;
    }
    let loaded = MemoryImage::load(&LayeredMemory::new(layers).unwrap()).unwrap();
    assert_eq!(loaded.hash().unwrap(), below.hash().unwrap());
    assert_eq!(read.load(Ordering::Relaxed), 32 * PAGE_SIZE);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any chain of changes, written as layers and loaded, is what a plain array would be.
    #[test]
    fn a_chain_of_layers_is_the_memory(
        base in prop::collection::vec(0..3_u8, 24),
        diffs in prop::collection::vec(
            prop::collection::vec((0..24_usize, 0..4_u8), 0..10), 0..6),
    ) {
        let mut model = base.clone();
        let mut current = image(&base);
        let (index, bytes) = write_base(&current, Vec::new()).unwrap();
        let mut layers = vec![Layer::new(index, Box::new(bytes), 0)];
        for changes in diffs {
            let mut builder = MemoryBuilder::from_image(&current).unwrap();
            for &(number, value) in &changes {
                model[number] = value;
                builder.write(number as u64 * PAGE_SIZE, &page(value)).unwrap();
            }
            let next = builder.seal().unwrap();
            let changed = changes.iter().map(|(number, _)| run(*number as u64, 1)).collect();
            let (index, bytes) = write_diff(&current, &next, &changed, Vec::new()).unwrap();
            prop_assert_eq!(LayerIndex::decode(&index.encode()), Ok(index.clone()));
            layers.push(Layer::new(index, Box::new(bytes), 0));
            current = next;
        }
        let layered = LayeredMemory::new(layers).unwrap();
        prop_assert_eq!(values(&layered, 24), &model[..]);
        let loaded = MemoryImage::load(&layered).unwrap();
        prop_assert_eq!(values(&loaded, 24), &model[..]);
        prop_assert_eq!(loaded.hash().unwrap(), image(&model).hash().unwrap());
        let stored = model.iter().filter(|value| **value != 0).count() as u64;
        prop_assert!(layered.index().stored_pages() >= stored);
        prop_assert_eq!(loaded.allocated_bytes().unwrap(), stored * PAGE_SIZE);
    }

    #[test]
    fn no_bytes_make_the_index_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = LayerIndex::decode(&bytes);
    }
}
