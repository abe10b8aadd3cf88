//! Copies that are made while the memory is written to.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ember_snapshot::memory::{MemoryBuilder, MemoryImage};
use ember_snapshot::pager::{GuestMapping, PagerError, PreparedCopy, changed_pages, copied_pages};
use ember_snapshot::{PAGE_SIZE, PageSet, PageSource};

use crate::mapping::{Mapping, PAGE};
use crate::{content, image, run};

/// The copy on top of `base`.
fn into(base: &MemoryImage) -> Arc<Mutex<Option<MemoryBuilder>>> {
    let builder = MemoryBuilder::from_image(base).unwrap();
    Arc::new(Mutex::new(Some(builder)))
}

type Builder = Arc<Mutex<Option<MemoryBuilder>>>;

fn sink(builder: &Builder) -> impl FnMut(u64, &[u8]) -> io::Result<()> + Send + 'static {
    let builder = builder.clone();
    move |offset, bytes| {
        let mut builder = builder.lock().unwrap();
        builder
            .as_mut()
            .unwrap()
            .write(offset, bytes)
            .map_err(io::Error::other)
    }
}

fn sealed(builder: &Builder) -> MemoryImage {
    builder.lock().unwrap().take().unwrap().seal().unwrap()
}

fn word(image: &MemoryImage, page: usize, word: usize) -> u64 {
    let mut bytes = [0; PAGE];
    image.read_at(page as u64 * PAGE_SIZE, &mut bytes).unwrap();
    u64::from_ne_bytes(bytes[word * 8..][..8].try_into().unwrap())
}

/// How many pages the memory has that is copied while it is written to.
const PAGES: usize = 1500;

#[test]
fn the_copy_is_of_the_moment_it_began_whatever_is_written_meanwhile() {
    let base = image(PAGES);
    for prepare in [PreparedCopy::new, PreparedCopy::without_unpopulated] {
        copy_of_a_moment(&base, &Mapping::private(base.file(), PAGES), prepare, false);
        copy_of_a_moment(&base, &Mapping::anonymous(PAGES), prepare, false);
        copy_of_a_moment(&base, &Mapping::huge(PAGES), prepare, true);
    }
}

fn copy_of_a_moment(
    base: &MemoryImage,
    memory: &Mapping,
    prepare: fn(GuestMapping) -> Result<PreparedCopy, PagerError>,
    huge: bool,
) {
    let pages = PAGES;
    // Some pages, most of them in runs.
    let before = |page: usize| page % 100 < 60 && !page.is_multiple_of(7);
    // Some of these and some others, while the copy is prepared.
    let late = |page: usize| page % 100 > 50 && page.is_multiple_of(5);
    for page in (0..pages).filter(|page| before(*page)) {
        memory.set(page, 1, 1_000_000 + page as u64);
    }
    let prepared = prepare(memory.guest()).unwrap();
    for page in (0..pages).filter(|page| late(*page)) {
        memory.set(page, 1, 2_000_000 + page as u64);
    }
    let written: PageSet = (0..pages)
        .filter(|page| before(*page) || late(*page))
        .map(|page| run(page as u64, 1))
        .collect();
    let builder = into(base);
    let stop = AtomicBool::new(false);
    let (stats, changed) = std::thread::scope(|scope| {
        let copy = prepared.begin(sink(&builder)).unwrap();
        for start in 0..4_usize {
            let stop = &stop;
            scope.spawn(move || {
                let mut step = start * 777;
                // All of them at least once, also those between and beside.
                while !stop.load(Ordering::Relaxed) || step < start * 777 + pages {
                    memory.set(step % pages, 1, 7);
                    step += 1;
                }
            });
        }
        let changed = copy.pages();
        let stats = copy.wait();
        stop.store(true, Ordering::Relaxed);
        (stats.unwrap(), changed)
    });
    assert!(written.difference(&changed).is_empty());
    // A huge page is changed as a whole.
    assert!(huge || changed == written);
    assert_eq!(stats.pages, changed.pages());
    let copied = sealed(&builder);
    for page in 0..pages {
        let expected = match page {
            _ if late(page) => 2_000_000 + page as u64,
            _ if before(page) => 1_000_000 + page as u64,
            _ if changed.contains(page as u64) => 0,
            _ => content(page, 1),
        };
        assert_eq!(word(&copied, page, 1), expected, "page {page}");
        assert_eq!(memory.get(page, 1), 7, "page {page}");
    }
}

#[test]
fn a_guest_that_never_stops_writing_gets_on_while_its_copy_is_prepared() {
    let memory = Mapping::anonymous(20_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for start in 0..3_usize {
            let (memory, stop) = (&memory, &stop);
            scope.spawn(move || {
                let mut step = start * 1000;
                while !stop.load(Ordering::Relaxed) {
                    memory.set(step % 20_000, 1, 7);
                    step += 1;
                }
            });
        }
        for _ in 0..5 {
            let prepared = PreparedCopy::new(memory.guest()).unwrap();
            std::thread::sleep(Duration::from_millis(10));
            drop(prepared);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn the_kernel_waits_for_the_copy_too() {
    // As when a guest's device reads a file into its memory.
    let base = image(64);
    let memory = Mapping::private(base.file(), 64);
    memory.set(10, 1, 5);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; PAGE]).unwrap();
    let builder = into(&base);
    let mut slow = sink(&builder);
    let copy = PreparedCopy::new(memory.guest())
        .unwrap()
        .begin(move |offset, bytes| {
            std::thread::sleep(Duration::from_millis(20));
            slow(offset, bytes)
        })
        .unwrap();
    memory.read_into(10, &file).unwrap();
    assert_eq!(memory.get(10, 1), 0x0707_0707_0707_0707);
    assert_eq!(copy.wait().unwrap().pages, 1);
    assert_eq!(word(&sealed(&builder), 10, 1), 5);
}

#[test]
fn what_the_guest_waits_for_comes_first() {
    let memory = Mapping::anonymous(2000);
    for page in 0..2000 {
        memory.set(page, 0, 1);
    }
    let order = Arc::new(Mutex::new(Vec::new()));
    let seen = order.clone();
    let copy = PreparedCopy::new(memory.guest())
        .unwrap()
        .begin(move |offset, bytes| {
            std::thread::sleep(Duration::from_millis(2));
            seen.lock()
                .unwrap()
                .push((offset / PAGE_SIZE, bytes.len() / PAGE));
            Ok(())
        })
        .unwrap();
    memory.set(1990, 0, 2);
    assert!(!copy.is_done());
    let stats = copy.wait().unwrap();
    assert_eq!((stats.pages, stats.waited_for), (2000, 1));
    let order = order.lock().unwrap();
    let at = order.iter().position(|part| *part == (1990, 1)).unwrap();
    assert!(at < 10, "it came as number {at}");
    // Each page once.
    assert_eq!(order.iter().map(|part| part.1).sum::<usize>(), 2000);
}

#[test]
fn a_copy_that_fails_or_is_given_up_hangs_nobody() {
    let memory = Mapping::anonymous(1000);
    let dirty = || (0..1000).for_each(|page| memory.set(page, 0, page as u64));
    dirty();
    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    let full = |offset, _: &[u8]| match offset {
        0x20000.. => Err(io::Error::from(io::ErrorKind::StorageFull)),
        _ => Ok(()),
    };
    let copy = prepared.begin(full).unwrap();
    dirty();
    let error = copy.wait().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);

    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    let copy = prepared.begin(|_, _| panic!("a mistake")).unwrap();
    dirty();
    assert!(copy.wait().unwrap_err().to_string().contains("panicked"));

    // Dropped in the middle, before its beginning, and forgotten when it is done.
    let slow = |_, _: &[u8]| {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    };
    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    drop(prepared.begin(slow).unwrap());
    dirty();
    drop(PreparedCopy::new(memory.guest()).unwrap());
    dirty();
    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    let copy = prepared.begin(|_, _| Ok(())).unwrap();
    copy.settle(run(0, 1000));
    assert!(copy.is_done());
    dirty();
}

#[test]
fn pages_can_be_given_back_once_they_are_settled() {
    let base = image(500);
    let memory = Mapping::private(base.file(), 500);
    (0..500).for_each(|page| memory.set(page, 0, 9));
    let builder = into(&base);
    let mut slow = sink(&builder);
    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    let copy = prepared
        .begin(move |offset, bytes| {
            std::thread::sleep(Duration::from_millis(1));
            slow(offset, bytes)
        })
        .unwrap();
    copy.settle(run(40, 20));
    memory.replace(40, 20);
    assert_eq!(memory.get(45, 0), 0);
    assert_eq!(copy.wait().unwrap().pages, 500);
    let copied = sealed(&builder);
    assert!((0..500).all(|page| word(&copied, page, 0) == 9));
    // Nothing is protected any more.
    (0..500).for_each(|page| memory.set(page, 0, 3));

    // Memory that was replaced before is what it is.
    let prepared = PreparedCopy::new(memory.guest()).unwrap();
    let copy = prepared.begin(|_, _| Ok(())).unwrap();
    assert_eq!(copy.wait().unwrap().pages, 500);
}

#[test]
fn a_memory_can_be_copied_again_and_again() {
    let base = image(300);
    let memory = Mapping::private(base.file(), 300);
    for generation in 1..20_u64 {
        memory.set(generation as usize * 11, 0, generation);
        let builder = into(&base);
        let prepared = PreparedCopy::new(memory.guest()).unwrap();
        let copy = prepared.begin(sink(&builder)).unwrap();
        assert_eq!(copy.pages().pages(), generation);
        copy.wait().unwrap();
        let copied = sealed(&builder);
        for old in 1..=generation {
            assert_eq!(word(&copied, old as usize * 11, 0), old);
        }
    }
}

/// The kernel shows a page that was never there as one that was swapped out, once it is protected.
#[test]
fn what_is_protected_does_not_count_as_copied() {
    let base = image(PAGES);
    let memory = Mapping::private(base.file(), PAGES);
    let mut written: PageSet = (0..PAGES)
        .step_by(10)
        .map(|page| run(page as u64, 1))
        .collect();
    for page in (0..PAGES).step_by(10) {
        memory.set(page, 0, 5);
    }
    let _ = memory.get(55, 0);
    assert_eq!(changed_pages(&memory.guest()).unwrap(), written);
    for (turn, prepare) in [PreparedCopy::new, PreparedCopy::without_unpopulated]
        .into_iter()
        .enumerate()
    {
        assert_eq!(copied_pages(&memory.guest()).unwrap(), written);
        let prepared = prepare(memory.guest()).unwrap();
        assert_eq!(copied_pages(&memory.guest()).unwrap(), written);
        // Who has to have them all gets too many.
        assert!(
            written
                .difference(&changed_pages(&memory.guest()).unwrap())
                .is_empty()
        );
        // Read while it is protected, and written to.
        let _ = memory.get(777 + turn, 0);
        memory.set(888 + turn, 0, 5);
        written.insert(run(888 + turn as u64, 1));
        assert_eq!(copied_pages(&memory.guest()).unwrap(), written);
        let copy = prepared.begin(|_, _| Ok(())).unwrap();
        memory.set(333 + turn, 0, 5);
        written.insert(run(333 + turn as u64, 1));
        assert_eq!(copied_pages(&memory.guest()).unwrap(), written);
        copy.wait().unwrap();
    }
    assert_eq!(copied_pages(&memory.guest()).unwrap(), written);
}

/// How long a guest stands still for its copy to begin: 64 MiB of changes in 128 MiB of memory.
#[test]
fn a_copy_begins_in_no_time() {
    // Elsewhere a clock says how busy the machine is.
    let timed = std::env::var("EMBER_LAB").is_ok_and(|lab| lab == "icount");
    let pages = if timed { 32_768 } else { 4096 };
    type Shape = (&'static str, fn(usize, usize) -> bool);
    let shapes: [Shape; 2] = [
        ("one run", |page, pages| page < pages / 2),
        ("every other page", |page, _| page % 2 == 0),
    ];
    for (name, dirty) in shapes {
        let mut builder = MemoryBuilder::new((pages * PAGE) as u64).unwrap();
        for page in 0..pages {
            builder.write((page * PAGE) as u64, &[1; PAGE]).unwrap();
        }
        let base = builder.seal().unwrap();
        let memory = Mapping::private(base.file(), pages);
        for page in 0..pages {
            let _ = memory.get(page, 0);
            if dirty(page, pages) {
                memory.set(page, 0, 2);
            }
        }
        let prepare = Instant::now();
        let prepared = PreparedCopy::new(memory.guest()).unwrap();
        let prepare = prepare.elapsed();
        // What it does until it stands still: pages it had changed, and others.
        for step in 0..200 {
            memory.set(step * 163 % pages, 1, 3);
        }
        let begin = Instant::now();
        let copy = prepared.begin(|_, _| Ok(())).unwrap();
        let begin = begin.elapsed();
        assert!(copy.pages().pages() >= pages as u64 / 2);
        let rest = Instant::now();
        copy.wait().unwrap();
        let rest = rest.elapsed();
        println!("{name}: prepare {prepare:?}, begin {begin:?}, copy {rest:?}");
        if timed {
            assert!(begin < Duration::from_millis(2), "{name}: {begin:?}");
        }
    }
}
