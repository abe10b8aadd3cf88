//! Memory that is filled when it is touched.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use ember_snapshot::pager::{AfterFailure, PageSource, Pager, PagerFailure, PagerOptions};

use crate::mapping::{Mapping, PAGE};
use crate::{bytes, content, image, set};

const WAIT: Duration = Duration::from_secs(60);

fn start(memory: &Mapping, source: impl PageSource + 'static) -> (Pager, Receiver<PagerFailure>) {
    start_with(memory, source, PagerOptions::default())
}

fn start_with(
    memory: &Mapping,
    source: impl PageSource + 'static,
    options: PagerOptions,
) -> (Pager, Receiver<PagerFailure>) {
    let (failed, failures) = channel();
    let on_failure = move |failure| failed.send(failure).unwrap();
    let pager = Pager::start(memory.guest(), source, options, on_failure).unwrap();
    (pager, failures)
}

/// A source of which everything behind some page fails.
struct Until(Vec<u8>, u64, fn() -> io::Error);

impl PageSource for Until {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if offset >= self.1 {
            return Err(self.2());
        }
        self.0.read_at(offset, buf)
    }
}

fn lost() -> io::Error {
    io::Error::other("the line is down")
}

#[test]
fn what_is_touched_is_there() {
    let memory = Mapping::anonymous(200);
    let (pager, failures) = start(&memory, bytes(200));
    assert!(pager.filled().is_empty());
    assert_eq!(memory.get(21, 7), content(21, 7));
    // The others of its window came with it.
    assert_eq!(pager.filled(), set(&[(16, 16)]));
    // By writing, too.
    memory.set(100, 3, 1);
    assert_eq!(memory.get(100, 3), 1);
    assert_eq!(memory.get(100, 4), content(100, 4));
    // And the end, where a window is not whole.
    assert_eq!(memory.get(199, 511), content(199, 511));
    assert_eq!(pager.filled(), set(&[(16, 16), (96, 16), (192, 8)]));
    drop(pager);
    assert!(failures.try_recv().is_err());
    // What was not touched before the pager went is zero.
    assert_eq!(memory.get(60, 0), 0);
    assert_eq!(memory.get(21, 8), content(21, 8));
}

#[test]
fn the_kernel_gets_pages_too() {
    // A guest's faults are those of the kernel, like these.
    let memory = Mapping::anonymous(64);
    let (_pager, _failures) = start(&memory, image(64));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; PAGE]).unwrap();
    assert_eq!(memory.read_into(40, &file).unwrap(), PAGE);
    assert_eq!(memory.get(40, 0), 0x0707_0707_0707_0707);
    assert_eq!(memory.get(41, 0), content(41, 0));
}

#[test]
fn many_threads_get_what_they_touch() {
    let memory = Mapping::anonymous(1200);
    let options = PagerOptions {
        window_pages: 4,
        ..Default::default()
    };
    let (pager, _failures) = start_with(&memory, bytes(1200), options);
    std::thread::scope(|scope| {
        for start in 0..4_usize {
            let memory = &memory;
            scope.spawn(move || {
                for step in 0..1200 {
                    let page = (start * 499 + step * 7) % 1200;
                    assert_eq!(memory.get(page, step % 512), content(page, step % 512));
                }
            });
        }
    });
    assert_eq!(pager.filled(), set(&[(0, 1200)]));
}

#[test]
fn memory_in_pieces_is_filled_by_its_offsets() {
    let memory = Mapping::anonymous(100);
    let guest = memory.segments(&[(50, 10), (10, 20)]);
    let options = PagerOptions::default();
    let source = Arc::new(bytes(31));
    let _pager = Pager::start(guest, source, options, |failure| panic!("{failure}")).unwrap();
    assert_eq!(memory.get(55, 1), content(5, 1));
    // Pages 11 to 30 of the guest.
    assert_eq!(memory.get(10, 1), content(11, 1));
    assert_eq!(memory.get(29, 1), content(30, 1));
    assert_eq!(memory.get(59, 1), content(9, 1));
}

#[test]
fn what_was_given_back_is_zero() {
    let memory = Mapping::anonymous(100);
    let (_pager, _failures) = start(&memory, bytes(100));
    memory.set(5, 0, 1);
    // Pages that are there, and pages that never were.
    memory.discard(4, 30);
    for page in 4..34 {
        assert_eq!(memory.get(page, 3), 0, "page {page}");
    }
    assert_eq!(memory.get(3, 3), content(3, 3));
    assert_eq!(memory.get(34, 3), content(34, 3));
}

#[test]
fn giving_back_while_others_touch_hangs_nobody() {
    let memory = Mapping::anonymous(800);
    let (_pager, failures) = start(&memory, bytes(800));
    let given_back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for page in (0..400).step_by(2) {
                memory.discard(page, 1);
            }
            given_back.store(true, Ordering::Release);
        });
        for start in 0..4_usize {
            let memory = &memory;
            scope.spawn(move || {
                for step in 0..800 {
                    let page = (start * 531 + step * 3) % 800;
                    let value = memory.get(page, 2);
                    let zero = value == 0 && page < 400 && page % 2 == 0;
                    assert!(zero || value == content(page, 2), "page {page}: {value:x}");
                }
            });
        }
    });
    assert!(given_back.load(Ordering::Acquire));
    for page in 0..800 {
        let expected = if page < 400 && page % 2 == 0 {
            0
        } else {
            content(page, 2)
        };
        assert_eq!(memory.get(page, 2), expected, "page {page}");
    }
    assert!(failures.try_recv().is_err());
}

#[test]
fn a_source_that_fails_is_reported_before_anybody_goes_on() {
    let memory = Mapping::anonymous(64);
    let source = Until(bytes(64), 32 * PAGE as u64, lost);
    let (stopped, calls) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let on_failure = {
        let (stopped, calls) = (stopped.clone(), calls.clone());
        move |failure: PagerFailure| {
            let reason = std::error::Error::source(&failure).unwrap().to_string();
            assert_eq!(reason, "the line is down");
            assert!(failure.to_string().contains("0x20000"), "{failure}");
            std::thread::sleep(Duration::from_millis(50));
            calls.fetch_add(1, Ordering::SeqCst);
            stopped.store(true, Ordering::SeqCst);
        }
    };
    let _pager = Pager::start(memory.guest(), source, PagerOptions::default(), on_failure).unwrap();
    assert_eq!(memory.get(3, 0), content(3, 0));
    // All of one window, which is what the message names.
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for page in [32, 33, 40, 47] {
            let (memory, stopped, barrier) = (&memory, &stopped, &barrier);
            scope.spawn(move || {
                barrier.wait();
                assert_eq!(memory.get(page, 0), 0);
                assert!(stopped.load(Ordering::SeqCst));
            });
        }
    });
    // What was there stays, and nobody waits for what was not.
    assert_eq!(memory.get(3, 1), content(3, 1));
    assert_eq!(memory.get(63, 0), 0);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn a_source_that_panics_hangs_nobody() {
    struct Panics;
    impl PageSource for Panics {
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            panic!("a mistake")
        }
    }
    let memory = Mapping::anonymous(64);
    let (_pager, failures) = start(&memory, Panics);
    assert_eq!(memory.get(9, 0), 0);
    let failure = failures.recv_timeout(WAIT).unwrap();
    assert!(failure.to_string().contains("a mistake"), "{failure}");

    // Nor does an owner that panics.
    let memory = Mapping::anonymous(64);
    let options = PagerOptions::default();
    let _pager = Pager::start(memory.guest(), Panics, options, |_| panic!("another")).unwrap();
    assert_eq!(memory.get(9, 0), 0);
}

#[test]
fn poisoned_pages_are_errors_for_whoever_touches_them() {
    let memory = Mapping::anonymous(64);
    let options = PagerOptions {
        after_failure: AfterFailure::Poison,
        ..Default::default()
    };
    let source = Until(bytes(64), 32 * PAGE as u64, lost);
    let (_pager, failures) = start_with(&memory, source, options);
    memory.set(3, 0, 1);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; PAGE]).unwrap();
    // The kernel says it with a number; a program would get a signal.
    for page in [40, 50, 16] {
        let error = memory.read_into(page, &file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(14), "page {page}: {error}");
    }
    failures.recv_timeout(WAIT).unwrap();
    assert_eq!(memory.get(3, 0), 1);
    assert_eq!(memory.get(3, 1), content(3, 1));
}
