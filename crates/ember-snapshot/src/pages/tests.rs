use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn run(start: u64, pages: u64) -> PageRun {
    PageRun::new(start, pages).unwrap()
}

fn set(runs: &[(u64, u64)]) -> PageSet {
    runs.iter()
        .map(|&(start, pages)| run(start, pages))
        .collect()
}

fn numbers(set: &PageSet) -> BTreeSet<u64> {
    set.runs()
        .iter()
        .flat_map(|run| run.start()..run.end())
        .collect()
}

#[test]
fn a_run_lies_within_the_largest_memory_and_is_not_empty() {
    assert!(PageRun::new(0, MAX_PAGES).is_some());
    assert!(PageRun::new(0, 0).is_none());
    assert!(PageRun::new(1, MAX_PAGES).is_none());
    assert!(PageRun::new(u64::MAX, 1).is_none());
    assert!(PageRun::new(1, u64::MAX).is_none());
}

#[test]
fn pieces_make_up_the_run() {
    let pieces: Vec<_> = run(5, 7).pieces(3).collect();
    assert_eq!(pieces, [run(5, 3), run(8, 3), run(11, 1)]);
    assert_eq!(run(5, 7).pieces(u64::MAX).count(), 1);
    // Nonsense, but no endless loop.
    assert_eq!(run(5, 7).pieces(0).count(), 7);
}

#[test]
fn all_pages_of_a_memory() {
    assert_eq!(PageSet::all(3 * PAGE_SIZE), set(&[(0, 3)]));
    assert_eq!(PageSet::all(0), PageSet::new());
    assert_eq!(PageSet::all(u64::MAX).pages(), MAX_PAGES);
}

#[test]
fn the_encoding_is_what_is_on_disk() {
    let bytes = set(&[(1, 2), (0x1_0203, 4)]).encode();
    assert_eq!(
        bytes,
        [
            1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, //
            3, 2, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0,
        ]
    );
}

#[test]
fn only_the_one_encoding_is_read() {
    let encoded = |runs: &[(u64, u64)]| -> Vec<u8> {
        runs.iter()
            .flat_map(|(start, pages)| [start.to_le_bytes(), pages.to_le_bytes()])
            .flatten()
            .collect()
    };
    let decode = |runs: &[(u64, u64)]| PageSet::decode(&encoded(runs));
    assert_eq!(decode(&[]), Ok(PageSet::new()));
    assert_eq!(decode(&[(0, 1), (2, 1)]), Ok(set(&[(0, 1), (2, 1)])));
    assert_eq!(decode(&[(0, 1), (1, 1)]), Err(InvalidPages::Run(1)));
    assert_eq!(decode(&[(5, 1), (2, 1)]), Err(InvalidPages::Run(1)));
    assert_eq!(decode(&[(5, 0)]), Err(InvalidPages::Run(0)));
    assert_eq!(decode(&[(u64::MAX, 2)]), Err(InvalidPages::Run(0)));
    assert_eq!(
        PageSet::decode(&encoded(&[(5, 1)])[..15]),
        Err(InvalidPages::Truncated(15))
    );
}

fn any_runs() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0..60_u64, 1..8_u64), 0..12)
}

proptest! {
    #[test]
    fn sets_are_sets(left in any_runs(), right in any_runs()) {
        let (a, b) = (set(&left), set(&right));
        let (x, y) = (numbers(&a), numbers(&b));
        prop_assert_eq!(numbers(&a.union(&b)), &x | &y);
        prop_assert_eq!(numbers(&a.difference(&b)), &x - &y);
        prop_assert_eq!(a.pages(), x.len() as u64);
        prop_assert_eq!(a.end(), x.last().map_or(0, |last| last + 1));
        for page in 0..70 {
            prop_assert_eq!(a.contains(page), x.contains(&page));
        }
        let mut one_by_one = PageSet::new();
        for &(start, pages) in &left {
            one_by_one.insert(run(start, pages));
        }
        prop_assert_eq!(&one_by_one, &a);
        // Any result is in the one form, so it can be read back.
        for result in [a.union(&b), a.difference(&b), one_by_one] {
            prop_assert_eq!(PageSet::decode(&result.encode()), Ok(result));
        }
    }
}
